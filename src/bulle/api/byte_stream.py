"""The bytes of one connection, both ways: reads that are bounded, writes that wait for a slow reader, and word of a client that is gone.

Used by :mod:`bulle.api.connection`, and by what takes a connection over (attach, exec). asyncio's own streams do not say that the other side has
gone while nobody reads.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import select
import termios
import time
from collections.abc import Callable
from typing import cast

_MOST_UNREAD = 256 * 1024
_LOOK_EVERY_S = 2.0
_TAKEN_WITHIN_S = 0.5


class Gone(ConnectionError):
    """The client is not there any more."""


class ByteStream(asyncio.Protocol):
    """One connection. ``on_end`` is called once when the client ends its side, or is gone."""

    def __init__(self, begin: Callable[[ByteStream], None]) -> None:
        self._begin = begin
        self._buffer = bytearray()
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._reading = True
        self._over = asyncio.Event()
        self.ended = False
        self.lost = False
        self.on_end: Callable[[], object] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The first thing that happens to a protocol."""
        self.transport = cast("asyncio.Transport", transport)
        self._begin(self)

    def data_received(self, data: bytes) -> None:
        """Bytes came; when too many wait, the client does."""
        self._buffer += data
        self._readable.set()
        if len(self._buffer) > _MOST_UNREAD and self._reading:
            self._reading = False
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        """The client sends no more. It may still listen, so the connection stays."""
        self._end()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is there any more, to send or to listen."""
        self.lost = True
        self._writable.set()
        self._end()

    def pause_writing(self) -> None:
        """More waits to be sent than should."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """It was sent."""
        self._writable.set()

    def _end(self) -> None:
        self.ended = True
        self._over.set()
        self._readable.set()
        callback, self.on_end = self.on_end, None
        if callback is not None:
            callback()

    async def read(self) -> bytes:
        """What has come, waiting for it; empty at the end."""
        while not self._buffer and not self.ended:
            self._readable.clear()
            await self._readable.wait()
        data = bytes(self._buffer)
        self._buffer.clear()
        if not self._reading and not self.lost:
            self._reading = True
            self.transport.resume_reading()
        return data

    def unread(self, data: bytes) -> None:
        """Give bytes back that were read too early."""
        self._buffer[:0] = data
        self._readable.set()

    async def write(self, data: bytes) -> None:
        """Send, and wait while the reader is slow. Raises Gone."""
        if self.lost:
            raise Gone
        self.transport.write(data)
        if not self._writable.is_set():
            await self._writable.wait()
        if self.lost:
            raise Gone

    async def until_gone(self) -> None:
        """Return when the client has closed the whole connection, of which only the end of its sending is told by itself."""
        await self._over.wait()
        poll = select.poll()
        while not self.lost:
            descriptor = self.transport.get_extra_info("socket").fileno()
            poll.register(descriptor, 0)
            if descriptor < 0 or poll.poll(0):
                return
            await asyncio.sleep(_LOOK_EVERY_S)

    async def until_taken(self) -> None:
        """Return when the client has taken what was sent, or does not for a while. SIOCOUTQ in unix(7), tcp(7)"""
        deadline = time.monotonic() + _TAKEN_WITHIN_S
        while not self.lost and time.monotonic() < deadline:
            waiting = array.array("i", [0])
            try:
                fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, waiting)
            except OSError:
                return
            if not waiting[0]:
                return
            await asyncio.sleep(0.0005)

    def end(self) -> None:
        """Send no more; what waits is still sent."""
        if not self.lost and self.transport.can_write_eof():
            self.transport.write_eof()

    def close(self) -> None:
        """Close, once what waits is sent."""
        self.transport.close()

    def abort(self) -> None:
        """Close at once."""
        self.transport.abort()
