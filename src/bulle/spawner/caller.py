"""Who is calling: what the kernel says of the process behind a connection, compared with what the spawner was started from.

The spawner must never be a way out of a sandbox, nor run a command elsewhere than where its caller stands. So the server reads the caller's
*standing* (namespaces, capabilities, NoNewPrivs, seccomp, LSM label, root directory, ids) from /proc and serves only a caller whose standing is its
own; what may differ harmlessly (umask, limits, groups, processors, OOM score) is taken over in the child. Nothing here trusts the request, except
for resource limits, that a caller can only lower or raise as far as it could itself. proc_pid_status(5), namespaces(7), SO_PEERCRED in unix(7)
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
from dataclasses import dataclass, replace

from bulle.spawner.protocol import LIMIT_COUNT, Reason

NAMESPACES = ("user", "net", "pid", "pid_for_children", "uts", "ipc", "cgroup", "time", "time_for_children")
SO_PEERPIDFD = 77
CAP_SETGID = 6
CAP_SYS_NICE = 23
CAP_SYS_RESOURCE = 24
_CAPABILITY_LINES = (b"CapInh", b"CapPrm", b"CapEff", b"CapBnd", b"CapAmb")


Place = tuple[int, tuple[int, int, bytes]]


class CallerUnreadableError(Exception):
    """The caller is gone, or /proc does not show it to this user."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one process stands, by the kernel's word."""

    mount_namespace: int
    namespaces: tuple[int, ...]
    capabilities: tuple[bytes, ...]
    no_new_privileges: bytes
    seccomp: tuple[bytes, bytes]
    label: bytes
    root: tuple[int, int, bytes]  # device, inode, and the mount: a bind of the same directory is another root
    user_ids: bytes
    group_ids: bytes
    groups: bytes
    umask: int
    processors: bytes
    oom_score_adjustment: int

    @property
    def place(self) -> Place:
        """Mount namespace and root directory."""
        return self.mount_namespace, self.root

    def has_capability(self, number: int) -> bool:
        """Whether the capability is effective."""
        return bool(int(self.capabilities[2], 16) >> number & 1)


@dataclass(frozen=True, slots=True)
class Takeover:
    """What the child takes over from its caller; None where it is the spawner's own already."""

    umask: int
    limits: tuple[tuple[int, int, int], ...] = ()
    group_ids: tuple[int, int, int] | None = None
    groups: tuple[int, ...] = ()
    processors: frozenset[int] | None = None
    oom_score_adjustment: int | None = None


def standing_of(process: int | str) -> Standing:
    """The standing of a process by pid (or "self"). Raises CallerUnreadableError."""
    base = f"/proc/{process}"
    try:
        status = _status(f"{base}/status")
        return Standing(
            mount_namespace=os.stat(f"{base}/ns/mnt").st_ino,
            namespaces=tuple(_inode(f"{base}/ns/{name}") for name in NAMESPACES),
            capabilities=tuple(status[line] for line in _CAPABILITY_LINES),
            no_new_privileges=status.get(b"NoNewPrivs", b""),
            seccomp=(status.get(b"Seccomp", b""), status.get(b"Seccomp_filters", b"")),
            label=_label(f"{base}/attr/current"),
            root=_root(f"{base}/root"),
            user_ids=status[b"Uid"],
            group_ids=status[b"Gid"],
            groups=status[b"Groups"],
            umask=int(status[b"Umask"], 8),
            processors=status[b"Cpus_allowed_list"],
            oom_score_adjustment=int(_read(f"{base}/oom_score_adj")),
        )
    except (OSError, KeyError, ValueError) as error:
        raise CallerUnreadableError(str(error)) from error


def peer_standing(connection: socket.socket) -> tuple[int, Standing]:
    """Pid and standing of the process that connected, which is certainly still that process. Raises CallerUnreadableError."""
    pid, _uid, _gid = peer_credentials(connection)
    try:
        try:
            pidfd = connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
        except OSError:
            pidfd = os.pidfd_open(pid)
    except OSError as error:
        raise CallerUnreadableError(str(error)) from error
    try:
        standing = standing_of(pid)
        # A pid can be taken by another process between two looks at /proc; not while the first owner lives.
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if poll.poll(0):
            raise CallerUnreadableError("the caller has ended")
        signal.pidfd_send_signal(pidfd, 0)
    except OSError as error:
        raise CallerUnreadableError(str(error)) from error
    finally:
        os.close(pidfd)
    return pid, standing


def peer_credentials(connection: socket.socket) -> tuple[int, int, int]:
    """(pid, uid, gid) of the process that connected, at the time it did."""
    pid, uid, gid = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid, gid


def reason_to_bypass(origin: Standing, own_place: Place, caller: Standing) -> Reason | None:
    """Why a caller cannot be served, or None. ``origin`` is what the spawner was started from; its children are born in ``own_place``."""
    if caller.namespaces != origin.namespaces or caller.mount_namespace not in (origin.mount_namespace, own_place[0]):
        return Reason.NAMESPACES
    if caller.place not in (origin.place, own_place):
        return Reason.ROOT_DIRECTORY
    if caller.capabilities != origin.capabilities:
        return Reason.CAPABILITIES
    if caller.no_new_privileges != origin.no_new_privileges:
        return Reason.NO_NEW_PRIVILEGES
    if caller.seccomp != origin.seccomp:
        return Reason.SECCOMP
    if caller.label != origin.label:
        return Reason.LSM_LABEL
    may_change_groups = origin.has_capability(CAP_SETGID)
    if caller.user_ids != origin.user_ids or (not may_change_groups and (caller.groups != origin.groups or caller.group_ids != origin.group_ids)):
        return Reason.IDENTITY
    if caller.oom_score_adjustment < origin.oom_score_adjustment and not origin.has_capability(CAP_SYS_RESOURCE):
        return Reason.LIMITS
    return None


def takeover(origin: Standing, own_limits: bytes, caller: Standing, limits: bytes) -> Takeover | None:
    """What the child must take over, or None where a limit is above the spawner's own and it may not raise it."""
    changed = []
    if limits != own_limits:
        own, asked = struct.unpack("<32Q", own_limits), struct.unpack("<32Q", limits)
        for number in range(LIMIT_COUNT):
            soft, hard = asked[2 * number : 2 * number + 2]
            if (soft, hard) != own[2 * number : 2 * number + 2]:
                if hard > own[2 * number + 1] and not origin.has_capability(CAP_SYS_RESOURCE):
                    return None
                changed.append((number, _signed(soft), _signed(hard)))
    result = Takeover(caller.umask, tuple(changed))
    if caller.groups != origin.groups or caller.group_ids != origin.group_ids:
        real, effective, saved = (int(text) for text in caller.group_ids.split()[:3])
        result = replace(result, group_ids=(real, effective, saved), groups=tuple(int(text) for text in caller.groups.split()))
    if caller.processors != origin.processors:
        result = replace(result, processors=_processors(caller.processors))
    if caller.oom_score_adjustment != origin.oom_score_adjustment:
        result = replace(result, oom_score_adjustment=caller.oom_score_adjustment)
    return result


def _signed(limit: int) -> int:
    return limit - (1 << 64) if limit >> 63 else limit


def _processors(text: bytes) -> frozenset[int]:
    numbers: set[int] = set()
    for part in text.decode().split(","):
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return frozenset(numbers)


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 16384)
    finally:
        os.close(fd)


def _status(path: str) -> dict[bytes, bytes]:
    return {name: value.strip() for name, _, value in (line.partition(b":") for line in _read(path).splitlines())}


def _root(path: str) -> tuple[int, int, bytes]:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        information = _read(f"/proc/self/fdinfo/{fd}")
    finally:
        os.close(fd)
    return status.st_dev, status.st_ino, information.partition(b"mnt_id:")[2].split()[0]


def _inode(path: str) -> int:
    # Kernels without this kind of namespace have no such file, for anybody: equal.
    with contextlib.suppress(FileNotFoundError):
        return os.stat(path).st_ino
    return 0


def _label(path: str) -> bytes:
    # EINVAL without a security module that has labels.
    try:
        return _read(path).strip()
    except PermissionError:
        raise
    except OSError:
        return b""
