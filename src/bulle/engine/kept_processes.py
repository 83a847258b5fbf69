"""The memory of a container's processes, for snapshots: files in a directory of the container's, by :mod:`bulle.isolation.checkpointing`.

What a container wrote is a layer, read while its processes stand still; the memory fits that layer alone. Restoring puts a copy whose digests were
compared into the container's new writable layer, where its next start finds it, once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bulle.engine import kept_machines
from bulle.engine.changes import NO_CHANGES, keep_changes
from bulle.errors import BulleError, StorageFull
from bulle.isolation import checkpointing
from bulle.records.snapshots import KeptMachine, Snapshot, SnapshotRecords
from bulle.store.failures import storage_errors
from bulle.store.usage import disk_bytes
from bulle.store.workspace import remove_tree

if TYPE_CHECKING:
    from bulle.engine.container import Container
    from bulle.engine.engine import Engine
    from bulle.model.digest import Digest
    from bulle.model.run_plan import RunPlan
    from bulle.store import Layer


def snapshot(engine: Engine, container: Container, tag: str, directory: str, below: Sequence[Digest], notes: list[str]) -> Snapshot | None:
    """A snapshot with memory of a container that runs, below ``directory`` among its own: its row comes last. ``below`` are its layers.

    None where it does not run or its memory cannot be kept; then ``notes`` say why. Raises StorageFull and what reading its files does.
    """
    if container.state().status != "running" or container.is_paused():
        return None
    if why := checkpointing.why_not(container.plan):
        notes.append(f"its memory is not kept: {why}")
        return None
    program = checkpointing.probe()
    if program.reason:
        notes.append(f"its memory is not kept: {program.reason} (see `bulle doctor`)")
        return None
    place = engine.store.temporary_directory()
    target = Path(container.directory, directory, place.name)
    read: list[Layer] = []
    try:
        with storage_errors(f"the memory of {container.name} could not be kept"):
            try:
                checkpointing.keep(
                    container.plan, container.state().pid, place, program, lambda: read.append(keep_changes(engine.store, container.plan))
                )
            except StorageFull:
                raise
            except BulleError as error:
                if read or error.brief != checkpointing.NOT_KEPT:
                    raise
                notes.append(f"its memory is not kept: {error.details}")
                remove_tree(place)
                return None
            own = () if read[0].diff_id == NO_CHANGES else (read[0].diff_id,)
            engine.store.layers.prepare((*below, *own))
            made = Snapshot(
                container_id=container.id,
                tag=tag,
                created_at_ns=time.time_ns(),
                size_bytes=disk_bytes(place) + (read[0].size_bytes if own else 0),
                layers=(*below, *own),
                options=container.options,
                machine=KeptMachine(place.name, {name: kept_machines.digest(place, name) for name in sorted(os.listdir(place))}),
            )
            target.parent.mkdir(mode=0o700, exist_ok=True)
            place.rename(target)
        SnapshotRecords(engine.database).create(made)
    except BaseException:
        remove_tree(place)
        remove_tree(target)
        raise
    return made


def require(place: Path, plan: RunPlan) -> None:
    """See that a container of this plan can go on here from memory in a directory (host path), and name the program there. Raises BulleError."""
    found = checkpointing.require((place / checkpointing.KNOWN).read_bytes(), plan)
    os.symlink(found.program, place / checkpointing.PROGRAM)


def put(place: Path, plan: RunPlan) -> None:
    """Move memory into the writable layer of a container, which goes on from it at its next start."""
    for name in os.listdir(place):
        if name != checkpointing.PROGRAM:
            os.chmod(place / name, 0o644)
    os.chmod(place, 0o755)  # CRIU reads from it in the container's user namespace too
    os.rename(place, plan.root.memory_host_path)
