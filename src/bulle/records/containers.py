"""Rows of the table ``container``: what was asked for and planned; never what only the kernel knows."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from functools import cached_property
from typing import Any, cast

import msgspec

from bulle.errors import Conflict, NotFound
from bulle.model.container import ContainerOptions
from bulle.model.run_plan import Network, RunPlan
from bulle.records.database import Database

_COLUMNS = "id, name, image_id, created_at_ns, id_range, options, plan"
_options = msgspec.json.Decoder(ContainerOptions)
_plan = msgspec.json.Decoder(RunPlan)


class NameTaken(Conflict):
    """A container has the name already."""


class ContainerRecord:
    """One container as it was created; ``id_range`` is the first of its host ids, None where it uses the host's.

    Options and plan are kept as JSON and unfolded when they are asked for: a listing of many containers needs little of them.
    """

    def __init__(self, id: str, name: str, image_id: str, created_at_ns: int, id_range: int | None, options: bytes, plan: bytes) -> None:
        self.id = id
        self.name = name
        self.image_id = image_id
        self.created_at_ns = created_at_ns
        self.id_range = id_range
        self.options_json = options
        self.plan_json = plan

    @classmethod
    def of(
        cls, id: str, name: str, image_id: str, created_at_ns: int, id_range: int | None, options: ContainerOptions, plan: RunPlan
    ) -> ContainerRecord:
        """A record of these values."""
        record = cls(id, name, image_id, created_at_ns, id_range, msgspec.json.encode(options), msgspec.json.encode(plan))
        record.__dict__["options"], record.__dict__["plan"] = options, plan
        return record

    @cached_property
    def options(self) -> ContainerOptions:
        """What was asked for."""
        return _options.decode(self.options_json)

    @cached_property
    def plan(self) -> RunPlan:
        """What is done when it starts."""
        return _plan.decode(self.plan_json)


class ContainerRecords:
    """Creating, finding and deleting containers' rows."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        build: Callable[[set[int], sqlite3.Connection], ContainerRecord],
        also: Callable[[sqlite3.Connection, ContainerRecord], None] | None = None,
    ) -> ContainerRecord:
        """Insert the record that ``build`` makes from the id ranges that are taken, in one transaction, in which ``also`` is called.

        Raises Conflict for a name that is taken.
        """
        with self._database.transaction() as connection:
            taken = {row[0] for row in connection.execute("SELECT id_range FROM container WHERE id_range IS NOT NULL")}
            record = build(taken, connection)
            try:
                connection.execute(
                    f"INSERT INTO container ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (
                        record.id, record.name, record.image_id, record.created_at_ns, record.id_range,
                        record.options_json, record.plan_json,
                    ),
                )  # fmt: skip
            except sqlite3.IntegrityError as error:
                raise _taken(record.name) from error
            _lease(connection, record)
            if also is not None:
                also(connection, record)
        return record

    def find(self, name: str) -> ContainerRecord:
        """By id, name or unambiguous beginning of an id."""
        rows = self._database.rows(f"SELECT {_COLUMNS} FROM container WHERE id = ? OR name = ?", (name, name.removeprefix("/")))
        if not rows and name and not set(name) - set("0123456789abcdef"):
            rows = self._database.rows(f"SELECT {_COLUMNS} FROM container WHERE id >= ? AND id < ? LIMIT 2", (name, name + "g"))
            if len(rows) > 1:
                raise Conflict(f"several containers' ids begin with {name}", "", "give more of the id, or the name")
        if not rows:
            raise NotFound(f"no such container: {name}", "", "`bulle ps -a` lists them")
        return _record(rows[0])

    def all(self) -> list[ContainerRecord]:
        """Every container, newest first."""
        return [_record(row) for row in self._database.rows(f"SELECT {_COLUMNS} FROM container ORDER BY created_at_ns DESC")]

    def of_image(self, image_id: str) -> list[ContainerRecord]:
        """The containers that were made from an image."""
        return [_record(row) for row in self._database.rows(f"SELECT {_COLUMNS} FROM container WHERE image_id = ?", (str(image_id),))]

    def labelled(self, label: str, value: str | None = None) -> list[ContainerRecord]:
        """The containers that were asked for with this label, of whatever value where none is given, newest first."""
        pair = msgspec.json.encode({label: value or ""})[1:-1]  # as it stands in the options: what else has it in there is left out below
        text = pair if value is not None else pair[:-2]
        rows = self._database.rows(f"SELECT {_COLUMNS} FROM container WHERE instr(options, ?) ORDER BY created_at_ns DESC", (text,))
        found = map(_record, rows)
        return [one for one in found if (label in one.options.labels if value is None else one.options.labels.get(label) == value)]

    def identifiers(self) -> set[str]:
        """The ids of all containers."""
        return {str(row[0]) for row in self._database.rows("SELECT id FROM container")}

    def delete(self, container_id: str, *, volumes: bool = False) -> bool:
        """Forget a container, its name, its ids and its leases; False where there is none. With ``volumes`` also anonymous ones of nobody else's."""
        with self._database.transaction() as connection:
            mine = [row[0] for row in connection.execute("SELECT volume FROM container_volume WHERE container_id = ?", (container_id,)) if volumes]
            found = connection.execute("DELETE FROM container WHERE id = ?", (container_id,)).rowcount > 0
            unused = "anonymous AND NOT EXISTS (SELECT 1 FROM container_volume WHERE volume = name)"
            connection.executemany(f"DELETE FROM volume WHERE name = ? AND {unused}", [(name,) for name in mine])
            return found

    def rename(self, container_id: str, name: str) -> None:
        """Give a container another name. Raises Conflict for one that is taken, NotFound when it was removed meanwhile."""
        with self._database.transaction() as connection:
            try:
                changed = connection.execute("UPDATE container SET name = ? WHERE id = ?", (name, container_id)).rowcount
            except sqlite3.IntegrityError as error:
                raise _taken(name) from error
        if not changed:
            raise NotFound("no such container", "it was removed meanwhile", "`bulle ps -a` lists them")

    def change(self, record: ContainerRecord, options: ContainerOptions, plan: RunPlan) -> ContainerRecord:
        """Replace what was asked for and planned. Raises NotFound when it was removed meanwhile, Conflict when somebody else changed it."""
        values = (msgspec.json.encode(options), msgspec.json.encode(plan))
        with self._database.transaction() as connection:
            unchanged = "id = ? AND options = ? AND plan = ?"
            where = (record.id, record.options_json, record.plan_json)
            changed = connection.execute(f"UPDATE container SET options = ?, plan = ? WHERE {unchanged}", (*values, *where)).rowcount
        found = self.find(record.id)
        if not changed:
            raise Conflict(f"container {found.name} was changed by another command at the same moment", "", "do it again")
        return found

    def rebase(
        self, record: ContainerRecord, build: Callable[[set[int], sqlite3.Connection], ContainerRecord], also: Callable[[ContainerRecord], None]
    ) -> ContainerRecord:
        """Replace all but id, name and image by the record that ``build`` makes from the id ranges that are taken, in one transaction, in which
        ``also`` is called. Raises Conflict when somebody else changed the container meanwhile.
        """
        with self._database.transaction() as connection:
            ranges = connection.execute("SELECT id_range FROM container WHERE id_range IS NOT NULL AND id != ?", (record.id,))
            made = build({row[0] for row in ranges}, connection)
            also(made)
            values = (made.id_range, made.options_json, made.plan_json, record.id, record.options_json, record.plan_json)
            where = "id = ? AND options = ? AND plan = ?"
            if not connection.execute(f"UPDATE container SET id_range = ?, options = ?, plan = ? WHERE {where}", values).rowcount:
                raise Conflict(f"container {record.name} was changed by another command at the same moment", "", "do it again")
            connection.execute("DELETE FROM container_layer WHERE container_id = ?", (record.id,))
            _lease(connection, made)
        return made

    def change_network(self, connection: sqlite3.Connection, record: ContainerRecord, network: Network) -> ContainerRecord:
        """Replace the network part of the plan, in the caller's transaction. Raises Conflict when somebody else changed the container meanwhile."""
        plan = msgspec.structs.replace(record.plan, network=network)
        content = msgspec.json.encode(plan)
        done = connection.execute("UPDATE container SET plan = ? WHERE id = ? AND plan = ?", (content, record.id, record.plan_json))
        if not done.rowcount:
            raise Conflict(f"container {record.name} was changed by another command at the same moment", "", "do it again")
        return ContainerRecord.of(record.id, record.name, record.image_id, record.created_at_ns, record.id_range, record.options, plan)

    def exists(self, container_id: str) -> bool:
        """Whether the container is still known."""
        return bool(self._database.rows("SELECT 1 FROM container WHERE id = ?", (container_id,)))


def _lease(connection: sqlite3.Connection, record: ContainerRecord) -> None:
    connection.executemany(
        "INSERT INTO container_layer (container_id, diff_id) VALUES (?, ?)",
        [(record.id, diff_id) for diff_id in dict.fromkeys(one.diff_id for one in (*record.plan.root.layers, *record.plan.volume_layers))],
    )


def _taken(name: str) -> NameTaken:
    return NameTaken(f"the container name {name!r} is taken", "", f"remove it with `bulle rm {name}`, or use another")


def _record(row: tuple[object, ...]) -> ContainerRecord:
    container_id, name, image_id, created, id_range, options, plan = cast("tuple[str, str, str, int, int | None, Any, Any]", row)
    return ContainerRecord(container_id, name, image_id, created, id_range, options, plan)
