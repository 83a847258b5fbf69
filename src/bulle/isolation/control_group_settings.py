"""Docker's limits in the words of control groups: which file gets which value, in version 1 and in version 2; and which limits cannot be.

Pure functions; ``isolation.control_group`` writes what they say. Values are those of runc, so that ``docker inspect`` and the files agree. Version 2
counts swap by itself where Docker counts memory plus swap, and weighs processors from 1 to 10000 where shares go from 2 to 262144.
Specification: config-linux.md of the OCI runtime, docker run(1).
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from bulle.errors import InvalidInput
from bulle.linux.device_filter import DeviceRule
from bulle.model.run_plan import Resources

MINIMUM_MEMORY_BYTES = 6 * 1024 * 1024
CPU_PERIOD_US = 100_000

DEVICE_RULES = (
    DeviceRule("c", None, None, "m"),
    DeviceRule("b", None, None, "m"),
    DeviceRule("c", 1, 3, "rwm"),  # null
    DeviceRule("c", 1, 5, "rwm"),  # zero
    DeviceRule("c", 1, 7, "rwm"),  # full
    DeviceRule("c", 1, 8, "rwm"),  # random
    DeviceRule("c", 1, 9, "rwm"),  # urandom
    DeviceRule("c", 5, 0, "rwm"),  # tty
    DeviceRule("c", 5, 1, "rwm"),  # console
    DeviceRule("c", 5, 2, "rwm"),  # ptmx
    DeviceRule("c", 136, None, "rwm"),  # pts
)
"""What a container may open when nothing else is asked, as in Docker: any node may be made, these may be used."""

_NO_SWAP_ACCOUNTING = "this kernel does not count swap (swapaccount=1 on its command line changes that): memory is limited without swap"


@dataclass(frozen=True)
class Setting:
    """``value`` for ``file`` of ``controller``, because of ``option``; ``optional`` is the note to give where the kernel has no such file."""

    controller: str
    file: str
    value: str
    option: str
    optional: str = ""


def check(resources: Resources) -> None:
    """Refuse limits that cannot be, on any machine or with this machine's processors, as Docker does. Raises InvalidInput."""
    memory, total = resources.memory_bytes, resources.memory_swap_bytes
    if memory < 0 or 0 < memory < MINIMUM_MEMORY_BYTES:
        raise InvalidInput("--memory is too small", "the minimum memory limit allowed is 6MB", "give at least 6m")
    if total < -1:
        raise InvalidInput("--memory-swap cannot be negative", "", "give -1 for unlimited swap")
    if total > 0 and not memory:
        raise InvalidInput("--memory-swap needs --memory", "it is the sum of memory and swap", "give both")
    if 0 < total < memory:
        raise InvalidInput("--memory-swap is too small", "it is the sum of memory and swap, so it cannot be less than --memory", "give a larger one")
    online = os.cpu_count() or 1
    if resources.nano_cpus and not 10_000_000 <= resources.nano_cpus <= online * 1_000_000_000:
        raise InvalidInput("--cpus is out of range", f"it goes from 0.01 to {online}.00, as this machine has {online} processors")
    if resources.cpu_shares < 0:
        raise InvalidInput("--cpu-shares cannot be negative")
    if resources.cpuset_cpus:
        unknown = sorted(parse_cpuset(resources.cpuset_cpus) - parse_cpuset(_online_cpus()))
        if unknown:
            details = f"processor {', '.join(map(str, unknown[:8]))} is not there, these are: {_online_cpus()}"
            raise InvalidInput(f"--cpuset-cpus {resources.cpuset_cpus} cannot be given", details)


def _online_cpus() -> str:
    try:
        with open("/sys/devices/system/cpu/online") as file:
            return file.read().strip()
    except OSError:
        return f"0-{(os.cpu_count() or 1) - 1}"


def parse_cpuset(text: str) -> set[int]:
    """``0-3,7`` as numbers. InvalidInput for what is no list of processors."""
    numbers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isascii() and first.isdigit() and (not dash or (last.isascii() and last.isdigit()))):
            raise InvalidInput(f"invalid list of processors {text!r}", "", "give numbers and ranges, such as 0-3,7")
        low, high = int(first), int(last or first)
        if high < low or high > 1 << 16:
            raise InvalidInput(f"invalid list of processors {text!r}", f"{part} is no range", "give numbers and ranges, such as 0-3,7")
        numbers.update(range(low, high + 1))
    return numbers


def _total(resources: Resources) -> int:
    """Memory plus swap in bytes, as Docker fills it in: twice the memory when nothing is said; -1 is unlimited, 0 no limit."""
    if resources.memory_swap_bytes or not resources.memory_bytes:
        return resources.memory_swap_bytes
    return 2 * resources.memory_bytes


def _quota_us(nano_cpus: int) -> int:
    return max(nano_cpus * CPU_PERIOD_US // 1_000_000_000, 1000)


def settings_v1(resources: Resources) -> list[Setting]:
    """For version 1. Memory stands before its sum with swap: the kernel refuses a sum below it."""
    found = []
    if resources.memory_bytes:
        found.append(Setting("memory", "memory.limit_in_bytes", str(resources.memory_bytes), "--memory"))
        total = _total(resources)
        if total > 0:
            found.append(Setting("memory", "memory.memsw.limit_in_bytes", str(total), "--memory-swap", _NO_SWAP_ACCOUNTING))
    if resources.nano_cpus:
        found.append(Setting("cpu", "cpu.cfs_quota_us", str(_quota_us(resources.nano_cpus)), "--cpus"))
    if resources.cpu_shares:
        found.append(Setting("cpu", "cpu.shares", str(_clamp(resources.cpu_shares)), "--cpu-shares"))
    if resources.cpuset_cpus:
        found.append(Setting("cpuset", "cpuset.cpus", resources.cpuset_cpus, "--cpuset-cpus"))
    if resources.pids_limit > 0:
        found.append(Setting("pids", "pids.max", str(resources.pids_limit), "--pids-limit"))
    return found


def settings_v2(resources: Resources) -> list[Setting]:
    """For version 2."""
    found = []
    if resources.memory_bytes:
        found.append(Setting("memory", "memory.max", str(resources.memory_bytes), "--memory"))
        total = _total(resources)
        swap = "max" if total < 0 else str(total - resources.memory_bytes)
        found.append(Setting("memory", "memory.swap.max", swap, "--memory-swap", _NO_SWAP_ACCOUNTING))
    if resources.nano_cpus:
        found.append(Setting("cpu", "cpu.max", f"{_quota_us(resources.nano_cpus)} {CPU_PERIOD_US}", "--cpus"))
    if resources.cpu_shares:
        found.append(Setting("cpu", "cpu.weight", str(weight(resources.cpu_shares)), "--cpu-shares"))
    if resources.cpuset_cpus:
        found.append(Setting("cpuset", "cpuset.cpus", resources.cpuset_cpus, "--cpuset-cpus"))
    if resources.pids_limit > 0:
        found.append(Setting("pids", "pids.max", str(resources.pids_limit), "--pids-limit"))
    return found


def _clamp(shares: int) -> int:
    return min(max(shares, 2), 262144)


def weight(shares: int) -> int:
    """Shares of version 1 (2 to 262144, 1024 by default) as a weight of version 2 (1 to 10000, 100 by default).

    The quadratic in the logarithm that runc 1.3 and crun use: it keeps both ends and the defaults; the older straight line made 39 of 1024.
    """
    if shares <= 2:
        return 1
    if shares >= 262144:
        return 10000
    logarithm = math.log2(shares)
    return math.ceil(10 ** ((logarithm * logarithm + 125 * logarithm) / 612 - 7 / 34))
