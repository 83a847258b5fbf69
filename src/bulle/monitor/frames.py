"""The line between a monitor and those who attach: frames on a stream socket.

A frame is one byte of kind, three of padding, a big-endian length of four bytes, then that many bytes: the form of Docker's multiplexed streams,
whose kinds 0 to 2 are kept. :class:`FrameReader` takes bytes as they come and gives whole frames back.
"""

from __future__ import annotations

import enum
import struct

import msgspec

from bulle.errors import BulleError, to_parts

HEADER = struct.Struct(">B3xI")
MOST_PAYLOAD = 1 << 20


class Kind(enum.IntEnum):
    """What a frame carries; STDIN, RESIZE, HELLO and RELEASED go to the monitor, the others come from it."""

    STDIN = 0  # empty: end of input
    STDOUT = 1
    STDERR = 2
    EVENT = 3
    RESIZE = 5  # two big-endian shorts: rows, columns
    HELLO = 6  # Hello as JSON
    RELEASED = 7  # after the end: this client has deleted the container's row, nobody else need


class Hello(msgspec.Struct):
    """What a client wants: the output, to send input."""

    output: bool = True
    stdin: bool = False


class Event(msgspec.Struct):
    """What happened: ``started``, ``error`` (class name and three parts of an error) or ``exited``; ``kept`` of a container that stays then."""

    event: str
    pid: int = 0
    exit_code: int = 0
    error: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    kept: bool = False


def frame(kind: Kind, payload: bytes = b"") -> bytes:
    """One frame as bytes."""
    return HEADER.pack(kind, len(payload)) + payload


def event(name: str, *, pid: int = 0, exit_code: int = 0, error: BulleError | None = None, notes: tuple[str, ...] = (), kept: bool = False) -> bytes:
    """An event as a frame."""
    parts = to_parts(error) if error else ()
    return frame(Kind.EVENT, msgspec.json.encode(Event(name, pid, exit_code, parts, notes, kept)))


class FrameReader:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Add bytes; returns the frames that are now whole. ValueError for one that is larger than any peer may send."""
        self._pending += data
        frames = []
        start = 0
        while len(self._pending) - start >= HEADER.size:
            kind, length = HEADER.unpack_from(self._pending, start)
            if length > MOST_PAYLOAD:
                raise ValueError("a frame is too large")
            end = start + HEADER.size + length
            if len(self._pending) < end:
                break
            frames.append((kind, bytes(self._pending[start + HEADER.size : end])))
            start = end
        del self._pending[:start]
        return frames
