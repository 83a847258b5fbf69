"""One connection that carries what a machine on its way to another host needs: words, its state, its memory, and the traffic with its disk.

Frames of a channel, a length and so many bytes, each way. Used by both ends of :mod:`bulle.engine.live_moves`.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from typing import Any

import msgspec

from bulle.errors import BulleError, from_parts

WORD, STATE, MEMORY, DISK = range(4)
CHUNK_BYTES = 1 << 18
_HEAD = struct.Struct(">BI")
_MOST_BYTES = 96 << 20


class Lost(BulleError):
    """The connection has ended."""


class Said(msgspec.Struct, frozen=True):
    """A word: ``known``, ``ready``, ``kept``, ``whole``, ``go``, ``running``, ``done`` (``parts`` are notes), ``error`` (``parts`` are its own)."""

    kind: str
    parts: tuple[str, ...] = ()
    content: bytes = b""


_words = msgspec.json.Decoder(Said)


class Line:
    """One end; the descriptors are the caller's. Everything raises :class:`Lost` where the other end is gone."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = reading, writing
        self._incoming = bytearray()

    def fileno(self) -> int:
        """To be watched for reading."""
        return self._reading

    def send(self, channel: int, data: bytes | memoryview = b"") -> None:
        """One frame, as soon as it is taken."""
        view = memoryview(_HEAD.pack(channel, len(data)) + data)
        try:
            while view:
                view = view[os.write(self._writing, view) :]
        except OSError as error:
            raise Lost("the connection to the other machine was lost", error.strerror or "") from error

    def say(self, kind: str, parts: tuple[str, ...] = (), content: bytes = b"") -> None:
        """One word."""
        self.send(WORD, msgspec.json.encode(Said(kind, parts, content)))

    def hear(self) -> Iterator[tuple[int, bytes]]:
        """Read once, and give the frames that are complete."""
        self._read(CHUNK_BYTES)
        yield from self._frames()

    def _read(self, most: int) -> None:
        data = os.read(self._reading, most)
        if not data:
            raise Lost("the connection to the other machine was lost", "it has ended", "see what that says")
        self._incoming += data

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        while len(self._incoming) >= _HEAD.size:
            channel, length = _HEAD.unpack_from(self._incoming)
            if length > _MOST_BYTES:
                raise Lost("the other machine sent nonsense", f"a block of {length} bytes")
            if len(self._incoming) < _HEAD.size + length:
                return
            data = bytes(self._incoming[_HEAD.size : _HEAD.size + length])
            del self._incoming[: _HEAD.size + length]
            yield channel, data

    def next(self) -> tuple[int, bytes]:
        """One frame, waited for, and nothing behind it."""
        while (found := next(self._frames(), None)) is None:
            missing = _HEAD.size
            if len(self._incoming) >= _HEAD.size:
                missing += _HEAD.unpack_from(self._incoming)[1]
            self._read(missing - len(self._incoming))
        return found

    def expect(self, *kinds: str) -> Said:
        """One of these words, waited for. Raises the error that is said instead."""
        channel, data = self.next()
        said = word(data) if channel == WORD else Said("nothing")
        if said.kind not in kinds:
            raise Lost("the other machine sent nonsense", f"{said.kind} instead of {' or '.join(kinds)}")
        return said


def word(data: bytes) -> Said:
    """The word in a frame. Raises the error that it is."""
    try:
        said = _words.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Lost("the other machine sent nonsense", str(error)) from error
    if said.kind == "error":
        raise from_parts(said.parts)
    return said


class StateFile(io.RawIOBase):
    """The channel of the state as a file, whose end is an empty frame; what reads it may leave a rest, which is passed over."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._rest = b""
        self._ended = False

    def readable(self) -> bool:
        """It is."""
        return True

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: Any) -> int:
        """To the other end."""
        view = memoryview(data)
        for at in range(0, len(view), CHUNK_BYTES):
            self._line.send(STATE, view[at : at + CHUNK_BYTES])
        return len(view)

    def read(self, size: int = -1) -> bytes:
        """From the other end, so much unless it ends before."""
        parts, wanted = [], size if size >= 0 else 1 << 62
        while wanted and (self._rest or not self._ended):
            if not self._rest:
                channel, self._rest = self._line.next()
                if channel != STATE:
                    word(self._rest)
                    raise Lost("the other machine sent nonsense", "no state")
                self._ended = not self._rest
            part, self._rest = self._rest[:wanted], self._rest[wanted:]
            parts.append(part)
            wanted -= len(part)
        return b"".join(parts)

    def drain(self) -> None:
        """Pass over the rest."""
        while self.read(CHUNK_BYTES):
            pass

    def end(self) -> None:
        """Nothing more comes."""
        self._line.send(STATE)
