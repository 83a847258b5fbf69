"""``docker-archive:FILE``: what ``docker save`` writes, in all its generations.

A ``manifest.json`` lists for each image its config, its layer tars and its tags. Old archives have one directory per layer and links between repeated
layers; newer ones are OCI layouts at the same time, whose raw manifests are then kept as they are. Where there is none, a manifest is made for the
layers as they lie in the archive. Some tools compress the layers: the first bytes tell.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from functools import partial

import msgspec

from bulle.errors import BulleError, CorruptImage, InvalidReference
from bulle.model.digest import Digest
from bulle.model.image import INDEX_MEDIA_TYPES, METADATA_LIMIT_BYTES, OCI_MANIFEST, Descriptor, ImageConfig, Index, Manifest, Platform
from bulle.model.reference import Reference
from bulle.registry import documents
from bulle.registry.archive import Archive, growth_limit, safe_name
from bulle.registry.assembly import bounded
from bulle.registry.compression import decompress, detect
from bulle.registry.oci_layout import blob_path
from bulle.registry.transport import RemoteImage, RemoteLayer, Source

_IMAGES_LIMIT = 1000
_DIGEST_NAME = re.compile(r"(?:blobs/sha256/)?([0-9a-f]{64})(?:\.json)?")


class _Entry(msgspec.Struct, rename="pascal"):
    """One image in ``manifest.json``."""

    config: str
    layers: tuple[str, ...] | None = None
    repo_tags: tuple[str, ...] | None = None


class DockerArchive(Source):
    """The images of one archive, which it then owns."""

    def __init__(self, archive: Archive, platform: Platform) -> None:
        self._archive = archive
        self._platform = platform
        self._name = archive.name
        self._kept = self._raw_manifests()

    def close(self) -> None:
        self._archive.close()

    def images(self) -> Iterator[RemoteImage]:
        raw = self._archive.read("manifest.json", METADATA_LIMIT_BYTES)
        try:
            entries = msgspec.json.decode(raw, type=tuple[_Entry, ...])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise CorruptImage(f"{self._name} is not usable", f"its manifest.json is wrong ({error})") from None
        if not entries:
            raise CorruptImage(f"{self._name} is not usable", "its manifest.json names no image")
        if len(entries) > _IMAGES_LIMIT:
            raise CorruptImage(f"{self._name} is refused", f"it has more than {_IMAGES_LIMIT} images")
        for entry in entries:
            yield self._image(entry)

    def _image(self, entry: _Entry) -> RemoteImage:
        references = tuple(self._reference(tag) for tag in entry.repo_tags or ())
        what = str(references[0]) if references else f"an image in {self._name}"
        config_name = safe_name(entry.config.encode(), self._name)
        config = self._archive.read(config_name, METADATA_LIMIT_BYTES)
        named = _DIGEST_NAME.fullmatch(config_name)
        if named:
            documents.check_content(config, Digest.parse(f"sha256:{named[1]}"), -1, f"the config of {what}")
        names = [safe_name(name.encode(), self._name) for name in entry.layers or ()]
        diff_ids = ImageConfig.parse(config).diff_ids
        if len(diff_ids) != len(names):
            count = len(names)
            raise CorruptImage(f"{what} is corrupt", f"the archive lists {count or 'no'} layer{'s' * (count != 1)}, its config names {len(diff_ids)}")
        kept = self._kept.get(Digest.of(config))
        if kept is not None:
            manifest, media_type = kept
            names = [blob_path(layer.parsed_digest) for layer in Manifest.parse(manifest).layers]
            unpacked = [""] * len(names)
        else:
            media_type = OCI_MANIFEST
            manifest, unpacked = self._make_manifest(config, names, diff_ids, what)
        layers = []
        for number, ((descriptor, diff_id), name, compression) in enumerate(
            zip(documents.layers_of(Manifest.parse(manifest), ImageConfig.parse(config), what), names, unpacked, strict=True), 1
        ):
            opened = partial(self._open, name, compression, descriptor, f"layer {number} of {what}")
            layers.append(RemoteLayer(descriptor, diff_id, opened))
        return RemoteImage(manifest, media_type, config, tuple(layers), references)

    def _open(self, name: str, compression: str, descriptor: Descriptor, what: str) -> Iterator[bytes]:
        chunks = self._archive.chunks(name)
        if compression in ("xz", "bzip2"):
            chunks = decompress(chunks, compression, what)  # type: ignore[arg-type]
        return bounded(chunks, descriptor.size, what)

    def _make_manifest(self, config: bytes, names: list[str], diff_ids: tuple[Digest, ...], what: str) -> tuple[bytes, list[str]]:
        """A manifest for the layers as they lie there, and which of them must be unpacked on the way (no media type stands for xz)."""
        blobs: list[tuple[Digest, int]] = []
        compressions: list[str] = []
        unpacked: list[str] = []
        for name, diff_id in zip(names, diff_ids, strict=True):
            compression = detect(self._archive.head(name))
            if not compression:
                blobs.append((diff_id, self._archive.size(name)))
            elif compression in ("gzip", "zstd"):
                digest, size = _measure(self._archive.chunks(name), self._archive.size(name), what)
                blobs.append((digest, size))
            else:
                limit = growth_limit(self._archive.size(name))
                _, size = _measure(decompress(self._archive.chunks(name), compression, what), limit, what)
                blobs.append((diff_id, size))
            compressions.append(compression if compression in ("gzip", "zstd") else "")
            unpacked.append(compression)
        return documents.make_manifest(config, blobs, compressions), unpacked

    def _reference(self, tag: str) -> Reference:
        try:
            reference = Reference.parse(tag)
        except InvalidReference as error:
            raise CorruptImage(f"{self._name} is not usable", f"it names an image {tag[:200]!r}, which is not a valid name") from error
        if reference.digest is not None:
            raise CorruptImage(f"{self._name} is not usable", f"it tags an image {tag[:200]!r}, which names a digest")
        return reference

    def _raw_manifests(self) -> dict[Digest, tuple[bytes, str]]:
        """The manifests of an archive that is an OCI layout too, by the digest of their config, as far as all their blobs are there.

        Only a bonus: whatever is wrong with that half of the archive is no reason to refuse the other.
        """
        found: dict[Digest, tuple[bytes, str]] = {}
        if not self._archive.has("index.json"):
            return found
        try:
            pending = list(Index.parse(self._archive.read("index.json", METADATA_LIMIT_BYTES)).manifests)[:_IMAGES_LIMIT]
            for _ in range(_IMAGES_LIMIT):
                if not pending:
                    break
                descriptor = pending.pop()
                path = blob_path(descriptor.parsed_digest)
                if not self._archive.has(path):
                    continue
                raw = self._archive.read(path, METADATA_LIMIT_BYTES)
                documents.check_content(raw, descriptor.parsed_digest, descriptor.size, path)
                media_type = documents.kind_of(raw, descriptor.media_type, path)
                if media_type in INDEX_MEDIA_TYPES:
                    pending += Index.parse(raw).manifests
                    continue
                manifest = Manifest.parse(raw)
                if all(self._holds(layer) for layer in manifest.layers):
                    found[manifest.config.parsed_digest] = raw, media_type
        except BulleError:
            return {}
        return found

    def _holds(self, layer: Descriptor) -> bool:
        path = blob_path(layer.parsed_digest)
        return self._archive.has(path) and self._archive.size(path) == layer.size


def _measure(chunks: Iterator[bytes], limit: int, what: str) -> tuple[Digest, int]:
    """The sha256 digest and the length of a stream of at most ``limit`` bytes."""
    digest, size = hashlib.sha256(), 0
    for chunk in chunks:
        digest.update(chunk)
        size += len(chunk)
        if size > limit:
            raise CorruptImage(f"{what} is refused", f"one of its layers decompresses to more than {limit} bytes")
    return Digest(f"sha256:{digest.hexdigest()}"), size
