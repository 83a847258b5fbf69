"""The health of one container: its check is run again and again, and what it answers becomes a state. A watchdog of the monitor's loop.

How a check is run is a callable that the engine gives; it returns a connection that carries output and exit code as an attached ``exec``'s does, and
that ends the check when it is closed. Docker's rules for HEALTHCHECK.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from contextlib import suppress

import msgspec

from bulle.errors import BulleError
from bulle.model.lifecycle import Health, HealthCheck, Probe
from bulle.monitor.attachment import Attachment
from bulle.monitor.frames import Event, Kind

_MOST_OUTPUT = 4096
_KEPT = 5
_SECOND_NS = 1_000_000_000


class HealthMonitor:
    """Runs the check; ``changed`` is called with what is known after each answer, and whether the container has just become unhealthy."""

    def __init__(
        self,
        check: HealthCheck,
        started_at_ns: int,
        known: Health | None,
        begin: Callable[[], Attachment],
        changed: Callable[[Health, bool], None],
        is_paused: Callable[[], bool],
    ) -> None:
        """``known`` is what an earlier monitor found. ``begin`` raises BulleError or OSError where a check cannot be run at all.

        While the container ``is_paused`` there are no checks.
        """
        self._check = check
        self._begin = begin
        self._changed = changed
        self._is_paused = is_paused
        self.health = known or Health()
        self._grace_until = time.monotonic() + check.start_period_s - (time.time_ns() - started_at_ns) / _SECOND_NS
        self._running: Attachment | None = None
        self._output = bytearray()
        self._began_at_ns = 0
        self._due = time.monotonic() + self._interval_s

    @property
    def _interval_s(self) -> float:
        starting = self.health.status == "starting" and time.monotonic() < self._grace_until
        return min(self._check.start_interval_s, self._check.interval_s) if starting else self._check.interval_s

    def descriptors(self) -> Collection[int]:
        """The connection of a check that runs."""
        return (self._running.fileno(),) if self._running is not None else ()

    def deadline(self) -> float:
        """When the next check is due, or the running one has taken too long."""
        return self._due

    def act(self, ready: Collection[int]) -> None:
        """Begin a check, read from it, or give it up."""
        if self._running is not None and self._running.fileno() in ready:
            self._read(self._running)
            while self._running is not None and self._running.has_more:
                self._read(self._running)
        if time.monotonic() < self._due:
            return
        if self._is_paused():
            self.close()
            self._due = time.monotonic() + self._interval_s
            return
        if self._running is not None:
            self._answered(-1, f"Health check exceeded timeout ({self._check.timeout_s:g}s)")
            return
        self._began_at_ns = time.time_ns()
        self._output.clear()
        try:
            self._running = self._begin()
            self._due = time.monotonic() + self._check.timeout_s
        except (BulleError, OSError) as error:
            self._answered(-1, str(error))

    def close(self) -> None:
        """Give a running check up: the workload has ended, or another monitor goes on."""
        if self._running is not None:
            self._running.close()
            self._running = None

    def _read(self, running: Attachment) -> None:
        received = running.receive()
        if received is None:
            self._answered(-1, "the check was lost")
            return
        kind, payload = received
        if kind in (Kind.STDOUT, Kind.STDERR):
            self._output += payload[: _MOST_OUTPUT - len(self._output)]
        elif kind == Kind.EVENT:
            with suppress(msgspec.MsgspecError):
                happened = msgspec.json.decode(payload, type=Event)
                if happened.event == "exited":
                    self._answered(happened.exit_code, "")
                elif happened.event == "error":
                    self._answered(-1, ": ".join(part for part in happened.error[1:] if part))

    def _answered(self, exit_code: int, error: str) -> None:
        self.close()
        answer = Probe(self._began_at_ns, time.time_ns(), exit_code, error or self._output.decode(errors="replace"))
        was = self.health
        status, streak = was.status, was.failing_streak
        if exit_code == 0:
            status, streak = "healthy", 0
        elif status != "starting" or time.monotonic() >= self._grace_until:
            streak += 1
            status = "unhealthy" if streak >= self._check.retries else status
        self.health = Health(status, streak, (*was.log, answer)[-_KEPT:])
        self._due = time.monotonic() + self._interval_s
        self._changed(self.health, status == "unhealthy" and was.status != "unhealthy")
