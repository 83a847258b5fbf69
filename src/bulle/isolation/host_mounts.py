"""What of the host a container shows, as detached mounts: directories and files, volumes, the layers of images.

Made by the driver's process, or for an ordinary user by the child in its user namespace. With a user namespace's descriptor they are id-mapped: on
disk ids are those that the container sees, so that what its root makes belongs to root and many containers share one volume. Every path is resolved
once and then used by descriptor; a path inside a volume or image never leads out of it. mount_setattr(2), openat2(2)
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence

from bulle.errors import InvalidInput, NotFound, Unavailable
from bulle.isolation import overlay, sized_file_system
from bulle.linux import mount, process
from bulle.model.run_plan import Mount, RunPlan

DATA = "_data"
"""The directory of a volume's files, below its own."""

DISK = "disk"
"""The file beside it, where a volume is of a limited size."""

_HERE = mount.AT_EMPTY_PATH
_ALL = mount.AT_EMPTY_PATH | mount.AT_RECURSIVE
_CLONE = mount.OPEN_TREE_CLONE | mount.OPEN_TREE_CLOEXEC | mount.AT_EMPTY_PATH
_INSIDE = process.RESOLVE_IN_ROOT | process.RESOLVE_NO_MAGICLINKS
_NOT_MAPPABLE = (errno.EINVAL, errno.EPERM)


def detached(plan: RunPlan, wanted: Mount, user_namespace_fd: int | None, notes: list[str], *, unprivileged: bool = False) -> int:
    """One mount of the plan that is not memory of its own, detached; id-mapped to the given user namespace.

    An ``unprivileged`` caller is root of an ordinary user's namespace. Raises NotFound for what is not there, InvalidInput, Unavailable.
    """
    with contextlib.ExitStack() as stack:
        if wanted.kind == "image":
            whole = _image(stack, plan, wanted, user_namespace_fd, unprivileged)
            return _part(plan, whole, lambda base: _below(base, wanted)) if wanted.subpath else os.dup(whole)
        if wanted.size_bytes:
            whole = sized_file_system.detached(f"{wanted.host_path}/{DISK}", f"volume {wanted.volume}", "give the machine loop devices and ext4")
            stack.callback(os.close, whole)
            descriptor = _part(plan, whole, lambda base: _below(_data(stack, base), wanted))
        else:
            origin = _opened(wanted)
            stack.callback(os.close, origin)
            if wanted.subpath:
                origin = _below(origin, wanted)
                stack.callback(os.close, origin)
            if "slave" in wanted.propagation:
                _require_propagation(origin, wanted)
            descriptor = mount.open_tree(origin, "", _CLONE | (0 if wanted.recursive == "disabled" else mount.AT_RECURSIVE))
    return _dressed(descriptor, wanted, user_namespace_fd, notes)


def bind(host_path: str, read_only: bool, user_namespace_fd: int | None, notes: list[str]) -> int:
    """A detached recursive copy of what stands at a host path."""
    wanted = Mount("bind", "", host_path, read_only)
    origin = os.open(host_path, os.O_PATH | os.O_CLOEXEC)
    try:
        descriptor = mount.open_tree(origin, "", _CLONE | mount.AT_RECURSIVE)
    finally:
        os.close(origin)
    return _dressed(descriptor, wanted, user_namespace_fd, notes)


def layer(stack: contextlib.ExitStack, host_path: str, user_namespace_fd: int | None) -> int:
    """A detached read-only copy of a layer of an image; ``stack`` closes it."""
    descriptor = mount.open_tree(mount.AT_FDCWD, host_path)
    stack.callback(os.close, descriptor)
    attributes = mount.MOUNT_ATTR_RDONLY | (mount.MOUNT_ATTR_IDMAP if user_namespace_fd is not None else 0)
    try:
        mount.mount_setattr(descriptor, "", _HERE, attributes, 0, mount.MS_PRIVATE, user_namespace_fd or 0)
    except OSError as error:
        if error.errno == errno.EINVAL and user_namespace_fd is not None:
            raise Unavailable(
                "this kernel or file system cannot map the ids of an image layer",
                f"mount_setattr on {host_path}: {error.strerror}",
                "use --userns=host, --isolation chroot, or a kernel of 5.19 or newer with BULLE_HOME on ext4, xfs or btrfs",
            ) from error
        raise
    return descriptor


@contextlib.contextmanager
def attached(plan: RunPlan, descriptors: Sequence[int]) -> Iterator[int]:
    """Copies of detached mounts, attached for a moment in this process's private mount namespace: for kernels that refuse detached ones.

    Gives the descriptor of a directory in which they stand by their numbers.
    """
    stage = f"{plan.state_host_path}/stage"
    with contextlib.ExitStack() as undo:
        os.makedirs(stage, mode=0o700, exist_ok=True)
        for number, descriptor in enumerate(descriptors):
            path = f"{stage}/{number}"
            os.makedirs(path, mode=0o700, exist_ok=True)
            mount.attach_mount(_copy(undo, descriptor), path)
            undo.callback(mount.umount, path, mount.MNT_DETACH)
        here = os.open(stage, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        undo.callback(os.close, here)
        yield here


def is_directory(descriptor: int) -> bool:
    """Whether the detached mount is a directory (a file is bound on a file)."""
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


def _opened(wanted: Mount) -> int:
    try:
        return os.open(wanted.host_path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError as error:
        if wanted.volume:
            mend = f"remove the volume with `bulle volume rm {wanted.volume}`"
            raise NotFound(f"the files of volume {wanted.volume} are gone", f"{wanted.host_path} does not exist", mend) from error
        raise NotFound(f"the volume's source {wanted.host_path} does not exist", "", "create it first") from error


def _below(origin: int, wanted: Mount) -> int:
    """What stands at a path in a volume or image ("": all of it); its links lead nowhere else."""
    what = f"volume {wanted.volume}" if wanted.volume else f"image {wanted.image}"
    try:
        return process.openat2(origin, wanted.subpath or ".", os.O_PATH, _INSIDE | process.RESOLVE_NO_XDEV)
    except FileNotFoundError as error:
        raise NotFound(f"{wanted.subpath!r} does not exist in {what}", "", "make it first, or mount the whole") from error
    except OSError as error:
        raise InvalidInput(f"{wanted.subpath!r} cannot be reached in {what}", os.strerror(error.errno or 0), "use another path") from error


def _data(stack: contextlib.ExitStack, base: int) -> int:
    """The directory of a volume's files, below the root of its own file system."""
    descriptor = process.openat2(base, DATA, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, process.RESOLVE_BENEATH)
    stack.callback(os.close, descriptor)
    return descriptor


def _part(plan: RunPlan, whole: int, resolve: Callable[[int], int]) -> int:
    """A detached copy of what ``resolve`` finds below a detached mount."""
    with contextlib.ExitStack() as stack:
        origin = resolve(whole)
        stack.callback(os.close, origin)
        try:
            return mount.open_tree(origin, "", _CLONE)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        # Kernels before 6.15 copy only what is attached.
        base = os.open("0", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=stack.enter_context(attached(plan, [whole])))
        stack.callback(os.close, base)
        origin = resolve(base)
        stack.callback(os.close, origin)
        return mount.open_tree(origin, "", _CLONE)


def _copy(stack: contextlib.ExitStack, descriptor: int) -> int:
    """A copy to attach, since what was attached once cannot be attached again; the mount itself where the kernel copies nothing that is detached."""
    try:
        copy = mount.open_tree(descriptor, "", _CLONE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return descriptor
    stack.callback(os.close, copy)
    return copy


def _dressed(descriptor: int, wanted: Mount, user_namespace_fd: int | None, notes: list[str]) -> int:
    try:
        _dress(descriptor, wanted, user_namespace_fd, notes)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _dress(descriptor: int, wanted: Mount, user_namespace_fd: int | None, notes: list[str]) -> None:
    """Give a detached copy its attributes: read-only, private or slave, without devices, mapped."""
    attributes = 0
    if wanted.read_only and wanted.recursive != "writable":
        attributes = mount.MOUNT_ATTR_RDONLY
    if user_namespace_fd is not None and is_directory(descriptor):
        # Container root would be their owner; no list of allowed devices guards a container that can make none.
        attributes |= mount.MOUNT_ATTR_NODEV
    propagation = mount.MS_SLAVE if "slave" in wanted.propagation else mount.MS_PRIVATE
    mount.mount_setattr(descriptor, "", _ALL, attributes, 0, propagation)
    if wanted.read_only and wanted.recursive == "writable":
        mount.mount_setattr(descriptor, "", _HERE, mount.MOUNT_ATTR_RDONLY)
    if user_namespace_fd is not None:
        _map(descriptor, wanted, user_namespace_fd, notes)


def _map(descriptor: int, wanted: Mount, user_namespace_fd: int, notes: list[str]) -> None:
    """Show ids on disk as the container's own: everywhere, else where the mount begins, else not at all, which is noted."""
    consequence = "belong to nobody (65534) inside the container, which can change only what everybody may; use --userns=host to have their owners"
    for flags, note in (
        (_ALL, ""),
        (_HERE, f"{wanted.host_path}: a file system mounted below it cannot map ids: files there {consequence}"),
    ):
        try:
            mount.mount_setattr(descriptor, "", flags, mount.MOUNT_ATTR_IDMAP, 0, 0, user_namespace_fd)
        except OSError as error:
            if error.errno not in _NOT_MAPPABLE:
                raise
            continue
        if note:
            notes.append(note)
        return
    notes.append(f"{wanted.host_path}: its file system cannot map ids: files there {consequence}")


def _require_propagation(origin: int, wanted: Mount) -> None:
    """Raise InvalidInput where no later mount of the host can arrive, as Docker does."""
    with open(f"/proc/self/fdinfo/{origin}") as file:
        identifier = next((line.split()[1] for line in file if line.startswith("mnt_id:")), "")
    with open("/proc/self/mountinfo") as file:
        for line in file:
            fields = line.split()
            if fields[0] == identifier:
                if any(one.startswith(("shared:", "master:")) for one in fields[6 : fields.index("-")]):
                    return
                where = f"path {wanted.host_path} is mounted on {fields[4]}, but that is not a shared or slave mount"
                mend = f"use rprivate, or `mount --make-shared {fields[4]}` before the first command of Bulle"
                raise InvalidInput(f"propagation {wanted.propagation} is not possible", where, mend)


def _image(stack: contextlib.ExitStack, plan: RunPlan, wanted: Mount, user_namespace_fd: int | None, unprivileged: bool) -> int:
    """The files of an image, read-only and detached."""
    paths = list(dict.fromkeys(reversed(wanted.layer_host_paths)))
    attributes = mount.MOUNT_ATTR_RDONLY | mount.MOUNT_ATTR_NODEV
    lowers = [layer(stack, path, user_namespace_fd) for path in paths]
    if len(lowers) == 1:
        mount.mount_setattr(lowers[0], "", _HERE, attributes)
        return lowers[0]
    kind = overlay.Kind(unprivileged=unprivileged, attributes=attributes)
    made = overlay.from_descriptors(kind, lowers)
    if made is None:
        with attached(plan, lowers) as here:
            made = overlay.from_paths(kind, [f"/proc/self/fd/{here}/{number}" for number in range(len(lowers))])
    stack.callback(os.close, made)
    return made
