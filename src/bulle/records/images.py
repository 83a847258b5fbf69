"""Rows about images: their manifests and configs, their layers and their names.

Called by the image store alone. Lookups are on the path of ``run``: one query finds the image, one gathers its layers and names.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bulle.records.database import Database

_COLUMNS = "id, manifest_digest, manifest_media_type, manifest, config, created_at_ns, size_bytes, host_binds"


@dataclass(frozen=True)
class ImageRow:
    """One image as it is recorded. ``layers`` are (diff id, blob digest), lowest first; ``references`` are canonical and sorted."""

    id: str
    manifest_digest: str
    manifest_media_type: str
    manifest: bytes
    config: bytes
    created_at_ns: int
    size_bytes: int
    host_binds: tuple[str, ...]
    layers: tuple[tuple[str, str], ...] = ()
    references: tuple[str, ...] = ()


class ImageRecords:
    """The tables image, image_layer, tag and platform_tag."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def by_reference(self, canonical: str) -> ImageRow | None:
        """The image that a canonical reference names."""
        return self._one(f"SELECT {_COLUMNS} FROM image JOIN tag ON tag.image_id = image.id WHERE tag.reference = ?", canonical)

    def all_by_reference(self, canonical: str) -> list[ImageRow]:
        """Every image with this name, one for each platform; the one that it means by itself first."""
        sql = """SELECT image_id, 0 FROM tag WHERE reference = ?1
                 UNION ALL SELECT image_id, 1 FROM platform_tag WHERE reference = ?1 ORDER BY 2, 1"""
        found = [self.by_id(str(row[0])) for row in self._database.rows(sql, (canonical,))]
        return [row for row in found if row is not None]

    def by_repository_digest(self, repository: str, digest: str) -> ImageRow | None:
        """The image with this manifest that has any tag of the repository."""
        sql = f"""SELECT {_COLUMNS} FROM image JOIN tag ON tag.image_id = image.id
                  WHERE manifest_digest = ? AND tag.reference >= ? AND tag.reference < ? LIMIT 1"""
        return self._one(sql, digest, f"{repository}:", f"{repository};")

    def by_id_prefix(self, prefix: str) -> list[str]:
        """Up to two ids that begin with ``sha256:`` and these hexadecimal digits."""
        sql = "SELECT id FROM image WHERE id >= ? AND id < ? LIMIT 2"
        return [str(row[0]) for row in self._database.rows(sql, (f"sha256:{prefix}", f"sha256:{prefix}g"))]

    def by_id(self, image_id: str) -> ImageRow | None:
        """The image with exactly this id."""
        return self._one(f"SELECT {_COLUMNS} FROM image WHERE id = ?", image_id)

    def all(self) -> list[ImageRow]:
        """Every image, the newest first."""
        return [self._row(row) for row in self._database.rows(f"SELECT {_COLUMNS} FROM image ORDER BY created_at_ns DESC, id")]

    def put(self, connection: sqlite3.Connection, row: ImageRow) -> None:
        """Record an image, or replace the manifest and blobs of one that is here, in the caller's transaction."""
        connection.execute(
            f"""INSERT INTO image ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET
                manifest_digest = excluded.manifest_digest, manifest_media_type = excluded.manifest_media_type,
                manifest = excluded.manifest, host_binds = excluded.host_binds""",
            (
                row.id, row.manifest_digest, row.manifest_media_type, row.manifest, row.config, row.created_at_ns, row.size_bytes,
                ":".join(row.host_binds),
            ),
        )  # fmt: skip
        connection.execute("DELETE FROM image_layer WHERE image_id = ?", (row.id,))
        connection.executemany(
            "INSERT INTO image_layer VALUES (?, ?, ?, ?)",
            [(row.id, position, diff_id, blob) for position, (diff_id, blob) in enumerate(row.layers)],
        )

    def tag(self, connection: sqlite3.Connection, image_id: str, references: Iterable[str]) -> None:
        """Give an image names; a name that another image had, or several for their platforms, moves."""
        for reference in references:
            self.tag_platforms(connection, reference, image_id, ())

    def tag_platforms(self, connection: sqlite3.Connection, reference: str, image_id: str, others: Iterable[str]) -> None:
        """Give a name to an image, and to others for their platforms, and to none beside these."""
        sql = "INSERT INTO tag VALUES (?, ?) ON CONFLICT (reference) DO UPDATE SET image_id = excluded.image_id"
        connection.execute(sql, (reference, image_id))
        connection.execute("DELETE FROM platform_tag WHERE reference = ?", (reference,))
        connection.executemany("INSERT INTO platform_tag VALUES (?, ?)", [(reference, other) for other in others])

    def untag(self, connection: sqlite3.Connection, references: Sequence[str]) -> int:
        """Take names away from every image that has them; returns how many names there were."""
        return sum(connection.execute("DELETE FROM tag WHERE reference = ?", (reference,)).rowcount for reference in references)

    def untag_image(self, connection: sqlite3.Connection, image_id: str, references: Sequence[str]) -> None:
        """Take names away from one image; those for other platforms keep them."""
        for reference in references:
            others = [row.id for row in self.all_by_reference(reference) if row.id != image_id]
            if others:
                self.tag_platforms(connection, reference, others[0], others[1:])
            else:
                self.untag(connection, [reference])

    def delete(self, connection: sqlite3.Connection, row: ImageRow) -> None:
        """Forget an image and its names; its layers are the caller's business."""
        self.untag_image(connection, row.id, row.references)
        connection.execute("DELETE FROM image WHERE id = ?", (row.id,))

    def users(self, connection: sqlite3.Connection, image_id: str) -> list[tuple[str, str]]:
        """Id and name of every container made from an image."""
        rows = connection.execute("SELECT id, name FROM container WHERE image_id = ? ORDER BY created_at_ns", (image_id,))
        return [(str(container_id), str(name)) for container_id, name in rows]

    def missing_layers(self, connection: sqlite3.Connection, diff_ids: Sequence[str]) -> list[str]:
        """Those of these layers that are not here."""
        present = connection.execute(f"SELECT diff_id FROM layer WHERE diff_id IN ({','.join('?' * len(diff_ids))})", tuple(diff_ids))
        found = {str(row[0]) for row in present}
        return [diff_id for diff_id in diff_ids if diff_id not in found]

    def layers_size(self, connection: sqlite3.Connection, diff_ids: Sequence[str]) -> int:
        """Sum of the uncompressed sizes of these layers, each as often as it occurs."""
        return sum(connection.execute("SELECT size_bytes FROM layer WHERE diff_id = ?", (diff_id,)).fetchone()[0] for diff_id in diff_ids)

    def _one(self, sql: str, *parameters: str) -> ImageRow | None:
        rows = self._database.rows(sql, parameters)
        return self._row(rows[0]) if rows else None

    def _row(self, row: tuple[object, ...]) -> ImageRow:
        image_id, manifest_digest, media_type, manifest, config, created, size, binds = row
        assert isinstance(manifest, bytes) and isinstance(config, bytes) and isinstance(created, int) and isinstance(size, int)
        related = self._database.rows(
            """SELECT position, diff_id, blob_digest FROM image_layer WHERE image_id = ?1
               UNION ALL SELECT -1, reference, '' FROM tag WHERE image_id = ?1
               UNION ALL SELECT -1, reference, '' FROM platform_tag WHERE image_id = ?1""",
            (image_id,),
        )
        layers = sorted((position, str(diff_id), str(blob)) for position, diff_id, blob in related if isinstance(position, int) and position >= 0)
        return ImageRow(
            str(image_id), str(manifest_digest), str(media_type), manifest, config, created, size,
            tuple(bind for bind in str(binds).split(":") if bind),
            tuple((diff_id, blob) for _, diff_id, blob in layers),
            tuple(sorted(str(reference) for position, reference, _ in related if position == -1)),
        )  # fmt: skip
