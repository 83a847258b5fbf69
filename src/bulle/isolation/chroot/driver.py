"""The driver of the level ``chroot``: a private root filesystem and private mounts, on the host's processes, network and users.

With the right to mount, the root is the same overlay as a container's in a mount namespace of its own. Without it (root inside an ordinary
container) it is a plain chroot(2) into a private copy of the extracted layers, without /dev mounts, /proc or volumes: the probe says which. The
system call filter and the capability set are the container's, as far as they can be applied. What a private root cannot hold is listed in
docs/architecture.md. chroot(2)
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from bulle.errors import BulleError
from bulle.isolation import execution, inside, launch, root_filesystem, sized_layer
from bulle.isolation.channel import Channel
from bulle.isolation.control_group import available
from bulle.isolation.driver import Connect, Feature, Probe, Stdio, Workload
from bulle.isolation.grouped_driver import GroupedDriver, features_of
from bulle.linux import capabilities, mount, namespaces
from bulle.linux.namespaces import CLONE_NEWNS, CLONE_NEWUSER, CLONE_PARENT
from bulle.model.run_plan import Process, RunPlan

_ROOT_COPY = "copy"


class ChrootDriver(GroupedDriver):
    """Private roots; see the module."""

    name = "chroot"

    def __init__(self, cache_directory: Path | None = None) -> None:
        """``cache_directory`` (host path) keeps compiled filters between processes."""
        self.cache_directory = cache_directory

    def probe(self) -> Probe:
        """What this user may do: mounts, a bare chroot, or nothing."""
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
        """A mount namespace with the overlay, or a copy; see :class:`Driver`."""
        kit = launch.Kit.to_start(plan, stdio, self.cache_directory, own_processes=False)
        parent = CLONE_PARENT if sibling else 0
        if not _may_mount():

            def copy(_workload: Workload, channel: Channel) -> None:
                _copy_layers(plan)
                channel.send_descriptors([])

            return launch.start(
                kit, lambda: launch.fork(kit, parent, lambda channel: _child_in_copy(plan, channel, plan.process, kit.for_child())), copy, meanwhile
            )

        def prepare(workload: Workload, channel: Channel) -> None:
            mounts = root_filesystem.detached_mounts(plan, None)
            workload.notes += mounts.notes
            with suppress(BrokenPipeError, ConnectionResetError):  # the child failed first: its report says why
                channel.send_descriptors(mounts.descriptors())
            mounts.close()

        flags = CLONE_NEWNS | parent
        return launch.start(kit, lambda: launch.fork(kit, flags, lambda channel: _child(plan, channel, kit.for_child())), prepare, meanwhile)

    def execute(self, plan: RunPlan, pid: int, process: Process, stdio: Stdio) -> Workload:
        """One more process in the same private root."""
        kit = launch.Kit.to_join(plan, process, stdio, self.cache_directory)

        def child(channel: Channel) -> None:
            if _may_mount():
                _join(channel, process, kit.for_child(), pid)
            else:
                _child_in_copy(plan, channel, process, kit.for_child())

        def prepare(_workload: Workload, channel: Channel) -> None:
            if not _may_mount():
                channel.send_descriptors([])

        return launch.start(kit, lambda: launch.fork(kit, 0, child), prepare)

    def find_processes_of(self, pids: Sequence[int]) -> dict[int, list[int]]:
        """The first process's session, which its children inherit."""
        found: dict[int, list[int]] = {pid: [] for pid in pids}
        for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
            with suppress(OSError):
                if (leader := os.getsid(pid)) in found:
                    found[leader].append(pid)
        return found


def _child(plan: RunPlan, channel: Channel, kit: launch.ChildKit) -> None:
    """In a mount namespace of its own."""
    launch.hide()
    mount.mount(None, "/", flags=mount.MS_REC | mount.MS_SLAVE)
    mounts = root_filesystem.DetachedMounts.from_descriptors(plan, channel.receive_descriptors())
    interpreter = -1
    if kit.emulator is not None:
        from bulle.isolation import emulation  # the driver's process has imported it

        interpreter = emulation.open_interpreter(kit.emulator)
    dev = inside.enter_root(plan, mounts, own_network=False, own_ipc=False)
    if kit.emulator is not None:
        emulation.enter_users(kit.emulator, interpreter)
        dev = os.open("/dev", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    execution.become(plan.process, channel, kit, read_only_root=plan.root.read_only, dev=dev)


def _child_in_copy(plan: RunPlan, channel: Channel, wanted: Process, kit: launch.ChildKit) -> None:
    """Where nobody may mount: a plain chroot(2), once the copy is there."""
    launch.hide()
    channel.receive_descriptors()
    os.chroot(f"{plan.root.writable_host_path}/{_ROOT_COPY}")
    os.chdir("/")
    # Who may call chroot(2) leaves a root that is no mount.
    execution.become(wanted, channel, kit.without("CAP_SYS_CHROOT"))


def _join(channel: Channel, wanted: Process, kit: launch.ChildKit, pid: int) -> None:
    """In the mount namespace of the running workload, whose root is the private one."""
    launch.hide()
    pidfd = os.pidfd_open(pid)
    # Where programs are emulated, users are in a namespace of their own as well.
    users = 0 if namespaces.shares_namespaces(pid, CLONE_NEWUSER) else CLONE_NEWUSER
    namespaces.setns(pidfd, CLONE_NEWNS | users)
    os.close(pidfd)
    execution.become(wanted, channel, kit)


def _copy_layers(plan: RunPlan) -> None:
    """Stack extracted layers into one private directory, whiteouts applied, for a machine that lets nobody mount."""
    target = Path(plan.root.writable_host_path) / _ROOT_COPY
    if target.exists():
        return
    target.mkdir()
    for layer in plan.root.layers:
        if layer.kind != "directory":
            raise BulleError("the image cannot be copied", f"layer {layer.diff_id} is not extracted", "load the image again on this machine")
        _merge(Path(layer.host_path), target)
    for path in plan.root.host_binds:
        shutil.copytree(path, str(target) + path, symlinks=True, dirs_exist_ok=True)


def _merge(source: Path, target: Path) -> None:
    """Copy one directory of a layer over what is there; both sides are ours, and only names inside them are used."""
    for entry in os.scandir(source):
        there = target / entry.name
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            _remove(there)
        elif entry.is_dir(follow_symlinks=False):
            if there.is_symlink() or not there.is_dir() or _is_opaque(entry.path):
                _remove(there)
                there.mkdir()
            _merge(Path(entry.path), there)
            shutil.copystat(entry.path, there)
            with suppress(PermissionError):
                os.chown(there, status.st_uid, status.st_gid)
        else:
            _remove(there)
            if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
                shutil.copy2(entry.path, there, follow_symlinks=False)
                with suppress(PermissionError):
                    os.chown(there, status.st_uid, status.st_gid, follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        os.chmod(there, stat.S_IMODE(status.st_mode))


def _is_opaque(path: str) -> bool:
    for name in ("trusted.overlay.opaque", "user.overlay.opaque"):
        with suppress(OSError):
            return os.getxattr(path, name, follow_symlinks=False) == b"y"
    return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@cache
def _probe() -> Probe:
    always = {Feature.TERMINAL, Feature.EXECUTE, Feature.INIT, Feature.HOST_NETWORK}
    held = capabilities.names_of(capabilities.of_process()["CapEff"])
    if "CAP_SYS_CHROOT" not in held:
        return Probe(False, "chroot needs the capability CAP_SYS_CHROOT", "run as root")
    controllers, why = available()
    notes = [f"no limits on resources: {why}"] if why else []
    limits = features_of(controllers)
    if not _may_mount():
        notes.append("no right to mount: the root is a copy of the image, without /proc, /dev and volumes")
        return Probe(True, features=frozenset({Feature.EXECUTE, Feature.HOST_NETWORK} | limits), notes=tuple(notes))
    mounts = {Feature.VOLUMES, Feature.TMPFS, Feature.READ_ONLY_ROOT, Feature.EMULATION}
    if sized_layer.available():
        mounts.add(Feature.STORAGE_LIMIT)
    return Probe(True, features=frozenset(always | mounts | limits), notes=tuple(notes))


@cache
def _may_mount() -> bool:
    """By trying, in a child."""
    pid = os.fork()
    if pid == 0:
        try:
            namespaces.unshare(CLONE_NEWNS)
            mount.mount(None, "/", flags=mount.MS_REC | mount.MS_SLAVE)
            os._exit(0)
        except BaseException:  # noqa: BLE001 -- the exit code tells
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
