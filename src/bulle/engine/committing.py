"""``commit`` and ``import``: images that are made here, of what a container changed or of a tar.

Both keep one layer, write a configuration and a manifest, and commit them as if they had come from elsewhere; until then nothing is visible.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from bulle.engine.changes import keep_changes
from bulle.engine.config_changes import apply_changes
from bulle.engine.events import publish_image
from bulle.engine.inner_worker import require_writable_layer
from bulle.engine.pausing import standing_still
from bulle.errors import InvalidInput
from bulle.model.digest import Digest
from bulle.model.image import LAYER_COMPRESSIONS, OCI_MANIFEST, Manifest
from bulle.model.platform import parse_platform
from bulle.model.reference import Reference
from bulle.monitor.logs import timestamp
from bulle.records.events import publish_container
from bulle.store import Image, Store

if TYPE_CHECKING:
    from bulle.engine.container import Container

_CHUNK_BYTES = 1 << 20
_NOTHING = Digest.of(bytes(1024))  # the layer that has no member


class Base(msgspec.Struct, frozen=True):
    """What a new image stands on: its configuration as JSON, and blobs (digest, bytes, compression) with their layers, lowest first."""

    config: dict[str, Any]
    blobs: tuple[tuple[Digest, int, str], ...] = ()
    layers: tuple[Digest, ...] = ()
    host_binds: tuple[str, ...] = ()


def commit_container(
    store: Store,
    image: Image | None,
    container: Container,
    reference: Reference | None,
    *,
    author: str = "",
    message: str = "",
    changes: Sequence[str] = (),
    pause: bool = True,
) -> tuple[Image, tuple[str, ...]]:
    """Make an image of a container as it is; ``image`` is the one it was made from (None: gone meanwhile). Returns also what was weaker than asked.

    Raises InvalidInput (a change that is none), Unsupported.
    """
    base = _base_of(store, image, container)
    runtime = base.config["config"] = {**(base.config.get("config") or {}), **_as_it_runs(container)}
    apply_changes(runtime, list(changes))
    notes: list[str] = []
    require_writable_layer(container.plan)
    with store.receiving():
        store.layers.keep(base.layers)
        with standing_still(store.home, container, notes) if pause and container.plan.guest is None else nullcontext():
            layer = keep_changes(store, container.plan)
        step = {"created_by": " ".join(container.options.command), "author": author, "comment": message}
        made = _commit(store, base, None if layer.diff_id == _NOTHING else (layer.diff_id, layer.size_bytes), step, reference)
    more = {"comment": message, "imageID": made.id, "imageRef": reference.familiar if reference else ""}
    publish_container(container.directory, "commit", **more)
    return made, tuple(notes)


def import_tar(
    store: Store,
    stream: BinaryIO,
    source: str,
    reference: Reference | None,
    *,
    message: str = "",
    changes: Sequence[str] = (),
    platform: str = "",
) -> Image:
    """Make an image of one layer of a tar of a root filesystem, compressed or not; ``source`` is where it comes from, for its history.

    Raises CorruptImage, InvalidInput, StorageFull; then nothing is left.
    """
    from bulle.registry.compression import decompress_bounded, detect

    wanted = parse_platform(platform)
    base = Base({"architecture": wanted.architecture, "os": wanted.os, "config": {}})
    if wanted.variant and wanted.variant != "v8":
        base.config["variant"] = wanted.variant
    apply_changes(base.config["config"], list(changes))
    head = stream.read(_CHUNK_BYTES)
    if not head:
        raise InvalidInput(f"nothing can be imported from {source}", "it is empty")
    try:
        with store.receiving():
            layer = store.layers.add(decompress_bounded(_chunks(head, stream), detect(head), source))
            with store.layers.view([layer.diff_id]) as view:
                empty = view.root is None or not view.children(view.root)
            if empty:
                raise InvalidInput(f"nothing can be imported from {source}", "the archive holds no file")
            made = _commit(store, base, (layer.diff_id, layer.size_bytes), {"comment": message or f"Imported from {source}"}, reference)
    except BaseException:
        store.gc()
        raise
    publish_image(store.home, "import", made)
    return made


def _base_of(store: Store, image: Image | None, container: Container) -> Base:
    plan = container.plan
    if image is not None:
        descriptors = Manifest.parse(image.manifest).layers
        blobs = tuple((one.parsed_digest, one.size, LAYER_COMPRESSIONS[one.media_type].replace("none", "")) for one in descriptors)
        # What it wrote before it came to another level, or to a snapshot, are layers of its own upon the image's.
        own = tuple(Digest(layer.diff_id) for layer in plan.root.layers[len(image.layers) :])
        blobs = (*blobs, *((layer, store.layers.size(layer), "") for layer in own))
        return Base(msgspec.json.decode(image.config_raw), blobs, (*image.layers, *own), image.host_binds)
    # Its image was removed by force: its layers are still here, as long as it stands on them.
    layers = tuple(Digest(layer.diff_id) for layer in plan.root.layers)
    platform = parse_platform(plan.platform)
    config = {"architecture": platform.architecture, "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": list(map(str, layers))}}
    return Base(config, tuple((layer, store.layers.size(layer), "") for layer in layers), layers, plan.root.host_binds)


def _as_it_runs(container: Container) -> dict[str, Any]:
    """The part of a configuration that Docker takes from the container and not from its image."""
    options, process = container.options, container.plan.process
    own = {one.partition("=")[0] for one in options.environment}
    environment = [one for one in process.environment if one.partition("=")[0] in own or not one.startswith("HOSTNAME=")]
    found: dict[str, Any] = {
        "Env": environment,
        "Cmd": list(options.command) or None,
        "Entrypoint": list(options.entrypoint or ()) or None,
        "User": process.user,
        "WorkingDir": process.working_directory if process.working_directory != "/" or options.working_directory else "",
        "Labels": options.labels or None,
    }
    if options.stop_signal:
        found["StopSignal"] = options.stop_signal
    return found


def _commit(store: Store, base: Base, layer: tuple[Digest, int] | None, step: dict[str, str], reference: Reference | None) -> Image:
    from bulle.registry.documents import make_manifest

    moment = timestamp(time.time_ns())
    blobs = [*base.blobs, *([(*layer, "")] if layer else [])]
    layers = [*base.layers, *([layer[0]] if layer else [])]
    history = list(base.config.get("history") or [])
    mentioned = sum(1 for one in history if not one.get("empty_layer"))
    history = [*({} for _ in range(len(base.layers) - mentioned)), *history]
    entry: dict[str, Any] = {"created": moment, **{key: value for key, value in step.items() if value}}
    document = {
        **base.config,
        "created": moment,
        "rootfs": {"type": "layers", "diff_ids": list(map(str, layers))},
        "history": [*history, entry if layer else {**entry, "empty_layer": True}],
    }
    for gone in ("id", "parent", "container", "container_config", "author"):
        document.pop(gone, None)
    if step.get("author"):
        document["author"] = step["author"]
    config = msgspec.json.encode(document)
    manifest = make_manifest(config, [(digest, size) for digest, size, _ in blobs], [compression for _, _, compression in blobs])
    pairs = [(digest, diff_id) for (digest, _, _), diff_id in zip(blobs, layers, strict=True)]
    made = store.images.commit(manifest, OCI_MANIFEST, config, pairs, [reference] if reference else (), host_binds=base.host_binds)
    if reference is not None:
        publish_image(store.home, "tag", made, reference.canonical)
    return made


def _chunks(head: bytes, stream: BinaryIO) -> Iterator[bytes]:
    while head:
        yield head
        head = stream.read(_CHUNK_BYTES)


def parse_target(name: str) -> Reference | None:
    """The name that a new image is to get; None for none. Raises InvalidReference, InvalidInput for a digest."""
    if not name:
        return None
    reference = Reference.parse(name)
    if reference.digest is not None:
        raise InvalidInput(f"{name!r} cannot be given to an image", "a digest is not chosen, it follows from the content")
    return reference


