"""Limits on input and output in the words of each version of control groups: weights, and rates of single block devices.

Called by :mod:`bulle.isolation.control_group_settings`. Rates are blkio.throttle in version 1 and io.max in version 2; a weight is the bfq
scheduler's or, in version 2, also iocost's, and a machine whose disks have neither does not weigh: that is said and not an error, as in Docker.
Specification: blkio in config-linux.md of the OCI runtime.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from bulle.errors import InvalidInput
from bulle.model.run_plan import Resources

_NO_WEIGHTS = "this kernel does not weigh input and output here (its disks have no bfq scheduler): {} is discarded"
_V1 = {
    "read_bps": "blkio.throttle.read_bps_device",
    "write_bps": "blkio.throttle.write_bps_device",
    "read_iops": "blkio.throttle.read_iops_device",
    "write_iops": "blkio.throttle.write_iops_device",
}
_V2 = {"read_bps": "rbps", "write_bps": "wbps", "read_iops": "riops", "write_iops": "wiops"}


@dataclass(frozen=True)
class Setting:
    """``value`` for ``file`` of ``controller``, because of ``option``.

    ``optional`` is the note to give where the kernel has no such file (an empty name is never there); ``lifted`` is what the file says
    without a limit, empty for what the group above has; ``instead`` are other files to try before that, each with its value and what lifts it.
    """

    controller: str
    file: str
    value: str
    option: str
    optional: str = ""
    lifted: str = ""
    instead: tuple[tuple[str, str, str], ...] = ()


def check(resources: Resources) -> None:
    """Refuse what cannot be, as Docker does. Raises InvalidInput."""
    if resources.blkio_weight and not 10 <= resources.blkio_weight <= 1000:
        raise InvalidInput(f"--blkio-weight {resources.blkio_weight} is out of range", "it goes from 10 to 1000")
    for limit in resources.device_limits:
        option = option_of(limit.kind)
        device_number(limit.host_path, option)
        if limit.kind == "weight" and not 10 <= limit.value <= 1000:
            raise InvalidInput(f"{option} {limit.host_path}:{limit.value} is out of range", "a weight goes from 10 to 1000")
        if limit.value < 1:
            raise InvalidInput(f"{option} {limit.host_path}:{limit.value} is no rate", "it is a positive number")


def option_of(kind: str) -> str:
    """The flag that such a limit comes from."""
    return "--blkio-weight-device" if kind == "weight" else f"--device-{kind.replace('_', '-')}"


def device_number(host_path: str, option: str) -> str:
    """``major:minor`` of a block device. Raises InvalidInput."""
    try:
        status = os.stat(host_path)
    except OSError as error:
        raise InvalidInput(f"{option} {host_path} cannot be given", os.strerror(error.errno or 0), "name a block device, see `lsblk -p`") from None
    if not stat.S_ISBLK(status.st_mode):
        raise InvalidInput(f"{option} {host_path} cannot be given", "it is no block device", "see `lsblk -p` for those that there are")
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"


def settings_v1(resources: Resources) -> list[Setting]:
    """For version 1."""
    found = []
    if resources.blkio_weight:
        weight = str(resources.blkio_weight)
        note = _NO_WEIGHTS.format("--blkio-weight")
        found.append(Setting("blkio", "blkio.weight", weight, "--blkio-weight", note, "500", (("blkio.bfq.weight", weight, "100"),)))
    for limit in resources.device_limits:
        option = option_of(limit.kind)
        line = f"{device_number(limit.host_path, option)} {limit.value}"
        if limit.kind == "weight":
            instead = (("blkio.bfq.weight_device", line, ""),)
            found.append(Setting("blkio", "blkio.weight_device", line, option, _NO_WEIGHTS.format(option), instead=instead))
        else:
            found.append(Setting("blkio", _V1[limit.kind], line, option))
    return found


def settings_v2(resources: Resources) -> list[Setting]:
    """For version 2."""
    found = []
    if resources.blkio_weight:
        found.append(_weight_v2("", resources.blkio_weight, "--blkio-weight"))
    for limit in resources.device_limits:
        option = option_of(limit.kind)
        number = device_number(limit.host_path, option)
        if limit.kind == "weight":
            found.append(_weight_v2(f"{number} ", limit.value, option))
        else:
            found.append(Setting("io", "io.max", f"{number} {_V2[limit.kind]}={limit.value}", option))
    return found


def _weight_v2(device: str, weight: int, option: str) -> Setting:
    # bfq has the numbers of version 1, iocost goes from 1 to 10000.
    converted = 1 + (weight - 10) * 9999 // 990
    default = "" if device else "default "
    lifted = f"{default}100"
    instead = (("io.weight", f"{device}{converted}", lifted),)
    return Setting("io", "io.bfq.weight", f"{device}{weight}", option, _NO_WEIGHTS.format(option), lifted, instead)
