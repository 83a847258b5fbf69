"""Files that a verb needs on the other machine, and files that it makes there: carried as a tar over a connection of their own.

The far end (:func:`keep`) puts them below a temporary directory of its home, says where, and waits. When it is told so it sends back what was put
below ``out``; when the connection ends, for whatever reason, it removes everything. So nothing stays there, whoever is killed; where it is killed
itself, the directory is a dead owner's, which the next collection removes.
"""

from __future__ import annotations

import io
import os
import struct
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

from bulle.errors import BulleError, Conflict, InvalidInput, NotFound, Unavailable
from bulle.fleet.hosts import Host
from bulle.fleet.transport import CARRY_FLAG, Connection
from bulle.version import VERSION

_FRAME_BYTES = 1 << 17
_LENGTH = struct.Struct(">I")
_BACK, _READY = b"B", b"ready\n"
WHOLE = ".directory"
"""How a directory that goes back is called below ``out/NUMBER``; a file has its own name there."""

Keep = Callable[[str, bool], bool]
"""Whether a path below a directory goes along: (path from the directory, whether it is a directory)."""


@dataclass(frozen=True)
class Upload:
    """A file or directory of this machine; ``name`` is its path below the directory there. Without a path it is a new file of that ``content``,
    or without one an empty directory. With ``names_directory`` the content is JSON, in which NUL stands for the directory there."""

    name: str
    path: str = ""
    content: bytes | None = None
    keep: Keep | None = None
    names_directory: bool = False


class _Frames:
    """Both ends of a stream that says its own end: blocks with their lengths, an empty one last."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._rest = b""
        self._ended = False

    def write(self, data: bytes) -> int:
        for start in range(0, len(data), _FRAME_BYTES):
            part = data[start : start + _FRAME_BYTES]
            self._stream.write(_LENGTH.pack(len(part)) + part)
        return len(data)

    def end(self) -> None:
        self._stream.write(_LENGTH.pack(0))
        self._stream.flush()

    def read(self, size: int = -1) -> bytes:
        while not self._ended and (size < 0 or len(self._rest) < size):
            length = _LENGTH.unpack(self._exactly(_LENGTH.size))[0]
            if length > _FRAME_BYTES:
                raise Unavailable("the other machine sent nonsense", f"a block of {length} bytes")
            self._ended = length == 0
            self._rest += self._exactly(length)
        size = len(self._rest) if size < 0 else size
        result, self._rest = self._rest[:size], self._rest[size:]
        return result

    def _exactly(self, size: int) -> bytes:
        data = self._stream.read(size)
        if len(data) < size:
            raise Unavailable("the connection was lost while files were carried")
        return data


@contextmanager
def carried(host: Host, uploads: list[Upload], brought: dict[str, str]) -> Iterator[str]:
    """Have files there while the block runs; yields their directory there.

    When it ends well, what is in ``out/NAME`` there becomes the absolute path here that ``brought`` says; where that ends with a slash, what comes
    goes into that directory. Raises BulleError.
    """
    for_it, ours = os.pipe2(os.O_CLOEXEC)
    theirs, from_it = os.pipe2(os.O_CLOEXEC)
    connection = Connection(host)
    connection.start([CARRY_FLAG, VERSION, connection.token], stdin=for_it, stdout=from_it)
    os.close(for_it)
    os.close(from_it)
    try:
        with open(ours, "wb") as sending, open(theirs, "rb") as receiving:
            try:
                directory = receiving.readline().decode().rstrip("\n")
                if directory:
                    _send(sending, uploads, directory)
                if receiving.readline() != _READY:
                    raise Unavailable(f"files could not be carried to {host}")
                yield directory
                if brought:
                    sending.write(_BACK)
                    sending.flush()
                    _bring(receiving, brought)
            except (BrokenPipeError, Unavailable) as error:
                if error_there := _its_own(connection):
                    raise error_there from None
                raise error if isinstance(error, BulleError) else Unavailable(f"files could not be carried to {host}") from None
    finally:
        if connection.pid:
            connection.wait()


class Told(BulleError):
    """The other machine said on standard error what failed; the code is the one to end with."""


def _its_own(connection: Connection) -> BulleError | None:
    """Why the connection ended, where ssh knows; or that the other end told it itself."""
    try:
        code = connection.wait()
    except BulleError as error:
        return error
    return Told("", str(code)) if code else None


def _send(sending: BinaryIO, uploads: list[Upload], directory: str) -> None:
    frames = _Frames(sending)
    with tarfile.open(fileobj=cast("BinaryIO", frames), mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for one in uploads:
            if one.path:
                _pack(archive, one)
                continue
            member = tarfile.TarInfo(one.name)
            if one.content is None:
                member.type, member.mode = tarfile.DIRTYPE, 0o700
                archive.addfile(member)
            else:
                content = one.content.replace(b"\\u0000", os.fsencode(directory)) if one.names_directory else one.content
                member.size, member.mode = len(content), 0o600
                archive.addfile(member, io.BytesIO(content))
    frames.end()


def _pack(archive: tarfile.TarFile, one: Upload) -> None:
    path = one.path

    def chosen(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        below = member.name.removeprefix(one.name).lstrip("/")
        if member.ischr() or member.isblk() or (one.keep is not None and below and not one.keep(below, member.isdir())):
            return None
        return member

    try:
        archive.add(path, one.name, filter=chosen)
    except FileNotFoundError as error:
        raise NotFound(f"open {error.filename or path}: no such file or directory") from None
    except OSError as error:
        raise InvalidInput(f"cannot read {error.filename or path}", error.strerror or str(error)) from None


def _bring(receiving: BinaryIO, brought: dict[str, str]) -> None:
    """Take what comes back. Which names come to be here is said by ``brought`` alone, whatever the other machine sends."""
    while name := receiving.readline().decode(errors="replace").rstrip("\n"):
        path = brought.pop(name, None)
        if path is None:
            raise Unavailable("the other machine sent back what nobody asked for")
        if path.endswith("/"):
            os.makedirs(path, exist_ok=True)
            _unpack(receiving, path, path)
            continue
        with tempfile.TemporaryDirectory(prefix=".bulle-", dir=os.path.dirname(path)) as aside:
            _unpack(receiving, aside, path)
            source = os.path.join(aside, os.path.basename(path))
            try:
                os.rename(source, path)
            except FileNotFoundError:
                raise Unavailable(f"the other machine sent no {os.path.basename(path)}") from None
            except OSError as error:
                raise Conflict(f"cannot write {path}", error.strerror or str(error)) from None


def _unpack(receiving: BinaryIO, place: str, shown: str) -> None:
    from bulle.registry.tree_writer import Rules, TreeWriter

    directory = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        frames = _Frames(receiving)
        TreeWriter(directory, Rules(place=shown)).write(cast("BinaryIO", frames))
        frames.read()
    finally:
        os.close(directory)


def keep(home: Path, stdin: BinaryIO, stdout: BinaryIO) -> int:
    """The far end: what ``--fleet-carry`` does. ``home`` is where its temporary directory is."""
    from bulle.registry.tree_writer import Rules, TreeWriter
    from bulle.store.workspace import Workspace

    workspace = Workspace(home)
    try:
        stdout.write(os.fsencode(workspace.path) + b"\n")
        stdout.flush()
        directory = os.open(workspace.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            frames = _Frames(stdin)
            TreeWriter(directory, Rules(owners=os.geteuid() == 0, privileges=True, place="carried files")).write(cast("BinaryIO", frames))
            frames.read()
        finally:
            os.close(directory)
        stdout.write(_READY)
        stdout.flush()
        if stdin.read(1) == _BACK:
            _send_back(workspace.path / "out", stdout)
    finally:
        workspace.close()
    return 0


def _send_back(out: Path, stdout: BinaryIO) -> None:
    for content in sorted(out.glob("*/*")):
        stdout.write(f"{content.parent.name}\n".encode())
        frames = _Frames(stdout)
        with tarfile.open(fileobj=cast("BinaryIO", frames), mode="w|", format=tarfile.PAX_FORMAT) as archive:
            archive.add(content, "." if content.name == WHOLE else content.name)
        frames.end()
