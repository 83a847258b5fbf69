"""Judges the JSON documents of an image that came from outside: are they what they were called, and do they fit each other?

Every source ends here before it hands out an image, so the checks are the same whichever way an image came. Syntax is the model's business
(``model.image``), the bytes of layers are the store's; nothing here reads files or talks to anyone. Image specification 1.1; the rule against
documents that are manifest and index at once is CVE-2021-41190's.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from bulle.errors import CorruptImage, NotFound
from bulle.model.digest import Digest
from bulle.model.image import (
    CONFIG_MEDIA_TYPES,
    DOCKER_MANIFEST,
    INDEX_MEDIA_TYPES,
    LAYER_COMPRESSIONS,
    MANIFEST_MEDIA_TYPES,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    Platform,
)
from bulle.model.platform import variant_of

ACCEPT = ", ".join((OCI_INDEX, "application/vnd.docker.distribution.manifest.list.v2+json", OCI_MANIFEST, DOCKER_MANIFEST))
"""What a client asks a registry for, best first."""

LAYERS_LIMIT = 500
"""More layers than overlayfs can stack."""


class _Fields(msgspec.Struct, rename="camel"):
    """Which parts a document has, whatever they hold."""

    media_type: str | None = None
    schema_version: int | None = None
    manifests: Any = None
    layers: Any = None
    config: Any = None


def check_content(raw: bytes, digest: Digest, size: int, what: str) -> None:
    """Raise CorruptImage unless the bytes have this digest and size (-1: unknown)."""
    if size not in (-1, len(raw)):
        raise CorruptImage(f"{what} is corrupt", f"it has {len(raw)} bytes instead of {size}")
    found = hashlib.new(digest.algorithm, raw).hexdigest()
    if found != digest.encoded:
        raise CorruptImage(f"{what} is corrupt", f"its digest is {digest.algorithm}:{found} instead of {digest}")


def kind_of(raw: bytes, claimed: str, what: str) -> str:
    """The media type of a manifest or index, once the document agrees with what it was called (``claimed``, "" where nobody said).

    Raises CorruptImage for a document that lies about its type, that is both at once, or that is of an obsolete or foreign kind.
    """
    try:
        fields = msgspec.json.decode(raw, type=_Fields)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptImage(f"{what} has an unusable manifest", str(error)) from None
    if fields.schema_version == 1:
        raise CorruptImage(f"{what} cannot be used", "its manifest is of the obsolete schema 1", "push it again with a current tool")
    claimed = claimed.partition(";")[0].strip().lower()
    known = MANIFEST_MEDIA_TYPES | INDEX_MEDIA_TYPES
    if claimed in known and fields.media_type and fields.media_type != claimed:
        raise CorruptImage(f"{what} has an unusable manifest", f"it is announced as {claimed} and says of itself {fields.media_type}")
    media_type = fields.media_type or (claimed if claimed in known else "")
    if not media_type:
        media_type = OCI_INDEX if fields.manifests is not None else OCI_MANIFEST
    if media_type not in known:
        raise CorruptImage(f"{what} is not a container image", f"its media type is {media_type[:100]!r}")
    if fields.manifests is not None and (fields.layers is not None or fields.config is not None):
        raise CorruptImage(f"{what} has an unusable manifest", "it claims to be a manifest and an index at once")
    if (media_type in INDEX_MEDIA_TYPES) != (fields.manifests is not None):
        raise CorruptImage(f"{what} has an unusable manifest", f"its content does not fit its media type {media_type}")
    return media_type


def choose(index: Index, wanted: Platform, what: str) -> Descriptor:
    """The manifest of an index that fits the platform best. Raises NotFound, naming what there is."""
    best: tuple[int, Descriptor] | None = None
    for descriptor in index.manifests:
        if descriptor.media_type and descriptor.media_type not in MANIFEST_MEDIA_TYPES | INDEX_MEDIA_TYPES:
            continue
        score = _fitness(descriptor.platform, wanted)
        if score and (best is None or score > best[0]):
            best = (score, descriptor)
    if best is not None:
        return best[1]
    offered = sorted({str(item.platform) for item in index.manifests if item.platform and item.platform.os not in ("", "unknown")})
    details = f"it exists for {', '.join(offered[:20])}" if offered else "its index names no platform"
    raise NotFound(f"{what} does not exist for {wanted}", details)


def _fitness(offered: Platform | None, wanted: Platform) -> int:
    """How well a platform fits, 0 for not at all."""
    if offered is None or offered.os != wanted.os or offered.architecture != wanted.architecture:
        return 0
    ours, theirs = variant_of(wanted), variant_of(offered)
    if ours == theirs:
        return 100
    if not theirs:
        return 50
    if wanted.architecture == "arm" and ours[1:].isdigit() and theirs[1:].isdigit():
        # An older variant runs on a newer processor.
        return int(theirs[1:]) if int(theirs[1:]) < int(ours[1:]) else 0
    if not ours:
        # amd64 without a variant is v1; nothing newer may be assumed.
        return 40 if theirs in ("v1", "v7") else 0
    return 0


def layers_of(manifest: Manifest, config: ImageConfig, what: str) -> list[tuple[Descriptor, Digest]]:
    """Each layer of a manifest with its diffID, lowest first, once manifest and config agree.

    An image without any layer is only valid where both say so. Raises CorruptImage.
    """
    if manifest.config.media_type not in CONFIG_MEDIA_TYPES:
        kind = manifest.artifact_type or manifest.config.media_type
        raise CorruptImage(f"{what} is not a container image", f"it is an artifact of type {kind[:100]!r}")
    if config.rootfs.type != "layers":
        raise CorruptImage(f"{what} cannot be used", f"its config has a root file system of type {config.rootfs.type[:100]!r}")
    diff_ids = config.diff_ids
    if len(diff_ids) != len(manifest.layers):
        count = len(manifest.layers)
        raise CorruptImage(f"{what} is corrupt", f"its manifest has {count or 'no'} layer{'s' * (count != 1)}, its config names {len(diff_ids)}")
    if not diff_ids and not (config.os and config.architecture):
        raise CorruptImage(f"{what} is not an image", "it has no layers")
    if len(diff_ids) > LAYERS_LIMIT:
        raise CorruptImage(f"{what} cannot be used", f"it has {len(diff_ids)} layers, at most {LAYERS_LIMIT} can be stacked")
    for layer in manifest.layers:
        if layer.media_type not in LAYER_COMPRESSIONS:
            raise CorruptImage(f"{what} cannot be used", f"one of its layers is of the unknown type {layer.media_type[:100]!r}")
    return list(zip(manifest.layers, diff_ids, strict=True))


def make_manifest(config: bytes, layers: list[tuple[Digest, int]], compressions: list[str] | None = None) -> bytes:
    """An OCI manifest for layers that came without one: (blob digest, size) each, uncompressed unless told otherwise ("gzip", "zstd")."""
    suffixes = [f"+{name}" if name else "" for name in compressions or [""] * len(layers)]
    return msgspec.json.encode({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": str(Digest.of(config)), "size": len(config)},
        "layers": [
            {"mediaType": OCI_LAYER + suffix, "digest": str(digest), "size": size} for (digest, size), suffix in zip(layers, suffixes, strict=True)
        ],
    })
