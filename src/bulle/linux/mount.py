"""Mounts, by the old call and by the new file-descriptor interface; names are the kernel's own.

A detached mount (:func:`open_tree` with OPEN_TREE_CLONE, :func:`fsmount`) is a descriptor that no path shows until :func:`move_mount` attaches it: so
a mount can be made in one namespace and attached in another, and vanishes by itself when its maker dies. mount(2), fsopen(2), mount_setattr(2)
"""

from __future__ import annotations

import ctypes
import os

from bulle.linux.libc import check, libc, syscall

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_NOATIME = 1024
MS_BIND = 4096
MS_MOVE = 8192
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_SET_FD = 5
FSCONFIG_CMD_CREATE = 6
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_IDMAP = 0x00100000

EROFS_SUPER_MAGIC = 0xE0F5E1E2
PROC_SUPER_MAGIC = 0x9FA0
OVERLAYFS_SUPER_MAGIC = 0x794C7630
TMPFS_MAGIC = 0x01021994
ST_RDONLY = 1

_mount = libc.mount
_mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_umount2 = libc.umount2
_umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]

Path = str | bytes | os.PathLike[str]


class _MountAttr(ctypes.Structure):
    _fields_ = (("attr_set", ctypes.c_uint64), ("attr_clr", ctypes.c_uint64), ("propagation", ctypes.c_uint64), ("userns_fd", ctypes.c_uint64))


def mount(source: Path | None, target: Path, fstype: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2); ``source`` may be None for a change of propagation or a remount."""
    result = _mount(os.fsencode(source) if source is not None else None, os.fsencode(target), fstype.encode() or None, flags, data.encode() or None)
    check(result, f"mount {fstype}".rstrip(), target)


def umount(target: Path, flags: int = 0) -> None:
    """umount2(2)"""
    check(_umount2(os.fsencode(target), flags), "umount2", target)


def pivot_root(new_root: Path, put_old: Path) -> None:
    """pivot_root(2); with "." twice the old root ends below the new one, ready for umount(".", MNT_DETACH)."""
    syscall("pivot_root", os.fsencode(new_root), os.fsencode(put_old), path=new_root)


def open_tree(dirfd: int, path: Path, flags: int = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC) -> int:
    """A descriptor for the mount at ``path``; a detached copy of it with OPEN_TREE_CLONE (of all below with AT_RECURSIVE)."""
    return syscall("open_tree", dirfd, os.fsencode(path), flags, path=path)


def move_mount(from_dirfd: int, from_path: Path, to_dirfd: int, to_path: Path, flags: int = 0) -> None:
    """Attach a detached mount, or move one."""
    syscall("move_mount", from_dirfd, os.fsencode(from_path), to_dirfd, os.fsencode(to_path), flags, path=to_path)


def attach_mount(mount_fd: int, target: Path, target_dirfd: int = AT_FDCWD) -> None:
    """Attach the detached mount ``mount_fd`` at ``target``, or on the object that ``target_dirfd`` itself is when ``target`` is empty."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if target else MOVE_MOUNT_T_EMPTY_PATH)
    syscall("move_mount", mount_fd, b"", target_dirfd, os.fsencode(target), flags, path=target)


def mount_setattr(dirfd: int, path: Path, flags: int, attr_set: int = 0, attr_clr: int = 0, propagation: int = 0, userns_fd: int = 0) -> None:
    """Change a mount's attributes (all below it with AT_RECURSIVE); MOUNT_ATTR_IDMAP takes the map of the user namespace ``userns_fd``."""
    attributes = _MountAttr(attr_set, attr_clr, propagation, userns_fd)
    syscall("mount_setattr", dirfd, os.fsencode(path), flags, ctypes.byref(attributes), ctypes.sizeof(attributes), path=path)


def fsopen(fstype: str) -> int:
    """A configuration context for a new file system instance."""
    return syscall("fsopen", fstype.encode(), FSOPEN_CLOEXEC, path=fstype)


def fsconfig_set_string(fs_fd: int, key: str, value: Path) -> None:
    """Set one option, ``key=value``."""
    syscall("fsconfig", fs_fd, FSCONFIG_SET_STRING, key.encode(), os.fsencode(value), 0, path=key)


def fsconfig_set_flag(fs_fd: int, key: str) -> None:
    """Set one option without a value."""
    syscall("fsconfig", fs_fd, FSCONFIG_SET_FLAG, key.encode(), None, 0, path=key)


def fsconfig_set_fd(fs_fd: int, key: str, value_fd: int) -> None:
    """Set one option whose value is an open descriptor."""
    syscall("fsconfig", fs_fd, FSCONFIG_SET_FD, key.encode(), None, value_fd, path=key)


def fsconfig_create(fs_fd: int) -> None:
    """Create the superblock that the options describe."""
    syscall("fsconfig", fs_fd, FSCONFIG_CMD_CREATE, None, None, 0)


def fsmount(fs_fd: int, attributes: int = 0) -> int:
    """A detached mount of the superblock that was created."""
    return syscall("fsmount", fs_fd, FSMOUNT_CLOEXEC, attributes)


def filesystem_type(path: Path | int) -> int:
    """The magic number of the file system that holds ``path``. statfs(2)"""
    buffer = (ctypes.c_long * 16)()
    if isinstance(path, int):
        check(libc.fstatfs(path, ctypes.byref(buffer)), "fstatfs")
    else:
        check(libc.statfs(os.fsencode(path), ctypes.byref(buffer)), "statfs", path)
    return buffer[0] & 0xFFFFFFFF
