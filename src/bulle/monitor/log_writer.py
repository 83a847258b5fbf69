"""What writes a container's log as files of json-file: completes lines, and says where something is missing.

Used by the supervisor of a container, through :mod:`bulle.monitor.log_drivers`.
"""

from __future__ import annotations

import time

import msgspec

from bulle.model.run_plan import LogSettings
from bulle.monitor.log_file import LogFile
from bulle.monitor.logs import cut_unfinished, encode_lines, encode_parts

DEFAULT = LogSettings()
_AT_ONCE = 32 * 1024  # what is encoded in one piece: short lines become forty times as long


class LogWriter:
    """Appends to a log; lines are completed per stream before they are written."""

    def __init__(self, descriptor: int, settings: LogSettings = DEFAULT) -> None:
        """Of a file opened for appending, which it closes at the end."""
        self._file = LogFile(descriptor, settings.file_bytes, settings.files, compress=settings.compress)
        self._attributes = msgspec.json.encode(settings.attributes) if settings.attributes else b""
        self._pending = {"stdout": b"", "stderr": b""}
        self._lost = 0

    @property
    def helper(self) -> int:
        """A descriptor that is readable when :meth:`reap` has something to do, or -1."""
        return self._file.helper

    def reap(self) -> None:
        """Look after a child that has ended."""
        self._file.reap()

    @property
    def failed(self) -> str:
        """Why the last messages could not be written; empty where they could."""
        return self._file.failed

    def write(self, stream: str, data: bytes, time_ns: int = 0) -> None:
        """Add what the container wrote. A full disk must not end the container: what is lost is counted, and said once there is space again."""
        now = time_ns or time.time_ns()
        if pending := self._pending[stream]:
            data = pending + data
        start, last = 0, data.rfind(b"\n") + 1
        while start < last:
            end = last
            if end - start > _AT_ONCE:
                end = data.rfind(b"\n", start, start + _AT_ONCE) + 1 or data.find(b"\n", start + _AT_ONCE) + 1
            self._append(encode_lines(data[start:end], stream, now, self._attributes), now)
            start = end
        parts, self._pending[stream] = cut_unfinished(data[last:])
        self._append(encode_parts(parts, stream, now, self._attributes), now)

    def note(self, text: str, time_ns: int = 0) -> None:
        """Add a sentence of our own, among what the container wrote to its standard error."""
        now = time_ns or time.time_ns()
        self._append(encode_parts([f"bulle: {text}\n".encode()], "stderr", now, self._attributes), now)

    def close(self) -> None:
        """Write what has no newline yet, and close."""
        now = time.time_ns()
        for stream, rest in self._pending.items():
            self._append(encode_parts([rest] if rest else [], stream, now, self._attributes), now)
        self._say_what_was_lost(now)
        self._file.close()

    def _append(self, text: bytes, now: int) -> None:
        if text and (not self._lost or self._say_what_was_lost(now)):
            self._lost += self._file.append(text)
        elif text:
            self._lost += text.count(b"\n")

    def _say_what_was_lost(self, now: int) -> bool:
        if self._lost:
            said = f"bulle: {self._lost} messages are missing here: {self._file.failed}\n".encode()
            if self._file.append(encode_parts([said], "stderr", now, self._attributes)):
                return False
            self._lost = 0
        return True
