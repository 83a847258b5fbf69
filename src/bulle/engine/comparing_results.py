"""What a comparison has found so far of each of those that are compared, and the result that is made of it in the end: arithmetic, no measuring."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bulle.engine import comparing_sharing
from bulle.engine.comparing_subjects import Idle, Subject
from bulle.errors import BulleError
from bulle.isolation.driver import Probe
from bulle.model.comparison import (
    Cost,
    CostName,
    Level,
    Memory,
    Seen,
    Spread,
    Start,
    Storage,
    SystemCalls,
    Work,
)  # fmt: skip

PROCESSOR_MIB, CALLS, DISK_MIB, FILES, SYNCS, NETWORK_MIB, ROUND_TRIPS = 16, 100_000, 32, 200, 20, 16, 200
IDLE_COPIES = 3
_MOST_FAILURES = 3
_AMOUNTS: dict[CostName, str] = {
    "processor": f"SHA-256 of {PROCESSOR_MIB} MiB",
    "system_call": f"{CALLS:,} system calls",
    "disk_write": f"{DISK_MIB} MiB written and brought to the disk",
    "disk_read": f"{DISK_MIB} MiB read again",
    "small_files": f"{FILES} files of 4 KiB made, read, removed",
    "sync": "4 KiB and fsync",
    "network_receive": f"{NETWORK_MIB} MiB received from the host",
    "network_send": f"{NETWORK_MIB} MiB sent to the host",
    "network_round_trip": "a byte to the host and back",
}  # fmt: skip


@dataclass
class Entry:
    """What is known of one subject so far; with a ``failure`` it has no more turns. A turn that fails is no end: three one after another are."""

    subject: Subject
    probe: Probe | None = None
    failure: str = ""
    turns: int = 0
    failed_turns: int = 0
    failed_at_last: int = 0
    last_failure: str = ""
    cold_ms: float = 0.0
    warm_ms: list[float] = field(default_factory=list)
    whole_ms: list[float] = field(default_factory=list)
    work_ms: list[float] = field(default_factory=list)
    work_codes: set[int] = field(default_factory=set)
    work_failure: str = ""
    idle: list[Idle] = field(default_factory=list)
    available_bytes: int = 0
    costs: dict[CostName, list[float]] = field(default_factory=dict)
    cost_failures: dict[CostName, str] = field(default_factory=dict)
    network: str = ""
    facts: list[tuple[str, str]] = field(default_factory=list)
    calls: str = ""
    notes: list[str] = field(default_factory=list)

    def take_turn(self, act: Callable[[], None]) -> bool:
        """One turn, whose failure is this subject's alone; says whether it did not fail."""
        self.turns += 1
        try:
            act()
        except (BulleError, OSError) as error:
            self.failed_turns += 1
            self.failed_at_last += 1
            self.last_failure = str(error)
            if self.failed_at_last == _MOST_FAILURES:
                self.failure = self.last_failure
            return False
        self.failed_at_last = 0
        return True


def spread(samples: Sequence[float]) -> Spread:
    """Samples in short; the 95th part of a hundred by the nearest rank."""
    ordered = sorted(samples)
    p95 = ordered[max(0, math.ceil(0.95 * len(ordered)) - 1)]
    return Spread(statistics.median(ordered), p95, ordered[0], ordered[-1], len(ordered))


def levels_of(entries: Sequence[Entry], worked: bool) -> tuple[Level, ...]:
    """What was found of each; the bare host is the first."""
    host = entries[0]
    host_seen = comparing_sharing.seen(host.facts) if host.facts else None
    return tuple(_level(entry, host, host_seen, worked) for entry in entries)


def _level(entry: Entry, host: Entry, host_seen: Seen | None, worked: bool) -> Level:
    probe, subject = entry.probe, entry.subject
    seen = comparing_sharing.seen(entry.facts, host_seen, dict(host.facts).get("devices", "")) if entry.facts and host_seen else None
    calls: SystemCalls | None = None
    if entry.calls and seen is not None and host_seen is not None:
        calls = comparing_sharing.system_calls(entry.calls, seen.machine, host.calls, host_seen.machine)
    return Level(
        name=subject.name,
        usable=not entry.failure,
        bare=subject.bare,
        reason=entry.failure,
        mend=probe.mend if probe is not None and not probe.usable else "",
        hypervisor=probe.hypervisor if probe is not None else "",
        notes=(*(probe.notes if probe is not None else ()), *entry.notes, *_failures(entry)),
        start=Start(entry.cold_ms, spread(entry.warm_ms), spread(entry.whole_ms)) if entry.warm_ms else None,
        work=Work(spread(entry.work_ms), tuple(sorted(entry.work_codes))) if entry.work_ms else None,
        work_reason=entry.work_failure or (entry.failure if worked and not entry.work_ms else ""),
        memory=_memory(entry, host),
        storage=Storage(round(statistics.median(one.disk_bytes for one in entry.idle)), subject.kept_bytes()) if entry.idle else None,
        costs=_costs(entry, host),
        cost_reasons=entry.cost_failures,
        network=entry.network,
        system_calls=calls,
        seen=seen,
        shared=comparing_sharing.shared(seen, host_seen) if seen is not None and host_seen is not None and not subject.bare else {},
    )


def _failures(entry: Entry) -> list[str]:
    if not entry.failed_turns:
        return []
    return [f"{entry.failed_turns} of {entry.turns} turns failed, the last one with: {entry.last_failure}"]


def _memory(entry: Entry, host: Entry) -> Memory | None:
    if not entry.idle or not host.idle:
        return None
    workload, monitor, kernel = _parts(entry.idle)
    copy, work = workload + monitor + kernel, sum(_parts(host.idle))
    return Memory(
        copy_bytes=copy,
        workload_bytes=workload,
        monitor_bytes=monitor,
        kernel_bytes=kernel,
        isolation_bytes=copy - work,
        available_bytes=entry.available_bytes,
        fitting_copies=entry.available_bytes // max(copy, 1),
        copies=IDLE_COPIES,
        rounds=len(entry.idle),
    )


def _parts(idle: Sequence[Idle]) -> tuple[int, int, int]:
    """Workload, monitor, kernel: the median of each over the rounds. What the machine did meanwhile can make the kernel's less than nothing."""
    workload, monitor, kernel, _disk = (max(round(statistics.median(values)), 0) for values in zip(*idle, strict=True))
    return workload, monitor, kernel


def _costs(entry: Entry, host: Entry) -> dict[CostName, Cost]:
    found: dict[CostName, Cost] = {}
    for name, samples in entry.costs.items():
        bare = statistics.median(host.costs[name]) if host.costs.get(name) else 0.0
        found[name] = Cost(_AMOUNTS[name], spread(samples), statistics.median(samples) / bare if bare else None)
    return found
