"""What a process has used, as /proc and its clock tell: for workloads that no control group counts.

Numbers of processes that were waited for are part of their parent's. A process that is gone, or that we may not look at, has used nothing. proc(5),
clock_getres(2)
"""

from __future__ import annotations

import os
import time
from typing import NamedTuple

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_CPUCLOCK_SCHED = 2


class ProcessUsage(NamedTuple):
    """``cpu_ns`` with that of children that were waited for, ``memory_bytes`` shared pages by parts, ``threads``, bytes from and to block devices."""

    cpu_ns: int = 0
    memory_bytes: int = 0
    threads: int = 0
    read_bytes: int = 0
    written_bytes: int = 0


def usage_of(pid: int) -> ProcessUsage:
    """One process until now."""
    try:
        fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        # Its clock has nanoseconds where stat has hundredths of a second.
        cpu_ns = time.clock_gettime_ns((~pid << 3) | _CPUCLOCK_SCHED) + (int(fields[13]) + int(fields[14])) * _TICK_NS
        threads = int(fields[17])
    except (OSError, IndexError):
        return ProcessUsage()
    read_bytes, written_bytes = _transferred(pid)
    return ProcessUsage(cpu_ns, _memory(pid), threads, read_bytes, written_bytes)


def _memory(pid: int) -> int:
    try:
        for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
        return 0
    except OSError:
        pass
    try:
        return int(_read(f"/proc/{pid}/statm").split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0


def private_bytes(pid: int) -> int:
    """The memory that the machine would have back if this process ended: what it shares with no other. proc_pid_smaps(5)"""
    try:
        lines = _read(f"/proc/{pid}/smaps_rollup").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(b"Private_")) * 1024


def available_bytes() -> int:
    """The memory that the machine can give to new processes without swapping. proc_meminfo(5)"""
    return _of_machine("MemAvailable")


def kernel_bytes() -> int:
    """What the kernel holds for all that runs: its objects, stacks, page tables (those of virtual machines too), parts of each processor."""
    return _of_machine("Slab", "KernelStack", "PageTables", "SecPageTables", "Percpu")


def _of_machine(*names: str) -> int:
    lines = (line.partition(":") for line in _read("/proc/meminfo").decode().splitlines())
    return sum(int(value.split()[0]) * 1024 for name, _, value in lines if name in names)


def _transferred(pid: int) -> tuple[int, int]:
    try:
        values = dict(line.split(b": ") for line in _read(f"/proc/{pid}/io").splitlines())
        return int(values[b"read_bytes"]), int(values[b"write_bytes"])
    except (OSError, KeyError, ValueError):
        return 0, 0


def network_traffic(pid: int) -> tuple[int, int]:
    """Bytes received and sent by the network namespace of a process, loopback left out."""
    received = sent = 0
    try:
        lines = _read(f"/proc/{pid}/net/dev").decode().splitlines()[2:]
    except OSError:
        return 0, 0
    for line in lines:
        name, _, values = line.partition(":")
        if name.strip() != "lo":
            words = values.split()
            received += int(words[0])
            sent += int(words[8])
    return received, sent


def machine_memory_bytes() -> int:
    """What this machine has."""
    return os.sysconf("SC_PHYS_PAGES") * _PAGE_BYTES


def _read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        content = b""
        while chunk := os.read(descriptor, 16384):
            content += chunk
        return content
    finally:
        os.close(descriptor)


def machine_processor_ns() -> int:
    """Nanoseconds that all processors together have spent since boot, also idle ones. proc_stat(5)"""
    with open("/proc/stat", "rb") as file:
        fields = file.readline().split()[1:9]  # what guests used is counted in the first two already
    return sum(map(int, fields)) * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))
