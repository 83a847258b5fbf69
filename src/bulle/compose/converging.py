"""``up`` and ``create``: what there is of an app becomes what is wanted of it.

Everything that can be found wrong is found before the first change. New containers are made before anything that runs is touched; then service after
service, as they depend on each other, takes its new ones. It starts from what there is, so that an ``up`` that was killed is finished by the next.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msgspec.structs import replace

from bulle.compose import conditions, kept_files, record
from bulle.compose.actual import containers_of, number_of, service_of
from bulle.compose.app_images import Builder, ensure_images
from bulle.compose.checking import check_options, check_ports, check_replicas, loopback_ports
from bulle.compose.deciding import Step, Wishes, decide, needs_place_first, shares
from bulle.compose.foundations import Foundations, Report
from bulle.compose.hashing import service_hash
from bulle.compose.model import Note, Project, Service
from bulle.compose.mounts import check_binds
from bulle.compose.options import replica_name
from bulle.compose.ordering import chosen, dependencies, in_waves
from bulle.compose.replicas import Replicas, by_service, is_aside
from bulle.compose.rollout import RolledBack, Rollout
from bulle.compose.verdicts import judge
from bulle.engine.container import Container
from bulle.engine.parallel import each
from bulle.errors import BulleError
from bulle.records.apps import Choices

if TYPE_CHECKING:
    from bulle.engine import Engine

AT_ONCE = 8


@dataclass(frozen=True)
class Orders:
    """What ``up`` and ``create`` are told, in the words of docker compose's flags. ``services`` are names; none: all."""

    services: tuple[str, ...] = ()
    scales: Mapping[str, int] = field(default_factory=dict)
    start: bool = True
    kept: bool = True
    """Whether what is started is to run from now on, and is started again where it dies; else its first end is waited for."""
    with_dependencies: bool = True
    force_recreate: bool = False
    recreate: bool = True
    recreate_dependencies: bool = False
    renew_volumes: bool = False
    remove_orphans: bool = False
    build: bool | None = None
    pull: str = ""
    quiet_pull: bool = False
    timeout_s: int | None = None
    every_resource: bool = False
    at_once: int = AT_ONCE
    dry: bool = False


class Convergence:
    """One ``up`` of an app, which is locked meanwhile. :meth:`prepare` checks everything, :meth:`apply` changes what is to be changed."""

    def __init__(self, engine: Engine, project: Project, orders: Orders, report: Report, builder: Builder) -> None:
        self._engine = engine
        self._orders = orders
        self._report = report
        self._builder = builder
        self._before = record.read(engine, project.name)
        services = {name: self._scaled(service) for name, service in project.services.items()}
        self.project = replace(project, services=services)
        self.services = chosen(services, orders.services, with_dependencies=orders.with_dependencies)
        self.notes: list[Note] = []
        self.orphans: list[Container] = []
        self.steps: dict[str, Step] = {}
        self.given_up = threading.Event()
        self.replicas: Replicas
        self._foundations: Foundations

    def _scaled(self, service: Service) -> Service:
        """With as many replicas as the command says, or whoever scales the service by its load."""
        scales = self._orders.scales
        if service.name not in scales and service.autoscale is not None:
            before = self._before.choices.scales.get(service.name) if self._before is not None else None
            now = service.replicas if before is None else before
            scales = {service.name: min(max(now, service.autoscale.min), service.autoscale.max)}
        return record.effective(service, Choices(scales=dict(scales)))

    def prepare(self) -> None:
        """Check all that can be known, have the images here, and decide what is to be done. Raises BulleError; then nothing was changed."""
        engine, services, orders = self._engine, self.services, self._orders
        self.notes += judge(self.project, services)
        check_replicas(self.project, services.values(), orders.scales)
        for service in services.values():
            check_binds(self.project, service)
            kept_files.check_files(self.project, service)
        self._foundations = Foundations(engine, self.project, services.values(), every=orders.every_resource)
        self.notes += self._foundations.check()
        changed = self._foundations.changed()
        images = ensure_images(
            engine, self.project, list(services.values()), self._report, builder=self._builder, build=orders.build, pull=orders.pull,
            quiet=orders.quiet_pull, dry=orders.dry,
        )  # fmt: skip
        found = containers_of(engine, self.project.name)
        self.replicas = Replicas(
            engine, self.project, self._report, images, by_service(found), orders.timeout_s, not orders.renew_volumes, given_up=self.given_up
        )
        self.orphans = [one for one in found if self._is_orphan(one)]
        self._decide(changed.keys())
        renewing = [step.service for step in self.steps.values() if step.renews]
        if not orders.dry:
            check_options(self.replicas, renewing)
        if orders.start:
            check_ports(self.project, self.steps.values())
        if any(service.ports for service in renewing):
            self.notes += loopback_ports(self.project, renewing)

    def _is_orphan(self, container: Container) -> bool:
        name = service_of(container)
        return name not in self.project.services and name not in self.project.disabled

    def _decide(self, changed_networks: Collection[str]) -> None:
        orders = self._orders
        forced = set(self.services) if orders.recreate_dependencies else set(orders.services or self.services)
        wishes = Wishes(frozenset(forced) if orders.force_recreate or orders.recreate_dependencies else frozenset(), orders.recreate)
        on_changed = {name for name, one in self.services.items() if changed_networks & one.networks.keys()} if changed_networks else set[str]()
        if on_changed:
            wishes = replace_wishes(wishes, on_changed)
        renewed: set[str] = set()
        for service in self.services.values():
            step = decide(self.replicas, service, wishes, self._foundations, renewed)
            self.steps[service.name] = step
            late = (needs_place_first(service) or is_rolled(step)) and bool(step.outdated)
            step.is_late = late or any(self.steps[name].is_late for name in shares(service) if name in self.steps)
            if step.renews:
                renewed.add(service.name)

    def apply(self) -> None:
        """Do it. Raises BulleError; what was done stays, and the next ``up`` goes on from there."""
        self._remember()
        changed = self._foundations.changed()
        if changed:
            self._foundations.remove_changed(changed, self._report)
        self._foundations.make(self._report)
        self._make()
        waiting = [step.service for step in self.steps.values() if self._is_to_do(step)]
        settled = [name for name in self.services if all(one.name != name for one in waiting)]
        for name in settled:
            self._say_running(self.steps[name].kept)

        def settle(name: str) -> None:
            self._settle(self.steps[name])
            settled.append(name)

        try:
            in_waves(dependencies(waiting), settle, leave=self._engine.close, given_up=self.given_up)
        finally:
            if self._orders.start and self._orders.kept:
                self._keep_running(settled)
        self._see_to_orphans()
        self.sweep()

    def tell(self) -> None:
        """Say what :meth:`apply` would do."""
        for step in self.steps.values():
            for one in step.surplus:
                self._report("Container", one.name, "Removed")
            for number in step.missing:
                self._report("Container", replica_name(self.project, step.service, number), "Created")
            for one in step.outdated:
                self._report("Container", one.name, "Recreated")
            for one in step.kept:
                self._report("Container", one.name, "Running" if one.state().active or not self._orders.start else "Started")
        for one in self.orphans if self._orders.remove_orphans else ():
            self._report("Container", one.name, "Removed")

    def _remember(self) -> None:
        """Keep what is wanted from now on; services that this ``up`` is not about stay wanted as they were."""
        before, names = self._before, self.services.keys()
        previous = dict(before.previous) if before is not None else {}
        services = dict(self.project.services)
        scales = dict(self._orders.scales)
        images: dict[str, str] = {}
        running = set[str]()
        if before is not None:
            running = set(before.choices.running) & services.keys()
            scales = {**{name: one for name, one in before.choices.scales.items() if name in services and name not in names}, **scales}
            images = {name: one for name, one in before.choices.images.items() if name in services and name not in names}
            for name, old in before.project.services.items():
                if name not in names and name in services:
                    services[name] = old
                elif name in names and _differ(old := before.service(name), services[name]):
                    previous[name] = old
        choices = Choices(scales=scales, images=images, running=tuple(sorted(running)))
        record.write(self._engine, record.App(replace(self.project, services=services), previous, choices))

    def _keep_running(self, names: Collection[str]) -> None:
        """Keep that these are to run from now on: once they were started in their order, so that nobody else starts them before it."""
        app = record.read(self._engine, self.project.name)
        if app is not None and not set(names) <= set(app.choices.running):
            running = tuple(sorted({*app.choices.running, *names}))
            record.write(self._engine, replace(app, choices=replace(app.choices, running=running)))

    def _make(self) -> None:
        """Make every container that can be made beside what runs; none of them stays where one cannot be made."""
        made: list[Container] = []
        try:
            for step in self.steps.values():
                if step.is_late:
                    continue
                for number in step.missing:
                    made.append(self.replicas.make(step.service, number))
                if not is_rolled(step):
                    for old in step.outdated:
                        made.append(self.replicas.make(step.service, number_of(old), predecessor=old, aside=True))
                        step.ready[old.id] = made[-1]
        except BaseException:
            for container in made:
                self.replicas.remove(container)
            raise

    def _settle(self, step: Step) -> None:
        """Bring one service to what is wanted, when those that it depends on are as it wants them."""
        service, replicas, start = step.service, self.replicas, self._orders.start
        if start and (step.renews or any(not one.state().active for one in step.kept)):
            self.await_dependencies(service)
        self._each(step.surplus, lambda one: replicas.end(service, one))
        for number in step.missing if step.is_late else ():
            replicas.make(service, number)
        for one in step.kept:  # those that an ``up`` had made which was killed before it gave them their names
            replicas.succeed(service, one)
        if step.outdated and is_rolled(step) and start:
            self._roll(step)
        elif step.outdated:
            self._each(step.outdated, lambda old: replicas.replace_here(service, old, step.ready.get(old.id)))
        if not start:
            return
        if self._follows_a_restart(service):
            self._each([one for one in step.kept if one.state().active], lambda one: one.stop(self._orders.timeout_s, verb="restart"))
        idle = [one for one in replicas.of(service.name) if not one.state().active]
        self._each(idle, lambda one: replicas.start(service, one))
        self._say_running([one for one in step.kept if one not in idle])

    def _say_running(self, containers: Collection[Container]) -> None:
        for one in containers if self._orders.start else ():
            self._report("Container", one.name, "Running")

    def _is_to_do(self, step: Step) -> bool:
        """Whether there is anything to do for a service."""
        if step.renews or step.surplus or any(is_aside(one, self.project, step.service) for one in step.kept):
            return True
        idle = self._orders.start and any(not one.state().active for one in step.kept)
        return idle or (self._orders.start and self._follows_a_restart(step.service))

    def _roll(self, step: Step) -> None:
        """Exchange replicas as ``update_config`` says; what is rolled back is wanted again as it was."""
        name, before = step.service.name, self._before
        previous = before.service(name) if before is not None and name in before.project.services else None
        assert step.service.deploy is not None and step.service.deploy.update_config is not None
        try:
            Rollout(self.replicas, step.service, step.service.deploy.update_config, previous).run(step.outdated)
        except RolledBack:
            app = record.read(self._engine, self.project.name)
            if app is not None and previous is not None:
                record.write(self._engine, replace(app, project=replace(app.project, services={**app.project.services, name: previous})))
            raise

    def _each(self, containers: Collection[Container], act: Callable[[Container], object]) -> None:
        listed = list(containers)
        each(lambda number: act(listed[number]), len(listed), self._engine.close, lambda: None, self._orders.at_once)

    def await_dependencies(self, service: Service) -> None:
        """Wait until those are ready that a service depends on, as far as this ``up`` is about them. Raises Conflict where they cannot be."""
        for name, wanted in service.depends_on.items():
            if name not in self.services:
                continue
            try:
                conditions.await_condition(name, wanted.condition, self.replicas.of(name), self.given_up)
            except BulleError as error:
                if wanted.required:
                    raise
                self._report("Container", name, f"optional dependency {name} is not ready: {error}")

    def _follows_a_restart(self, service: Service) -> bool:
        return any(one.restart and name in self.steps and self.steps[name].outdated for name, one in service.depends_on.items())

    def _see_to_orphans(self) -> None:
        if self._orders.remove_orphans:
            self._each(self.orphans, lambda one: self.replicas.end(None, one))

    def sweep(self) -> None:
        """Remove kept secrets and configs that no container has any more."""
        if kept_files.directory_of(self._engine.home, self.project.name).is_dir():
            there = containers_of(self._engine, self.project.name, one_off=True)
            kept_files.sweep(self._engine.home, self.project.name, {one.host_path for each in there for one in each.options.volumes})

    def await_ready(self, timeout_s: float | None) -> None:
        """Wait until every container of these services runs and is healthy. Raises Conflict for one that is not, or ended."""
        deadline = time.monotonic() + timeout_s if timeout_s else None
        ends = {name for one in self.project.services.values() for name, wanted in one.depends_on.items() if wanted.condition == conditions.COMPLETED}
        for name in self.services:
            if name in ends:
                conditions.await_all(self.replicas.of(name), lambda one, name=name: conditions.has_completed(one, name), self.given_up, deadline)  # type: ignore[misc]
            else:
                conditions.await_all(self.replicas.of(name), conditions.is_ready, self.given_up, deadline)
                for one in self.replicas.of(name):
                    self._report("Container", one.name, "Healthy")


def _differ(one: Service, other: Service) -> bool:
    """Whether their containers would."""
    return one != other and service_hash(one) != service_hash(other)


def replace_wishes(wishes: Wishes, services: Collection[str]) -> Wishes:
    """The same with more services whose containers are made anew, whatever else is said."""
    return Wishes(wishes.forced | frozenset(services), True)


def is_rolled(step: Step) -> bool:
    """Whether the file says how the replicas are exchanged one after the other."""
    return step.service.deploy is not None and step.service.deploy.update_config is not None

