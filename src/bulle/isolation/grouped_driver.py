"""What drivers have in common whose workloads are processes of this machine, held together by a control group."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import closing

from bulle.isolation.control_group import ControlGroup
from bulle.isolation.driver import Driver
from bulle.linux import process
from bulle.model.run_plan import RunPlan


class GroupedDriver(Driver):
    """A driver whose workloads may have a control group; where they have none, it must find their processes otherwise."""

    @abstractmethod
    def find_processes(self, pid: int) -> list[int]:
        """The host's pids of the workload whose first process is ``pid``, without the help of a control group."""

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

    def clean_up(self, plan: RunPlan) -> None:
        """End what outlived the first process (in a pid namespace nothing does), and remove the group."""
        with closing(ControlGroup.open(plan.container_id)) as group:
            group.kill()
            group.remove()
