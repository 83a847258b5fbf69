"""What the kernel said of processes that it killed or refused something: records of its log, for whoever may read it.

``/dev/kmsg`` has them where no audit daemon takes them (it then writes them to its own file); both are read. Nothing is found where this user may
read neither. kmsg(4), audit records of type SECCOMP (1326).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from bulle.linux import syscall_numbers

_AUDIT_LOG = "/var/log/audit/audit.log"
_MOST_BYTES = 1 << 20
_RECORD_BYTES = 8192
_REFUSED = re.compile(r"type=(?:1326|SECCOMP) .*?audit\((\d+)\.(\d{3}):\d+\):? .*?\buid=(\d+) .*?\bpid=(\d+) .*?\barch=([0-9a-f]+) syscall=(\d+) ")
_KILLED = re.compile(r"Out of memory: Killed process (\d+) ")
_ABIS = {"c000003e": "x86_64", "40000003": "i386", "c00000b7": "aarch64", "40000028": "arm", "c00000f3": "riscv64"}


@dataclass(frozen=True)
class Refusal:
    """A system call that a filter did not let pass: when (nanoseconds since the epoch), of which process and user (host ids), and its name."""

    at_ns: int
    pid: int
    uid: int
    call: str


def refusals(since_ns: int, concerns: Callable[[int, int], bool], lines: Iterable[str] | None = None) -> list[Refusal]:
    """Those from then on of processes that ``concerns`` (pid, uid) picks, oldest first; ``lines`` are of another kernel's log than this machine's."""
    found = []
    for line in _lines() if lines is None else lines:
        if (match := _REFUSED.search(line)) is None:
            continue
        at_ns = int(match[1]) * 1_000_000_000 + int(match[2]) * 1_000_000
        pid, uid = int(match[4]), int(match[3])
        if at_ns >= since_ns // 1_000_000 * 1_000_000 and concerns(pid, uid):
            found.append(Refusal(at_ns, pid, uid, _name(match[5], int(match[6]))))
    return found


def killed_for_memory(pid: int) -> bool:
    """Whether the machine as a whole ran out of memory and the kernel chose this process (host pid) to be killed."""
    return any((match := _KILLED.search(line)) is not None and int(match[1]) == pid for line in _lines())


def _name(architecture: str, number: int) -> str:
    table = syscall_numbers.numbers(_ABIS[architecture]) if architecture in _ABIS else {}
    return next((name for name, value in table.items() if value == number), f"number {number}")


def _lines() -> Iterator[str]:
    with suppress(OSError):
        descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            while True:
                try:
                    yield os.read(descriptor, _RECORD_BYTES).decode(errors="replace")
                except BrokenPipeError:  # overwritten while it was read: the next one is there
                    continue
        finally:
            os.close(descriptor)
    with suppress(OSError), open(_AUDIT_LOG, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _MOST_BYTES))
        yield from file.read(_MOST_BYTES).decode(errors="replace").splitlines()
