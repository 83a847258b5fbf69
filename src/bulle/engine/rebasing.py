"""``switch`` and ``snapshot``: the same container at another level of isolation, or with the files that it had.

What a container wrote becomes a layer, with the numbers of users that it sees itself, so that every level understands it; the container then stands
on one layer more and has a new, empty writable layer. Its row says which writable layer is its own: it changes in one transaction, so that whoever is
killed leaves the old container or the new one. The other writable layer is removed behind that, by the same command or the next collection.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from bulle.engine import identities, networking, planning, whole_snapshots
from bulle.engine.changes import NO_CHANGES, keep_changes
from bulle.engine.container import Container
from bulle.engine.directories import make_writable, write_identity
from bulle.engine.drivers import LEVELS, driver_for
from bulle.engine.inner_worker import kept_from_starting, require_writable_layer
from bulle.engine.pausing import standing_still
from bulle.engine.updating import alone
from bulle.errors import BulleError, Conflict, InvalidInput, NotFound
from bulle.model.container import ContainerOptions
from bulle.model.digest import Digest
from bulle.model.image import ExecutionConfig
from bulle.model.platform import parse_platform
from bulle.model.run_plan import RunPlan
from bulle.records.containers import ContainerRecord, ContainerRecords
from bulle.records.events import publish_container
from bulle.records.networks import NetworkRecords
from bulle.records.snapshots import KeptMachine, Snapshot, SnapshotRecords
from bulle.store.failures import storage_errors
from bulle.store.usage import disk_bytes
from bulle.store.workspace import remove_tree

if TYPE_CHECKING:
    from sqlite3 import Connection

    from bulle.engine.engine import Engine

_SNAPSHOTS = "snapshots"  # in a container's directory: one directory for each machine that was kept
_TAG_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


def switch(engine: Engine, name: str, isolation: str, timeout_s: int | None = None) -> Container:
    """Have a container at another level: its name, id, files, volumes, address, ports and labels stay. One that runs is restarted.

    Where it does not start there it is at its old level again, and the error is raised. Raises InvalidInput, Unsupported, Conflict.
    """
    container = engine.containers.get(name)
    if isolation not in LEVELS:
        raise InvalidInput(f"there is no isolation level {isolation!r}", "", f"use one of {', '.join(LEVELS)}")
    if isolation == (container.options.isolation or "container"):
        raise Conflict(f"container {container.name} is at the level {isolation} already")
    if whole_snapshots.is_whole(container.plan):
        raise Conflict(f"{container.name} can be at no other level", "it is a machine with a system of its own", "make a container of an image")
    with alone(container.directory):
        change = _Change(engine, container)
        change.check(replace(container.options, isolation=isolation))
        return change.done_while_stopped(
            timeout_s, lambda: change.to(replace(container.options, isolation=isolation), (*_layers(container.plan), *change.written()))
        )


def create_snapshot(engine: Engine, name: str, tag: str = "", *, disk_only: bool = False) -> tuple[Snapshot, tuple[str, ...]]:
    """Keep the files and options of a container as they are, and the memory of a virtual machine that runs, where it can be kept and is wanted.

    One that runs stands still meanwhile. Returns also what was weaker than asked. Raises InvalidInput, Conflict, StorageFull, Unsupported.
    """
    container = engine.containers.get(name)
    tag = tag or time.strftime("%Y%m%d-%H%M%S")
    if not set(tag) <= _TAG_CHARACTERS or tag[0] in ".-" or len(tag) > 128:
        raise InvalidInput(f"{tag!r} cannot be the tag of a snapshot", "", "use letters, digits, '_', '.' and '-'")
    records = SnapshotRecords(engine.database)
    if any(one.tag == tag for one in records.of(container.id)):
        raise Conflict(f"there is a snapshot {tag} of {container.name} already", "", "give the new one another tag, or remove that one")
    from bulle.engine import kept_machines  # costly, like what it stands on

    notes: list[str] = []
    require_writable_layer(container.plan)
    with alone(container.directory), engine.store.receiving():
        container = engine.containers.get(container.id)
        engine.store.layers.keep(_layers(container.plan))
        _remove_others(engine, container.plan)
        if whole_snapshots.is_whole(container.plan):
            return _kept_whole(engine, container, tag), ()
        if kept_machines.keeps_memory(container, notes, disk_only=disk_only):
            return _kept_machine(engine, container, tag), ()
        if container.plan.guest is None:
            from bulle.engine import kept_processes

            if not disk_only and (made := kept_processes.snapshot(engine, container, tag, _SNAPSHOTS, _layers(container.plan), notes)) is not None:
                return made, tuple(notes)
            with standing_still(engine.home, container, notes):
                layer = keep_changes(engine.store, container.plan)
        else:
            if container.state().active:
                notes.append("the machine went on while its files were read")
            layer = keep_changes(engine.store, container.plan)
        own = () if layer.diff_id == NO_CHANGES else (layer.diff_id,)
        engine.store.layers.prepare((*_layers(container.plan), *own))
        made = Snapshot(
            container_id=container.id,
            tag=tag,
            created_at_ns=time.time_ns(),
            size_bytes=layer.size_bytes if own else 0,
            layers=(*_layers(container.plan), *own),
            options=container.options,
        )
        records.create(made)
    return made, tuple(notes)


def _kept_machine(engine: Engine, container: Container, tag: str) -> Snapshot:
    """A snapshot of a machine that runs: its own files are made first, the row comes last."""
    from bulle.engine import kept_machines

    place = engine.store.temporary_directory()
    target = Path(container.directory, _SNAPSHOTS, place.name)
    try:
        kept_machines.keep(container, place, whole_disk=True)
        made = Snapshot(
            container_id=container.id,
            tag=tag,
            created_at_ns=time.time_ns(),
            size_bytes=disk_bytes(place),
            layers=_layers(container.plan),
            options=container.options,
            machine=KeptMachine(place.name, kept_machines.digests(place)),
        )
        with storage_errors(f"the snapshot of {container.name} could not be kept"):
            target.parent.mkdir(mode=0o700, exist_ok=True)
            place.rename(target)
        SnapshotRecords(engine.database).create(made)
    except BaseException:
        remove_tree(place)
        remove_tree(target)
        raise
    return made


def _kept_whole(engine: Engine, container: Container, tag: str) -> Snapshot:
    """A snapshot of a machine with a system of its own, whose files are in a directory of this tag before the row is there."""
    records = SnapshotRecords(engine.database)
    if any(one.tag == tag for one in records.of(container.id)):
        raise Conflict(f"there is a snapshot {tag} of {container.name} already", "", "give the new one another tag, or remove that one")
    try:
        made = Snapshot(
            container_id=container.id,
            tag=tag,
            size_bytes=whole_snapshots.keep(container, tag),
            created_at_ns=time.time_ns(),
            layers=_layers(container.plan),
            options=container.options,
        )
        records.create(made)
        return made
    except BaseException:
        _remove_others(engine, container.plan)
        raise


def snapshots(engine: Engine, name: str = "") -> list[Snapshot]:
    """Those of a container, or of all, oldest first."""
    records = SnapshotRecords(engine.database)
    return records.of(engine.containers.get(name).id) if name else records.all()


def restore_snapshot(engine: Engine, name: str, tag: str, timeout_s: int | None = None, *, disk_only: bool = False) -> Container:
    """Give a container the files, options and level that it had; its name, volumes and address stay. One that runs is restarted.

    A machine whose memory was kept goes on from that moment, whether it runs now or not, unless its disk alone is wanted. Raises NotFound, Conflict
    and CorruptImage for memory that is not for this machine or damaged, before anything is stopped.
    """
    container = engine.containers.get(name)
    with alone(container.directory), ExitStack() as stack:
        container = engine.containers.get(container.id)
        snapshot = SnapshotRecords(engine.database).find(container.id, tag)
        options = replace(snapshot.options, name=container.options.name)
        change = _Change(engine, container)
        change.check(options)
        if whole_snapshots.is_whole(container.plan):
            files = stack.enter_context(whole_snapshots.copied(engine.store, container.plan, tag))
            return change.done_while_stopped(timeout_s, lambda: change.to(options, snapshot.layers, partial(whole_snapshots.put, files)))
        keeps_processes = options.isolation != "vm"
        if snapshot.machine is None or (keeps_processes and disk_only):
            return change.done_while_stopped(timeout_s, lambda: change.to(options, snapshot.layers))
        from bulle.engine import kept_machines
        from bulle.isolation.microvm.checkpoint import DISK_NAME

        source = Path(container.directory, _SNAPSHOTS, snapshot.machine.directory)
        names = (DISK_NAME,) if disk_only else tuple(snapshot.machine.digests)
        place = stack.enter_context(kept_machines.copied(engine.store, source, snapshot.machine.digests, names))
        if keeps_processes:
            from bulle.engine import kept_processes

            kept_processes.require(place, change.composed(options, snapshot.layers))
            return change.done_while_stopped(
                timeout_s, lambda: change.to(options, snapshot.layers, lambda plan: kept_processes.put(place, plan)), starts=True
            )
        if not disk_only:
            change.check_memory(options, snapshot.layers, place)
        return change.done_while_stopped(
            timeout_s,
            lambda: change.to(options, snapshot.layers, lambda plan: kept_machines.put(place, plan, names)),
            starts=not disk_only,
        )


def remove_snapshot(engine: Engine, name: str, tag: str) -> None:
    """Forget a snapshot, and what only it kept. Raises NotFound."""
    container = engine.containers.get(name)
    with alone(container.directory):
        if not SnapshotRecords(engine.database).delete(container.id, tag):
            raise NotFound(f"no such snapshot: {tag}", "", f"`bulle snapshot ls {container.name}` lists them")
        _remove_others(engine, engine.containers.get(container.id).plan)
    engine.store.gc()


def collect(engine: Engine) -> None:
    """Remove the writable layers and the kept machines that are no container's any more: what a killed switch, restore or snapshot left."""
    for record in ContainerRecords(engine.database).all():
        directory = record.plan.state_host_path
        with suppress(OSError):
            entries = os.listdir(directory)
            if sum(entry.startswith("root") for entry in entries) < 2 and not any(entry.startswith("snapshot") for entry in entries):
                continue
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove_others(engine, ContainerRecords(engine.database).find(record.id).plan)
            except BlockingIOError:
                continue  # it is being changed
            finally:
                os.close(descriptor)


def _layers(plan: RunPlan) -> tuple[Digest, ...]:
    return tuple(Digest(layer.diff_id) for layer in plan.root.layers)


def _remove_others(engine: Engine, plan: RunPlan) -> None:
    """Every writable layer in the container's directory but its own, and every kept machine that no snapshot has."""
    whole_snapshots.sweep(plan, [one.tag for one in SnapshotRecords(engine.database).of(plan.container_id)])
    own = os.path.basename(plan.root.writable_host_path)
    kept = {one.machine.directory for one in SnapshotRecords(engine.database).of(plan.container_id) if one.machine is not None}
    with suppress(FileNotFoundError):
        for entry in os.listdir(f"{plan.state_host_path}/{_SNAPSHOTS}"):
            if entry not in kept:
                remove_tree(Path(plan.state_host_path, _SNAPSHOTS, entry))
        if not kept:
            os.rmdir(f"{plan.state_host_path}/{_SNAPSHOTS}")
    for entry in os.listdir(plan.state_host_path):
        if entry != own and (entry == "root" or entry.startswith("root-")):
            remove_tree(Path(plan.state_host_path, entry))


class _Change:
    """One change of one container, whose directory is locked meanwhile."""

    def __init__(self, engine: Engine, container: Container) -> None:
        self.engine = engine
        self.container = container
        if container.options.auto_remove:
            raise Conflict(f"container {container.name} is removed at its end (--rm)", "it would not be there any more", "make one without --rm")
        self.image = engine.images.get(container.image_id) if container.image_id else None
        _remove_others(engine, container.plan)

    def written(self) -> tuple[Digest, ...]:
        """What it wrote, as a layer. Within ``receiving``."""
        layer = keep_changes(self.engine.store, self.container.plan)
        return () if layer.diff_id == NO_CHANGES else (layer.diff_id,)

    def check(self, options: ContainerOptions) -> None:
        """Raise what starting it with these options would, as far as that can be told now."""
        plan = self.composed(options, _layers(self.container.plan))
        driver_for(plan.isolation, self.engine.home).require(plan)

    def composed(self, options: ContainerOptions, layers: Sequence[Digest]) -> RunPlan:
        """Its plan with these options on these layers."""
        return self._compose(options, layers, self.container.record.id_range)

    def check_memory(self, options: ContainerOptions, layers: Sequence[Digest], place: Path) -> None:
        """Raise what going on from the memory in a directory would, as far as that can be told before it is stopped."""
        from bulle.isolation.microvm.setup import require_kept

        old = self.container.plan
        plan = self.composed(options, layers)
        if plan.network.mode == old.network.mode:
            plan = replace(plan, network=old.network)
            require_kept(plan, self.engine.home / "cache", str(place))

    def done_while_stopped(self, timeout_s: int | None, act: Callable[[], ContainerRecord], *, starts: bool = False) -> Container:
        """Stop it where it runs, act, and start it again, with ``starts`` in any case; where it does not start, all is as it was."""
        before, was_active = self.container, self.container.state().active
        before.stop(timeout_s, verb="switch")
        try:
            with self.engine.store.receiving():
                changed = Container(self.engine.home, self.engine.database, act())
        except BaseException:
            if was_active:
                before.start()
            raise
        if was_active or starts:
            try:
                changed.start()
            except BulleError:
                if self._back(changed):
                    if was_active:
                        before.start()
                    raise
        self._free_places(before.plan, changed.plan)
        _remove_others(self.engine, changed.plan)
        publish_container(changed.directory, "update")
        return changed

    def _back(self, changed: Container) -> bool:
        """Make a container that did not start what it was; not where somebody else has started it meanwhile: then it is what it was to become."""
        before = self.container
        try:
            with kept_from_starting(changed.plan, changed.name):
                ContainerRecords(self.engine.database).rebase(changed.record, lambda _taken, _connection: before.record, lambda _record: None)
                self._free_places(changed.plan, before.plan)
                write_identity(before.plan)
        except Conflict:
            return False
        _remove_others(self.engine, before.plan)
        return True

    def to(self, options: ContainerOptions, layers: Sequence[Digest], fill: Callable[[RunPlan], None] = lambda _plan: None) -> ContainerRecord:
        """Make it another one: with these options, on these layers, and a writable layer that is empty, or what ``fill`` makes it. Returns its new
        record."""
        old = self.container.record
        self.engine.store.layers.keep(layers)
        self.engine.store.layers.prepare(layers)
        writable = f"{old.plan.state_host_path}/root-{secrets.token_hex(4)}"

        def build(taken: set[int], connection: Connection) -> ContainerRecord:
            first = None
            if planning.has_own_users(options) and os.geteuid() == 0:
                first = old.id_range if old.id_range is not None else identities.free_range(self.engine.home, taken)
            plan = self._compose(options, layers, first)
            plan = replace(plan, root=replace(plan.root, writable_host_path=writable))
            return ContainerRecord.of(old.id, old.name, old.image_id, old.created_at_ns, first, options, self._connected(connection, options, plan))

        def make(record: ContainerRecord) -> None:
            make_writable(record.plan)
            fill(record.plan)

        try:
            with kept_from_starting(old.plan, old.name):
                driver_for(old.plan.isolation, self.engine.home).clean_up(old.plan)
                made = ContainerRecords(self.engine.database).rebase(old, build, make)
                write_identity(made.plan)
                return made
        except BaseException:
            if ContainerRecords(self.engine.database).find(old.id).plan.root.writable_host_path != writable:
                remove_tree(Path(writable))
            raise

    def _compose(self, options: ContainerOptions, layers: Sequence[Digest], first: int | None) -> RunPlan:
        old, image = self.container.plan, self.image
        binds = image.host_binds if image is not None else ()
        # What the image "host" shows of this machine is a mount at one level and a part of the root at the others: composing says it anew.
        mounts = tuple(one for one in old.mounts if not (one.host_path in binds and one.host_path == one.container_path))
        whole = old.guest.whole if old.guest is not None else None
        config = ExecutionConfig() if image is None or whole is not None else image.config.config or ExecutionConfig()
        base = planning.Base(
            tuple(layers), config, self.container.image_id, binds, mounts=mounts, volume_layers=old.volume_layers,
            platform=image.config.platform if image is not None else parse_platform(options.platform),
            disk=whole.image if whole is not None else None,
        )  # fmt: skip
        return self.engine.containers.composed(options, base, old.container_id, first, self.container.name)

    def _connected(self, connection: Connection, options: ContainerOptions, plan: RunPlan) -> RunPlan:
        """With its places on networks: the same where it has networks of its own before and after. Those that it leaves are freed when it runs."""
        old, records = self.container.plan, NetworkRecords(self.engine.database)
        if plan.network.mode == "own" == old.network.mode:
            network = replace(plan.network, attachments=old.network.attachments, egress=old.network.egress, dns=old.network.dns)
            return replace(plan, network=network)
        return replace(plan, network=networking.attach(connection, records, old.container_id, options, plan.network))

    def _free_places(self, before: RunPlan, after: RunPlan) -> None:
        """Give up the places on networks that it had before and has no more."""
        kept = {one.network_id for one in after.network.attachments}
        gone = [one.network_id for one in before.network.attachments if one.network_id not in kept]
        if gone:
            with self.engine.database.transaction() as connection:
                for network_id in gone:
                    NetworkRecords(self.engine.database).detach(connection, network_id, before.container_id)
