"""Attributes of netlink messages: a length, a kind and a value each, padded to four bytes; the value may be attributes again. netlink(7)"""

from __future__ import annotations

import struct

NESTED = 0x8000


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute as the kernel reads it."""
    return struct.pack("=HH", len(value) + 4, kind) + value + bytes(-len(value) % 4)


def nested(kind: int, *values: bytes) -> bytes:
    """An attribute that holds others."""
    return attribute(kind | NESTED, b"".join(values))


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes of a message by kind; of several of one kind the first, and none after one that makes no sense."""
    found: dict[int, bytes] = {}
    position = 0
    while position + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, position)
        if length < 4:
            break
        found.setdefault(kind & 0x3FFF, data[position + 4 : position + length])
        position += (length + 3) & ~3
    return found
