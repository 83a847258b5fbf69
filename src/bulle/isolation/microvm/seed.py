"""A small read-only disk with a few files, as cloud-init's NoCloud wants it: ISO 9660, labelled ``cidata``.

Names are as they are given: Linux shows them so, and nobody else reads it. ECMA-119; cloud-init's documentation, "NoCloud"
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

_SECTOR = 2048
_LABEL = "cidata"
_FIRST_FILE = 21
_ROOT, _PATHS_LITTLE, _PATHS_BIG = 20, 18, 19
_DATE = bytes(7)
_MOST_BYTES = 16 << 20


def image(files: Mapping[str, str]) -> bytes:
    """The disk with these files (name and content); their directory is one sector."""
    contents = {name: text.encode() for name, text in sorted(files.items())}
    assert sum(map(len, contents.values())) < _MOST_BYTES
    records, body, sector = _record(b"\0", _ROOT, _SECTOR, directory=True) + _record(b"\1", _ROOT, _SECTOR, directory=True), b"", _FIRST_FILE
    for name, content in contents.items():
        records += _record(name.upper().encode() + b";1", sector, len(content))
        body += content + bytes(-len(content) % _SECTOR)
        sector += -(-len(content) // _SECTOR)
    paths = (struct.pack("<BBIH2s", 1, 0, _ROOT, 1, b"\0\0"), struct.pack(">BBIH2s", 1, 0, _ROOT, 1, b"\0\0"))
    volume = b"\x01CD001\x01\0" + b" " * 32 + _LABEL.encode().ljust(32) + bytes(8) + _both(sector, 4) + bytes(32)
    volume += _both(1, 2) + _both(1, 2) + _both(_SECTOR, 2) + _both(10, 4)
    volume += struct.pack("<II", _PATHS_LITTLE, 0) + struct.pack(">II", _PATHS_BIG, 0) + _record(b"\0", _ROOT, _SECTOR, directory=True)
    volume += b" " * (128 * 4 + 37 * 3) + (b"0" * 16 + b"\0") * 4 + b"\x01\0"
    end = b"\xffCD001\x01"
    return bytes(16 * _SECTOR) + b"".join(one.ljust(_SECTOR, b"\0") for one in (volume, end, *paths, records)) + body


def _record(name: bytes, sector: int, size: int, *, directory: bool = False) -> bytes:
    content = _both(sector, 4) + _both(size, 4) + _DATE + bytes([2 if directory else 0, 0, 0]) + _both(1, 2) + bytes([len(name)]) + name
    content += bytes((len(content) + 2) % 2)
    return bytes([len(content) + 2, 0]) + content


def _both(number: int, size: int) -> bytes:
    return number.to_bytes(size, "little") + number.to_bytes(size, "big")
