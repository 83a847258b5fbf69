"""A container's writable layer that can hold so much and no more: a file system of its own, in a file beside where the layer would have been.

The file is sparse: it takes of the disk what the container wrote. It is mounted through a loop device, which the container's overlay alone keeps:
the kernel gives both back when the container's last process is gone, however it ended. Whoever looks at the layer meanwhile gets the same file system
once more, so both see the same. ext4(5), loop(4)
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bulle.errors import InvalidInput, StorageFull, Unavailable
from bulle.linux import mount
from bulle.model.run_plan import RunPlan

SMALLEST_BYTES = 16 << 20
_BLOCK_BYTES = 4096
_JOURNAL_BYTES = 4 << 20
_INODE_BYTES = 256
_VAST_BYTES = 1 << 42
_MAKER = "mkfs.ext4"
_MAKERS_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"
_ONLY_LOOK = mount.MOUNT_ATTR_RDONLY | mount.MOUNT_ATTR_NODEV | mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NOEXEC


def available() -> bool:
    """Whether this user can have loop devices; the rest is found out by :func:`make`, before there is a container."""
    return os.geteuid() == 0 and os.access("/dev/loop-control", os.W_OK)


def disk(plan: RunPlan) -> str:
    """The host path of the file."""
    return f"{plan.root.writable_host_path}/disk"


def make(plan: RunPlan) -> None:
    """Make the file and the file system in it, and mount it once, so that what is missing here is known now. Raises Unavailable, StorageFull."""
    import shutil
    import subprocess

    program = shutil.which(_MAKER, path=_MAKERS_PATH)
    if program is None:
        raise Unavailable("the size of the writable layer cannot be limited", f"{_MAKER} is not installed", "install e2fsprogs")
    wanted = plan.root.size_bytes
    try:
        with open(disk(plan), "xb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.truncate(_file_bytes(wanted))
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        raise InvalidInput(f"the writable layer cannot be of {wanted} bytes", "the file system under BULLE_HOME has no file that large") from error
    inodes = ["-I", str(_INODE_BYTES), "-i", str(_bytes_for_each_inode(wanted))]
    shape = ["-b", str(_BLOCK_BYTES), "-m", "0", *inodes, "-O", "^resize_inode", "-E", "lazy_journal_init=1", "-J", f"size={_JOURNAL_BYTES >> 20}"]
    line = [program, "-q", "-F", *shape, disk(plan)]
    done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        if "No space left" in reason:
            raise StorageFull("the writable layer could not be made", reason, "free some space")
        raise Unavailable("the writable layer could not be made", f"{_MAKER}: {reason}", "leave out --storage-opt")
    os.close(detached(plan))


def _bytes_for_each_inode(wanted: int) -> int:
    """A block, so that no inodes are wanting where blocks are left: unused tables are holes. But ext4 has at most 2^32 inodes."""
    return _BLOCK_BYTES if wanted < _VAST_BYTES else 16 * _BLOCK_BYTES


def _file_bytes(wanted: int) -> int:
    """The size of a file system in which so much can be written: with what ext4 keeps for its tables, its journal and itself."""
    tables = wanted * _INODE_BYTES // (_bytes_for_each_inode(wanted) - _INODE_BYTES) + wanted // 1000
    held_back = min(wanted // 50, 4096 * _BLOCK_BYTES)
    return -(-(wanted + tables + held_back + _JOURNAL_BYTES + (1 << 20)) // _BLOCK_BYTES) * _BLOCK_BYTES


def detached(plan: RunPlan, attributes: int = 0) -> int:
    """A detached mount of the file system, with ``upper`` and ``work`` in it; the descriptor is the caller's."""
    from bulle.linux import loop_device

    try:
        device_fd, device = loop_device.attach_shared(disk(plan))
        try:
            descriptor = _mounted(device, plan.root.volatile)
        finally:
            os.close(device_fd)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise StorageFull("the container's writable layer cannot be mounted", error.strerror or "", "free some space") from error
        why = f"{os.strerror(error.errno or 0)} ({error.filename})" if error.filename else os.strerror(error.errno or 0)
        mend = "leave out --storage-opt, or give the machine loop devices and ext4 (modprobe loop ext4)"
        raise Unavailable("the container's writable layer of a limited size cannot be mounted", why, mend) from error
    try:
        for name in ("upper", "work"):
            with suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=descriptor)
        if attributes:
            mount.mount_setattr(descriptor, "", mount.AT_EMPTY_PATH, attributes)
        return descriptor
    except BaseException:
        os.close(descriptor)
        raise


def _mounted(device: str, volatile: bool) -> int:
    context = mount.fsopen("ext4")
    try:
        mount.fsconfig_set_string(context, "source", device)
        mount.fsconfig_set_flag(context, "discard")  # what is deleted inside is given back to the disk
        if volatile:
            mount.fsconfig_set_flag(context, "nobarrier")
        mount.fsconfig_create(context)
        return mount.fsmount(context)
    finally:
        os.close(context)


@contextmanager
def upper(plan: RunPlan) -> Iterator[Path]:
    """The host path of the directory that overlay fills, to be looked at while the block lasts, by this process and its children."""
    if not plan.root.size_bytes:
        yield Path(plan.root.writable_host_path) / "upper"
        return
    descriptor = detached(plan, _ONLY_LOOK)
    try:
        yield Path(f"/proc/{os.getpid()}/fd/{descriptor}/upper")
    finally:
        os.close(descriptor)


def attach(plan: RunPlan) -> None:
    """Show it where the layer would have been without a limit, in this process's own mount namespace."""
    descriptor = detached(plan, _ONLY_LOOK)
    try:
        mount.attach_mount(descriptor, plan.root.writable_host_path)
    finally:
        os.close(descriptor)
