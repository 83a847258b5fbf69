"""What ``RUN --mount=type=cache`` keeps from one build to the next: directories of the home, by the digest of their names.

A step holds a lock on a file beside the content for as long as it runs (:mod:`bulle.build.step_mounts`), so that a prune passes over what is in use.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import ExitStack
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

    def all(self) -> list[Path]:
        """The directories of all caches."""
        return sorted(self._root.iterdir()) if self._root.is_dir() else []

    def prune(self) -> int:
        """Remove every cache that no step holds; returns the bytes that the disk got back."""
        freed = 0
        for path in self.all():
            with ExitStack() as held:
                if self._take(path, held):
                    freed += disk_bytes(path)
                    # Out of sight first: a step that comes now makes a new one, and what is left of a killed prune is garbage.
                    trash = self._workspace.directory()
                    path.rename(trash / "cache")
                    remove_tree(trash)
        return freed

    def _take(self, path: Path, held: ExitStack) -> bool:
        """Take every lock of a cache, unless a step has one."""
        for entry in path.iterdir():
            if entry.name.startswith(LOCK):
                lock = os.open(entry, os.O_RDWR | os.O_CLOEXEC)
                held.callback(os.close, lock)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return False
        return True
