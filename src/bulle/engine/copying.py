"""``cp``: files between a container's root filesystem and the host, or a tar stream, by Docker's rules for what the copy is called.

A child stands in the container's root (:mod:`bulle.engine.inner_worker`), this process on the host; between them goes a tar. Every path is resolved
once, the container's below its root; from then on only descriptors count. Nothing of the container is executed. Docker's manual, "docker container
cp".
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from bulle.engine.inner_worker import Line, working
from bulle.errors import BulleError, Conflict, InvalidInput, NotFound
from bulle.isolation.root_access import open_below
from bulle.linux import mount
from bulle.model.run_plan import RunPlan
from bulle.records.events import publish_container
from bulle.registry import tar_format
from bulle.registry.tree import Walk
from bulle.registry.tree_writer import Rules, TreeWriter

if TYPE_CHECKING:
    from bulle.engine.differences import Change

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_MOST_LINKS = 40
_KERNEL = frozenset({mount.PROC_SUPER_MAGIC, 0x62656572, 0x27E0EB, 0x63677270, 0x1CD1})  # proc, sysfs, cgroup, cgroup2, devpts
_CHUNK_BYTES = 1 << 18

Open = Callable[[str, int], int]
"""Opens an absolute path, in a container or on the host."""


@dataclass(frozen=True)
class Copied:
    """What a copy came to: bytes of the tar that went over the line, and names of devices, which are never copied."""

    size_bytes: int
    left_out: tuple[str, ...] = ()


class ContainerFiles:
    """The files of one container, seen from the host. ``home`` and ``plan`` are the container's, ``name`` is for errors."""

    def __init__(self, home: Path, plan: RunPlan, name: str) -> None:
        self._home = home
        self._plan = plan
        self._name = name

    def copy_out(self, path: str, target: str, *, archive: bool = False, follow: bool = False) -> Copied:
        """Copy what is at a container path to a host path; with ``archive`` numbers of owners are kept, with ``follow`` a symlink is followed.

        Raises NotFound, Conflict, InvalidInput, StorageFull.
        """
        with self._reading(path, follow) as (line, is_directory, name):
            directory, new_name = _destination(name, is_directory, _look(os.open, target), target)
            try:
                line.send(new_name)
                counted = _Counted(line.reading)
                rules = Rules(owners=archive, privileges=archive, place=target)
                writer = TreeWriter(directory, rules)
                writer.write(cast("BinaryIO", counted))
            finally:
                os.close(directory)
        return Copied(counted.size, tuple(writer.left_out))

    def read_archive(self, path: str, out: BinaryIO, *, follow: bool = False) -> None:
        """Write what is at a container path to a stream, as a tar."""
        with self._reading(path, follow) as (line, _is_directory, name):
            line.send(name)
            while chunk := line.reading.read(_CHUNK_BYTES):
                out.write(chunk)
            out.flush()

    def copy_in(self, source: str, path: str, *, archive: bool = False, follow: bool = False) -> Copied:
        """Copy what is at a host path to a container path. New files belong to the container's root, or with ``archive`` to the same numbers."""
        origin = _source(os.open, source, follow)
        try:
            with self._writing(path, archive) as (line, found, name):
                into_directory = _goes_into(origin.is_directory, found, path)
                new_name = origin.name if into_directory else name
                line.send(into_directory)
                size = 0
                for chunk in origin.pack(new_name):
                    size += line.write(chunk)
                left_out = _finish(line)
        finally:
            origin.close()
        return Copied(size, left_out)

    def write_archive(self, stream: BinaryIO, path: str, *, archive: bool = True) -> Copied:
        """Unpack a tar stream (compressed or not) in a directory of the container.

        The archive says to whom files belong; without ``archive`` those of users that do not exist there become root's instead of being an error.
        """
        from bulle.registry.compression import decompress, detect

        head = stream.read(_CHUNK_BYTES)
        with self._writing(path, True, lenient=not archive) as (line, found, _name):
            if found != "directory":
                raise Conflict(f'destination "{self._name}:{path}" must be a directory')
            line.send(True)
            size = sum(map(line.write, decompress(_chunks(head, stream), detect(head), "the archive")))
            left_out = _finish(line)
        return Copied(size, left_out)

    def export(self, out: BinaryIO) -> None:
        """Write the whole root filesystem as a tar, without what is mounted in it."""

        def work(root: int, line: Line) -> None:
            try:
                for chunk in WholeWalk(Path("/")).all(root):
                    line.write(chunk)
            except OSError as error:
                if isinstance(error, (BrokenPipeError, ConnectionResetError)):
                    raise
                raise BulleError("the container cannot be exported", f"{error.strerror} ({error.filename})") from error
            line.end_stream()

        with working(self._home, self._plan, self._name, work, merged=True) as line:
            while chunk := line.reading.read(_CHUNK_BYTES):
                out.write(chunk)
            out.flush()
        publish_container(self._plan.state_host_path, "export")

    def changes(self) -> list[Change]:
        """What is other than in the image, a directory before what is in it, names in order. Raises Unsupported where the root is a copy."""
        from bulle.engine.differences import changes

        return changes(self._home, self._plan)

    @contextmanager
    def _reading(self, path: str, follow: bool) -> Iterator[tuple[Line, bool, str]]:
        def work(root: int, line: Line) -> None:
            origin = _source(lambda name, flags: open_below(root, name, flags), _absolute(path), follow)
            line.send([origin.is_directory, origin.name])
            for chunk in origin.pack(line.receive()):
                line.write(chunk)
            line.end_stream()

        with self._explaining(path), working(self._home, self._plan, self._name, work) as line:
            is_directory, name = line.receive()
            yield line, is_directory, name
        publish_container(self._plan.state_host_path, "archive-path", path=path)

    @contextmanager
    def _writing(self, path: str, owners: bool, *, lenient: bool = False) -> Iterator[tuple[Line, str, str]]:
        def work(root: int, line: Line) -> None:
            place = _look(lambda name, flags: open_below(root, name, flags), _absolute(path))
            line.send([place.found, place.name])
            directory = place.directory if line.receive() else place.parent
            rules = Rules(owners=owners, lenient=lenient, owner=(0, 0), privileges=True, place=f"{self._name}:{path}")
            writer = TreeWriter(directory, rules)
            writer.write(line.reading)
            line.send(writer.left_out)
            line.end_stream()

        with self._explaining(path), working(self._home, self._plan, self._name, work) as line:
            found, name = line.receive()
            yield line, found, name
        publish_container(self._plan.state_host_path, "extract-to-dir", path=path)

    @contextmanager
    def _explaining(self, path: str) -> Iterator[None]:
        try:
            yield
        except _Missing as error:
            raise NotFound(str(error)) from None
        except NotFound as error:
            if error.brief == _absolute(path):
                raise NotFound(f"Could not find the file {error.brief} in container {self._name}") from None
            raise


class _Missing(NotFound):
    """A host path that is not there."""


def _finish(line: Line) -> tuple[str, ...]:
    line.end_stream()
    return tuple(line.receive())


def _absolute(path: str) -> str:
    """A container path from its root; what Docker makes of a relative one."""
    return path if path.startswith("/") else f"/{path}"


def _split(path: str) -> tuple[str, str, bool]:
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


@dataclass
class _Source:
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


def _source(opener: Open, path: str, follow: bool) -> _Source:
    """What a path names: the last name is followed where it is asked for, or where the path insists on a directory."""
    name, insists = _split(path)[1:]
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
            return _Source(parent, entry, name, kind == tar_format.DIRECTORY, path)
        os.close(parent)
        if not why:
            raise FileNotFoundError
        raise InvalidInput(f"cannot copy {path}", why)


def _walk(opener: Open, path: str, follow: Callable[[], bool]) -> tuple[int, str, os.stat_result | None]:
    """The opened directory of a path, the last name in it, and what is there: None for nothing. Whether a symlink is followed is asked."""
    directory, name, _ = _split(path)
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
        directory, name, _ = _split(target if target.startswith("/") else f"{directory}/{target}")
    raise InvalidInput(f"{path} leads nowhere", "too many symlinks")


@contextmanager
def _explained(opener: Open, path: str, missing: str) -> Iterator[None]:
    """What the kernel says of a path, on the host (``missing`` is Docker's sentence) or in a container."""
    try:
        yield
    except FileNotFoundError:
        raise (_Missing(missing) if opener is os.open else NotFound(path)) from None
    except NotADirectoryError:
        raise InvalidInput(f"cannot copy {path}", "a part of the path is not a directory") from None
    except OSError as error:
        raise BulleError(f"cannot copy {path}", os.strerror(error.errno or 0)) from None


# Where a copy goes


@dataclass
class _Place:
    """A destination: ``found`` says what it is; ``directory`` is opened where it is one, else -1; else it is ``name`` in ``parent``."""

    found: str
    directory: int
    parent: int
    name: str


def _look(opener: Open, path: str) -> _Place:
    """Resolve a destination once. A symlink as its last name counts as what it leads to."""
    insists = _split(path)[2]
    with _explained(opener, path, f"invalid output path: directory {_split(path)[0]!r} does not exist"):
        parent, name, status = _walk(opener, path, follow=lambda: True)
        if status is None:
            return _Place("missing directory" if insists else "", -1, parent, name)
        if stat.S_ISDIR(status.st_mode):
            try:
                opened = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            finally:
                os.close(parent)
            return _Place("directory", opened, -1, name)
        if insists:
            os.close(parent)
            raise InvalidInput(f"cannot copy to {path}", "it is not a directory")
        return _Place("file", -1, parent, name)


def _goes_into(is_directory: bool, found: str, path: str) -> bool:
    """Docker's table: whether the copy keeps its name and goes into the destination; else it takes the destination's own name."""
    if found == "file" and is_directory:
        raise Conflict(f"cannot copy a directory to the file {path}")
    if found == "missing directory" and not is_directory:
        raise NotFound(f"the destination directory {path} must exist", "", "create it first, or leave the slash out")
    return found == "directory"


def _destination(name: str, is_directory: bool, place: _Place, path: str) -> tuple[int, str]:
    """On the host: the descriptor that the copy goes below, and its name there."""
    try:
        into_directory = _goes_into(is_directory, place.found, path)
    except BulleError:
        os.close(place.parent)
        raise
    return (place.directory, name) if into_directory else (place.parent, place.name)


class _Counted:
    """A stream that counts what is read from it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.size = 0

    def read(self, size: int = -1) -> bytes:
        chunk = self._stream.read(size)
        self.size += len(chunk)
        return chunk


def _chunks(head: bytes, stream: BinaryIO) -> Iterator[bytes]:
    while head:
        yield head
        head = stream.read(_CHUNK_BYTES)
