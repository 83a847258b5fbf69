"""A container that goes on from kept memory: CRIU makes its namespaces and processes, this module all that is outside of them.

The driver's process makes the root as for any start and a *restorer*, which becomes CRIU in the container's control group, in a mount namespace where
that root is. CRIU stops twice: when the namespaces are there, for their network, and before the processes go on, for the memory to be used up: it
fits the disk of that moment alone. The first process becomes a child of the restorer's parent, as that of any start. criu(8)
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from bulle.errors import BulleError
from bulle.isolation import checkpointing, inside, launch, root_filesystem
from bulle.isolation.channel import Channel
from bulle.isolation.driver import Connect, Stdio, Workload
from bulle.linux import loopback, mount, namespaces, process, user_namespace
from bulle.linux.fork import fork
from bulle.model.run_plan import RunPlan

_HERE = "/tmp"  # where only the restorer sees what it puts there


def memory_of(plan: RunPlan) -> Path | None:
    """Where the memory is that the next start of this plan goes on from; what is left of one that was used is removed."""
    place = Path(plan.root.memory_host_path)
    if not place.is_dir():
        return None
    if not (place / checkpointing.KNOWN).exists():
        shutil.rmtree(place, ignore_errors=True)
        return None
    return place


def start(
    plan: RunPlan,
    place: Path,
    stdio: Stdio,
    cache_directory: Path | None,
    *,
    sibling: bool,
    meanwhile: Callable[[Workload], None] | None,
    connect: Connect | None,
) -> Workload:
    """Have the processes go on whose memory is in a directory (host path); as a driver's start. Where that fails the next start begins anew."""
    try:
        known = checkpointing.decoded((place / checkpointing.KNOWN).read_bytes())
        checkpointing.require_fitting(known, plan)
        return _start(plan, place, known, stdio, cache_directory, sibling=sibling, meanwhile=meanwhile, connect=connect)
    finally:
        (place / checkpointing.KNOWN).unlink(missing_ok=True)
        shutil.rmtree(place, ignore_errors=True)


def _start(
    plan: RunPlan,
    place: Path,
    known: checkpointing.Known,
    stdio: Stdio,
    cache_directory: Path | None,
    *,
    sibling: bool,
    meanwhile: Callable[[Workload], None] | None,
    connect: Connect | None,
) -> Workload:
    kit = launch.Kit.to_start(plan, stdio, cache_directory, own_processes=True)
    found: list[Workload] = []
    try:
        with checkpointing.Conversation() as conversation:
            flags = namespaces.CLONE_PARENT if sibling else 0
            restorer, channel = launch.fork(kit, flags, lambda line: _restorer(plan, place, known, conversation, line, stdio, kit.for_child()))
            ticks = process.start_ticks(restorer.pid)
            try:
                _prepare(plan, channel)
                _lead(plan, place, conversation, restorer, found, meanwhile, connect)
            except BaseException:
                conversation.close()
                launch.abandon(restorer)
                raise
            finally:
                channel.close()
            _end(restorer, found, place, ticks, sibling=sibling)
    except BaseException:
        for workload in found:
            with suppress(ProcessLookupError):
                process.pidfd_send_signal(workload.pidfd, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(workload.pid, 0)
            os.close(workload.pidfd)
        kit.group.kill()
        kit.group.remove()
        raise
    finally:
        kit.close()
    found[0].notes[:0] = kit.group.notes
    return found[0]


def _lead(
    plan: RunPlan,
    place: Path,
    conversation: checkpointing.Conversation,
    restorer: Workload,
    found: list[Workload],
    meanwhile: Callable[[Workload], None] | None,
    connect: Connect | None,
) -> None:
    def namespaces_are_there(pid: int) -> None:
        workload = Workload(pid, process.pidfd_open(pid))
        found.append(workload)
        _inside(workload.pidfd, namespaces.CLONE_NEWNET, lambda: _make_network(plan), "its loopback interface does not come up")
        if plan.network.mode == "own" and connect is not None:
            workload.notes += connect(pid)()
        if meanwhile is not None:
            meanwhile(workload)

    def about_to_go_on(_pid: int) -> None:
        if plan.root.read_only:
            _inside(found[0].pidfd, namespaces.CLONE_NEWNS, inside.make_root_read_only, "its root does not become read-only")
        os.unlink(place / checkpointing.KNOWN)

    conversation.lead(restorer.pidfd, {"setup-namespaces": namespaces_are_there, "post-restore": about_to_go_on})


def _end(restorer: Workload, found: list[Workload], place: Path, ticks: int, *, sibling: bool) -> None:
    """CRIU has ended: it is reaped here, or by the parent of both."""
    os.close(restorer.pidfd)
    status = process.zombie_status(restorer.pid, ticks) if sibling else os.waitpid(restorer.pid, 0)[1]
    if status or not found:
        why = checkpointing.complaint(place)
        raise BulleError("the processes could not go on from their memory", why, "take its files alone, with --disk-only")
    found[0].helper = restorer.pid if sibling else 0


def _prepare(plan: RunPlan, channel: Channel) -> None:
    """Make the root, mapped to the ids that its users will have, and what CRIU needs to find in it."""
    with _mapped(plan) as user_namespace_fd:
        mounts = root_filesystem.detached_mounts(plan, user_namespace_fd)
    try:
        _make_stands(plan, mounts.root)
        with suppress(BrokenPipeError, ConnectionResetError):  # the child failed first: its report says why
            channel.send_descriptors(mounts.descriptors())
    finally:
        mounts.close()
    while channel.receive_report() is not None:
        pass  # an error is raised; it becomes CRIU, and the line closes


@contextlib.contextmanager
def _mapped(plan: RunPlan) -> Iterator[int]:
    """A user namespace with the container's maps, that lasts for the block."""
    pid, pidfd = namespaces.clone3(namespaces.CLONE_NEWUSER)
    if pid == 0:
        process.prctl(process.PR_SET_PDEATHSIG, signal.SIGKILL)
        while True:
            signal.pause()
    descriptor = -1
    try:
        user_namespace.write_maps(pid, plan.security.id_mappings, plan.security.group_mappings or plan.security.id_mappings)
        descriptor = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        yield descriptor
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(pidfd)
        if descriptor >= 0:
            os.close(descriptor)


def _make_stands(plan: RunPlan, root: int) -> None:
    """What is mounted upon in the root, which a layer of a container's changes leaves out."""
    files = [f"/etc/{os.path.basename(path)}" for path in root_filesystem.identity_files(plan)]
    with root_filesystem.acting_as_container_root(plan):
        for path in ("/dev", "/proc", "/sys", *(one.container_path for one in plan.mounts)):
            os.close(inside.make_directory(root, path))
        for path in files:
            parent = inside.make_directory(root, os.path.dirname(path))
            with suppress(FileExistsError):
                flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
                os.close(os.open(os.path.basename(path), flags, 0o644, dir_fd=parent))
            os.close(parent)


def _inside(pidfd: int, namespace: int, act: Callable[[], None], complaint: str) -> None:
    """What a container's child does itself at a start, done by a process that joins its namespaces."""
    child = fork()
    if child == 0:
        with suppress(BaseException):
            namespaces.setns(pidfd, namespaces.CLONE_NEWUSER | namespace)
            act()
            os._exit(0)
        os._exit(1)
    if os.waitpid(child, 0)[1]:
        raise BulleError("the processes could not go on from their memory", complaint, "see `bulle doctor`")


def _make_network(plan: RunPlan) -> None:
    loopback.bring_up()
    inside.open_network(plan, os.open("/proc", os.O_PATH | os.O_DIRECTORY))


def _restorer(
    plan: RunPlan, place: Path, known: checkpointing.Known, conversation: checkpointing.Conversation, channel: Channel, stdio: Stdio,
    kit: launch.ChildKit,
) -> None:  # fmt: skip
    """The child that becomes CRIU; it stands in the container's control group."""
    namespaces.unshare(namespaces.CLONE_NEWCGROUP)
    mounts = root_filesystem.DetachedMounts.from_descriptors(plan, channel.receive_descriptors())
    names = [f"/etc/{os.path.basename(path)}" for path in root_filesystem.identity_files(plan)]
    files = dict(zip(names, mounts.files, strict=True))
    ends = (stdio.stdin, stdio.stdout, stdio.stderr)
    inherited = [(os.dup(end), name) for end, name in zip(ends, known.streams, strict=True) if name]
    program = os.readlink(place / checkpointing.PROGRAM)
    directory = os.open(place, os.O_RDONLY | os.O_DIRECTORY)

    def prepare() -> Sequence[str]:
        os.mkdir(f"{_HERE}/root")
        mount.attach_mount(mounts.root, f"{_HERE}/root")
        words = ["--root", f"{_HERE}/root"]
        for number, (path, what) in enumerate(known.mounts):
            kind, _, name = what.partition(" ")
            source = name if kind == "device" else f"{_HERE}/{number}"
            if kind == "identity":
                os.close(os.open(source, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
                mount.attach_mount(files[name], source)
            elif kind != "device":
                os.mkdir(source)
                attributes = inside.LOCKED_DOWN | mount.MOUNT_ATTR_RDONLY
                mount.attach_mount(inside.new_mount(kind, {}, attributes, tuple(name.split(",")) if name else ()), source)
            words.append(f"--external=mnt[{path.strip('/')}]:{source}")
        return [*words, *(word for end, name in inherited for word in ("--inherit-fd", f"fd[{end}]:{name}"))]

    line = [program, "restore", "--restore-detached", "--restore-sibling"]
    checkpointing.become(line, directory, conversation, prepare, [end for end, _name in inherited])
