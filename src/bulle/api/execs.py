"""Commands that were prepared in containers, and how they ended: what ``/exec`` speaks of.

Docker's clients make one, start it, and ask for its exit code, in three requests. They live as long as the server; ended ones are forgotten after a
while.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from bulle.api.carrying import Carrier
from bulle.api.failures import ApiError
from bulle.model.container import ExecOptions

_KEPT_S = 300.0
_MOST = 10_000


@dataclass
class Exec:
    """One command. ``carrier`` is there while it runs; ``exit_code`` when it has ended (-1: unknown)."""

    id: str
    container_id: str
    options: ExecOptions
    detach_keys: bytes
    output: tuple[bool, bool] = (True, True)
    carrier: Carrier | None = None
    started: bool = False
    exit_code: int | None = None
    pid: int = 0
    ended_at_s: float = field(default=0.0, compare=False)

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self.started and self.exit_code is None

    def end(self, exit_code: int) -> None:
        """It has ended."""
        self.carrier, self.exit_code, self.ended_at_s = None, exit_code, time.monotonic()


class Execs:
    """All of them, by id."""

    def __init__(self) -> None:
        self._known: dict[str, Exec] = {}

    def add(self, command: Exec) -> None:
        """Know one more."""
        now = time.monotonic()
        for one in [one for one in self._known.values() if one.ended_at_s and now - one.ended_at_s > _KEPT_S]:
            del self._known[one.id]
        while len(self._known) >= _MOST:  # prepared, and never started
            oldest = next((one.id for one in self._known.values() if not one.running), None)
            if oldest is None:
                raise ApiError(503, "too many commands run")
            del self._known[oldest]
        self._known[command.id] = command

    def get(self, identifier: str) -> Exec:
        """By id. Raises ApiError."""
        found = self._known.get(identifier)
        if found is None:
            raise ApiError(404, f"No such exec instance: {identifier}")
        return found

    def of(self, container_id: str) -> list[str]:
        """The ids of those that run in a container."""
        return [one.id for one in self._known.values() if one.container_id == container_id and one.running]
