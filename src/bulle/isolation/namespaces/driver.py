"""The driver of the level ``container``: what Docker calls a container, with a user namespace for everyone.

The driver's process stays in the initial namespaces: it forks a child straight into new ones (one clone3), writes its id maps, builds the root
filesystem as detached mounts and hands them down; the child attaches them, pivots, sheds its privileges and executes. As an ordinary user the same
child makes its own overlay over extracted layers instead (``rootless``). namespaces(7); runtime specification, config-linux.md
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from bulle.errors import BulleError
from bulle.isolation import delegated_group, execution, inside, launch, root_filesystem, rootless, sized_layer
from bulle.isolation.channel import Channel
from bulle.isolation.control_group import available, layout
from bulle.isolation.driver import Connect, Feature, Probe, Stdio, Workload
from bulle.isolation.grouped_driver import GroupedDriver, features_of
from bulle.isolation.namespaces import shell
from bulle.linux import loopback, mount, namespaces, user_namespace
from bulle.linux.namespaces import CLONE_NEWCGROUP, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER, CLONE_NEWUTS, CLONE_PARENT
from bulle.linux.process import pidfd_open
from bulle.model.run_plan import Process, RunPlan

_ALWAYS = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC
SHELL_FLAGS = _ALWAYS | CLONE_NEWUSER | CLONE_NEWNET


def namespace_flags(plan: RunPlan) -> int:
    """The namespaces that the workload has of its own, but for that of control groups, which it makes once it sits in its group."""
    own_users = CLONE_NEWUSER if plan.security.user_namespace == "own" else 0
    own_network = CLONE_NEWNET if has_own_network(plan) else 0
    return _ALWAYS | own_users | own_network


def has_own_network(plan: RunPlan) -> bool:
    """Whether it gets a network namespace, and not the host's or another container's."""
    return plan.network.mode in ("none", "own")


class NamespaceDriver(GroupedDriver):
    """Containers by namespaces; see the module."""

    name = "container"

    def __init__(self, cache_directory: Path | None = None) -> None:
        """``cache_directory`` (host path) keeps compiled filters between processes; None compiles them anew in each."""
        self.cache_directory = cache_directory

    def probe(self) -> Probe:
        """Whether this user can make the namespaces, by making them once in a child."""
        return _probe()

    def start(
        self,
        plan: RunPlan,
        stdio: Stdio,
        *,
        sibling: bool = False,
        meanwhile: Callable[[Workload], None] | None = None,
        connect: Connect | None = None,
    ) -> Workload:
        """One clone3, two or three writes, one message; see :class:`Driver`."""
        if os.path.isdir(plan.root.memory_host_path):
            from bulle.isolation.namespaces import restoring  # few have memory to go on from

            if (place := restoring.memory_of(plan)) is not None:
                return restoring.start(plan, place, stdio, self.cache_directory, sibling=sibling, meanwhile=meanwhile, connect=connect)
        kit = launch.Kit.to_start(plan, stdio, self.cache_directory, own_processes=True)
        # The child makes its network namespace itself, which takes long, while its mounts are made here.
        flags = namespace_flags(plan) & ~CLONE_NEWNET | (CLONE_PARENT if sibling else 0)

        def begin() -> tuple[Workload, Channel]:
            taken = shell.take_shell()
            fits = not sibling and namespace_flags(plan) == SHELL_FLAGS and plan.oom_score_adj is None
            if taken is not None:
                fits = fits and (kit.emulator is None or taken.emulates)
                if fits and shell.send_errand(taken, plan, kit):
                    return taken.workload, taken.channel
                if not fits:
                    shell.discard(taken)
            return launch.fork(kit, flags, lambda channel: _child(plan, channel, kit.for_child()))

        return launch.start(kit, begin, lambda workload, channel: _prepare(plan, workload, channel, connect), meanwhile)

    @staticmethod
    def open_shell() -> None:
        """Make ready, in this process, for the next start; for a process that nobody waits for, and that has one thread."""
        shell.open_shell(SHELL_FLAGS, _enter)

    @staticmethod
    def close_shell() -> None:
        """Give a shell up: this process starts nothing by itself, and its children cannot wait for it."""
        if (unused := shell.take_shell()) is not None:
            shell.discard(unused)

    def execute(self, plan: RunPlan, pid: int, process: Process, stdio: Stdio) -> Workload:
        """Join every namespace of the container by its first process's pidfd, then fork once more to stand in its pid namespace."""
        try:
            pidfd = pidfd_open(pid)
        except ProcessLookupError as error:
            raise BulleError("the container is not running", "its first process ended", "start it first") from error
        try:
            kit = launch.Kit.to_join(plan, process, stdio, self.cache_directory)
            return launch.start(kit, lambda: launch.fork(kit, 0, lambda channel: _join(plan, channel, process, kit.for_child(), pidfd)))
        finally:
            os.close(pidfd)

    def find_processes_of(self, pids: Sequence[int]) -> dict[int, list[int]]:
        """Every process in the first one's pid namespace."""
        return processes_in_namespaces(pids)


def processes_in_namespaces(pids: Sequence[int]) -> dict[int, list[int]]:
    """Every process, ascending, that stands in the pid namespace of each of ``pids``."""
    found: dict[int, list[int]] = {pid: [] for pid in pids}
    wanted: dict[str, int] = {}
    for pid in pids:
        with suppress(OSError):
            wanted[os.readlink(f"/proc/{pid}/ns/pid")] = pid
    for name in sorted((int(name) for name in os.listdir("/proc") if name.isdigit()) if wanted else ()):
        with suppress(OSError):
            first = wanted.get(os.readlink(f"/proc/{name}/ns/pid"))
            if first is not None:
                found[first].append(name)
    return found


def _prepare(plan: RunPlan, workload: Workload, channel: Channel, connect: Connect | None) -> None:
    """What only the parent can do: id maps, mounts that the child's own namespace may not make, and its network."""
    user_namespace_fd = None
    if plan.security.user_namespace == "own":
        user_namespace.write_maps(workload.pid, plan.security.id_mappings, plan.security.group_mappings or plan.security.id_mappings)
        if os.geteuid() != 0:
            channel.send_descriptors([])
            return
        user_namespace_fd = os.open(f"/proc/{workload.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    connected = None
    try:
        if plan.network.mode == "own" and connect is not None and channel.receive_report() is not None:  # it stands in its network namespace
            connected = connect(workload.pid)
        mounts = root_filesystem.detached_mounts(plan, user_namespace_fd)
    finally:
        if user_namespace_fd is not None:
            os.close(user_namespace_fd)
    workload.notes += mounts.notes
    try:
        if connected is not None:
            workload.notes += connected()
        with suppress(BrokenPipeError, ConnectionResetError):  # the child failed first: its report says why
            channel.send_descriptors(mounts.descriptors())
    finally:
        mounts.close()


def _child(plan: RunPlan, channel: Channel, kit: launch.ChildKit) -> None:
    """In the new namespaces, still with the engine's memory: everything until execve."""
    if has_own_network(plan):
        namespaces.unshare(CLONE_NEWNET)
        loopback.bring_up()
    mount.mount(None, "/", flags=mount.MS_REC | mount.MS_SLAVE)
    _enter(plan, channel, kit)


def _enter(plan: RunPlan, channel: Channel, kit: launch.ChildKit) -> None:
    """From the bare namespaces to the command."""
    if plan.network.mode == "own":
        channel.report("network")
    namespaces.unshare(CLONE_NEWCGROUP)
    descriptors = channel.receive_descriptors()
    launch.hide()
    if plan.security.user_namespace == "own":
        user_namespace.become_root()
    if not descriptors:
        descriptors = rootless.detached_mounts(plan).descriptors()
    mounts = root_filesystem.DetachedMounts.from_descriptors(plan, descriptors)
    dev = inside.enter_root(plan, mounts, has_own_network(plan), own_ipc=True, controllers=kit.controllers, emulator=kit.emulator)
    socket.sethostname(plan.hostname)
    execution.become(plan.process, channel, kit, read_only_root=plan.root.read_only, dev=dev)


def _join(plan: RunPlan, channel: Channel, wanted: Process, kit: launch.ChildKit, pidfd: int) -> None:
    """The process in between: enters the namespaces and forks the one that the pid namespace counts, as a child of our own parent."""
    launch.hide()
    try:
        others = CLONE_NEWNET if plan.network.mode == "container" else 0
        namespaces.setns(pidfd, namespace_flags(plan) | others | CLONE_NEWCGROUP)
    except OSError as error:
        raise BulleError("the container's namespaces cannot be joined", os.strerror(error.errno or 0), "is it still running?") from error
    if plan.security.user_namespace == "own":
        user_namespace.become_root()
    pid, child_pidfd = namespaces.clone3(CLONE_PARENT)
    if pid:
        channel.report("process", pid=pid, descriptor=child_pidfd)
        os._exit(0)
    os.setsid()
    execution.become(wanted, channel, kit)


@cache
def _probe() -> Probe:
    features = {
        Feature.OWN_PROCESSES, Feature.OWN_NETWORK, Feature.OWN_USERS, Feature.OWN_HOSTNAME, Feature.VOLUMES, Feature.TMPFS, Feature.READ_ONLY_ROOT,
        Feature.TERMINAL, Feature.EXECUTE, Feature.INIT, Feature.HOST_NETWORK, Feature.EMULATION,
    }  # fmt: skip
    reason = _try_namespaces()
    if reason:
        mend = "run as root, or allow user namespaces: sysctl user.max_user_namespaces=10000 (and kernel.unprivileged_userns_clone=1 where it exists)"
        return Probe(False, reason, mend)
    controllers, why = available()
    notes = [f"no limits on resources: {why}"] if why else []
    features |= features_of(controllers)
    if os.geteuid() == 0:
        features.add(Feature.NETWORKS)
    if not (missing := delegated_group.unavailable(layout())):
        features.add(Feature.SYSTEM)
    else:
        notes.append(f"no system containers (--systemd): {missing}")
    if sized_layer.available():
        features.add(Feature.STORAGE_LIMIT)
    return Probe(True, features=frozenset(features), notes=tuple(notes))


def _try_namespaces() -> str:
    """Why a child cannot enter new namespaces and mount a proc there, or an empty string."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            namespaces.unshare(CLONE_NEWUSER | _ALWAYS | CLONE_NEWNET)
            inner = os.fork()
            if inner == 0:
                mount.mount(None, "/", flags=mount.MS_REC | mount.MS_SLAVE)
                os.close(inside.new_mount("proc", {}, 0))
                os._exit(0)
            if os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]):
                os.write(writing, b"a new proc cannot be mounted: parts of the host's /proc are hidden")
        except BaseException as error:  # noqa: BLE001 -- told to the parent
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    try:
        reason = os.read(reading, 4096).decode()
    finally:
        os.close(reading)
        os.waitpid(pid, 0)
    return reason
