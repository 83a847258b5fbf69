"""The extended headers of tar: pax records, GNU long names, and the three ways to write down a sparse file.

Called by :mod:`bulle.store.tar` for the headers that only describe the next one. Everything is bounded before it is read: these headers
come from strangers. POSIX.1-2017 pax; GNU tar manual, "Storing Sparse Files".
"""

from __future__ import annotations

import mmap
import re
from dataclasses import dataclass, field

from bulle.errors import CorruptImage
from bulle.store.limits import Limits

Segments = tuple[tuple[int, int], ...]

_XATTR = b"SCHILY.xattr."
_TIME = re.compile(rb"(-?)([0-9]{1,18})(?:\.([0-9]*))?")
_LARGEST_NUMBER = 2**63 - 1


@dataclass
class Extensions:
    """What the extended headers before an entry said about it; None where they said nothing."""

    name: bytes = b""
    link: bytes = b""
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    mtime: tuple[int, int] | None = None
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    sparse: dict[bytes, bytes] = field(default_factory=dict)
    sparse_offsets: list[int] = field(default_factory=list)
    sparse_lengths: list[int] = field(default_factory=list)


def corrupt(why: str) -> CorruptImage:
    """The error for an archive that cannot be right."""
    return CorruptImage("the layer is not a usable tar archive", why)


def shown(name: bytes) -> str:
    """A name from an archive, fit for a message."""
    return ascii(name[:200].decode(errors="replace"))


def number(raw: bytes) -> int:
    """A number of a header: octal digits, or base 256 where the first bit is set. Raises CorruptImage."""
    digits = raw.strip(b" \0")
    if digits.isdigit():
        try:
            return int(digits, 8)
        except ValueError:
            raise corrupt(f"{shown(raw)} is not an octal number") from None
    if not digits:
        return 0
    if raw[0] & 0x80:
        value = int.from_bytes(raw, "big", signed=True) if raw[0] == 0xFF else int.from_bytes(bytes([raw[0] & 0x7F]) + raw[1:], "big")
        if -_LARGEST_NUMBER <= value <= _LARGEST_NUMBER:
            return value
    digits = digits.partition(b"\0")[0].rstrip()
    if digits.isdigit() and not digits.strip(b"01234567"):
        return int(digits, 8)
    raise corrupt(f"{shown(raw)} is not a number")


def read(data: bytes | mmap.mmap, kind: bytes, offset: int, size: int, extensions: Extensions | None, limits: Limits) -> Extensions | None:
    """Add what one extended header (its body is ``size`` bytes from ``offset``) says to what was known. Raises CorruptImage."""
    if not 0 <= size <= limits.header_bytes:
        raise corrupt(f"an extended header of {size} bytes is larger than {limits.header_bytes}")
    body = data[offset : offset + size]
    if len(body) < size:
        raise corrupt("it ends in the middle of an extended header")
    if kind in b"gV":
        return extensions  # global headers carry nothing that other engines apply; V is only a label of the archive
    extensions = extensions or Extensions()
    if kind == b"L":
        extensions.name = body.partition(b"\0")[0]
    elif kind == b"K":
        extensions.link = body.partition(b"\0")[0]
    else:
        _read_pax(body, extensions)
    return extensions


def _read_pax(body: bytes, extensions: Extensions) -> None:
    position = 0
    while position < len(body):
        space = body.find(b" ", position, position + 20)
        length = body[position:space] if space > 0 else b""
        stop = position + int(length) if length.isdigit() else 0
        # Without a space stop is 0, and a body that happens to end like a record must not begin anew.
        if space < 0 or stop <= space or stop > len(body) or body[stop - 1] != 0x0A:
            if not body[position:].strip(b"\0"):
                return
            raise corrupt("a pax header is malformed")
        key, equals, value = body[space + 1 : stop - 1].partition(b"=")
        if not equals:
            raise corrupt("a pax header is malformed")
        _apply_pax(key, value, extensions)
        position = stop


def _apply_pax(key: bytes, value: bytes, extensions: Extensions) -> None:
    if key in (b"path", b"linkpath") or key == b"GNU.sparse.name":
        if b"\0" in value:
            raise corrupt("a name contains a zero byte")
        if key == b"linkpath":
            extensions.link = value
        elif key == b"GNU.sparse.name" or b"GNU.sparse.name" not in extensions.sparse:
            extensions.name = value
    if key in (b"uid", b"gid", b"size") and value:
        setattr(extensions, key.decode(), _decimal(value))
    elif key == b"mtime" and value:
        extensions.mtime = _time(value)
    elif key.startswith(_XATTR):
        extensions.xattrs[key[len(_XATTR) :]] = value
    elif key == b"GNU.sparse.offset":
        extensions.sparse_offsets.append(_decimal(value))
    elif key == b"GNU.sparse.numbytes":
        extensions.sparse_lengths.append(_decimal(value))
    if key.startswith(b"GNU.sparse."):
        extensions.sparse[key] = value


def _decimal(value: bytes) -> int:
    if not value.isdigit() or len(value) > 19 or int(value) > _LARGEST_NUMBER:
        raise corrupt(f"{shown(value)} is not a number")
    return int(value)


def _time(value: bytes) -> tuple[int, int]:
    match = _TIME.fullmatch(value)
    if match is None:
        raise corrupt(f"{shown(value)} is not a time")
    seconds, fraction = int(match[2]), int((match[3] or b"")[:9].ljust(9, b"0"))
    if not match[1]:
        return seconds, fraction
    return (-seconds - 1, 1_000_000_000 - fraction) if fraction else (-seconds, 0)


def read_gnu_map(data: bytes | mmap.mmap, block: bytes, offset: int, limits: Limits) -> tuple[int, Segments, int]:
    """GNU's own sparse header (type S): the file's real size, its segments, and where the data begins behind the map's further blocks."""
    numbers: list[tuple[int, int]] = []
    table, more = block[386:482], block[482]
    real_size = number(block[483:495])
    while True:
        for start in range(0, len(table), 24):
            if table[start]:
                numbers.append((number(table[start : start + 12]), number(table[start + 12 : start + 24])))
        if len(numbers) > limits.sparse_segments:
            raise corrupt(f"a sparse file has more than {limits.sparse_segments} segments")
        if not more:
            return real_size, tuple(numbers), offset
        block = data[offset : offset + 512]
        if len(block) < 512:
            raise corrupt("it ends in the middle of a sparse file's map")
        table, more, offset = block[:504], block[504], offset + 512


def read_pax_map(data: bytes | mmap.mmap, offset: int, stored_size: int, extensions: Extensions, limits: Limits) -> tuple[int, Segments, int]:
    """The pax forms 0.0, 0.1 and 1.0: the file's real size, its segments, and where the data begins."""
    fields = extensions.sparse
    real_size = _decimal(fields.get(b"GNU.sparse.realsize") or fields.get(b"GNU.sparse.size") or b"")
    if fields.get(b"GNU.sparse.major", b"0") == b"1":
        values, offset = _read_map_1_0(data, offset, stored_size, limits)
    elif b"GNU.sparse.map" in fields:
        text = fields[b"GNU.sparse.map"]
        values = [_decimal(value) for value in text.split(b",")] if text else []
    else:
        values = [value for pair in zip(extensions.sparse_offsets, extensions.sparse_lengths, strict=False) for value in pair]
    return real_size, tuple(zip(values[::2], values[1::2], strict=False)), offset


def _read_map_1_0(data: bytes | mmap.mmap, offset: int, stored_size: int, limits: Limits) -> tuple[list[int], int]:
    # Decimal numbers, one to a line: how many segments, then offset and length of each; padded to whole blocks.
    bound = min(stored_size, 48 * limits.sparse_segments)
    lines = data[offset : offset + min(bound, 4096)].split(b"\n", 1)
    count = _decimal(lines[0][:20])
    if count > limits.sparse_segments:
        raise corrupt(f"a sparse file has more than {limits.sparse_segments} segments")
    lines = data[offset : offset + bound].split(b"\n", 2 * count + 1)
    if len(lines) < 2 * count + 2 and not (len(lines) == 2 * count + 1 and count == 0):
        raise corrupt("a sparse file's map is malformed")
    used = sum(len(line) + 1 for line in lines[: 2 * count + 1])
    return [_decimal(line) for line in lines[1 : 2 * count + 1]], offset + (used + 511 & ~511)


def check_segments(segments: Segments, real_size: int, stored_size: int, name: bytes, limits: Limits) -> None:
    """Refuse a sparse file whose map overlaps, leaves the file or does not add up to the data that is there."""
    position = total = 0
    for start, length in segments:
        if start < position or length < 0 or start + length > real_size:
            raise corrupt(f"the map of the sparse file {shown(name)} is malformed")
        position, total = start + length, total + length
    if total != stored_size or len(segments) > limits.sparse_segments:
        raise corrupt(f"the map of the sparse file {shown(name)} does not match its data")
