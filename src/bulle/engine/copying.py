"""``cp``: files between a container's root filesystem and the host, or a tar stream, by Docker's rules for what the copy is called.

A child stands in the container's root (:mod:`bulle.engine.inner_worker`), this process on the host; between them goes a tar. Every path is resolved
once, the container's below its root; from then on only descriptors count. Nothing of the container is executed. Docker's manual, "docker container
cp".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import msgspec

from bulle.engine import copy_ends, guest_files
from bulle.engine.copy_ends import FileStatus
from bulle.engine.inner_worker import Line, working
from bulle.errors import BulleError, Conflict, NotFound
from bulle.isolation.root_access import open_below
from bulle.model.run_plan import RunPlan
from bulle.records.events import publish_container
from bulle.registry.tree_writer import Rules, TreeWriter

if TYPE_CHECKING:
    from bulle.engine.differences import Change

_CHUNK_BYTES = 1 << 18

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
            directory, new_name = copy_ends.destination(name, is_directory, copy_ends.look(os.open, target), target)
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

    def stat(self, path: str) -> FileStatus:
        """What is at a container path; a symlink as its last name is not followed. Raises NotFound, InvalidInput."""

        def work(root: int, line: Line) -> None:
            origin = copy_ends.source(lambda name, flags: open_below(root, name, flags), _absolute(path), False)
            line.send(origin.status())
            line.end_stream()

        with self._explaining(path):
            if self._plan.guest is not None:
                with guest_files.files_of(self._home, self._plan, self._name) as files:
                    return guest_files.status_of(files, _absolute(path))
            with working(self._home, self._plan, self._name, work) as line:
                return msgspec.convert(line.receive(), FileStatus)

    def copy_in(self, source: str, path: str, *, archive: bool = False, follow: bool = False) -> Copied:
        """Copy what is at a host path to a container path. New files belong to the container's root, or with ``archive`` to the same numbers."""
        origin = copy_ends.source(os.open, source, follow)
        try:
            with self._writing(path, archive) as (line, found, name):
                into_directory = copy_ends.goes_into(origin.is_directory, found, path)
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
                for chunk in copy_ends.WholeWalk(Path("/")).all(root):
                    line.write(chunk)
            except OSError as error:
                if isinstance(error, (BrokenPipeError, ConnectionResetError)):
                    raise
                raise BulleError("the container cannot be exported", f"{error.strerror} ({error.filename})") from error
            line.end_stream()

        with self._whole(work) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                out.write(chunk)
            out.flush()
        publish_container(self._plan.state_host_path, "export")

    @contextmanager
    def _whole(self, work: Callable[[int, Line], None]) -> Iterator[BinaryIO]:
        if self._plan.guest is not None:
            # The overlay alone: what is mounted in it is in the container's namespace.
            with guest_files.files_of(self._home, self._plan, self._name) as files, files.tar_of("/root", "", own_root=True) as stream:
                yield stream
            return
        with working(self._home, self._plan, self._name, work, merged=True) as line:
            yield line.reading

    def changes(self) -> list[Change]:
        """What is other than in the image, a directory before what is in it, names in order. Raises Unsupported where the root is a copy."""
        from bulle.engine.differences import changes

        return changes(self._home, self._plan)

    @contextmanager
    def _reading(self, path: str, follow: bool) -> Iterator[tuple[Line | guest_files.OutLine, bool, str]]:
        def work(root: int, line: Line) -> None:
            origin = copy_ends.source(lambda name, flags: open_below(root, name, flags), _absolute(path), follow)
            line.send([origin.is_directory, origin.name])
            for chunk in origin.pack(line.receive()):
                line.write(chunk)
            line.end_stream()

        with self._explaining(path):
            if self._plan.guest is not None:
                with (
                    guest_files.files_of(self._home, self._plan, self._name) as files,
                    guest_files.reading(files, _absolute(path), follow) as found,
                ):
                    yield found
            else:
                with working(self._home, self._plan, self._name, work) as line:
                    is_directory, name = line.receive()
                    yield line, is_directory, name
        publish_container(self._plan.state_host_path, "archive-path", path=path)

    @contextmanager
    def _writing(self, path: str, owners: bool, *, lenient: bool = False) -> Iterator[tuple[Line | guest_files.InLine, str, str]]:
        def work(root: int, line: Line) -> None:
            place = copy_ends.look(lambda name, flags: open_below(root, name, flags), _absolute(path))
            line.send([place.found, place.name])
            directory = place.directory if line.receive() else place.parent
            rules = Rules(owners=owners, lenient=lenient, owner=(0, 0), privileges=True, place=f"{self._name}:{path}")
            writer = TreeWriter(directory, rules)
            writer.write(line.reading)
            line.send(writer.left_out)
            line.end_stream()

        with self._explaining(path):
            if self._plan.guest is not None:
                with (
                    guest_files.files_of(self._home, self._plan, self._name) as files,
                    guest_files.writing(files, _absolute(path), owners) as place,
                ):
                    yield place
            else:
                with working(self._home, self._plan, self._name, work) as line:
                    found, name = line.receive()
                    yield line, found, name
        publish_container(self._plan.state_host_path, "extract-to-dir", path=path)

    @contextmanager
    def _explaining(self, path: str) -> Iterator[None]:
        try:
            yield
        except copy_ends.Missing as error:
            raise NotFound(str(error)) from None
        except NotFound as error:
            if error.brief == _absolute(path):
                raise NotFound(f"Could not find the file {error.brief} in container {self._name}") from None
            raise


def _finish(line: Line | guest_files.InLine) -> tuple[str, ...]:
    line.end_stream()
    return tuple(line.receive())


def _absolute(path: str) -> str:
    """A container path from its root; what Docker makes of a relative one."""
    return path if path.startswith("/") else f"/{path}"


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
