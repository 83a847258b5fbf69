"""Verbs on the containers that an app has: ``stop``, ``start``, ``restart``, ``kill``, ``rm``, ``pause``, ``unpause``, ``down``.

They go by labels, and by the services that are kept where the order matters, so that they need no file.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from bulle.compose import conditions, kept_files, labels, record
from bulle.compose.actual import containers_of, service_of
from bulle.compose.foundations import Report, remove_networks, remove_volumes
from bulle.compose.model import Project, Service
from bulle.compose.ordering import dependencies_of, in_waves
from bulle.compose.replicas import Replicas, by_service
from bulle.engine.container import Container
from bulle.engine.parallel import each
from bulle.errors import BulleError, Conflict, NotFound

if TYPE_CHECKING:
    from bulle.engine import Engine

_AT_ONCE = 16


class Halt:
    """The containers of an app, and the services that they are of as far as they are known."""

    def __init__(
        self, engine: Engine, name: str, report: Report, *, project: Project | None = None, services: Collection[str] = (), one_off: bool = False,
        timeout_s: int | None = None,
    ) -> None:  # fmt: skip
        self._engine = engine
        self._name = name
        self._report = report
        self._app = record.read(engine, name)
        known = project or (self._app.project if self._app is not None else Project(name=name, working_directory=""))
        self._services = {one.name: one for one in known.all_services()}
        found = containers_of(engine, name, services, one_off=one_off)
        there = {service_of(one) for one in containers_of(engine, name)} | self._services.keys() if services else set[str]()
        for service in services:
            if service not in there:
                raise NotFound(f"no such service: {service}", f"the app has {', '.join(sorted(there)) or 'none'}", "")
        self.containers = found
        self._wanted = tuple(services)
        self._given_up = threading.Event()
        self._replicas = Replicas(engine, known, report, {}, by_service(found), timeout_s, from_record=True, given_up=self._given_up)
        self._timeout_s = timeout_s

    def _graph(self) -> dict[str, set[str]]:
        """Which services stand behind which, of those that have containers; by their labels where nothing else is known."""
        names = set(self._replicas.containers)
        found = {}
        for name in names:
            service = self._services.get(name)
            said = dependencies_of(service) if service is not None else set(_labelled(self._replicas.of(name)))
            found[name] = said & names
        return found

    def _in_order(self, act: Callable[[Service | None, Container], object], *, reverse: bool) -> None:
        """Do it to every container, service after service as they depend on each other, backwards with ``reverse``."""

        def work(name: str) -> None:
            containers = list(self._replicas.of(name))
            service = self._services.get(name)
            each(lambda number: act(service, containers[number]), len(containers), self._engine.close, lambda: None, _AT_ONCE)

        in_waves(self._graph(), work, leave=self._engine.close, given_up=self._given_up, reverse=reverse)

    def _at_once(self, containers: Sequence[Container], act: Callable[[Container], object]) -> None:
        each(lambda number: act(containers[number]), len(containers), self._engine.close, lambda: None, _AT_ONCE)

    def tell(self, what: str) -> None:
        """Say what would be done to them."""
        for container in self.containers:
            self._report("Container", container.name, what)

    def orphans(self) -> list[Container]:
        """Those of services that nobody knows any more."""
        return [one for one in self.containers if service_of(one) not in self._services]

    def await_ready(self, timeout_s: float | None) -> None:
        """Wait until each runs and is healthy. Raises Conflict for one that is not."""
        conditions.await_all(self.containers, conditions.is_ready, self._given_up, time.monotonic() + timeout_s if timeout_s else None)

    def _running(self, names: Collection[str], *, run: bool) -> None:
        """Keep which services are to run."""
        if self._app is not None:
            before = set(self._app.choices.running)
            after = before | set(names) if run else before - set(names)
            record.write(self._engine, replace(self._app, choices=replace(self._app.choices, running=tuple(sorted(after)))))

    def stop(self) -> None:
        """Stop them, those first that others do not depend on."""
        self._running(self._wanted or self._replicas.containers, run=False)
        self._in_order(lambda service, one: self._replicas.end(service, one, remove=False), reverse=True)

    def start(self) -> None:
        """Start those that do not run, in their order and when those that they depend on are as they want them."""
        if not self.containers:
            raise Conflict(f"the app {self._name} has no containers", "", "make them with `bulle compose up`")
        self._running(self._wanted or self._replicas.containers, run=True)

        def act(service: Service | None, container: Container) -> None:
            if container.state().active:
                return
            for name, wanted in service.depends_on.items() if service is not None else ():
                if self._replicas.of(name):
                    conditions.await_condition(name, wanted.condition, self._replicas.of(name), self._given_up)
            if service is not None:
                self._replicas.start(service, container)
            else:
                container.start()

        self._in_order(act, reverse=False)

    def restart(self, *, with_dependents: bool = True) -> None:
        """Restart them, and those that want to be restarted with them."""
        if with_dependents and self._wanted:
            known = set(self._replicas.containers)
            others = {name for name, one in self._services.items() for other, wanted in one.depends_on.items() if wanted.restart and other in known}
            for container in containers_of(self._engine, self._name, others - known) if others - known else ():
                self._replicas.containers.setdefault(service_of(container), []).append(container)
        self._running(self._replicas.containers, run=True)

        def act(_service: Service | None, container: Container) -> None:
            container.restart(self._timeout_s)
            self._report("Container", container.name, "Restarted")

        self._in_order(act, reverse=False)

    def kill(self, signal: str) -> None:
        """Send a signal to those that run."""
        running = [one for one in self.containers if one.state().active]
        if not running:
            raise Conflict("no container to kill", f"nothing of {self._name} runs", "")
        if signal.upper().removeprefix("SIG") in ("KILL", "9"):
            self._running(self._wanted or self._replicas.containers, run=False)

        def act(container: Container) -> None:
            container.kill(signal)
            self._report("Container", container.name, "Killed")

        self._at_once(running, act)

    def remove(self, containers: Sequence[Container], *, volumes: bool) -> None:
        """Remove these."""
        self._at_once(containers, lambda one: self._replicas.remove(one, volumes=volumes))

    def pause(self) -> None:
        """Have them stand still."""
        self._each_running(lambda one: one.pause(), "Paused", paused=False)

    def unpause(self) -> None:
        """Let them go on."""
        self._each_running(lambda one: one.unpause(), "Unpaused", paused=True)

    def _each_running(self, do: Callable[[Container], object], word: str, *, paused: bool) -> None:
        def act(container: Container) -> None:
            do(container)
            self._report("Container", container.name, word)

        self._at_once([one for one in self.containers if one.state().status == "running" and one.is_paused() == paused], act)

    def down(self, *, volumes: bool = False, images: str = "", orphans: bool = False) -> None:
        """Stop and remove them, then the networks, with ``volumes`` those too, and with ``images`` (``all``, ``local``) what they were made from."""
        if self._wanted:
            self._running(self._wanted, run=False)
        elif self._app is not None:
            self._running(self._app.choices.running, run=False)  # nobody starts again what is going
        known = self._services.keys() if self._services else None
        left = [one for one in self.containers if known is not None and service_of(one) not in known and not orphans and not self._wanted]
        for container in left:
            self._replicas.of(service_of(container)).remove(container)
        going = [one for one in self.containers if one not in left]
        removed = {one.image for one in going}
        kept_for = [service for service in self._services.values() if service.build is not None and not service.image]

        def act(service: Service | None, container: Container) -> None:
            if container.state().active:
                self._replicas.end(service, container, remove=False)
            self._replicas.remove(container, volumes=volumes)

        self._in_order(act, reverse=True)
        if images:
            local = {f"{self._name}-{service.name}" for service in kept_for}
            self._remove_images(removed | local if images == "all" else local)
        if self._wanted:
            return
        remove_networks(self._engine, self._name, self._report)
        if volumes:
            remove_volumes(self._engine, self._name, self._report)
        record.forget(self._engine, self._name)
        kept_files.sweep(self._engine.home, self._name, {one.host_path for each_ in left for one in each_.options.volumes})

    def _remove_images(self, names: Collection[str]) -> None:
        for name in sorted(names):
            try:
                self._engine.images.remove(name)
                self._report("Image", name, "Removed")
            except NotFound:
                continue
            except BulleError as error:
                self._report("Image", name, f"Resource is still in use: {error.brief}")


def _labelled(containers: Sequence[Container]) -> list[str]:
    """The services that containers depend on, by their labels."""
    said = {part.partition(":")[0] for one in containers for part in one.options.labels.get(labels.DEPENDS_ON, "").split(",")}
    return sorted(said - {""})
