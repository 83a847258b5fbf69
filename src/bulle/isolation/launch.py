"""The driver's side of a start: what is made ready before the fork, the fork into namespaces, and the wait until the command has been executed.

Shared by the drivers; what differs between them is what their child does, and what their own process prepares meanwhile. Single-threaded processes
only (a container's monitor), since clone3 here runs none of Python's fork hooks. clone(2)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bulle.errors import BulleError, Unavailable
from bulle.isolation import seccomp_profile
from bulle.isolation.channel import Channel
from bulle.isolation.control_group import ControlGroup
from bulle.isolation.driver import Stdio, Workload
from bulle.isolation.init_program import program_to_go_through
from bulle.linux import namespaces, process
from bulle.model.run_plan import Process, RunPlan

if TYPE_CHECKING:
    from bulle.linux.emulators import Emulator

_OOM_SCORE = Path("/proc/self/oom_score_adj")
_KEYCTL_JOIN_SESSION_KEYRING = 1
_DEVICE_CAPABILITIES = frozenset({"CAP_MKNOD"})


@dataclass(frozen=True)
class ChildKit:
    """What a child needs until it executes its command; ``program_fd`` is the small init to go through, -1 for none."""

    stdio: Stdio
    filter_program: bytes | None
    program_fd: int
    controllers: tuple[str, ...]
    """Of its own control group, which it may look at."""
    withheld: frozenset[str] = frozenset()
    """Capabilities that it does not get although they were asked for, because this machine cannot contain them."""
    emulator: Emulator | None = None
    """What runs programs of another processor, where it must be registered first."""

    def without(self, *capabilities: str) -> ChildKit:
        """The same, with more capabilities withheld."""
        return replace(self, withheld=self.withheld | set(capabilities))


@dataclass(frozen=True)
class Kit:
    """What the driver's process prepares for a child: its control group, compiled filter, the program to go through (-1 for none) and streams."""

    group: ControlGroup
    filter_program: bytes | None
    program_fd: int
    stdio: Stdio
    new_group: bool
    withheld: frozenset[str] = frozenset()
    oom_score_adj: int | None = None
    emulator: Emulator | None = None

    @classmethod
    def to_start(cls, plan: RunPlan, stdio: Stdio, cache_directory: Path | None, *, own_processes: bool) -> Kit:
        """For a container's first process: a new group with the plan's limits, and with rules for devices where it could make device nodes.

        With ``own_processes`` (a pid namespace) a group is only made where it has something to do or costs nothing.
        """
        withheld = frozenset[str]()
        emulator = None
        if plan.platform:
            from bulle.isolation import emulation  # most programs are this processor's

            emulator = emulation.emulator_for(plan)
        try:
            group = ControlGroup.create(plan.container_id, plan.resources, restrict_devices=_makes_devices(plan), optional=own_processes)
        except Unavailable:
            if not _makes_devices(plan):
                raise
            group = ControlGroup.create(plan.container_id, plan.resources)
            withheld = _DEVICE_CAPABILITIES
        try:
            if plan.systemd:
                group.delegate(*_root_ids(plan))
            return cls(group, *_programs(plan, plan.process, cache_directory), stdio, True, withheld, plan.oom_score_adj, emulator)
        except BaseException:
            group.close()
            group.remove()
            raise

    @classmethod
    def to_join(cls, plan: RunPlan, wanted: Process, stdio: Stdio, cache_directory: Path | None) -> Kit:
        """For one more process in a running container."""
        group = ControlGroup.open(plan.container_id)
        if plan.systemd:
            group.enter_delegated()
        ruled = "devices" in group.controllers or "" in group.controllers
        withheld = _DEVICE_CAPABILITIES if _makes_devices(plan) and not ruled else frozenset[str]()
        return cls(group, *_programs(plan, wanted, cache_directory), stdio, False, withheld, plan.oom_score_adj)

    def for_child(self) -> ChildKit:
        """The child's part of it."""
        return ChildKit(self.stdio, self.filter_program, self.program_fd, self.group.controllers, self.withheld, self.emulator)

    def close(self) -> None:
        """Close what this process does not need any more."""
        self.group.close()
        if self.program_fd >= 0:
            os.close(self.program_fd)


def _root_ids(plan: RunPlan) -> tuple[int, int]:
    """The host's ids of the container's root."""
    users = plan.security.id_mappings
    groups = plan.security.group_mappings or users
    return (users[0].host_id, groups[0].host_id) if users else (os.geteuid(), os.getegid())


def _makes_devices(plan: RunPlan) -> bool:
    """Whether mknod(2), or mount(2) on the image's own nodes, works for the workload, so that it must be told which devices it may use."""
    security = plan.security
    remounts = "CAP_SYS_ADMIN" in plan.process.capabilities and os.geteuid() == 0
    return (security.user_namespace == "host" or remounts) and not security.privileged


def _programs(plan: RunPlan, wanted: Process, cache_directory: Path | None) -> tuple[bytes | None, int]:
    machine = plan.guest.architecture if plan.guest is not None else ""
    filter_program = seccomp_profile.program_for(plan.security.seccomp, frozenset(wanted.capabilities), cache_directory, machine)
    return filter_program, program_to_go_through(wanted, plan.security.user_namespace == "own")


def start(
    kit: Kit,
    begin: Callable[[], tuple[Workload, Channel]],
    prepare: Callable[[Workload, Channel], None] | None = None,
    meanwhile: Callable[[Workload], None] | None = None,
) -> Workload:
    """Have ``begin`` bring the child about, prepare what it needs, do something else meanwhile; returns once it has executed its command.

    Raises what either side says went wrong; then the process is gone, and its control group if the kit made it.
    """
    try:
        workload, channel = begin()
        try:
            if prepare is not None:
                prepare(workload, channel)
            if meanwhile is not None:
                meanwhile(workload)
            _follow(workload, channel)
        except BaseException:
            abandon(workload)
            raise
        finally:
            channel.close()
    except BaseException:
        if kit.new_group:
            kit.group.kill()
            kit.group.remove()
        raise
    finally:
        kit.close()
    workload.notes[:0] = kit.group.notes
    return workload


def begin_session() -> None:
    """A session and a session keyring of its own, and the umask that what is made for a container needs, whatever the caller's is."""
    os.setsid()
    os.umask(0o022)
    with suppress(OSError):  # a filter around the engine may forbid it; there is nothing of the caller's in the keyring then
        process.keyctl(_KEYCTL_JOIN_SESSION_KEYRING)


def hide() -> None:
    """Until execve a child holds the engine's memory: nobody in the container may trace it or look at it through /proc.

    Not before its id maps are written: the files of a hidden process belong to the host's root alone.
    """
    process.prctl(process.PR_SET_DUMPABLE, 0)


def fork(kit: Kit, flags: int, child: Callable[[Channel], None]) -> tuple[Workload, Channel]:
    """Run ``child`` in a new process, in new namespaces and the kit's control group."""
    with _oom_score(kit.oom_score_adj):
        ours, theirs = Channel.pair()
        pid, pidfd = namespaces.clone3(flags, kit.group.clone_into_fd)
        if pid == 0:
            with last_act(theirs):
                ours.close()
                begin_session()
                kit.group.attach_self()
                child(theirs)
    theirs.close()
    return Workload(pid, pidfd), ours


@contextmanager
def _oom_score(wanted: int | None) -> Iterator[None]:
    """How willingly the kernel ends what is forked in the block when memory runs out: inherited, for a child in a user namespace of its own may
    not lower it, whoever its parent is. proc_pid_oom_score_adj(5)"""
    if wanted is None:
        yield
        return
    own = int(_OOM_SCORE.read_text())
    try:
        _OOM_SCORE.write_text(f"{wanted}")
    except PermissionError:
        raise Unavailable(
            f"--oom-score-adj {wanted} cannot be set",
            f"the engine's own is {own}, and less needs the capability CAP_SYS_RESOURCE, which it does not have",
            f"use a value from {own} to 1000",
        ) from None
    try:
        yield
    finally:
        _OOM_SCORE.write_text(f"{own}")


@contextmanager
def last_act(channel: Channel) -> Iterator[None]:
    """A forked child's body, which ends in execve(2): if it does not, the error goes over the channel and the process ends."""
    try:
        yield
    except BaseException as error:  # noqa: BLE001 -- the channel is the only way to tell
        with suppress(OSError):
            channel.report_error(error)
    finally:
        os._exit(1)


def _follow(workload: Workload, channel: Channel) -> None:
    """Read the child's reports until the command is executed (the channel closes) or an error is raised."""
    while (received := channel.receive_report()) is not None:
        report, descriptor = received
        if report.kind == "note":
            workload.notes.append(report.parts[0])
        elif report.kind == "terminal":
            workload.terminal = descriptor
        elif report.kind == "process":
            # The joined process replaces the one that was forked first, which has done its work.
            os.close(workload.pidfd)
            os.waitpid(workload.pid, 0)
            workload.pid, workload.pidfd = report.pid, descriptor
        elif report.kind == "running":  # a process that stands for a command in a machine of its own, and executes nothing itself
            return
    if not process.has_executed(workload.pid):
        raise BulleError("the process was killed before it executed its command", "memory may have run out", "see dmesg")


def abandon(workload: Workload) -> None:
    """Kill and reap a child whose start failed."""
    with suppress(ProcessLookupError):
        os.kill(workload.pid, 9)
    with suppress(ChildProcessError):
        os.waitpid(workload.pid, 0)
    os.close(workload.pidfd)
    if workload.terminal >= 0:
        os.close(workload.terminal)
