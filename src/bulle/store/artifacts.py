"""What speaks of an image: signatures, lists of packages, anything that names the image's manifest as its ``subject``.

An artifact is a manifest and blobs, as registries keep it; it lives as long as the image that it speaks of (:mod:`bulle.store.garbage`). Image
specification, "Guidelines for Artifact Usage". Called by the engine.
"""

from __future__ import annotations

from builtins import list as list_
from collections.abc import Callable, Iterable, Mapping

import msgspec

from bulle.errors import CorruptImage, NotFound
from bulle.model.digest import Digest
from bulle.model.image import EMPTY, EMPTY_MEDIA_TYPE, METADATA_LIMIT_BYTES, OCI_MANIFEST, Descriptor, Manifest
from bulle.records.database import Database
from bulle.records.registries import ArtifactRecords, ArtifactRow
from bulle.store.blobs import BlobStore


class Artifact(msgspec.Struct, frozen=True):
    """One artifact: ``subject`` is the digest of the manifest that it speaks of, ``layers`` its content, ``manifest`` its raw bytes."""

    digest: Digest
    subject: Digest
    artifact_type: str
    layers: tuple[Descriptor, ...]
    annotations: dict[str, str]
    manifest: bytes

    @property
    def size_bytes(self) -> int:
        """The bytes of its content."""
        return sum(layer.size for layer in self.layers)


class ArtifactStore:
    """The artifacts of one home."""

    def __init__(self, database: Database, blobs: BlobStore) -> None:
        self._database = database
        self._records = ArtifactRecords(database)
        self._blobs = blobs

    def attach(
        self, subject: Descriptor, artifact_type: str, media_type: str, content: bytes, annotations: Mapping[str, str]
    ) -> Artifact:
        """Make an artifact of one piece of content; the same content gives the same artifact. Raises StorageFull, NotFound."""
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": artifact_type,
            "config": {"mediaType": EMPTY_MEDIA_TYPE, "digest": str(Digest.of(EMPTY)), "size": len(EMPTY), "data": "e30="},
            "layers": [{"mediaType": media_type, "digest": str(Digest.of(content)), "size": len(content)}],
            "subject": {"mediaType": subject.media_type, "digest": subject.digest, "size": subject.size},
        }
        if annotations:
            document["annotations"] = dict(sorted(annotations.items()))
        contents = {Digest.of(EMPTY): EMPTY, Digest.of(content): content}
        return self.add(msgspec.json.encode(document), lambda blob: [contents[blob.parsed_digest]])

    def add(self, manifest: bytes, open_blob: Callable[[Descriptor], Iterable[bytes]]) -> Artifact:
        """Keep an artifact from its raw manifest; ``open_blob`` gives what is not here.

        Raises CorruptImage, NotFound (what it speaks of is not here), StorageFull.
        """
        artifact = _parsed(manifest)
        blobs = blobs_of(manifest)
        for blob in blobs:
            if not self._blobs.keep(blob.parsed_digest):
                self._blobs.add(open_blob(blob), blob.parsed_digest, blob.size)
        with self._database.transaction() as connection:
            if not connection.execute("SELECT 1 FROM image WHERE manifest_digest = ?", (str(artifact.subject),)).fetchone():
                raise NotFound(f"no such image: {artifact.subject}", "what an artifact speaks of must be here")
            row = ArtifactRow(str(artifact.digest), str(artifact.subject), manifest)
            self._records.add(connection, row, [blob.digest for blob in blobs])
        return artifact

    def list(self, subject: Digest) -> list_[Artifact]:
        """What speaks of a manifest, in the order in which it came."""
        return [_parsed(row.manifest) for row in self._records.of_subject(str(subject))]

    def get(self, digest: Digest) -> Artifact:
        """One artifact. Raises NotFound."""
        row = self._records.get(str(digest))
        if row is None:
            raise NotFound(f"no such artifact: {digest}")
        return _parsed(row.manifest)

    def remove(self, digest: Digest) -> None:
        """Forget an artifact; its blobs go with the next collection. Raises NotFound."""
        with self._database.transaction() as connection:
            if not self._records.remove(connection, str(digest)):
                raise NotFound(f"no such artifact: {digest}")


def blobs_of(manifest: bytes) -> list_[Descriptor]:
    """Everything that an artifact's manifest names, each once."""
    parsed = Manifest.parse(manifest)
    return list_({descriptor.digest: descriptor for descriptor in (parsed.config, *parsed.layers)}.values())


def with_subject(manifest: bytes, subject: Descriptor) -> bytes:
    """An artifact's manifest that speaks of another manifest of the same image."""
    document = msgspec.json.decode(manifest)
    document["subject"] = {"mediaType": subject.media_type, "digest": subject.digest, "size": subject.size}
    return msgspec.json.encode(document)


def _parsed(manifest: bytes) -> Artifact:
    parsed = Manifest.parse(manifest)
    if parsed.subject is None:
        raise CorruptImage("an artifact cannot be used", "it does not say what it speaks of")
    if len(manifest) > METADATA_LIMIT_BYTES:
        raise CorruptImage("an artifact cannot be used", f"its manifest is larger than {METADATA_LIMIT_BYTES} bytes")
    kind = parsed.artifact_type or parsed.config.media_type
    return Artifact(Digest.of(manifest), parsed.subject.parsed_digest, kind, parsed.layers, dict(parsed.annotations or {}), manifest)
