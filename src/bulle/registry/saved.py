"""Images on their way out: the values that the writers take, made by the engine from what the store keeps.

A layer can be had as its uncompressed tar always, and as the blob that its manifest names as long as that was not pruned.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, Self

from bulle.model.digest import Digest
from bulle.model.image import OCI_LAYER, OCI_MANIFEST, Descriptor
from bulle.model.reference import Reference
from bulle.registry import documents
from bulle.registry.compression import CHUNK_BYTES

Open = Callable[[], Iterator[bytes]]


@dataclass(frozen=True, slots=True)
class SavedLayer:
    """One layer: ``descriptor`` as the manifest has it, ``tar_bytes`` long when uncompressed; ``open_blob`` is None where the blob is gone."""

    descriptor: Descriptor
    diff_id: Digest
    tar_bytes: int
    open_tar: Open
    open_blob: Open | None = None

    @classmethod
    def of_files(cls, descriptor: Descriptor, diff_id: Digest, open_tar: Callable[[], BinaryIO], open_blob: Callable[[], BinaryIO] | None) -> Self:
        """A layer whose bytes are in seekable files, opened when they are needed and closed at their end."""
        with open_tar() as file:
            tar_bytes = file.seek(0, os.SEEK_END)
        return cls(descriptor, diff_id, tar_bytes, partial(_chunks, open_tar), partial(_chunks, open_blob) if open_blob else None)

    @property
    def is_plain(self) -> bool:
        """Whether the blob in the manifest is the uncompressed tar itself."""
        return self.descriptor.digest == str(self.diff_id)


@dataclass(frozen=True, slots=True)
class SavedImage:
    """One image: raw documents, layers lowest first, and the names under which it shall be found again."""

    manifest: bytes
    media_type: str
    config: bytes
    layers: tuple[SavedLayer, ...]
    references: tuple[Reference, ...] = ()
    host_binds: tuple[str, ...] = ()

    @property
    def tags(self) -> tuple[Reference, ...]:
        """The names that are tags: a digest is no name that an archive could promise."""
        return tuple(reference for reference in self.references if reference.digest is None)

    def with_tars(self) -> SavedImage:
        """The same image with uncompressed layers and a manifest that says so; itself where that is so already."""
        if all(layer.is_plain for layer in self.layers):
            return self
        manifest = documents.make_manifest(self.config, [(layer.diff_id, layer.tar_bytes) for layer in self.layers])
        layers = tuple(
            SavedLayer(
                Descriptor(media_type=OCI_LAYER, digest=str(layer.diff_id), size=layer.tar_bytes), layer.diff_id, layer.tar_bytes, layer.open_tar
            )
            for layer in self.layers
        )
        return SavedImage(manifest, OCI_MANIFEST, self.config, layers, self.references, self.host_binds)

    def with_blobs(self) -> SavedImage:
        """Itself while every blob of its manifest can still be had; else as :meth:`with_tars` (its manifest's digest then changes)."""
        if all(layer.is_plain or layer.open_blob is not None for layer in self.layers):
            return self
        return self.with_tars()


def _chunks(opened: Callable[[], BinaryIO]) -> Iterator[bytes]:
    with opened() as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
