"""Rows about what registries hold: artifacts that speak of an image, indexes over several images, and where blobs are known to be.

Called by the store; reading what a document says is its business. No files are touched here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bulle.records.database import Database

_SOURCES_LIMIT = 16


@dataclass(frozen=True)
class ArtifactRow:
    """An artifact's manifest, which speaks of the manifest ``subject``."""

    digest: str
    subject: str
    manifest: bytes


@dataclass(frozen=True)
class IndexRow:
    """An index under its canonical name, and the images of this store that it names."""

    reference: str
    media_type: str
    document: bytes
    image_ids: tuple[str, ...] = ()


class ArtifactRecords:
    """The tables artifact and artifact_blob."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of_subject(self, subject: str) -> list[ArtifactRow]:
        """What speaks of a manifest."""
        return self._rows("SELECT digest, subject, manifest FROM artifact WHERE subject = ? ORDER BY rowid", subject)

    def get(self, digest: str) -> ArtifactRow | None:
        """The artifact with exactly this digest."""
        found = self._rows("SELECT digest, subject, manifest FROM artifact WHERE digest = ?", digest)
        return found[0] if found else None

    def add(self, connection: sqlite3.Connection, row: ArtifactRow, blobs: Iterable[str]) -> None:
        """Record an artifact and what it is made of, in the caller's transaction; harmless to repeat."""
        connection.execute("INSERT OR IGNORE INTO artifact VALUES (?, ?, ?)", (row.digest, row.subject, row.manifest))
        connection.executemany("INSERT OR IGNORE INTO artifact_blob VALUES (?, ?)", [(row.digest, blob) for blob in blobs])

    def remove(self, connection: sqlite3.Connection, digest: str) -> bool:
        """Forget an artifact; False where there was none."""
        return connection.execute("DELETE FROM artifact WHERE digest = ?", (digest,)).rowcount > 0

    def _rows(self, sql: str, parameter: str) -> list[ArtifactRow]:
        found = []
        for digest, subject, manifest in self._database.rows(sql, (parameter,)):
            assert isinstance(manifest, bytes)
            found.append(ArtifactRow(str(digest), str(subject), manifest))
        return found


class IndexRecords:
    """The tables image_index and image_index_image."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, reference: str) -> IndexRow | None:
        """The index of that canonical name."""
        rows = self._rows("SELECT reference, media_type, document FROM image_index WHERE reference = ?", (reference,))
        return rows[0] if rows else None

    def all(self) -> list[IndexRow]:
        """Every index, by name."""
        return self._rows("SELECT reference, media_type, document FROM image_index ORDER BY reference", ())

    def of_image(self, image_id: str) -> list[IndexRow]:
        """The indexes that name an image."""
        sql = """SELECT image_index.reference, media_type, document FROM image_index JOIN image_index_image USING (reference)
                 WHERE image_id = ? ORDER BY image_index.reference"""
        return self._rows(sql, (image_id,))

    def put(self, connection: sqlite3.Connection, row: IndexRow) -> None:
        """Record an index, or what has become of it."""
        connection.execute(
            "INSERT INTO image_index VALUES (?, ?, ?) ON CONFLICT (reference) DO UPDATE SET"
            " media_type = excluded.media_type, document = excluded.document",
            (row.reference, row.media_type, row.document),
        )
        connection.execute("DELETE FROM image_index_image WHERE reference = ?", (row.reference,))
        connection.executemany("INSERT INTO image_index_image VALUES (?, ?)", [(row.reference, image_id) for image_id in row.image_ids])

    def remove(self, connection: sqlite3.Connection, reference: str) -> bool:
        """Forget an index; False where there was none. Its images stay."""
        return connection.execute("DELETE FROM image_index WHERE reference = ?", (reference,)).rowcount > 0

    def _rows(self, sql: str, parameters: Sequence[object]) -> list[IndexRow]:
        found = []
        for reference, media_type, document in self._database.rows(sql, parameters):
            assert isinstance(document, bytes)
            members = self._database.rows("SELECT image_id FROM image_index_image WHERE reference = ? ORDER BY image_id", (reference,))
            found.append(IndexRow(str(reference), str(media_type), document, tuple(str(image_id) for (image_id,) in members)))
        return found


class BlobSources:
    """The table blob_source: which repositories (``domain/path``) are known to hold a blob."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, repository: str, blobs: Iterable[str]) -> None:
        """Remember that a repository holds these blobs."""
        with self._database.transaction() as connection:
            connection.executemany("INSERT OR IGNORE INTO blob_source VALUES (?, ?)", [(blob, repository) for blob in blobs])

    def paths(self, blob: str, domain: str) -> tuple[str, ...]:
        """The paths of a registry's repositories that hold a blob, some of them."""
        sql = "SELECT repository FROM blob_source WHERE blob_digest = ? AND repository >= ? AND repository < ? LIMIT ?"
        rows = self._database.rows(sql, (blob, f"{domain}/", f"{domain}0", _SOURCES_LIMIT))
        return tuple(str(repository).partition("/")[2] for (repository,) in rows)

    def repositories(self, blob: str) -> tuple[str, ...]:
        """The repositories (``domain/path``) of any registry that hold a blob, some of them."""
        rows = self._database.rows("SELECT repository FROM blob_source WHERE blob_digest = ? LIMIT ?", (blob, _SOURCES_LIMIT))
        return tuple(str(repository) for (repository,) in rows)

    def are_known(self, blobs: Sequence[str]) -> bool:
        """Whether each of these blobs is in some registry."""
        marks = ",".join("?" * len(set(blobs)))
        [(count,)] = self._database.rows(f"SELECT COUNT(DISTINCT blob_digest) FROM blob_source WHERE blob_digest IN ({marks})", tuple(set(blobs)))
        return count == len(set(blobs))
