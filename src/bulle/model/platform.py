"""Platforms in Go's words: which one this machine is, which one a text means, and whether a machine runs another's programs by itself.

Used wherever an image is chosen or a container is told what it is made for. Image specification, image-index.md "platform".
"""

from __future__ import annotations

import functools
import platform as machine

from bulle.errors import InvalidInput
from bulle.model.image import Platform

_MACHINES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i386": ("386", ""),
    "i686": ("386", ""),
    "riscv64": ("riscv64", ""),
    "ppc64le": ("ppc64le", ""),
    "s390x": ("s390x", ""),
    "loongarch64": ("loong64", ""),
}
_ALIASES = {"x86_64": ("amd64", ""), "x86-64": ("amd64", ""), "aarch64": ("arm64", ""), "armhf": ("arm", "v7"), "armel": ("arm", "v6")}
_ALSO_RUN = {"amd64": ("386",), "arm64": ("arm",)}


@functools.cache
def this_platform() -> Platform:
    """The platform that this machine runs natively."""
    architecture, variant = _MACHINES.get(machine.machine(), (machine.machine(), ""))
    return Platform("linux", architecture, variant)


def parse_platform(text: str) -> Platform:
    """``linux/arm64/v8``, ``linux/arm64`` or ``arm64`` as a platform; "" is this machine's. Raises InvalidInput."""
    if not text:
        return this_platform()
    parts = text.lower().split("/")
    if len(parts) == 1 and parts[0] != "linux":
        parts.insert(0, "linux")
    if not 2 <= len(parts) <= 3 or not all(part.replace("-", "").replace("_", "").replace(".", "").isalnum() for part in parts):
        raise InvalidInput(f"{text!r} is not a platform", "expected something like linux/arm64 or linux/arm/v7")
    architecture, variant = _ALIASES.get(parts[1], (parts[1], ""))
    return Platform(parts[0], architecture, parts[2] if len(parts) == 3 else variant)


def is_native(platform: Platform) -> bool:
    """Whether this machine's processor runs its programs; what an image does not say is taken for this machine's."""
    here = this_platform()
    if platform.architecture in ("", here.architecture):
        return True
    return platform.architecture in _ALSO_RUN.get(here.architecture, ())


def same(one: Platform, other: Platform) -> bool:
    """Whether two platforms are one."""
    return (one.os or "linux", one.architecture, variant_of(one)) == (other.os or "linux", other.architecture, variant_of(other))


def satisfies(offered: Platform, wanted: Platform) -> bool:
    """Whether an image made for ``offered`` is what somebody means who asks for ``wanted``: the same, or an older variant of it."""
    here = this_platform()
    if (offered.os or here.os, offered.architecture or here.architecture) != (wanted.os, wanted.architecture):
        return False
    theirs, ours = variant_of(offered), variant_of(wanted)
    if not ours or not theirs or ours == theirs:
        return True
    return wanted.architecture == "arm" and theirs[1:].isdigit() and ours[1:].isdigit() and int(theirs[1:]) < int(ours[1:])


def variant_of(platform: Platform) -> str:
    """The variant, but for those that are what an architecture is without one."""
    return "" if (platform.architecture, platform.variant) in (("arm64", "v8"), ("amd64", "v1")) else platform.variant
