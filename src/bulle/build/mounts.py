"""The options of a RUN's ``--mount``: a line of comma separated ``name=value``, read into a :class:`~bulle.build.instructions.RunMount`.

An option may hold variables, so it is read twice: with the file, for what can be known then, and when the RUN's turn comes, with an expander.
"""

from __future__ import annotations

import csv
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import replace

from bulle.build.flags import nearest
from bulle.build.instructions import RunMount
from bulle.model.quantities import size_bytes

TYPES = ("bind", "cache", "tmpfs", "secret", "ssh")
SHARINGS = ("shared", "private", "locked")
_LONG = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly", "rw": "readwrite"}
_NAMES = ("type", "from", "source", "target", "readonly", "readwrite", "id", "sharing", "required", "size", "mode", "uid", "gid", "env", *_LONG)
_TEXTS = ("from", "source", "target", "id", "env")
_WITH_OWNER = ("cache", "secret", "ssh")
_TRUE, _FALSE = ("1", "t", "T", "TRUE", "true", "True"), ("0", "f", "F", "FALSE", "false", "False")


class MountError(ValueError):
    """An option that cannot be right: what is wrong with it, and what to write instead."""

    def __init__(self, what: str, instead: str) -> None:
        super().__init__(what, instead)
        self.what = what
        self.instead = instead


def read_mount(text: str, expand: Callable[[str], str] | None = None) -> RunMount:
    """The mount that a text describes. Raises MountError.

    Without ``expand``, values with a ``$`` are left for later: a text stays as written, anything else at its default.
    """
    mount = _Mount(expand is None)
    for name, value in _fields(text):
        mount.take(name, value if value is None or expand is None else expand(value))
    return mount.finished()


def _fields(text: str) -> Iterator[tuple[str, str | None]]:
    try:
        fields = next(csv.reader([text], strict=True), [])
    except csv.Error as error:
        raise MountError(f"--mount={text} cannot be cut at its commas ({error})", "quote a whole option, as in 'type=bind,\"source=a,b\"'") from None
    for field in fields:
        name, equals, value = field.partition("=")
        yield name.lower(), value if equals else None


class _Mount:
    """A mount whose options come one by one; what one may be depends on the type that was named before it."""

    def __init__(self, for_later: bool) -> None:
        self._for_later = for_later
        self._given: set[str] = set()
        self._type = "bind"
        self._type_unknown = False
        self._texts: dict[str, str] = {}
        self._switches: dict[str, bool] = {}
        self._numbers: dict[str, int] = {}

    def take(self, written: str, value: str | None) -> None:
        """One option."""
        name = _LONG.get(written, written)
        if name not in _NAMES:
            close = nearest(written, _NAMES)
            raise MountError(f"--mount has no option {written}", f"did you mean {close}?" if close else f"it has {', '.join(sorted(_NAMES))}")
        if value is None:
            if name not in ("readonly", "readwrite", "required"):
                raise MountError(f"the mount option {written} wants a value", f"write {written}=value")
            value = "true"
        if name in ("required", "size"):
            self._refuse_elsewhere(name, ("tmpfs",) if name == "size" else ("secret", "ssh"))
        self._given.add(name)
        if self._for_later and "$" in value and name != "from":
            self._type_unknown |= name == "type"
            if name in _TEXTS:
                self._texts[name] = value
            return
        self._set(name, value)

    def _set(self, name: str, value: str) -> None:
        if name == "type":
            self._type = _one_of("type of mount", value, TYPES)
        elif name == "sharing":
            self._texts[name] = _one_of("sharing", value, SHARINGS)
        elif name == "from" and self._for_later and "$" in value[:-1]:
            raise MountError("from= of a mount has no variables", f"name a stage before it, FROM {value} AS name, and write from=name")
        elif name in _TEXTS:
            self._texts[name] = value
        elif name in ("readonly", "readwrite"):
            self._switches["readonly"] = _truth(name, value) == (name == "readonly")
        elif name == "required":
            self._switches[name] = _truth(name, value)
        elif name == "size":
            self._numbers[name] = _size(value)
        else:
            self._numbers[name] = _number(name, value, 8 if name == "mode" else 10)

    def _refuse_elsewhere(self, name: str, types: tuple[str, ...]) -> None:
        if self._type not in types and not self._type_unknown:
            raise MountError(f"a mount of type {self._type} has no {name}", f"write type={' or type='.join(types)} before it")

    def finished(self) -> RunMount:
        """The mount, with what follows from its other options."""
        mount = RunMount(
            self._type,
            self._texts.get("target", ""),
            self._texts.get("source", ""),
            self._texts.get("from", ""),
            self._texts.get("id", ""),
            self._switches.get("readonly", self._type not in ("cache", "tmpfs")),
            self._texts.get("sharing", "shared"),
            self._switches.get("required", False),
            self._numbers.get("mode"),
            self._numbers.get("uid", 0),
            self._numbers.get("gid", 0),
            self._numbers.get("size", 0),
            self._texts.get("env", ""),
        )
        return mount if self._type_unknown else _completed(mount, self._given)


def _completed(mount: RunMount, given: set[str]) -> RunMount:
    for name in ("mode", "uid", "gid"):
        if name in given and mount.type not in _WITH_OWNER:
            raise MountError(f"a mount of type {mount.type} has no {name}", f"write type={' or type='.join(_WITH_OWNER)}, or leave {name} away")
    if "sharing" in given and mount.type != "cache":
        raise MountError(f"a mount of type {mount.type} has no sharing", "leave it away, or write type=cache")
    if mount.type == "secret":
        return _secret(mount, given)
    if mount.type != "ssh" and not mount.target:
        raise MountError(f"the mount of type {mount.type} has no target", "write target= and a directory")
    if mount.type == "cache" and not mount.id:
        return replace(mount, id=posixpath.normpath(mount.target))
    return mount


def _secret(mount: RunMount, given: set[str]) -> RunMount:
    if mount.from_:
        raise MountError("a secret comes from no stage", "leave from= away")
    if mount.source and mount.id:
        raise MountError("a secret has either source or id", "keep id=")
    name = mount.source or mount.id or posixpath.basename(mount.target)
    if not name:
        raise MountError("the secret has no name", "write id= as it is in --secret id=…")
    target = mount.target or ("" if "env" in given else f"/run/secrets/{posixpath.basename(name)}")
    return replace(mount, id=name, source="", target=target, env=mount.env or (name if "env" in given else ""))


def _one_of(what: str, value: str, known: tuple[str, ...]) -> str:
    if value.lower() not in known:
        close = nearest(value, known)
        raise MountError(f"there is no {what} {value!r}", f"did you mean {close}?" if close else f"there are {', '.join(known)}")
    return value.lower()


def _size(value: str) -> int:
    try:
        return size_bytes(value)
    except ValueError as error:
        what, _, instead = str(error).partition(": ")
        raise MountError(f"size of a mount: {what}", instead or "write a smaller one") from None


def _truth(name: str, value: str) -> bool:
    if value not in _TRUE + _FALSE:
        raise MountError(f"{name} of a mount is true or false, not {value!r}", f"write {name} or {name}=false")
    return value in _TRUE


def _number(name: str, value: str, base: int) -> int:
    digits = "01234567" if base == 8 else "0123456789"
    if not value or len(value) > 12 or not set(value) <= set(digits) or int(value, base) >= 2**32:
        raise MountError(f"{name} of a mount is a number, not {value!r}", f"write {name}={'0755' if base == 8 else '1000'}")
    return int(value, base)
