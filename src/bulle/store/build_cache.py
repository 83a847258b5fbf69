"""The build cache: layers by what they were made from. Shared by all builds of a home, kept until it is pruned.

A row keeps its layer (:mod:`bulle.records.layers`); a build leases what it takes from here before it builds on it, and begins anew where a prune was
faster. What a key is made of is the build's business.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from bulle.model.digest import Digest
from bulle.records.build_steps import BuildStepRecords, BuildStepRow
from bulle.records.database import Database
from bulle.records.layers import LayerRecords
from bulle.store.workspace import Workspace

_WORTH_NOTING_NS = 3600 * 1_000_000_000


class BuildCache:
    """The steps of one home's builds."""

    def __init__(self, database: Database, workspace: Workspace, collect: Callable[[], int]) -> None:
        self._database = database
        self._records = BuildStepRecords(database)
        self._layers = LayerRecords(database)
        self._workspace = workspace
        self._collect = collect

    def take(self, key: str) -> BuildStepRow | None:
        """The step with this key; None where there is none. Its layer is only safe from a prune once :meth:`keep` was told of it."""
        return self._records.get(key)

    def keep(self, diff_ids: Sequence[Digest]) -> bool:
        """Keep layers of taken steps for this process until the end of :meth:`Store.receiving`; False where one was pruned meanwhile.

        All at once, because each transaction costs as much as ten lookups.
        """
        with self._database.transaction() as connection:
            missing = [diff_id for diff_id in diff_ids if not self._layers.lease(connection, diff_id, self._workspace.name)]
        return not missing

    def similar(self, parent: str, instruction: str) -> BuildStepRow | None:
        """What most resembles a step that is not here: the same instruction when it was run last, else another one on the same layers."""
        return self._records.latest(instruction) or (self._records.latest_on(parent) if parent else None)

    def put(self, key: str, parent: str, instruction: str, diff_id: Digest | None, inputs: bytes) -> BuildStepRow:
        """Keep what a step came to."""
        now_ns = time.time_ns()
        row = BuildStepRow(key, parent, instruction, None if diff_id is None else str(diff_id), inputs, now_ns, now_ns)
        with self._database.transaction() as connection:
            self._records.put(connection, row)
        return row

    def use(self, rows: Sequence[BuildStepRow]) -> None:
        """Note that these steps are still of use; once an hour is enough for a prune that asks for days."""
        keys = [row.key for row in rows if time.time_ns() - row.used_at_ns > _WORTH_NOTING_NS]
        if keys:
            with self._database.transaction() as connection:
                self._records.use(connection, keys, time.time_ns())

    def list(self) -> list[BuildStepRow]:
        """Every step, the one used last first."""
        return self._records.all()

    def prune(self, chosen: Callable[[BuildStepRow], bool] = lambda _row: True) -> tuple[Sequence[str], int]:
        """Forget the chosen steps and collect; returns their keys, and the bytes that the disk got back."""
        keys = [row.key for row in self._records.all() if chosen(row)]
        with self._database.transaction() as connection:
            self._records.forget(connection, keys)
        return keys, self._collect()
