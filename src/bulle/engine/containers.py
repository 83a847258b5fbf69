"""The containers of a home: make one, find them, look after what is not needed any more."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from bulle.engine import guests, identities, names, networking, planning
from bulle.engine.container import Container
from bulle.engine.directories import make_directory
from bulle.engine.drivers import LEVELS, driver_for
from bulle.engine.images import Images
from bulle.engine.log_options import with_log
from bulle.engine.planning import Base
from bulle.engine.volumes import Volumes
from bulle.errors import Conflict, NotFound, StorageFull, Unavailable
from bulle.isolation.driver import Feature
from bulle.linux import subordinate_ids
from bulle.model.container import ContainerOptions
from bulle.model.image import ExecutionConfig
from bulle.model.platform import parse_platform
from bulle.model.run_plan import RunPlan
from bulle.records.containers import ContainerRecord, ContainerRecords, NameTaken
from bulle.records.database import Database
from bulle.records.events import describe_container, publish
from bulle.records.networks import NetworkRecords
from bulle.store import Store

if TYPE_CHECKING:
    import builtins
    from collections.abc import Callable, Sequence
    from sqlite3 import Connection

    from bulle.engine.measuring import ContainerStatistics
    from bulle.engine.mounting import Adopt, Mounting
    from bulle.engine.pruning import Pruned, PruneFilter
    from bulle.model.digest import Digest

    Build = Callable[[set[int], Connection], ContainerRecord]

_ATTEMPTS = 20


class Containers:
    """The containers of a home."""

    def __init__(self, home: Path, database: Database, store: Store, images: Images, volumes: Volumes) -> None:
        self._home = home
        self._database = database
        self._records = ContainerRecords(database)
        self._networks = NetworkRecords(database)
        self._store = store
        self._images = images
        self._volumes = volumes

    def create(
        self, options: ContainerOptions, base: Base | None = None, *, layers: Sequence[Digest] = (), fill: Callable[[RunPlan], None] | None = None
    ) -> Container:
        """Make a container without starting it: its name, ids and directory. The image is pulled as ``options.pull`` says; ``base`` replaces it.

        ``layers`` stand in place of the image's own; ``fill`` puts more into its directory before it can be seen.
        """
        for_build = base is not None
        if base is None:
            base = self._base(options)
            base = replace(base, layers=tuple(layers)) if layers else base
        else:
            self._store.layers.prepare(base.layers)  # as it was done for an image when that was committed
        mounting = self._mounting(options, base)
        if mounting is not None:
            base = mounting.resolve(options, base, image_volumes=not for_build and self._obeys_volumes(options, base))
        kept = planning.with_image(options, base.config)
        if planning.has_own_users(options) and self._store.layers.has_large_ids(base.layers):
            raise Unavailable(
                f"image {options.image} has files of users beyond id 65535", "a container has 65536 ids of its own", "run it with --userns=host"
            )
        identifier = secrets.token_hex(32)
        if options.name:
            names.check(options.name)

        options = self._with_kernel(self._with_shared_network(options), base)

        def build(taken: set[int], connection: Connection) -> ContainerRecord:
            own = planning.has_own_users(options)
            first = identities.free_range(self._home, taken) if own and os.geteuid() == 0 else None
            name = options.name or names.random_name()
            plan = self._compose(options, base, identifier, first, name)
            network = networking.attach(connection, self._networks, identifier, options, plan.network)
            if network is not plan.network:
                plan = replace(plan, network=network)
            return ContainerRecord.of(identifier, name, base.image_id, time.time_ns(), first, kept, plan)

        record = self._insert_with_directory(build, options, mounting, base, identifier, fill)
        if not for_build:  # what a build does is not what a user sees of containers
            attributes = {**kept.labels, "image": options.image, "name": record.name}
            describe_container(record.plan.state_host_path, attributes)
            publish(self._home, "container", "create", identifier, attributes)
        return Container(self._home, self._database, record)

    def image_of(self, options: ContainerOptions) -> str:
        """The id of the image that a container would be made from now; empty where it would have to be pulled."""
        try:
            return self._images.for_run(options.image, "never", options.platform).id
        except NotFound:
            return ""

    def plan(self, options: ContainerOptions) -> RunPlan:
        """What ``create`` and ``start`` would do, without doing it."""
        base = self._base(options)
        options = self._with_kernel(self._with_shared_network(options), base)
        if (mounting := self._mounting(options, base)) is not None:
            base = mounting.resolve(options, base, image_volumes=self._obeys_volumes(options, base))
        plan = self._compose(options, base, "0" * 64, identities.free_range(self._home, ()), options.name)
        if plan.network.mode != "own":
            return plan
        connection = self._database.connection()
        connection.execute("BEGIN IMMEDIATE")
        try:
            return replace(plan, network=networking.attach(connection, self._networks, plan.container_id, options, plan.network))
        finally:
            connection.execute("ROLLBACK")

    def check(self, options: ContainerOptions) -> None:
        """Raise what ``create`` would, but for names, networks, volumes and the container whose network is shared, which may come to be meanwhile."""
        shares = options.network.startswith("container:")
        plan = self._compose(replace(options, network="none") if shares else options, self._base(options), "0" * 64, None, options.name)
        driver_for(plan.isolation, self._home).require(plan)

    def fork(self, container: Container, name: str = "") -> Container:
        """A second virtual machine from one that runs, which goes on from the same moment; see :func:`bulle.engine.forking.fork`."""
        from bulle.engine.forking import fork

        return fork(self._store, self, container, name)

    def get(self, name: str) -> Container:
        """By name, id or unambiguous beginning of an id. Raises NotFound."""
        return Container(self._home, self._database, self._records.find(name))

    def list(self, *, all: bool = False) -> list[Container]:
        """Running containers, or all, newest first."""
        containers = [Container(self._home, self._database, record) for record in self._records.all()]
        return containers if all else [container for container in containers if container.state().active]

    def labelled(self, label: str, value: str | None = None) -> builtins.list[Container]:
        """Every container that has this label (with this value), running or not, newest first; one query for all."""
        return [Container(self._home, self._database, record) for record in self._records.labelled(label, value)]

    def stats(self, *, all: bool = False, interval_s: float = 0.25) -> builtins.list[ContainerStatistics]:
        """What running containers, or all, use, newest first: looked at together, twice, ``interval_s`` apart."""
        from bulle.engine.measuring import measure

        return measure(self._home, self.list(all=all), interval_s)

    def prune(self, chosen: PruneFilter | None = None) -> Pruned:
        """Remove every container that does not run."""
        from bulle.engine.pruning import PruneFilter, prune_containers

        return prune_containers(self, self._store, chosen or PruneFilter())

    def composed(self, options: ContainerOptions, base: Base, identifier: str, first: int | None, name: str) -> RunPlan:
        """The plan of a container of that id and name, with ``first`` as the first of its host ids, without its places on networks."""
        return self._compose(self._with_kernel(self._with_shared_network(options), base), base, identifier, first, name)

    def _base(self, options: ContainerOptions) -> Base:
        if options.whole is not None and not options.image:
            return Base((), platform=parse_platform(options.platform))
        image = self._images.for_run(options.image, options.pull, options.platform)
        base = Base(image.layers, image.config.config or ExecutionConfig(), image.id, image.host_binds, platform=image.config.platform)
        if options.whole is None:
            return base
        from bulle.engine.disk_images import disk_of

        return replace(base, config=ExecutionConfig(), disk=disk_of(self._store.layers.disks(image.layers), options.image))

    def _with_shared_network(self, options: ContainerOptions) -> ContainerOptions:
        """With the id of the container whose network is shared in place of its name; that of the first where it shares it itself."""
        kind, colon, name = options.network.partition(":")
        if kind != "container" or not colon:
            return options
        other = self._records.find(name)
        return replace(options, network=f"container:{other.plan.network.container_id or other.id}")

    def _with_kernel(self, options: ContainerOptions, base: Base) -> ContainerOptions:
        """With a directory (host path) in place of the image that a guest's kernel is in."""
        if options.isolation != "vm" or options.whole is not None:
            return options
        from bulle.engine import guest_kernels

        before, prefix, name = guests.kernel_of(options, base.platform).partition(guest_kernels.PREFIX)
        if before or not prefix:
            return options
        image = self._images.for_run(name, options.pull, options.platform)
        return replace(options, kernel=guest_kernels.kept(self._home, self._store, image, name))

    def _mounting(self, options: ContainerOptions, base: Base) -> Mounting | None:
        """What resolves the mounts of a container that has any."""
        if not (options.volumes or options.mounts or options.tmpfs or options.volumes_from or base.mounts or base.config.volumes):
            return None
        from bulle.engine.mounting import Mounting

        return Mounting(self._database, self._store, self._images, self._volumes)

    def _obeys_volumes(self, options: ContainerOptions, base: Base) -> bool:
        """Whether the image's VOLUME means anything here; where a level has no volumes, what would be in them is in the container."""
        level = options.isolation or "container"
        return bool(base.config.volumes) and level in LEVELS and Feature.VOLUMES in driver_for(level, self._home).probe().features

    def _insert_with_directory(
        self,
        build: Build,
        options: ContainerOptions,
        mounting: Mounting | None,
        base: Base,
        identifier: str,
        fill: Callable[[RunPlan], None] | None,
    ) -> ContainerRecord:
        made: list[RunPlan] = []

        def make(record: ContainerRecord) -> None:
            """The directory, before the row is everybody's: who is killed here leaves no container that cannot start."""
            made.append(record.plan)
            if record.plan.root.size_bytes or record.plan.guest is not None:
                driver_for(record.plan.isolation, self._home).require(record.plan)
            make_directory(record.plan)
            if fill is not None:
                fill(record.plan)

        try:
            if mounting is None or not mounting.mounts:
                return self._insert(build, bool(options.name), lambda _connection, record: make(record))
            return self._insert_with_volumes(build, bool(options.name), mounting, base, options.user or base.config.user, make)
        except BaseException as error:
            for plan in made:
                if self._records.exists(identifier):  # it broke off behind the transaction
                    self._records.delete(identifier, volumes=True)
                shutil.rmtree(plan.state_host_path, ignore_errors=True)
                for mount in plan.mounts:
                    if mount.volume:
                        self._volumes.sweep(mount.volume)
            if made and isinstance(error, OSError) and error.errno in (28, 122):
                raise StorageFull("the container could not be created", os.strerror(error.errno), "free some space") from error
            raise

    def _insert_with_volumes(
        self, build: Build, named: bool, mounting: Mounting, base: Base, user: str, make: Callable[[ContainerRecord], None]
    ) -> ContainerRecord:
        from bulle.engine.mounting import VolumesChanged

        for _ in range(_ATTEMPTS):
            try:
                with mounting.prepared(base, user) as adopt:

                    def complete(connection: Connection, record: ContainerRecord, adopt: Adopt = adopt) -> None:
                        adopt(connection, record)
                        make(record)

                    return self._insert(build, named, complete)
            except VolumesChanged:
                continue
        raise Conflict("the volumes of the container are made and removed again and again", "", "see what does that")

    def _insert(self, build: Build, named: bool, also: Adopt | None = None) -> ContainerRecord:
        for _ in range(_ATTEMPTS):
            try:
                return self._records.create(build, also)
            except NameTaken:
                if named:
                    raise
        raise Conflict("no free name was found for the container", "", "give it one with --name")

    def _compose(self, options: ContainerOptions, base: Base, identifier: str, first: int | None, name: str) -> RunPlan:
        if os.geteuid() == 0:
            users = groups = identities.root_mappings(first) if first is not None else ()
        else:
            users, groups = subordinate_ids.rootless_mappings()
        plan = planning.compose(
            options,
            base,
            container_id=identifier,
            directory=self._home / "containers" / identifier,
            layers=self._store.layers.disks(base.layers) if options.isolation == "vm" else self._store.layers.plan(base.layers),
            id_mappings=users,
            group_mappings=groups,
        )
        if plan.network.mode == "container":  # who shares a network is called the same there
            plan = replace(plan, hostname=self._records.find(plan.network.container_id).plan.hostname)
        return with_log(plan, planning.with_image(options, base.config), name, base.image_id) if options.log_driver or options.log_options else plan
