"""The volumes of a home: made, listed, removed, and their content carried in and out.

A volume is a directory below ``volumes/`` and a row; it is made aside and gets its name and its row in one transaction, and loses its row before its
directory. So what a killed command leaves is a directory without a row, which nobody sees and :meth:`Volumes.collect` removes. Who mounts a volume is
told by ``container_volume``, which keeps it. Docker Engine API, /volumes; podman-volume-export(1), podman-volume-import(1)
"""

from __future__ import annotations

import fcntl
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from bulle.engine import volume_files
from bulle.engine.volume_options import VolumeShape, require
from bulle.errors import Conflict, InvalidInput, NotFound
from bulle.isolation.host_mounts import DATA, DISK
from bulle.model.volume import ANONYMOUS_LABEL, DRIVER, Volume, check_name
from bulle.records.database import Database
from bulle.records.events import publish
from bulle.records.volumes import VolumeRecords, VolumeRow, no_such_volume
from bulle.store import Store
from bulle.store.failures import storage_errors
from bulle.store.usage import disk_bytes
from bulle.store.workspace import remove_tree

if TYPE_CHECKING:
    from bulle.engine.pruning import Pruned, PruneFilter
    from bulle.store.merged_view import MergedView


class Volumes:
    """The volumes of one home."""

    def __init__(self, home: Path, database: Database, store: Store) -> None:
        self._home = home
        self._root = home / "volumes"
        self._database = database
        self._records = VolumeRecords(database)
        self._store = store

    def create(self, name: str = "", *, labels: Mapping[str, str] | None = None, options: Mapping[str, str] | None = None) -> Volume:
        """Make a volume, without a name an anonymous one; one that is there already is returned. ``options`` are type, device, o and size.

        Raises InvalidInput, Conflict where one of that name has other options, Unavailable, StorageFull.
        """
        row = new_row(name, labels or {}, options or {})
        found = self._records.find(row.name)
        if found is None:
            with self.staged(row) as staged, self._database.transaction() as connection:
                if not self._records.exists(connection, row.name):
                    self.adopt(connection, row, staged)
            found = self._records.find(row.name) or row
        if options and dict(options) != found.options:
            raise Conflict(f"a volume named {row.name} exists with other options", "", "choose another name, or remove it first")
        return self.get(row.name)

    def get(self, name: str) -> Volume:
        """By its name. Raises NotFound."""
        row = self._records.find(name)
        if row is None:
            raise no_such_volume(name)
        return self._volume(row, self._records.users())

    def list(self) -> list[Volume]:
        """All of them, by name."""
        users = self._records.users()
        return [self._volume(row, users) for row in self._records.all()]

    def size(self, name: str) -> int:
        """Bytes that a volume takes on the disk of the home."""
        return disk_bytes(self.directory(name))

    def remove(self, name: str, *, force: bool = False) -> None:
        """Remove a volume and all that is in it. Raises NotFound (not with ``force``), and Conflict where a container has it."""
        try:
            self._records.delete(name)
        except NotFound:
            if not force:
                raise
            return
        self.sweep(name)

    def prune(self, chosen: PruneFilter | None = None, *, every: bool = False) -> Pruned:
        """Remove the anonymous volumes that no container has, or with ``every`` those with a name as well."""
        from bulle.engine.pruning import Pruned, PruneFilter, published

        pruned, chosen = Pruned(), chosen or PruneFilter()
        for volume in self.list():
            if volume.users or not (every or volume.anonymous) or not chosen.takes(volume.created_at_ns, volume.labels):
                continue
            size = self.size(volume.name)
            with suppress(Conflict, NotFound):  # somebody took it, or removed it, meanwhile
                self.remove(volume.name)
                pruned.removed.append(volume.name)
                pruned.reclaimed_bytes += size
        pruned.reclaimed_bytes += self.collect()
        return published(self._store, "volume", pruned)

    def export(self, name: str, out: BinaryIO) -> None:
        """Write what is in a volume as a tar. Raises NotFound, Unavailable for one whose files are in memory."""
        from bulle.engine.volume_archives import export_to

        with self._read(name) as base:
            export_to(base, name, out)

    def import_archive(self, name: str, stream: BinaryIO) -> Volume:
        """Unpack a tar (compressed or not) in a volume, which is made where it is not there; what is there already is kept or replaced.

        Raises CorruptImage, InvalidInput, StorageFull; then the volume is as it was.
        """
        from bulle.engine.volume_archives import import_from

        row = new_row(name, {}, {}, named=True)
        if self._records.find(name) is None:
            with self.staged(row) as staged:
                with volume_files.opened(staged) as base:
                    import_from(base, name, stream)
                with self._database.transaction() as connection:
                    if self._records.exists(connection, name):
                        raise Conflict(f"a volume named {name} was made meanwhile", "", "import it again")
                    self.adopt(connection, row, staged)
        else:
            with self._locked(name) as path, volume_files.opened(path) as base:
                import_from(base, name, stream)
        return self.get(name)

    def clone(self, source: str, target: str) -> Volume:
        """Make a volume with the options and the content of another; files share their blocks where the file system can. Raises Conflict."""
        original = self.get(source)
        row = new_row(target, original.labels, original.options, named=True)
        row.labels.pop(ANONYMOUS_LABEL, None)
        if self._records.find(target) is not None:
            raise Conflict(f"a volume named {target} exists already", "", "choose another name, or remove it first")
        with self._read(source) as here, self.staged(row) as staged:
            with ExitStack() as stack, storage_errors(f"volume {target} could not be made"):
                there = stack.enter_context(volume_files.opened(staged))
                volume_files.as_container_root(lambda: volume_files.copy(here, there))
            with self._database.transaction() as connection:
                if self._records.exists(connection, target):
                    raise Conflict(f"a volume named {target} was made meanwhile", "", "choose another name")
                self.adopt(connection, row, staged)
        return self.get(target)

    def collect(self) -> int:
        """Remove what killed commands left: directories without a row. Returns the bytes that the disk got back."""
        if not self._root.is_dir():
            return 0
        freed = 0
        with self._database.transaction() as connection:
            known = self._records.names(connection)
        for entry in self._root.iterdir():
            if entry.name not in known:
                freed += disk_bytes(entry)
                self.sweep(entry.name)
        return freed

    # What the making of containers needs

    def directory(self, name: str) -> Path:
        """A volume's host directory."""
        return self._root / name

    @contextmanager
    def staged(self, row: VolumeRow) -> Iterator[Path]:
        """The host directory of a volume that is being made, seen by nobody until :meth:`adopt`; removed at the end where that did not happen."""
        shape = VolumeShape.of(row.options)
        require(shape)
        aside = self._store.temporary_directory()
        try:
            with storage_errors(f"volume {row.name} could not be made"):
                path = aside / row.name
                volume_files.make_directory(path, shape.size_bytes)
            yield path
        finally:
            remove_tree(aside)

    def adopt(self, connection: sqlite3.Connection, row: VolumeRow, staged: Path) -> None:
        """Give a staged volume its name, in a transaction that found the name free."""
        target = self.directory(row.name)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        if target.exists():  # left by a crash, so without a row
            target.rename(staged.with_name(f"{row.name}-left"))
        staged.rename(target)
        self._records.add(connection, row, anonymous=ANONYMOUS_LABEL in row.labels)
        publish(self._home, "volume", "create", row.name, {"driver": DRIVER})

    def fill(self, name: str, view: MergedView, path: str) -> None:
        """Fill a volume that is empty with what an image has in a directory. Raises NotFound when it was removed meanwhile, StorageFull."""
        with suppress(FileNotFoundError), volume_files.opened(self.directory(name)) as base:
            if volume_files.is_filled(base):
                return  # without waiting for whoever copies what is in it
        with self._locked(name) as directory, volume_files.opened(directory) as base, storage_errors(f"volume {name} could not be filled"):
            volume_files.as_container_root(lambda: volume_files.fill(base, view, path))

    def sweep(self, name: str) -> None:
        """Remove a volume's directory, unless it has a row."""
        if self._records.find(name) is not None or not self.directory(name).exists():
            return
        trash = self._store.temporary_directory()
        try:
            with self._database.transaction() as connection:
                if self._records.exists(connection, name) or not self.directory(name).exists():
                    return
                self.directory(name).rename(trash / "volume")
            publish(self._home, "volume", "destroy", name, {"driver": DRIVER})
        finally:
            remove_tree(trash)

    @contextmanager
    def _read(self, name: str) -> Iterator[int]:
        """The opened directory that holds a volume's ``_data``, for others to read as well, but not to fill."""
        with self._locked(name, shared=True) as path, volume_files.opened(path) as base:
            if volume_files.is_settled(base):
                yield base
                return
        with self._locked(name) as path, volume_files.opened(path) as base:
            volume_files.as_container_root(lambda: volume_files.settle(base))
            yield base

    @contextmanager
    def _locked(self, name: str, *, shared: bool = False) -> Iterator[Path]:
        """A volume's directory, its content changed by nobody else who asks like this. Raises NotFound, InvalidInput for one without files here."""
        path = self.directory(name)
        row = self._records.find(name)
        if row is None:
            raise no_such_volume(name)
        if not VolumeShape.of(row.options).is_kept_here:
            raise InvalidInput(f"volume {name} has no files of its own", "it shows a directory of the host, or memory", "use what it shows")
        with ExitStack() as stack:
            try:
                lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                raise no_such_volume(name) from None
            stack.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            if not os.path.exists(path) or not os.path.samestat(os.fstat(lock), os.stat(path)):
                raise no_such_volume(name)
            yield path

    def _volume(self, row: VolumeRow, users: Mapping[str, tuple[str, ...]]) -> Volume:
        mountpoint = str(self.directory(row.name) / (DISK if VolumeShape.of(row.options).size_bytes else DATA))
        return Volume(row.name, row.created_at_ns, mountpoint, row.labels, row.options, users.get(row.name, ()))


def new_row(name: str, labels: Mapping[str, str], options: Mapping[str, str], *, named: bool = False) -> VolumeRow:
    """The row of a volume to be made, anonymous without a name; everything that the user said is checked. Raises InvalidInput."""
    if name or named:
        check_name(name)
    VolumeShape.of(options)
    marked = dict(labels) if name else {**labels, ANONYMOUS_LABEL: ""}
    return VolumeRow(name or secrets.token_hex(32), time.time_ns(), marked, dict(options))
