"""Content by digest, exactly as a registry holds it: ``blobs/sha256/HEX``. A file that is there was verified before it got its name.

Used by the layer store for compressed layers and by whoever pushes or saves. A blob that no image has is kept as long as it is leased
(:meth:`Store.receiving`); :mod:`bulle.store.garbage` removes the others. Image layout specification, "Blobs".
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from bulle.errors import CorruptImage, NotFound
from bulle.model.digest import Digest
from bulle.records.database import Database
from bulle.records.layers import LayerRecords
from bulle.store.failures import storage_errors
from bulle.store.workspace import Workspace


class BlobStore:
    """The blobs of one home."""

    def __init__(self, home: Path, database: Database, workspace: Workspace) -> None:
        self._root = home / "blobs"
        self._database = database
        self._records = LayerRecords(database)
        self._workspace = workspace

    def path(self, digest: Digest) -> Path:
        """Where a blob is, or would be (host path)."""
        return self._root / digest.algorithm / digest.encoded

    def has(self, digest: Digest) -> bool:
        """Whether the blob is here."""
        return self.path(digest).exists()

    def open(self, digest: Digest) -> BinaryIO:
        """The blob for reading. Raises NotFound."""
        try:
            return self.path(digest).open("rb")
        except FileNotFoundError:
            raise NotFound(f"no such blob: {digest}", "", "pull the image again") from None

    def keep(self, digest: Digest) -> bool:
        """Whether the blob is here; it then stays until the end of :meth:`Store.receiving`, as one that is added does."""
        with self._database.transaction() as connection:
            owner = self._records.blob_owner(connection, digest)
            if owner is None:
                return False
            self._records.lease(connection, owner, self._workspace.name)
        return self.has(digest)

    def of_layer(self, diff_id: Digest) -> list[tuple[Digest, int]]:
        """The compressed forms of a layer that are here: digest and bytes."""
        return [(digest, size) for digest, size in self._records.blobs_of(diff_id) if digest != diff_id and self.has(digest)]

    def remove(self, digest: Digest) -> None:
        """Remove a blob; harmless when it is not here."""
        self.path(digest).unlink(missing_ok=True)

    def add(self, chunks: Iterable[bytes], expected: Digest | None = None, size: int | None = None, diff_id: Digest | None = None) -> Digest:
        """Store a blob of ``size`` bytes with the digest ``expected`` (None: unknown), which is the compressed layer ``diff_id`` if it is one.

        Raises CorruptImage or StorageFull; then nothing is left.
        """
        checksum = hashlib.new(expected.algorithm if expected else "sha256")
        total = 0
        with storage_errors("the blob could not be stored"):
            temporary = self._workspace.directory()
            path = temporary / "blob"
            try:
                with path.open("xb") as file:
                    for chunk in chunks:
                        total += len(chunk)
                        if size is not None and total > size:
                            break
                        checksum.update(chunk)
                        file.write(chunk)
                    file.flush()
                    digest = Digest(f"{checksum.name}:{checksum.hexdigest()}")
                    if size is not None and total != size:
                        raise CorruptImage("the blob has the wrong size", f"{size} bytes were announced")
                    if expected is not None and digest != expected:
                        raise CorruptImage(f"the blob {expected.short} is not what it claims to be", f"its digest is {digest}")
                    os.fdatasync(file.fileno())
                with self._database.transaction() as connection:
                    self._records.add_blob(connection, digest, diff_id or digest, total)
                    self._records.lease(connection, diff_id or digest, self._workspace.name)
                    self.adopt(path, digest)
            finally:
                path.unlink(missing_ok=True)
                temporary.rmdir()
        return digest

    def adopt(self, path: Path, digest: Digest) -> None:
        """Give a verified and synced file of the same file system its place; a hard link, so that ``path`` stays the caller's.

        The caller records the blob in the transaction in which it calls this.
        """
        target = self.path(digest)
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.link(path, target)
