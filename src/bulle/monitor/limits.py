"""What a monitor does about a container by itself: end it at a limit of time. Watchdogs of the monitor's loop (:mod:`bulle.monitor.supervisor`)."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Literal

from bulle.errors import BulleError

_LOOKS = 10  # at an idle container, within its limit
_IDLE_SHARE = 0.01  # of one processor: what a process that only waits may use

Reason = Literal["timeout", "idle-timeout", "unhealthy"]


class _Clock:
    """A watchdog that waits for nothing but time."""

    def descriptors(self) -> Collection[int]:
        """None."""
        return ()

    def close(self) -> None:
        """Nothing is held."""


class Ender(_Clock):
    """Ends the workload as ``stop`` does: its stop signal, and SIGKILL after its patience. ``reason`` says why, "" where nobody asked it to."""

    def __init__(self, send: Callable[[int], object], stop_signal: int, patience_s: float, resume: Callable[[], object]) -> None:
        """``send`` sends a signal; a negative patience is for ever; ``resume`` lets a paused workload go on, which could not end."""
        self._send_signal = send
        self._signal = stop_signal
        self._resume = resume
        self._patience_s = patience_s if patience_s >= 0 else math.inf
        self._kill_at = math.inf
        self.reason: Reason | Literal[""] = ""
        self.again = False
        """Whether it is to be started again, whatever its restart policy."""
        self.final = False
        """Whether it is to stay ended, whatever its restart policy."""

    def end(self, reason: Reason, *, kill: bool = False, again: bool = False, final: bool = False) -> None:
        """Begin to end it; once."""
        if self.reason:
            return
        self.reason, self.again, self.final = reason, again, final
        at_once = kill or not self._patience_s
        self._send(signal.SIGKILL if at_once else self._signal)
        self._kill_at = math.inf if at_once else time.monotonic() + self._patience_s

    def deadline(self) -> float:
        """When it has had enough time."""
        return self._kill_at

    def act(self, _ready: Collection[int]) -> None:
        """Kill it."""
        if time.monotonic() >= self._kill_at:
            self._kill_at = math.inf
            self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        with suppress(OSError):  # it has ended
            self._send_signal(number)
        with suppress(OSError, BulleError):
            self._resume()


class TimeLimit(_Clock):
    """``--timeout``: so long from its start, and no longer."""

    def __init__(self, ender: Ender, started_at_ns: int, limit_s: float) -> None:
        self._ender = ender
        self._end_at = time.monotonic() + limit_s - (time.time_ns() - started_at_ns) / 1e9

    def deadline(self) -> float:
        """The end of its time."""
        return self._end_at

    def act(self, _ready: Collection[int]) -> None:
        """End it."""
        if time.monotonic() >= self._end_at:
            self._end_at = math.inf
            self._ender.end("timeout", final=True)


class IdleLimit(_Clock):
    """``--idle-timeout``: nothing is said or typed, and next to no processor time used, for so long."""

    def __init__(self, ender: Ender, limit_s: float, is_busy: Callable[[], bool], processor_ns: Callable[[], int | None]) -> None:
        """``is_busy`` tells of what the monitor itself saw since it was asked last; ``processor_ns`` what the workload has used until now."""
        self._ender = ender
        self._limit_s = limit_s
        self._is_busy = is_busy
        self._processor_ns = processor_ns
        self._used_ns = processor_ns()
        self._idle_since = self._looked_at = time.monotonic()

    def deadline(self) -> float:
        """The next look."""
        return self._looked_at + self._limit_s / _LOOKS

    def act(self, _ready: Collection[int]) -> None:
        """Look, and end it where it was idle for long enough."""
        now = time.monotonic()
        if now < self.deadline():
            return
        used_ns = self._processor_ns()
        works = used_ns is not None and self._used_ns is not None and used_ns - self._used_ns > (now - self._looked_at) * 1e9 * _IDLE_SHARE
        if self._is_busy() or works:
            self._idle_since = now
        self._used_ns, self._looked_at = used_ns, now
        if now - self._idle_since >= self._limit_s:
            self._ender.end("idle-timeout", final=True)
