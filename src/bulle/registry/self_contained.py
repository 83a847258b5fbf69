"""Makes an image that stands on directories of this machine (``host``) stand on its own: each such directory becomes a layer.

For ``save``, and for whoever copies the image (commit, FROM). The directories are read twice, once to learn their digest; files that this user may
not read are left out and reported as steps, because a copy of /usr without one setuid program is still of use.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from bulle.errors import CorruptImage
from bulle.model.digest import Digest
from bulle.model.image import OCI_LAYER, OCI_MANIFEST, Descriptor
from bulle.registry import documents
from bulle.registry.generated import again, measure
from bulle.registry.progress import Progress, ProgressCallback, silent
from bulle.registry.saved import SavedImage, SavedLayer
from bulle.registry.tree import tar_stream


def self_contained(image: SavedImage, *, progress: ProgressCallback = silent) -> SavedImage:
    """The image with its host directories as layers on top; itself where it has none. Its id changes. Raises NotFound, Conflict, BulleError."""
    if not image.host_binds:
        return image
    layers = list(image.layers)
    config = _decode(image.config)
    history = config.get("history") or []
    for bind in image.host_binds:
        layer = layer_of_directory(bind, progress)
        layers.append(layer)
        config["rootfs"]["diff_ids"].append(str(layer.diff_id))
        history.append({"created": config.get("created"), "created_by": f"copy of {bind}"})
    config["history"] = history
    raw = msgspec.json.encode(config)
    plain = [(layer.diff_id, layer.tar_bytes) for layer in layers]
    return SavedImage(documents.make_manifest(raw, plain), OCI_MANIFEST, raw, tuple(_plain(layer) for layer in layers), image.references)


def layer_of_directory(path: str, progress: ProgressCallback = silent) -> SavedLayer:
    """An uncompressed layer with one absolute host directory at its own place."""
    left_out: set[str] = set()

    def unreadable(file: str, error: OSError) -> None:
        if file not in left_out:
            left_out.add(file)
            progress(Progress("step", path, message=f"left out {file}: {error.strerror}"))

    produce = partial(tar_stream, Path(path), path.strip("/"), unreadable=unreadable)
    diff_id, size = measure(produce(), path, progress)
    return SavedLayer(Descriptor(media_type=OCI_LAYER, digest=str(diff_id), size=size), diff_id, size, partial(again, produce, diff_id, path))


def _plain(layer: SavedLayer) -> SavedLayer:
    descriptor = Descriptor(media_type=OCI_LAYER, digest=str(layer.diff_id), size=layer.tar_bytes)
    return SavedLayer(descriptor, layer.diff_id, layer.tar_bytes, layer.open_tar)


def _decode(raw: bytes) -> dict[str, Any]:
    """A config with all its fields, also those that the model does not know."""
    config = msgspec.json.decode(raw)
    if not isinstance(config, dict) or not isinstance(config.get("rootfs"), dict) or not isinstance(config["rootfs"].get("diff_ids"), list):
        raise CorruptImage(f"the config {Digest.of(raw).short} cannot be used", "it has no rootfs")
    return config
