"""Where COPY and ADD take files from: one interface, :class:`Source`, over a directory of the host, the layers of an image, and texts of the file.

A source is asked for the places that a pattern means, and then for what lies there, in one fixed order. Nothing in it leads out: the host's directory
is walked by descriptors with openat2(2) below its root, the layers by their indexes. What ``.dockerignore`` excludes does not exist here.
"""

from __future__ import annotations

import hashlib
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from bulle.build.patterns import IgnoreRules, PathPattern, has_wildcards
from bulle.errors import BulleError, Conflict, InvalidInput
from bulle.linux.process import RESOLVE_BENEATH, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2
from bulle.registry import tar_format
from bulle.store.merged_view import MergedView, Place

_CHUNK_BYTES = 1 << 20
_IN_ROOT = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of any type: ``path`` is its source's, without symlinks; ``mode`` the permission bits; ``links`` names files that are one and the
    same.

    ``open()`` gives the content of a regular file, each time from the start.
    """

    path: bytes
    kind: bytes
    mode: int
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime_ns: int = 0
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    attributes: Mapping[bytes, bytes] = field(default_factory=dict)
    links: object = None
    open: Callable[[], Iterator[bytes]] = lambda: iter(())

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return self.kind == tar_format.DIRECTORY


@dataclass(frozen=True, slots=True, eq=False)
class Top:
    """One place that a pattern means: ``name`` as it matched (for ``--parents`` and as the file's name), ``entry`` what it leads to."""

    name: bytes
    entry: Entry


class Source(ABC):
    """A tree of files to copy from."""

    what: str
    """How an error names it."""

    def find(self, pattern: str) -> list[Top]:
        """The places that a path or a pattern with wildcards means, sorted; none where nothing is there. A place may be a symlink's target."""
        parts = [part for part in os.path.normpath("/" + pattern).split("/") if part]
        if not any(has_wildcards(part) for part in parts):
            entry = self.follow(os.fsencode("/".join(parts)))
            return [] if entry is None else [Top(os.fsencode("/".join(parts)), entry)]
        fixed = next(position for position, part in enumerate(parts) if has_wildcards(part))
        start = os.fsencode("/".join(parts[:fixed]))
        entry = self.follow(start)
        wanted = PathPattern("/".join(parts))
        depth = None if "**" in pattern else len(parts) - fixed
        found = []
        for path in self._below(start, entry, depth) if entry is not None and entry.is_directory else ():
            if wanted.matches(os.fsdecode(path)) and (followed := self.follow(path)) is not None:
                found.append(Top(path, followed))
        return found

    def _below(self, path: bytes, directory: Entry, depth: int | None) -> Iterator[bytes]:
        for child in self.children(directory):
            name = child.path.rpartition(b"/")[2]
            below = path + b"/" + name if path else name
            yield below
            if child.is_directory and depth != 1:
                yield from self._below(below, child, None if depth is None else depth - 1)

    @abstractmethod
    def follow(self, path: bytes) -> Entry | None:
        """What a path leads to, symlinks followed inside the source; None where nothing is."""

    @abstractmethod
    def children(self, directory: Entry) -> Iterator[Entry]:
        """What lies in a directory, sorted by name; symlinks as themselves."""

    def walk(self, entry: Entry, excludes: IgnoreRules | None = None) -> Iterator[tuple[bytes, Entry]]:
        """An entry and everything below it, parents first: (path below the entry, entry). ``excludes`` are rules for such paths."""
        yield b"", entry
        if entry.is_directory:
            yield from self._walk(entry, b"", excludes)

    def _walk(self, directory: Entry, prefix: bytes, excludes: IgnoreRules | None) -> Iterator[tuple[bytes, Entry]]:
        for child in self.children(directory):
            path = prefix + child.path.rpartition(b"/")[2]
            if excludes and (excludes.prunes if child.is_directory else excludes.excludes)(os.fsdecode(path)):
                continue
            yield path, child
            if child.is_directory:
                yield from self._walk(child, path + b"/", excludes)


class HostDirectory(Source):
    """A directory of the host, such as the context of a build; ``root`` is a descriptor that stays the caller's.

    Its files become root's, without extended attributes: those belong to the machine where they lie.
    """

    def __init__(self, root: int, what: str, ignore: IgnoreRules | None = None) -> None:
        self._root = root
        self.what = what
        self._ignore = ignore

    def follow(self, path: bytes) -> Entry | None:
        try:
            descriptor = openat2(self._root, path or b".", os.O_PATH, _IN_ROOT)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._unreadable(path, error) from None
        try:
            # The place itself may be reached through a symlink; rules are about names as they are written.
            real = self._real_path(descriptor, path)
            if self._ignored(path, descriptor) or self._ignored(real, descriptor):
                return None
            return self._entry(real, os.fstat(descriptor), lambda: b"")
        finally:
            os.close(descriptor)

    def children(self, directory: Entry) -> Iterator[Entry]:
        try:
            descriptor = openat2(self._root, directory.path or b".", _DIRECTORY, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
        except OSError as error:
            raise self._unreadable(directory.path, error) from None
        try:
            names = sorted(os.fsencode(name) for name in os.listdir(descriptor))
            for name in names:
                path = directory.path + b"/" + name if directory.path else name
                try:
                    status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                except FileNotFoundError:
                    continue  # deleted since it was listed
                if tar_format.kind_of(status.st_mode) is None or not self._may_hold(path, stat.S_ISDIR(status.st_mode)):
                    continue
                yield self._entry(path, status, lambda name=name: os.fsencode(os.readlink(name, dir_fd=descriptor)))  # type: ignore[misc]
        finally:
            os.close(descriptor)

    def _ignored(self, path: bytes, descriptor: int) -> bool:
        if self._ignore is None or not path:
            return False
        is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        return not self._may_hold(path, is_directory)

    def _may_hold(self, path: bytes, is_directory: bool) -> bool:
        """Whether a path is there at all: not excluded, or a directory below which something is included again."""
        if not self._ignore or not self._ignore.excludes(os.fsdecode(path), is_directory):
            return True
        if not is_directory or self._ignore.prunes(os.fsdecode(path)):
            return False
        return any(True for _ in self.children(Entry(path, tar_format.DIRECTORY, 0)))

    def _real_path(self, descriptor: int, path: bytes) -> bytes:
        """The path below the root of what was opened, without symlinks."""
        root = os.readlink(f"/proc/self/fd/{self._root}")
        found = os.readlink(f"/proc/self/fd/{descriptor}")
        if found == root:
            return b""
        inside = found.removeprefix(root.rstrip("/") + "/")
        return os.fsencode(inside) if inside != found else path

    def _entry(self, path: bytes, status: os.stat_result, link: Callable[[], bytes]) -> Entry:
        kind = tar_format.kind_of(status.st_mode)
        if kind is None:
            raise InvalidInput(f"{os.fsdecode(path)} cannot be copied", "it is a socket")
        regular = kind == tar_format.FILE
        return Entry(
            path,
            kind,
            stat.S_IMODE(status.st_mode),
            size=status.st_size if regular else 0,
            mtime_ns=status.st_mtime_ns,
            target=link() if kind == tar_format.SYMBOLIC_LINK else b"",
            device=(os.major(status.st_rdev), os.minor(status.st_rdev)),
            links=(status.st_dev, status.st_ino) if regular and status.st_nlink > 1 else None,
            open=lambda: self._read(path, status) if regular else iter(()),
        )

    def _read(self, path: bytes, status: os.stat_result) -> Iterator[bytes]:
        try:
            descriptor = openat2(self._root, path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
        except OSError as error:
            raise self._unreadable(path, error) from None
        try:
            # Read once for the cache's key and once for the layer: both must have been the same bytes.
            if _version(os.fstat(descriptor)) != _version(status):
                raise self._changed(path)
            left = status.st_size
            while left:
                chunk = os.read(descriptor, min(_CHUNK_BYTES, left))
                if not chunk:
                    raise self._changed(path)
                left -= len(chunk)
                yield chunk
            if _version(os.fstat(descriptor)) != _version(status):
                raise self._changed(path)
        finally:
            os.close(descriptor)

    def _changed(self, path: bytes) -> Conflict:
        return Conflict(f"{os.fsdecode(path)} in {self.what} changed while it was copied", "", "build again once it is at rest")

    def _unreadable(self, path: bytes, error: OSError) -> BulleError:
        return BulleError(f"cannot read {os.fsdecode(path) or '/'} in {self.what}", error.strerror or str(error), "exclude it in .dockerignore")


def _version(status: os.stat_result) -> tuple[int, ...]:
    """What changes with a file: the kernel sets st_ctime at each write, and nobody else can."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class LayersSource(Source):
    """The files of an image or stage; owners are kept."""

    def __init__(self, view: MergedView, what: str) -> None:
        self._view = view
        self.what = what

    def follow(self, path: bytes) -> Entry | None:
        place = self._view.resolve(path).place
        return None if place is None else self._entry(place)

    def children(self, directory: Entry) -> Iterator[Entry]:
        place = self._view.resolve(directory.path).place
        for child in self._view.children(place) if place is not None else ():
            yield self._entry(child)

    def _entry(self, place: Place) -> Entry:
        node = place.node
        kind = tar_format.kind_of(node.mode)
        assert kind is not None  # no layer holds a socket
        return Entry(
            b"/".join(place.path),
            kind,
            stat.S_IMODE(node.mode),
            node.uid,
            node.gid,
            node.size if kind == tar_format.FILE else 0,
            node.mtime * 1_000_000_000 + node.mtime_ns,
            node.target,
            node.device or (0, 0),
            node.xattrs or {},
            place.where[0] if kind == tar_format.FILE and node.links > 1 else None,
            lambda: self._view.read(place),
        )


class Texts(Source):
    """Files whose content stands in the Containerfile, or was just downloaded: name → content."""

    def __init__(self, texts: Mapping[str, bytes], mode: int = 0o644, mtime_ns: int = 0) -> None:
        self.what = "the Containerfile"
        self._entries = {}
        for name, text in texts.items():
            opened = partial(_once, text)
            entry = Entry(os.fsencode(name), tar_format.FILE, mode, size=len(text), mtime_ns=mtime_ns, open=opened)
            self._entries[entry.path] = entry

    def tops(self) -> list[Top]:
        """All of them."""
        return [Top(name, entry) for name, entry in self._entries.items()]

    def follow(self, path: bytes) -> Entry | None:
        return self._entries.get(path)

    def children(self, directory: Entry) -> Iterator[Entry]:
        return iter(())


def _once(text: bytes) -> Iterator[bytes]:
    yield text


def digest_of(tree: Iterable[tuple[bytes, Entry]]) -> dict[str, str]:
    """What counts of each file, by its path: a change of the time alone is none."""
    found: dict[str, str] = {}
    links: dict[object, str] = {}
    for path, entry in tree:
        name = os.fsdecode(path) or "."
        header = (entry.kind, oct(entry.mode), entry.uid, entry.gid, entry.target, entry.device, sorted(entry.attributes.items()))
        checksum = hashlib.sha256(repr(header).encode())
        if entry.links is not None and entry.links in links:
            checksum.update(links[entry.links].encode())
        elif entry.kind == tar_format.FILE:
            for chunk in entry.open():
                checksum.update(chunk)
            if entry.links is not None:
                links[entry.links] = checksum.hexdigest()
        found[name] = checksum.hexdigest()
    return found
