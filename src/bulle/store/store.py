"""The store of one ``BULLE_HOME``: what the engine gets its images and layers from."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from bulle.records.database import Database
from bulle.store.artifacts import ArtifactStore
from bulle.store.backend import Kind, LayerProbe
from bulle.store.backends import probe_backends
from bulle.store.blobs import BlobStore
from bulle.store.build_cache import BuildCache
from bulle.store.build_mounts import BuildMounts
from bulle.store.garbage import Collector
from bulle.store.images import ImageStore
from bulle.store.indexes import IndexStore
from bulle.store.layers import LayerStore
from bulle.store.limits import Limits
from bulle.store.usage import LayerUsage, layer_usage
from bulle.store.workspace import Workspace


class Store:
    """Blobs, layers and images of ``home``. Making one is cheap: nothing is read or written before it is needed."""

    def __init__(self, home: Path, database: Database, limits: Limits | None = None) -> None:
        self.home = home
        self._database = database
        self._workspace = Workspace(home)
        self._limits = limits
        self._receivers = 0
        self.collected_bytes = 0
        """What the disk got back by all that this object collected."""
        self._receivers_lock = threading.Lock()

    @cached_property
    def blobs(self) -> BlobStore:
        """Content by digest, as registries hold it."""
        return BlobStore(self.home, self._database, self._workspace)

    @cached_property
    def layers(self) -> LayerStore:
        """Layers by the digest of their uncompressed tar."""
        return LayerStore(self.home, self._database, self._workspace, self.blobs, self._limits)

    @cached_property
    def images(self) -> ImageStore:
        """Images by name and id."""
        return ImageStore(self._database, self.layers, self.blobs, self.gc)

    @cached_property
    def build_cache(self) -> BuildCache:
        """Layers by what they were made from."""
        return BuildCache(self._database, self._workspace, self.gc)

    @cached_property
    def build_mounts(self) -> BuildMounts:
        """What steps of builds keep for later builds."""
        return BuildMounts(self.home, self._workspace)

    @cached_property
    def artifacts(self) -> ArtifactStore:
        """What speaks of images."""
        return ArtifactStore(self._database, self.blobs)

    @cached_property
    def indexes(self) -> IndexStore:
        """Several images under one name."""
        return IndexStore(self._database)

    def gc(self) -> int:
        """Remove what no image, container or living process needs; returns the bytes that the disk got back."""
        collected = Collector(self.home, self._database, self._workspace).collect()
        self.collected_bytes += collected
        return collected

    def layer_usage(self) -> dict[str, LayerUsage]:
        """Every layer by its diff id: what it takes on the disk, and who stands on it."""
        return layer_usage(self.home, self._database)

    def probe(self) -> dict[Kind, LayerProbe]:
        """Which ways to show layers work here, and why others do not: for doctor. Ways after the first that works are not tried."""
        return probe_backends(self.home, self._workspace)

    def temporary_directory(self) -> Path:
        """A new empty host directory for this process's large files; what a killed process leaves of it is collected by :meth:`gc`."""
        return self._workspace.directory()

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """While it lasts, layers that are ingested are kept for this process; afterwards those that no image has are garbage."""
        with self._receivers_lock:
            self._receivers += 1
        try:
            yield
        finally:
            with self._receivers_lock:
                self._receivers -= 1
                if not self._receivers:
                    self.layers.end_leases()

    def close(self) -> None:
        """Give up what this process has prepared and not committed."""
        self._workspace.close()
