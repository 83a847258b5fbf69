"""Exchanging the replicas of a service one after the other, as ``update_config`` says: without a pause where new ones are started first.

A new replica counts when it runs and is healthy; one without a health check when it has lasted a second. Those that were exchanged are watched for
``monitor`` more, while others follow. What failed too often stays as it is, goes on all the same, or is rolled back.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from bulle.compose import balance, conditions
from bulle.compose.actual import number_of
from bulle.compose.deciding import needs_place_first
from bulle.compose.model import Service
from bulle.compose.replicas import Replicas
from bulle.compose.service_parts import UpdateConfig
from bulle.engine.container import Container
from bulle.engine.parallel import each
from bulle.errors import BulleError, Conflict, NotFound

START_FIRST = UpdateConfig(order="start-first")
"""How ``update`` and ``rollback`` go about it where the file does not say."""
_LASTED_S = 1.0
_NANOSECONDS = 1_000_000_000


class RolledBack(Conflict):
    """An update failed, and everything is as it was before."""


@dataclass
class Rollout:
    """One exchange. ``previous`` is what the replicas were made from, for a rollback; None where nobody knows it."""

    replicas: Replicas
    service: Service
    config: UpdateConfig
    previous: Service | None = None
    _watched: list[tuple[Container, float]] = field(default_factory=list)
    _done: list[Container] = field(default_factory=list)
    _failures: list[BulleError] = field(default_factory=list)

    def run(self, outdated: Sequence[Container]) -> None:
        """Exchange these. Raises Conflict where it failed: paused, or RolledBack."""
        waiting, total = list(outdated), len(outdated)
        images = {one.image_id for one in outdated}
        size = self.config.parallelism or total
        while waiting:
            batch, waiting = waiting[:size], waiting[size:]
            each(lambda number, batch=batch: self._exchange(batch[number]), len(batch), self.replicas.engine.close, lambda: None, size)  # type: ignore[misc]
            self._judge(total, images)
            if waiting and self.config.delay:
                self._wait(self.config.delay / _NANOSECONDS)
        while self._watched:
            self._wait(0.05)
            self._judge(total, images)

    def _wait(self, seconds: float) -> None:
        if self.replicas.given_up.wait(seconds):
            raise Conflict(f"the update of {self.service.name} was broken off", "", "`bulle compose up` goes on with it")

    def _exchange(self, old: Container) -> None:
        try:
            starts_first = self.config.order == "start-first" and not needs_place_first(self.service)
            new = self._start_first(old) if starts_first else self._stop_first(old)
        except BulleError as error:
            self._failures.append(error)
            return
        self._watched.append((new, time.monotonic() + self.config.monitor / _NANOSECONDS))

    def _start_first(self, old: Container) -> Container:
        replicas, service = self.replicas, self.service
        new = replicas.make(service, number_of(old), aside=True)
        try:
            replicas.start(service, new, tell=False)
            self._await_ready(new)
        except BaseException:
            replicas.remove(new, tell=False)  # the old one has gone on
            raise
        balance.await_share(new, replicas.given_up)
        self._done.append(new)
        replicas.end(service, old, tell=False)
        replicas.succeed(service, new)
        replicas.report("Container", new.name, "Updated")
        return new

    def _stop_first(self, old: Container) -> Container:
        replicas, service = self.replicas, self.service
        made = None if needs_place_first(service) else replicas.make(service, number_of(old), predecessor=old, aside=True)
        new = replicas.replace_here(service, old, made)
        self._done.append(new)
        replicas.start(service, new)
        self._await_ready(new)
        balance.await_share(new, replicas.given_up)
        return new

    def _await_ready(self, container: Container) -> None:
        conditions.await_all([container], conditions.is_ready, self.replicas.given_up)
        if container.plan.lifecycle.health is None:
            self.replicas.given_up.wait(min(_LASTED_S, self.config.monitor / _NANOSECONDS))
            conditions.is_ready(container)
            if container.state().restart_count:
                raise Conflict(f"container {container.name} does not stay up", "it was started again already", f"see `bulle why {container.name}`")

    def _judge(self, total: int, images: set[str]) -> None:
        """See what became of those that were exchanged. Raises Conflict where too many failed."""
        still = []
        for container, until in self._watched:
            try:
                well = conditions.is_ready(container) and not container.state().restart_count
                if not well and container.state().restart_count:
                    raise Conflict(f"container {container.name} does not stay up", "", f"see `bulle why {container.name}`")
            except (BulleError, NotFound) as error:
                self._failures.append(error)
                continue
            if time.monotonic() < until:
                still.append((container, until))
        self._watched = still
        if not self._failures or len(self._failures) / total <= self.config.max_failure_ratio or self.config.failure_action == "continue":
            return
        first = self._failures[0]
        if self.config.failure_action == "rollback" and self.previous is not None:
            self._roll_back(images)
            raise RolledBack(f"the update of {self.service.name} failed and was rolled back", str(first), "")
        why = "`bulle compose rollback` takes it back, `bulle compose up` tries again"
        raise Conflict(f"the update of {self.service.name} is paused", str(first), why)

    def _roll_back(self, images: set[str]) -> None:
        """Exchange what was exchanged by what was there before, and make anew what is missing."""
        assert self.previous is not None
        service = at_image(self.replicas, self.previous, images)
        deploy = self.previous.deploy
        config = replace((deploy and deploy.rollback_config) or replace(self.config, delay=type(self.config.delay)(0)), failure_action="pause")
        there = self.replicas.of(self.service.name)
        going = [one for one in self._done if one in there]
        back = Rollout(self.replicas, service, config)
        back.run(going)
        numbers = {number_of(one) for one in there}
        for number in range(1, self.service.replicas + 1):
            if number not in numbers:  # one that was stopped first, and could not be made
                self.replicas.start(service, self.replicas.make(service, number))
        self.replicas.report("Service", self.service.name, "Rolled back")


def at_image(replicas: Replicas, service: Service, images: set[str]) -> Service:
    """The service with the very image that its containers had, should its name be another's by now."""
    try:
        now = replicas.engine.images.get(service.image, service.platform).id
    except BulleError:
        now = ""
    if len(images) == 1 and now not in images:
        return replace(service, image=next(iter(images)))
    return service
