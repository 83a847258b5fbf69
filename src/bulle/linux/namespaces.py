"""Namespaces: making, joining and mapping them; clone3 with a pidfd. namespaces(7), user_namespaces(7), clone(2)

:func:`clone3` forks this process without Python's own fork hooks: it is for single-threaded processes whose child soon executes something else.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal

from bulle.linux.libc import syscall

CLONE_NEWTIME = 0x80
CLONE_PIDFD = 0x1000
CLONE_PARENT = 0x8000
CLONE_NEWNS = 0x20000
CLONE_NEWCGROUP = 0x2000000
CLONE_NEWUTS = 0x4000000
CLONE_NEWIPC = 0x8000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_INTO_CGROUP = 0x200000000

# The name under /proc/PID/ns of each namespace.
NAMESPACE_FILES = {
    CLONE_NEWUSER: "user",
    CLONE_NEWNS: "mnt",
    CLONE_NEWPID: "pid",
    CLONE_NEWUTS: "uts",
    CLONE_NEWIPC: "ipc",
    CLONE_NEWNET: "net",
    CLONE_NEWCGROUP: "cgroup",
}


class _CloneArgs(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in ("flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls", "set_tid", "set_tid_size", "cgroup")
    )


def clone3(flags: int, cgroup_fd: int = -1) -> tuple[int, int]:
    """Fork into new namespaces: ``(0, -1)`` in the child, ``(pid, pidfd)`` in the parent. ``cgroup_fd`` is a v2 group that the child is born in."""
    pidfd = ctypes.c_int(-1)
    # A sibling (CLONE_PARENT) takes its parent's exit signal, and the kernel insists that none is named.
    exit_signal = 0 if flags & CLONE_PARENT else signal.SIGCHLD
    arguments = _CloneArgs(flags=flags | CLONE_PIDFD, pidfd=ctypes.addressof(pidfd), exit_signal=exit_signal)
    if cgroup_fd >= 0:
        arguments.flags |= CLONE_INTO_CGROUP
        arguments.cgroup = cgroup_fd
    try:
        pid = syscall("clone3", ctypes.byref(arguments), ctypes.sizeof(arguments))
    except OSError as error:
        # A filter around us that cannot look into clone3's structure denies that it exists, as Docker's does: clone can do all but the group.
        if error.errno != errno.ENOSYS or cgroup_fd >= 0 or flags & CLONE_NEWTIME:
            raise
        pid = syscall("clone", flags | CLONE_PIDFD | exit_signal, 0, ctypes.byref(pidfd), 0, 0)
    return pid, pidfd.value if pid else -1


def unshare(flags: int) -> None:
    """unshare(2)"""
    syscall("unshare", flags)


def setns(fd: int, flags: int = 0) -> None:
    """Join the namespace (or with a pidfd, the namespaces named by ``flags``) behind ``fd``. setns(2)"""
    syscall("setns", fd, flags)


def write_file(path: str, text: str) -> None:
    """One write(2) to a file of /proc, which must not be split nor created."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def shares_namespaces(pid: int, flags: int) -> bool:
    """Whether this process stands in the same namespaces (those of ``flags``) as process ``pid``."""
    for flag, name in NAMESPACE_FILES.items():
        if flags & flag and os.stat(f"/proc/self/ns/{name}").st_ino != os.stat(f"/proc/{pid}/ns/{name}").st_ino:
            return False
    return True
