"""COPY as a layer: which files come to stand where, and the tar of that.

The destination is looked up in the layers so far (a view, no mount), as the Dockerfile reference describes COPY: a directory gives its contents, a
file goes into a directory or becomes the destination. The layer describes the directories on the way as they are. With ``--link`` it does not look at
what lies below, and so is the same on every base. Symbolic links of the image that lead to directories are followed, inside the image.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from bulle.build.patterns import IgnoreRules
from bulle.build.sources import Entry, Source, Top
from bulle.errors import InvalidInput
from bulle.registry import tar_format
from bulle.store.merged_view import MergedView, Names, Place
from bulle.store.tree import Node

Owner = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Group:
    """The places that the patterns of one instruction mean in one source."""

    source: Source
    tops: Sequence[Top]
    excludes: IgnoreRules | None = None
    walked: dict[Top, list[tuple[bytes, Entry]]] = field(default_factory=dict)

    def tree(self, top: Top) -> list[tuple[bytes, Entry]]:
        """What lies at one of the places, as it was found the first time: the layer is made of what its key was made of."""
        if top not in self.walked:
            try:
                self.walked[top] = list(self.source.walk(top.entry, self.excludes))
            except RecursionError:
                raise InvalidInput(f"{os.fsdecode(top.name)} cannot be copied", "its directories are nested too deeply") from None
        return self.walked[top]


@dataclass(frozen=True, slots=True)
class Target:
    """Where to and how: ``path`` is a container path, absolute; ``mode`` is laid over each file's own.

    ``owner`` None keeps owners as the source has them. ``into`` says that the destination is a directory whatever is there.
    """

    path: str
    into: bool
    owner: Owner | None = None
    mode: int | None = None
    parents: bool = False
    link: bool = False


class Placement:
    """What a layer of COPY will hold, by path."""

    def __init__(self, view: MergedView, target: Target, now_ns: int) -> None:
        self._view = view
        self._target = target
        self._now_ns = now_ns
        self.members: dict[Names, tar_format.Member] = {}
        self._contents: dict[Names, Entry] = {}
        self._links: dict[object, Names] = {}
        self._places: dict[Names, Place | None] = {(): view.root}

    def add(self, groups: Sequence[Group]) -> None:
        """Place all files. Raises InvalidInput where one cannot stand where it should."""
        target = self._target
        count = sum(len(group.tops) for group in groups)
        destination, is_directory = self._resolve(os.fsencode(target.path))
        into = target.into or count > 1 or is_directory or target.parents
        for group in groups:
            for top in group.tops:
                self._add_top(group, top, destination, into)

    def stream(self, latest_ns: int | None) -> Iterator[bytes]:
        """The layer's tar; no time in it is later than ``latest_ns``."""
        for path in sorted(self.members):
            member = self.members[path]
            if latest_ns is not None and member.mtime_ns > latest_ns:
                member = member._replace(mtime_ns=latest_ns)
            yield tar_format.header(member)
            entry = self._contents.get(path)
            if entry is not None and member.size:
                yield from entry.open()
                yield tar_format.padding(member.size)
        yield tar_format.END

    def _add_top(self, group: Group, top: Top, destination: Names, into: bool) -> None:
        kept = tuple(part for part in _kept_parents(top.name) if part) if self._target.parents else ()
        if not top.entry.is_directory:
            name = top.name.rpartition(b"/")[2]
            directory = self._directory((*destination, *kept)) if kept else destination
            self._put((*directory, name) if into else destination, top.entry)
            return
        if self._target.parents and top.name:
            places = {b"": self._directory((*destination, *kept, top.name.rpartition(b"/")[2]), top.entry)}
        else:
            # A directory gives its contents; where they go is a directory like any other that is made on the way.
            places = {b"": self._directory((*destination, *kept))}
        for path, entry in group.tree(top):
            if not path:
                continue
            parent, _, name = path.rpartition(b"/")
            if entry.is_directory:
                places[path] = self._directory((*places[parent], name), entry, overwrite=True)
            else:
                self._put((*places[parent], name), entry)

    def _put(self, path: Names, entry: Entry) -> None:
        """Place anything but a directory."""
        if not path:
            raise InvalidInput("a file cannot become the image's /", "", "give a directory as the destination, with a slash at its end")
        if not self._target.link:
            existing = self._lookup(path)
            if existing is not None and stat.S_ISDIR(existing.mode):
                raise InvalidInput(f"cannot copy a file over the directory {_shown(path)}", "", "name a file, or end the destination with a slash")
        if path in self.members and self.members[path].kind == tar_format.DIRECTORY:
            raise InvalidInput(f"cannot copy a file over the directory {_shown(path)}", "the same instruction makes it", "copy them one by one")
        self._ancestors(path)
        first = self._links.setdefault(entry.links, path) if entry.links is not None else path
        member = self._member(path, entry)
        # The one that comes first in the archive must hold the content.
        if first != path and first < path:
            self.members[path] = member._replace(kind=tar_format.HARD_LINK, size=0, target=b"/".join(first))
            self._contents.pop(path, None)
            return
        if entry.links is not None:
            self._links[entry.links] = path
        self.members[path] = member
        self._contents[path] = entry

    def _directory(self, path: Names, entry: Entry | None = None, *, overwrite: bool = False) -> Names:
        """Have a directory at a path; returns where it really is. It gets the entry's attributes where it is new, or with ``overwrite``."""
        path, is_there = self._resolve(b"/" + b"/".join(path))
        self._ancestors(path)
        if path and (path not in self.members or overwrite):
            existing = None if self._target.link or overwrite else self._lookup(path)
            if existing is not None and stat.S_ISDIR(existing.mode):
                self.members[path] = directory_member(path, existing)
            elif not (self._target.link and entry is None and is_there):
                self.members[path] = self._member(path, entry) if entry is not None else self._new_directory(path)
        return path

    def _ancestors(self, path: Names) -> None:
        for length in range(1, len(path)):
            above = path[:length]
            member = self.members.get(above)
            if member is not None:
                if member.kind != tar_format.DIRECTORY:
                    raise InvalidInput(f"cannot copy below {_shown(above)}", "it is not a directory", "use another destination")
                continue
            if self._target.link:
                continue  # made, or taken as it is below, when the layer comes to stand on others
            existing = self._lookup(above)
            if existing is not None and stat.S_ISDIR(existing.mode):
                self.members[above] = directory_member(above, existing)
            else:
                self.members[above] = self._new_directory(above)

    def _resolve(self, path: bytes) -> tuple[Names, bool]:
        """Where a container path really is, and whether a directory is there."""
        if self._target.link:
            names = tuple(part for part in os.path.normpath(b"/" + path.lstrip(b"/")).split(b"/") if part)
            return names, names in self.members and self.members[names].kind == tar_format.DIRECTORY
        resolved = self._view.resolve(path)
        member = self.members.get(resolved.path)
        if member is not None:
            return resolved.path, member.kind == tar_format.DIRECTORY
        return resolved.path, not resolved.path or (resolved.place is not None and resolved.place.is_directory)

    def _member(self, path: Names, entry: Entry) -> tar_format.Member:
        if path and path[-1].startswith(b".wh."):
            raise InvalidInput(f"cannot copy {_shown(path)}", "in a layer, names that begin with .wh. delete files", "give it another name")
        target = self._target
        uid, gid = target.owner if target.owner is not None else (entry.uid, entry.gid)
        # Modes of symbolic links mean nothing.
        mode = entry.mode if target.mode is None or entry.kind == tar_format.SYMBOLIC_LINK else target.mode
        name = b"/".join(path) + (b"/" if entry.is_directory else b"")
        return tar_format.Member(name, entry.kind, mode, uid, gid, entry.size, entry.mtime_ns, entry.target, *entry.device, entry.attributes)

    def _new_directory(self, path: Names) -> tar_format.Member:
        uid, gid = self._target.owner or (0, 0)
        return tar_format.Member(b"/".join(path) + b"/", tar_format.DIRECTORY, 0o755, uid, gid, mtime_ns=self._now_ns)

    def _lookup(self, path: Names) -> Node | None:
        """What the image has at a path without symlinks; directories are remembered, most files are new."""
        if path in self._places:
            place = self._places[path]
        else:
            self._lookup(path[:-1])
            parent = self._places.get(path[:-1])
            place = self._view.child(parent, path[-1]) if parent is not None and parent.is_directory else None
            if place is None or place.is_directory:
                self._places[path] = place
        return None if place is None else place.node


def directory_member(path: Names, node: Node) -> tar_format.Member:
    """A directory of the image as it is."""
    return tar_format.Member(
        b"/".join(path) + b"/",
        tar_format.DIRECTORY,
        stat.S_IMODE(node.mode),
        node.uid,
        node.gid,
        mtime_ns=node.mtime * 1_000_000_000 + node.mtime_ns,
        attributes=node.xattrs or {},
    )


def _kept_parents(name: bytes) -> list[bytes]:
    """The directories of a source that ``--parents`` keeps: those after ``/./``, or all."""
    return name.rpartition(b"/")[0].split(b"/")


def _shown(path: Names) -> str:
    return "/" + os.fsdecode(b"/".join(path))
