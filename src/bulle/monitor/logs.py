"""The form of a container's log: Docker's json-file, one JSON object a line, which its monitor writes and anyone reads.

``{"log": "text\\n", "stream": "stdout", "attrs": {…}, "time": "2026-11-20T10:00:00.123456789Z"}``; ``attrs`` only where something was asked to stand
beside each message. A line of over 16 KiB is split as Docker splits it: its parts have no newline. Nothing here reads or writes a file.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache

import msgspec

LOG_FILE = "container.log"
MOST_LINE = 16 * 1024
_BEGIN = b'{"log":"'
_EPOCH = date(1970, 1, 1).toordinal()


@dataclass(frozen=True)
class LogEntry:
    """One line as it was written: ``stream`` is ``stdout`` or ``stderr``, ``data`` has its newline where it had one."""

    stream: str
    time_ns: int
    data: bytes
    attributes: Mapping[str, str] = field(default_factory=dict)


def timestamp(time_ns: int) -> str:
    """RFC 3339 with nanoseconds, UTC; all of them have one length, so that they are in order as text too."""
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nanoseconds:09d}Z"


@lru_cache(maxsize=256)
def parse_timestamp(text: str) -> int:
    """Nanoseconds since the epoch of what :func:`timestamp` wrote (fractions of any length). ValueError for anything else."""
    whole, _, fraction = text.rstrip("Z").partition(".")
    day, _, clock = whole.partition("T")
    year, month, day_of_month = map(int, day.split("-"))
    hours, minutes, seconds = map(int, clock.split(":"))
    days = date(year, month, day_of_month).toordinal() - _EPOCH
    return (days * 86400 + hours * 3600 + minutes * 60 + seconds) * 1_000_000_000 + int((fraction + "0" * 9)[:9])


def encode_lines(lines: bytes, stream: str, time_ns: int, attributes: bytes = b"") -> bytes:
    """Whole lines as they stand in the file; ``attributes`` is a JSON object. A flood of short lines costs a few calls, not some for each."""
    if not lines:
        return b""
    if _has_long_line(lines):
        return encode_parts([part for line in lines[:-1].split(b"\n") for part in cut(line + b"\n")], stream, time_ns, attributes)
    between = b"\\n" + _end(stream, time_ns, attributes) + _BEGIN
    if b"\\" in lines:
        # A quote inside a string is escaped, so this sequence only stands between two strings.
        texts = msgspec.json.encode(lines.decode(errors="replace")[:-1].split("\n"))[2:-2].replace(b'","', between)
        return _BEGIN + texts + between[: -len(_BEGIN)]
    # Where the text has no backslash of its own, one before an n is a newline's.
    return _BEGIN + msgspec.json.encode(lines.decode(errors="replace"))[1:-1].replace(b"\\n", between)[: -len(_BEGIN)]


def encode_parts(parts: list[bytes], stream: str, time_ns: int, attributes: bytes = b"") -> bytes:
    """The same for one message each, with a newline or without."""
    if not parts:
        return b""
    end = _end(stream, time_ns, attributes)
    return _BEGIN + msgspec.json.encode([part.decode(errors="replace") for part in parts])[2:-2].replace(b'","', end + _BEGIN) + end


def cut_unfinished(text: bytes) -> tuple[list[bytes], bytes]:
    """What of a line without an end is long enough to be written, and what may still wait for its end."""
    parts = cut(text)
    return (parts, b"") if parts and len(parts[-1]) >= MOST_LINE - 3 else (parts[:-1], parts[-1] if parts else b"")


def cut(line: bytes) -> list[bytes]:
    """A line in pieces of 16 KiB; a character is not torn, but for what is no UTF-8 at all."""
    parts = []
    start = 0
    while len(line) - start > MOST_LINE + 1:
        end = start + MOST_LINE
        for back in range(4):
            if line[end - back] & 0xC0 != 0x80:
                end -= back
                break
        parts.append(line[start:end])
        start = end
    return [*parts, line[start:]] if start < len(line) else parts


def _has_long_line(lines: bytes) -> bool:
    start = 0
    while len(lines) - start > MOST_LINE + 1:
        start = lines.rfind(b"\n", start, start + MOST_LINE + 1) + 1
        if not start:
            return True
    return False


def _end(stream: str, time_ns: int, attributes: bytes) -> bytes:
    extra = b'","attrs":' + attributes if attributes else b'"'
    return b'","stream":"' + stream.encode() + extra + b',"time":"' + timestamp(time_ns).encode() + b'"}\n'
