"""Whether what the store keeps is still what it was: every document, blob and tar is hashed again, every index is made again and compared.

Called for ``image verify``. Layers that several images share are looked at once. Extracted layers (where EROFS cannot be had) are not compared:
nothing vouches for them but the tar. A layer's blob may be missing, since its tar is there; what is there must be right.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bulle.errors import BulleError
from bulle.model.digest import Digest, chain_ids
from bulle.store.erofs import write_index
from bulle.store.erofs_reader import Index
from bulle.store.images import Image, check_documents
from bulle.store.merged_view import MergedView
from bulle.store.tree import build_tree

if TYPE_CHECKING:
    from bulle.store.backend import LayerFiles
    from bulle.store.store import Store

_THREADS = 2  # hashing releases the interpreter's lock; more would only wait for the disk
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Fault:
    """One thing that is not what it should be: ``subject`` names it, ``path`` is where it lies (a host path; None in the database)."""

    kind: Literal["document", "tar", "index", "blob"]
    subject: str
    why: str
    path: Path | None = None


@dataclass(frozen=True)
class Verdict:
    """What was found of one image; without faults it is whole."""

    image: Image
    faults: tuple[Fault, ...]


def verify(store: Store, images: Sequence[Image]) -> Iterator[Verdict]:
    """Look at images, one verdict each in their order."""
    with ThreadPoolExecutor(_THREADS, "bulle-verify") as pool:
        known: dict[tuple[str, str], Future[list[Fault]]] = {}
        waiting = []
        for image in images:
            found: list[Future[list[Fault]]] = []
            try:
                files = store.layers.files(image.layers)
            except BulleError as error:
                waiting.append((image, found, [Fault("tar", "its layers", str(error))]))
                continue
            chains = chain_ids(image.layers)
            for position, (diff_id, blob) in enumerate(zip(image.layers, image.blob_digests, strict=True)):
                for key, work in (
                    (("tar", str(diff_id)), lambda one=files[position]: _tar_faults(one)),
                    (("index", str(chains[position])), lambda some=files[: position + 1]: _index_faults(store, some)),
                    (("blob", str(blob)), lambda one=blob, of=files[position]: _blob_faults(store, one, of)),
                ):
                    if key not in known:
                        known[key] = pool.submit(work)
                    found.append(known[key])
            waiting.append((image, found, []))
        try:
            for image, found, faults in waiting:
                yield Verdict(image, (*_document_faults(image), *faults, *(fault for one in found for fault in one.result())))
        finally:
            pool.shutdown(cancel_futures=True)


def mend_index(store: Store, fault: Fault, images: Sequence[Image]) -> bool:
    """Write a damaged index anew from its tar, which must be whole; False where that cannot be."""
    for image in images:
        files = store.layers.files(image.layers)
        for position, one in enumerate(files):
            if one.index == fault.path and not _tar_faults(one):
                with suppress(BulleError, OSError):
                    content = _index_of(store, files[: position + 1])
                    temporary = store.temporary_directory() / "index"
                    temporary.write_bytes(content)
                    temporary.replace(one.index)
                    temporary.parent.rmdir()
                    return True
    return False


def _document_faults(image: Image) -> Iterator[Fault]:
    if str(Digest.of(image.manifest)) != image.manifest_digest:
        yield Fault("document", "manifest", f"its digest is {Digest.of(image.manifest)} instead of {image.manifest_digest}")
    if str(Digest.of(image.config_raw)) != image.id:
        yield Fault("document", "config", f"its digest is {Digest.of(image.config_raw)} instead of {image.id}")
        return
    try:
        check_documents(image.manifest, image.manifest_media_type, image.config_raw, list(zip(image.blob_digests, image.layers, strict=True)))
    except BulleError as error:
        yield Fault("document", "manifest", str(error))


def _tar_faults(files: LayerFiles) -> list[Fault]:
    return _hashed(files.tar, Digest(files.diff_id), "tar", f"layer {Digest(files.diff_id).short}")


def _blob_faults(store: Store, blob: Digest, files: LayerFiles) -> list[Fault]:
    path = store.blobs.path(blob)
    with suppress(FileNotFoundError):
        if path.stat().st_ino == files.tar.stat().st_ino:
            return []  # the same file, hashed already
    return _hashed(path, blob, "blob", f"blob {blob.short}") if path.exists() else []


def _hashed(path: Path, expected: Digest, kind: Literal["tar", "blob"], subject: str) -> list[Fault]:
    checksum = hashlib.new(expected.algorithm)
    try:
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK_BYTES):
                checksum.update(chunk)
    except OSError as error:
        return [Fault(kind, subject, f"it cannot be read: {error.strerror}", path)]
    if checksum.hexdigest() == expected.encoded:
        return []
    return [Fault(kind, subject, f"its digest is {checksum.name}:{checksum.hexdigest()}", path)]


def _index_faults(store: Store, stack: Sequence[LayerFiles]) -> list[Fault]:
    """The topmost of a stack, lowest first, against what its tar makes of it."""
    files = stack[-1]
    subject = f"index of layer {Digest(files.diff_id).short}"
    try:
        same = files.index.read_bytes() == _index_of(store, stack)
    except OSError as error:
        return [Fault("index", subject, f"it cannot be read: {error.strerror}", files.index)]
    except BulleError as error:
        return [Fault("index", subject, str(error), files.index)]
    return [] if same else [Fault("index", subject, "it is not what the layer's tar says", files.index)]


def _index_of(store: Store, stack: Sequence[LayerFiles]) -> bytes:
    files = stack[-1]
    with ExitStack() as cleanup:
        below = None
        if not store.layers.is_plain(files):
            indexes = []
            for one in stack[:-1]:
                indexes.append(Index(one.index))
                cleanup.callback(indexes[-1].close)
            below = MergedView(indexes).lookup
        with files.tar.open("rb") as file:
            empty = not os.fstat(file.fileno()).st_size
            data = b"" if empty else cleanup.enter_context(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        out = io.BytesIO()
        write_index(build_tree(data, store.layers.limits, below), data, out)
        return out.getvalue()
