"""Work for a request that forks, or is heavy, in a process of its own: the spawner forks it, with all imports done.

The server has threads, and a process with threads must not fork: what copies files in and out of containers does. And what takes the interpreter for
long (unpacking layers) would make every other client wait. A job ends with the request that it is for: the server closes its leash then, of which
the kernel tells the job by SIGIO. fcntl(2), F_SETOWN
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from bulle.api.job_process import ENTRY, Order, Word
from bulle.errors import BulleError, from_parts
from bulle.spawner import client

Run = Callable[[Callable[[], None]], Awaitable[None]]

_CHUNK = 256 * 1024
_MOST_LINE_BYTES = 64 << 20


class Job:
    """A job at work; used with ``async with``. ``data`` goes to it and comes from it as bytes. ``run`` calls what blocks."""

    def __init__(self, run: Run, home: Path, work: str, arguments: Mapping[str, Any]) -> None:
        self._run = run
        self._order = Order(str(home), work, dict(arguments))
        self._home = home
        self._sockets: list[socket.socket] = []
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Job:
        theirs: list[socket.socket] = []
        try:
            for _ in range(3):
                mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
                self._sockets.append(mine)
                theirs.append(other)
            await self._run(lambda: self._submit([one.fileno() for one in theirs]))
            self._control, _writer = await self._opened(_MOST_LINE_BYTES)
            self._reader, self._writer = await self._opened(_CHUNK)
        except BaseException:
            self._close()
            raise
        finally:
            for one in theirs:
                one.close()
        return self

    async def _opened(self, limit: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The next of the sockets as streams, which own it from now on: the loop must be told before it is closed."""
        reader, writer = await asyncio.open_unix_connection(sock=self._sockets.pop(0), limit=limit)
        self._writers.append(writer)
        return reader, writer

    def _submit(self, descriptors: Sequence[int]) -> None:
        argument = msgspec.json.encode(self._order).decode()
        client.submit(self._home, ENTRY, [argument], descriptors, environment=dict(os.environb))

    async def __aexit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        for one in self._sockets:  # those that are nobody else's: the leash
            one.close()

    async def words(self) -> AsyncIterator[Any]:
        """Its messages; ends when it is done. Raises the error that it ended in."""
        while True:
            word = await self._next()
            if word.done:
                self.result = word.result
                return
            yield word.message

    async def done(self) -> Any:
        """Its result, when it is done. Raises the error that it ended in."""
        async for _message in self.words():
            pass
        return self.result

    async def _next(self) -> Word:
        line = await self._control.readline()
        if not line:
            raise BulleError("the work was lost", "the process that did it was killed", "try again")
        word = msgspec.json.decode(line, type=Word)
        if word.error:
            raise from_parts(word.error)
        return word

    async def read(self) -> bytes:
        """Bytes that it wrote; empty at the end."""
        return await self._reader.read(_CHUNK)

    async def feed(self, chunks: AsyncIterator[bytes]) -> None:
        """Give it bytes, and their end. What it does not want any more is dropped."""
        with suppress(ConnectionError):
            async for chunk in chunks:
                self._writer.write(chunk)
                await self._writer.drain()
            if self._writer.can_write_eof():
                self._writer.write_eof()
