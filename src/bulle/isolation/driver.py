"""The one interface behind every isolation level: what a driver offers (:class:`Probe`), and the verbs that it realises on a plan.

Drivers are compared by :class:`Feature`, never by name. A driver gets a :class:`~bulle.model.run_plan.RunPlan` whose layers are already mounted (the
store does that) and turns it into a running :class:`Workload`. It keeps no state of its own: every verb works from the plan and the first process's
pid alone, so that any process, also one started after a crash, can continue. ``tests/conformance/test_drivers.py`` holds every driver to it.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bulle.errors import Unavailable, Unsupported
from bulle.isolation.statistics import Statistics
from bulle.linux import process
from bulle.model.run_plan import Process, Resources, RunPlan

Connect = Callable[[int], Callable[[], Sequence[str]]]
"""Begins to connect the network of a process, by its pid; returns what waits until that is done, and returns notes. Both raise BulleError."""


class Feature(enum.Enum):
    """Abilities that a plan can need; the value is how an error names it."""

    OWN_PROCESSES = "process tree of its own"
    OWN_NETWORK = "network of its own"
    NETWORKS = "networks with others"
    OWN_USERS = "user namespace of its own"
    OWN_HOSTNAME = "hostname of its own"
    VOLUMES = "volumes"
    TMPFS = "tmpfs mounts"
    READ_ONLY_ROOT = "read-only root"
    MEMORY_LIMIT = "memory limit"
    CPU_LIMIT = "processor limit"
    PIDS_LIMIT = "limit on the number of processes"
    TERMINAL = "terminal"
    EXECUTE = "exec"
    INIT = "init process (--init)"
    STORAGE_LIMIT = "limit on the size of the writable layer"
    SYSTEM = "control group version 2 for an init system (--systemd)"
    PAUSE = "way to pause its processes"
    IO_LIMIT = "limit on input and output"
    HOST_NETWORK = "way onto the host's network"
    OWN_KERNEL = "kernel of its own"
    EMULATION = "programs of other processors"


@dataclass(frozen=True)
class Probe:
    """What a driver found on this machine for this user: data, never an exception.

    ``reason`` says why it is not usable (empty when it is), ``mend`` the command or setting that would change that, ``notes`` what is weaker than
    it could be although it works. ``hypervisor`` says how a virtual machine reaches the processor (``in-kernel``, ``hosted``, ``emulating``); it is
    empty for levels that have none.
    """

    usable: bool
    reason: str = ""
    mend: str = ""
    features: frozenset[Feature] = frozenset()
    notes: tuple[str, ...] = ()
    hypervisor: str = ""


@dataclass(frozen=True)
class Stdio:
    """The three descriptors (of this process) that become the workload's 0, 1 and 2; ignored where the process has a terminal."""

    stdin: int
    stdout: int
    stderr: int


@dataclass
class Workload:
    """A process that a driver started, seen from the host.

    ``pidfd`` becomes readable when it ends; it is a child of the calling process, which reaps it. ``terminal`` is the master side of its terminal, or
    -1. ``notes`` say what was weaker than asked for in a way that the user must be told. ``helper`` is a process that has ended, and that the
    workload's parent reaps; 0 for none.
    """

    pid: int
    pidfd: int
    terminal: int = -1
    notes: list[str] = field(default_factory=list)
    helper: int = 0


class Driver(ABC):
    """How a plan becomes a running workload at one isolation level."""

    name: str

    @abstractmethod
    def probe(self) -> Probe:
        """Find out, by trying, what this machine allows this user; cheap to call again (cached per process)."""

    @abstractmethod
    def start(
        self,
        plan: RunPlan,
        stdio: Stdio,
        *,
        sibling: bool = False,
        meanwhile: Callable[[Workload], None] | None = None,
        connect: Connect | None = None,
    ) -> Workload:
        """Realise the plan; returns once the command has been executed.

        With ``sibling`` the workload becomes a child of the calling process's parent, which then reaps it. ``meanwhile`` is called once its first
        process exists (``pid`` and ``pidfd`` are known) and sets itself up; the start may still fail after that. For a plan with a network of its
        ``own``, ``connect`` is called with the pid of a process in that network, and what it returns before that goes on; for one that shares a
        ``container``'s, the calling process must stand in that.

        Raises CommandNotFound, CommandNotExecutable, Unsupported, Unavailable or BulleError; then nothing is left behind.
        """

    @abstractmethod
    def execute(self, plan: RunPlan, pid: int, process: Process, stdio: Stdio) -> Workload:
        """Run one more process in the running workload whose first process is ``pid``."""

    @abstractmethod
    def processes(self, plan: RunPlan, pid: int) -> list[int]:
        """The host's pids of every process in the workload."""

    def listing(self, plan: RunPlan, arguments: Sequence[str]) -> tuple[list[str], list[list[str]]] | None:
        """The processes in the running workload in the columns of ps(1), titles and rows; None where the host's own ps sees them."""
        return None

    @abstractmethod
    def processor_ns(self, plan: RunPlan, pid: int) -> int | None:
        """The processor time that the workload has used, in nanoseconds; None where that cannot be told."""

    @abstractmethod
    def ran_out_of_memory(self, plan: RunPlan) -> bool:
        """Whether the kernel killed a process of the workload because its memory limit was reached; asked before :meth:`clean_up`."""

    def end_of(self, plan: RunPlan, status: int) -> tuple[int, str]:
        """How the command ended, from the wait status of the workload's first process (-1: unknown); and where it was not the command that ended but
        what it ran in, why, in a part of a sentence (else an empty text)."""
        return status, ""

    def refused_calls(self, plan: RunPlan) -> tuple[str, ...] | None:
        """Names of the system calls that the filter refused to the ended workload; None where this machine's kernel is the one that knows."""
        return None

    def to_fetch(self, plan: RunPlan) -> str:
        """What the next start of the plan has to fetch first, in words for who waits; empty for nothing."""
        return ""

    def signal(self, plan: RunPlan, pidfd: int, number: int) -> None:
        """Send a signal to the workload behind a pidfd; what it has written stays written. Raises ProcessLookupError where it has just ended."""
        process.pidfd_send_signal(pidfd, number)

    @abstractmethod
    def pause(self, plan: RunPlan, pid: int) -> None:
        """Stop every process of the running workload where it stands. Raises Unsupported, or BulleError when that did not succeed."""

    @abstractmethod
    def resume(self, plan: RunPlan) -> None:
        """Let the processes of a paused workload continue; nothing happens where none is paused."""

    @abstractmethod
    def is_paused(self, plan: RunPlan) -> bool:
        """Whether the workload was paused and not resumed: asked of the kernel, quickly."""

    @abstractmethod
    def change_limits(self, before: RunPlan, after: RunPlan, pid: int) -> list[str]:
        """Have the running workload held to the resources of another plan, all of them or, on an error, none; returns notes as of a start."""

    @abstractmethod
    def statistics(self, workloads: Sequence[tuple[RunPlan, int]]) -> list[Statistics]:
        """What running workloads, each with its first process's pid, have used until now."""

    @abstractmethod
    def clean_up(self, plan: RunPlan) -> None:
        """End what is left of the workload and remove what the kernel does not (control groups); harmless to repeat, also after a crash."""

    def kept_files(self) -> Sequence[str]:
        """Host paths of files that the level keeps on the disk once for all of its workloads; those that are not there (yet) may be named."""
        return ()

    def require(self, plan: RunPlan) -> None:
        """Raise Unavailable where this machine does not allow the level, Unsupported for the first thing in the plan that the level lacks here."""
        probe = self.probe()
        if not probe.usable:
            raise Unavailable(f"isolation level {self.name!r} cannot be used here", probe.reason, probe.mend or "see `bulle doctor`")
        for feature, needed in needs(plan):
            if needed and feature not in probe.features:
                raise Unsupported(feature.value, self.name, "choose another level with --isolation, or see `bulle doctor`")


def needs(plan: RunPlan) -> list[tuple[Feature, bool]]:
    """Which features a plan needs, in the order in which an error should name them."""
    resources = plan.resources
    return [
        (Feature.NETWORKS, plan.network.mode in ("own", "container")),
        (Feature.HOST_NETWORK, plan.network.mode == "host"),
        (Feature.VOLUMES, any(mount.kind != "tmpfs" for mount in plan.mounts)),
        (Feature.TMPFS, any(mount.kind == "tmpfs" for mount in plan.mounts)),
        (Feature.READ_ONLY_ROOT, plan.root.read_only),
        (Feature.MEMORY_LIMIT, _limits_memory(resources)),
        (Feature.CPU_LIMIT, _limits_processors(resources)),
        (Feature.PIDS_LIMIT, resources.pids_limit > 0),
        (Feature.IO_LIMIT, bool(resources.blkio_weight or resources.device_limits)),
        (Feature.TERMINAL, plan.process.terminal),
        (Feature.INIT, plan.process.init or plan.process.idle),
        (Feature.SYSTEM, plan.systemd),
        (Feature.STORAGE_LIMIT, plan.root.size_bytes > 0),
        (Feature.EMULATION, bool(plan.platform)),
    ]


def _limits_memory(resources: Resources) -> bool:
    amounts = resources.memory_bytes or resources.memory_swap_bytes or resources.memory_reservation_bytes
    return bool(amounts or resources.oom_kill_disable or resources.memory_swappiness is not None)


def _limits_processors(resources: Resources) -> bool:
    times = resources.nano_cpus or resources.cpu_shares or resources.cpu_quota_us or resources.cpu_period_us
    return bool(times or resources.cpuset_cpus or resources.cpuset_mems)
