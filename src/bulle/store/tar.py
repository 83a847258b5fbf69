"""Reading a tar archive's headers: what is in it and where each file's bytes lie, without copying any.

The archive is given as one buffer (an mmap of the stored layer). Every form that images use is understood: old, ustar, star, GNU (long names,
sparse, base-256 numbers) and pax (attributes, extended attributes, sparse). What the entries *mean* together (whiteouts, hard links, missing
parents) is :mod:`bulle.store.tree`'s business. Nothing is ever looked up on a file system here. tar(5); pax in POSIX.1-2017.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from bulle.store import tar_extensions
from bulle.store.limits import Limits
from bulle.store.tar_extensions import Extensions, Segments, corrupt, number, shown

Buffer = bytes | mmap.mmap

_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s64s8s8s155s12x")
_LARGEST_ID = 2**32 - 2  # 2**32-1 is "no id" to the kernel, and 2**32 would wrap to root
_EXTENSION_KINDS = b"xgLKV"
_DATA_KINDS = b"0\x007S"
_OTHER_KINDS = b"123456"


class Entry(NamedTuple):
    """One header, with the extended headers before it applied.

    ``kind`` is tar's type: ``0`` file, ``1`` hard link, ``2`` symlink, ``3`` and ``4`` devices, ``5`` directory, ``6`` FIFO. Names are raw bytes as
    written. ``data_offset`` is where the file's bytes begin in the archive, ``segments`` where they go in a sparse file.
    """

    kind: bytes
    name: bytes
    link: bytes
    mode: int
    uid: int
    gid: int
    size: int
    data_offset: int
    mtime: int
    mtime_ns: int
    device: tuple[int, int]
    xattrs: dict[bytes, bytes] | None
    segments: Segments | None


def read_entries(data: Buffer, limits: Limits) -> Iterator[Entry]:
    """Every entry in the archive's order. Raises CorruptImage at the first thing that cannot be right."""
    offset, end, count = 0, len(data), 0
    memo: dict[bytes, int] = {}
    extensions: Extensions | None = None
    while offset < end:
        block = data[offset : offset + 512]
        if len(block) < 512:
            raise corrupt(f"it ends in the middle of the header at byte {offset}")
        name, mode_, uid_, gid_, size_, mtime_, sum_, kind, link, magic, _, major, minor, prefix = _HEADER.unpack(block)
        if not name[0] and block.count(0) == 512:
            break  # a block of zeros ends the archive; what follows is padding
        if not _checksum_holds(block, number(sum_)):
            raise corrupt(f"the header at byte {offset} has a wrong checksum")
        count += 1
        if count > limits.entries:
            raise corrupt(f"it has more than {limits.entries} entries")
        size, offset = number(size_), offset + 512
        if kind in _EXTENSION_KINDS:
            extensions = tar_extensions.read(data, kind, offset, size, extensions, limits)
            offset += size + 511 & ~511
            continue
        try:
            mode, uid, gid = memo[mode_], memo[uid_], memo[gid_]
        except KeyError:
            mode, uid, gid = (memo.setdefault(field, number(field)) for field in (mode_, uid_, gid_))
        name = name.partition(b"\0")[0]
        if prefix[0] and magic == b"ustar\x0000":
            name = (prefix[:131] if block[508:] == b"tar\0" else prefix).partition(b"\0")[0] + b"/" + name
        device = (number(major), number(minor)) if kind in b"34" else (0, 0)
        link = link.partition(b"\0")[0] if link[0] else b""
        entry = Entry(kind, name, link, mode & 0o7777, uid, gid, size, offset, number(mtime_), 0, device, None, None)
        if extensions is not None or kind == b"S":
            entry, size = _extended(data, block, entry, extensions or Extensions(), limits)
            extensions = None
        if kind in _OTHER_KINDS:
            size = 0  # these have no data, whatever their size field says
            offset = entry.data_offset
        else:
            entry = _file(entry, end, size)
            offset = entry.data_offset + size + 511 & ~511
        if not (0 <= entry.uid <= _LARGEST_ID and 0 <= entry.gid <= _LARGEST_ID):
            raise corrupt(f"{shown(entry.name)} belongs to the impossible user or group {entry.uid}:{entry.gid}")
        yield entry


def _checksum_holds(block: bytes, stored: int) -> bool:
    # adler32 is (1 + the sum of the bytes) modulo 65521 in its low half: the header's checksum at the speed of C.
    summed = b"".join((block[:148], b"        ", block[156:]))
    if zlib.adler32(summed) & 0xFFFF == (1 + stored) % 65521:
        return True
    return sum(byte - 256 if byte > 127 else byte for byte in summed) == stored  # some old writers summed signed characters


def _file(entry: Entry, end: int, stored_size: int) -> Entry:
    """Check and settle an entry that has data: a file, or a directory as the oldest archives write it."""
    if entry.kind not in _DATA_KINDS:
        raise corrupt(f"{shown(entry.name)} is of the unknown type {entry.kind!r}")
    if stored_size < 0 or entry.data_offset + stored_size > end:
        raise corrupt(f"it ends in the middle of {shown(entry.name)}")
    if entry.data_offset + (stored_size + 511 & ~511) > end and entry.segments is None:
        entry = entry._replace(segments=((0, entry.size),))  # unpadded at the very end: no whole block to point at, so it is copied
    if entry.kind == b"0" and not entry.name.endswith(b"/"):
        return entry
    is_directory = entry.name.endswith(b"/") and entry.kind in b"0\0"
    return entry._replace(kind=b"5" if is_directory else b"0")


def _extended(data: Buffer, block: bytes, entry: Entry, extensions: Extensions, limits: Limits) -> tuple[Entry, int]:
    """The entry as its extended headers want it, and how many bytes it occupies in the archive from its ``data_offset`` on."""
    stored_size = entry.size if extensions.size is None else extensions.size
    mtime, mtime_ns = extensions.mtime if extensions.mtime is not None else (entry.mtime, 0)
    entry = entry._replace(
        name=extensions.name or entry.name,
        link=extensions.link or entry.link,
        uid=entry.uid if extensions.uid is None else extensions.uid,
        gid=entry.gid if extensions.gid is None else extensions.gid,
        size=stored_size,
        mtime=mtime,
        mtime_ns=mtime_ns,
        xattrs=extensions.xattrs or None,
    )
    if entry.kind not in _DATA_KINDS:
        return entry, 0
    if entry.kind == b"S":
        real_size, segments, data_offset = tar_extensions.read_gnu_map(data, block, entry.data_offset, limits)
    elif extensions.sparse:
        real_size, segments, data_offset = tar_extensions.read_pax_map(data, entry.data_offset, stored_size, extensions, limits)
        stored_size -= data_offset - entry.data_offset
    else:
        return entry, stored_size
    tar_extensions.check_segments(segments, real_size, stored_size, entry.name, limits)
    return entry._replace(size=real_size, data_offset=data_offset, segments=segments), stored_size
