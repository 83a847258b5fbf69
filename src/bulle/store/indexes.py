"""Indexes: several images under one name, one for each platform, with the images kept as long as an index names them.

Called by the engine for ``manifest``. The document is the one that a registry will get; it follows when the manifest of one of its images changes.
Image specification, image-index.md.
"""

from __future__ import annotations

import sqlite3
from builtins import list as list_
from typing import Any

import msgspec

from bulle.errors import NotFound
from bulle.model.digest import Digest
from bulle.model.image import Descriptor, Index
from bulle.model.reference import Reference
from bulle.records.database import Database
from bulle.records.registries import IndexRecords, IndexRow


class ImageIndex(msgspec.Struct, frozen=True):
    """One index: ``document`` is its raw bytes, ``image_ids`` are those of its images that are in this store."""

    reference: Reference
    media_type: str
    document: bytes
    image_ids: tuple[str, ...]

    @property
    def digest(self) -> Digest:
        """What a registry calls it."""
        return Digest.of(self.document)

    @property
    def manifests(self) -> tuple[Descriptor, ...]:
        """What it names."""
        return Index.parse(self.document).manifests


class IndexStore:
    """The indexes of one home."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._records = IndexRecords(database)

    def get(self, reference: Reference) -> ImageIndex:
        """The index of that name. Raises NotFound."""
        row = self._records.get(reference.canonical)
        if row is None:
            raise NotFound(f"no such index: {reference.familiar}", "", "make it with `bulle manifest create`")
        return ImageIndex(reference, row.media_type, row.document, row.image_ids)

    def has(self, reference: Reference) -> bool:
        """Whether there is an index of that name."""
        return self._records.get(reference.canonical) is not None

    def list(self) -> list_[ImageIndex]:
        """Every index, by name."""
        return [ImageIndex(Reference.parse(row.reference), row.media_type, row.document, row.image_ids) for row in self._records.all()]

    def put(self, index: ImageIndex) -> None:
        """Keep an index in place of the one that had its name. Raises NotFound when one of its images is not here any more."""
        Index.parse(index.document)
        row = IndexRow(index.reference.canonical, index.media_type, index.document, tuple(dict.fromkeys(index.image_ids)))
        try:
            with self._database.transaction() as connection:
                self._records.put(connection, row)
        except sqlite3.IntegrityError:
            raise NotFound(f"an image of the index {index.reference.familiar} is not here any more", "", "pull it again") from None

    def remove(self, reference: Reference) -> None:
        """Forget an index; its images stay. Raises NotFound."""
        with self._database.transaction() as connection:
            if not self._records.remove(connection, reference.canonical):
                raise NotFound(f"no such index: {reference.familiar}")


def with_manifest(document: bytes, old_digest: str, new: Descriptor) -> bytes:
    """An index whose entry for one manifest names another of the same image; everything else of the entry stays."""
    decoded: dict[str, Any] = msgspec.json.decode(document)
    for entry in decoded["manifests"]:
        if entry.get("digest") == old_digest:
            entry |= {"mediaType": new.media_type, "digest": new.digest, "size": new.size}
    return msgspec.json.encode(decoded)
