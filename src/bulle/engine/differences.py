"""``diff``: what a container changed in its root filesystem.

Read from the writable layer, which overlayfs fills with what is new or other, and the layers' indexes; nothing is mounted and the container may run.
What counts is what Docker counts: attributes, size and time of a file, attributes of a directory; a directory is named as changed with what changed
in it; what only a mount needed is not there. Overlay documentation, "Whiteouts and opaque directories".
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from bulle.engine.changes import stubs
from bulle.engine.inner_worker import Line, beside, mappings_of, require_writable_layer
from bulle.engine.upper_layer import upper_of
from bulle.errors import BulleError, Unsupported
from bulle.isolation.root_access import root_copy
from bulle.model.digest import Digest
from bulle.model.run_plan import RunPlan
from bulle.records.database import Database
from bulle.store import Store

if TYPE_CHECKING:
    from bulle.store.merged_view import MergedView
    from bulle.store.tree import Node

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")
_AS_MADE = (0o755, 0, 0)
_CHANGED_MEANWHILE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL})  # by the container, which may run


class Change(msgspec.Struct, frozen=True):
    """One path of the container: A(dded), C(hanged) or D(eleted)."""

    kind: Literal["A", "C", "D"]
    path: str


def changes(home: Path, plan: RunPlan) -> list[Change]:
    """What is other than in the layers of the plan. Raises Unsupported where the root is a copy."""
    if root_copy(plan) is not None:
        raise Unsupported("list of changes, since its root is a copy of the image here", plan.isolation, "use a user who may mount")
    require_writable_layer(plan)
    with Store(home, Database(home)).layers.view([Digest(layer.diff_id) for layer in plan.root.layers]) as below:
        if os.geteuid() == 0 or plan.guest is not None:
            with upper_of(home, plan) as upper:
                return [Change(kind, os.fsdecode(path)) for kind, path in _Comparison(plan, below, upper).all()]

        upper = Path(plan.root.writable_host_path) / "upper"

        def work(line: Line) -> None:
            line.send([(kind, os.fsdecode(path).encode("utf-8", "surrogateescape")) for kind, path in _Comparison(plan, below, upper).all()])
            line.end_stream()

        with beside(mappings_of(plan), work) as line:
            found = line.receive()
        import base64  # how bytes come through JSON

        return [Change(kind, base64.b64decode(path).decode("utf-8", "surrogateescape")) for kind, path in found]


_Found = tuple[Literal["A", "C", "D"], bytes]


class _Comparison:
    """One walk over a writable layer."""

    def __init__(self, plan: RunPlan, below: MergedView, upper: Path) -> None:
        self._upper = upper
        self._below = below
        self._stubs = {tuple(os.fsencode(stub).split(b"/")) for stub in stubs(plan)}
        self._above_stubs = {stub[:length] for stub in self._stubs for length in range(1, len(stub))}
        # With one id alone everything belongs to it, whatever the image says.
        self._owners = not plan.security.id_mappings or sum(line.size for line in plan.security.id_mappings) > 1

    def all(self) -> list[_Found]:
        """Every change."""
        try:
            directory = os.open(self._upper, _DIRECTORY)
            try:
                return list(self._inside(directory, (), bool(self._below.lookup(()))))
            finally:
                os.close(directory)
        except OSError as error:
            raise BulleError("the container's writable layer cannot be read", f"{error.strerror} ({error.filename})") from error

    def _inside(self, directory: int, path: tuple[bytes, ...], was_there: bool, hidden: bool = False) -> Iterator[_Found]:
        """The changes in a directory; ``was_there`` says that the layers have one there too, ``hidden`` that an opaque one above hides it."""
        names = {os.fsencode(name) for name in os.listdir(directory)}
        gone = set[bytes]()
        hidden = hidden or _is_opaque(directory)
        if was_there and hidden:
            place = self._below.place(path)
            gone = {one.path[-1] for one in self._below.children(place)} - names if place is not None else gone
        for name in sorted(names | gone):
            here = (*path, name)
            if name in gone:
                yield "D", _joined(here)
                continue
            try:
                status = os.stat(name, dir_fd=directory, follow_symlinks=False)
                yield from self._one(directory, here, status, self._below.lookup(here) if was_there else None, hidden)
            except OSError as error:
                if error.errno not in _CHANGED_MEANWHILE:
                    raise

    def _one(self, parent: int, path: tuple[bytes, ...], status: os.stat_result, before: Node | None, hidden: bool) -> Iterator[_Found]:
        if stat.S_ISCHR(status.st_mode) and not status.st_rdev:
            if before is not None:
                yield "D", _joined(path)
            return
        is_directory = stat.S_ISDIR(status.st_mode)
        was_directory = before is not None and stat.S_ISDIR(before.mode)
        inside = list(self._children(parent, path, was_directory, hidden)) if is_directory else []
        if before is None:
            if not inside and self._is_stub(path, status):
                return
            yield "A", _joined(path)
        elif inside or self._differs(status, before, parent, path[-1]):
            yield "C", _joined(path)
        # As Docker: what is in a directory that took the place of something else is new; what was in one that is none any more goes unsaid.
        yield from inside

    def _children(self, parent: int, path: tuple[bytes, ...], was_directory: bool, hidden: bool) -> Iterator[_Found]:
        descriptor = os.open(path[-1], _DIRECTORY, dir_fd=parent)
        try:
            yield from self._inside(descriptor, path, was_directory, hidden)
        finally:
            os.close(descriptor)

    def _is_stub(self, path: tuple[bytes, ...], status: os.stat_result) -> bool:
        if path not in self._stubs and path not in self._above_stubs:
            return False
        if stat.S_ISDIR(status.st_mode):
            return (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == _AS_MADE
        return stat.S_ISREG(status.st_mode) and not status.st_size

    def _differs(self, now: os.stat_result, before: Node, parent: int, name: bytes) -> bool:
        if now.st_mode != before.mode or (self._owners and (now.st_uid, now.st_gid) != (before.uid, before.gid)):
            return True
        if stat.S_ISDIR(now.st_mode):
            return False
        if stat.S_ISLNK(now.st_mode):
            return os.fsencode(os.readlink(name, dir_fd=parent)) != before.target or not _same_time(now, before)
        if stat.S_ISCHR(now.st_mode) or stat.S_ISBLK(now.st_mode):
            return (os.major(now.st_rdev), os.minor(now.st_rdev)) != before.device or not _same_time(now, before)
        return now.st_size != before.size or not _same_time(now, before)


def _joined(path: tuple[bytes, ...]) -> bytes:
    return b"/" + b"/".join(path)


def _same_time(now: os.stat_result, before: Node) -> bool:
    """Whole seconds where one side has nothing else."""
    seconds, nanoseconds = divmod(now.st_mtime_ns, 1_000_000_000)
    return seconds == before.mtime and (nanoseconds == before.mtime_ns or 0 in (nanoseconds, before.mtime_ns))


def _is_opaque(directory: int) -> bool:
    for name in _OPAQUE:
        with suppress(OSError):
            return os.getxattr(directory, name) == b"y"
    return False
