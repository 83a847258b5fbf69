"""What workloads have used: from their control groups where these count it, else summed over their processes.

Asked for many workloads at once (``stats``), so that the machine's processes are looked through once at most. Memory is counted as Docker does:
without the cache that the kernel would give up first (``inactive_file``). Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from bulle.linux import control_group as kernel
from bulle.linux import process_usage

_UNLIMITED = 1 << 62


@dataclass(frozen=True)
class Statistics:
    """What a workload has used until ``at_ns`` (of the monotonic clock); None where it is not counted.

    ``memory_limit_bytes`` is None without a limit. Bytes of the network are those of its own interfaces, bytes of blocks those of block devices.
    """

    memory_bytes: int | None = None
    memory_limit_bytes: int | None = None
    cpu_ns: int | None = None
    pids: int | None = None
    block_read_bytes: int | None = None
    block_written_bytes: int | None = None
    network_received_bytes: int = 0
    network_sent_bytes: int = 0
    at_ns: int = 0


def of_group(directories: Mapping[str, str]) -> Statistics:
    """What the group with these directories (by controller; one with an empty name on version 2) counts; they may be missing."""
    if "" in directories:
        return _of_version_2(directories[""])
    memory = _memory(directories.get("memory", ""), "memory.usage_in_bytes", "total_inactive_file")
    limit = _number(_read(directories, "memory", "memory.limit_in_bytes"))
    cpu, pids = _number(_read(directories, "cpuacct", "cpuacct.usage")), _number(_read(directories, "pids", "pids.current"))
    read, written = _transferred_1(_read(directories, "blkio", "blkio.throttle.io_service_bytes_recursive"))
    return Statistics(memory, None if limit is None or limit >= _UNLIMITED else limit, cpu, pids, read, written)


def _of_version_2(group: str) -> Statistics:
    cpu_us = kernel.read_values(group, "cpu.stat").get("usage_usec")
    limit, pids = _number(kernel.read(group, "memory.max")), _number(kernel.read(group, "pids.current"))
    read, written = _transferred_2(kernel.read(group, "io.stat"))
    memory = _memory(group, "memory.current", "inactive_file")
    return Statistics(memory, limit, None if cpu_us is None else cpu_us * 1000, pids, read, written)


def _read(directories: Mapping[str, str], controller: str, name: str) -> str:
    return kernel.read(directories[controller], name) if controller in directories else ""


def _memory(group: str, name: str, cache: str) -> int | None:
    used = _number(kernel.read(group, name)) if group else None
    if used is None:
        return None
    idle = kernel.read_values(group, "memory.stat").get(cache, 0)
    return used - idle if idle < used else used


def _transferred_1(text: str) -> tuple[int | None, int | None]:
    """Of lines ``8:0 Read 4096`` and a last ``Total 4096``."""
    if not text:
        return None, None
    read = written = 0
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[1] in ("Read", "Write"):
            read, written = (read + int(words[2]), written) if words[1] == "Read" else (read, written + int(words[2]))
    return read, written


def _transferred_2(text: str) -> tuple[int | None, int | None]:
    """Of lines ``8:0 rbytes=4096 wbytes=0 rios=1 ...``."""
    if not text:
        return None, None
    read = written = 0
    for line in text.splitlines():
        values = dict(word.partition("=")[::2] for word in line.split()[1:])
        read += int(values.get("rbytes", 0))
        written += int(values.get("wbytes", 0))
    return read, written


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def complete(groups: Sequence[Statistics], pids: Sequence[int], find: Callable[[Sequence[int]], Mapping[int, Sequence[int]]]) -> list[Statistics]:
    """What groups counted, and for what they did not the sums over the processes of the workloads with these first ``pids``.

    ``find`` tells the processes of several workloads at once.
    """
    lacking = [pid for pid, counted in zip(pids, groups, strict=True) if not _is_complete(counted)]
    found = find(lacking) if lacking else {}
    return [_completed(counted, [*found.get(pid, ()), pid], pid) for pid, counted in zip(pids, groups, strict=True)]


def _is_complete(counted: Statistics) -> bool:
    return None not in (counted.memory_bytes, counted.cpu_ns, counted.pids, counted.block_read_bytes)


def _completed(counted: Statistics, processes: Sequence[int], first: int) -> Statistics:
    if _is_complete(counted):
        return replace(counted, at_ns=time.monotonic_ns())
    used = [process_usage.usage_of(pid) for pid in {*processes, first}]

    def either(value: int | None, name: str) -> int:
        return sum(getattr(one, name) for one in used) if value is None else value

    return replace(
        counted,
        memory_bytes=either(counted.memory_bytes, "memory_bytes"),
        cpu_ns=either(counted.cpu_ns, "cpu_ns"),
        pids=either(counted.pids, "threads"),
        block_read_bytes=either(counted.block_read_bytes, "read_bytes"),
        block_written_bytes=either(counted.block_written_bytes, "written_bytes"),
        at_ns=time.monotonic_ns(),
    )
