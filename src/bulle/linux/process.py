"""Processes: pidfds, prctl, identity that survives the reuse of pids, and path resolution that stays inside a root.

A pid alone proves nothing; :func:`start_ticks` (field 22 of /proc/PID/stat) with the boot id names one process for ever. proc_pid_stat(5),
pidfd_open(2), openat2(2)
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from bulle.linux.libc import check, libc, syscall

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_SECUREBITS = 28
PR_GET_SECUREBITS = 27
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
SECBIT_NO_SETUID_FIXUP = 1 << 2
SECBIT_KEEP_CAPS = 1 << 4

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

_PF_FORKNOEXEC = 0x40  # include/linux/sched.h, in the flags of proc_pid_stat(5)
CLOSE_RANGE_CLOEXEC = 4
PIDFD_GET_INFO = 0xC048FF0B  # _IOWR(0xFF, 11, struct pidfd_info): 72 bytes since 6.15, where PIDFD_INFO_EXIT exists
PIDFD_INFO_EXIT = 1 << 3


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def prctl(option: int, argument: int = 0) -> int:
    """prctl(2) with one argument."""
    return check(
        libc.prctl(ctypes.c_int(option), ctypes.c_ulong(argument), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)), f"prctl {option}"
    )


def keyctl(operation: int) -> int:
    """keyctl(2) without arguments."""
    return syscall("keyctl", operation, None, None, None, None)


@contextmanager
def file_system_user(user_id: int, group_id: int) -> Iterator[None]:
    """Have this thread open and make files as another user, without root's rights over those of others. setfsuid(2)"""
    if user_id == os.geteuid() and group_id == os.getegid():
        yield
        return
    try:
        libc.setfsgid(group_id)
        libc.setfsuid(user_id)
        yield
    finally:
        libc.setfsuid(os.geteuid())
        libc.setfsgid(os.getegid())


def openat2(dirfd: int, path: str | bytes, flags: int, resolve: int, mode: int = 0) -> int:
    """Open ``path`` below ``dirfd`` under the rules of ``resolve``; retried where a concurrent rename makes the kernel say EAGAIN. openat2(2)"""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    for _ in range(32):
        try:
            return syscall("openat2", dirfd, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how), path=path)
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise
    raise OSError(errno.EAGAIN, "openat2: the path kept changing", path)


def close_on_exec_from(first: int) -> None:
    """Mark every descriptor from ``first`` up close-on-exec. close_range(2)"""
    syscall("close_range", first, 0xFFFFFFFF, CLOSE_RANGE_CLOEXEC)


def pidfd_send_signal(pidfd: int, number: int) -> None:
    """Send a signal to the process behind the pidfd, and to no other that took its pid."""
    syscall("pidfd_send_signal", pidfd, number, None, 0)


@cache
def boot_id() -> str:
    """The kernel's random name of this boot; pids and start times mean nothing outside it."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def _stat(pid: int) -> list[bytes] | None:
    """The fields of /proc/pid/stat from the third, the state, on; None where there is no such process. proc_pid_stat(5)"""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, 4096).rpartition(b")")[2].split()
        finally:
            os.close(fd)
    except (FileNotFoundError, ProcessLookupError):
        return None


def start_ticks(pid: int) -> int:
    """When ``pid`` started, in clock ticks since boot; 0 where there is no such process or it is a zombie."""
    fields = _stat(pid)
    return 0 if fields is None or fields[0] in (b"Z", b"X") else int(fields[19])


def wanted_processor_ns(pid: int) -> int | None:
    """The time that its threads ran or waited for a processor, in nanoseconds; None where that is not told. Kernel documentation, sched-stats"""
    wanted = 0
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/schedstat", "rb") as file:
                ran, waited, _times = file.read().split()
            wanted += int(ran) + int(waited)
    except (OSError, ValueError):
        return None
    return wanted


def processor_ns(pid: int) -> int:
    """The processor time that ``pid`` has used itself, in nanoseconds; 0 where it is gone."""
    fields = _stat(pid)
    return 0 if fields is None else (int(fields[11]) + int(fields[12])) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def has_executed(pid: int) -> bool:
    """Whether a process, which may be a zombie, has called execve(2) since it was forked; also true of one that is gone."""
    fields = _stat(pid)
    return fields is None or not int(fields[6]) & _PF_FORKNOEXEC


def pidfd_open(pid: int) -> int:
    """pidfd_open(2). Raises ProcessLookupError also for a process that is about to be forgotten, which old kernels call an invalid argument."""
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH)) from error


def open_process(pid: int, ticks: int) -> int | None:
    """A pidfd for the process that had ``pid`` and started at ``ticks``, or None where it is gone. The caller closes it."""
    try:
        pidfd = pidfd_open(pid)
    except ProcessLookupError:
        return None
    if start_ticks(pid) != ticks:
        os.close(pidfd)
        return None
    return pidfd


def zombie_status(pid: int, ticks: int) -> int:
    """The wait status of a process that ended and was not reaped yet, named by pid and start time; -1 where it is not that, or hidden from us."""
    fields = _stat(pid)
    if fields is None or fields[0] != b"Z" or int(fields[19]) != ticks:
        return -1
    # Field 52; 0 is also what those read who may not look closer.
    return int(fields[49]) if int(fields[49]) or os.access(f"/proc/{pid}/ns/user", os.R_OK) else -1


def exit_status_of(pidfd: int) -> int | None:
    """The wait status of a process that ended and was reaped by another (kernel 6.15 and newer), else None."""
    request = bytearray(struct.pack("=Q64x", PIDFD_INFO_EXIT))
    try:
        fcntl.ioctl(pidfd, PIDFD_GET_INFO, request)
    except OSError:
        return None
    mask, _cgroup = struct.unpack_from("=QQ", request)
    return int(struct.unpack_from("=i", request, 60)[0]) if mask & PIDFD_INFO_EXIT else None
