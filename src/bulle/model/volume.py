"""Volumes and what can be asked of a mount: pure data.

:class:`MountOption` is the typed form of ``--mount`` (and of every ``-v`` that is more than a bind); :class:`Volume` is what is known of a volume.
Words are those of ``docker volume`` and of ``--mount``; what a plan makes of them is :class:`bulle.model.run_plan.Mount`.
"""

from __future__ import annotations

import re
from typing import Literal, cast

import msgspec

from bulle.errors import InvalidInput

DRIVER = "local"
ANONYMOUS_LABEL = "com.docker.volume.anonymous"
"""A label, without a value, of every volume that nobody gave a name: what Docker's own tools look for."""

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}")

MountKind = Literal["volume", "bind", "tmpfs", "image"]
Propagation = Literal["", "private", "rprivate", "shared", "rshared", "slave", "rslave"]
Recursive = Literal["enabled", "disabled", "writable", "readonly"]
PROPAGATIONS = frozenset({"private", "rprivate", "shared", "rshared", "slave", "rslave"})
_WITHOUT_MEANING = frozenset({"z", "Z", "cached", "delegated", "consistent", "default", "rbind", "bind"})


class MountOption(msgspec.Struct, frozen=True, kw_only=True):
    """One mount as it was asked for, at the container path ``target``.

    ``source`` is a volume's name (empty: an anonymous one), an absolute host path, or an image. ``recursive`` is about what is mounted below a bind:
    there and as read-only as the bind (``enabled``), not there (``disabled``), or there and ``writable``. ``subpath`` is a path in the volume or
    image. A new volume gets ``labels`` and ``driver_options``; an empty one is filled with what the image has at ``target``, if ``copy``. With
    ``change_owner`` all that is in the source is given to the container's user.
    """

    kind: MountKind
    target: str
    source: str = ""
    read_only: bool = False
    propagation: Propagation = ""
    recursive: Recursive = "enabled"
    subpath: str = ""
    copy: bool = True
    labels: dict[str, str] = {}
    driver_options: dict[str, str] = {}
    tmpfs_options: tuple[str, ...] = ()
    change_owner: bool = False


class Volume(msgspec.Struct, frozen=True):
    """One volume of a home; ``options`` are the local driver's: type, device, o, size.

    ``mountpoint`` is the host path of the directory with its files, or of the file that holds them where it is of a limited size.
    """

    name: str
    created_at_ns: int
    mountpoint: str
    labels: dict[str, str] = {}
    options: dict[str, str] = {}
    users: tuple[str, ...] = ()
    """Names of the containers that have it mounted, or would when they run."""

    @property
    def anonymous(self) -> bool:
        """Whether nobody gave it a name."""
        return ANONYMOUS_LABEL in self.labels


def check_name(name: str) -> None:
    """Raises InvalidInput for what cannot be a volume's name."""
    if not _NAME.fullmatch(name):
        why = "only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
        raise InvalidInput(f"invalid volume name {name!r}", why, "choose another, or give a directory of the host by its absolute path")


def parse_volume(text: str) -> MountOption:
    """``[SOURCE:]CONTAINER[:OPTIONS]``, what ``-v`` and Docker's ``Binds`` say. Raises InvalidInput."""

    def invalid(why: str, mend: str = "") -> InvalidInput:
        return InvalidInput(f"invalid volume specification: '{text}'", why, mend)

    parts = text.split(":")
    if len(parts) > 3 or not all(parts):
        raise invalid("", "write it as CONTAINER, SOURCE:CONTAINER or SOURCE:CONTAINER:ro")
    source, target = ("", parts[0]) if len(parts) == 1 else (parts[0], parts[1])
    if not target.startswith("/"):
        raise invalid("the path in the container must be absolute")
    kind: MountKind = "bind" if source.startswith("/") else "volume"
    if kind == "volume" and source:
        check_name(source)
    modes = parts[2].split(",") if len(parts) == 3 else []
    if len({"ro", "rw"}.intersection(modes)) > 1 or len(PROPAGATIONS.intersection(modes)) > 1:
        raise invalid("its modes contradict each other")
    known = PROPAGATIONS | _WITHOUT_MEANING | {"ro", "rw", "nocopy", "U"}
    if unknown := [mode for mode in modes if mode not in known]:
        raise invalid(f"there is no mode '{unknown[0]}'")
    if kind == "bind" and "nocopy" in modes:
        raise invalid("nocopy is for volumes: nothing is copied into a directory of the host")
    propagation = next(iter(PROPAGATIONS.intersection(modes)), "")
    if kind == "volume" and propagation:
        raise invalid(f"{propagation} is for directories of the host")
    return MountOption(
        kind=kind,
        source=source,
        target=target,
        read_only="ro" in modes,
        propagation=cast("Propagation", propagation),
        copy="nocopy" not in modes,
        change_owner="U" in modes,
    )
