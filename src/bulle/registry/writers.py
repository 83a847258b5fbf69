"""Writes images as archives: ``docker-archive`` (what ``docker load`` takes) and ``oci-archive`` (an OCI layout in a tar).

Called by the engine's ``save``. Archives are the same for the same images: no times, no owners. A docker-archive has uncompressed layers, as
Docker's own has, and is an OCI layout at the same time, as Docker's is since version 25. An oci-archive keeps manifests and compressed blobs byte
for byte, so that digests survive. An image that stands on the host's directories is made self-contained first (``self_contained``). Nothing is
written for an image that turns out to be unreadable in its documents; a failure while a layer is copied leaves ``out`` incomplete, which its owner
discards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import msgspec

from bulle.errors import CorruptImage, StorageFull
from bulle.model.digest import Digest
from bulle.model.image import OCI_INDEX
from bulle.registry import tar_format
from bulle.registry.oci_layout import CONTAINERD_NAME, REFERENCE_NAME, blob_path
from bulle.registry.progress import Progress, ProgressCallback, silent
from bulle.registry.saved import SavedImage, SavedLayer

_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_NO_SPACE = (28, 122)


def write_docker_archive(images: Sequence[SavedImage], out: BinaryIO, *, progress: ProgressCallback = silent) -> None:
    """Write one docker-archive with all the images to a binary stream. Raises CorruptImage, StorageFull."""
    images = _merged([image.with_tars() for image in images])
    archive = _Archive(out, progress)
    archive.layout(images)
    listed = [
        {
            "Config": blob_path(Digest.of(image.config)),
            "RepoTags": [reference.familiar for reference in image.tags] or None,
            "Layers": [blob_path(layer.diff_id) for layer in image.layers],
        }
        for image in images
    ]
    archive.file("manifest.json", msgspec.json.encode(listed))
    repositories: dict[str, dict[str, str]] = {}
    for image in images:
        for reference in image.tags:
            top = image.layers[-1].diff_id if image.layers else Digest.of(image.config)
            repositories.setdefault(reference.familiar_name, {})[reference.tag] = top.encoded
    if repositories:
        archive.file("repositories", msgspec.json.encode(repositories))
    archive.end()


def write_oci_archive(images: Sequence[SavedImage], out: BinaryIO, *, progress: ProgressCallback = silent) -> None:
    """Write one oci-archive with all the images to a binary stream. Raises CorruptImage, StorageFull."""
    archive = _Archive(out, progress)
    archive.layout(_merged([image.with_blobs() for image in images]))
    archive.end()


def _merged(images: Sequence[SavedImage]) -> list[SavedImage]:
    """Each image once, with all its names."""
    found: dict[bytes, SavedImage] = {}
    for image in images:
        known = found.get(image.manifest)
        if known is not None:
            names = (*known.references, *(name for name in image.references if name not in known.references))
            image = SavedImage(known.manifest, known.media_type, known.config, known.layers, names, known.host_binds)
        found[image.manifest] = image
    return list(found.values())


class _Archive:
    """A tar being written; a name is written once."""

    def __init__(self, out: BinaryIO, progress: ProgressCallback) -> None:
        self._out = out
        self._progress = progress
        self._names: set[str] = set()

    def layout(self, images: Sequence[SavedImage]) -> None:
        """Everything of an OCI layout: blobs, index and version."""
        self._write(tar_format.directory("blobs") + tar_format.directory("blobs/sha256"))
        for image in images:
            for layer in image.layers:
                self._layer(layer)
            self.file(blob_path(Digest.of(image.config)), image.config)
            self.file(blob_path(Digest.of(image.manifest)), image.manifest)
        self.file("index.json", msgspec.json.encode(_index(images)))
        self.file("oci-layout", _LAYOUT)

    def file(self, name: str, data: bytes) -> None:
        """A small member."""
        if name not in self._names:
            self._names.add(name)
            self._write(tar_format.file(name, data))

    def end(self) -> None:
        """The end of the archive."""
        self._write(tar_format.END)
        self._out.flush()

    def _layer(self, layer: SavedLayer) -> None:
        digest = layer.descriptor.parsed_digest
        name = blob_path(digest)
        if name in self._names:
            return
        self._names.add(name)
        size = layer.descriptor.size
        self._write(tar_format.header(tar_format.Member(name.encode(), size=size)))
        chunks = layer.open_tar() if layer.is_plain or layer.open_blob is None else layer.open_blob()
        for chunk in self._verified(chunks, digest, size):
            self._write(chunk)
        self._write(tar_format.padding(size))

    def _verified(self, chunks: Iterable[bytes], digest: Digest, size: int) -> Iterator[bytes]:
        """Pass on what a blob holds; CorruptImage where the store's copy is not what it was."""
        found, written = hashlib.new(digest.algorithm), 0
        for chunk in chunks:
            written += len(chunk)
            if written > size:
                break
            found.update(chunk)
            yield chunk
            self._progress(Progress("read", str(digest), written, size))
        if written != size or found.hexdigest() != digest.encoded:
            raise CorruptImage(f"layer {digest} is damaged in the store", "", "remove the image and pull or load it again")

    def _write(self, data: bytes) -> None:
        try:
            self._out.write(data)
        except OSError as error:
            if error.errno in _NO_SPACE:
                raise StorageFull("cannot write the archive", "no space left", "free some space and try again") from None
            raise


def _index(images: Sequence[SavedImage]) -> dict[str, Any]:
    """The index of a layout: an entry for each name, and one without for an image that has none."""
    entries = []
    for image in images:
        descriptor = {"mediaType": image.media_type, "digest": str(Digest.of(image.manifest)), "size": len(image.manifest)}
        for reference in image.tags:
            entries.append({**descriptor, "annotations": {CONTAINERD_NAME: reference.canonical, REFERENCE_NAME: reference.tag}})
        if not image.tags:
            entries.append(descriptor)
    return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
