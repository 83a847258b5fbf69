"""``Mounts`` of a new container: Docker's documents, and what they come to as :class:`~bulle.model.volume.MountOption`."""

from __future__ import annotations

from typing import cast

import msgspec

from bulle.errors import InvalidInput
from bulle.model.volume import DRIVER, PROPAGATIONS, MountKind, MountOption, Propagation, Recursive, check_name


class _Document(msgspec.Struct, rename="pascal"):
    pass


class BindRequest(_Document):
    """``BindOptions``."""

    propagation: str = ""
    non_recursive: bool = False
    create_mountpoint: bool = False
    read_only_non_recursive: bool = False
    read_only_force_recursive: bool = False


class DriverRequest(_Document):
    """``DriverConfig``."""

    name: str = ""
    options: dict[str, str] | None = None


class VolumeRequest(_Document):
    """``VolumeOptions``."""

    no_copy: bool = False
    labels: dict[str, str] | None = None
    subpath: str = ""
    driver_config: DriverRequest | None = None


class MemoryRequest(_Document):
    """``TmpfsOptions``; the mode in Go's form, which is the number of chmod(1)."""

    size_bytes: int = 0
    mode: int = 0
    options: list[list[str]] | None = None


class ImageRequest(_Document):
    """``ImageOptions``."""

    subpath: str = ""


class MountRequest(_Document):
    """One of ``Mounts``."""

    target: str = ""
    source: str = ""
    type: str = "volume"
    read_only: bool = False
    consistency: str = ""
    bind_options: BindRequest | None = None
    volume_options: VolumeRequest | None = None
    tmpfs_options: MemoryRequest | None = None
    image_options: ImageRequest | None = None


def mount_option(request: MountRequest) -> MountOption:
    """The mount that is asked for. Raises InvalidInput."""
    if request.type not in ("bind", "volume", "tmpfs", "image"):
        raise InvalidInput(f"invalid mount config for type {request.type!r}", "mount type unknown", "it is one of volume, bind, tmpfs, image")
    if not request.target.startswith("/"):
        raise InvalidInput(f"invalid mount config for type {request.type!r}", f"invalid mount path: {request.target!r} must be absolute")
    if request.type == "bind" and not request.source.startswith("/"):
        raise InvalidInput('invalid mount config for type "bind"', f"invalid mount path: {request.source!r} must be absolute")
    if request.type == "volume" and request.source:
        check_name(request.source)
    bind, volume = request.bind_options or BindRequest(), request.volume_options or VolumeRequest()
    driver = volume.driver_config or DriverRequest()
    if driver.name not in ("", DRIVER):
        raise InvalidInput(f'plugin "{driver.name}" not found', f"the driver is {DRIVER}")
    if bind.propagation and bind.propagation not in PROPAGATIONS:
        raise InvalidInput(f"invalid propagation mode: {bind.propagation!r}", "", f"it is one of {', '.join(sorted(PROPAGATIONS))}")
    return MountOption(
        kind=cast("MountKind", request.type),
        target=request.target,
        source=request.source,
        read_only=request.read_only,
        propagation=cast("Propagation", bind.propagation),
        recursive=_recursive(bind),
        subpath=volume.subpath or (request.image_options or ImageRequest()).subpath,
        copy=not volume.no_copy,
        labels=dict(volume.labels or {}),
        driver_options=dict(driver.options or {}),
        tmpfs_options=_memory(request.tmpfs_options or MemoryRequest()),
    )


def _recursive(bind: BindRequest) -> Recursive:
    if bind.non_recursive:
        return "disabled"
    if bind.read_only_force_recursive:
        return "readonly"
    return "writable" if bind.read_only_non_recursive else "enabled"


def _memory(options: MemoryRequest) -> tuple[str, ...]:
    found = [f"size={options.size_bytes}"] if options.size_bytes else []
    found += [f"mode={options.mode:o}"] if options.mode else []
    return (*found, *("=".join(pair) for pair in options.options or ()))
