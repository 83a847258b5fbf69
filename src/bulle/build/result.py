"""The image that a stage is: its config and manifest, and its place in the store under the names that were asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from bulle.build.options import BuildOptions
from bulle.build.outputs import write_output
from bulle.build.package_lists import attach_packages
from bulle.build.state import StageState
from bulle.engine import Engine
from bulle.engine.events import publish_image
from bulle.errors import InvalidInput, NotFound
from bulle.model.digest import Digest
from bulle.model.image import LAYER_COMPRESSIONS, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from bulle.model.reference import Reference
from bulle.store import Image


def finish(engine: Engine, state: StageState, options: BuildOptions, latest_ns: int | None, keep: Callable[[], None]) -> Image:
    """The image, visible in the store unless it goes elsewhere only, and written where it was asked for.

    The same layers and settings give the same image, byte for byte. ``keep`` keeps the state's layers: an image that is here already does so itself.
    """
    if not state.layers:
        raise InvalidInput("the image would be empty", "no instruction made a layer", "COPY something into it")
    for item in options.labels:
        name, _, value = item.partition("=")
        state.change(labels={**(state.config.labels or {}), name: value})
    if latest_ns is not None:
        state.created_ns = latest_ns
    config = msgspec.json.encode(state.image_config())
    references = [Reference.parse(tag) for tag in options.tags]
    layers = [(blob, diff_id) for (blob, _size, _type), diff_id in zip(state.blobs, state.layers, strict=True)]
    raw = manifest(state, config, options)
    known = _known(engine, Digest.of(config), references, state.host_binds) if keeps(options) and not options.annotations else None
    if known is not None:
        image = known
    elif keeps(options):
        keep()
        for reference in references:
            if engine.store.indexes.has(reference):  # a name means one thing, and now this
                engine.indexes.delete(reference.canonical)
        image = engine.store.images.commit(raw, OCI_MANIFEST, config, layers, references, host_binds=state.host_binds)
        for reference in references:
            publish_image(engine.home, "tag", image, reference.canonical)
    else:
        keep()
        image = Image(
            id=str(Digest.of(config)),
            manifest_digest=str(Digest.of(raw)),
            manifest_media_type=OCI_MANIFEST,
            manifest=raw,
            config_raw=config,
            config=state.image_config(),
            created_at_ns=state.created_ns,
            size_bytes=sum(engine.store.layers.size(layer) for layer in state.layers),
            layers=tuple(state.layers),
            blob_digests=tuple(blob for blob, _ in layers),
            references=(),
            host_binds=state.host_binds,
        )
    if options.sbom:
        attach_packages(engine, image, references[0].familiar if references else "", options.sbom, state.created_ns // 1_000_000_000)
    for output in options.outputs:
        if output.type != "image":
            write_output(engine, image, output, tuple(references))
    return image


def _known(engine: Engine, image_id: Digest, references: list[Reference], host_binds: tuple[str, ...]) -> Image | None:
    """The image, where it is here already under all its names and alone: a build of which everything is cached then writes nothing."""
    try:
        image = engine.store.images.get(image_id)
    except NotFound:
        return None
    whole = image.host_binds == host_binds and {reference.canonical for reference in references} <= set(image.references)
    alone = whole and all(len(engine.store.images.platforms(reference.canonical)) == 1 for reference in references)
    return image if alone else None


def keeps(options: BuildOptions) -> bool:
    """Whether the image goes into the store."""
    return not options.outputs or any(output.type == "image" for output in options.outputs)


def manifest(state: StageState, config: bytes, options: BuildOptions) -> bytes:
    """The manifest as raw bytes; layers of the base keep the blobs that they came as."""
    annotations = dict(item.partition("=")[::2] for item in options.annotations)
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": str(Digest.of(config)), "size": len(config)},
        "layers": [{"mediaType": _oci(media_type), "digest": str(digest), "size": size} for digest, size, media_type in state.blobs],
    }
    if annotations:
        document["annotations"] = annotations
    return msgspec.json.encode(document)


def _oci(media_type: str) -> str:
    """A layer's media type in an OCI manifest: Docker's are the same under other names."""
    compression = LAYER_COMPRESSIONS.get(media_type, "none")
    return OCI_LAYER if compression == "none" else f"{OCI_LAYER}+{compression}"
