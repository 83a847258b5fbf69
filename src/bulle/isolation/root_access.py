"""Ways into a container's root filesystem from outside, for verbs that read or write it without running anything in it.

Each is called in a forked child of the engine and returns one descriptor, below which everything is opened (:func:`open_below`). The child stands in
the container's user namespace, so that ids are those that the container sees, and never in its mount namespace: nothing of the container is ever
executed or loaded. What is mounted here is seen by nobody else and goes with the child. setns(2), openat2(2)
"""

from __future__ import annotations

import array  # noqa: F401 -- socket.send_fds imports it, which must not happen inside a container's mount namespace
import os
import socket
from collections.abc import Callable

from msgspec.structs import replace

from bulle.errors import BulleError, Unavailable
from bulle.isolation import inside, overlay, rootless, sized_layer
from bulle.isolation.root_filesystem import detached_mounts
from bulle.linux import mount, namespaces, process, user_namespace
from bulle.linux.fork import fork
from bulle.linux.namespaces import CLONE_NEWNS, CLONE_NEWUSER
from bulle.model.run_plan import RunPlan

_ROOT_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_RESOLVE = process.RESOLVE_IN_ROOT | process.RESOLVE_NO_MAGICLINKS
_COPY = "copy"  # what a private root without the right to mount is


def open_below(root: int, path: str | bytes, flags: int) -> int:
    """Open a container path; symlinks and ``..`` stay below the descriptor of its root, magic links of /proc are refused."""
    return process.openat2(root, path, flags, _RESOLVE)


def running_root(plan: RunPlan, pidfd: int) -> int:
    """The root of the running container whose first process is behind ``pidfd``, with all that is mounted in it.

    This process becomes root of the container's user namespace, where it has one.
    """
    process.prctl(process.PR_SET_DUMPABLE, 0)
    copy = root_copy(plan)
    if copy is not None:  # then it stands in the host's mount namespace, whose root is the host's
        return os.open(copy, _ROOT_FLAGS)
    own_users = plan.security.user_namespace == "own"
    root = _root_of_namespace(pidfd, CLONE_NEWNS | (CLONE_NEWUSER if own_users else 0))
    if own_users:
        namespaces.setns(pidfd, CLONE_NEWUSER)
        user_namespace.become_root()
    return root


def _root_of_namespace(pidfd: int, flags: int) -> int:
    """The descriptor of ``/`` in another mount namespace, fetched by a child that goes there and does nothing else."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = fork()
    if pid == 0:
        try:
            namespaces.setns(pidfd, flags)
            socket.send_fds(theirs, [b"."], [os.open("/", _ROOT_FLAGS)])
        except OSError as error:
            theirs.send(os.strerror(error.errno or 0).encode())
        finally:
            os._exit(0)
    theirs.close()
    with ours:
        word, descriptors, _flags, _address = socket.recv_fds(ours, 256, 1)
    os.waitpid(pid, 0)
    if not descriptors:
        raise BulleError("the container's root filesystem cannot be reached", word.decode() or "it has just ended", "is it still running?")
    return descriptors[0]


def stopped_root(plan: RunPlan, mount_layers: Callable[[], None], *, rootless_user: bool) -> int:
    """The root of a container that does not run, put together as for a start: layers, writable layer, volumes; no tmpfs, /proc, /sys and /dev.

    The caller holds the container's lock; a ``rootless_user`` is root of a user namespace with the container's ids. ``mount_layers`` is called in
    a mount namespace of this process's own.
    """
    copy = root_copy(plan)
    if copy is not None:
        return os.open(copy, _ROOT_FLAGS)
    _own_mounts()
    mount_layers()
    # What is marked volatile cannot be mounted a second time.
    plan = replace(plan, root=replace(plan.root, volatile=False))
    mounts = rootless.detached_mounts(plan) if rootless_user else detached_mounts(plan, None)
    if mounts.notes:
        raise Unavailable("the container's writable layer is not there while it does not run", mounts.notes[0], "start the container first")
    root = inside.attach_root(mounts)
    inside.attach_existing(plan, root, mounts)
    inside.attach_volumes(plan, root, mounts)
    if plan.root.read_only:
        mount.mount_setattr(root, "", mount.AT_EMPTY_PATH, mount.MOUNT_ATTR_RDONLY)
    return root


def merged_view(plan: RunPlan, mount_layers: Callable[[], None], *, rootless_user: bool) -> int:
    """What the layers and the writable layer come to now, read-only, with nothing mounted in it; the container may run meanwhile.

    The same conditions as for :func:`stopped_root`, but for the lock.
    """
    copy = root_copy(plan)
    if copy is not None:
        return os.open(copy, _ROOT_FLAGS)
    _own_mounts()
    mount_layers()
    if plan.root.size_bytes:
        sized_layer.attach(plan)
    return view_of([layer.host_path for layer in plan.root.layers] + [f"{plan.root.writable_host_path}/upper"], rootless_user=rootless_user)


def view_of(directories: list[str], *, rootless_user: bool = False) -> int:
    """A detached read-only overlay of directories (host paths), the lowest first; in a mount namespace of this process's own."""
    if len(directories) == 1:
        view = mount.open_tree(mount.AT_FDCWD, directories[0])
        mount.mount_setattr(view, "", mount.AT_EMPTY_PATH, mount.MOUNT_ATTR_RDONLY | mount.MOUNT_ATTR_NODEV | mount.MOUNT_ATTR_NOSUID)
        return view
    kind = overlay.Kind(unprivileged=rootless_user, attributes=mount.MOUNT_ATTR_RDONLY | mount.MOUNT_ATTR_NODEV)
    try:
        return overlay.from_paths(kind, directories[::-1])
    except OSError as error:
        raise Unavailable("the layers cannot be shown together", f"overlay: {os.strerror(error.errno or 0)}", "see `bulle doctor`") from error


def root_copy(plan: RunPlan) -> str | None:
    """The host path of a root that is a copy of the image, which a private root has where nobody may mount; None for an overlay."""
    path = f"{plan.root.writable_host_path}/{_COPY}"
    return path if os.path.isdir(path) else None


def require_writable_layer(plan: RunPlan, pid: int) -> None:
    """Raise Unavailable where the running container whose first process is ``pid`` keeps its writable layer in memory, so that nobody can look at it.

    An overlay has the size of the file system that its upper directory is on. statfs(2)
    """
    if plan.root.size_bytes:
        return  # never in memory
    try:
        shown, kept = (os.statvfs(path) for path in (f"/proc/{pid}/root", f"{plan.root.writable_host_path}/upper"))
    except OSError:
        return  # it has just ended, or is an ordinary user's, whose layer is never in memory
    if shown.f_blocks * shown.f_frsize != kept.f_blocks * kept.f_frsize:
        why = "the file system under BULLE_HOME cannot hold it, so it is kept in memory"
        mend = "copy files with `bulle cp`, or move BULLE_HOME to ext4, xfs or btrfs"
        raise Unavailable("the container's writable layer cannot be read", why, mend)


def _own_mounts() -> None:
    try:
        namespaces.unshare(CLONE_NEWNS)
        mount.mount(None, "/", flags=mount.MS_REC | mount.MS_SLAVE)
    except OSError as error:
        why = f"no right to mount: {os.strerror(error.errno or 0)}"
        raise Unavailable("the container's root filesystem cannot be put together", why, "start the container first") from error
