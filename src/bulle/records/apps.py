"""Rows of the table ``app``: what is wanted of each app of this home, written by commands, read by whoever keeps it so.

The documents of a project are bytes here: :mod:`bulle.compose.record` knows what they mean. What there *is* of an app is never stored here; that is
asked of the containers and their labels.
"""

from __future__ import annotations

from typing import cast

import msgspec

from bulle.records.database import Database

_COLUMNS = "name, changed_at_ns, project, previous, choices"


class Choices(msgspec.Struct, frozen=True, kw_only=True):
    """What was chosen beside the file.

    ``scales`` are numbers of replicas by service (``scale``, ``up --scale``, autoscale), ``images`` what ``update --image`` said. ``running`` are the
    services that are to run: those that were started and not stopped since.
    """

    scales: dict[str, int] = {}
    images: dict[str, str] = {}
    running: tuple[str, ...] = ()


class AppRow(msgspec.Struct, frozen=True):
    """One app; ``project`` and ``previous`` are JSON."""

    name: str
    changed_at_ns: int
    project: bytes
    previous: bytes = b"{}"
    choices: Choices = Choices()


class AppRecords:
    """The apps of a home."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, name: str) -> AppRow | None:
        """The app of that name."""
        rows = self._database.rows(f"SELECT {_COLUMNS} FROM app WHERE name = ?", (name,))
        return _row(rows[0]) if rows else None

    def all(self) -> list[AppRow]:
        """Every app, by name."""
        return [_row(row) for row in self._database.rows(f"SELECT {_COLUMNS} FROM app ORDER BY name")]

    def put(self, row: AppRow) -> None:
        """Write an app, in place of what is there under its name."""
        values = (row.name, row.changed_at_ns, row.project, row.previous, msgspec.json.encode(row.choices))
        with self._database.transaction() as connection:
            connection.execute(f"INSERT OR REPLACE INTO app ({_COLUMNS}) VALUES (?, ?, ?, ?, ?)", values)

    def delete(self, name: str) -> None:
        """Forget an app; harmless where there is none."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM app WHERE name = ?", (name,))


def _row(row: tuple[object, ...]) -> AppRow:
    name, changed, project, previous, choices = cast("tuple[str, int, bytes, bytes, bytes]", row)
    return AppRow(name, changed, project, previous, msgspec.json.decode(choices, type=Choices))
