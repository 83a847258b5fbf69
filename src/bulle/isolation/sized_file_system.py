"""A file system of a limited size in a sparse file: what a writable layer or a volume that can hold so much and no more is kept in.

The file takes of the disk what was written. It is mounted through a loop device, which its mounts alone keep: the kernel gives both back when the
last one is gone, however its user ended. Whoever mounts it meanwhile gets the same file system once more, so all see the same. ext4(5), loop(4)
"""

from __future__ import annotations

import errno
import os

from bulle.errors import InvalidInput, StorageFull, Unavailable
from bulle.linux import mount

SMALLEST_BYTES = 16 << 20
_BLOCK_BYTES = 4096
_JOURNAL_BYTES = 4 << 20
_INODE_BYTES = 256
_VAST_BYTES = 1 << 42
_MAKER = "mkfs.ext4"
_MAKERS_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"


def available() -> bool:
    """Whether this user can have loop devices; the rest is found out by :func:`make`."""
    return os.geteuid() == 0 and os.access("/dev/loop-control", os.W_OK)


def make(disk: str, wanted: int, what: str, mend: str) -> None:
    """Make the file and in it a file system for ``wanted`` bytes; ``what`` it is for and how to ``mend`` are for errors.

    Raises Unavailable, InvalidInput, StorageFull.
    """
    import shutil
    import subprocess

    program = shutil.which(_MAKER, path=_MAKERS_PATH)
    if program is None:
        raise Unavailable(f"the size of {what} cannot be limited", f"{_MAKER} is not installed", "install e2fsprogs")
    try:
        with open(disk, "xb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.truncate(_file_bytes(wanted))
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        raise InvalidInput(f"{what} cannot be of {wanted} bytes", "the file system under BULLE_HOME has no file that large") from error
    inodes = ["-I", str(_INODE_BYTES), "-i", str(_bytes_for_each_inode(wanted))]
    shape = ["-b", str(_BLOCK_BYTES), "-m", "0", *inodes, "-O", "^resize_inode", "-E", "lazy_journal_init=1", "-J", f"size={_JOURNAL_BYTES >> 20}"]
    line = [program, "-q", "-F", *shape, disk]
    done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        if "No space left" in reason:
            raise StorageFull(f"{what} could not be made", reason, "free some space")
        raise Unavailable(f"{what} could not be made", f"{_MAKER}: {reason}", mend)


def _bytes_for_each_inode(wanted: int) -> int:
    """A block, so that no inodes are wanting where blocks are left: unused tables are holes. But ext4 has at most 2^32 inodes."""
    return _BLOCK_BYTES if wanted < _VAST_BYTES else 16 * _BLOCK_BYTES


def _file_bytes(wanted: int) -> int:
    """The size of a file system in which so much can be written: with what ext4 keeps for its tables, its journal and itself."""
    tables = wanted * _INODE_BYTES // (_bytes_for_each_inode(wanted) - _INODE_BYTES) + wanted // 1000
    held_back = min(wanted // 50, 4096 * _BLOCK_BYTES)
    return -(-(wanted + tables + held_back + _JOURNAL_BYTES + (1 << 20)) // _BLOCK_BYTES) * _BLOCK_BYTES


def detached(disk: str, what: str, mend: str, *, volatile: bool = False) -> int:
    """A detached mount of the file system in a file; the descriptor is the caller's. Raises StorageFull, Unavailable."""
    from bulle.linux import loop_device

    try:
        device_fd, device = loop_device.attach_shared(disk)
        try:
            return _mounted(device, volatile)
        finally:
            os.close(device_fd)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise StorageFull(f"{what} cannot be mounted", error.strerror or "", "free some space") from error
        why = f"{os.strerror(error.errno or 0)} ({error.filename})" if error.filename else os.strerror(error.errno or 0)
        raise Unavailable(f"{what} of a limited size cannot be mounted", why, mend) from error


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
