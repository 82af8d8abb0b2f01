"""A port for something that is about to listen on this machine."""

from __future__ import annotations

import socket


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])
