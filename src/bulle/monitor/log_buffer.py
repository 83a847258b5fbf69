"""A log that the container never waits for (``mode=non-blocking``): what it writes goes into a buffer, and a thread writes it on.

When the buffer is full what comes next is dropped, counted, and said in the log at that place. Without this mode a container waits while its log is
written, as it would for a slow pipe; its neighbours never do, since each has a monitor of its own.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Protocol

from bulle.monitor.logs import MOST_LINE

_PATIENCE_S = 5.0


class Writer(Protocol):
    """What the messages are handed on to."""

    @property
    def failed(self) -> str: ...
    def write(self, stream: str, data: bytes, time_ns: int = 0) -> None: ...
    def note(self, text: str, time_ns: int = 0) -> None: ...
    def close(self) -> None: ...


class BufferedLog:
    """A log with a buffer of some bytes before it."""

    helper = -1

    def __init__(self, writer: Writer, buffer_bytes: int) -> None:
        """Before ``writer``, which only the thread uses from now on."""
        self._writer = writer
        self._most = buffer_bytes
        self._queue: deque[tuple[str, bytes, int]] = deque()
        self._pending = {"stdout": b"", "stderr": b""}
        self._waiting = 0
        self._dropped = 0
        self._closing = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @property
    def failed(self) -> str:
        """Why the last messages could not be written; empty where they could."""
        return self._writer.failed

    def reap(self) -> None:
        """Nothing: the thread looks after its children itself."""

    def write(self, stream: str, data: bytes, time_ns: int = 0) -> None:
        """Take what the container wrote, or drop it where the buffer is full; never waits."""
        now = time_ns or time.time_ns()
        data = self._pending[stream] + data
        end = data.rfind(b"\n") + 1
        if not end and len(data) >= MOST_LINE:
            end = len(data)
        self._pending[stream] = data[end:]  # whole lines are dropped, so that what is left of two does not become one
        if end:
            self._put(stream, data[:end], now)

    def _put(self, stream: str, data: bytes, now: int) -> None:
        if self._thread is None:  # not before there is something to do: an idle monitor has one thread
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
        with self._changed:
            if self._waiting and self._waiting + len(data) > self._most:
                self._dropped += data.count(b"\n") or 1
                return
            if self._dropped:
                self._queue.append(("", self._note(), now))
            self._queue.append((stream, data, now))
            self._waiting += len(data)
            self._changed.notify()

    def close(self) -> None:
        """Write what waits, if that does not take long, and close."""
        for stream, rest in self._pending.items():
            if rest:
                self._put(stream, rest, time.time_ns())
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is None:
            self._writer.close()
        else:
            self._thread.join(_PATIENCE_S)

    def _note(self) -> bytes:
        dropped, self._dropped = self._dropped, 0
        return f"{dropped} messages were dropped here: the log's buffer of {self._most} bytes was full".encode()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._queue or self._dropped or self._closing):
                    self._changed.wait()
                if self._queue:
                    stream, data, time_ns = self._queue.popleft()
                elif self._dropped:
                    stream, data, time_ns = "", self._note(), time.time_ns()
                else:
                    break
            if stream:
                self._writer.write(stream, data, time_ns)
            else:
                self._writer.note(data.decode(), time_ns)
            with self._changed:
                self._waiting -= len(data) if stream else 0
        self._writer.close()
