"""The layers of one home: received once, indexed, and shown to overlayfs without being extracted (where the kernel can).

``layers/sha256/HEX/`` holds ``tar`` (the uncompressed layer, byte for byte; HEX is its diffID) and one directory for each way to stand on other
layers: ``plain``, or a chain id where attributes of directories come from below. In that: ``index`` (EROFS), ``root`` (mount point), ``tree``
(extracted). A directory gets its name and its row in one transaction, after everything in it is on the disk.

Called by the engine (ingest, plan) and by the monitor (mount). What may be removed is :mod:`bulle.store.garbage`'s business.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from bulle.errors import InvalidInput, NotFound, Unavailable
from bulle.linux import user_namespace
from bulle.linux.subordinate_ids import rootless_mappings
from bulle.model.digest import Digest, chain_ids
from bulle.model.image import OCI_LAYER
from bulle.model.run_plan import LayerMount
from bulle.records.database import Database
from bulle.records.layers import IMPLICIT_DIRECTORIES, IMPLICIT_ROOT, LARGE_IDS, LayerRecords, LayerRow
from bulle.store import reception
from bulle.store.backend import LayerBackend, LayerFiles
from bulle.store.backends import BACKENDS, choose_backend
from bulle.store.blobs import BlobStore
from bulle.store.erofs import write_index
from bulle.store.erofs_reader import Index
from bulle.store.extraction import Extraction
from bulle.store.failures import storage_errors
from bulle.store.limits import Limits
from bulle.store.merged_view import MergedView
from bulle.store.mounting import is_mounted
from bulle.store.tree import Below, Tree, build_tree
from bulle.store.workspace import Workspace, remove_tree

PLAIN = "plain"
MOST_LAYERS = 500
_LAST_ID = 65535
_DEFAULT_ROOT = (0o40755, 0, 0)


@dataclass(frozen=True)
class Layer:
    """A layer that is here: ``size_bytes`` of its uncompressed tar; ``blob_digest`` is None when it had been here before and nothing was read."""

    diff_id: Digest
    size_bytes: int
    blob_digest: Digest | None = None


class LayerStore:
    """The layers of ``home``."""

    def __init__(self, home: Path, database: Database, workspace: Workspace, blobs: BlobStore, limits: Limits | None = None) -> None:
        self._home = home
        self._root = home / "layers"
        self._database = database
        self._records = LayerRecords(database)
        self._workspace = workspace
        self._blobs = blobs
        self.limits = limits or Limits()

    def has(self, diff_id: Digest) -> bool:
        """Whether the layer is here."""
        return self._records.get(diff_id) is not None

    def size(self, diff_id: Digest) -> int:
        """Bytes of a layer's uncompressed tar. Raises NotFound."""
        row = self._records.get(diff_id)
        if row is None:
            raise NotFound(f"no such layer: {diff_id}", "", "pull the image again")
        return row.size_bytes

    def directory(self, diff_id: Digest) -> Path:
        """Where a layer's files are, or would be (host path)."""
        return self._root / diff_id.algorithm / diff_id.encoded

    def ingest(
        self,
        chunks: Iterable[bytes],
        media_type: str,
        blob_digest: Digest | None,
        size: int | None,
        diff_id: Digest,
        parents: Sequence[Digest] = (),
    ) -> Layer:
        """Receive a layer as a registry or archive sends it (``size`` bytes, digest ``blob_digest``, each unknown when None).

        A layer that is here already is returned at once and ``chunks`` are not consumed. It is kept until the end of :meth:`Store.receiving`,
        or of this process. ``parents`` are only a hint: what depends on them is made at commit. Raises CorruptImage or StorageFull; then
        nothing is left.
        """
        with self._database.transaction() as connection:
            present = self._records.lease(connection, diff_id, self._workspace.name)
        row = self._records.get(diff_id) if present else None
        if row is not None:
            return Layer(diff_id, row.size_bytes)
        with storage_errors(f"the layer {diff_id.short} could not be stored"):
            temporary = self._workspace.directory()
            try:
                return self._receive(temporary, chunks, media_type, blob_digest, size, diff_id)
            finally:
                remove_tree(temporary)

    def add(self, chunks: Iterable[bytes]) -> Layer:
        """Keep a layer that was made here, from its uncompressed tar; otherwise as :meth:`ingest`."""
        with storage_errors("the layer could not be stored"):
            temporary = self._workspace.directory()
            try:
                return self._receive(temporary, chunks, OCI_LAYER, None, None, None)
            finally:
                remove_tree(temporary)

    def _receive(
        self, temporary: Path, chunks: Iterable[bytes], media_type: str, blob_digest: Digest | None, size: int | None, diff_id: Digest | None
    ) -> Layer:
        layer = temporary / "layer"
        layer.mkdir(mode=0o700)
        with ExitStack() as cleanup:
            blob_fd, tar_fd = (
                cleanup.enter_context(_opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)) for path in (temporary / "blob", layer / "tar")
            )
            received = reception.receive(chunks, media_type, blob_digest, size, diff_id, blob_fd, tar_fd, self.limits)
            diff_id = received.tar_digest
            with _syncing((tar_fd, blob_fd) if received.compressed else (tar_fd,)):
                tree = self._write_variant(layer / "tar", layer / PLAIN, None)
            _sync_directory(layer)
        flags = (IMPLICIT_DIRECTORIES if tree.implicit_directories else 0) | (IMPLICIT_ROOT if tree.root.implicit else 0)
        flags |= LARGE_IDS if tree.largest_id > _LAST_ID else 0
        row = LayerRow(diff_id, received.tar_size, flags)
        target = self.directory(diff_id)
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._database.transaction() as connection:
            blob = (received.blob_digest, received.blob_size)
            self._blobs.adopt(temporary / "blob" if received.compressed else layer / "tar", received.blob_digest)
            if not self._records.lease(connection, diff_id, self._workspace.name):
                if target.exists():  # left by a crash between rename and commit, so without a row
                    target.rename(temporary / "old")
                layer.rename(target)
                self._records.add(connection, row, blob)
                _sync_directory(target.parent)
        return Layer(diff_id, received.tar_size, received.blob_digest)

    def _write_variant(self, tar: Path, variant: Path, below: Below | None) -> Tree:
        variant.mkdir(mode=0o700)
        (variant / "root").mkdir(mode=0o700)
        with _mapped(tar) as data:
            tree = build_tree(data, self.limits, below)
            with (variant / "index").open("xb", buffering=0) as index:
                write_index(tree, data, index)
                os.fdatasync(index.fileno())
        _sync_directory(variant)
        return tree

    def keep(self, diff_ids: Sequence[Digest]) -> None:
        """Keep layers, with their blobs, for this process until the end of :meth:`Store.receiving`, whatever becomes of their image.

        Raises NotFound.
        """
        with self._database.transaction() as connection:
            for diff_id in diff_ids:
                if not self._records.lease(connection, diff_id, self._workspace.name):
                    raise NotFound(f"no such layer: {diff_id}", "its image was removed meanwhile", "pull the image again")

    def end_leases(self) -> None:
        """Stop keeping the layers that this process ingested; those of an image stay."""
        if not self._workspace.is_made or not self._records.has_leases(self._workspace.name):
            return
        with self._database.transaction() as connection:
            self._records.end_leases(connection, self._workspace.name)

    def complete(self, diff_ids: Sequence[Digest]) -> dict[str, str]:
        """Make what depends on how layers are stacked (lowest first): indexes with attributes from below. Returns the variant of every chain.

        Raises NotFound for a layer that is not here, InvalidInput for more layers than overlayfs can stack.
        """
        if len(diff_ids) > MOST_LAYERS:
            why = f"it has {len(diff_ids)}, and overlayfs stacks at most {MOST_LAYERS}"
            raise InvalidInput("the image has too many layers", why, "build it with fewer, or squash it")
        chains = chain_ids(diff_ids)
        known = self._records.variants(chains)
        for position, (diff_id, chain) in enumerate(zip(diff_ids, chains, strict=True)):
            if chain in known:
                continue
            row = self._records.get(diff_id)
            if row is None:
                raise NotFound(f"no such layer: {diff_id}", "", "pull the image again")
            below = [self._files(lower, known[lower_chain]).index for lower, lower_chain in zip(diff_ids[:position], chains, strict=False)]
            variant = self._complete_one(row, chain, below)
            with self._database.transaction() as connection:
                self._records.add_chain(connection, chain, diff_id, variant)
            known[chain] = variant
        return known

    def _complete_one(self, row: LayerRow, chain: Digest, below: Sequence[Path]) -> str:
        if not below or not row.implicit_parents:
            return PLAIN
        with ExitStack() as cleanup:
            view = MergedView([_closing(cleanup, Index(path)) for path in below])
            root = view.lookup(())
            if not row.implicit_parents & IMPLICIT_DIRECTORIES and (root is None or (root.mode, root.uid, root.gid) == _DEFAULT_ROOT):
                return PLAIN
            variant = chain.encoded
            directory = self.directory(row.diff_id)
            with storage_errors(f"the layer {row.diff_id.short} could not be indexed"):
                temporary = self._workspace.directory()
                try:
                    self._write_variant(directory / "tar", temporary / variant, view.lookup)
                    try:
                        (temporary / variant).rename(directory / variant)
                    except OSError:
                        if not (directory / variant).exists():  # else another process was faster
                            raise
                    _sync_directory(directory)
                finally:
                    remove_tree(temporary)
        return variant

    def prepare(self, diff_ids: Sequence[Digest]) -> None:
        """Make all that :meth:`plan` will need, where layers can be shown at all: an image can be kept and saved where nothing can run."""
        variants = self.complete(diff_ids)
        try:
            backend = self.backend()
        except Unavailable:
            return
        self._prepare(backend, (self._files(diff_id, variants[chain]) for diff_id, chain in zip(diff_ids, chain_ids(diff_ids), strict=True)))

    def has_large_ids(self, diff_ids: Sequence[Digest]) -> bool:
        """Whether files in these layers belong to ids that a container with 65536 of its own cannot have."""
        return self._records.has_large_ids(diff_ids)

    def disks(self, diff_ids: Sequence[Digest]) -> tuple[LayerMount, ...]:
        """These layers (lowest first) as disks for a guest, as values for a RunPlan. Raises NotFound."""
        return tuple(LayerMount("disk", files.diff_id, "", str(files.index), str(files.tar)) for files in self.files(diff_ids))

    def plan(self, diff_ids: Sequence[Digest]) -> tuple[LayerMount, ...]:
        """How these layers (lowest first) will stand on this machine, as values for a RunPlan. Raises NotFound, Unavailable."""
        chains = chain_ids(diff_ids)
        variants = self._records.variants(chains)
        if len(variants) < len(set(chains)):
            variants = self.complete(diff_ids)
        backend = self.backend()
        files = [self._files(diff_id, variants[chain]) for diff_id, chain in zip(diff_ids, chains, strict=True)]
        self._prepare(backend, files)
        return tuple(backend.plan(layer) for layer in files)

    def _prepare(self, backend: LayerBackend, layers: Iterable[LayerFiles]) -> None:
        for files in layers:
            if not backend.is_ready(files):
                with storage_errors(f"the layer {Digest(files.diff_id).short} could not be extracted"):
                    temporary = self._workspace.directory()
                    try:
                        backend.prepare(files, temporary)
                    finally:
                        remove_tree(temporary)

    def mount(self, layers: Sequence[LayerMount]) -> None:
        """Perform what is not mounted yet, in the caller's mount namespace. Raises Unavailable.

        One stat(2) a layer when all are there. Several monitors may do this at once in one namespace.
        """
        if not layers or all(layer.kind in ("directory", "disk") for layer in layers):
            return
        device = self._root.stat().st_dev
        missing = [layer for layer in layers if layer.kind not in ("directory", "disk") and not is_mounted(layer.host_path, device)]
        if not missing:
            return
        with _opened(self._root, os.O_RDONLY | os.O_DIRECTORY) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for layer in missing:
                if layer.kind == "disk" or is_mounted(layer.host_path, device):
                    continue
                try:
                    BACKENDS[layer.kind].mount(layer)
                except OSError as error:
                    raise Unavailable(f"the layer {Digest(layer.diff_id).short} could not be mounted", str(error), "see `bulle doctor`") from error

    def backend(self) -> LayerBackend:
        """The way in which layers are shown here, found out by trial once per boot."""
        return choose_backend(self._home, self._workspace)

    def export_tar(self, diff_id: Digest) -> BinaryIO:
        """The uncompressed tar, byte for byte as its digest says. Raises NotFound."""
        try:
            return (self.directory(diff_id) / "tar").open("rb")
        except FileNotFoundError:
            raise NotFound(f"no such layer: {diff_id}", "", "pull the image again") from None

    def index(self, diff_ids: Sequence[Digest]) -> list[Path]:
        """The indexes of a stack of layers, lowest first (host paths): for who wants to look into an image without mounting it."""
        return [files.index for files in self.files(diff_ids)]

    def files(self, diff_ids: Sequence[Digest]) -> list[LayerFiles]:
        """Where the files of a stack of layers are, lowest first."""
        variants = self.complete(diff_ids)
        return [self._files(diff_id, variants[chain]) for diff_id, chain in zip(diff_ids, chain_ids(diff_ids), strict=True)]

    def is_plain(self, files: LayerFiles) -> bool:
        """Whether a layer's index says the same on whatever it stands."""
        return files.variant.name == PLAIN

    def extract(self, diff_id: Digest, target: Path) -> None:
        """Write the files of one layer into an empty host directory, for somebody to change them."""
        users, groups = rootless_mappings()
        files = self._files(diff_id, PLAIN)

        def work() -> None:
            Extraction(files.index, files.tar, target, os.geteuid() == 0 or len(users) > 1).run()

        with storage_errors(f"the layer {diff_id.short} could not be extracted"):
            work() if os.geteuid() == 0 else user_namespace.call(users, groups, work)

    @contextmanager
    def view(self, diff_ids: Sequence[Digest]) -> Iterator[MergedView]:
        """A stack of layers (lowest first) as overlayfs would show it, to look paths up in."""
        with ExitStack() as cleanup:
            indexes = [_closing(cleanup, Index(path)) for path in self.index(diff_ids)]
            yield MergedView(indexes, [self.directory(diff_id) / "tar" for diff_id in diff_ids])

    def _files(self, diff_id: Digest, variant: str) -> LayerFiles:
        directory = self.directory(diff_id)
        return LayerFiles(str(diff_id), directory / "tar", directory / variant)


def _closing(cleanup: ExitStack, index: Index) -> Index:
    cleanup.callback(index.close)
    return index


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _syncing(fds: Sequence[int]) -> Iterator[None]:
    """Bring files to the disk while something else is done; both are finished afterwards, or one of them has failed."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1, "bulle-sync") as pool:
        synced = [pool.submit(os.fdatasync, fd) for fd in fds]
        yield
        for result in synced:
            result.result()


@contextmanager
def _mapped(path: Path) -> Iterator[bytes | mmap.mmap]:
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            yield data


def _sync_directory(path: Path) -> None:
    with _opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.fsync(fd)
