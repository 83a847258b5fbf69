"""A container's log: Docker's json-file format, one JSON object a line, written by its monitor, read by anyone.

``{"log": "text\\n", "stream": "stdout", "time": "2026-11-20T10:00:00.123456789Z"}``. A line of over 16 KiB is split as Docker splits it: its parts
have no newline.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import lru_cache

import msgspec

LOG_FILE = "container.log"
_MOST_LINE = 16 * 1024
_BLOCK = 64 * 1024
_EPOCH = date(1970, 1, 1).toordinal()


class _Line(msgspec.Struct):
    log: str
    stream: str
    time: str


@dataclass(frozen=True)
class LogEntry:
    """One line as it was written: ``stream`` is ``stdout`` or ``stderr``, ``data`` has its newline where it had one."""

    stream: str
    time_ns: int
    data: bytes


def timestamp(time_ns: int) -> str:
    """RFC 3339 with nanoseconds, UTC."""
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


def open_log(directory: str) -> int:
    """A descriptor for appending to the log of the container with this host directory."""
    return os.open(f"{directory}/{LOG_FILE}", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


class LogWriter:
    """Appends to a log; lines are completed per stream before they are written."""

    def __init__(self, descriptor: int) -> None:
        """Of a file opened by :func:`open_log`, which it closes at the end."""
        self._fd = descriptor
        self._pending = {"stdout": b"", "stderr": b""}
        self.failed = ""

    def write(self, stream: str, data: bytes) -> None:
        """Add what the container wrote. A full disk must not end the container: the error is kept in ``failed`` and output goes on."""
        whole, newline, rest = (self._pending[stream] + data).rpartition(b"\n")
        lines = whole.split(b"\n") if newline else []
        now = timestamp(time.time_ns())
        encoded = _encode(stream, [line + b"\n" for line in lines], now)
        parts = []
        while len(rest) >= _MOST_LINE:
            parts.append(rest[:_MOST_LINE])
            rest = rest[_MOST_LINE:]
        self._pending[stream] = rest
        self._append(encoded + _encode(stream, parts, now))

    def fileno(self) -> int:
        """The descriptor of the file."""
        return self._fd

    def close(self) -> None:
        """Write what has no newline yet, and close."""
        for stream, rest in self._pending.items():
            if rest:
                self._append(_encode(stream, [rest], timestamp(time.time_ns())))
        os.close(self._fd)

    def _append(self, text: bytes) -> None:
        try:
            while text:
                text = text[os.write(self._fd, text) :]
            self.failed = ""
        except OSError as error:
            self.failed = os.strerror(error.errno or 0)


def _encode(stream: str, lines: list[bytes], now: str) -> bytes:
    """Lines as they stand in the file. All are encoded in one call: a flood of short lines must not cost a call each."""
    if not lines:
        return b""
    if max(map(len, lines)) > _MOST_LINE + 1:
        lines = [line[start : start + _MOST_LINE] for line in lines for start in range(0, len(line), _MOST_LINE)]
    texts = msgspec.json.encode([line.decode(errors="replace") for line in lines])[2:-2]
    end = f'","stream":"{stream}","time":"{now}"}}\n'.encode()
    # A quote inside a string is escaped, so this sequence only stands between two strings.
    return b'{"log":"' + texts.replace(b'","', end + b'{"log":"') + end


def read_log(
    directory: str,
    *,
    tail: int | None = None,
    since_ns: int = 0,
    until_ns: int = 0,
    more: Callable[[], bool] | None = None,
) -> Iterator[LogEntry]:
    """Entries of a container's log, oldest first.

    ``tail`` gives the last so many only; ``more`` is asked at the end of the file: it waits for new output and returns False when there will be none
    (this is ``--follow``). Host directory of the container.
    """
    try:
        file = open(f"{directory}/{LOG_FILE}", "rb")  # noqa: SIM115 -- closed below
    except FileNotFoundError:
        return
    decoder = msgspec.json.Decoder(_Line)
    with file:
        if tail is not None:
            _seek_tail(file.fileno(), tail)
        pending = b""
        last_look = more is None
        while True:
            block = os.read(file.fileno(), _BLOCK)
            if not block:
                if last_look or more is None:
                    return
                last_look = not more()
                continue
            lines = (pending + block).split(b"\n")
            pending = lines.pop()
            for line in lines:
                try:
                    entry = decoder.decode(line)
                    time_ns = parse_timestamp(entry.time)
                except (msgspec.DecodeError, ValueError):
                    continue  # cut by a full disk
                if until_ns and time_ns > until_ns:
                    return
                if time_ns >= since_ns:
                    yield LogEntry(entry.stream, time_ns, entry.log.encode())


def _seek_tail(fd: int, lines: int) -> None:
    """Move to where the last ``lines`` lines begin, reading backwards."""
    position = os.lseek(fd, 0, os.SEEK_END)
    remaining = lines + 1
    while position and remaining:
        start = max(0, position - _BLOCK)
        block = os.pread(fd, position - start, start)
        for index in range(len(block) - 1, -1, -1):
            if block[index] == 0x0A:
                remaining -= 1
                if not remaining:
                    os.lseek(fd, start + index + 1, os.SEEK_SET)
                    return
        position = start
    os.lseek(fd, 0, os.SEEK_SET)
