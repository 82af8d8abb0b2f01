"""The one way a user's mistake reaches the user: a single line that names the key or file and the mend."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Bad input. The message is one line: which key or file is wrong, and what to do about it."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn a UserError into one line on stderr and exit code 2; anything else keeps its traceback."""
    try:
        yield
    except UserError as error:
        print(f"serveproof: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
