"""Reads the members of an untrusted tar file by name, from a file or a stream, compressed or not, without unpacking anything.

An archive of an image (``docker_archive``, ``oci_layout``) holds JSON documents and layers whose order nobody guarantees, so members are found by
name and read by position: in place where the archive is a plain file, else from an unnamed temporary copy. Member names stay keys of a table and
never become paths on this machine; names that would climb out, and two members of one name, are refused all the same. Safe to use from several
threads.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO, Literal, NamedTuple

from bulle.errors import BulleError, CorruptImage, NotFound, StorageFull
from bulle.registry.compression import CHUNK_BYTES, decompress, detect
from bulle.registry.tar_format import BLOCK_BYTES

MEMBERS_LIMIT = 100_000
_EXTENSION_LIMIT_BYTES = 1 << 20
_LINK_LIMIT = 8
_GROWTH_LIMIT = 200
_GROWTH_ALLOWANCE_BYTES = 4 << 30


class ArchiveMember(NamedTuple):
    """Where a member's data lies in the archive; ``target`` is set for links."""

    kind: Literal["file", "link", "other"]
    offset: int
    size: int
    target: str = ""


class Archive:
    """The members of one archive; ``name`` is how errors call it. Owns its descriptor: close it."""

    def __init__(self, descriptor: int, start: int, name: str) -> None:
        self.name = name
        self._descriptor = descriptor
        try:
            self.members = dict(_members(descriptor, start, name))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the descriptor back; harmless to repeat."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def has(self, name: str) -> bool:
        """Whether a regular file can be read under this name."""
        try:
            self._find(name)
        except CorruptImage:
            return False
        return True

    def size(self, name: str) -> int:
        """Bytes of a member; CorruptImage where it is missing."""
        return self._find(name).size

    def read(self, name: str, limit: int) -> bytes:
        """A whole small member; CorruptImage where it is missing or larger than ``limit`` bytes."""
        member = self._find(name)
        if member.size > limit:
            raise CorruptImage(f"{self.name} is not usable", f"its {name!r} has {member.size} bytes, at most {limit} are read")
        return b"".join(self._chunks(member, name))

    def head(self, name: str) -> bytes:
        """The first bytes of a member, enough to detect a compression."""
        member = self._find(name)
        return os.pread(self._descriptor, min(16, member.size), member.offset)

    def chunks(self, name: str) -> Iterator[bytes]:
        """The data of a member, at most one mebibyte at a time."""
        return self._chunks(self._find(name), name)

    def _chunks(self, member: ArchiveMember, name: str) -> Iterator[bytes]:
        position, left = member.offset, member.size
        while left:
            chunk = os.pread(self._descriptor, min(CHUNK_BYTES, left), position)
            if not chunk:
                raise CorruptImage(f"{self.name} is truncated", f"it ends inside {name!r}")
            position += len(chunk)
            left -= len(chunk)
            yield chunk

    def _find(self, name: str) -> ArchiveMember:
        """The regular file behind a name; links (docker save made them for repeated layers) lead to other members only."""
        key = name
        for _ in range(_LINK_LIMIT):
            member = self.members.get(key)
            if member is None:
                raise CorruptImage(f"{self.name} is not complete", f"it has no {name!r}")
            if member.kind == "file":
                return member
            if member.kind != "link":
                raise CorruptImage(f"{self.name} is not usable", f"its {name!r} is not a regular file")
            key = member.target
            if key.startswith(("/", "../")) or key == "..":
                raise CorruptImage(f"{self.name} is not safe", f"its {name!r} is a link out of the archive")
        raise CorruptImage(f"{self.name} is not usable", f"its {name!r} is a link that leads nowhere")


def open_archive(source: Path | BinaryIO, temporary: Path | None) -> Archive:
    """Open an archive from a path or a binary stream (which stays the caller's); ``temporary`` is where a copy may be spooled.

    Raises NotFound, CorruptImage, StorageFull.
    """
    if isinstance(source, Path):
        name = source.name
        try:
            descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"no such file: {source}") from None
        except OSError as error:
            raise BulleError(f"cannot read {source}", error.strerror or str(error)) from None
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise CorruptImage(f"{source} is not an archive", "it is a directory", f"load it with oci:{source} or dir:{source}")
        with open(descriptor, "rb", buffering=0) as file:
            return _open(file, name, temporary)
    return _open(source, "the archive", temporary)


def _open(file: IO[bytes], name: str, temporary: Path | None) -> Archive:
    seekable = _regular(file)
    start = file.tell() if seekable else 0
    head = _read_head(file)
    compression = detect(head)
    if not head:
        raise CorruptImage(f"{name} is not an image archive", "it is empty")
    if seekable and not compression:
        return Archive(os.dup(file.fileno()), start, name)
    return Archive(_spool(file, head, name, temporary), 0, name)


def _regular(file: IO[bytes]) -> bool:
    """Whether the file has a descriptor that can be read by position."""
    try:
        return stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except OSError:
        # io.UnsupportedOperation is an OSError: a stream in memory.
        return False


def _read_head(file: IO[bytes]) -> bytes:
    head = b""
    while len(head) < BLOCK_BYTES and (more := file.read(BLOCK_BYTES - len(head))):
        head += more
    return head


def _spool(file: IO[bytes], head: bytes, name: str, temporary: Path | None) -> int:
    """A descriptor of an unnamed copy of the plain archive."""
    read_bytes = len(head)

    def raw() -> Iterator[bytes]:
        nonlocal read_bytes
        yield head
        while chunk := file.read(CHUNK_BYTES):
            read_bytes += len(chunk)
            yield chunk

    if temporary is not None:
        temporary.mkdir(parents=True, exist_ok=True)
    written = 0
    try:
        with tempfile.TemporaryFile(dir=temporary, buffering=0) as copy:
            for chunk in decompress(raw(), detect(head), name):
                written += len(chunk)
                if written > growth_limit(read_bytes):
                    raise CorruptImage(f"{name} is refused", f"it decompresses to more than {_GROWTH_LIMIT} times its size")
                view = memoryview(chunk)
                while view:
                    view = view[copy.write(view) :]
            return os.dup(copy.fileno())
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            place = temporary or tempfile.gettempdir()
            raise StorageFull(f"cannot copy {name}", f"no space left in {place}", "free some space and try again") from None
        raise


def growth_limit(compressed_bytes: int) -> int:
    """How much so many compressed bytes may become before they are taken for a decompression bomb."""
    return max(_GROWTH_ALLOWANCE_BYTES, compressed_bytes * _GROWTH_LIMIT)


def _members(descriptor: int, start: int, name: str) -> Iterator[tuple[str, ArchiveMember]]:
    """Walk the headers of a tar; ustar, GNU long names and pax records are understood."""
    end = os.fstat(descriptor).st_size
    seen: set[str] = set()
    position = start
    path, target, size_override = b"", b"", -1
    while position < end:
        block = os.pread(descriptor, BLOCK_BYTES, position)
        if not any(block):
            break
        kind, size = _check(block, name, position == start)
        position += BLOCK_BYTES
        if kind in b"LKxg":
            if size > _EXTENSION_LIMIT_BYTES or position + size > end:
                raise CorruptImage(f"{name} is not a usable archive", f"an extended header claims {size} bytes")
            data = os.pread(descriptor, size, position)
            position += size + -size % BLOCK_BYTES
            if kind == b"L":
                path = data.rstrip(b"\0")
            elif kind == b"K":
                target = data.rstrip(b"\0")
            elif kind == b"x":
                path, target, size_override = _pax(data, name, path, target)
            continue
        size = size_override if size_override >= 0 else size
        path = path or _ustar_name(block)
        target = target or _text(block[157:257])
        key = safe_name(path, name)
        is_file = kind in (b"0", b"\0", b"7") and not path.endswith(b"/")
        if kind == b"S":
            raise CorruptImage(f"{name} is not usable", f"its {key!r} is a sparse member")
        if not is_file:
            size = 0
        if position + size > end:
            raise CorruptImage(f"{name} is truncated", f"{key!r} should have {size} bytes, {max(0, end - position)} are there")
        if kind != b"5" and key:
            if key in seen:
                raise CorruptImage(f"{name} is not safe", f"it has two members named {key!r}")
            seen.add(key)
            if len(seen) > MEMBERS_LIMIT:
                raise CorruptImage(f"{name} is refused", f"it has more than {MEMBERS_LIMIT} members")
            yield key, _member(kind, is_file, key, target, position, size)
        position += size + -size % BLOCK_BYTES
        path, target, size_override = b"", b"", -1


def _member(kind: bytes, is_file: bool, key: str, target: bytes, position: int, size: int) -> ArchiveMember:
    if is_file:
        return ArchiveMember("file", position, size)
    words = os.fsdecode(target)
    if kind == b"1":
        return ArchiveMember("link", 0, 0, posixpath.normpath(words))
    if kind == b"2":
        return ArchiveMember("link", 0, 0, posixpath.normpath(posixpath.join(posixpath.dirname(key), words)))
    return ArchiveMember("other", 0, 0)


def safe_name(raw: bytes, archive: str) -> str:
    """A member's name as a plain relative one; CorruptImage where it is absolute or climbs."""
    text = os.fsdecode(raw)
    parts = text.split("/")
    if text.startswith("/") or ".." in parts:
        raise CorruptImage(f"{archive} is not safe", f"it has a member named {text!r}")
    return "/".join(part for part in parts if part not in ("", "."))


def _check(block: bytes, name: str, first: bool) -> tuple[bytes, int]:
    """Type and size of a header, once its checksum is right."""
    if len(block) == BLOCK_BYTES:
        claimed = _number(block[148:156])
        # Some old writers summed signed characters; nobody who makes images does.
        if claimed == sum(block) - sum(block[148:156]) + 8 * 32:
            size = _number(block[124:136])
            if size >= 0:
                return block[156:157], size
    if first:
        raise CorruptImage(f"{name} is not an image archive", "it is not a tar file")
    raise CorruptImage(f"{name} is damaged or truncated", "a tar header inside it is wrong")


def _number(field: bytes) -> int:
    """An octal field, or GNU's base-256; -1 for nonsense."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big") if field[0] == 0x80 else -1
    text = field.strip(b" \0")
    try:
        return int(text, 8) if text else 0
    except ValueError:
        return -1


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _ustar_name(block: bytes) -> bytes:
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + _text(block[:100]) if prefix else _text(block[:100])


def _pax(data: bytes, name: str, path: bytes, target: bytes) -> tuple[bytes, bytes, int]:
    """The records of a pax header that matter here: path, linkpath and size."""
    size = -1
    while data:
        digits, space, _ = data.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        record = data[len(digits) + 1 : length - 1]
        key, equals, value = record.partition(b"=")
        if not space or not equals or length > len(data) or data[length - 1 : length] != b"\n":
            raise CorruptImage(f"{name} is damaged", "an extended header inside it is wrong")
        if key.startswith(b"GNU.sparse."):
            raise CorruptImage(f"{name} is not usable", "it has a sparse member")
        if key == b"path":
            path = value
        elif key == b"linkpath":
            target = value
        elif key == b"size":
            if not value.isdigit() or len(value) > 18:
                raise CorruptImage(f"{name} is damaged", "an extended header claims an impossible size")
            size = int(value)
        data = data[length:]
    return path, target, size
