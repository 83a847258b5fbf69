"""The packages of rpm, from its database in the form that every distribution of rpm has by now (``rpmdb.sqlite``).

The older forms (Berkeley DB, ndb) are not read. A package stands in it as a header: two counts, an index of tags, and the data that the index points
into, all of it in network byte order.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass

_NAME, _VERSION, _RELEASE, _EPOCH, _VENDOR, _LICENSE, _URL, _ARCHITECTURE, _SOURCE = 1000, 1001, 1002, 1003, 1011, 1014, 1020, 1022, 1044
_MOST_SECONDS = 20.0
_WANTED = frozenset({_NAME, _VERSION, _RELEASE, _EPOCH, _VENDOR, _LICENSE, _URL, _ARCHITECTURE, _SOURCE})
_INT32, _STRINGS = 4, (6, 8, 9)
_MOST_ENTRIES = 100_000


@dataclass(frozen=True, slots=True)
class RpmPackage:
    """What a header says of its package; the epoch is empty where there is none."""

    name: str
    version: str
    release: str
    epoch: str
    vendor: str
    license: str
    homepage: str
    architecture: str
    source: str


def rpm_packages(database: bytes) -> Iterator[RpmPackage]:
    """The packages of a database; none where it is not of SQLite, or damaged."""
    if not database.startswith(b"SQLite format 3\0") or len(database) < 100:
        return
    import sqlite3  # only images of these distributions need it

    # A database that keeps a log beside it cannot be opened without one; in an image there is none, and these two bytes say so.
    database = database[:18] + b"\1\1" + database[20:]
    connection = sqlite3.connect(":memory:")
    try:
        connection.deserialize(database)
        connection.execute("PRAGMA trusted_schema = OFF")
        # A view of that name could go on for ever; so could anything else: the work is bounded.
        if connection.execute("SELECT type FROM sqlite_master WHERE name = 'Packages'").fetchall() != [("table",)]:
            return
        deadline = time.monotonic() + _MOST_SECONDS
        connection.set_progress_handler(lambda: int(time.monotonic() > deadline), 100_000)
        rows = connection.execute("SELECT blob FROM Packages ORDER BY hnum").fetchall()
    except (sqlite3.Error, UnicodeDecodeError, MemoryError):  # its messages quote what is damaged
        return
    finally:
        connection.close()
    for (blob,) in rows:
        tags = _tags(blob) if isinstance(blob, bytes) else {}
        # Keys that rpm trusts stand there as packages.
        if tags.get(_NAME) and tags.get(_VERSION) and tags[_NAME] != "gpg-pubkey":
            order = (_NAME, _VERSION, _RELEASE, _EPOCH, _VENDOR, _LICENSE, _URL, _ARCHITECTURE, _SOURCE)
            yield RpmPackage(*(tags.get(tag, "") for tag in order))


def _tags(header: bytes) -> dict[int, str]:
    if len(header) < 8:
        return {}
    entries, length = struct.unpack_from(">II", header)
    start = 8 + 16 * entries
    if entries > _MOST_ENTRIES or start + length > len(header):
        return {}
    data = header[start : start + length]
    found = {}
    for tag, kind, offset, count in struct.iter_unpack(">IIII", header[8:start]):
        if tag not in _WANTED or count == 0 or offset >= len(data):
            continue
        if kind == _INT32 and offset + 4 <= len(data):
            found[tag] = str(struct.unpack_from(">I", data, offset)[0])
        elif kind in _STRINGS:
            end = data.find(b"\0", offset)
            found[tag] = data[offset : end if end >= 0 else len(data)].decode("utf-8", "replace")
    return found
