"""Receiving a layer: one pass over the stream that verifies, decompresses and writes it.

Called by the layer store. While one thread reads and decompresses, another hashes (and writes) what came before: all of these release the
interpreter's lock. The compressed form is kept as it came. Digests and bounds are checked before the caller makes anything visible.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from bulle.errors import CorruptImage
from bulle.model.digest import Digest
from bulle.model.image import LAYER_COMPRESSIONS
from bulle.store.limits import Limits

_PIECE_BYTES = 1 << 20
_QUEUE_LENGTH = 8


@dataclass(frozen=True)
class Received:
    """What came: the blob as it was sent and the tar in it, sizes in bytes."""

    blob_digest: Digest
    blob_size: int
    tar_digest: Digest
    tar_size: int
    compressed: bool


def receive(
    chunks: Iterable[bytes],
    media_type: str,
    blob_digest: Digest | None,
    size: int | None,
    diff_id: Digest | None,
    blob_fd: int,
    tar_fd: int,
    limits: Limits,
) -> Received:
    """Write a layer to ``tar_fd``, and its compressed form to ``blob_fd`` (left empty when it is not compressed).

    An empty ``media_type``, and digests and sizes that are None, are found out. Raises CorruptImage when a digest or size differs from what was
    expected, the compression is damaged, or a bound is exceeded; OSError passes.
    """
    stream = _limited(iter(chunks), size)
    first = next(stream, b"")
    compression = _compression(media_type, first)
    stream = _chained(first, stream)
    algorithm = blob_digest.algorithm if blob_digest else "sha256"
    if compression == "none":
        return _receive_plain(stream, algorithm, blob_digest, size, diff_id, tar_fd, limits)
    blob_hash, tar_hash = hashlib.new(algorithm), hashlib.new(diff_id.algorithm if diff_id else "sha256")
    counts = [0, 0]

    def store_tar(piece: bytes) -> None:
        tar_hash.update(piece)
        _write(tar_fd, piece)

    with _Worker(store_tar) as worker:
        for piece in _decompressed(_blob_pieces(stream, blob_hash.update, blob_fd, counts), compression):
            counts[1] += len(piece)
            _check_bounds(counts[1], counts[0], limits)
            worker.put(piece)
    blob = Digest(f"{algorithm}:{blob_hash.hexdigest()}")
    tar = Digest(f"{tar_hash.name}:{tar_hash.hexdigest()}")
    _check(blob, blob_digest, counts[0], size, tar, diff_id)
    return Received(blob, counts[0], tar, counts[1], compressed=True)


def _receive_plain(
    stream: Iterator[bytes], algorithm: str, blob_digest: Digest | None, size: int | None, diff_id: Digest | None, tar_fd: int, limits: Limits
) -> Received:
    tar_algorithm = diff_id.algorithm if diff_id else "sha256"
    hashes = {name: hashlib.new(name) for name in {algorithm, tar_algorithm}}
    total = 0

    def update(piece: bytes) -> None:
        for digest in hashes.values():
            digest.update(piece)

    with _Worker(update) as worker:
        for piece in stream:
            total += len(piece)
            _check_bounds(total, total, limits)
            worker.put(piece)
            _write(tar_fd, piece)
    blob, tar = (Digest(f"{name}:{hashes[name].hexdigest()}") for name in (algorithm, tar_algorithm))
    _check(blob, blob_digest, total, size, tar, diff_id)
    return Received(blob, total, tar, total, compressed=False)


def _check(blob: Digest, expected_blob: Digest | None, blob_size: int, size: int | None, tar: Digest, diff_id: Digest | None) -> None:
    if size is not None and blob_size != size:
        raise CorruptImage(f"the layer {(expected_blob or blob).short} has the wrong size", f"{blob_size} bytes came, {size} were announced")
    if expected_blob is not None and blob != expected_blob:
        raise CorruptImage(f"the layer {expected_blob.short} is not what it claims to be", f"its digest is {blob}")
    if diff_id is not None and tar != diff_id:
        raise CorruptImage(f"the layer {diff_id.short} is not what the image's config says", f"uncompressed, its digest is {tar}")


def _check_bounds(tar_size: int, blob_size: int, limits: Limits) -> None:
    if tar_size > limits.layer_bytes:
        raise CorruptImage("the layer is too large", f"uncompressed, it has more than {limits.layer_bytes} bytes")
    if tar_size > limits.ratio_free_bytes and tar_size > blob_size * limits.ratio:
        raise CorruptImage("the layer is a decompression bomb", f"it grows to more than {limits.ratio} times its size")


def _compression(media_type: str, first: bytes) -> str:
    if not media_type:
        return "gzip" if first.startswith(b"\x1f\x8b") else "zstd" if first.startswith((b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18")) else "none"
    compression = LAYER_COMPRESSIONS.get(media_type)
    if compression is None:
        raise CorruptImage("the image has a layer that cannot be used", f"its media type is {media_type[:100]!r}")
    return compression


def _limited(chunks: Iterator[bytes], size: int | None) -> Iterator[bytes]:
    """The chunks, until they exceed what was announced: a sender that never stops must not fill the disk."""
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if size is not None and total > size:
            raise CorruptImage("the layer has the wrong size", f"more than the announced {size} bytes came")
        if chunk:
            yield chunk


def _chained(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from rest


def _blob_pieces(stream: Iterator[bytes], update: Callable[[bytes], None], blob_fd: int, counts: list[int]) -> Iterator[bytes]:
    for chunk in stream:
        counts[0] += len(chunk)
        update(chunk)
        _write(blob_fd, chunk)
        yield chunk


def _write(fd: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(fd, view) :]


def _decompressed(chunks: Iterator[bytes], compression: str) -> Iterator[bytes]:
    return _gunzip(chunks) if compression == "gzip" else _unzstd(chunks)


def _gunzip(chunks: Iterator[bytes]) -> Iterator[bytes]:
    try:
        from isal import isal_zlib as zlib
    except ImportError:  # there is no isal for some processors
        import zlib  # type: ignore[no-redef]
    decompressor = zlib.decompressobj(wbits=31)
    try:
        for chunk in chunks:
            data = chunk
            while data:
                if decompressor.eof:
                    if not data.strip(b"\0"):
                        break
                    decompressor = zlib.decompressobj(wbits=31)
                piece = decompressor.decompress(data, _PIECE_BYTES)
                if piece:
                    yield piece
                data = decompressor.unused_data if decompressor.eof else decompressor.unconsumed_tail
            while not decompressor.eof and (piece := decompressor.decompress(b"", _PIECE_BYTES)):
                yield piece
    except zlib.error as error:  # type: ignore[misc]  # isal says that it is any object
        raise CorruptImage("the layer is damaged", f"gzip: {error}") from error
    if not decompressor.eof:
        raise CorruptImage("the layer is damaged", "its gzip stream ends too early")


def _unzstd(chunks: Iterator[bytes]) -> Iterator[bytes]:
    import sys

    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    decompressor = zstd.ZstdDecompressor()
    started = False
    try:
        for chunk in chunks:
            data = chunk
            while data or (started and not decompressor.eof and not decompressor.needs_input):
                if decompressor.eof:
                    decompressor, started = zstd.ZstdDecompressor(), False
                piece = decompressor.decompress(data, _PIECE_BYTES)
                started = True
                if piece:
                    yield piece
                data = decompressor.unused_data if decompressor.eof else b""
    except zstd.ZstdError as error:
        raise CorruptImage("the layer is damaged", f"zstd: {error}") from error
    if started and not decompressor.eof:
        raise CorruptImage("the layer is damaged", "its zstd stream ends too early")


class _Worker:
    """A thread that does one thing to every piece, in order; its failure surfaces in :meth:`put` or at the end."""

    def __init__(self, action: Callable[[bytes], None]) -> None:
        self._action = action
        self._queue: queue.Queue[bytes | None] = queue.Queue(_QUEUE_LENGTH)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="bulle-layer", daemon=True)

    def __enter__(self) -> _Worker:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._queue.put(None)
        self._thread.join()
        if kind is None and self._failure is not None:
            raise self._failure

    def put(self, piece: bytes) -> None:
        """Hand over one piece; waits when the thread is far behind."""
        if self._failure is not None:
            raise self._failure
        self._queue.put(piece)

    def _run(self) -> None:
        while (piece := self._queue.get()) is not None:
            if self._failure is None:
                try:
                    self._action(piece)
                except BaseException as failure:  # noqa: BLE001 - it is raised again in the other thread
                    self._failure = failure
