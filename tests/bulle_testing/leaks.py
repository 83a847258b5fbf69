"""What a test left behind: processes, mounts, control groups, loop and network devices, nftables tables, descriptors, a changed process.

The test process is a subreaper, so that whatever a test starts stays among its descendants, even a daemon's orphan. Only what this process can have
made counts: the other half of the suite, and other people, may work on the same machine at the same time. Mounts and loop devices name this process's
directory; control groups and network devices have names of the whole machine, see :func:`_abandoned`, :func:`_ours`
and :func:`what_is_left`. conftest.py takes a :class:`Snapshot` before each test and calls :func:`what_is_left` after all its fixtures are gone.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from bulle.isolation import control_group_scope

PR_SET_CHILD_SUBREAPER = 36

# Directories of services that live for the whole session (a private dockerd): what names one of them is not the test's.
session_places: set[str] = set()
# The names of the nftables tables that homes of this run may have.
our_tables: set[str] = set()
# linux/netlink.h, linux/netfilter/nf_tables.h
NETLINK_NETFILTER, NFT_GET_TABLE, NLM_F_REQUEST_DUMP, NLMSG_ERROR, NLMSG_DONE = 12, 10 << 8 | 1, 0x301, 2, 3


def become_subreaper() -> None:
    """Make orphans of our descendants our own children, see PR_SET_CHILD_SUBREAPER in prctl(2)."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@dataclass(frozen=True)
class Snapshot:
    """The state of the machine, as far as this run can have changed it, at one moment."""

    processes: dict[int, str] = field(default_factory=dict)
    mounts: frozenset[str] = frozenset()
    control_groups: frozenset[str] = frozenset()
    loops: frozenset[str] = frozenset()
    network_devices: frozenset[str] = frozenset()
    tables: frozenset[str] = frozenset()
    descriptors: dict[int, str] = field(default_factory=dict)
    process_state: tuple[tuple[str, str], ...] = ()

    @classmethod
    def take(cls, root: Path) -> Snapshot:
        """Look now; ``root`` is the directory that holds everything of this run."""
        return cls(
            processes=descendants(),
            mounts=frozenset(_mounts(str(root))),
            control_groups=frozenset(_control_groups()),
            loops=frozenset(_loops(str(root))),
            network_devices=frozenset(name for name in os.listdir("/sys/class/net") if name.startswith("bulle")),
            tables=frozenset(_tables()),
            descriptors=_descriptors(),
            process_state=_process_state(),
        )


def descendants() -> dict[int, str]:
    """Every living process below this one, with its command line."""
    found: dict[int, str] = {}
    waiting = _children(os.getpid())
    while waiting:
        pid = waiting.pop()
        with suppress(OSError):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            waiting += _children(pid)
            command = _command_line(pid)
            if state not in "ZX" and not any(place in command for place in session_places):
                found[pid] = command
    return found


def _children(pid: int) -> list[int]:
    """The children of every thread of a process. proc_tid_children(5)"""
    found: list[int] = []
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError), open(f"/proc/{pid}/task/{thread}/children") as file:
                found += map(int, file.read().split())
    return found


def _command_line(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def _mounts(root: str) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if root in line and not any(place in line for place in session_places)]


def _control_groups() -> list[str]:
    found = []
    for parent in ("/sys/fs/cgroup", *_directories("/sys/fs/cgroup")):
        found += _directories(f"{parent}/bulle")
    # Where systemd manages the machine: what it handed over, but for the leaf of our own processes.
    return found + [group for group in _directories(control_group_scope.base("/sys/fs/cgroup")) if not group.endswith("/supervisor")]


def _directories(path: str) -> list[str]:
    """What pathlib's glob would find, at a tenth of its cost: this runs twice for every test."""
    with suppress(OSError), os.scandir(path) as entries:
        return [entry.path for entry in entries if entry.is_dir()]
    return []


def _abandoned(group: str, root: Path) -> bool:
    """Whether a new control group is left: one with processes if they are ours, an empty one unless its container is in a home of another run."""
    try:
        inside = {int(line) for line in Path(group, "cgroup.procs").read_text().split()}
    except OSError:
        return False
    if inside:
        return bool(inside & descendants().keys())
    return not any((home / "containers" / Path(group).name).exists() for home in _homes_of_others(root))


def _ours(device: str, root: Path) -> bool:
    """Whether a new network device is of this run: no database of another's knows it, nor the bridge that it is a port of."""
    names = [device.encode()]
    with suppress(OSError):
        names.append(os.fsencode(Path(f"/sys/class/net/{device}/master").readlink().name))
    for home in _homes_of_others(root):
        for file in ("bulle.db", "bulle.db-wal"):
            with suppress(OSError):
                content = (home / file).read_bytes()
                if any(name in content for name in names):
                    return False
    return True


def _homes_of_others(root: Path) -> Iterator[Path]:
    """The homes of other test processes, and of people, in the directories beside this process's; they come and go meanwhile."""
    for run in _directories(str(root.parent)):
        if run != str(root):
            places = _directories(run)
            below = [home for place in places for home in _directories(place)]
            yield from (Path(home) for home in (run, *places, *below) if os.path.exists(f"{home}/bulle.db"))


def _loops(root: str) -> list[str]:
    found = []
    for device in os.listdir("/sys/block"):
        # Most of hundreds are bound to nothing.
        if device.startswith("loop") and os.path.exists(f"/sys/block/{device}/loop"):
            with suppress(OSError):
                name = Path(f"/sys/block/{device}/loop/backing_file").read_text().strip()
                if root in name and not any(place in name for place in session_places):
                    found.append(f"{device} {name}")
    return found


def _tables() -> set[str]:
    """The nftables tables of this run's homes, as the kernel lists them. An ordinary user has none."""
    found: set[str] = set()
    if not our_tables:
        return found
    with suppress(OSError), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as asker:
        asker.settimeout(2)
        asker.send(struct.pack("=IHHIIBBH", 20, NFT_GET_TABLE, NLM_F_REQUEST_DUMP, 1, 0, socket.AF_UNSPEC, 0, 0))
        while True:
            answer = asker.recv(1 << 16)
            found |= {name for name in our_tables if name.encode() in answer}
            if not {NLMSG_DONE, NLMSG_ERROR}.isdisjoint(_message_kinds(answer)):  # an ordinary user is refused
                break
    return found


def _message_kinds(answer: bytes) -> list[int]:
    kinds = []
    position = 0
    while position + 16 <= len(answer):
        length, kind = struct.unpack_from("=IH", answer, position)
        kinds.append(kind if length >= 16 else NLMSG_DONE)
        position += max((length + 3) & ~3, 16)
    return kinds


def _descriptors() -> dict[int, str]:
    found = {}
    for entry in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found[int(entry)] = os.readlink(f"/proc/self/fd/{entry}")
    return found


def _process_state() -> tuple[tuple[str, str], ...]:
    namespaces = [(f"namespace {name}", os.readlink(f"/proc/self/ns/{name}")) for name in sorted(os.listdir("/proc/self/ns"))]
    mask = os.umask(0o022)
    os.umask(mask)
    return (*namespaces, ("working directory", os.getcwd()), ("root", os.readlink("/proc/self/root")), ("umask", oct(mask)))


def what_is_left(before: Snapshot, root: Path, patience_s: float) -> list[str]:
    """One line per thing that was not there before; waits a little for what the kernel ends by itself. Processes left are ended.

    The test is over: a control group or network device that appears while this waits is somebody else's.
    """
    deadline = time.monotonic() + patience_s
    pause_s = 0.01
    gc_done = False
    first = now = Snapshot.take(root)
    while True:
        left = _difference(before, now, root)
        if not left or time.monotonic() > deadline:
            break
        if not gc_done:
            gc.collect()
            gc_done = True
        else:
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, 0.25)
        now = Snapshot.take(root)
        groups, devices = now.control_groups & first.control_groups, now.network_devices & first.network_devices
        now = replace(now, control_groups=groups, network_devices=devices)
    for pid in descendants().keys() - before.processes.keys():
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    reap(before)
    return left


def reap(before: Snapshot) -> None:
    """Reap orphans that became our children since, so that their pids do not linger as zombies."""
    for pid in _children(os.getpid()):
        if pid not in before.processes:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _difference(before: Snapshot, now: Snapshot, root: Path) -> list[str]:
    left = [f"process {pid}: {command}" for pid, command in now.processes.items() if pid not in before.processes]
    left += [f"mount: {line}" for line in now.mounts - before.mounts]
    left += [f"control group: {group}" for group in now.control_groups - before.control_groups if _abandoned(group, root)]
    left += [f"loop device: {loop}" for loop in now.loops - before.loops]
    left += [f"network device: {name}" for name in now.network_devices - before.network_devices if _ours(name, root)]
    left += [f"nftables table: {name}" for name in now.tables - before.tables]
    # The listing's own descriptor comes and goes; a pidfd or socket that stays has a target of its own. What was closed and opened again under
    # another number is not left.
    more = Counter(now.descriptors.values()) - Counter(before.descriptors.values())
    for number, target in sorted(now.descriptors.items(), reverse=True):
        if more[target] > 0 and not target.startswith(f"/proc/{os.getpid()}/fd"):
            more[target] -= 1
            left.append(f"descriptor {number}: {target}")
    was = dict(before.process_state)
    left += [f"{name} of the test process is {value}, was {was.get(name)}" for name, value in now.process_state if was.get(name) != value]
    return left
