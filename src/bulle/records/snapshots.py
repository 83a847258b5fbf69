"""Rows of the table ``snapshot``: a container's files and options as they were, by a tag; they go with their container."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, cast

import msgspec

from bulle.errors import Conflict, NotFound
from bulle.model.container import ContainerOptions
from bulle.model.digest import Digest
from bulle.records.database import Database

_COLUMNS = "container_id, tag, created_at_ns, size_bytes, layers, options, machine"


class KeptMachine(msgspec.Struct, frozen=True):
    """The memory and the disk of a machine: the name of their directory among the container's, and the digests of the files by their names."""

    directory: str
    digests: dict[str, str]


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One snapshot: ``layers`` are what the container's root would stand on, lowest first; ``size_bytes`` what the snapshot itself holds.

    ``machine`` is that of one that ran, whose disk has what was written; else that is a layer."""

    container_id: str
    tag: str
    created_at_ns: int
    size_bytes: int
    layers: tuple[Digest, ...]
    options: ContainerOptions
    machine: KeptMachine | None = None


class SnapshotRecords:
    """Creating, finding and deleting snapshots."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, snapshot: Snapshot) -> None:
        """Keep one. Raises Conflict for a tag that is taken, NotFound when its container was removed meanwhile."""
        one = snapshot
        machine = None if one.machine is None else msgspec.json.encode(one.machine)
        values = (one.container_id, one.tag, one.created_at_ns, one.size_bytes, _encoded(one.layers), msgspec.json.encode(one.options), machine)
        with self._database.transaction() as connection:
            try:
                connection.execute(f"INSERT INTO snapshot ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", values)
            except sqlite3.IntegrityError as error:
                if "UNIQUE" not in str(error):
                    raise NotFound("no such container", "it was removed meanwhile", "`bulle ps -a` lists them") from error
                raise Conflict(f"there is a snapshot {one.tag} already", "", "give the new one another tag, or remove that one") from error
            rows = [(one.container_id, one.tag, str(layer)) for layer in dict.fromkeys(one.layers)]
            connection.executemany("INSERT INTO snapshot_layer (container_id, tag, diff_id) VALUES (?, ?, ?)", rows)

    def of(self, container_id: str) -> list[Snapshot]:
        """Those of a container, oldest first."""
        return [_snapshot(row) for row in self._rows("container_id = ? ORDER BY created_at_ns", container_id)]

    def all(self) -> list[Snapshot]:
        """Those of all containers, oldest first."""
        return [_snapshot(row) for row in self._rows("TRUE ORDER BY created_at_ns")]

    def find(self, container_id: str, tag: str) -> Snapshot:
        """One snapshot. Raises NotFound."""
        for row in self._rows("container_id = ? AND tag = ?", container_id, tag):
            return _snapshot(row)
        raise NotFound(f"no such snapshot: {tag}", "", "`bulle snapshot ls` lists them")

    def delete(self, container_id: str, tag: str) -> bool:
        """Forget one and its leases; False where there is none."""
        with self._database.transaction() as connection:
            return connection.execute("DELETE FROM snapshot WHERE container_id = ? AND tag = ?", (container_id, tag)).rowcount > 0

    def _rows(self, where: str, *values: str) -> list[tuple[object, ...]]:
        return list(self._database.rows(f"SELECT {_COLUMNS} FROM snapshot WHERE {where}", values))


def _encoded(layers: Sequence[Digest]) -> bytes:
    return msgspec.json.encode([str(layer) for layer in layers])


def _snapshot(row: tuple[object, ...]) -> Snapshot:
    container_id, tag, created, size, layers, options, machine = cast("tuple[str, str, int, int, Any, Any, Any]", row)
    return Snapshot(
        container_id=container_id,
        tag=tag,
        created_at_ns=created,
        size_bytes=size,
        layers=tuple(map(Digest, msgspec.json.decode(layers, type=list[str]))),
        options=msgspec.json.decode(options, type=ContainerOptions),
        machine=None if machine is None else msgspec.json.decode(machine, type=KeptMachine),
    )
