"""What ``RUN --mount=type=cache`` keeps from one build to the next: directories of the home, by the digest of their names.

A step holds the directory locked for as long as it runs, so that a prune passes over what is in use; who shares the content with whom is decided by
locks inside (:mod:`bulle.build.step_mounts`).
"""

from __future__ import annotations

import fcntl
import os
from contextlib import ExitStack, suppress
from pathlib import Path

from bulle.model.digest import Digest
from bulle.store.failures import storage_errors
from bulle.store.usage import disk_bytes
from bulle.store.workspace import Workspace, remove_tree

LOCK = "lock"


class BuildMounts:
    """The cache mounts of one home."""

    def __init__(self, home: Path, workspace: Workspace) -> None:
        self._root = home / "build-mounts"
        self._workspace = workspace

    def directory(self, name: str) -> Path:
        """The host directory of a cache, with its locks and its content; made when missing."""
        path = self._root / Digest.of(name.encode()).encoded[:32]
        with storage_errors("the cache of a build could not be made"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path

    def held(self, name: str, cleanup: ExitStack) -> Path:
        """As :meth:`directory`, and no prune takes it away until ``cleanup`` is closed."""
        while True:
            path = self.directory(name)
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # pruned since
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if _is_at(descriptor, path):
                cleanup.callback(os.close, descriptor)
                return path
            os.close(descriptor)

    def all(self) -> list[Path]:
        """The directories of all caches."""
        return sorted(self._root.iterdir()) if self._root.is_dir() else []

    def prune(self) -> int:
        """Remove every cache that no step holds; returns the bytes that the disk got back."""
        freed = 0
        for path in self.all():
            with ExitStack() as held:
                descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                held.callback(os.close, descriptor)
                with suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    freed += disk_bytes(path)
                    # Out of sight first: a step that comes now makes a new one, and what is left of a killed prune is garbage.
                    trash = self._workspace.directory()
                    path.rename(trash / "cache")
                    remove_tree(trash)
        return freed


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open directory still has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
