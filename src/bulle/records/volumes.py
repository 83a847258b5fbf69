"""Rows of the tables ``volume`` and ``container_volume``: which volumes there are, and which containers have them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from typing import cast

import msgspec

from bulle.errors import Conflict, NotFound
from bulle.records.database import Database

_COLUMNS = "name, created_at_ns, labels, options"
_pairs = msgspec.json.Decoder(dict[str, str])


class VolumeRow(msgspec.Struct, frozen=True):
    """One volume as it was created."""

    name: str
    created_at_ns: int
    labels: dict[str, str]
    options: dict[str, str]


class VolumeRecords:
    """Creating, finding and deleting volumes' rows. What takes a connection is part of somebody's transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @staticmethod
    def add(connection: sqlite3.Connection, row: VolumeRow, *, anonymous: bool) -> None:
        """Insert a volume."""
        values = (row.name, row.created_at_ns, anonymous, msgspec.json.encode(row.labels), msgspec.json.encode(row.options))
        connection.execute("INSERT INTO volume (name, created_at_ns, anonymous, labels, options) VALUES (?, ?, ?, ?, ?)", values)

    @staticmethod
    def exists(connection: sqlite3.Connection, name: str) -> bool:
        """Whether there is a volume of that name."""
        return connection.execute("SELECT 1 FROM volume WHERE name = ?", (name,)).fetchone() is not None

    @staticmethod
    def use(connection: sqlite3.Connection, container_id: str, names: Iterable[str]) -> None:
        """Keep volumes for a container."""
        connection.executemany("INSERT INTO container_volume (container_id, volume) VALUES (?, ?)", [(container_id, name) for name in names])

    def find(self, name: str) -> VolumeRow | None:
        """By its name."""
        rows = self._database.rows(f"SELECT {_COLUMNS} FROM volume WHERE name = ?", (name,))
        return _row(rows[0]) if rows else None

    def all(self) -> list[VolumeRow]:
        """Every volume by name."""
        return [_row(row) for row in self._database.rows(f"SELECT {_COLUMNS} FROM volume ORDER BY name")]

    def names(self, connection: sqlite3.Connection) -> set[str]:
        """The names of all."""
        return {str(row[0]) for row in connection.execute("SELECT name FROM volume")}

    def users(self) -> Mapping[str, tuple[str, ...]]:
        """The names of the containers that have each volume; a volume that nobody has is not in it."""
        rows = self._database.rows(
            "SELECT volume, container.name FROM container_volume JOIN container ON container.id = container_id ORDER BY container.name"
        )
        found: dict[str, tuple[str, ...]] = {}
        for volume, name in cast("list[tuple[str, str]]", rows):
            found[volume] = (*found.get(volume, ()), name)
        return found

    def delete(self, name: str) -> None:
        """Forget a volume. Raises NotFound, or Conflict with the names of the containers that have it."""
        try:
            with self._database.transaction() as connection:
                found = connection.execute("DELETE FROM volume WHERE name = ?", (name,)).rowcount
        except sqlite3.IntegrityError:
            users = self.users().get(name, ())
            why = f"containers {', '.join(users)} have it" if len(users) > 1 else f"container {', '.join(users)} has it"
            raise Conflict(f"volume {name} is in use", why, f"remove what uses it first: `bulle rm {' '.join(users)}`") from None
        if not found:
            raise no_such_volume(name)


def no_such_volume(name: str) -> NotFound:
    """The error for a volume that is not there."""
    return NotFound(f"no such volume: {name}", "", "`bulle volume ls` lists them")


def _row(row: tuple[object, ...]) -> VolumeRow:
    name, created, labels, options = cast("tuple[str, int, bytes, bytes]", row)
    return VolumeRow(name, created, _pairs.decode(labels), _pairs.decode(options))
