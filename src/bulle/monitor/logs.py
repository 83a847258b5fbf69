"""A container's log: Docker's json-file format, one JSON object a line, written by its monitor, read by anyone.

``{"log": "text\\n", "stream": "stdout", "time": "2026-11-20T10:00:00.123456789Z"}``. A line of over 16 KiB is split as Docker splits it: its parts
have no newline.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

LOG_FILE = "container.log"
_MOST_LINE = 16 * 1024
_BLOCK = 64 * 1024


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


def parse_timestamp(text: str) -> int:
    """Nanoseconds since the epoch of what :func:`timestamp` wrote (fractions of any length)."""
    import calendar

    whole, _, fraction = text.rstrip("Z").partition(".")
    return calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")) * 1_000_000_000 + int((fraction + "0" * 9)[:9])


class LogWriter:
    """Appends to a log; lines are completed per stream before they are written."""

    def __init__(self, directory: str) -> None:
        self._fd = os.open(f"{directory}/{LOG_FILE}", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._pending = {"stdout": b"", "stderr": b""}
        self.failed = ""

    def write(self, stream: str, data: bytes) -> None:
        """Add what the container wrote. A full disk must not end the container: the error is kept in ``failed`` and output goes on."""
        lines = (self._pending[stream] + data).split(b"\n")
        rest = lines.pop()
        now = timestamp(time.time_ns())
        encoded = [self._encode(stream, line + b"\n", now) for line in lines]
        while len(rest) >= _MOST_LINE:
            encoded.append(self._encode(stream, rest[:_MOST_LINE], now))
            rest = rest[_MOST_LINE:]
        self._pending[stream] = rest
        self._append(b"".join(encoded))

    def close(self) -> None:
        """Write what has no newline yet, and close."""
        for stream, rest in self._pending.items():
            if rest:
                self._append(self._encode(stream, rest, timestamp(time.time_ns())))
        os.close(self._fd)

    def _append(self, text: bytes) -> None:
        try:
            while text:
                text = text[os.write(self._fd, text) :]
            self.failed = ""
        except OSError as error:
            self.failed = os.strerror(error.errno or 0)

    @staticmethod
    def _encode(stream: str, line: bytes, now: str) -> bytes:
        parts = [line[start : start + _MOST_LINE] for start in range(0, len(line), _MOST_LINE)] if len(line) > _MOST_LINE + 1 else [line]
        return b"".join(msgspec.json.encode(_Line(part.decode(errors="replace"), stream, now)) + b"\n" for part in parts)


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
