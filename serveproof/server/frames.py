"""Messages over a socket pair: four bytes of length, then MessagePack. Only the end of the engine blocks."""

from __future__ import annotations

import asyncio
import select
import socket
import struct
from collections.abc import Iterator

_HEAD = struct.Struct("<I")
_PIECE = 1 << 18


def framed(message: bytes) -> bytes:
    """A message as it goes over the wire."""
    return _HEAD.pack(len(message)) + message


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    """The next message. IncompleteReadError when the other end is gone."""
    (length,) = _HEAD.unpack(await reader.readexactly(_HEAD.size))
    return await reader.readexactly(length)


class EngineEnd:
    """The engine's end."""

    def __init__(self, one: socket.socket) -> None:
        self.socket, self.buffer = one, bytearray()
        self._poll = select.poll()
        self._poll.register(one, select.POLLIN)

    def send(self, message: bytes) -> None:
        """Send one message. BrokenPipeError when the server is gone."""
        self.socket.sendall(framed(message))

    def messages(self, wait_s: float) -> Iterator[bytes]:
        """Every message that is there, waiting for the first at most so long. EOFError when the server is gone."""
        while self._poll.poll(wait_s * 1000):
            piece = self.socket.recv(_PIECE)
            if not piece:
                raise EOFError
            self.buffer += piece
            wait_s = 0
        while len(self.buffer) >= _HEAD.size:
            (length,) = _HEAD.unpack_from(self.buffer)
            end = _HEAD.size + length
            if len(self.buffer) < end:
                return
            yield bytes(self.buffer[_HEAD.size : end])
            del self.buffer[:end]
