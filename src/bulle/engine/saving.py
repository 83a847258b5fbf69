"""From images in the store to an archive: what the writers of the registry room take, made of what the store keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO

from bulle.errors import InvalidInput
from bulle.model.digest import Digest
from bulle.model.image import Manifest
from bulle.model.reference import Reference
from bulle.registry.saved import SavedImage, SavedLayer
from bulle.registry.self_contained import self_contained
from bulle.registry.writers import write_docker_archive, write_oci_archive
from bulle.store import Image, Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from bulle.registry.progress import ProgressCallback

FORMATS = {"docker-archive": write_docker_archive, "oci-archive": write_oci_archive}


def save_images(
    store: Store, images: Sequence[tuple[Image, tuple[Reference, ...]]], out: BinaryIO, form: str, progress: ProgressCallback | None = None
) -> None:
    """Write images with the names that each is to keep, as one archive. Raises InvalidInput for an unknown form."""
    from bulle.registry.progress import silent

    writer = FORMATS.get(form)
    if writer is None:
        raise InvalidInput(f"there is no archive format {form!r}", "", f"use one of {', '.join(FORMATS)}")
    report = progress or silent
    writer([self_contained(saved_image(store, image, names), progress=report) for image, names in images], out, progress=report)


def saved_image(store: Store, image: Image, names: tuple[Reference, ...]) -> SavedImage:
    """One image as the writers want it."""
    layers = []
    for descriptor, diff_id in zip(Manifest.parse(image.manifest).layers, image.layers, strict=True):
        blob = descriptor.parsed_digest
        open_blob = _opener(store, blob) if store.blobs.has(blob) else None
        layers.append(SavedLayer.of_files(descriptor, diff_id, _tar_opener(store, diff_id), open_blob))
    return SavedImage(image.manifest, image.manifest_media_type, image.config_raw, tuple(layers), names, image.host_binds)


def _opener(store: Store, digest: Digest) -> Callable[[], BinaryIO]:
    return lambda: store.blobs.open(digest)


def _tar_opener(store: Store, diff_id: Digest) -> Callable[[], BinaryIO]:
    return lambda: store.layers.export_tar(diff_id)
