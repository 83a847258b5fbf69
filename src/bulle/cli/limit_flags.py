"""The flags of ``run`` and ``create`` for limits beyond the usual ones, and how they become fields of the options."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import click

from bulle.cli.human import parse_size
from bulle.cli.option_types import Size, Text, Whole
from bulle.errors import InvalidInput
from bulle.model.run_plan import DeviceLimit

_DEVICE_FLAGS = ("blkio_weight_device", "device_read_bps", "device_write_bps", "device_read_iops", "device_write_iops")

LIMIT_FLAGS: Sequence[Callable[[Any], Any]] = (
    click.option("--memory-reservation", type=Size(), help="Memory soft limit"),
    click.option("--memory-swappiness", type=Whole(-1), default=-1, help="Tune container memory swappiness (0 to 100) (default -1)"),
    click.option("--oom-kill-disable", is_flag=True, help="Disable OOM Killer (version 1 of control groups)"),
    click.option("--cpu-quota", type=Whole(-1), help="Limit CPU CFS (Completely Fair Scheduler) quota, in microseconds"),
    click.option("--cpu-period", type=Whole(0), help="Limit CPU CFS (Completely Fair Scheduler) period, in microseconds"),
    click.option("--cpuset-mems", type=Text(), help="MEMs in which to allow execution (0-3, 0,1)"),
    click.option("--blkio-weight", type=Whole(0), help="Block IO (relative weight), between 10 and 1000, or 0 to disable (default 0)"),
    click.option("--blkio-weight-device", multiple=True, type=Text("list"), help="Block IO weight (relative device weight) (DEVICE:WEIGHT)"),
    click.option("--device-read-bps", multiple=True, type=Text("list"), help="Limit read rate (bytes per second) from a device (DEVICE:RATE)"),
    click.option("--device-write-bps", multiple=True, type=Text("list"), help="Limit write rate (bytes per second) to a device (DEVICE:RATE)"),
    click.option("--device-read-iops", multiple=True, type=Text("list"), help="Limit read rate (IO per second) from a device (DEVICE:RATE)"),
    click.option("--device-write-iops", multiple=True, type=Text("list"), help="Limit write rate (IO per second) to a device (DEVICE:RATE)"),
)


def limits_from(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the options. Raises InvalidInput."""
    return {
        "memory_reservation_bytes": flags["memory_reservation"] or 0,
        "memory_swappiness": None if flags["memory_swappiness"] < 0 else flags["memory_swappiness"],
        "oom_kill_disable": flags["oom_kill_disable"],
        "cpu_quota_us": flags["cpu_quota"] or 0,
        "cpu_period_us": flags["cpu_period"] or 0,
        "cpuset_mems": flags["cpuset_mems"] or "",
        "blkio_weight": flags["blkio_weight"] or 0,
        "device_limits": tuple(_device_limits(flags)),
    }


def _device_limits(flags: Mapping[str, Any]) -> Iterator[DeviceLimit]:
    for name in _DEVICE_FLAGS:
        flag = f"--{name.replace('_', '-')}"
        for text in flags[name]:
            path, colon, amount = text.rpartition(":")
            if not colon or not path.startswith("/dev/"):
                example = "1mb" if name.endswith("bps") else "500"
                raise InvalidInput(f"{flag} {text} cannot be understood", "", f"write it as {flag} /dev/sda:{example}")
            if name.endswith("bps"):
                value = parse_size(amount)
            elif amount.isascii() and amount.isdigit():
                value = int(amount)
            else:
                raise InvalidInput(f"{flag} {text} cannot be understood", f"{amount!r} is no positive number", "")
            yield DeviceLimit("weight" if "weight" in name else name.removeprefix("device_"), path, value)  # type: ignore[arg-type]
