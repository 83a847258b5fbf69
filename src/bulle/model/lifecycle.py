"""What happens to a container while nobody looks: when it is started again, how its health is asked for, how long it may run, and how it ended.

Pure data. :class:`Lifecycle` is part of the plan, :class:`Health` and :class:`End` of the state that its monitor writes.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class RestartPolicy(msgspec.Struct, frozen=True):
    """``--restart``: when it is started again after its end; ``retries`` bounds ``on-failure`` (0: for ever)."""

    name: Literal["no", "on-failure", "always", "unless-stopped"] = "no"
    retries: int = 0


class HealthCheck(msgspec.Struct, frozen=True):
    """A command that finds out whether the workload is well: exit code 0. Durations in seconds.

    During ``start_period_s`` it is asked every ``start_interval_s`` and failures do not count.
    """

    command: tuple[str, ...]
    interval_s: float = 30
    timeout_s: float = 30
    retries: int = 3
    start_period_s: float = 0
    start_interval_s: float = 5
    on_failure: Literal["none", "restart", "stop", "kill"] = "none"


class Lifecycle(msgspec.Struct, frozen=True):
    """How a container lives; limits in seconds, 0 for none. ``timeout_s`` counts from each start."""

    restart: RestartPolicy = RestartPolicy()
    health: HealthCheck | None = None
    timeout_s: float = 0
    idle_timeout_s: float = 0

    @property
    def watched(self) -> bool:
        """Whether its monitor has something to do while it runs."""
        return bool(self.health or self.timeout_s or self.idle_timeout_s)


class Probe(msgspec.Struct, frozen=True):
    """One answer of a health check: times in nanoseconds since the epoch, the exit code (-1: it took too long), the beginning of what it wrote."""

    started_at_ns: int
    finished_at_ns: int
    exit_code: int
    output: str = ""


class Health(msgspec.Struct, frozen=True):
    """What is known of a workload's health; ``log`` has the last five answers, oldest first."""

    status: Literal["starting", "healthy", "unhealthy"] = "starting"
    failing_streak: int = 0
    log: tuple[Probe, ...] = ()


class Intent(msgspec.Struct, frozen=True):
    """A command's word that a container's end is wanted, written before it sends ``signal``: which verb, and who gave it (user id on the host)."""

    verb: str
    signal: str
    uid: int
    at_ns: int


class End(msgspec.Struct, frozen=True):
    """How one run of a container ended: what ``bulle why`` explains.

    ``status`` is a wait status (wait(2)), -1 for unknown. ``reason`` says what the monitor did about it: it reached the limit ``timeout`` or
    ``idle-timeout``, or was ``unhealthy``; or that the ``start`` failed with ``error``. ``intent`` is there where a command wanted the end.
    ``out_of_memory``: the kernel killed one of its processes, not always the first. ``denied`` names system calls that the filter refused.
    ``last_words`` is the end of its output. ``again_in_s``: after so long it was started again, None for not.
    ``machine``: why the machine that it ran in ended before it.
    """

    status: int
    started_at_ns: int
    finished_at_ns: int
    reason: Literal["", "timeout", "idle-timeout", "unhealthy", "start"] = ""
    intent: Intent | None = None
    out_of_memory: bool = False
    denied: tuple[str, ...] = ()
    health: Probe | None = None
    error: str = ""
    last_words: str = ""
    again_in_s: float | None = None
    machine: str = ""
