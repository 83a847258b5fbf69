"""The container's root filesystem as detached mounts, made by the driver's process in the initial user namespace.

One overlay of read-only layers and a writable directory; with an id-mapped copy of each where the container has a user namespace of its own, so
that ids on disk stay as the image says and nothing is ever chowned. The result is a list of descriptors in a fixed order (:class:`DetachedMounts`),
which the child attaches. Rootless containers do not come here: their overlay is made inside (``inside.py``). Overlay documentation,
mount_setattr(2)
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from bulle.errors import BulleError, InvalidInput
from bulle.isolation import host_mounts, overlay, sized_layer
from bulle.linux import libc, mount, process
from bulle.model.run_plan import RunPlan


@dataclass
class DetachedMounts:
    """Descriptors of detached mounts, owned by whoever holds this value.

    ``root`` is the overlay, ``binds`` the host directories that the image shows, ``files`` the container's hostname, hosts and resolv.conf,
    ``volumes`` one per mount of the plan that is not memory of its own, in the plan's order.
    """

    root: int = -1
    binds: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    volumes: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def descriptors(self) -> list[int]:
        """All of them, in the order in which :func:`from_descriptors` takes them apart."""
        return [self.root, *self.binds, *self.files, *self.volumes]

    @classmethod
    def from_descriptors(cls, plan: RunPlan, descriptors: list[int]) -> DetachedMounts:
        """What the child received, by the plan that both sides hold."""
        binds = 1 + len(plan.root.host_binds)
        files = binds + len(identity_files(plan))
        return cls(descriptors[0], descriptors[1:binds], descriptors[binds:files], descriptors[files:])

    def close(self) -> None:
        """Close all descriptors; what no one attached vanishes."""
        for descriptor in self.descriptors():
            if descriptor >= 0:
                os.close(descriptor)


def identity_files(plan: RunPlan) -> list[str]:
    """Host paths of the files that the engine wrote for /etc: decided by the plan alone, since driver and child must agree."""
    names = ["hosts"]
    if plan.isolation != "chroot":
        names.append("hostname")
    if plan.network.mode != "none":
        names.append("resolv.conf")
    directory = plan.state_host_path
    if plan.network.mode == "container":  # whoever shares a network shares its names
        directory = f"{os.path.dirname(directory)}/{plan.network.container_id}"
    return [f"{directory}/{name}" for name in names]


def detached_mounts(plan: RunPlan, user_namespace_fd: int | None) -> DetachedMounts:
    """Every mount of the plan that must be made on the host's side; id-mapped to the given user namespace, or with the host's ids for None."""
    mounts = DetachedMounts()
    try:
        mounts.root = _overlay(plan, user_namespace_fd, mounts.notes)
        for path in plan.root.host_binds:
            mounts.binds.append(host_mounts.bind(path, True, user_namespace_fd, mounts.notes))
        for path in identity_files(plan):
            mounts.files.append(host_mounts.bind(path, False, user_namespace_fd, []))
        for wanted in plan.mounts:
            if wanted.kind != "tmpfs":
                mounts.volumes.append(host_mounts.detached(plan, wanted, user_namespace_fd, mounts.notes))
    except BaseException:
        mounts.close()
        raise
    return mounts


def match_root(plan: RunPlan, upper: str) -> None:
    """Give the upper directory the mode and owner of the topmost layer's root: it is the upper's that overlay shows for ``/``."""
    wanted, found = os.stat(plan.root.layers[-1].host_path), os.stat(upper)
    if (wanted.st_uid, wanted.st_gid) != (found.st_uid, found.st_gid):
        os.chown(upper, wanted.st_uid, wanted.st_gid)
    if stat.S_IMODE(wanted.st_mode) != stat.S_IMODE(found.st_mode):
        os.chmod(upper, stat.S_IMODE(wanted.st_mode))


def require_layers(layers: Sequence[object]) -> None:
    """Raise InvalidInput where a root would be made of nothing."""
    if not layers:
        raise InvalidInput("the image has no layers", "an empty root filesystem holds nothing to run", "use an image with at least one layer")


def _overlay(plan: RunPlan, user_namespace_fd: int | None, notes: list[str]) -> int:
    """The detached overlay. Its upper directory falls back to memory where the file system under it cannot carry one."""
    require_layers(plan.root.lower_host_paths)
    try:
        return _overlay_in_place(plan, user_namespace_fd)
    except OSError as error:
        # EINVAL: no idmap, no xattrs or no O_TMPFILE there (overlay on overlay, NFS, FUSE); a plain error is not hidden.
        if not plan.root.size_bytes and error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        first = error
    try:
        if plan.root.size_bytes:
            return _overlay_in_place(plan, user_namespace_fd, full=True)
        with contextlib.ExitStack() as stack:
            memory = _memory_directory(stack)
            with acting_as_container_root(plan if user_namespace_fd is not None else None):
                descriptor = _overlay_on(stack, plan, memory, user_namespace_fd)
    except OSError:
        raise BulleError("the root filesystem could not be mounted", str(first), "see `bulle doctor`") from first
    notes.append(
        "the file system under BULLE_HOME cannot hold a container's writable layer, so it is kept in memory and lost when the container stops"
    )
    return descriptor


def _overlay_in_place(plan: RunPlan, user_namespace_fd: int | None, *, full: bool = False) -> int:
    """With the writable layer where it belongs; where that is of a limited size and ``full``, overlay gets the room that is kept for it."""
    with contextlib.ExitStack() as stack:
        writable: str | int = plan.root.writable_host_path
        if plan.root.size_bytes:
            writable = sized_layer.detached(plan)
            stack.callback(os.close, writable)
        match_root(plan, f"/proc/self/fd/{writable}/upper" if isinstance(writable, int) else f"{writable}/upper")
        with acting_as_container_root(plan if user_namespace_fd is not None else None):
            if not full:
                return _overlay_on(stack, plan, writable, user_namespace_fd)
            assert isinstance(writable, int)
            with sized_layer.room_for_work(writable):
                return _overlay_on(stack, plan, writable, user_namespace_fd)


def _overlay_on(stack: contextlib.ExitStack, plan: RunPlan, writable: str | int, user_namespace_fd: int | None) -> int:
    # Each time anew: kernels before 6.15 attach a mount once only.
    lowers = [host_mounts.layer(stack, host_path, user_namespace_fd) for host_path in plan.root.lower_host_paths]
    if isinstance(writable, str):
        writable_fd = mount.open_tree(mount.AT_FDCWD, writable)
        stack.callback(os.close, writable_fd)
    else:
        writable_fd = writable
    if user_namespace_fd is not None:
        mount.mount_setattr(writable_fd, "", mount.AT_EMPTY_PATH, mount.MOUNT_ATTR_IDMAP, 0, mount.MS_PRIVATE, user_namespace_fd)
    directories = {}
    for key, name in (("upperdir", "upper"), ("workdir", "work")):
        directories[key] = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=writable_fd)
        stack.callback(os.close, directories[key])
    kind = overlay.Kind(volatile=plan.root.volatile, attributes=_root_attributes(plan))
    made = overlay.from_descriptors(kind, lowers, directories)
    if made is None:
        with host_mounts.attached(plan, [*lowers, writable_fd]) as here:
            paths = [f"/proc/self/fd/{here}/{number}" for number in range(len(lowers) + 1)]
            made = overlay.from_paths(kind, paths[:-1], {"upperdir": f"{paths[-1]}/upper", "workdir": f"{paths[-1]}/work"})
    return _checked(made)


def _root_attributes(plan: RunPlan) -> int:
    """Device nodes that an image brings open nothing: what a container may use stands in its /dev, a mount of its own. Privileged ones use all."""
    return 0 if plan.security.privileged else mount.MOUNT_ATTR_NODEV


def _checked(overlay_mount: int) -> int:
    """Overlay becomes read-only in silence where it cannot write to its work directory; that is an error here."""
    if os.fstatvfs(overlay_mount).f_flag & mount.ST_RDONLY:
        os.close(overlay_mount)
        raise OSError(errno.EINVAL, "overlay: its upper directory is not writable")
    return overlay_mount


def _memory_directory(stack: contextlib.ExitStack) -> int:
    """A detached tmpfs with upper and work directories."""
    context = mount.fsopen("tmpfs")
    stack.callback(os.close, context)
    mount.fsconfig_set_string(context, "mode", "0700")
    mount.fsconfig_create(context)
    descriptor = mount.fsmount(context)
    stack.callback(os.close, descriptor)
    for name in ("upper", "work"):
        os.mkdir(name, 0o755, dir_fd=descriptor)
    return descriptor


@contextlib.contextmanager
def acting_as_container_root(plan: RunPlan | None) -> Iterator[None]:
    """Let this thread create files as the container's root, capabilities kept.

    Else overlay cannot write to its work directory and mounts read-only.
    """
    if plan is None:
        yield
        return
    first_id = plan.security.id_mappings[0].host_id
    first_group = (plan.security.group_mappings or plan.security.id_mappings)[0].host_id
    bits = process.prctl(process.PR_GET_SECUREBITS)
    process.prctl(process.PR_SET_SECUREBITS, bits | process.SECBIT_NO_SETUID_FIXUP)
    libc.libc.setfsuid(first_id)
    libc.libc.setfsgid(first_group)
    try:
        yield
    finally:
        libc.libc.setfsuid(os.geteuid())
        libc.libc.setfsgid(os.getegid())
        process.prctl(process.PR_SET_SECUREBITS, bits)
