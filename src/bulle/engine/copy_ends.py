"""The two ends of a copy, resolved once: what a path names, and where a copy goes, on the host or in a container alike.

An *opener* opens absolute paths on one side; everything after that is by descriptor, so that nothing that changes meanwhile leads elsewhere.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bulle.errors import BulleError, Conflict, InvalidInput, NotFound
from bulle.linux import mount
from bulle.registry import tar_format
from bulle.registry.tree import Walk

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_MOST_LINKS = 40
_KERNEL = frozenset({mount.PROC_SUPER_MAGIC, 0x62656572, 0x27E0EB, 0x63677270, 0x1CD1})  # proc, sysfs, cgroup, cgroup2, devpts

Open = Callable[[str, int], int]
"""Opens an absolute path, in a container or on the host."""


class Missing(NotFound):
    """A host path that is not there."""


def split(path: str) -> tuple[str, str, bool]:
    """The directory of a path, its last name, and whether the path insists on a directory; "." is the directory itself."""
    insists = path.endswith(("/", "/.")) or path == "."
    plain = path.rstrip("/")
    if path.endswith("/."):
        return plain[:-1] or "/", ".", True
    directory, slash, name = plain.rpartition("/")
    if name in ("", ".", ".."):
        return plain or "/", ".", True
    return (directory or "/") if slash else ".", name, insists


# Where a copy comes from


class FileStatus(msgspec.Struct, frozen=True):
    """What is known of a file: its last name, its mode as in stat(2), bytes, nanoseconds since the epoch, and where a symlink leads."""

    name: str
    mode: int
    size_bytes: int
    modified_ns: int
    target: str = ""


@dataclass
class Source:
    """A name in an opened directory; ``name`` is what the copy is called if nobody says otherwise."""

    parent: int
    entry: str
    name: str
    is_directory: bool
    path: str

    def pack(self, new_name: str) -> Iterator[bytes]:
        """The tar of it under another name (``.`` for a directory's content)."""
        walk = _CopyWalk(Path(self.path))
        try:
            if self.is_directory:
                directory = os.open(self.entry, _DIRECTORY | (os.O_NOFOLLOW if self.entry != "." else 0), dir_fd=self.parent)
                try:
                    status = os.fstat(directory)
                    yield walk.directory_header(status, os.fsencode(new_name), {})
                    yield from walk.below(directory, os.fsencode(new_name) + b"/")
                finally:
                    os.close(directory)
            else:
                status = os.stat(self.entry, dir_fd=self.parent, follow_symlinks=False)
                yield from walk.entry(self.parent, os.fsencode(self.entry), os.fsencode(new_name), status)
        except FileNotFoundError:
            raise NotFound(self.path) from None
        except BulleError:
            raise
        except OSError as error:
            if isinstance(error, (BrokenPipeError, ConnectionResetError)):
                raise
            raise BulleError(f"cannot read {self.path}", os.strerror(error.errno or 0)) from None
        yield tar_format.END

    def status(self) -> FileStatus:
        """What stat(2) says of it, and where a symlink leads."""
        found = os.stat(self.entry, dir_fd=self.parent, follow_symlinks=False)
        target = os.readlink(self.entry, dir_fd=self.parent) if stat.S_ISLNK(found.st_mode) else ""
        return FileStatus(self.name, found.st_mode, found.st_size, found.st_mtime_ns, target)

    def close(self) -> None:
        os.close(self.parent)


class _CopyWalk(Walk):
    """A walk for copies: every name is a file's, and what the kernel only pretends to hold is left out."""

    makes_layer = False

    def directory(self, parent: int, name: bytes, path: bytes) -> Iterator[bytes]:
        """As for any tree, without what is in /proc and /sys."""
        descriptor = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
        try:
            if mount.filesystem_type(descriptor) in _KERNEL:
                yield self.directory_header(os.fstat(descriptor), path, {})
                return
        finally:
            os.close(descriptor)
        yield from super().directory(parent, name, path)


class WholeWalk(_CopyWalk):
    """A walk over everything."""

    def all(self, root: int) -> Iterator[bytes]:
        """The whole tar of a directory whose descriptor is given."""
        directory = os.open(".", _DIRECTORY, dir_fd=root)
        try:
            yield from self.below(directory, b"")
        finally:
            os.close(directory)
        yield tar_format.END


def source(opener: Open, path: str, follow: bool) -> Source:
    """What a path names: the last name is followed where it is asked for, or where the path insists on a directory."""
    name, insists = split(path)[1:]
    with _explained(opener, path, f"lstat {path}: no such file or directory"):
        parent, entry, status = _walk(opener, path, follow=lambda: follow or insists)
        kind = tar_format.kind_of(status.st_mode) if status is not None else None
        if status is None:
            why = ""
        elif insists and kind != tar_format.DIRECTORY:
            why = "it is not a directory"
        elif kind in (None, tar_format.CHARACTER_DEVICE, tar_format.BLOCK_DEVICE):
            why = "it is a device or a socket"
        else:
            return Source(parent, entry, name, kind == tar_format.DIRECTORY, path)
        os.close(parent)
        if not why:
            raise FileNotFoundError
        raise InvalidInput(f"cannot copy {path}", why)


def _walk(opener: Open, path: str, follow: Callable[[], bool]) -> tuple[int, str, os.stat_result | None]:
    """The opened directory of a path, the last name in it, and what is there: None for nothing. Whether a symlink is followed is asked."""
    directory, name, _ = split(path)
    for _ in range(_MOST_LINKS):
        parent = opener(directory, os.O_PATH | os.O_DIRECTORY)
        try:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if not stat.S_ISLNK(status.st_mode) or not follow():
                return parent, name, status
            target = os.readlink(name, dir_fd=parent)
        except FileNotFoundError:
            return parent, name, None
        except BaseException:
            os.close(parent)
            raise
        os.close(parent)
        directory, name, _ = split(target if target.startswith("/") else f"{directory}/{target}")
    raise InvalidInput(f"{path} leads nowhere", "too many symlinks")


@contextmanager
def _explained(opener: Open, path: str, missing: str) -> Iterator[None]:
    """What the kernel says of a path, on the host (``missing`` is Docker's sentence) or in a container."""
    try:
        yield
    except FileNotFoundError:
        raise (Missing(missing) if opener is os.open else NotFound(path)) from None
    except NotADirectoryError:
        raise InvalidInput(f"cannot copy {path}", "a part of the path is not a directory") from None
    except OSError as error:
        raise BulleError(f"cannot copy {path}", os.strerror(error.errno or 0)) from None


# Where a copy goes


@dataclass
class Place:
    """A destination: ``found`` says what it is; ``directory`` is opened where it is one, else -1; else it is ``name`` in ``parent``."""

    found: str
    directory: int
    parent: int
    name: str


def look(opener: Open, path: str) -> Place:
    """Resolve a destination once. A symlink as its last name counts as what it leads to."""
    insists = split(path)[2]
    with _explained(opener, path, f"invalid output path: directory {split(path)[0]!r} does not exist"):
        parent, name, status = _walk(opener, path, follow=lambda: True)
        if status is None:
            return Place("missing directory" if insists else "", -1, parent, name)
        if stat.S_ISDIR(status.st_mode):
            try:
                opened = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            finally:
                os.close(parent)
            return Place("directory", opened, -1, name)
        if insists:
            os.close(parent)
            raise InvalidInput(f"cannot copy to {path}", "it is not a directory")
        return Place("file", -1, parent, name)


def goes_into(is_directory: bool, found: str, path: str) -> bool:
    """Docker's table: whether the copy keeps its name and goes into the destination; else it takes the destination's own name."""
    if found == "file" and is_directory:
        raise Conflict(f"cannot copy a directory to the file {path}")
    if found == "missing directory" and not is_directory:
        raise NotFound(f"the destination directory {path} must exist", "", "create it first, or leave the slash out")
    return found == "directory"


def destination(name: str, is_directory: bool, place: Place, path: str) -> tuple[int, str]:
    """On the host: the descriptor that the copy goes below, and its name there."""
    try:
        into_directory = goes_into(is_directory, place.found, path)
    except BulleError:
        os.close(place.parent)
        raise
    return (place.directory, name) if into_directory else (place.parent, place.name)
