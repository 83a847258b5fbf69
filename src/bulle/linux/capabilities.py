"""Capabilities: their names and numbers, Docker's rules of ``--cap-add`` and ``--cap-drop``, and the calls that give them up.

The engine resolves what the user asked to a tuple of names for the plan; a driver's child calls :func:`drop_bounding` before it changes its user
(that needs CAP_SETPCAP) and :func:`set_current` after (setuid(2) needs capabilities that the container may lack). Names carry the ``CAP_`` prefix.
This module decides nothing about users: a process that leaves uid 0 loses its permitted set in setresuid(2) itself. capabilities(7)
"""

from __future__ import annotations

import ctypes
import errno
import functools
import struct
from collections.abc import Iterable
from pathlib import Path

from bulle.errors import InvalidInput
from bulle.linux.libc import NUMBERS, libc, oserror

CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)
"""Every capability at its number. linux/capability.h"""

NUMBER = {name: number for number, name in enumerate(CAPABILITIES)}

DOCKER_DEFAULT = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SYS_CHROOT",
    "CAP_MKNOD",
    "CAP_AUDIT_WRITE",
    "CAP_SETFCAP",
)
"""What a container has when nothing is asked: the fourteen of Docker."""

PR_CAPBSET_DROP = 24
_VERSION_3 = 0x20080522
_prctl = libc.prctl  # looked up here, so that a forked child need not


@functools.cache
def last_capability() -> int:
    """The highest capability that this kernel knows; that of this table where /proc does not say."""
    try:
        return min(int(Path("/proc/sys/kernel/cap_last_cap").read_bytes()), 63)
    except (OSError, ValueError):
        return len(CAPABILITIES) - 1


@functools.cache
def known() -> tuple[str, ...]:
    """The capabilities that this kernel has, in order."""
    return CAPABILITIES[: last_capability() + 1]


def normalize(name: str) -> str:
    """``net_raw``, ``CAP_NET_RAW`` and ``NET_RAW`` as ``CAP_NET_RAW``; ``ALL`` stays. InvalidInput for a name that no kernel or not this one has."""
    upper = name.strip().upper()
    if upper in ("ALL", "CAP_ALL"):
        return "ALL"
    full = upper if upper.startswith("CAP_") else "CAP_" + upper
    if full not in NUMBER:
        raise InvalidInput(f"invalid capability {name!r}", "no kernel has one of this name", "see capabilities(7) for the names")
    if full not in known():
        raise InvalidInput(f"capability {full} cannot be given", "this kernel does not have it yet")
    return full


def parse_caps(add: Iterable[str] = (), drop: Iterable[str] = (), privileged: bool = False) -> tuple[str, ...]:
    """What ``--cap-add`` and ``--cap-drop`` leave of the default, as Docker decides it, in the kernel's order.

    Privileged is everything, whatever else is asked. ``add ALL`` is everything but what is dropped by name; ``drop ALL`` is only what is added.
    Raises InvalidInput for a name that does not exist.
    """
    added = {normalize(name) for name in add}
    dropped = {normalize(name) for name in drop}
    if privileged:
        return known()
    if "ALL" in added:
        kept = set(known()) - dropped
    elif "ALL" in dropped:
        kept = added
    else:
        kept = (set(DOCKER_DEFAULT) - dropped) | added
    return tuple(name for name in known() if name in kept)


def mask(names: Iterable[str]) -> int:
    """The names as the kernel's bit set. KeyError for a name that is not in the table."""
    bits = 0
    for name in names:
        bits |= 1 << NUMBER[name]
    return bits


def names_of(bits: int) -> tuple[str, ...]:
    """The kernel's bit set as names; bits beyond the table are left out."""
    return tuple(name for number, name in enumerate(CAPABILITIES) if bits >> number & 1)


def of_process(pid: int | str = "self") -> dict[str, int]:
    """The five sets of a process as the host sees them, by their names in /proc/PID/status: CapInh, CapPrm, CapEff, CapBnd, CapAmb."""
    sets: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("Cap"):
            name, _, value = line.partition(":")
            sets[name] = int(value, 16)
    return sets


def drop_bounding(keep: Iterable[str]) -> None:
    """Take every capability but ``keep`` out of the calling thread's bounding set, for good. OSError EPERM without CAP_SETPCAP. prctl(2)"""
    kept = mask(keep)
    for number in range(64):  # the kernel's last is not looked up: it answers EINVAL beyond
        if not kept >> number & 1 and _prctl(PR_CAPBSET_DROP, number, 0, 0, 0) != 0:
            if ctypes.get_errno() == errno.EINVAL and number > NUMBER["CAP_AUDIT_READ"]:
                return
            raise oserror("prctl(PR_CAPBSET_DROP)")


def set_current(permitted: Iterable[str], effective: Iterable[str], inheritable: Iterable[str] = ()) -> tuple[str, ...]:
    """Set the calling thread's permitted, effective and inheritable sets; returns what was asked for but is not there to have.

    Nothing can be gained: a capability that the thread does not have is left out and named in the answer (root in a container of somebody else lacks
    some). The ambient set shrinks with the inheritable one, so that it is empty unless both keep it. OSError otherwise. capset(2)
    """
    wanted, active, inherited = mask(permitted), mask(effective), mask(inheritable)
    if _capset(wanted, active, inherited):
        return ()
    if ctypes.get_errno() != errno.EPERM:
        raise oserror("capset")
    sets = of_process("thread-self")
    had = sets["CapPrm"]
    if not _capset(wanted & had, active & had, inherited & (had | sets["CapInh"])):
        raise oserror("capset")
    return names_of(wanted & ~had)


def apply(
    bounding: Iterable[str],
    permitted: Iterable[str],
    effective: Iterable[str],
    inheritable: Iterable[str] = (),
) -> tuple[str, ...]:
    """:func:`drop_bounding` and :func:`set_current` in one, for a process that does not change its user in between; the same answer and errors."""
    drop_bounding(bounding)
    return set_current(permitted, effective, inheritable)


def _capset(permitted: int, effective: int, inheritable: int) -> bool:
    header = struct.pack("=Ii", _VERSION_3, 0)
    low, high = 0xFFFFFFFF, 32
    data = struct.pack(
        "=6I", effective & low, permitted & low, inheritable & low, effective >> high, permitted >> high, inheritable >> high
    )
    return bool(libc.syscall(ctypes.c_long(NUMBERS["capset"]), header, data) == 0)
