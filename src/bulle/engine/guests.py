"""The machine of a virtual machine, from what was asked for."""

from __future__ import annotations

import os

from bulle.engine.whole_machines import whole_guest
from bulle.errors import Unavailable, Unsupported
from bulle.model.container import ContainerOptions
from bulle.model.image import Platform
from bulle.model.platform import this_platform
from bulle.model.run_plan import Guest, ImageDisk, RunPlan

MEMORY_BYTES = 512 << 20
"""What a guest has when nothing is said. The host gives it page by page, as it is used."""

KERNEL_SETTING = "BULLE_KERNEL"
"""The variable that says what `--kernel` is where that is not given, for guests with this machine's own processor."""

DISK_BYTES = 10 << 30


_MACHINES = {"amd64": "x86_64", "arm64": "aarch64", "riscv64": "riscv64"}


def guest_of(options: ContainerOptions, platform: Platform, isolation: str, disk: ImageDisk | None = None, identifier: str = "") -> Guest | None:
    """The guest of a container at the level ``vm``, for an image's platform; None at the others. ``disk`` is the image's, of a whole machine.

    Raises Unavailable for a processor that no guest can have, Unsupported where a level without a guest is told how to make one.
    """
    if isolation != "vm":
        for flag, asked in (("--accel", options.accelerator), ("--kernel", options.kernel), ("--trace", options.trace), ("--start", options.start)):
            if asked:
                raise Unsupported(flag, isolation, "use --isolation vm, or leave it out")
        return None
    architecture = "" if platform.architecture in ("", this_platform().architecture) else _MACHINES.get(platform.architecture)
    if architecture is None:
        what = f"there are no virtual machines of {platform.architecture}"
        raise Unavailable(what, "", f"these can be had: {', '.join(_MACHINES)}; or use --isolation container")
    if options.whole is not None:
        return whole_guest(options, options.whole, disk, architecture, identifier)
    kernel = kernel_of(options, platform)
    return Guest(
        memory_bytes=MEMORY_BYTES,
        disk_bytes=options.storage_bytes or DISK_BYTES,
        accelerator=options.accelerator,
        architecture=architecture,
        trace=options.trace,
        start=options.start or "cold",
        kernel=os.path.abspath(kernel) if "/" in kernel else kernel,
    )


def kernel_of(options: ContainerOptions, platform: Platform) -> str:
    """The kernel that is wanted for a guest: the setting is for those with this machine's processor."""
    own = platform.architecture in ("", this_platform().architecture)
    return options.kernel or (os.environ.get(KERNEL_SETTING, "") if own else "")


def obtained(plan: RunPlan) -> str:
    """What the last machine of a container was, in words; empty where it has none, or never had it."""
    if plan.guest is None:
        return ""
    from bulle.isolation.microvm.record import read_record

    record = read_record(plan.state_host_path)
    how = {"kvm": "run by KVM", "tcg": "emulated by QEMU"}.get(record.accelerator, "")
    if plan.guest.whole is not None:
        return how and f"a whole machine, {how} ({record.accelerator}): {record.architecture}, {plan.guest.whole.firmware.upper()}"
    return how and f"a virtual machine, {how} ({record.accelerator}): {record.architecture}, Linux {record.kernel}"
