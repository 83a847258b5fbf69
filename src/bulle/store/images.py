"""The images of one home: committed in one transaction once their layers are there, found by name or id, removed when nothing needs them.

Called by the engine. :meth:`ImageStore.get` is on the path of ``run``: two queries, no files.
"""

from __future__ import annotations

import re
import sqlite3
import time
from builtins import list as list_
from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec

from bulle.errors import Conflict, CorruptImage, InvalidInput, InvalidReference, NotFound
from bulle.model.digest import Digest
from bulle.model.image import MANIFEST_MEDIA_TYPES, METADATA_LIMIT_BYTES, Descriptor, ImageConfig, Manifest, Platform
from bulle.model.platform import is_native, same
from bulle.model.reference import Reference
from bulle.records.database import Database
from bulle.records.images import ImageRecords, ImageRow
from bulle.records.registries import ArtifactRecords, ArtifactRow, IndexRecords
from bulle.store.artifacts import blobs_of, with_subject
from bulle.store.blobs import BlobStore
from bulle.store.indexes import with_manifest
from bulle.store.layers import LayerStore

_PREFIX = re.compile(r"(?:sha256:)?([0-9a-f]{1,64})")


class Image(msgspec.Struct, frozen=True):
    """One image of the store.

    ``references`` are canonical; ``layers`` are diff ids, ``blob_digests`` the same layers in the manifest, lowest first.
    """

    id: str
    manifest_digest: str
    manifest_media_type: str
    manifest: bytes
    config_raw: bytes
    config: ImageConfig
    created_at_ns: int
    size_bytes: int
    layers: tuple[Digest, ...]
    blob_digests: tuple[Digest, ...]
    references: tuple[str, ...]
    host_binds: tuple[str, ...] = ()


class ImageStore:
    """The images of ``home``."""

    def __init__(
        self, database: Database, layers: LayerStore, blobs: BlobStore, collect: Callable[[], int]
    ) -> None:
        self._database = database
        self._records = ImageRecords(database)
        self._layers = layers
        self._blobs = blobs
        self._collect = collect

    def commit(
        self,
        manifest: bytes,
        media_type: str,
        config: bytes,
        layers: Sequence[tuple[Digest, Digest]],
        references: Sequence[Reference] = (),
        host_binds: Sequence[str] = (),
        *,
        beside: bool = False,
    ) -> Image:
        """Make an image visible whose layers (blob digest, diff id; lowest first) were ingested. ``manifest`` and ``config`` are the raw bytes.

        An image that is here already only gets the new names, and the manifest if its own names blobs that are not kept. ``beside``: images for
        other platforms that have one of the names keep it. Raises CorruptImage when the three do not belong together, NotFound when a layer is
        missing.
        """
        diff_ids = tuple(str(diff_id) for _, diff_id in layers)
        image_id = check_documents(manifest, media_type, config, layers)
        self._layers.prepare([diff_id for _, diff_id in layers])
        names = [reference.canonical for reference in references]
        with self._database.transaction() as connection:
            if missing := self._records.missing_layers(connection, diff_ids):
                raise NotFound(f"no such layer: {missing[0]}", "", "pull the image again")
            existing = self._records.by_id(image_id)
            whole = existing is not None and all(self._blobs.has(Digest(blob)) for _, blob in existing.layers)
            if existing is None or not whole or tuple(host_binds) != existing.host_binds:
                row = ImageRow(
                    image_id, Digest.of(manifest), media_type, manifest, config, time.time_ns(), self._records.layers_size(connection, diff_ids),
                    tuple(host_binds), tuple((str(diff_id), str(blob)) for blob, diff_id in layers),
                )  # fmt: skip
                self._records.put(connection, row)
                if existing is not None:
                    self._follow(connection, existing, row)
            for name in names:
                self._name(connection, name, image_id, ImageConfig.parse(config).platform, beside=beside)
        return self.get(image_id)

    def _name(self, connection: sqlite3.Connection, name: str, image_id: str, platform: Platform, *, beside: bool) -> None:
        """Give an image a name; by itself the name means the one for this machine, else the one that got it last."""
        others = self._records.all_by_reference(name) if beside else []
        kept = [row.id for row in others if row.id != image_id and not same(_platform(row), platform)]
        first = image_id
        if not is_native(platform):
            first = next((row.id for row in others if row.id in kept and is_native(_platform(row))), image_id)
        self._records.tag_platforms(connection, name, first, [one for one in (image_id, *kept) if one != first])

    def settle(self, image: Image, manifest: bytes, media_type: str) -> Image:
        """Replace the manifest of an image by one that names other blobs of the same layers: those that a registry has been given.

        The image stays what it is (its id is the digest of its config); indexes and artifacts that name its manifest follow in the same
        transaction. Raises NotFound when it was removed meanwhile, Conflict when somebody else gave it another manifest, CorruptImage.
        """
        blobs = [descriptor.parsed_digest for descriptor in Manifest.parse(manifest).layers]
        check_documents(manifest, media_type, image.config_raw, list_(zip(blobs, image.layers, strict=True)))
        with self._database.transaction() as connection:
            existing = self._records.by_id(image.id)
            if existing is None:
                raise NotFound(f"no such image: {image.id}", "it was removed meanwhile")
            if existing.manifest_digest not in (image.manifest_digest, Digest.of(manifest)):
                raise Conflict(f"image {image.id} changed meanwhile", "another command gave it another manifest", "try again")
            layers = tuple((str(diff_id), str(blob)) for diff_id, blob in zip(image.layers, blobs, strict=True))
            row = replace(existing, manifest_digest=str(Digest.of(manifest)), manifest_media_type=media_type, manifest=manifest, layers=layers)
            self._records.put(connection, row)
            self._follow(connection, existing, row)
        return self.get(image.id)

    def _follow(self, connection: sqlite3.Connection, before: ImageRow, after: ImageRow) -> None:
        """Let everything that names the manifest of an image name its new one."""
        if before.manifest_digest == after.manifest_digest:
            return
        now = Descriptor(media_type=after.manifest_media_type, digest=after.manifest_digest, size=len(after.manifest))
        indexes, artifacts = IndexRecords(self._database), ArtifactRecords(self._database)
        for index in indexes.of_image(after.id):
            indexes.put(connection, replace(index, document=with_manifest(index.document, before.manifest_digest, now)))
        for artifact in artifacts.of_subject(before.manifest_digest):
            raw = with_subject(artifact.manifest, now)
            artifacts.remove(connection, artifact.digest)
            artifacts.add(connection, ArtifactRow(str(Digest.of(raw)), now.digest, raw), [blob.digest for blob in blobs_of(raw)])

    def get(self, name: str) -> Image:
        """The image that ``name`` means: a reference, an id, or an unambiguous beginning of an id. Raises NotFound, InvalidInput when ambiguous."""
        row = self._find(name)[0]
        return _image(row)

    def platforms(self, name: str) -> list_[Image]:
        """The images that ``name`` means, one for each platform, the one that it means by itself first. Raises as :meth:`get` does."""
        row, by_name = self._find(name)
        rows = self._records.all_by_reference(by_name.canonical) if by_name is not None else []
        return [_image(one) for one in rows] or [_image(row)]

    def list(self) -> list[Image]:
        """Every image, the newest first."""
        return [_image(row) for row in self._records.all()]

    def tag(self, image: Image, reference: Reference) -> None:
        """Give an image one more name; the name is taken from the image that had it."""
        if reference.digest is not None:
            raise InvalidInput(f"{reference.familiar!r} cannot be given to an image", "a digest is not chosen, it follows from the content")
        with self._database.transaction() as connection:
            if self._records.by_id(image.id) is None:
                raise NotFound(f"no such image: {image.id}")
            self._records.tag(connection, image.id, [reference.canonical])

    def untag(self, reference: Reference) -> None:
        """Take a name away; the image stays. Raises NotFound."""
        with self._database.transaction() as connection:
            if not self._records.untag(connection, [reference.canonical]):
                raise NotFound(f"no such image: {reference.familiar}")

    def remove(self, name: str, force: bool = False, *, in_use: str = "", image_id: str = "") -> list_[str]:
        """Remove a name, and with the last name the image and the layers that nothing else needs. Returns lines as Docker prints them.

        Of several images with the name it is taken from the one with ``image_id``.

        Raises Conflict when an index has it, and unless ``force`` when a container was made from it or it has names in several repositories;
        layers on which containers stand are kept in any case. ``in_use`` says why the image itself must stay, also with ``force``.
        """
        row, by_name = self._find(name)
        wanted = image_id or row.id
        with self._database.transaction() as connection:
            # Looked up again: since then another command may have moved the name or removed the image.
            current = self._records.by_id(wanted)
            if current is None or (by_name is not None and by_name.digest is None and by_name.canonical not in current.references):
                raise NotFound(f"no such image: {name}")
            row = current
            taken = _names_to_take(row, by_name)
            lines = [f"Untagged: {familiar(reference)}" for reference in taken]
            if len(taken) < len(row.references):
                self._records.untag_image(connection, row.id, taken)
                return lines
            if in_use:
                raise Conflict(f"cannot remove image {name}", in_use, f"undo that with `bulle image unmount {name}`")
            users = self._records.users(connection, row.id)
            if users and not force:
                why = f"container {users[0][1]} ({users[0][0][:12]}) uses it"
                raise Conflict(f"cannot remove image {name}", why, "remove the container, or use --force")
            repositories = {Reference.parse(reference).repository for reference in taken}
            if by_name is None and len(repositories) > 1 and not force:
                raise Conflict(f"cannot remove image {name}", "it has names in several repositories", "remove the names one by one, or use --force")
            if indexes := IndexRecords(self._database).of_image(row.id):
                index = familiar(indexes[0].reference)
                raise Conflict(f"cannot remove image {name}", f"the index {index} has it", f"remove that with `bulle manifest rm {index}`")
            self._records.delete(connection, row)
        self._collect()
        lines.append(f"Deleted: {row.id}")
        lines += [f"Deleted: {diff_id}" for diff_id, _ in reversed(row.layers) if not self._layers.has(Digest(diff_id))]
        return list(dict.fromkeys(lines))

    def _find(self, name: str) -> tuple[ImageRow, Reference | None]:
        """The row, and the reference when it was found by one."""
        try:
            reference = Reference.parse(name)
        except InvalidReference:
            reference = None
        row = None
        if reference is not None:
            row = self._records.by_reference(reference.canonical)
            if row is None and reference.digest is not None:
                row = self._records.by_repository_digest(reference.repository, reference.digest)
            if row is not None:
                return row, reference
        match = _PREFIX.fullmatch(name)
        if match is not None:
            ids = self._records.by_id_prefix(match[1])
            if len(ids) > 1:
                raise InvalidInput(f"{name!r} is ambiguous", "the ids of several images begin so", "give more digits")
            row = self._records.by_id(ids[0]) if ids else None
        if row is None:
            raise NotFound(f"no such image: {name}")
        return row, None


def familiar(canonical: str) -> str:
    """A canonical reference as people write it."""
    return Reference.parse(canonical).familiar


def _names_to_take(row: ImageRow, by_name: Reference | None) -> list[str]:
    """Which names go: all for an id; else the one given, and with the last tag of a repository also its digests."""
    if by_name is None or by_name.canonical not in row.references:
        return list(row.references)
    others = [reference for reference in row.references if reference != by_name.canonical]
    same = [reference for reference in others if Reference.parse(reference).repository == by_name.repository]
    return [by_name.canonical, *same] if all("@" in reference for reference in same) else [by_name.canonical]


def _image(row: ImageRow) -> Image:
    return Image(
        row.id, row.manifest_digest, row.manifest_media_type, row.manifest, row.config, ImageConfig.parse(row.config), row.created_at_ns,
        row.size_bytes, tuple(Digest(diff_id) for diff_id, _ in row.layers), tuple(Digest(blob) for _, blob in row.layers), row.references,
        row.host_binds,
    )  # fmt: skip


def _platform(row: ImageRow) -> Platform:
    return ImageConfig.parse(row.config).platform


def check_documents(manifest: bytes, media_type: str, config: bytes, layers: Sequence[tuple[Digest, Digest]]) -> str:
    """Refuse a manifest, config and layers that do not belong together; returns the image id."""
    image_id = str(Digest.of(config))
    if media_type not in MANIFEST_MEDIA_TYPES:
        raise CorruptImage("the image cannot be used", f"the media type of its manifest is {media_type[:100]!r}")
    if max(len(manifest), len(config)) > METADATA_LIMIT_BYTES:
        raise CorruptImage("the image cannot be used", f"its manifest or config is larger than {METADATA_LIMIT_BYTES} bytes")
    parsed = Manifest.parse(manifest)
    if parsed.config.digest != image_id:
        raise CorruptImage("the image's config is not the one that its manifest names", f"its digest is {image_id} instead of {parsed.config.digest}")
    if [descriptor.digest for descriptor in parsed.layers] != [str(blob) for blob, _ in layers]:
        raise CorruptImage("the image's layers are not those that its manifest names")
    if ImageConfig.parse(config).diff_ids != tuple(diff_id for _, diff_id in layers):
        raise CorruptImage("the image's layers are not those that its config names")
    return image_id
