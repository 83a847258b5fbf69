"""What is to be done with the containers of a service, from what is wanted and what there is. Nothing is changed here.

It starts from what there is each time, so that it does not matter where somebody was killed: what was half done is seen as it is.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from bulle.compose import labels
from bulle.compose.actual import number_of
from bulle.compose.attachments import network_mode, networks_of
from bulle.compose.foundations import Foundations
from bulle.compose.model import Service
from bulle.compose.replicas import Replicas
from bulle.engine.container import Container


@dataclass
class Step:
    """What becomes of one service: ``outdated`` containers are replaced, one each; ``surplus`` ones go; ``missing`` are numbers of new ones."""

    service: Service
    kept: list[Container] = field(default_factory=list)
    outdated: list[Container] = field(default_factory=list)
    surplus: list[Container] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    ready: dict[str, Container] = field(default_factory=dict)
    """What was made to take the place of outdated ones, by their ids."""
    is_late: bool = False
    """Its containers are only made when those before them are gone, or when those are made whose network it shares."""

    @property
    def renews(self) -> bool:
        """Whether containers will be others than they were."""
        return bool(self.outdated or self.missing)


@dataclass(frozen=True)
class Wishes:
    """What ``up`` and ``create`` are told about containers that are there: services of which all are made anew, and whether any is."""

    forced: frozenset[str] = frozenset()
    recreate: bool = True


def decide(replicas: Replicas, service: Service, wishes: Wishes, foundations: Foundations, renewed: Collection[str]) -> Step:
    """The step of one service. ``renewed`` are services whose containers become others, which those have to follow that share their network."""
    step = Step(service)
    shared = shares(service)
    for container in _one_of_each_number(replicas, service, step):
        fresh = not wishes.recreate or (
            service.name not in wishes.forced
            and not (shared & set(renewed))
            and _fits(replicas, service, container, foundations)
        )
        (step.kept if fresh else step.outdated).append(container)
    wanted, there = service.replicas, len(step.kept) + len(step.outdated)
    while there > wanted:
        going = (step.outdated or step.kept).pop()
        step.surplus.append(going)
        there -= 1
    taken = {number_of(one) for one in (*step.kept, *step.outdated)}
    number = 0
    while there < wanted:
        number += 1
        if number not in taken:
            step.missing.append(number)
            there += 1
    return step


def _one_of_each_number(replicas: Replicas, service: Service, step: Step) -> list[Container]:
    """One container of each number; where somebody was killed between two, the newer one if it is complete, and the others are surplus."""
    found: dict[int, Container] = {}
    for container in sorted(replicas.of(service.name), key=lambda one: (number_of(one), one.created_at_ns)):
        number = number_of(container)
        before = found.get(number)
        if before is not None:
            newer_fits = container.options.labels.get(labels.CONFIG_HASH) == replicas.digest(service)
            step.surplus.append(before if newer_fits else container)
            found[number] = container if newer_fits else before
        else:
            found[number] = container
    return list(found.values())


def shares(service: Service) -> set[str]:
    """The services whose containers this one's are made with."""
    found = {text.partition(":")[0] for text in service.volumes_from if not text.startswith("container:")}
    if service.network_mode.startswith("service:"):
        found.add(service.network_mode.removeprefix("service:"))
    return found


def _fits(replicas: Replicas, service: Service, container: Container, foundations: Foundations) -> bool:
    """Whether a container was made from the service as it is now, its image, its files and its networks."""
    options = container.options
    if options.labels.get(labels.CONFIG_HASH) != replicas.digest(service) or container.image_id != replicas.images.get(service.name):
        return False
    if service.secrets or service.configs:
        bound = {one.host_path for one in options.volumes}
        if not {one.source for one in replicas.files(service)} <= bound:
            return False
    if network_mode(replicas.project, service):
        return True
    wanted = set()
    for key in networks_of(replicas.project, service):
        record = foundations.record(replicas.project.networks[key].name)
        wanted.add(record.id if record is not None else "")
    return {one.network_id for one in container.plan.network.attachments} == wanted


def needs_place_first(service: Service) -> bool:
    """Whether a container can only be made when the one before it is gone: it has an address of its own."""
    return bool(service.mac_address) or any(one.ipv4_address or one.ipv6_address or one.mac_address for one in service.networks.values())
