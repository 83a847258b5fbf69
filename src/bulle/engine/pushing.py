"""From images in the store to a registry: their layers (compressed now, where they were made here), their manifest, and what speaks of them.

A pulled image goes out as it came, byte for byte. One that was made here has plain layers: each is compressed once, and the image then keeps the
manifest that was pushed, so that the next push sends nothing and both sides speak of the same digest. An image that stands on directories of this
machine is pushed as a copy of them, which the store does not keep.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

import msgspec

from bulle.engine.parallel import each
from bulle.engine.saving import saved_image
from bulle.errors import BulleError, CorruptImage, InvalidInput, NotFound, RegistryFailure
from bulle.model.digest import Digest
from bulle.model.image import DOCKER_LAYER, LAYER_COMPRESSIONS, OCI_LAYER, Descriptor, Manifest
from bulle.records.database import Database
from bulle.records.registries import BlobSources
from bulle.registry.compression import compress, detect
from bulle.registry.destination import Destination, Pushed
from bulle.registry.documents import kind_of
from bulle.registry.progress import Progress
from bulle.registry.remote import fetch_blob
from bulle.registry.self_contained import self_contained
from bulle.registry.uploads import Blob
from bulle.store import Image, Store
from bulle.store.artifacts import blobs_of
from bulle.store.failures import storage_errors

if TYPE_CHECKING:
    from bulle.registry.transport import SourceConfiguration

Compression = Literal["", "gzip", "zstd", "none"]
COMPRESSIONS = ("gzip", "zstd", "none")
_AT_ONCE = 3


@dataclass(slots=True)
class _Layer:
    """A layer on its way: ``descriptor`` is what the manifest will say of it, ``blob`` what is sent, once either is known."""

    descriptor: Descriptor
    diff_id: Digest
    open_tar: Callable[[], Iterator[bytes]]
    compress: bool
    blob: Blob | None = None


class Push:
    """One image on its way to one repository."""

    def __init__(self, store: Store, database: Database, destination: Destination, configuration: SourceConfiguration) -> None:
        self._store = store
        self._database = database
        self._destination = destination
        self._configuration = configuration
        self._sources = BlobSources(database)
        self._domain = destination.reference.domain

    def image(self, image: Image, compression: Compression, name: str = "") -> tuple[Image, Pushed]:
        """Push an image under a tag (``""``: by its digest alone); returns it as it now is, and what the registry has.

        Raises RegistryFailure, AuthenticationFailed, NotFound, Conflict, InvalidInput.
        """
        if compression not in ("", *COMPRESSIONS):
            raise InvalidInput(f"there is no compression {compression!r} for layers", "", f"use one of {', '.join(COMPRESSIONS)}")
        self._store.layers.keep(image.layers)
        saved = self_contained(saved_image(self._store, image, ()), progress=self._configuration.progress)
        plain = [layer for layer in saved.layers if layer.is_plain]
        wanted = compression if compression else "none" if plain and self._sources.are_known([one.descriptor.digest for one in plain]) else "gzip"
        kind: Literal["gzip", "zstd"] = "zstd" if wanted == "zstd" else "gzip"
        kept = not image.host_binds
        distinct: dict[str, _Layer] = {}  # an image may stand on one layer twice
        for one in saved.layers:
            distinct[one.descriptor.digest] = _Layer(one.descriptor, one.diff_id, one.open_tar, one.is_plain and wanted != "none")
        layers = list(distinct.values())
        config = Blob(Digest.of(saved.config), len(saved.config), lambda: io.BytesIO(saved.config), self._where(Digest.of(saved.config)))

        def work(number: int) -> None:
            if number < len(layers):
                self._layer(layers[number], kind, keep=kept)
            else:
                self._destination.send(config)

        each(work, len(layers) + 1, self._database.close, self._configuration.stopped.set, _AT_ONCE)
        manifest = _with_layers(saved.manifest, [distinct[one.descriptor.digest].descriptor for one in saved.layers])
        self._sources.add(self._destination.reference.repository, [str(config.digest), *(layer.descriptor.digest for layer in layers)])
        if kept and manifest != image.manifest:
            image = self._store.images.settle(image, manifest, saved.media_type)
        self._destination.put_manifest(manifest, saved.media_type, name)
        pushed = Pushed(self._destination.reference, Digest.of(manifest), len(manifest))
        if kept:
            self._referrers(pushed.digest)
        return image, pushed

    def _layer(self, layer: _Layer, kind: Literal["gzip", "zstd"], *, keep: bool) -> None:
        """Bring one layer there, as it is or compressed; what it is in the manifest is then known."""
        if not layer.compress and self._as_it_is(layer, keep=keep):
            return
        blob = self._compressed(layer, kind) if keep else self._compressed_aside(layer, kind)
        self._destination.send(blob)
        media_type = _compressed_type(layer.descriptor.media_type, kind)
        layer.descriptor = msgspec.structs.replace(layer.descriptor, media_type=media_type, digest=str(blob.digest), size=blob.size)

    def _as_it_is(self, layer: _Layer, *, keep: bool) -> bool:
        """Bring a layer there as the manifest has it; False where its bytes are not to be had."""
        digest = layer.descriptor.parsed_digest
        opened = self._opener(layer, digest) if keep else self._copied_aside(layer)
        if opened is not None:
            self._destination.send(Blob(digest, layer.descriptor.size, opened, self._where(digest)))
            return True
        # The same layer had come in another form before this one was pulled, or its form was pruned.
        if self._destination.find(Blob(digest, layer.descriptor.size, _nothing, self._where(digest))):
            return True
        for repository in self._sources.repositories(str(digest)):
            try:
                self._store.blobs.add(fetch_blob(repository, layer.descriptor, self._configuration), digest, layer.descriptor.size, layer.diff_id)
            except (RegistryFailure, NotFound, CorruptImage):
                continue
            self._destination.send(self._blob_of_store(digest, layer.descriptor.size))
            return True
        message = f"compressed anew, since {digest} is not kept: the digest of the image changes"
        self._configuration.progress(Progress("step", str(layer.diff_id), message=message))
        return False

    def _opener(self, layer: _Layer, digest: Digest) -> Callable[[], BinaryIO] | None:
        if self._store.blobs.has(digest):
            return lambda: self._store.blobs.open(digest)
        if digest == layer.diff_id and self._store.layers.has(digest):
            return lambda: self._store.layers.export_tar(digest)
        return None

    def _compressed(self, layer: _Layer, kind: Literal["gzip", "zstd"]) -> Blob:
        """A layer of the store, compressed once and kept."""
        for digest, size in self._store.blobs.of_layer(layer.diff_id):
            with self._store.blobs.open(digest) as file:
                found = detect(file.read(16))
            if found == kind:
                return self._blob_of_store(digest, size)
        digest = self._store.blobs.add(self._compressing(layer, kind), diff_id=layer.diff_id)
        return self._blob_of_store(digest, self._store.blobs.path(digest).stat().st_size)

    def _blob_of_store(self, digest: Digest, size: int) -> Blob:
        return Blob(digest, size, lambda: self._store.blobs.open(digest), self._where(digest))

    def _compressed_aside(self, layer: _Layer, kind: Literal["gzip", "zstd"]) -> Blob:
        """A layer that the store does not have, in a temporary file."""
        path, digest = self._aside(layer, self._compressing(layer, kind))
        return Blob(digest, path.stat().st_size, lambda: cast(BinaryIO, path.open("rb")), self._where(digest))

    def _copied_aside(self, layer: _Layer) -> Callable[[], BinaryIO]:
        path, _ = self._aside(layer, layer.open_tar())
        return lambda: cast(BinaryIO, path.open("rb"))

    def _aside(self, layer: _Layer, chunks: Iterator[bytes]) -> tuple[Path, Digest]:
        import hashlib

        assert self._configuration.temporary is not None
        path = self._configuration.temporary / layer.diff_id.encoded
        checksum = hashlib.sha256()
        with storage_errors("the image could not be copied"), path.open("wb") as file:
            for chunk in chunks:
                checksum.update(chunk)
                file.write(chunk)
        return path, Digest(f"sha256:{checksum.hexdigest()}")

    def _compressing(self, layer: _Layer, kind: Literal["gzip", "zstd"]) -> Iterator[bytes]:
        identity, total, done = str(layer.diff_id), layer.descriptor.size, 0

        def counted() -> Iterator[bytes]:
            nonlocal done
            for chunk in layer.open_tar():
                self._configuration.check_stopped()
                done += len(chunk)
                self._configuration.progress(Progress("compress", identity, done, max(total, done)))
                yield chunk

        return compress(counted(), kind)

    def _where(self, digest: Digest) -> tuple[str, ...]:
        return self._sources.paths(str(digest), self._domain)

    def _referrers(self, subject: Digest) -> None:
        """Push what speaks of the image, each artifact with its blobs first."""
        for artifact in self._store.artifacts.list(subject):
            for descriptor in blobs_of(artifact.manifest):
                digest = descriptor.parsed_digest
                self._destination.send(self._blob_of_store(digest, descriptor.size))
            self._destination.put_referrer(artifact.manifest, kind_of(artifact.manifest, "", "an artifact"))


def _nothing() -> BinaryIO:
    raise BulleError("a layer's compressed form is not kept")


def _compressed_type(media_type: str, kind: str) -> str:
    """The media type of a layer once it is compressed: Docker's own types stay Docker's."""
    plain = DOCKER_LAYER if media_type.startswith(DOCKER_LAYER) else OCI_LAYER
    compressed = f"{DOCKER_LAYER}.{kind}" if plain == DOCKER_LAYER else f"{OCI_LAYER}+{kind}"
    return compressed if compressed in LAYER_COMPRESSIONS else media_type


def _with_layers(manifest: bytes, layers: list[Descriptor]) -> bytes:
    """A manifest that names these layers; the very same bytes where it does so already."""
    before = Manifest.parse(manifest).layers
    if [one.digest for one in before] == [one.digest for one in layers]:
        return manifest
    document: dict[str, Any] = msgspec.json.decode(manifest)
    for entry, layer in zip(document["layers"], layers, strict=True):
        entry |= {"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size}
    return msgspec.json.encode(document)
