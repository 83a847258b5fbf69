"""Writes tar members as bytes: POSIX ustar headers, extended by pax records where a value does not fit.

For whoever makes a layer or an archive (``tree``, ``host``, the writers). The same values always give the same bytes: nothing is read from the clock,
the user database or the locale. Reading is ``archive``'s business. Format: pax(1p), "pax Interchange Format"; extended attributes as SCHILY.xattr.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from typing import NamedTuple

BLOCK_BYTES = 512
END = bytes(2 * BLOCK_BYTES)

FILE, HARD_LINK, SYMBOLIC_LINK, CHARACTER_DEVICE, BLOCK_DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"

_EIGHT_DIGITS = 0o7777777
_TWELVE_DIGITS = 0o77777777777
_NO_ATTRIBUTES: Mapping[bytes, bytes] = {}


class Member(NamedTuple):
    """One member; ``name`` is relative, with a trailing slash for a directory; ``mode`` holds the permission bits only."""

    name: bytes
    kind: bytes = FILE
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime_ns: int = 0
    target: bytes = b""
    device_major: int = 0
    device_minor: int = 0
    attributes: Mapping[bytes, bytes] = _NO_ATTRIBUTES


def header(member: Member) -> bytes:
    """The header blocks of a member; its data and :func:`padding` follow."""
    seconds, nanoseconds = divmod(member.mtime_ns, 1_000_000_000)
    records: list[tuple[bytes, bytes]] = []
    if len(member.name) > 100:
        records.append((b"path", member.name))
    if len(member.target) > 100:
        records.append((b"linkpath", member.target))
    if member.size > _TWELVE_DIGITS:
        records.append((b"size", b"%d" % member.size))
    if member.uid > _EIGHT_DIGITS:
        records.append((b"uid", b"%d" % member.uid))
    if member.gid > _EIGHT_DIGITS:
        records.append((b"gid", b"%d" % member.gid))
    if nanoseconds or not 0 <= seconds <= _TWELVE_DIGITS:
        records.append((b"mtime", _decimal(member.mtime_ns)))
    records += [(b"SCHILY.xattr." + name, value) for name, value in sorted(member.attributes.items())]
    extension = b""
    if records:
        data = b"".join(_record(key, value) for key, value in records)
        name = b"PaxHeaders/" + member.name.strip(b"/").rpartition(b"/")[2][:80]
        extension = _ustar(Member(name, b"x", size=len(data))) + data + padding(len(data))
    return extension + _ustar(member)


def padding(size: int) -> bytes:
    """The zeros that fill a member's last block."""
    return bytes(-size % BLOCK_BYTES)


def file(name: str, data: bytes, *, mode: int = 0o644, mtime_ns: int = 0) -> bytes:
    """A whole regular file of root's."""
    return header(Member(name.encode(), FILE, mode, size=len(data), mtime_ns=mtime_ns)) + data + padding(len(data))


def directory(name: str, *, mode: int = 0o755, mtime_ns: int = 0) -> bytes:
    """A directory of root's."""
    return header(Member(name.rstrip("/").encode() + b"/", DIRECTORY, mode, mtime_ns=mtime_ns))


def symbolic_link(name: str, target: str, *, mtime_ns: int = 0) -> bytes:
    """A symbolic link of root's."""
    return header(Member(name.encode(), SYMBOLIC_LINK, 0o777, mtime_ns=mtime_ns, target=target.encode()))


def kind_of(mode: int) -> bytes | None:
    """The member type of a file with this st_mode; None for what a tar cannot hold (a socket)."""
    return {
        stat.S_IFREG: FILE,
        stat.S_IFDIR: DIRECTORY,
        stat.S_IFLNK: SYMBOLIC_LINK,
        stat.S_IFCHR: CHARACTER_DEVICE,
        stat.S_IFBLK: BLOCK_DEVICE,
        stat.S_IFIFO: FIFO,
    }.get(stat.S_IFMT(mode))


def _decimal(nanoseconds: int) -> bytes:
    sign = "-" if nanoseconds < 0 else ""
    seconds, rest = divmod(abs(nanoseconds), 1_000_000_000)
    return f"{sign}{seconds}.{rest:09d}".rstrip("0").rstrip(".").encode()


def _record(key: bytes, value: bytes) -> bytes:
    """One pax record; its length counts its own digits."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length = len(str(length)) + len(rest)
    return str(length).encode() + rest


def _ustar(member: Member) -> bytes:
    seconds = member.mtime_ns // 1_000_000_000
    block = b"".join((
        member.name[:100].ljust(100, b"\0"),
        b"%07o\0" % (member.mode & 0o7777),
        b"%07o\0" % (member.uid if member.uid <= _EIGHT_DIGITS else 0),
        b"%07o\0" % (member.gid if member.gid <= _EIGHT_DIGITS else 0),
        b"%011o\0" % (member.size if member.size <= _TWELVE_DIGITS else 0),
        b"%011o\0" % (seconds if 0 <= seconds <= _TWELVE_DIGITS else 0),
        b"        ",
        member.kind,
        member.target[:100].ljust(100, b"\0"),
        b"ustar\00000",
        bytes(64),
        b"%07o\0" % member.device_major,
        b"%07o\0" % member.device_minor,
        bytes(167),
    ))
    return b"%s%06o\0 %s" % (block[:148], sum(block), block[156:])
