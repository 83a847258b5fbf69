"""Rows about steps of builds: what a step depended on, and the layer that it came to. Called by the store's build cache alone."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from bulle.records.database import Database

_COLUMNS = "key, parent, instruction, diff_id, inputs, created_at_ns, used_at_ns"


@dataclass(frozen=True)
class BuildStepRow:
    """One step: ``parent`` is the chain id of the layers below ("" for none), ``diff_id`` None where it made no layer, ``inputs`` JSON."""

    key: str
    parent: str
    instruction: str
    diff_id: str | None
    inputs: bytes
    created_at_ns: int
    used_at_ns: int


class BuildStepRecords:
    """The table build_step."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, key: str) -> BuildStepRow | None:
        """The step with this key."""
        return self._one("key = ?", key)

    def latest(self, instruction: str) -> BuildStepRow | None:
        """The step with this instruction that was used last, whatever it stood on."""
        return self._one("instruction = ? ORDER BY used_at_ns DESC", instruction)

    def latest_on(self, parent: str) -> BuildStepRow | None:
        """The step on these layers that was used last, whatever its instruction."""
        return self._one("parent = ? ORDER BY used_at_ns DESC", parent)

    def put(self, connection: sqlite3.Connection, row: BuildStepRow) -> None:
        """Record a step, in the caller's transaction."""
        connection.execute(
            f"INSERT OR REPLACE INTO build_step ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (row.key, row.parent, row.instruction, row.diff_id, row.inputs, row.created_at_ns, row.used_at_ns),
        )

    def use(self, connection: sqlite3.Connection, keys: Sequence[str], now_ns: int) -> None:
        """Note that steps were used."""
        connection.executemany("UPDATE build_step SET used_at_ns = ? WHERE key = ?", [(now_ns, key) for key in keys])

    def all(self) -> list[BuildStepRow]:
        """Every step, the one used last first."""
        return [BuildStepRow(*row) for row in self._database.rows(f"SELECT {_COLUMNS} FROM build_step ORDER BY used_at_ns DESC")]  # type: ignore[arg-type]

    def forget(self, connection: sqlite3.Connection, keys: Sequence[str]) -> None:
        """Delete steps; their layers are the collector's business."""
        connection.executemany("DELETE FROM build_step WHERE key = ?", [(key,) for key in keys])

    def _one(self, condition: str, *parameters: str) -> BuildStepRow | None:
        rows = self._database.rows(f"SELECT {_COLUMNS} FROM build_step WHERE {condition} LIMIT 1", parameters)
        return BuildStepRow(*rows[0]) if rows else None  # type: ignore[arg-type]
