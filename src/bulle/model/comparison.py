"""What a comparison of isolation levels found: pure data, and the form of ``bulle compare --json``.

Units stand in the names of fields. A value that could not be measured is None (or the reason why stands beside it); nothing is estimated.
docs/compare.md says how each is measured.
"""

from __future__ import annotations

from typing import Literal

import msgspec

SCHEMA_VERSION = 1

Sharing = Literal["shared", "own", "unknown"]
CostName = Literal[
    "processor", "system_call", "disk_write", "disk_read", "small_files", "sync", "network_receive", "network_send", "network_round_trip"
]


class Spread(msgspec.Struct, frozen=True):
    """Samples of one measure, in the unit that the field's name says: ``p50`` is the median, ``p95`` by the nearest rank."""

    p50: float
    p95: float
    least: float
    most: float
    samples: int


class Start(msgspec.Struct, frozen=True):
    """From asking for a start to the first byte that the work wrote, and to the end with everything removed; ``cold_ms`` is the first start."""

    cold_ms: float
    warm_ms: Spread
    whole_ms: Spread


class Work(msgspec.Struct, frozen=True):
    """The command that was given: from asking for it to its end with everything removed. ``exit_codes`` are those that it ended with."""

    whole_ms: Spread
    exit_codes: tuple[int, ...]


class Memory(msgspec.Struct, frozen=True):
    """One idle copy: ``copy_bytes`` are those of its processes (a hypervisor's too), of its monitor, and of the kernel for it.

    ``isolation_bytes`` is what is left of them without what the same work takes on the bare host. ``fitting_copies`` are as many as fit in
    ``available_bytes``, which the machine had to give at that moment. Medians of ``copies`` at a time, ``rounds`` times.
    """

    copy_bytes: int
    workload_bytes: int
    monitor_bytes: int
    kernel_bytes: int
    isolation_bytes: int
    available_bytes: int
    fitting_copies: int
    copies: int
    rounds: int


class Storage(msgspec.Struct, frozen=True):
    """Bytes on the disk: of one idle copy (writable layer, logs, files of its own), and what the level keeps once for all of its copies."""

    copy_bytes: int
    level_bytes: int


class Cost(msgspec.Struct, frozen=True):
    """A fixed amount of work, ``amount`` in words: how long it takes, and in how many times the bare host's time (None: that is not known)."""

    amount: str
    ms: Spread
    times_host: float | None = None


class SystemCalls(msgspec.Struct, frozen=True):
    """How many system calls reach a kernel from inside, and the names of those that do on the bare host and do not here."""

    reachable: int
    refused: tuple[str, ...] = ()


class Seen(msgspec.Struct, frozen=True):
    """What a process sees of the system that it runs on, as it says itself; empty or 0 where it cannot see that."""

    release: str = ""
    version: str = ""
    machine: str = ""
    boot_id: str = ""
    root: str = ""
    namespaces: dict[str, str] = {}
    processes: int = 0
    devices: int = 0
    host_devices: int = 0


class Level(msgspec.Struct, frozen=True):
    """One isolation level, or the bare host. ``reason`` says why it, or what is None below, was not measured; ``network`` how it is connected.

    ``hypervisor`` is how a virtual machine reaches the processor (empty: there is none). ``shared`` is what it shares with the host.
    """

    name: str
    usable: bool
    bare: bool = False
    reason: str = ""
    mend: str = ""
    hypervisor: str = ""
    notes: tuple[str, ...] = ()
    start: Start | None = None
    work: Work | None = None
    work_reason: str = ""
    memory: Memory | None = None
    storage: Storage | None = None
    costs: dict[CostName, Cost] = {}
    cost_reasons: dict[CostName, str] = {}
    network: str = ""
    system_calls: SystemCalls | None = None
    seen: Seen | None = None
    shared: dict[str, Sharing] = {}


class Use(msgspec.Struct, frozen=True):
    """What somebody may want a level for: which level suits best of those that were measured (empty: none does), and why."""

    name: str
    level: str
    reason: str


class Environment(msgspec.Struct, frozen=True):
    """Where and when it was measured.

    ``load`` is the machine's (of one minute), before and after; ``accelerator`` what virtual machines have here.
    """

    machine: str
    virtual: bool
    operating_system: str
    kernel: str
    architecture: str
    processor: str
    processors: int
    memory_bytes: int
    available_bytes: int
    accelerator: str
    file_system: str
    layers: str
    root: bool
    versions: dict[str, str]
    started_at: str
    took_s: float
    load: tuple[float, float]
    caches_dropped: bool


class Comparison(msgspec.Struct, frozen=True):
    """The whole result: the bare host first, then the levels from the lightest to the strongest."""

    image: str
    image_id: str
    command: tuple[str, ...]
    runs: int
    rounds: int
    environment: Environment
    levels: tuple[Level, ...]
    uses: tuple[Use, ...]
    schema_version: int = SCHEMA_VERSION

    def level(self, name: str) -> Level | None:
        """The level of that name."""
        return next((level for level in self.levels if level.name == name), None)
