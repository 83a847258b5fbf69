"""The child's side of a start: attach the root, mount what every container has, what the user asked for, hide what must be hidden, and pivot.

Called in the new mount namespace, before the command is executed, by every driver that has one. Every target is resolved once with openat2 below
the root's own descriptor and used through that descriptor, never by a path twice, so that nothing in an image can redirect a mount to the host.
Runtime specification, config-linux.md "Default Filesystems"; openat2(2)
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING

from bulle.errors import BulleError, InvalidInput
from bulle.isolation import system
from bulle.isolation.host_mounts import is_directory
from bulle.isolation.root_filesystem import DetachedMounts, identity_files
from bulle.linux import mount, process
from bulle.linux.mount import MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY
from bulle.model.run_plan import Mount, RunPlan

if TYPE_CHECKING:
    from bulle.linux.emulators import Emulator

DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
    "core": "/proc/kcore",
}
LOCKED_DOWN = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
# Where the root is attached until pivot_root: any directory that every user may enter; covered only in our own namespace.
_STAGES = ("/tmp", "/mnt", "/srv", "/var", "/usr")
_IN_ROOT = process.RESOLVE_IN_ROOT | process.RESOLVE_NO_MAGICLINKS
_TMPFS_FLAGS = {
    "ro": (MOUNT_ATTR_RDONLY, 0), "rw": (0, MOUNT_ATTR_RDONLY), "nosuid": (MOUNT_ATTR_NOSUID, 0), "suid": (0, MOUNT_ATTR_NOSUID),
    "nodev": (MOUNT_ATTR_NODEV, 0), "dev": (0, MOUNT_ATTR_NODEV), "noexec": (MOUNT_ATTR_NOEXEC, 0), "exec": (0, MOUNT_ATTR_NOEXEC),
}  # fmt: skip


def enter_root(
    plan: RunPlan,
    mounts: DetachedMounts,
    own_network: bool,
    own_ipc: bool,
    controllers: tuple[str, ...] = (),
    emulator: Emulator | None = None,
) -> int:
    """Make the plan's root filesystem this process's ``/``; returns the descriptor of /dev, where the terminal's console is bound.

    ``controllers`` are those of the container's own control group, which it may look at below /sys/fs/cgroup. ``emulator`` is registered for its
    user namespace.
    """
    root = attach_root(mounts)
    # Stands are taken while the host's tree is still there: devices, a visible /proc for a new one.
    dev = _mount_dev(plan, root, own_ipc)
    proc = _attach_new(root, "proc", "proc", {}, LOCKED_DOWN)
    sys = _mount_sys(plan, root, own_network, controllers)
    if own_network:
        open_network(plan, proc)
    if emulator is not None:
        from bulle.isolation import emulation  # the driver's process has imported it

        emulation.register(proc, emulator)
    if not plan.security.privileged:
        _hide(plan, proc, sys)
    attach_existing(plan, root, mounts)
    if plan.systemd:
        system.prepare(plan, root, sys)
    _user_mounts(plan, root, mounts)
    os.fchdir(root)
    mount.pivot_root(".", ".")
    mount.umount(".", mount.MNT_DETACH)
    os.chdir("/")
    return dev


def attach_root(mounts: DetachedMounts) -> int:
    """Attach the root filesystem somewhere in this process's own mount namespace; returns its descriptor."""
    stage = next(path for path in _STAGES if os.path.isdir(path))
    mount.attach_mount(mounts.root, stage)
    return mounts.root


def attach_existing(plan: RunPlan, root: int, mounts: DetachedMounts) -> None:
    """Attach what the image and the engine show in the root: directories of the host, and files for /etc."""
    for path, descriptor in zip(plan.root.host_binds, mounts.binds, strict=True):
        _attach_existing(root, path, descriptor)
    for path, descriptor in zip(identity_files(plan), mounts.files, strict=True):
        _attach_existing(root, "/etc/" + os.path.basename(path), descriptor)


def attach_volumes(plan: RunPlan, root: int, mounts: DetachedMounts) -> None:
    """Attach the mounts of the plan, parents before children; what would be memory of its own is not there without a run."""
    wanted = sorted(zip((one for one in plan.mounts if one.kind != "tmpfs"), mounts.volumes, strict=True), key=lambda item: _depth(item[0]))
    for volume, descriptor in wanted:
        _attach_existing(root, volume.container_path, descriptor)


def make_root_read_only() -> None:
    """Remount ``/`` (the mount, not the overlay under it) read-only, once everything that had to be created in it is there."""
    mount.mount_setattr(mount.AT_FDCWD, "/", 0, MOUNT_ATTR_RDONLY)


def open_in_root(root: int, path: str, flags: int, mode: int = 0) -> int:
    """Open a container path below the root's descriptor: symlinks stay inside it, /proc's magic links are refused."""
    return process.openat2(root, path, flags, _IN_ROOT, mode)


def make_directory(root: int, path: str) -> int:
    """A descriptor (O_PATH) of the directory at a container path, created with its parents when missing."""
    try:
        return open_in_root(root, path, os.O_PATH | os.O_DIRECTORY)
    except FileNotFoundError:
        pass
    parent, _, name = path.rstrip("/").rpartition("/")
    directory = make_directory(root, parent or "/")
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=directory)
        return process.openat2(directory, name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, process.RESOLVE_BENEATH | process.RESOLVE_NO_SYMLINKS)
    except OSError as error:
        raise InvalidInput(f"the directory {path} cannot be created in the container", os.strerror(error.errno or 0), "use another path") from error
    finally:
        os.close(directory)


def new_mount(fstype: str, options: dict[str, str], attributes: int, flags: tuple[str, ...] = ()) -> int:
    """A detached mount of a new file system."""
    context = mount.fsopen(fstype)
    try:
        mount.fsconfig_set_string(context, "source", fstype)
        for flag in flags:
            mount.fsconfig_set_flag(context, flag)
        for key, value in options.items():
            mount.fsconfig_set_string(context, key, value)
        mount.fsconfig_create(context)
        return mount.fsmount(context, attributes)
    finally:
        os.close(context)


def _base_target(root: int, name: str) -> int:
    """The directory of the image that a system mount covers; it must really be one, since a symlink would move the mount."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o755, dir_fd=root)
    try:
        flags = process.RESOLVE_BENEATH | process.RESOLVE_NO_SYMLINKS
        return process.openat2(root, name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, flags)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise InvalidInput(f"the image's /{name} is not a directory", "a link there could redirect a mount", "do not run this image") from error
        raise


def _attach_new(root: int, name: str, fstype: str, options: dict[str, str], attributes: int, flags: tuple[str, ...] = ()) -> int:
    """Mount a new file system on a directory right below ``root``; returns the mount's descriptor."""
    target = _base_target(root, name)
    try:
        descriptor = new_mount(fstype, options, attributes, flags)
        mount.attach_mount(descriptor, "", target)
        return descriptor
    finally:
        os.close(target)


def _mount_dev(plan: RunPlan, root: int, own_ipc: bool) -> int:
    dev = _attach_new(root, "dev", "tmpfs", {"mode": "755", "size": "65536k"}, MOUNT_ATTR_NOSUID)
    mask = os.umask(0)
    for name, (major, minor) in DEVICES.items():
        _device(dev, name, major, minor)
    if plan.security.privileged:
        _all_devices(dev)
    for name, target in DEVICE_LINKS.items():
        os.symlink(target, name, dir_fd=dev)
    os.umask(mask)
    pts = {"mode": "0620", "ptmxmode": "0666"}
    try:
        os.close(_attach_new(dev, "pts", "devpts", pts | {"gid": "5"}, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, ("newinstance",)))
    except OSError:  # gid 5 is not mapped where a rootless user has a single id
        os.close(_attach_new(dev, "pts", "devpts", pts, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, ("newinstance",)))
    os.close(_attach_new(dev, "shm", "tmpfs", {"mode": "1777", "size": str(plan.shm_bytes)}, LOCKED_DOWN))
    if own_ipc:
        os.close(_attach_new(dev, "mqueue", "mqueue", {}, LOCKED_DOWN))
    return dev


def _device(dev: int, name: str, major: int, minor: int) -> None:
    """The host's own device node, bound; verified, so that a host with a strange /dev gives nothing else away."""
    source = mount.open_tree(mount.AT_FDCWD, f"/dev/{name}")
    try:
        found = os.fstat(source)
        if not stat.S_ISCHR(found.st_mode) or found.st_rdev != os.makedev(major, minor):
            raise BulleError(f"the host's /dev/{name} is not the device that it should be", "", "mend the host's /dev")
        os.mknod(name, stat.S_IFREG | 0o666, dir_fd=dev)
        mount.attach_mount(source, name, dev)
    finally:
        os.close(source)


def _all_devices(dev: int) -> None:
    """Every other device node of the host, for --privileged."""
    for entry in os.scandir("/dev"):
        if entry.name in DEVICES or entry.name in ("console", "ptmx") or not (mode := entry.stat(follow_symlinks=False).st_mode) & stat.S_IFCHR:
            continue
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            os.mknod(entry.name, mode, entry.stat(follow_symlinks=False).st_rdev, dir_fd=dev)


def _mount_sys(plan: RunPlan, root: int, own_network: bool, controllers: tuple[str, ...]) -> int:
    attributes = LOCKED_DOWN | (0 if plan.security.privileged else MOUNT_ATTR_RDONLY)
    target = _base_target(root, "sys")
    try:
        if own_network:
            sys = new_mount("sysfs", {}, attributes)
            mount.attach_mount(sys, "", target)
            _mount_cgroups(plan, sys, controllers)
        else:
            # A new sysfs shows the network namespace of its maker, whom a user namespace must own: so the host's own is bound.
            sys = mount.open_tree(mount.AT_FDCWD, "/sys", mount.OPEN_TREE_CLONE | mount.OPEN_TREE_CLOEXEC | mount.AT_RECURSIVE)
            mount.mount_setattr(sys, "", mount.AT_EMPTY_PATH | mount.AT_RECURSIVE, attributes)
            mount.attach_mount(sys, "", target)
    finally:
        os.close(target)
    return sys


def _mount_cgroups(plan: RunPlan, sys: int, controllers: tuple[str, ...]) -> None:
    """The container's view of its own control groups, as the host lays them out. A host that refuses leaves /sys/fs/cgroup empty."""
    if not controllers:
        return
    attributes = LOCKED_DOWN | (0 if plan.security.privileged else MOUNT_ATTR_RDONLY)
    try:
        cgroup = process.openat2(sys, "fs/cgroup", os.O_PATH | os.O_DIRECTORY, process.RESOLVE_BENEATH | process.RESOLVE_NO_SYMLINKS)
    except OSError:
        return
    try:
        if controllers == ("",):
            mount.attach_mount(new_mount("cgroup2", {}, attributes), "", cgroup)
            return
        # Hierarchies in which the container has no group of its own would show the host's.
        with open("/proc/self/cgroup") as file:
            hierarchies = [line.split(":")[1].split(",") for line in file]
        v1 = [names for names in hierarchies if set(controllers).intersection(names)]
        tmpfs = new_mount("tmpfs", {"mode": "755", "size": "64k"}, LOCKED_DOWN)
        mount.attach_mount(tmpfs, "", cgroup)
        for names in v1:
            os.close(_attach_new(tmpfs, ",".join(names), "cgroup", {}, attributes, tuple(names)))
            for name in names if len(names) > 1 else ():
                os.symlink(",".join(names), name, dir_fd=tmpfs)
        mount.mount_setattr(tmpfs, "", mount.AT_EMPTY_PATH, attributes)
    except OSError:
        return
    finally:
        os.close(cgroup)


def open_network(plan: RunPlan, proc: int) -> None:
    """In a network of its own every user may listen on any port and send echo requests, as on Docker: only the container itself is there to protect.

    A kernel without these settings keeps to its own rules, under which root can do both.
    """
    groups = plan.security.group_mappings or plan.security.id_mappings
    # The range must end at a group that exists in the user namespace.
    last_group = max((line.container_id + line.size - 1 for line in groups), default=2**31 - 1)
    for name, value in (("ip_unprivileged_port_start", "0"), ("ping_group_range", f"0 {last_group}")):
        with contextlib.suppress(OSError):
            setting = os.open(f"sys/net/ipv4/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
            try:
                os.write(setting, value.encode())
            finally:
                os.close(setting)


def _hide(plan: RunPlan, proc: int, sys: int) -> None:
    """Mask and write-protect the plan's paths of /proc and /sys, resolved below the very mounts that were just made (so it is real procfs)."""
    null = os.open("/dev/null", os.O_PATH | os.O_CLOEXEC)
    empty, empty_is_attached = new_mount("tmpfs", {"size": "0k", "mode": "755"}, LOCKED_DOWN | MOUNT_ATTR_RDONLY), False
    clone = mount.OPEN_TREE_CLONE | mount.OPEN_TREE_CLOEXEC
    for path, masked in [*((path, False) for path in plan.security.read_only_paths), *((path, True) for path in plan.security.masked_paths)]:
        base, _, name = path.lstrip("/").partition("/")
        if base not in ("proc", "sys") or not name:
            raise InvalidInput(f"{path} cannot be masked", "only paths below /proc and /sys can", "")
        try:
            flags = process.RESOLVE_BENEATH | process.RESOLVE_NO_SYMLINKS
            target = process.openat2(proc if base == "proc" else sys, name, os.O_PATH | os.O_NOFOLLOW, flags)
        except FileNotFoundError:
            continue
        if masked and is_directory(target) and not empty_is_attached:
            source, empty_is_attached = os.dup(empty), True  # kernels before 6.15 copy nothing that is attached nowhere
        elif masked:
            source = mount.open_tree(empty if is_directory(target) else null, "", clone | mount.AT_EMPTY_PATH)
        else:
            source = mount.open_tree(target, "", clone | mount.AT_EMPTY_PATH | mount.AT_RECURSIVE)
            mount.mount_setattr(source, "", mount.AT_EMPTY_PATH | mount.AT_RECURSIVE, MOUNT_ATTR_RDONLY)
        mount.attach_mount(source, "", target)
        os.close(source)
        os.close(target)
    os.close(null)
    os.close(empty)


def _attach_existing(root: int, path: str, descriptor: int) -> None:
    """Attach a detached mount at a container path, making a directory or an empty file where there is none."""
    if path.rstrip("/") in ("", "/."):
        raise InvalidInput("a volume cannot cover the container's /", "", "mount it at a directory below /")
    if is_directory(descriptor):
        try:
            target = make_directory(root, path)
        except NotADirectoryError as error:
            why = "it, or a part of its path, is no directory in the container"
            raise InvalidInput(f"a directory cannot be mounted at {path}", why, "mount it elsewhere, or mount a file there") from error
    else:
        parent = make_directory(root, os.path.dirname(path) or "/")
        try:
            target = process.openat2(root, path, os.O_PATH, _IN_ROOT)
        except FileNotFoundError:
            os.close(os.open(os.path.basename(path), os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=parent))
            target = process.openat2(parent, os.path.basename(path), os.O_PATH | os.O_NOFOLLOW, process.RESOLVE_BENEATH)
        finally:
            os.close(parent)
    try:
        if mount.filesystem_type(target) == mount.PROC_SUPER_MAGIC:
            raise InvalidInput(f"nothing can be mounted at {path}", "it is inside /proc", "use another path")
        if is_directory(target) and not is_directory(descriptor):
            raise InvalidInput(f"a file cannot be mounted at {path}", "it is a directory in the container", "name a file, also a new one")
        mount.attach_mount(descriptor, "", target)
    except OSError as error:
        raise BulleError(f"the volume could not be mounted at {path}", os.strerror(error.errno or 0), "") from error
    finally:
        os.close(target)


def _user_mounts(plan: RunPlan, root: int, mounts: DetachedMounts) -> None:
    """All mounts of the plan, parents before children."""
    volumes = iter(mounts.volumes)
    sources = [(wanted, next(volumes) if wanted.kind != "tmpfs" else -1) for wanted in plan.mounts]
    for wanted, descriptor in sorted(sources, key=lambda item: _depth(item[0])):
        _attach_existing(root, wanted.container_path, descriptor if descriptor >= 0 else _tmpfs(wanted))


def _depth(wanted: Mount) -> int:
    return wanted.container_path.count("/")


def _tmpfs(wanted: Mount) -> int:
    attributes, options = LOCKED_DOWN | (MOUNT_ATTR_RDONLY if wanted.read_only else 0), {"mode": "1777"}
    for option in wanted.options:
        key, _, value = option.partition("=")
        if key in _TMPFS_FLAGS and not value:
            attributes = (attributes | _TMPFS_FLAGS[key][0]) & ~_TMPFS_FLAGS[key][1]
        else:
            options[key] = value
    try:
        return new_mount("tmpfs", options, attributes)
    except OSError as error:
        raise InvalidInput(
            f"the tmpfs at {wanted.container_path} has an option that the kernel refuses", ",".join(wanted.options), "see tmpfs(5)"
        ) from error
