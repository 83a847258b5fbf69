"""Indexes as a program makes them: several images under one name, one for each platform, and their way to a registry.

An index names images of this store, which keeps them as long as it does. An image that is not here is pulled. What the index says of an image
(platform, annotations) is the index's own; the image stays as it is.
"""

from __future__ import annotations

from builtins import list as list_
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from bulle.engine.images import Images
from bulle.errors import Conflict, InvalidInput, NotFound
from bulle.model.image import INDEX_MEDIA_TYPES, MANIFEST_MEDIA_TYPES, OCI_INDEX, Descriptor, Index, Platform
from bulle.model.reference import Reference
from bulle.records.database import Database
from bulle.store import Image, ImageIndex, Store

if TYPE_CHECKING:
    from bulle.registry.destination import Pushed
    from bulle.registry.progress import ProgressCallback


class EntryChanges(msgspec.Struct, frozen=True):
    """What an index is to say of one of its images; what is empty stays as it is, or as the image says it itself."""

    os: str = ""
    architecture: str = ""
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    annotations: Mapping[str, str] = {}

    def apply(self, entry: dict[str, Any]) -> None:
        """Write it into an entry of an index."""
        platform = dict(entry.get("platform") or {})
        wanted = {
            "os": self.os, "architecture": self.architecture, "variant": self.variant, "os.version": self.os_version,
            "os.features": list_(self.os_features), "features": list_(self.features),
        }  # fmt: skip
        platform |= {key: value for key, value in wanted.items() if value}
        if platform:
            entry["platform"] = platform
        if self.annotations:
            entry["annotations"] = {**entry.get("annotations", {}), **self.annotations}


class Indexes:
    """The indexes of a home."""

    def __init__(self, database: Database, store: Store, images: Images) -> None:
        self._database = database
        self._store = store
        self._images = images

    def create(
        self,
        name: str,
        images: Sequence[str] = (),
        *,
        replace: bool = False,
        annotations: Mapping[str, str] | None = None,
        progress: ProgressCallback | None = None,
    ) -> ImageIndex:
        """Make an index of images. Raises Conflict where the name is taken (by an index unless ``replace``, or by an image), and as :meth:`add`."""
        reference = _index_name(name)
        if self._store.indexes.has(reference) and not replace:
            raise Conflict(f"there is an index {reference.familiar} already", "", "use --amend, or remove it with `bulle manifest rm`")
        if not self._store.indexes.has(reference) and self._is_image(reference):
            raise Conflict(f"the name {reference.familiar} is taken", "an image has it", "choose another, or remove it with `bulle rmi`")
        found = [self._image(one, "", progress) for one in images]
        document: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
        if replace and self._store.indexes.has(reference):
            document = msgspec.json.decode(self._store.indexes.get(reference).document)
        if annotations:
            document["annotations"] = {**document.get("annotations", {}), **annotations}
        for image in found:
            _put_entry(document, _entry(image))
        return self._keep(reference, document)

    def add(
        self, name: str, image: str, changes: EntryChanges | None = None, *, platform: str = "", progress: ProgressCallback | None = None
    ) -> ImageIndex:
        """Add an image, pulled for ``platform`` if it is not here; one that is in the index already is described anew.

        Raises NotFound, Conflict, RegistryFailure.
        """
        reference = _index_name(name)
        self._store.indexes.get(reference)
        entry = _entry(self._image(image, platform, progress))
        if changes is not None:
            changes.apply(entry)
        return self._change(reference, lambda document: _put_entry(document, entry))

    def add_all(self, name: str, source: str, *, progress: ProgressCallback | None = None) -> ImageIndex:
        """Add every image of an index that a registry has, each pulled for its platform. Raises as :meth:`add`, InvalidInput for what is no index."""
        from bulle.registry.remote import fetch_document

        reference = _index_name(name)
        self._store.indexes.get(reference)
        there = Reference.parse(source.removeprefix("docker://"))
        with self._images.configured(progress) as configuration:
            raw, media_type = fetch_document(there, configuration)
        if media_type not in INDEX_MEDIA_TYPES:
            raise InvalidInput(f"{source} is no index", "it is one image", "add it without --all")
        for descriptor in Index.parse(raw).manifests:
            platform = descriptor.platform
            if descriptor.media_type not in MANIFEST_MEDIA_TYPES or platform is None or platform.os in ("", "unknown"):
                continue  # what only speaks of the others: attestations
            image = self._images.pull(f"{there.repository}@{descriptor.digest}", progress=progress)
            entry = {**_entry(image), "platform": msgspec.json.decode(msgspec.json.encode(platform))}
            if descriptor.annotations:
                entry["annotations"] = descriptor.annotations
            self._change(reference, partial(_put_entry, entry=entry))
        return self._store.indexes.get(reference)

    def annotate(self, name: str, image: str, changes: EntryChanges) -> ImageIndex:
        """Say something else of an image (by name, id or the digest of its manifest) of the index. Raises NotFound."""
        reference = _index_name(name)
        digest = self._digest(reference, image)

        def change(document: dict[str, Any]) -> None:
            for entry in document["manifests"]:
                if entry["digest"] == digest:
                    changes.apply(entry)

        return self._change(reference, change)

    def remove(self, name: str, image: str) -> ImageIndex:
        """Take an image (by name, id or the digest of its manifest) out of the index; the image stays. Raises NotFound."""
        reference = _index_name(name)
        digest = self._digest(reference, image)

        def change(document: dict[str, Any]) -> None:
            document["manifests"] = [entry for entry in document["manifests"] if entry["digest"] != digest]

        return self._change(reference, change)

    def delete(self, name: str) -> str:
        """Forget an index; its images stay. Returns its name. Raises NotFound."""
        reference = _index_name(name)
        self._store.indexes.remove(reference)
        return reference.familiar

    def get(self, name: str) -> ImageIndex:
        """One index. Raises NotFound."""
        return self._store.indexes.get(_index_name(name))

    def list(self) -> list_[ImageIndex]:
        """Every index, by name."""
        return self._store.indexes.list()

    def inspect(self, name: str) -> bytes:
        """The raw document of an index of this store, else of what a registry has under the name: index or manifest."""
        reference = Reference.parse(name.removeprefix("docker://"))
        if reference.digest is None and not name.startswith("docker://") and self._store.indexes.has(reference):
            return self._store.indexes.get(reference).document
        from bulle.registry.remote import fetch_document

        with self._images.configured(None) as configuration:
            return fetch_document(reference, configuration)[0]

    def push(self, name: str, destination: str = "", *, progress: ProgressCallback | None = None) -> Pushed:
        """Push every image of an index that is not there yet, then the index. Raises as :meth:`Images.push` does."""
        from bulle.engine.pushing import Push
        from bulle.registry.destination import Destination, Pushed

        index = self.get(name)
        reference = _index_name(destination) if destination else index.reference
        with self._images.configured(progress) as configuration, Destination(reference, configuration) as target:
            push = Push(self._store, self._database, target, configuration)
            for image_id in index.image_ids:
                push.image(self._store.images.get(image_id), "")
            # Images that were compressed on their way have another manifest now, which the index follows.
            index = self.get(name)
            target.put_manifest(index.document, index.media_type, reference.tag)
        return Pushed(reference, index.digest, len(index.document))

    def _is_image(self, reference: Reference) -> bool:
        try:
            return reference.canonical in self._store.images.get(reference.canonical).references
        except NotFound:
            return False

    def _image(self, name: str, platform: str, progress: ProgressCallback | None) -> Image:
        """An image of this store, or pulled. Raises InvalidInput for one that no index can name."""
        text = name.removeprefix("docker://")
        image = self._images.for_run(text, "missing", platform, progress)
        if image.host_binds:
            raise InvalidInput(f"{name} cannot be in an index", "it stands on directories of this machine", "push it alone, or commit it first")
        return image

    def _digest(self, reference: Reference, name: str) -> str:
        """The digest of the manifest in an index that a user means by a name. Raises NotFound."""
        known = {descriptor.digest for descriptor in self._store.indexes.get(reference).manifests}
        digest = name.rpartition("@")[2] if "@" in name else name
        if digest in known:
            return digest
        found = self._images.get(name.removeprefix("docker://")).manifest_digest
        if found not in known:
            raise NotFound(f"{name} is not in the index {reference.familiar}")
        return found

    def _change(self, reference: Reference, change: Callable[[dict[str, Any]], None]) -> ImageIndex:
        document = msgspec.json.decode(self._store.indexes.get(reference).document)
        change(document)
        return self._keep(reference, document)

    def _keep(self, reference: Reference, document: dict[str, Any]) -> ImageIndex:
        by_manifest = {image.manifest_digest: image.id for image in self._store.images.list()}
        ids = [by_manifest[entry["digest"]] for entry in document["manifests"] if entry["digest"] in by_manifest]
        if len(ids) != len(document["manifests"]):
            raise Conflict(f"the index {reference.familiar} changed meanwhile", "an image of it is not here any more", "add that image again")
        index = ImageIndex(reference, OCI_INDEX, msgspec.json.encode(document), tuple(ids))
        self._store.indexes.put(index)
        return index


def _index_name(text: str) -> Reference:
    reference = Reference.parse(text.removeprefix("docker://"))
    if reference.digest is not None:
        raise InvalidInput(f"{text!r} cannot be the name of an index", "a digest is not chosen, it follows from the content")
    return reference


def _entry(image: Image) -> dict[str, Any]:
    """What an index says of an image by itself."""
    platform = Platform(image.config.os or "linux", image.config.architecture, image.config.variant)
    descriptor = Descriptor(media_type=image.manifest_media_type, digest=image.manifest_digest, size=len(image.manifest), platform=platform)
    made: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(descriptor))
    return made


def _put_entry(document: dict[str, Any], entry: dict[str, Any]) -> None:
    """Put an entry into an index: in the place of the one for the same manifest, else at the end."""
    entries = document["manifests"]
    for position, one in enumerate(entries):
        if one["digest"] == entry["digest"]:
            entries[position] = entry
            return
    entries.append(entry)
