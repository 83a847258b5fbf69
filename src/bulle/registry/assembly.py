"""From a descriptor to an image: fetch the documents, verify each, choose the platform, pair the layers.

The one path that OCI layouts, archives and registries share, so that none of them can forget a check. Where the bytes come from is behind
:class:`Contents`; what they may say is judged in ``documents``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from functools import partial

from bulle.errors import CorruptImage
from bulle.model.image import CONFIG_MEDIA_TYPES, INDEX_MEDIA_TYPES, METADATA_LIMIT_BYTES, Descriptor, ImageConfig, Index, Manifest, Platform
from bulle.model.reference import Reference
from bulle.registry import documents
from bulle.registry.transport import RemoteImage, RemoteLayer

_NESTING_LIMIT = 4


class Contents(ABC):
    """A place that keeps content by digest. What it returns is not trusted."""

    @abstractmethod
    def manifest(self, descriptor: Descriptor) -> bytes:
        """The bytes of a manifest or index, at most METADATA_LIMIT_BYTES."""

    @abstractmethod
    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """The bytes of a config or layer."""


def image_at(contents: Contents, descriptor: Descriptor, platform: Platform, references: tuple[Reference, ...], what: str) -> RemoteImage:
    """The image that a descriptor leads to, through as many indexes as are reasonable. Raises CorruptImage, NotFound."""
    for _ in range(_NESTING_LIMIT):
        check_document_size(descriptor, what)
        raw = contents.manifest(descriptor)
        documents.check_content(raw, descriptor.parsed_digest, descriptor.size, f"the manifest of {what}")
        media_type = documents.kind_of(raw, descriptor.media_type, what)
        if media_type not in INDEX_MEDIA_TYPES:
            return image_from(contents, raw, media_type, references, what)
        descriptor = documents.choose(Index.parse(raw), platform, what)
    raise CorruptImage(f"{what} cannot be used", "its indexes are nested too deeply")


def image_from(contents: Contents, raw: bytes, media_type: str, references: tuple[Reference, ...], what: str) -> RemoteImage:
    """The image of a manifest whose bytes are verified already."""
    manifest = Manifest.parse(raw)
    check_document_size(manifest.config, what)
    if manifest.config.media_type not in CONFIG_MEDIA_TYPES:
        # Said before its config is fetched and found not to be one.
        documents.layers_of(manifest, ImageConfig(), what)
    config_raw = b"".join(bounded(contents.blob(manifest.config), manifest.config.size, f"the config of {what}"))
    documents.check_content(config_raw, manifest.config.parsed_digest, manifest.config.size, f"the config of {what}")
    pairs = documents.layers_of(manifest, ImageConfig.parse(config_raw), what)
    layers = []
    for number, (descriptor, diff_id) in enumerate(pairs, 1):
        name = f"layer {number} of {what}"
        layers.append(RemoteLayer(descriptor, diff_id, partial(_open, contents, descriptor, name)))
    return RemoteImage(raw, media_type, config_raw, tuple(layers), references)


def _open(contents: Contents, descriptor: Descriptor, name: str) -> Iterator[bytes]:
    return bounded(contents.blob(descriptor), descriptor.size, name)


def check_document_size(descriptor: Descriptor, what: str) -> None:
    """Refuse a manifest or config that claims to be huge before any of it is read."""
    if descriptor.size > METADATA_LIMIT_BYTES:
        raise CorruptImage(f"{what} cannot be used", f"one of its documents claims {descriptor.size} bytes, at most {METADATA_LIMIT_BYTES} are read")


def bounded(chunks: Iterable[bytes], size: int, what: str) -> Iterator[bytes]:
    """Pass on exactly ``size`` bytes; CorruptImage as soon as there are more, or where they end early."""
    left = size
    for chunk in chunks:
        left -= len(chunk)
        if left < 0:
            raise CorruptImage(f"{what} is corrupt", f"it is longer than the {size} bytes that it should have")
        yield chunk
    if left:
        raise CorruptImage(f"{what} is truncated", f"it has {size - left} of {size} bytes")
