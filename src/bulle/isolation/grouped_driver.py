"""What drivers have in common whose workloads are processes of this machine, held together by a control group."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from bulle.errors import BulleError, Unavailable, Unsupported
from bulle.isolation import statistics
from bulle.isolation.control_group import ControlGroup
from bulle.isolation.control_group import statistics as group_statistics
from bulle.isolation.driver import Driver, Feature
from bulle.isolation.statistics import Statistics
from bulle.linux import process, process_usage
from bulle.model.run_plan import RunPlan

_LIMITS = (
    (Feature.MEMORY_LIMIT, ("memory",)),
    (Feature.CPU_LIMIT, ("cpu",)),
    (Feature.PIDS_LIMIT, ("pids",)),
    (Feature.IO_LIMIT, ("blkio", "io")),
    (Feature.PAUSE, ("freezer",)),
)


def features_of(controllers: Collection[str]) -> set[Feature]:
    """What a workload can have by its control group, where these controllers can be used."""
    return {feature for feature, names in _LIMITS if any(name in controllers for name in names)}


class GroupedDriver(Driver):
    """A driver whose workloads may have a control group; where they have none, it must find their processes otherwise."""

    cache_directory: Path | None = None
    """Where compiled filters are kept from one process to the next (host path)."""

    def kept_files(self) -> list[str]:
        """The compiled filters; see :class:`Driver`."""
        return sorted(map(str, self.cache_directory.glob("seccomp-*"))) if self.cache_directory is not None else []

    @abstractmethod
    def find_processes_of(self, pids: Sequence[int]) -> Mapping[int, list[int]]:
        """The host's pids of the workloads with these first processes, without the help of a control group; one look through the machine's."""

    def find_processes(self, pid: int) -> list[int]:
        """Those of one workload."""
        return self.find_processes_of([pid])[pid]

    def processes(self, plan: RunPlan, pid: int) -> list[int]:
        """By control group where there is one."""
        with closing(ControlGroup.open(plan.container_id)) as group:
            return group.processes() or self.find_processes(pid)

    def processor_ns(self, plan: RunPlan, pid: int) -> int | None:
        """As the control group counts it; else what the processes that live have used."""
        with closing(ControlGroup.open(plan.container_id)) as group:
            used = group.stats().cpu_ns
        return used if used is not None else sum(map(process.processor_ns, self.processes(plan, pid)))

    def ran_out_of_memory(self, plan: RunPlan) -> bool:
        """By the group's counter of kills."""
        with closing(ControlGroup.open(plan.container_id)) as group:
            return group.oom_count() > 0

    def pause(self, plan: RunPlan, pid: int) -> None:
        """By the group's freezer; a group is made now where the container did without."""
        unsupported = Unsupported(Feature.PAUSE.value, self.name, "see `bulle doctor`")
        if Feature.PAUSE not in self.probe().features:
            raise unsupported
        with closing(ControlGroup.open(plan.container_id)) as group:
            try:
                group.extend({"freezer"}, lambda: self.find_processes(pid))
            except (OSError, Unavailable) as error:
                raise unsupported from error
            if not group.freeze():
                group.thaw()
                raise BulleError("the container could not be paused", "a process of it waits for the kernel and does not stop", "try again")

    def resume(self, plan: RunPlan) -> None:
        """Thaw the group."""
        if not self.is_paused(plan):
            return
        with closing(ControlGroup.open(plan.container_id)) as group:
            if not group.thaw() and self.is_paused(plan):  # who was killed while it stood still is gone with its group
                raise BulleError("the container could not be resumed", "the kernel does not let its processes continue", "see dmesg")

    def is_paused(self, plan: RunPlan) -> bool:
        """Whether the group is frozen."""
        return ControlGroup.is_frozen(plan.container_id)

    def change_limits(self, before: RunPlan, after: RunPlan, pid: int) -> list[str]:
        """Write them into the group, which is made now where the container did without."""
        self.require(after)
        with closing(ControlGroup.open(after.container_id)) as group:
            group.change(before.resources, after.resources, lambda: self.find_processes(pid))
            return group.notes

    def statistics(self, workloads: Sequence[tuple[RunPlan, int]]) -> list[Statistics]:
        """What groups count, and the rest by process."""
        groups, pids = [group_statistics(plan.container_id) for plan, _ in workloads], [pid for _, pid in workloads]
        found = statistics.complete(groups, pids, self.find_processes_of)
        return [
            one if plan.network.mode in ("host", "user") else _with_traffic(one, pid)  # what the host sends is not the container's
            for one, (plan, pid) in zip(found, workloads, strict=True)
        ]

    def clean_up(self, plan: RunPlan) -> None:
        """End what outlived the first process (in a pid namespace nothing does), and remove the group."""
        with closing(ControlGroup.open(plan.container_id)) as group:
            group.kill()
            group.remove()


def _with_traffic(used: Statistics, pid: int) -> Statistics:
    received, sent = process_usage.network_traffic(pid)
    return replace(used, network_received_bytes=received, network_sent_bytes=sent)
