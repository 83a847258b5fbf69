"""A stack of layers as overlayfs would show it, read from their indexes and tars: nothing is mounted, and no path can leave it.

For whoever looks into an image: directories that an archive leaves implicit, the destination and the sources of COPY, names of users, databases of
packages. Symbolic links are followed inside the view. Overlay documentation, "Upper and Lower"
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bulle.errors import InvalidInput
from bulle.store.erofs_reader import Index
from bulle.store.tree import Node

Names = tuple[bytes, ...]

_LINK_DEPTH = 40
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """What shows at ``path`` (no symlink in it): its attributes, and for each layer that it is made of, topmost first, the layer and the inode."""

    path: Names
    node: Node
    where: tuple[tuple[int, int], ...]

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.node.mode)


@dataclass(frozen=True, slots=True)
class Resolved:
    """Where a path leads: ``path`` without symlinks; ``place`` is None where nothing is there, ``parent`` the deepest directory on the way."""

    path: Names
    place: Place | None
    parent: Place


class MergedView:
    """Several layers, ``indexes`` lowest first; ``tars`` beside them where contents are wanted too."""

    def __init__(self, indexes: Sequence[Index], tars: Sequence[Path] = ()) -> None:
        self._indexes = list(reversed(indexes))
        self._tars = list(reversed(tars))

    @property
    def root(self) -> Place | None:
        """The root directory; None where there are no layers."""
        if not self._indexes:
            return None
        return Place((), self._indexes[0].node(self._indexes[0].root), tuple((number, index.root) for number, index in enumerate(self._indexes)))

    def lookup(self, path: Names) -> Node | None:
        """The node that shows at ``path``, no symlink followed; None where nothing is or a layer has removed it."""
        place = self.place(path)
        return None if place is None else place.node

    def place(self, path: Names) -> Place | None:
        """As :meth:`lookup`, with where it lies."""
        here = self.root
        for name in path:
            if here is None or not here.is_directory:
                return None
            here = self.child(here, name)
        return here

    def resolve(self, path: bytes) -> Resolved:
        """Where a container path leads, symlinks followed, also the last one. Raises InvalidInput for a loop, or a way through what is no directory.

        Of what is missing the names are taken as they are.
        """
        root = self.root
        if root is None:
            node = Node(stat.S_IFDIR | 0o755)
            return Resolved(tuple(part for part in os.path.normpath(b"/" + path).split(b"/") if part), None, Place((), node, ()))
        trail = [root]
        missing: list[bytes] = []
        todo = [part for part in reversed(path.split(b"/")) if part not in (b"", b".")]
        followed = 0
        while todo:
            name = todo.pop()
            if name == b"..":
                if missing:
                    missing.pop()
                elif len(trail) > 1:
                    trail.pop()
                continue
            here = trail[-1]
            if not here.is_directory:
                raise _leads_nowhere(path, here)
            child = None if missing else self.child(here, name)
            if child is None:
                missing.append(name)
            elif stat.S_ISLNK(child.node.mode):
                followed += 1
                if followed > _LINK_DEPTH:
                    raise InvalidInput(f"{os.fsdecode(path)!r} leads nowhere in the image", "too many symbolic links")
                if child.node.target.startswith(b"/"):
                    del trail[1:]
                todo += [part for part in reversed(child.node.target.split(b"/")) if part not in (b"", b".")]
            else:
                trail.append(child)
        if missing:
            if not trail[-1].is_directory:
                raise _leads_nowhere(path, trail[-1])
            return Resolved((*trail[-1].path, *missing), None, trail[-1])
        return Resolved(trail[-1].path, trail[-1], trail[-1] if trail[-1].is_directory or len(trail) < 2 else trail[-2])

    def children(self, directory: Place) -> list[Place]:
        """What a directory shows, sorted by name."""
        names: set[bytes] = set()
        for number, nid in directory.where:
            names.update(name for name, _, _ in self._indexes[number].entries(nid))
        found = (self.child(directory, name) for name in sorted(names))
        return [place for place in found if place is not None]

    def read(self, place: Place) -> Iterator[bytes]:
        """The content of a regular file, a mebibyte at a time."""
        node = place.node
        if not node.size:
            return
        number = place.where[0][0]
        if node.data_offset < 0:
            for start in range(0, node.size, _CHUNK_BYTES):
                yield self._indexes[number].data(-node.data_offset + start, min(_CHUNK_BYTES, node.size - start))
            return
        descriptor = os.open(self._tars[number], os.O_RDONLY | os.O_CLOEXEC)
        try:
            position, end = node.data_offset, node.data_offset + node.size
            while position < end:
                chunk = os.pread(descriptor, min(_CHUNK_BYTES, end - position), position)
                if not chunk:
                    raise InvalidInput("a layer is damaged", f"{self._tars[number]} is too short", "remove the image and pull it again")
                position += len(chunk)
                yield chunk
        finally:
            os.close(descriptor)

    def text(self, path: str, limit: int = 8 << 20) -> bytes | None:
        """The first ``limit`` bytes of a regular file at a container path, symlinks followed; None where there is none."""
        try:
            place = self.resolve(os.fsencode(path)).place
        except InvalidInput:
            return None
        if place is None or not stat.S_ISREG(place.node.mode):
            return None
        content = bytearray()
        for chunk in self.read(place):
            content += chunk
            if len(content) >= limit:
                break
        return bytes(content[:limit])

    def child(self, directory: Place, name: bytes) -> Place | None:
        """One name in a directory."""
        found: Node | None = None
        where: list[tuple[int, int]] = []
        for number, parent in directory.where:
            index = self._indexes[number]
            nid = index.find(parent, name)
            if nid is None:
                continue
            node = index.node(nid)
            if not stat.S_ISDIR(node.mode):
                if found is None and not node.is_whiteout:
                    return Place((*directory.path, name), node, ((number, nid),))
                break
            found = found or node
            where.append((number, nid))
            if node.opaque:
                break
        return None if found is None else Place((*directory.path, name), found, tuple(where))


def _leads_nowhere(path: bytes, place: Place) -> InvalidInput:
    return InvalidInput(f"{os.fsdecode(path)!r} leads nowhere in the image", f"/{os.fsdecode(b'/'.join(place.path))} is not a directory")
