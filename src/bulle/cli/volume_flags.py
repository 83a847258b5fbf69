"""The flags of ``run`` and ``create`` that mount something: ``-v``, ``--mount``, ``--tmpfs``, ``--volumes-from``; how their text is read.

Forms, keys and messages are Docker's. A plain bind stays a :class:`~bulle.model.container.VolumeOption`, everything else becomes a
:class:`~bulle.model.volume.MountOption`. ``z`` and ``Z`` are accepted and mean nothing: there is no label to change here.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import click

from bulle.cli.human import parse_size
from bulle.cli.option_types import Text
from bulle.errors import InvalidInput
from bulle.model.container import mount_fields
from bulle.model.volume import PROPAGATIONS, MountKind, MountOption, Propagation, Recursive, check_name, parse_volume

VOLUME_FLAGS: Sequence[Callable[[Any], Any]] = (
    click.option("-v", "--volume", multiple=True, type=Text("list"), help="Mount a volume or a host's directory ([SOURCE:]CONTAINER[:OPTIONS])"),
    click.option("--mount", multiple=True, type=Text("mount"), help="Attach a mount (type=volume|bind|tmpfs|image,source=…,target=…[,readonly])"),
    click.option("--tmpfs", multiple=True, type=Text("list"), help="Mount a tmpfs directory (CONTAINER[:OPTIONS])"),
    click.option("--volumes-from", multiple=True, type=Text("list"), help="Mount volumes from the specified containers (NAME[:ro])"),
)
_RECURSIVE = ("enabled", "disabled", "writable", "readonly")
_TRUE, _FALSE = frozenset({"", "1", "t", "true"}), frozenset({"0", "f", "false"})
_OWN_KEYS = {"volume": "volume-", "bind": "bind-", "tmpfs": "tmpfs-", "image": "image-"}


def mounts_from(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of :class:`ContainerOptions` that the flags come to. Raises InvalidInput."""
    wanted = (*map(volume_mount, flags["volume"]), *map(_mount, flags["mount"]))
    return mount_fields(wanted, map(_tmpfs, flags["tmpfs"])) | {"volumes_from": tuple(flags["volumes_from"])}


def _tmpfs(text: str) -> tuple[str, str]:
    path, _, options = text.partition(":")
    if not path.startswith("/"):
        raise InvalidInput(f"invalid tmpfs: '{text}'", "the path in the container must be absolute")
    return path, options


def _absolute(path: str) -> str:
    """A path of the host as it is, or from the caller's directory where it begins with a dot."""
    return str(Path(path).absolute()) if path.startswith(".") else path


def volume_mount(text: str) -> MountOption:
    """One ``-v``. Raises InvalidInput."""
    source, colon, rest = text.partition(":")
    return parse_volume(f"{_absolute(source)}{colon}{rest}" if colon else text)


class _Fields:
    """The fields of one ``--mount``; what was not asked for in the end is unknown."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.single: dict[str, str] = {}
        self.pairs: dict[str, list[str]] = {"volume-label": [], "volume-opt": []}
        for part in next(csv.reader([text], strict=True), []):
            key, equals, value = part.partition("=")
            key = key.strip().lower()
            if key in self.pairs:
                self.pairs[key].append(value)
            elif not equals and key not in {"readonly", "ro", "bind-nonrecursive", "volume-nocopy"}:
                raise self.invalid(f"invalid field '{part}' must be a key=value pair")
            else:
                self.single[key] = value

    def invalid(self, why: str, mend: str = "") -> InvalidInput:
        return InvalidInput(f'invalid argument "{self.text}" for "--mount" flag', why, mend)

    def take(self, *names: str) -> str:
        """The value under one of several names."""
        found = [self.single.pop(name) for name in names if name in self.single]
        return found[-1] if found else ""

    def flag(self, *names: str) -> bool:
        """A value that is true or false; a name alone is true."""
        if not any(name in self.single for name in names):
            return False
        value = self.take(*names)
        if value.lower() not in _TRUE | _FALSE:
            raise self.invalid(f"invalid value for {names[0]}: {value}")
        return value.lower() in _TRUE

    def taken_pairs(self, name: str) -> dict[str, str]:
        """What was given as ``name=key=value``, several times."""
        return {key: value for key, _, value in (one.partition("=") for one in self.pairs.pop(name))}

    def word(self, name: str, words: Sequence[str]) -> str:
        """One of a few words."""
        value = self.take(name)
        if value and value not in words:
            raise self.invalid(f"invalid value for {name}: {value}", f"it is one of {', '.join(words)}")
        return value


def _mount(text: str) -> MountOption:
    try:
        fields = _Fields(text)
    except csv.Error as error:
        raise InvalidInput(f'invalid argument "{text}" for "--mount" flag', str(error)) from None
    kind = fields.take("type").lower() or "volume"
    if kind not in _OWN_KEYS:
        raise fields.invalid(f"there is no mount of type '{kind}'", "use type=volume, bind, tmpfs or image")
    for other, prefix in _OWN_KEYS.items():
        given = [*fields.single, *(key for key, values in fields.pairs.items() if values)]
        if other != kind and any(key.startswith(prefix) for key in given):
            raise fields.invalid(f"cannot mix '{prefix}*' options with mount type '{kind}'")
    target, source = fields.take("target", "destination", "dst"), fields.take("source", "src")
    if not target.startswith("/"):
        raise fields.invalid("target is required, as an absolute path")
    made = MountOption(
        kind=cast("MountKind", kind),
        target=target,
        source=_source(fields, kind, source),
        read_only=fields.flag("readonly", "ro"),
        propagation=cast("Propagation", fields.word("bind-propagation", sorted(PROPAGATIONS))),
        recursive=_recursive(fields),
        subpath=fields.take("volume-subpath", "image-subpath"),
        copy=not fields.flag("volume-nocopy"),
        labels=fields.taken_pairs("volume-label"),
        driver_options=fields.taken_pairs("volume-opt"),
        tmpfs_options=_tmpfs_options(fields),
    )
    if (driver := fields.take("volume-driver")) not in ("", "local"):
        raise fields.invalid(f'plugin "{driver}" not found', "the driver is local")
    fields.take("consistency")  # as in Docker on Linux it means nothing
    if fields.single:
        raise fields.invalid(f"unexpected key '{sorted(fields.single)[0]}'")
    if made.recursive == "readonly" and not made.read_only:
        raise fields.invalid("mount is not read-only: bind-recursive=readonly needs readonly")
    return made


def _source(fields: _Fields, kind: str, source: str) -> str:
    if kind == "tmpfs" and source:
        raise fields.invalid("must not specify source for a tmpfs")
    if kind == "bind":
        source = _absolute(source)
        if not source.startswith("/"):
            raise fields.invalid("source is required, as an absolute path")
    elif kind == "image" and not source:
        raise fields.invalid("source is required, the name of an image")
    elif kind == "volume" and source:
        check_name(source)
    return source


def _recursive(fields: _Fields) -> Recursive:
    value = fields.word("bind-recursive", _RECURSIVE)
    if fields.flag("bind-nonrecursive"):
        return "disabled"
    return cast("Recursive", value or "enabled")


def _tmpfs_options(fields: _Fields) -> tuple[str, ...]:
    options = []
    if size := fields.take("tmpfs-size"):
        options.append(f"size={size if size.isdecimal() else parse_size(size)}")
    if mode := fields.take("tmpfs-mode"):
        if not mode.isdecimal() or set(mode) & {"8", "9"}:
            raise fields.invalid(f"invalid value for tmpfs-mode: {mode}", "write it as 1770")
        options.append(f"mode={mode}")
    return tuple(options)
