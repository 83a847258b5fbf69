"""Removing what nothing needs any more: layers, blobs, and the leavings of processes that died.

What is needed is read from the database alone: images, containers' leases, and leases of living processes. First the rows go, in a transaction of
their own; then whatever has no row is renamed out of sight while no one else can write, and at last removed. A crash at any point leaves
only files without rows, which the next collection finds.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from pathlib import Path

from bulle.linux.mount import MNT_DETACH, UMOUNT_NOFOLLOW, umount
from bulle.records.database import Database
from bulle.records.layers import LayerRecords
from bulle.store.failures import storage_errors
from bulle.store.workspace import Workspace, remove_tree


class Collector:
    """Collects the garbage of one home."""

    def __init__(self, home: Path, database: Database, workspace: Workspace) -> None:
        self._home = home
        self._database = database
        self._records = LayerRecords(database)
        self._workspace = workspace

    def collect(self) -> int:
        """Remove everything that is not needed; returns the bytes that the disk got back."""
        with storage_errors(f"the store in {self._home} could not be cleaned"):
            self._workspace.collect_dead()
            with self._database.transaction() as connection:
                # Once more inside the transaction, so that nobody takes a lease after the living were counted.
                living = self._workspace.collect_dead()
                self._records.keep_leases_of(connection, living)
                self._records.remove_unused(connection)
            trash = self._workspace.directory()
            try:
                with self._database.transaction() as connection:
                    self._take_out(connection, trash)
                return _size(trash)
            finally:
                remove_tree(trash)

    def _take_out(self, connection: sqlite3.Connection, trash: Path) -> None:
        """Rename what has no row into ``trash``; the transaction keeps everyone else from adding rows meanwhile."""
        layers = self._records.all_diff_ids(connection)
        for path in _children(self._home / "layers"):
            if f"{path.parent.name}:{path.name}" not in layers:
                _unmount(path)
                path.rename(trash / f"layer-{path.name}")
        blobs = self._records.all_blobs(connection)
        for path in _children(self._home / "blobs"):
            if f"{path.parent.name}:{path.name}" not in blobs:
                path.rename(trash / f"blob-{path.name}")


def _children(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    return [path for algorithm in directory.iterdir() if algorithm.is_dir() for path in algorithm.iterdir()]


def _unmount(layer: Path) -> None:
    """Detach a layer's mounts in this mount namespace; in others the kernel does it when the mount point goes. rmdir(2)"""
    for variant in layer.iterdir():
        if variant.is_dir():
            with suppress(OSError):
                umount(variant / "root", MNT_DETACH | UMOUNT_NOFOLLOW)


def _size(directory: Path) -> int:
    """Bytes on the disk that go with a directory: files with other names stay, and are not counted."""
    total = 0
    seen: dict[int, int] = {}
    for parent, _, names in os.walk(directory):
        for name in names:
            status = os.lstat(f"{parent}/{name}")
            seen[status.st_ino] = seen.get(status.st_ino, 0) + 1
            if seen[status.st_ino] == status.st_nlink:
                total += status.st_blocks * 512
    return total
