"""Control groups as the kernel shows them: which hierarchies are mounted where, and the few ways to read, write, fill and empty a group.

Version 1 has a hierarchy for each controller (or a few together), version 2 one for all; a hybrid machine has both, with a controller in one of them.
``isolation.control_group`` decides what a container's group is called and what is written; nothing here knows a container. All paths are the host's.
Specification: cgroups(7), Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

V1_CONTROLLERS = frozenset(
    ("cpu", "cpuacct", "cpuset", "memory", "pids", "devices", "freezer", "blkio", "hugetlb", "net_cls", "net_prio", "perf_event", "rdma", "misc")
)


@dataclass(frozen=True)
class Hierarchy:
    """One mounted hierarchy.

    ``controllers`` are those that it carries (of version 2: that its root offers); ``mount_path`` is where, ``own_path`` the calling process's own
    group below it (``""`` is the mount's root), None when that lies outside of what is mounted.
    """

    version: int
    controllers: frozenset[str]
    mount_path: str
    read_only: bool
    own_path: str | None


def parse_hierarchies(mountinfo: str, cgroup: str) -> list[Hierarchy]:
    """The hierarchies in the texts of /proc/self/mountinfo and /proc/self/cgroup; of several mounts of one, the last below /sys/fs/cgroup."""
    own: dict[frozenset[str], str] = {}
    for line in cgroup.splitlines():
        _, names, path = line.split(":", 2)
        own[frozenset(names.split(",") if names else ())] = path
    found: dict[frozenset[str], Hierarchy] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, super_options = after.split(" ", 2)
        if kind not in ("cgroup", "cgroup2"):
            continue
        fields = before.split(" ")
        root, mount_path, options = _unescape(fields[3]), _unescape(fields[4]), fields[5]
        controllers = frozenset[str]() if kind == "cgroup2" else frozenset(super_options.split(",")) & V1_CONTROLLERS
        if kind == "cgroup" and not controllers:
            continue
        previous = found.get(controllers)
        if previous and previous.mount_path.startswith("/sys/fs/cgroup") and not mount_path.startswith("/sys/fs/cgroup"):
            continue
        read_only = "ro" in options.split(",") or "ro" in super_options.split(",")
        offered = controllers or frozenset(read_words(f"{mount_path}/cgroup.controllers"))
        own_path = _below(root, own.get(controllers, ""))
        found[controllers] = Hierarchy(2 if kind == "cgroup2" else 1, offered, mount_path, read_only, own_path)
    return list(found.values())


@functools.cache
def hierarchies() -> tuple[Hierarchy, ...]:
    """What is mounted for this process; looked up once (forked children share the answer)."""
    try:
        return tuple(parse_hierarchies(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text()))
    except OSError:
        return ()


def _unescape(path: str) -> str:
    for escaped, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(escaped, character)
    return path


def _below(root: str, path: str) -> str | None:
    """``path`` relative to ``root``, "" for itself, None when it is not below it."""
    if root == "/":
        return path.rstrip("/")
    if path == root:
        return ""
    return path[len(root) :] if path.startswith(root + "/") else None


def write(directory: str, name: str, value: str) -> None:
    """Write one file of a group. OSError with the file's path."""
    path = f"{directory}/{name}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(descriptor)


def read(directory: str, name: str) -> str:
    """One file of a group, without the last newline; empty when there is no such file or group."""
    try:
        descriptor = os.open(f"{directory}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(descriptor, 1 << 16).decode().rstrip("\n")
    except OSError:
        return ""
    finally:
        os.close(descriptor)


def read_words(path: str) -> list[str]:
    """The words of one file, by its whole path; none when it cannot be read."""
    directory, _, name = path.rpartition("/")
    return read(directory, name).split()


def read_values(directory: str, name: str) -> dict[str, int]:
    """A flat keyed file (``memory.events``, ``cpu.stat``) as numbers; empty when it cannot be read."""
    values = {}
    for line in read(directory, name).splitlines():
        key, _, value = line.partition(" ")
        if value.isdigit():
            values[key] = int(value)
    return values


def subgroups(directory: str) -> Iterator[str]:
    """The group and all below it, deepest first."""
    try:
        with os.scandir(directory) as entries:
            children = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return
    for child in children:
        yield from subgroups(child)
    yield directory


def processes(directory: str) -> list[int]:
    """The pids, as this process's pid namespace has them, of all in the group and below; ascending. Those of other namespaces (0) are left out."""
    found: set[int] = set()
    for group in subgroups(directory):
        with contextlib.suppress(OSError, ValueError):
            descriptor = os.open(f"{group}/cgroup.procs", os.O_RDONLY | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                found.update(int(line) for line in file)
    found.discard(0)
    return sorted(found)


def kill(directory: str) -> None:
    """SIGKILL to every process in the group and below, once; a pid that left the group meanwhile is not hit."""
    if os.path.exists(f"{directory}/cgroup.kill"):
        with contextlib.suppress(OSError):
            write(directory, "cgroup.kill", "1")
            return
    held: dict[int, int] = {}
    try:
        for pid in processes(directory):
            with contextlib.suppress(OSError):
                held[pid] = os.pidfd_open(pid)
        members = set(processes(directory))  # again: now the descriptors pin whom we mean
        for pid, descriptor in held.items():
            if pid in members:
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    finally:
        for descriptor in held.values():
            os.close(descriptor)


def remove(directory: str, timeout_s: float) -> bool:
    """Remove the group and all below it; False when it is still in use after ``timeout_s``. A group that is not there is removed."""
    deadline = time.monotonic() + timeout_s
    pause_s = 0.0005
    while True:
        try:
            os.rmdir(directory)
            return True
        except OSError as error:
            if error.errno == errno.ENOENT:
                return True
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                return False
        for group in subgroups(directory):
            if group != directory:
                with contextlib.suppress(OSError):
                    os.rmdir(group)
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.02)
