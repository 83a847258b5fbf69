"""The door to the C library: one handle, one way to fail.

Every wrapper of this room ends in :func:`check`, which turns ``-1`` and errno into an :class:`OSError` that names the system call and the path, so
that an error can be understood without strace(1). syscall(2) is used where the C library has no wrapper; numbers above 424 are the same on every
architecture. Nothing here knows what a container is.
"""

from __future__ import annotations

import ctypes
import os
import platform

libc = ctypes.CDLL(None, use_errno=True)
_syscall = libc.syscall
_syscall.restype = ctypes.c_long

# Numbers that differ between architectures (those that came later share one table); the others (>= 424) do not. asm/unistd.h
_ON_X86 = {
    "clone": 56, "pivot_root": 155, "setns": 308, "unshare": 272, "capset": 126, "capget": 125, "setfsuid": 122, "setfsgid": 123, "keyctl": 250,
}  # fmt: skip
_ELSEWHERE = {
    "clone": 220, "pivot_root": 41, "setns": 268, "unshare": 97, "capset": 91, "capget": 90, "setfsuid": 151, "setfsgid": 152, "keyctl": 219,
}  # fmt: skip
NUMBERS = (_ON_X86 if platform.machine() == "x86_64" else _ELSEWHERE) | {
    "pidfd_send_signal": 424,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "pidfd_open": 434,
    "clone3": 435,
    "close_range": 436,
    "openat2": 437,
    "mount_setattr": 442,
}


def oserror(call: str, path: str | bytes | os.PathLike[str] = "") -> OSError:
    """The calling thread's errno as an OSError whose text names the system call."""
    number = ctypes.get_errno()
    text = f"{call}: {os.strerror(number)}"
    return OSError(number, text, os.fsdecode(path)) if path else OSError(number, text)


def check(result: int, call: str, path: str | bytes | os.PathLike[str] = "") -> int:
    """Return ``result`` of a call, or raise what errno says."""
    if result < 0:
        raise oserror(call, path)
    return result


def syscall(name: str, *arguments: object, path: str | bytes | os.PathLike[str] = "") -> int:
    """One raw system call by name, checked; arguments are ints, bytes, None or ctypes values. syscall(2)"""
    return check(_syscall(ctypes.c_long(NUMBERS[name]), *(ctypes.c_long(a) if type(a) is int else a for a in arguments)), name, path)
