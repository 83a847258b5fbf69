"""Docker's limits in the words of control groups: which file gets which value, in version 1 and in version 2; and which limits cannot be.

Pure functions; ``isolation.control_group`` writes what they say. Values are those of runc, so that ``docker inspect`` and the files agree. Version 2
counts swap by itself where Docker counts memory plus swap, and weighs processors from 1 to 10000 where shares go from 2 to 262144.
Specification: config-linux.md of the OCI runtime, docker run(1).
"""

from __future__ import annotations

import math
import os

from bulle.errors import InvalidInput
from bulle.isolation import control_group_io
from bulle.isolation.control_group_io import Setting
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


_ONLY_V1 = "{} is discarded: version 2 of control groups has nothing like it"


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
    if 0 < memory < resources.memory_reservation_bytes or resources.memory_reservation_bytes < 0:
        raise InvalidInput("--memory-reservation is out of range", "it cannot be more than --memory", "give a smaller one")
    if resources.memory_swappiness is not None and not 0 <= resources.memory_swappiness <= 100:
        raise InvalidInput(f"--memory-swappiness {resources.memory_swappiness} is out of range", "it goes from 0 to 100")
    _check_processors(resources)
    for option, chosen, online in (
        ("--cpuset-cpus", resources.cpuset_cpus, "/sys/devices/system/cpu/online"),
        ("--cpuset-mems", resources.cpuset_mems, "/sys/devices/system/node/online"),
    ):
        unknown = sorted(parse_cpuset(chosen) - parse_cpuset(_online(online))) if chosen else []
        if unknown:
            kind = "processor" if option == "--cpuset-cpus" else "memory node"
            details = f"{kind} {', '.join(map(str, unknown[:8]))} is not there, these are: {_online(online)}"
            raise InvalidInput(f"{option} {chosen} cannot be given", details)
    control_group_io.check(resources)


def _check_processors(resources: Resources) -> None:
    online = os.cpu_count() or 1
    if resources.nano_cpus and not 10_000_000 <= resources.nano_cpus <= online * 1_000_000_000:
        raise InvalidInput("--cpus is out of range", f"it goes from 0.01 to {online}.00, as this machine has {online} processors")
    if resources.nano_cpus and (resources.cpu_quota_us or resources.cpu_period_us):
        raise InvalidInput("--cpus and --cpu-quota or --cpu-period cannot be given together", "--cpus is short for both", "give the one or the other")
    if resources.cpu_period_us and not 1000 <= resources.cpu_period_us <= 1_000_000:
        raise InvalidInput(f"--cpu-period {resources.cpu_period_us} is out of range", "it goes from 1000 to 1000000 microseconds")
    if 0 < resources.cpu_quota_us < 1000:
        raise InvalidInput(f"--cpu-quota {resources.cpu_quota_us} is too small", "it is 1000 microseconds or more")
    if resources.cpu_shares < 0:
        raise InvalidInput("--cpu-shares cannot be negative")


def _online(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return f"0-{(os.cpu_count() or 1) - 1}" if "cpu" in path else "0"


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


def _quota(resources: Resources) -> tuple[int, int]:
    """Microseconds of processor time in a period of microseconds; 0 for what is not said."""
    if resources.nano_cpus:
        return max(resources.nano_cpus * CPU_PERIOD_US // 1_000_000_000, 1000), CPU_PERIOD_US
    return resources.cpu_quota_us, resources.cpu_period_us


def _quota_option(resources: Resources) -> str:
    return "--cpus" if resources.nano_cpus else "--cpu-quota" if resources.cpu_quota_us else "--cpu-period"


def settings_v1(resources: Resources) -> list[Setting]:
    """For version 1. Memory stands before its sum with swap: the kernel refuses a sum below it."""
    found = []
    if resources.memory_bytes:
        found.append(Setting("memory", "memory.limit_in_bytes", str(resources.memory_bytes), "--memory", lifted="-1"))
        total = _total(resources)
        if total > 0:
            found.append(Setting("memory", "memory.memsw.limit_in_bytes", str(total), "--memory-swap", _NO_SWAP_ACCOUNTING, lifted="-1"))
    if resources.memory_reservation_bytes:
        reserved = str(resources.memory_reservation_bytes)
        found.append(Setting("memory", "memory.soft_limit_in_bytes", reserved, "--memory-reservation", lifted="-1"))
    if resources.memory_swappiness is not None:
        found.append(Setting("memory", "memory.swappiness", str(resources.memory_swappiness), "--memory-swappiness", lifted="60"))
    if resources.oom_kill_disable:
        found.append(Setting("memory", "memory.oom_control", "1", "--oom-kill-disable", lifted="0"))
    quota, period = _quota(resources)
    if resources.cpu_period_us:
        found.append(Setting("cpu", "cpu.cfs_period_us", str(period), _quota_option(resources), lifted=str(CPU_PERIOD_US)))
    if quota:
        found.append(Setting("cpu", "cpu.cfs_quota_us", str(quota), _quota_option(resources), lifted="-1"))
    if resources.cpu_shares:
        found.append(Setting("cpu", "cpu.shares", str(_clamp(resources.cpu_shares)), "--cpu-shares", lifted="1024"))
    if resources.cpuset_cpus:
        found.append(Setting("cpuset", "cpuset.cpus", resources.cpuset_cpus, "--cpuset-cpus"))
    if resources.cpuset_mems:
        found.append(Setting("cpuset", "cpuset.mems", resources.cpuset_mems, "--cpuset-mems"))
    if resources.pids_limit > 0:
        found.append(Setting("pids", "pids.max", str(resources.pids_limit), "--pids-limit", lifted="max"))
    return found + control_group_io.settings_v1(resources)


def settings_v2(resources: Resources) -> list[Setting]:
    """For version 2."""
    found = []
    if resources.memory_bytes:
        found.append(Setting("memory", "memory.max", str(resources.memory_bytes), "--memory", lifted="max"))
        total = _total(resources)
        swap = "max" if total < 0 else str(total - resources.memory_bytes)
        found.append(Setting("memory", "memory.swap.max", swap, "--memory-swap", _NO_SWAP_ACCOUNTING, lifted="max"))
    if resources.memory_reservation_bytes:
        found.append(Setting("memory", "memory.low", str(resources.memory_reservation_bytes), "--memory-reservation", lifted="0"))
    if resources.memory_swappiness is not None:
        found.append(Setting("memory", "", "", "--memory-swappiness", _ONLY_V1.format("--memory-swappiness")))
    if resources.oom_kill_disable:
        found.append(Setting("memory", "", "", "--oom-kill-disable", _ONLY_V1.format("--oom-kill-disable")))
    quota, period = _quota(resources)
    if quota or period:
        value = f"{quota if quota > 0 else 'max'} {period or CPU_PERIOD_US}"
        found.append(Setting("cpu", "cpu.max", value, _quota_option(resources), lifted=f"max {CPU_PERIOD_US}"))
    if resources.cpu_shares:
        found.append(Setting("cpu", "cpu.weight", str(weight(resources.cpu_shares)), "--cpu-shares", lifted="100"))
    if resources.cpuset_cpus:
        found.append(Setting("cpuset", "cpuset.cpus", resources.cpuset_cpus, "--cpuset-cpus"))
    if resources.cpuset_mems:
        found.append(Setting("cpuset", "cpuset.mems", resources.cpuset_mems, "--cpuset-mems"))
    if resources.pids_limit > 0:
        found.append(Setting("pids", "pids.max", str(resources.pids_limit), "--pids-limit", lifted="max"))
    return found + control_group_io.settings_v2(resources)


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
