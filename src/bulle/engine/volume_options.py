"""What the options of a volume's driver mean: Docker's ``type``, ``device`` and ``o``, and ``size`` for one that can hold so much and no more."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from bulle.errors import InvalidInput, Unavailable
from bulle.isolation import sized_file_system
from bulle.model.quantities import size_bytes
from bulle.model.run_plan import Mount

_KNOWN = frozenset({"type", "device", "o", "size"})


@dataclass(frozen=True)
class VolumeShape:
    """How a volume stands: a ``directory`` of its own (perhaps of ``size_bytes`` at most), a ``bind`` of ``device``, or memory for each container."""

    kind: Literal["directory", "bind", "tmpfs"] = "directory"
    size_bytes: int = 0
    device: str = ""
    flags: tuple[str, ...] = ()

    @classmethod
    def of(cls, options: Mapping[str, str]) -> VolumeShape:
        """From the options of ``volume create``. Raises InvalidInput."""
        if unknown := sorted(set(options) - _KNOWN):
            raise InvalidInput(f"invalid option: {unknown[0]!r}", "", f"the local driver has {', '.join(sorted(_KNOWN))}")
        kind, device, size = options.get("type", ""), options.get("device", ""), options.get("size", "")
        flags = tuple(part for part in options.get("o", "").split(",") if part)
        binds = "bind" in flags or "rbind" in flags or kind == "bind"
        if binds and kind in ("", "none", "bind"):
            return cls._bind(device, flags, size)
        if kind == "tmpfs":
            return cls("tmpfs", flags=(*flags, *([f"size={_size(size)}"] if size else [])))
        if kind or device or flags:
            why = f"type {kind!r} is not one of those that are mounted here" if kind else "device and o need a type"
            raise InvalidInput("the volume's options cannot be used", why, "use type=none with o=bind and a device, type=tmpfs, or size=")
        return cls(size_bytes=_size(size) if size else 0)

    @classmethod
    def _bind(cls, device: str, flags: tuple[str, ...], size: str) -> VolumeShape:
        if not device.startswith("/"):
            raise InvalidInput("missing required option: 'device'", "it is the absolute path of a directory of the host", "add -o device=/directory")
        if other := sorted(set(flags) - {"bind", "rbind", "ro", "rw"}):
            raise InvalidInput(f"the volume's option o={other[0]} cannot be used with a bind", "", "use bind or rbind, ro or rw")
        if size:
            raise InvalidInput("a bind has no size", "", "leave out size=")
        return cls("bind", device=os.path.normpath(device), flags=flags)

    @property
    def is_kept_here(self) -> bool:
        """Whether its files are in the volume's own directory."""
        return self.kind == "directory"

    def mount(self, name: str, directory: str, container_path: str, *, read_only: bool, subpath: str = "") -> Mount:
        """The mount of a plan that shows the volume; ``directory`` is its own on the host."""
        if self.kind == "tmpfs":
            if subpath:
                raise InvalidInput(f"volume {name} has no parts to be mounted", "it is memory, and begins empty", "mount the whole")
            return Mount("tmpfs", container_path, read_only=read_only, options=("exec", *self.flags), volume=name)
        if self.kind == "bind":
            recursive: Literal["enabled", "disabled"] = "enabled" if "rbind" in self.flags else "disabled"
            return Mount("bind", container_path, self.device, read_only or "ro" in self.flags, volume=name, subpath=subpath, recursive=recursive)
        place = directory if self.size_bytes else f"{directory}/_data"
        return Mount("bind", container_path, place, read_only, volume=name, subpath=subpath, size_bytes=self.size_bytes)


def _size(text: str) -> int:
    try:
        wanted = size_bytes(text)
    except ValueError as error:
        raise InvalidInput("the volume's size cannot be used", str(error)) from None
    if wanted < sized_file_system.SMALLEST_BYTES:
        why = f"the smallest is {sized_file_system.SMALLEST_BYTES >> 20} MiB"
        raise InvalidInput(f"a volume cannot be of {text} bytes", why, "give size= a larger one")
    return wanted


def require(shape: VolumeShape) -> None:
    """Raise Unavailable for a size that this user cannot have."""
    if shape.size_bytes and not sized_file_system.available():
        raise Unavailable("the size of a volume cannot be limited here", "that needs loop devices, which only root has", "leave out size=")
