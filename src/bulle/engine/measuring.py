"""``stats``: what containers use, several of them at once.

A share of a processor is known between two looks; everything else at one. Nothing is kept but the last look, in memory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bulle.engine.drivers import driver_for
from bulle.isolation.statistics import Statistics
from bulle.linux.process_usage import machine_memory_bytes, machine_processor_ns
from bulle.monitor.logs import timestamp

if TYPE_CHECKING:
    from bulle.engine.container import Container
    from bulle.model.run_plan import RunPlan


@dataclass(frozen=True)
class ContainerStatistics:
    """What a container uses; all 0 for one that does not run.

    ``cpu_percent`` is of one processor (two that are busy make 200), between this look and the one before. The memory is without the cache that
    the kernel would give up first; without a limit ``memory_limit_bytes`` is what the machine has. ``pids`` counts threads.
    """

    id: str
    name: str
    cpu_percent: float = 0.0
    cpu_ns: int = 0
    memory_bytes: int = 0
    memory_limit_bytes: int = 0
    pids: int = 0
    network_received_bytes: int = 0
    network_sent_bytes: int = 0
    block_read_bytes: int = 0
    block_written_bytes: int = 0

    @property
    def memory_percent(self) -> float:
        """How much of its memory it uses."""
        return 100 * self.memory_bytes / self.memory_limit_bytes if self.memory_limit_bytes else 0.0


class Meter:
    """Looks at containers again and again; the first look at one knows of no share of a processor yet."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._before: dict[tuple[str, int], Statistics] = {}

    def measure(self, containers: Sequence[Container]) -> list[ContainerStatistics]:
        """What each of them uses now, in their order."""
        running = self._running(containers)
        found: dict[str, ContainerStatistics] = {}
        before, self._before = self._before, {}
        for level in dict.fromkeys(plan.isolation for plan, _ in running.values()):
            chosen = [workload for workload in running.values() if workload[0].isolation == level]
            for (plan, pid), used in zip(chosen, driver_for(level, self._home).statistics(chosen), strict=True):
                self._before[plan.container_id, pid] = used
                found[plan.container_id] = _shown(used, before.get((plan.container_id, pid)))
        unknown = ContainerStatistics("", "")
        return [replace(found.get(container.id, unknown), id=container.id, name=container.name) for container in containers]

    @staticmethod
    def _running(containers: Sequence[Container]) -> dict[str, tuple[RunPlan, int]]:
        states = ((container, container.state()) for container in containers)
        return {container.id: (container.plan, state.pid) for container, state in states if state.status == "running"}


def measure(home: Path, containers: Sequence[Container], interval_s: float) -> list[ContainerStatistics]:
    """What containers use, each looked at twice."""
    meter = Meter(home)
    meter.measure(containers)
    time.sleep(interval_s)
    return meter.measure(containers)


def _shown(used: Statistics, before: Statistics | None) -> ContainerStatistics:
    machine_bytes = machine_memory_bytes()
    share, passed_ns = 0.0, used.at_ns - before.at_ns if before else 0
    if before is not None and passed_ns > 0:
        # What is summed over processes grows smaller when one of them ends unseen by its parent.
        most = 100.0 * (os.cpu_count() or 1)
        share = min(max(100 * ((used.cpu_ns or 0) - (before.cpu_ns or 0)) / passed_ns, 0.0), most)
    return ContainerStatistics(
        id="",
        name="",
        cpu_percent=share,
        cpu_ns=used.cpu_ns or 0,
        memory_bytes=used.memory_bytes or 0,
        memory_limit_bytes=min(used.memory_limit_bytes or machine_bytes, machine_bytes),
        pids=used.pids or 0,
        network_received_bytes=used.network_received_bytes,
        network_sent_bytes=used.network_sent_bytes,
        block_read_bytes=used.block_read_bytes or 0,
        block_written_bytes=used.block_written_bytes or 0,
    )


class StatisticsDocuments:
    """What one container uses, look after look, in the form of Docker's API: each document has the processor time of the look before too."""

    def __init__(self, home: Path) -> None:
        self._meter = Meter(home)
        self._before = ("0001-01-01T00:00:00Z", _processor_document(0, 0))

    def look(self, container: Container) -> dict[str, object]:
        """The next one."""
        (used,) = self._meter.measure([container])
        read_before, processor_before = self._before
        read, processor = timestamp(time.time_ns()), _processor_document(used.cpu_ns, machine_processor_ns())
        self._before = (read, processor)
        blocks = [("read", used.block_read_bytes), ("write", used.block_written_bytes)]
        received, sent = used.network_received_bytes, used.network_sent_bytes
        return {
            "read": read,
            "preread": read_before,
            "name": f"/{container.name}",
            "id": container.id,
            "num_procs": 0,
            "pids_stats": {"current": used.pids},
            "cpu_stats": processor,
            "precpu_stats": processor_before,
            # Without the cache that the kernel would give up first: there is nothing for a client to subtract.
            "memory_stats": {"usage": used.memory_bytes, "limit": used.memory_limit_bytes, "stats": {}},
            "blkio_stats": {"io_service_bytes_recursive": [{"major": 0, "minor": 0, "op": name, "value": size} for name, size in blocks]},
            "networks": {"eth0": {"rx_bytes": received, "tx_bytes": sent}} if container.plan.network.mode == "own" else {},
            "storage_stats": {},
        }


def _processor_document(used_ns: int, machine_ns: int) -> dict[str, object]:
    return {"cpu_usage": {"total_usage": used_ns}, "system_cpu_usage": machine_ns, "online_cpus": os.cpu_count() or 1, "throttling_data": {}}
