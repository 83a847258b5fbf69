"""The monitor's side of one who is attached: a connection that takes what it can, and what still waits for it."""

from __future__ import annotations

import socket
from contextlib import suppress

from bulle.monitor.frames import FrameReader, Hello


class Client:
    """One attached connection."""

    def __init__(self, connection: socket.socket, hello: Hello | None, bound: bool = False) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.reader = FrameReader()
        self.hello = hello
        self.bound = bound
        self.waiting = bytearray()

    def send(self, data: bytes) -> None:
        """Send as much as is taken now; the rest waits."""
        self.waiting += data
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as it is taken now."""
        with suppress(BlockingIOError):
            while self.waiting:
                del self.waiting[: self.connection.send(self.waiting)]
