"""Work for a request that forks, or is heavy, in a process of its own: the spawner forks it, with all imports done.

The server has threads, and a process with threads must not fork: what copies files in and out of containers does. And what takes the interpreter for
long (unpacking layers) would make every other client wait. A job ends with the request that it is for: the server closes its leash then, of which
the kernel tells the job by SIGIO. fcntl(2), F_SETOWN
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import msgspec

from bulle.errors import BulleError, from_parts, to_parts
from bulle.spawner import client

if TYPE_CHECKING:
    from bulle.spawner.leash import Leash

ENTRY = "job"
_CHUNK = 256 * 1024
_MOST_LINE_BYTES = 64 << 20
_CLEANING_S = 30


class Order(msgspec.Struct, frozen=True):
    """What a job is to do: one of :data:`bulle.api.works.WORKS` by name, in the home (a host path), with its arguments."""

    home: str
    work: str
    arguments: dict[str, Any] = {}


class Word(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a job says: a ``message`` on the way; at its end ``done`` with a ``result``, or an ``error`` in parts."""

    message: Any = None
    done: bool = False
    result: Any = None
    error: tuple[str, ...] = ()


# The server's side


class Job:
    """A job at work; used with ``async with``. ``data`` goes to it and comes from it as bytes."""

    def __init__(self, home: Path, work: str, arguments: Mapping[str, Any]) -> None:
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
            await asyncio.to_thread(self._submit, [one.fileno() for one in theirs])
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


# The job's side


class Abandoned(BaseException):
    """Nobody waits for the work any more."""


class Desk:
    """What a work has: words to say, a stream to read and one to write."""

    def __init__(self, control: socket.socket, data: socket.socket) -> None:
        self._control = control
        self._data = data
        self._lock = threading.Lock()
        self.reading = cast("BinaryIO", data.makefile("rb", buffering=_CHUNK))
        self.writing = cast("BinaryIO", data.makefile("wb", buffering=0))

    def say(self, message: object) -> None:
        """A message on the way; may be called from several threads."""
        line = msgspec.json.encode(Word(message)) + b"\n"
        with self._lock:
            self._control.sendall(line)

    def end_data(self) -> None:
        """No more bytes come."""
        self.writing.flush()
        with suppress(OSError):
            self._data.shutdown(socket.SHUT_WR)

    def end(self, word: Word) -> None:
        """The last word."""
        with suppress(OSError):
            self.end_data()
            self._control.sendall(msgspec.json.encode(word) + b"\n")


def main(argv: Sequence[str], descriptors: Sequence[int], leash: Leash | None) -> int:
    """The entry ``job``: an :class:`Order` as JSON; ``descriptors`` are those of its words, its data and its leash."""
    try:
        desk = Desk(socket.socket(fileno=descriptors[0]), socket.socket(fileno=descriptors[1]))
        with suppress(Abandoned):
            word = _work(argv[0], desk, descriptors[2])
            signal.signal(signal.SIGIO, signal.SIG_IGN)  # whoever has the last word lets go
            desk.end(word)
    finally:
        if leash is not None:
            leash.release()
    return 0


def _work(text: str, desk: Desk, leash: int) -> Word:
    from bulle.api.works import WORKS
    from bulle.engine import Engine

    order = msgspec.json.decode(text, type=Order)
    _heed(leash)
    try:
        with Engine(order.home) as engine:
            return Word(done=True, result=WORKS[order.work](engine, desk, **order.arguments))
    except BulleError as error:
        return Word(error=to_parts(error))
    except (BrokenPipeError, ConnectionResetError):
        raise Abandoned from None
    except Exception as error:  # noqa: BLE001 -- told to whoever waits
        return Word(error=to_parts(BulleError(f"{type(error).__name__}: {error}")))


def _heed(leash: int) -> None:
    """Have the work end, in order, once the other end of the leash is closed."""

    def look(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_CLEANING_S)  # what does not end in order ends all the same
        raise Abandoned

    signal.signal(signal.SIGIO, look)
    fcntl.fcntl(leash, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(leash, fcntl.F_SETFL, fcntl.fcntl(leash, fcntl.F_GETFL) | os.O_ASYNC)
    with suppress(BlockingIOError):  # it may have been closed before
        if not socket.socket(fileno=os.dup(leash)).recv(1, socket.MSG_DONTWAIT):
            raise Abandoned
