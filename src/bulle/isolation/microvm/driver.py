"""The driver of the level ``vm``: the image's root in a guest with a kernel of its own, under QEMU.

The first process of the workload is the *shepherd* (:mod:`bulle.isolation.microvm.shepherd`): pid 1 of namespaces like a container's, it starts QEMU
without privileges, tells the guest's agent what to do, carries streams and signals, and ends with the command's exit code. So every verb that works
on a process, a control group or pipes means the same here. docs/vm-agent.md; runtime specification, config-linux.md
"""

from __future__ import annotations

import dataclasses
import os
import platform
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import lru_cache
from pathlib import Path
from signal import SIGKILL

from msgspec.structs import replace

from bulle.errors import BulleError, Unsupported
from bulle.isolation import host_mounts, launch
from bulle.isolation.channel import Channel
from bulle.isolation.control_group import available
from bulle.isolation.driver import Connect, Feature, Probe, Stdio, Workload
from bulle.isolation.grouped_driver import GroupedDriver, features_of
from bulle.isolation.microvm import processes, sandbox, sessions, shepherd, whole, whole_shepherd
from bulle.isolation.microvm.accelerator import choose
from bulle.isolation.microvm.files import GuestFiles
from bulle.isolation.microvm.guest import GROUP
from bulle.isolation.microvm.kernel import GuestKernels
from bulle.isolation.microvm.record import read_record, usable_memory_bytes
from bulle.isolation.microvm.setup import Setup, host_memory_bytes, prepare, why_unusable
from bulle.isolation.microvm.whole import WholeSetup
from bulle.isolation.namespaces.driver import SHELL_FLAGS, processes_in_namespaces
from bulle.isolation.statistics import Statistics
from bulle.linux import loopback, mount, namespaces, user_namespace
from bulle.linux.namespaces import CLONE_NEWCGROUP, CLONE_NEWNET, CLONE_PARENT
from bulle.linux.tap import open_tap
from bulle.model.run_plan import Process, RunPlan


class MicroVmDriver(GroupedDriver):
    """Guests under QEMU; see the module."""

    name = "vm"

    def __init__(self, cache_directory: Path | None = None) -> None:
        """``cache_directory`` (host path) keeps kernels, ramdisks and compiled filters between processes."""
        self.cache_directory = cache_directory

    def probe(self) -> Probe:
        """Whether QEMU is there and this user can make the namespaces that it runs in."""
        return _probe(self.cache_directory)

    def start(
        self,
        plan: RunPlan,
        stdio: Stdio,
        *,
        sibling: bool = False,
        meanwhile: Callable[[Workload], None] | None = None,
        connect: Connect | None = None,
    ) -> Workload:
        """New namespaces, the shepherd in them, a guest; see :class:`Driver`."""
        with ExitStack() as opened:
            setup = (whole.prepare if _is_whole(plan) else prepare)(plan, self.cache_directory, opened)
            kit = launch.Kit.to_start(_grouped(plan), stdio, self.cache_directory, own_processes=True)
            own_network = plan.network.mode != "user"
            flags = SHELL_FLAGS & ~CLONE_NEWNET | (CLONE_PARENT if sibling else 0)
            return launch.start(
                kit,
                lambda: launch.fork(kit, flags, lambda channel: _child(plan, channel, kit.for_child(), setup, own_network)),
                lambda workload, channel: _prepare(plan, workload, channel, connect, setup),
                meanwhile,
            )

    def execute(self, plan: RunPlan, pid: int, process: Process, stdio: Stdio) -> Workload:
        """One more command in the guest; the process that stands for it here waits for the shepherd's word."""
        if _is_whole(plan):
            raise whole_shepherd.no_way_in(self.name)
        kit = launch.Kit.to_join(plan, process, stdio, self.cache_directory)
        return launch.start(kit, lambda: launch.fork(kit, 0, lambda channel: sessions.ask(plan, channel, process, kit.for_child())))

    def find_processes_of(self, pids: Sequence[int]) -> dict[int, list[int]]:
        """The shepherd, the hypervisor and the file server."""
        return processes_in_namespaces(pids)

    def kept_files(self) -> list[str]:
        """Kernels and ramdisks too, which all guests share."""
        kept = [str(path) for path in self.cache_directory.rglob("*") if path.is_file()] if self.cache_directory is not None else []
        own = [path for path in kept if "/kernels/" in path or "/initrd-" in path]
        return [*super().kept_files(), *own]

    def change_limits(self, before: RunPlan, after: RunPlan, pid: int) -> list[str]:
        """Those of the guest by its own kernel, the others by the group. The guest cannot have more memory than it started with."""
        if _is_whole(before):
            same = (before.resources.memory_bytes, before.resources.pids_limit) == (after.resources.memory_bytes, after.resources.pids_limit)
            if not same:
                raise Unsupported("other memory, or a limit on processes, for a system of its own that runs", self.name, "stop it first")
            return super().change_limits(_grouped(before), _grouped(after), pid)
        most = read_record(before.state_host_path).memory_bytes
        if after.resources.memory_bytes > most:
            what = "way to have more memory than it started with"
            raise Unsupported(what, self.name, f"give {most >> 20} MiB or less, or make the container anew with more")
        # What the guest has touched of its memory stays the hypervisor's: the group goes on as it began.
        began = replace(after, resources=replace(after.resources, memory_bytes=before.resources.memory_bytes and most))
        changes = _grouped(before).resources != _grouped(began).resources
        notes = super().change_limits(_grouped(before), _grouped(began), pid) if changes else []
        files = GuestFiles(after.state_host_path)
        if before.resources.memory_bytes != after.resources.memory_bytes:
            files.set(f"{GROUP}/memory.max", str(after.resources.memory_bytes or "max"))
        if before.resources.pids_limit != after.resources.pids_limit:
            files.set(f"{GROUP}/pids.max", str(after.resources.pids_limit or "max"))
        return notes

    def statistics(self, workloads: Sequence[tuple[RunPlan, int]]) -> list[Statistics]:
        """What the group counts, the hypervisor's own too; but memory and processes as the guest's kernel counts them."""
        found = []
        for one, (plan, _pid) in zip(super().statistics(workloads), workloads, strict=True):
            used, pids, limit = one.memory_bytes, one.pids, usable_memory_bytes(plan)
            if not self.is_paused(plan) and not _is_whole(plan):
                with suppress(OSError, BulleError, ValueError):
                    files = GuestFiles(plan.state_host_path)
                    used, pids = (int(files.read(f"{GROUP}/{name}.current", own_root=True)) for name in ("memory", "pids"))
                    limit = int(files.read(f"{GROUP}/memory.max", own_root=True))  # or the word max: then all that it has
            found.append(dataclasses.replace(one, memory_bytes=used, pids=pids, memory_limit_bytes=limit))
        return found

    def listing(self, plan: RunPlan, arguments: Sequence[str]) -> tuple[list[str], list[list[str]]] | None:
        """As the guest's own kernel tells them; where that stands still too, those of the hypervisor are all that there is to see."""
        if _is_whole(plan):
            raise whole_shepherd.no_way_in(self.name)
        if self.is_paused(plan):
            return None
        return processes.listing(GuestFiles(plan.state_host_path), arguments)

    def processor_ns(self, plan: RunPlan, pid: int) -> int | None:
        """As the guest's kernel counts it: what the hypervisor and that kernel use besides is no work of the container's."""
        if _is_whole(plan):
            return super().processor_ns(plan, pid)
        with suppress(OSError, BulleError, ValueError):
            for line in GuestFiles(plan.state_host_path).read(f"{GROUP}/cpu.stat", own_root=True).splitlines():
                if line.startswith(b"usage_usec "):
                    return int(line.split()[1]) * 1000
        return None

    def refused_calls(self, plan: RunPlan) -> tuple[str, ...] | None:
        """As the guest's kernel printed them, until the shepherd ended."""
        return read_record(plan.state_host_path).refused

    def to_fetch(self, plan: RunPlan) -> str:
        """A kernel, once."""
        assert plan.guest is not None and self.cache_directory is not None
        if _is_whole(plan):
            return ""
        return GuestKernels(self.cache_directory / "kernels").to_fetch(plan.guest.architecture or platform.machine(), plan.guest.kernel)

    def signal(self, plan: RunPlan, pidfd: int, number: int) -> None:
        """At SIGKILL the shepherd kills the command and switches the guest off, which writes what it has first; where none listens, a power cut."""
        if number == SIGKILL:
            with suppress(OSError):
                sessions.end(plan.state_host_path)
                return
        super().signal(plan, pidfd, number)

    def end_of(self, plan: RunPlan, status: int) -> tuple[int, str]:
        """As the shepherd wrote it down, who got the command's own status from the guest."""
        record = read_record(plan.state_host_path)
        if status >= 0 and os.WIFSIGNALED(status):
            return status, ""  # the shepherd itself was killed
        return (status if record.status is None else record.status), record.ended

    def ran_out_of_memory(self, plan: RunPlan) -> bool:
        """By the group's counter of kills, or by the guest's kernel's."""
        return read_record(plan.state_host_path).out_of_memory or super().ran_out_of_memory(plan)


def _is_whole(plan: RunPlan) -> bool:
    """Whether it has a system of its own, so that no agent is in it."""
    return plan.guest is not None and plan.guest.whole is not None


def _grouped(plan: RunPlan) -> RunPlan:
    """With the limits of the group, which holds the hypervisor: its own memory comes to the guest's."""
    controllers, _why = available()
    memory = host_memory_bytes(plan) if "memory" in controllers else 0  # the guest's kernel keeps the container to it in any case
    swap = memory if plan.resources.memory_swap_bytes > 0 or "memory" not in controllers else plan.resources.memory_swap_bytes
    limits = replace(plan.resources, memory_bytes=memory, memory_swap_bytes=swap, memory_reservation_bytes=0, pids_limit=0)
    return replace(plan, resources=limits)


def _prepare(plan: RunPlan, workload: Workload, channel: Channel, connect: Connect | None, setup: Setup | WholeSetup) -> None:
    """What only the parent can do: id maps, the network, and volumes id-mapped for the shepherd's user namespace."""
    user_namespace.write_maps(workload.pid, plan.security.id_mappings, plan.security.group_mappings or plan.security.id_mappings)
    workload.notes += setup.notes
    if os.geteuid() != 0:
        channel.send_descriptors([])
        return
    namespace = os.open(f"/proc/{workload.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    shown: list[int] = []
    try:
        connected = None
        if plan.network.mode == "own" and connect is not None and channel.receive_report() is not None:
            connected = connect(workload.pid)
        for wanted in plan.mounts:
            if wanted.kind != "tmpfs":
                shown.append(host_mounts.detached(plan, wanted, namespace, workload.notes))
        shown += map(sandbox.device_node, setup.devices)
        if connected is not None:
            workload.notes += connected()
        with suppress(BrokenPipeError, ConnectionResetError):  # the child failed first: its report says why
            channel.send_descriptors(shown)
    finally:
        for descriptor in (namespace, *shown):
            os.close(descriptor)


def _child(plan: RunPlan, channel: Channel, kit: launch.ChildKit, setup: Setup | WholeSetup, own_network: bool) -> None:
    """In the new namespaces, with the engine's memory, for ever."""
    if own_network:
        namespaces.unshare(CLONE_NEWNET)
        loopback.bring_up()
    mount.mount(None, "/", flags=mount.MS_REC | mount.MS_SLAVE)
    if plan.network.mode == "own":
        channel.report("network")
    namespaces.unshare(CLONE_NEWCGROUP)
    shown = channel.receive_descriptors()
    nodes = [shown.pop() for _ in setup.devices] if shown else []
    launch.hide()
    # While this process is still the host's root as far as files are concerned, of whom /dev/net/tun may be.
    taps = [open_tap() for _ in plan.network.attachments] if plan.network.mode == "own" else []
    user_namespace.become_root()
    numbers = [number for number, wanted in enumerate(plan.mounts) if wanted.kind != "tmpfs"]
    if os.geteuid() == 0 and not shown:
        notes: list[str] = []
        shown = [host_mounts.detached(plan, plan.mounts[number], None, notes, unprivileged=True) for number in numbers]
    socket.sethostname(plan.hostname)
    if isinstance(setup, WholeSetup):
        whole_shepherd.run(plan, channel, kit, setup, taps, nodes)
        return
    shepherd.run(plan, channel, kit, setup, list(zip(numbers, shown, strict=True)), taps, nodes)


@lru_cache(4)
def _probe(cache: Path | None) -> Probe:
    reason, mend = why_unusable(cache)
    if reason:
        return Probe(False, reason, mend)
    features = {
        Feature.OWN_PROCESSES, Feature.OWN_NETWORK, Feature.OWN_USERS, Feature.OWN_HOSTNAME, Feature.VOLUMES, Feature.TMPFS, Feature.READ_ONLY_ROOT,
        Feature.TERMINAL, Feature.EXECUTE, Feature.INIT, Feature.STORAGE_LIMIT, Feature.MEMORY_LIMIT, Feature.PIDS_LIMIT,
        Feature.OWN_KERNEL, Feature.EMULATION,
    }  # fmt: skip
    controllers, why = available()
    notes = [f"no limits on resources: {why}"] if why else []
    features |= features_of(controllers)
    if os.geteuid() == 0:
        features.add(Feature.NETWORKS)
    accelerator = choose(platform.machine(), "", cache)
    if accelerator.reason:
        notes.append(f"its processor is emulated: {accelerator.reason}")
    return Probe(True, features=frozenset(features), notes=tuple(notes), hypervisor=accelerator.hypervisor)


