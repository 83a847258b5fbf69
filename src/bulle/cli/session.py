"""What every verb of one command line shares: the engine (opened when first needed), where state lives, and the way to print.

``main`` makes one per command and gives it to click as the context's object. It decides nothing: it only opens, writes and closes.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bulle.errors import BulleError
from bulle.spawner import child

if TYPE_CHECKING:
    from bulle.engine import Container, Engine

Item = TypeVar("Item")


class Reported(Exception):
    """What failed was said already, once for each of several items; ``error`` is the first of them, for the exit code."""

    def __init__(self, error: BulleError) -> None:
        super().__init__(error)
        self.error = error


def open_default_engine(home: Path | None) -> Engine:
    """The real engine on ``home`` (a host path; None means the caller's default)."""
    from bulle.engine import Engine

    return Engine(home)


@dataclass
class Session:
    """One command line at work."""

    open_engine: Callable[[Path | None], Engine] = open_default_engine
    home: Path | None = None
    debug: bool = False
    meta: Mapping[str, Any] = field(default_factory=dict)
    """What click found on the command line so far; see :data:`bulle.cli.verb.INVOKED`."""
    _engine: Engine | None = field(default=None, repr=False)

    @property
    def engine(self) -> Engine:
        """The engine, opened at the first use."""
        if self._engine is None:
            self._engine = self.open_engine(self.home)
        return self._engine

    def close(self) -> None:
        """Close the engine if it was opened; in a child of the spawner once its caller knows the end, since closing a database may tidy it."""
        engine, self._engine = self._engine, None
        if engine is None:
            return
        if child.own_leash is not None:
            child.afterwards.append(engine.close)
        else:
            engine.close()

    def for_each(self, items: Iterable[Item], act: Callable[[Item], str | None]) -> int:
        """Do ``act`` to every item as Docker does: print what it returns, say what failed, go on. Returns 0; raises Reported if one failed."""
        first: BulleError | None = None
        for item in items:
            try:
                text = act(item)
            except BulleError as error:
                complain(str(error))
                first = first or error
                continue
            if text is not None:
                write(text + "\n")
        if first is not None:
            raise Reported(first)
        return 0

    def for_containers(self, names: Iterable[str], act: Callable[[Container], object]) -> int:
        """Do ``act`` to every container of these names as :meth:`for_each` does, and print each name; what was done more weakly is said."""

        def named(name: str) -> str:
            container = self.engine.containers.get(name)
            act(container)
            warn_of(container.notes)
            return name

        return self.for_each(names, named)


def write(text: str) -> None:
    """Text to standard output, bytes that are not UTF-8 (names of files, arguments) as they came."""
    write_bytes(1, text.encode("utf-8", "surrogateescape"))


def write_bytes(descriptor: int, data: bytes) -> None:
    """All of the bytes to a descriptor. Not through ``sys.stdout``: with PYTHONUNBUFFERED it writes a part and says so to nobody."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:  # the caller's pipe was made non-blocking by somebody else
            select.select((), (descriptor,), ())


def printable(text: str) -> str:
    """The text on one line and without control characters: an image or a registry chose some of it, and it must not drive a terminal."""
    return "".join(c if c.isprintable() else " " if c in "\r\n\t" else f"\\x{ord(c):02x}" for c in text)


def complain(text: str) -> None:
    """One sentence on standard error, in the form of every message of Bulle."""
    note(f"bulle: {printable(text)}")


def warn_of(notes: Iterable[str]) -> None:
    """Say what was done more weakly than asked, one line each, as Docker says it."""
    for text in notes:
        note(f"WARNING: {printable(text)}")


def note(text: str) -> None:
    """A line on standard error; a closed standard error is no reason to fail."""
    with suppress(OSError):
        write_bytes(2, (text + "\n").encode("utf-8", "backslashreplace"))
