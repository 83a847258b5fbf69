"""What speaks of images, as a program sees it: lists of packages, signatures, whatever names an image as its subject.

It travels with the image when that is pushed or pulled. Distribution specification, "Listing Referrers".
"""

from __future__ import annotations

from builtins import list as list_
from collections.abc import Mapping

from bulle.engine.images import Images
from bulle.errors import InvalidInput
from bulle.model.digest import Digest
from bulle.model.image import MEDIA_TYPE, Descriptor
from bulle.store import Artifact, Store


class Artifacts:
    """The artifacts of a home."""

    def __init__(self, store: Store, images: Images) -> None:
        self._store = store
        self._images = images

    def attach(self, name: str, artifact_type: str, media_type: str, content: bytes, annotations: Mapping[str, str] | None = None) -> Digest:
        """Let something speak of an image: a list of packages, a signature. It is pushed and pulled with the image; returns its digest.

        ``artifact_type`` says what it is (``application/spdx+json``), ``media_type`` in what form the content is. The same content again is the
        same artifact. Raises NotFound, InvalidInput, StorageFull.
        """
        for kind in (artifact_type, media_type):
            if not MEDIA_TYPE.fullmatch(kind):
                raise InvalidInput(f"{kind!r} is not a media type", "expected something like application/spdx+json")
        image = self._images.get(name)
        subject = Descriptor(media_type=image.manifest_media_type, digest=image.manifest_digest, size=len(image.manifest))
        with self._store.receiving():
            return self._store.artifacts.attach(subject, artifact_type, media_type, content, annotations or {}).digest

    def list(self, name: str, artifact_type: str = "") -> list_[Artifact]:
        """What speaks of an image, of one type or of all. Raises NotFound."""
        found = self._store.artifacts.list(Digest.parse(self._images.get(name).manifest_digest))
        return [artifact for artifact in found if artifact_type in ("", artifact.artifact_type)]

    def remove(self, digest: str) -> None:
        """Let an artifact speak of its image no more; what registries have of it stays there. Raises NotFound."""
        self._store.artifacts.remove(Digest.parse(digest))
        self._store.gc()

    def content(self, digest: str) -> bytes:
        """The content of an artifact, all of it in memory. Raises NotFound."""
        content = b""
        for layer in self._store.artifacts.get(Digest.parse(digest)).layers:
            with self._store.blobs.open(layer.parsed_digest) as file:
                content += file.read()
        return content
