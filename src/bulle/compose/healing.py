"""What is to be done about an app whose containers are not as they are wanted: a decision, made anew from what there is whenever something happened.

Nothing is remembered but failures, so whoever decides may be killed at any moment. :mod:`bulle.compose.reconciling` asks, while the app is locked,
and does it. A replica that died is started again, one that is gone made anew, an unhealthy one replaced: by one that is started beside it first, or,
where two cannot stand beside each other, by its own next life. What a user ended stays ended, and so does what ended well by itself.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bulle.compose import conditions, labels
from bulle.compose.actual import number_of
from bulle.compose.deciding import needs_place_first
from bulle.compose.hashing import service_hash
from bulle.compose.model import Project, Service
from bulle.compose.options import replica_name
from bulle.compose.record import App
from bulle.engine.booting import SHUTDOWN
from bulle.engine.container import Container
from bulle.linux import process
from bulle.model.container import ContainerState
from bulle.model.lifecycle import End
from bulle.monitor import ends
from bulle.monitor.restart import policy_of

_FIRST_S, _LONGEST_S = 0.05, 60.0
_LASTED_S = 10.0
_FORGOTTEN_S = 300.0
_NANOSECONDS = 1_000_000_000

Key = tuple[str, int]
"""A replica: its service and number."""


class Failures:
    """What was tried in vain, by replica: each time in a row makes the next one wait for twice as long."""

    def __init__(self) -> None:
        self._failed: dict[Key, tuple[int, float]] = {}

    def add(self, key: Key) -> None:
        """It was tried, or failed, now."""
        count, at_s = self._failed.get(key, (0, 0.0))
        now = time.time()
        self._failed[key] = (count + 1 if now - at_s < _FORGOTTEN_S else 1, now)

    def due_s(self, key: Key) -> float:
        """When it may be tried again (time.time)."""
        count, at_s = self._failed.get(key, (0, 0.0))
        return at_s + delay_s(count)


def delay_s(failures: int) -> float:
    """How long is waited after so many failures in a row."""
    return min(_FIRST_S * 2 ** min(failures - 1, 16), _LONGEST_S) if failures else 0.0


@dataclass
class Actions:
    """What is to be done now. ``retire`` and ``restart`` take long, as what they end is given its time; the others do not."""

    start: list[tuple[Service, Container]] = field(default_factory=list)
    make: list[tuple[Service, int, Container | None]] = field(default_factory=list)
    """A number without a container; with a container, one beside it that is to take its place."""
    rename: list[tuple[Service, Container]] = field(default_factory=list)
    retire: list[tuple[Service, Container]] = field(default_factory=list)
    restart: list[tuple[Service, Container]] = field(default_factory=list)
    look_at_s: float = float("inf")
    """When something is due that has to wait (time.time)."""

    @property
    def is_quick(self) -> bool:
        """Whether there is something that does not take long."""
        return bool(self.start or self.make or self.rename)


class Healing:
    """One look at one app. ``busy`` are ids of containers that are being ended already."""

    def __init__(self, app: App, containers: Sequence[Container], failures: Failures, busy: frozenset[str]) -> None:
        self._app = app
        self._failures = failures
        self._states = {one.id: one.state() for one in containers}
        self._there: dict[str, dict[int, list[Container]]] = {}
        for one in sorted(containers, key=lambda one: one.created_at_ns):
            if one.id not in busy:
                name = one.options.labels.get(labels.SERVICE, "")
                self._there.setdefault(name, {}).setdefault(number_of(one), []).append(one)
        self._busy_numbers = {(one.options.labels.get(labels.SERVICE, ""), number_of(one)) for one in containers if one.id in busy}
        self._unsettled: set[str] = set()
        self.actions = Actions()

    def decide(self) -> Actions:
        """What is to be done."""
        project = self._app.project
        services = [self._app.service(name) for name in self._app.choices.running if name in project.services]
        self._unsettled = {service.name for service in services if self._is_unsettled(service)}
        for service in services:
            if not _is_job(project, service.name):
                self._heal(service)
        return self.actions

    def _heal(self, service: Service) -> None:
        there = self._there.get(service.name, {})
        for number in sorted(there):
            found = there[number]
            if len(found) == 1:
                self._heal_one(service, number, found[0])
            else:
                self._heal_several(service, number, found)
        numbers = set(there) | {number for name, number in self._busy_numbers if name == service.name}
        if _stays_ended(service):
            return  # what is not there any more has ended as well as what is
        missing = service.replicas - len(numbers)
        for number in (number for number in range(1, service.replicas + 1) if number not in numbers):
            if missing > 0 and self._may_now(service, number):
                self.actions.make.append((service, number, None))
                missing -= 1
        surplus = sorted(there, key=lambda number: (self._states[there[number][-1].id].active, -number))[: max(0, len(numbers) - service.replicas)]
        self.actions.retire += [(service, one) for number in surplus for one in there[number]]

    def _heal_one(self, service: Service, number: int, container: Container) -> None:
        state = self._states[container.id]
        if state.active:
            if container.name != replica_name(self._app.project, service, number):
                self.actions.rename.append((service, container))  # the one whose place it was to take is gone
            if state.status == "running" and state.health is not None and state.health.status == "unhealthy":
                self._replace(service, number, container)
        elif self._is_to_run(service, container, state):
            self._start(service, number, container)

    def _heal_several(self, service: Service, number: int, found: list[Container]) -> None:
        """One that was made to take the place of others, and those: by whoever replaces replicas, or was killed while doing so."""
        *olds, new = found
        old = [one for one in olds if self._is_well(one)]
        if self._is_well(new) and new.standing() != "unready":
            self.actions.retire += [(service, one) for one in olds]
        elif self._states[new.id].active:
            if old and self._is_of_now(service, olds[0]):
                self.actions.retire.append((service, new))  # it is not needed any more
            elif (health := self._states[new.id].health) is not None and health.status == "unhealthy":
                self._failures.add((service.name, number))
                self.actions.retire.append((service, new))
        elif not old:
            self._start(service, number, new)

    def _replace(self, service: Service, number: int, container: Container) -> None:
        if not self._may_now(service, number):
            return
        self._failures.add((service.name, number))
        if stands_beside(service):
            self.actions.make.append((service, number, container))
        else:
            self.actions.restart.append((service, container))

    def _start(self, service: Service, number: int, container: Container) -> None:
        due_s = max(self._failures.due_s((service.name, number)), _due_after(ends.read(container.directory)))
        state = self._states[container.id]
        is_first = state.status == "created" or state.boot_id != process.boot_id()
        if self._waits(service) or (is_first and not self._conditions_hold(service)) or not self._is_due(due_s):
            return
        self.actions.start.append((service, container))

    def _may_now(self, service: Service, number: int) -> bool:
        return not self._waits(service) and self._is_due(self._failures.due_s((service.name, number)))

    def _is_due(self, due_s: float) -> bool:
        if due_s > time.time():
            self.actions.look_at_s = min(self.actions.look_at_s, due_s)
            return False
        return True

    def _waits(self, service: Service) -> bool:
        """Whether one that it depends on is not there yet."""
        return any(name in self._unsettled for name in service.depends_on)

    def _conditions_hold(self, service: Service) -> bool:
        """Whether what it depends on is as it wants it before it is started for the first time, or after a boot."""
        for name, wanted in service.depends_on.items():
            states = [self._states[one.id] for found in self._there.get(name, {}).values() for one in found]
            if wanted.condition == conditions.COMPLETED:
                holds = all(state.status == "exited" and state.exit_code == 0 for state in states)
            elif wanted.condition == conditions.HEALTHY:
                holds = all(state.status == "running" and state.health is not None and state.health.status == "healthy" for state in states)
            else:
                holds = any(state.active for state in states)
            if wanted.required and not (holds and states):
                return False
        return True

    def _is_unsettled(self, service: Service) -> bool:
        if _is_job(self._app.project, service.name):
            return False
        there = self._there.get(service.name, {})
        if not there:
            return service.replicas > 0
        states = [(one, self._states[one.id]) for found in there.values() for one in found]
        return all(
            (state.health is not None and state.health.status == "starting") if state.active else self._is_to_run(service, one, state)
            for one, state in states
        )

    def _is_well(self, container: Container) -> bool:
        state = self._states[container.id]
        return state.status == "running" and (state.health is None or state.health.status == "healthy")

    def _is_of_now(self, service: Service, container: Container) -> bool:
        return container.options.labels.get(labels.CONFIG_HASH) == service_hash(service)

    def _is_to_run(self, service: Service, container: Container, state: ContainerState) -> bool:
        """Whether one that does not run should."""
        if state.status == "created":
            return True
        went_down = state.boot_id != process.boot_id()
        intent = ends.read_intent(container.directory)
        if intent is not None:
            return intent.verb == "restart" or (intent.verb == SHUTDOWN and went_down)
        if _stays_ended(service) and not went_down:
            return False
        last = ends.read(container.directory)[-1:]
        if last and last[0].reason in ("timeout", "idle-timeout"):
            return False
        policy = (policy_of(container.directory) or container.plan.lifecycle.restart).name
        if policy in ("always", "unless-stopped"):
            return True
        return went_down if policy == "on-failure" else state.exit_code != 0


def stands_beside(service: Service) -> bool:
    """Whether a second container may run beside a replica of the same number: not where both would write the same files or want the same place."""
    update = service.deploy.update_config if service.deploy is not None else None
    if needs_place_first(service) or service.container_name or service.network_mode == "host":
        return False
    if any(port.published and "-" in port.published for port in service.ports):
        return False
    if update is not None and update.order == "start-first":
        return True
    return all(one.read_only or one.type in ("tmpfs", "image") for one in service.volumes) and not service.volumes_from


def _stays_ended(service: Service) -> bool:
    """Whether the file itself says that nobody is to start it again."""
    policy = service.deploy.restart_policy if service.deploy is not None else None
    return service.restart == "no" or (not service.restart and policy is not None and policy.condition == "none")


def _is_job(project: Project, name: str) -> bool:
    """Whether it is there to come to an end: others wait for that."""
    waited: list[Mapping[str, object]] = [one.depends_on for one in project.services.values() if name in one.depends_on]
    return any(getattr(depends_on[name], "condition", "") == conditions.COMPLETED for depends_on in waited)


def _due_after(found: Sequence[End]) -> float:
    """When a container may be started again after its last runs: none that was short in a row, at once."""
    short = 0
    for end in reversed(found):
        if end.intent is not None or end.finished_at_ns - end.started_at_ns >= _LASTED_S * _NANOSECONDS:
            break
        short += 1
    return found[-1].finished_at_ns / _NANOSECONDS + delay_s(short) if found else 0.0
