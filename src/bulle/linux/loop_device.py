"""Loop devices: a file as a block device, freed by the kernel when its last user is gone. loop(4), linux/loop.h"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import time
from contextlib import suppress

LOOP_CTL_GET_FREE = 0x4C82
LOOP_CONFIGURE = 0x4C0A
LOOP_GET_STATUS64 = 0x4C05
LO_FLAGS_READ_ONLY = 1
LO_FLAGS_AUTOCLEAR = 4
_ATTEMPTS = 50
_PATIENCE_S = 10.0


class _LoopInfo64(ctypes.Structure):
    _fields_ = (
        ("lo_device", ctypes.c_uint64),
        ("lo_inode", ctypes.c_uint64),
        ("lo_rdevice", ctypes.c_uint64),
        ("lo_offset", ctypes.c_uint64),
        ("lo_sizelimit", ctypes.c_uint64),
        ("lo_number", ctypes.c_uint32),
        ("lo_encrypt_type", ctypes.c_uint32),
        ("lo_encrypt_key_size", ctypes.c_uint32),
        ("lo_flags", ctypes.c_uint32),
        ("lo_file_name", ctypes.c_uint8 * 64),
        ("lo_crypt_name", ctypes.c_uint8 * 64),
        ("lo_encrypt_key", ctypes.c_uint8 * 32),
        ("lo_init", ctypes.c_uint64 * 2),
    )


class _LoopConfig(ctypes.Structure):
    _fields_ = (("fd", ctypes.c_uint32), ("block_size", ctypes.c_uint32), ("info", _LoopInfo64), ("reserved", ctypes.c_uint64 * 8))


def attach(path: str | os.PathLike[str]) -> tuple[int, str]:
    """A read-only loop device over ``path``: an open descriptor and the device's path. It lives while it is open or mounted."""
    backing = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _configure(backing, os.O_RDONLY, LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR)
    finally:
        os.close(backing)


def attach_shared(path: str | os.PathLike[str]) -> tuple[int, str]:
    """The one writable loop device over ``path``: a new one, or that which stands there; as for :func:`attach`.

    Two devices over one file would each keep pages of it that the other does not see. So the file is locked through the very open file that the
    device keeps: the lock lives exactly as long as the device, whoever dies. flock(2)
    """
    deadline = time.monotonic() + _PATIENCE_S
    backing = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        while True:
            try:
                fcntl.flock(backing, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                found = _standing(os.fstat(backing))
                if found is not None:
                    return found
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.005)  # it is being attached, or has just been given up
                continue
            return _configure(backing, os.O_RDWR, LO_FLAGS_AUTOCLEAR)
    finally:
        os.close(backing)


def _configure(backing: int, access: int, flags: int) -> tuple[int, str]:
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_ATTEMPTS):
            device = f"/dev/loop{fcntl.ioctl(control, LOOP_CTL_GET_FREE)}"
            fd = os.open(device, access | os.O_CLOEXEC)
            config = _LoopConfig(fd=backing, block_size=512)
            config.info.lo_flags = flags
            try:
                fcntl.ioctl(fd, LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(fd)
                if error.errno != errno.EBUSY:
                    raise
                continue  # somebody else took it in between
            return fd, device
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "loop: no free device", "/dev/loop-control")


def _standing(file: os.stat_result) -> tuple[int, str] | None:
    """The device over that file; kept by the descriptor, which is looked at once more after it was opened."""
    for name in os.listdir("/sys/block"):
        if not name.startswith("loop") or not os.path.exists(f"/sys/block/{name}/loop"):
            continue
        with suppress(OSError):
            fd = os.open(f"/dev/{name}", os.O_RDWR | os.O_CLOEXEC)
            info = _LoopInfo64()
            try:
                fcntl.ioctl(fd, LOOP_GET_STATUS64, info)
            except OSError:
                os.close(fd)
                raise
            if (info.lo_inode, info.lo_device) == (file.st_ino, file.st_dev):
                return fd, f"/dev/{name}"
            os.close(fd)
    return None
