"""Turns the upper directory of an overlay into the bytes of a layer: what a container, or a step of a build, changed.

Used by ``commit`` and ``build``. A device 0:0 is a whiteout, an opaque directory hides what lies below it; in a layer both are files whose names
begin with ``.wh.``. What a runtime only made to have something to mount on (*stubs*) is left out while it is empty. Overlay documentation,
"Whiteouts and opaque directories"; image specification, layer.md, "Representing Changes".
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from bulle.registry import tar_format
from bulle.registry.tree import Walk, attributes_of, not_too_deep

_OPAQUE_ATTRIBUTES = ("trusted.overlay.opaque", "user.overlay.opaque")
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MADE_ON_THE_WAY = (0o755, 0, 0)


def changes_stream(
    upper: Path, *, stubs: Collection[str] = (), root: tuple[int, int, int] | None = None, latest_ns: int | None = None
) -> Iterator[bytes]:
    """The tar of the changes in ``upper`` (a host path), sorted, the same for the same files.

    ``stubs`` are container paths without the leading slash. ``root`` is what the permission bits, owner and group of ``/`` were: only where they are
    others now has the layer a member for it. No time in it is after ``latest_ns``. Whoever is not root must be root of the container's user
    namespace. Raises as :func:`bulle.registry.tree.tar_stream`.
    """
    directory = os.open(upper, _DIRECTORY_FLAGS)
    try:
        status = os.fstat(directory)
        walk = _Changes(upper, frozenset(os.fsencode(stub.strip("/")) for stub in stubs), latest_ns)
        if root is not None and (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) != root:
            yield walk.directory_header(status, b".", {})
        yield from not_too_deep(walk.below(directory, b""), str(upper))
    finally:
        os.close(directory)
    yield tar_format.END


class _Changes(Walk):
    """A walk that knows what overlayfs means."""

    def __init__(self, root: Path, stubs: frozenset[bytes], latest_ns: int | None) -> None:
        super().__init__(root, None, latest_ns)
        self._stubs = stubs
        self._above_stubs = {stub[:position] for stub in stubs for position, byte in enumerate(stub) if byte == ord("/")}

    def entry(self, parent: int, name: bytes, path: bytes, status: os.stat_result) -> Iterator[bytes]:
        """As for any tree, but for devices 0:0 and stubs."""
        if stat.S_ISCHR(status.st_mode) and not status.st_rdev:
            yield tar_format.header(tar_format.Member(path[: len(path) - len(name)] + b".wh." + name))
        elif not (path in self._stubs and stat.S_ISREG(status.st_mode) and not status.st_size):
            yield from super().entry(parent, name, path, status)

    def directory(self, parent: int, name: bytes, path: bytes) -> Iterator[bytes]:
        """As for any tree, with the mark of an opaque one."""
        descriptor = os.open(name, _DIRECTORY_FLAGS, dir_fd=parent)
        try:
            status = os.fstat(descriptor)
            attributes = attributes_of(descriptor)
            opaque = _is_opaque(descriptor)
            content = self.below(descriptor, path + b"/")
            first = next(content, None)
            as_made = (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == _MADE_ON_THE_WAY and not attributes
            if first is None and not opaque and as_made and (path in self._stubs or path in self._above_stubs):
                return
            yield self.directory_header(status, path, attributes)
            if opaque:
                yield tar_format.header(tar_format.Member(path + b"/.wh..wh..opq"))
            if first is not None:
                yield first
                yield from content
        finally:
            os.close(descriptor)


def _is_opaque(descriptor: int) -> bool:
    for name in _OPAQUE_ATTRIBUTES:
        try:
            if os.getxattr(descriptor, name) == b"y":
                return True
        except OSError:
            continue
    return False
