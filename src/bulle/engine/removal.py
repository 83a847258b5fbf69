"""Removing a container: its row first, so that it is gone for everyone, then its directory."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from pathlib import Path

from bulle.engine.drivers import driver_for
from bulle.engine.volumes import Volumes
from bulle.errors import StorageFull
from bulle.isolation.control_group import ControlGroup
from bulle.linux import user_namespace
from bulle.model.run_plan import RunPlan
from bulle.monitor import current_state
from bulle.records.containers import ContainerRecords
from bulle.records.database import Database
from bulle.records.events import container_attributes, publish
from bulle.store import Store
from bulle.store.workspace import remove_tree

_YOUNG_S = 60.0
_REMOVALS = 50
_MONITOR_S = 1.0


def forget(database: Database, plan: RunPlan, *, volumes: bool = False) -> None:
    """Delete the row: name, id range and leases are free. With ``volumes`` also those of its anonymous volumes that nobody else has."""
    attributes = container_attributes(plan.state_host_path)  # its directory may be gone as soon as its row is
    if ContainerRecords(database).delete(plan.container_id, volumes=volumes) and attributes is not None:
        publish(database.path.parent, "container", "destroy", plan.container_id, attributes)


def remove(database: Database, plan: RunPlan, *, volumes: bool = False) -> None:
    """Forget an ended container and remove its host directory; on a full disk the other way round, for what it wrote is what fills it."""
    try:
        forget(database, plan, volumes=volumes)
    except StorageFull:
        remove_directory(plan)
        forget(database, plan, volumes=volumes)
    remove_directory(plan)


def await_monitor(directory: str) -> None:
    """Wait, not for long, until whoever starts a container (host directory) has done so, or whoever recorded its end has told of it and is gone."""
    deadline = time.monotonic() + _MONITOR_S
    while _is_locked(f"{directory}/monitor.lock") and not current_state(directory).active and time.monotonic() < deadline:
        time.sleep(0.001)


def remove_directory(plan: RunPlan) -> None:
    """Remove the container's host directory; harmless to repeat, and done by :func:`collect` for directories without a row.

    With it go the directories of its volumes that have no row any more.
    """
    directory = Path(plan.state_host_path)
    if names := {mount.volume for mount in plan.mounts if mount.volume}:
        _sweep_volumes(directory.parent.parent, names)
    if os.geteuid() != 0:
        # Files of the container's other users belong to subordinate ids: only root of such a namespace may remove them.
        mappings = (plan.security.id_mappings, plan.security.group_mappings or plan.security.id_mappings)
        if mappings[0]:
            user_namespace.call(*mappings, lambda: remove_tree(directory))
    for _ in range(_REMOVALS):
        try:
            shutil.rmtree(directory)
        except RecursionError:
            remove_tree(directory)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
                raise
        if not directory.exists():
            return
        time.sleep(0.01)  # a monitor that records the end, or was being started anew, wrote or renamed something there meanwhile


def _sweep_volumes(home: Path, names: set[str]) -> None:
    database = Database(home)
    store = Store(home, database)
    try:
        for name in names:
            Volumes(home, database, store).sweep(name)
    finally:
        store.close()
        database.close()


def collect(home: Path, database: Database) -> None:
    """Remove the directories of containers that are known to nobody any more: what a monitor left that was killed while it removed one.

    Those in which a monitor is at work (it holds a lock), and those that are younger than their row might be, are left alone.
    """
    known = ContainerRecords(database).identifiers()
    for entry in os.scandir(home / "containers"):
        if entry.name in known or _is_young(entry) or _is_locked(f"{entry.path}/monitor.lock"):
            continue
        group = ControlGroup.open(entry.name)
        group.kill()
        group.remove()
        group.close()
        remove_tree(Path(entry.path))


def collect_steps(home: Path, database: Database) -> None:
    """Remove the containers of builds that were killed: those whose writable layer was in a workspace that is gone, and that do not run."""
    for record in ContainerRecords(database).of_image(""):
        writable = Path(record.plan.root.writable_host_path)
        if writable.parent.exists() or current_state(record.plan.state_host_path).status == "running":
            continue
        forget(database, record.plan)
        driver_for(record.plan.isolation, home).clean_up(record.plan)
        remove_directory(record.plan)


def _is_young(entry: os.DirEntry[str]) -> bool:
    try:
        return time.time() - entry.stat().st_mtime < _YOUNG_S
    except FileNotFoundError:  # who removed the container has removed this just now
        return True


def _is_locked(path: str) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
