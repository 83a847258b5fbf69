"""Volumes and what can be asked of a mount: pure data.

:class:`MountOption` is the typed form of ``--mount`` (and of every ``-v`` that is more than a bind); :class:`Volume` is what is known of a volume.
Words are those of ``docker volume`` and of ``--mount``; what a plan makes of them is :class:`bulle.model.run_plan.Mount`.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from bulle.errors import InvalidInput

DRIVER = "local"
ANONYMOUS_LABEL = "com.docker.volume.anonymous"
"""A label, without a value, of every volume that nobody gave a name: what Docker's own tools look for."""

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}")

MountKind = Literal["volume", "bind", "tmpfs", "image"]
Propagation = Literal["", "private", "rprivate", "shared", "rshared", "slave", "rslave"]
Recursive = Literal["enabled", "disabled", "writable", "readonly"]


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
