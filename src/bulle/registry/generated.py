"""Images that are made here rather than fetched: one layer whose bytes can be produced again at will, a config and a manifest for it.

Shared by ``dir:``, ``host`` and ``deb:``. A manifest names its layer by digest, so the bytes are produced twice: once to be measured, once for the
store. If they differ in between (someone works in the directory), that is said instead of "corrupt".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial

import msgspec

from bulle.errors import Conflict
from bulle.model.digest import Digest
from bulle.model.image import OCI_LAYER, OCI_MANIFEST, Descriptor, ExecutionConfig, History, ImageConfig, Platform, RootFilesystemLayers
from bulle.model.reference import Reference
from bulle.registry import documents
from bulle.registry.progress import Progress, ProgressCallback
from bulle.registry.transport import RemoteImage, RemoteLayer

DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

Produce = Callable[[], Iterator[bytes]]


def image_of_layer(
    produce: Produce,
    *,
    what: str,
    platform: Platform,
    execution: ExecutionConfig,
    created: int,
    created_by: str,
    reference: Reference | None,
    progress: ProgressCallback,
    host_binds: tuple[str, ...] = (),
) -> RemoteImage:
    """An image of one uncompressed layer; ``created`` in seconds since the epoch, ``what`` names the origin in errors."""
    diff_id, size = measure(produce(), what, progress)
    moment = rfc3339(created)
    config = msgspec.json.encode(
        ImageConfig(
            architecture=platform.architecture,
            os=platform.os,
            variant=platform.variant,
            created=moment,
            config=execution,
            rootfs=RootFilesystemLayers(diff_ids=(str(diff_id),)),
            history=(History(created=moment, created_by=created_by),),
        )
    )
    descriptor = Descriptor(media_type=OCI_LAYER, digest=str(diff_id), size=size)
    layer = RemoteLayer(descriptor, diff_id, partial(again, produce, diff_id, what))
    manifest = documents.make_manifest(config, [(diff_id, size)])
    return RemoteImage(manifest, OCI_MANIFEST, config, (layer,), (reference,) if reference else (), host_binds)


def measure(chunks: Iterator[bytes], what: str, progress: ProgressCallback) -> tuple[Digest, int]:
    """Digest and length of a layer about to be made."""
    digest, size, told = hashlib.sha256(), 0, 0
    for chunk in chunks:
        digest.update(chunk)
        size += len(chunk)
        if size - told > 32 << 20:
            told = size
            progress(Progress("read", what, size))
    progress(Progress("read", what, size, size))
    return Digest(f"sha256:{digest.hexdigest()}"), size


def again(produce: Produce, expected: Digest, what: str) -> Iterator[bytes]:
    """The same bytes once more; Conflict at the end where they are not the same."""
    digest = hashlib.sha256()
    last: bytes | None = None
    for chunk in produce():
        digest.update(chunk)
        if last is not None:
            yield last
        last = chunk
    # The last chunk waits for the verdict, so that nobody can take the stream for complete.
    if digest.hexdigest() != expected.encoded:
        raise Conflict(f"{what} changed while it was read", "", "try again when nothing writes to it")
    if last is not None:
        yield last


def rfc3339(seconds: int) -> str:
    """A moment as configs spell it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
