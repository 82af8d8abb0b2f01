"""The one way a user's mistake reaches the user: a single line that names the key or file and the mend."""

from __future__ import annotations


class UserError(Exception):
    """Bad input. The message is one line: which key or file is wrong, and what to do about it."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
