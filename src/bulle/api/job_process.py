"""The job's side of a job (:mod:`bulle.api.jobs`): what it is told, what it says, and that it ends with whoever waits for it.

The spawner imports this ahead of time, so it needs little: above all no event loop.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import msgspec

from bulle.errors import BulleError, to_parts

if TYPE_CHECKING:
    from bulle.spawner.leash import Leash

ENTRY = "job"
_CHUNK = 256 * 1024
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
