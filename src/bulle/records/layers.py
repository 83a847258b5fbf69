"""Rows about layers: which are here, on what they stand, and who still needs them.

Called by the store alone. A layer's directory in ``layers/`` counts only when its row is here; the row is written in the transaction that
renames the directory into place. No files are touched here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from bulle.model.digest import Digest
from bulle.records.database import Database

IMPLICIT_DIRECTORIES = 1
IMPLICIT_ROOT = 2
LARGE_IDS = 4  # beside them: owners beyond the 65536 ids of a container

_UNUSED = """
    NOT EXISTS (SELECT 1 FROM image_layer WHERE image_layer.diff_id = layer.diff_id)
    AND NOT EXISTS (SELECT 1 FROM container_layer WHERE container_layer.diff_id = layer.diff_id)
    AND NOT EXISTS (SELECT 1 FROM snapshot_layer WHERE snapshot_layer.diff_id = layer.diff_id)
    AND NOT EXISTS (SELECT 1 FROM build_step WHERE build_step.diff_id = layer.diff_id)
    AND NOT EXISTS (SELECT 1 FROM layer_lease WHERE layer_lease.diff_id = layer.diff_id)
"""


@dataclass(frozen=True)
class LayerRow:
    """One layer that is here: ``size_bytes`` of its uncompressed tar; ``implicit_parents`` a sum of the IMPLICIT constants."""

    diff_id: Digest
    size_bytes: int
    implicit_parents: int


class LayerRecords:
    """The tables layer, layer_blob, layer_chain and layer_lease."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, diff_id: Digest) -> LayerRow | None:
        """The row of a layer, None when it is not here."""
        for size, implicit in self._database.rows("SELECT size_bytes, implicit_parents FROM layer WHERE diff_id = ?", (str(diff_id),)):
            assert isinstance(size, int) and isinstance(implicit, int)
            return LayerRow(diff_id, size, implicit)
        return None

    def add(self, connection: sqlite3.Connection, row: LayerRow, blob: tuple[Digest, int] | None) -> None:
        """Record a layer, and the blob that it came as (digest, bytes), in the caller's transaction."""
        connection.execute(
            "INSERT INTO layer (diff_id, size_bytes, kind, implicit_parents) VALUES (?, ?, 'tar', ?)",
            (str(row.diff_id), row.size_bytes, row.implicit_parents),
        )
        if blob is not None:
            self.add_blob(connection, blob[0], row.diff_id, blob[1])

    def add_blob(self, connection: sqlite3.Connection, blob: Digest, diff_id: Digest, size_bytes: int) -> None:
        """Record a blob, leased together with the layer ``diff_id`` (its own digest where it is no layer)."""
        connection.execute("INSERT OR REPLACE INTO layer_blob VALUES (?, ?, ?)", (str(blob), str(diff_id), size_bytes))

    def blob_owner(self, connection: sqlite3.Connection, blob: Digest) -> Digest | None:
        """The layer (or the blob itself) whose lease keeps a blob, None when the blob is not here."""
        row = connection.execute("SELECT diff_id FROM layer_blob WHERE blob_digest = ?", (str(blob),)).fetchone()
        return Digest(row[0]) if row else None

    def blobs_of(self, diff_id: Digest) -> list[tuple[Digest, int]]:
        """The blobs that a layer is recorded as: digest and bytes."""
        rows = self._database.rows("SELECT blob_digest, size_bytes FROM layer_blob WHERE diff_id = ? ORDER BY blob_digest", (str(diff_id),))
        return [(Digest(str(blob)), size) for blob, size in rows if isinstance(size, int)]

    def lease(self, connection: sqlite3.Connection, diff_id: Digest, workspace: str) -> bool:
        """Keep a layer for the owner of ``workspace``; False when the layer is not here (the lease is taken all the same)."""
        connection.execute("INSERT OR IGNORE INTO layer_lease VALUES (?, ?)", (str(diff_id), workspace))
        return connection.execute("SELECT 1 FROM layer WHERE diff_id = ?", (str(diff_id),)).fetchone() is not None

    def has_leases(self, workspace: str) -> bool:
        """Whether anything is kept for the owner of this workspace: to look is quicker than to write."""
        return bool(self._database.rows("SELECT 1 FROM layer_lease WHERE workspace = ? LIMIT 1", (workspace,)))

    def end_leases(self, connection: sqlite3.Connection, workspace: str) -> None:
        """Give up all leases of one workspace."""
        connection.execute("DELETE FROM layer_lease WHERE workspace = ?", (workspace,))

    def keep_leases_of(self, connection: sqlite3.Connection, living: Sequence[str]) -> None:
        """End the leases of every workspace but these."""
        connection.execute(f"DELETE FROM layer_lease WHERE workspace NOT IN ({_marks(living)})", tuple(living))

    def has_large_ids(self, diff_ids: Sequence[Digest]) -> bool:
        """Whether any of these layers has an owner whose id is beyond 65535."""
        sql = f"SELECT 1 FROM layer WHERE implicit_parents & {LARGE_IDS} AND diff_id IN ({_marks(diff_ids)}) LIMIT 1"
        return bool(self._database.rows(sql, [str(diff_id) for diff_id in diff_ids]))

    def variants(self, chains: Sequence[Digest]) -> dict[str, str]:
        """The directory of each chain's index, for the chains that are complete."""
        sql = f"SELECT chain_id, variant FROM layer_chain WHERE chain_id IN ({_marks(chains)})"
        rows = self._database.rows(sql, [str(chain) for chain in chains])
        return {str(chain): str(variant) for chain, variant in rows}

    def add_chain(self, connection: sqlite3.Connection, chain: Digest, diff_id: Digest, variant: str) -> None:
        """Record that a layer on top of the rest of ``chain`` is complete."""
        connection.execute("INSERT OR REPLACE INTO layer_chain VALUES (?, ?, ?)", (str(chain), str(diff_id), variant))

    def remove_unused(self, connection: sqlite3.Connection) -> list[str]:
        """Forget every layer that no image, container or living process needs; returns their diff ids. Their files are the caller's business."""
        unused = [str(diff_id) for (diff_id,) in connection.execute(f"SELECT diff_id FROM layer WHERE {_UNUSED}")]
        connection.executemany("DELETE FROM layer WHERE diff_id = ?", [(diff_id,) for diff_id in unused])
        # What speaks of an image goes with it. A blob stays while an image's or artifact's manifest names it, or while its layer is only leased.
        connection.execute(
            "DELETE FROM artifact WHERE NOT EXISTS (SELECT 1 FROM image WHERE image.manifest_digest = artifact.subject)"
            " AND NOT EXISTS (SELECT 1 FROM layer_lease WHERE layer_lease.diff_id = artifact.subject)"
        )
        connection.execute(
            "DELETE FROM layer_blob WHERE NOT EXISTS (SELECT 1 FROM image_layer WHERE image_layer.blob_digest = layer_blob.blob_digest)"
            " AND NOT EXISTS (SELECT 1 FROM artifact_blob WHERE artifact_blob.blob_digest = layer_blob.blob_digest)"
            " AND NOT EXISTS (SELECT 1 FROM build_step WHERE build_step.diff_id = layer_blob.blob_digest)"
            " AND NOT EXISTS (SELECT 1 FROM layer_lease WHERE layer_lease.diff_id = layer_blob.diff_id)"
        )
        # Where blobs are in registries is worth knowing of those that are here, and of configs.
        connection.execute(
            "DELETE FROM blob_source WHERE NOT EXISTS (SELECT 1 FROM layer_blob WHERE layer_blob.blob_digest = blob_source.blob_digest)"
            " AND NOT EXISTS (SELECT 1 FROM image_layer WHERE image_layer.blob_digest = blob_source.blob_digest)"
            " AND NOT EXISTS (SELECT 1 FROM image WHERE image.id = blob_source.blob_digest)"
        )
        return unused

    def users(self) -> list[tuple[str, str, str]]:
        """Who stands on which layer: (diff id, ``image``, ``container`` or ``step``, its id or key)."""
        sql = """SELECT diff_id, 'image', image_id FROM image_layer UNION SELECT diff_id, 'container', container_id FROM container_layer
                 UNION SELECT diff_id, 'container', container_id FROM snapshot_layer
                 UNION SELECT diff_id, 'step', key FROM build_step WHERE diff_id IS NOT NULL"""
        return [(str(diff_id), str(kind), str(user)) for diff_id, kind, user in self._database.rows(sql)]

    def blobs(self) -> list[tuple[str, str]]:
        """Every blob with the layer that it is (its own digest where it is none)."""
        return [(str(blob), str(diff_id)) for blob, diff_id in self._database.rows("SELECT blob_digest, diff_id FROM layer_blob")]

    def all_diff_ids(self, connection: sqlite3.Connection) -> set[str]:
        """Every layer that is here."""
        return {str(diff_id) for (diff_id,) in connection.execute("SELECT diff_id FROM layer")}

    def all_blobs(self, connection: sqlite3.Connection) -> set[str]:
        """Every blob that a layer came as."""
        return {str(digest) for (digest,) in connection.execute("SELECT blob_digest FROM layer_blob")}


def _marks(values: Sequence[object]) -> str:
    return ",".join("?" * len(values))
