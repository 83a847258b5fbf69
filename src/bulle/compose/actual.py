"""What there is of an app: its containers, found again by their labels. One query for all of them; nothing is changed here."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from bulle.compose import labels
from bulle.engine.container import Container

if TYPE_CHECKING:
    from bulle.engine import Engine


def service_of(container: Container) -> str:
    """The service that it is a replica of."""
    return container.options.labels.get(labels.SERVICE, "")


def number_of(container: Container) -> int:
    """Which replica of its service it is, from 1; 0 where nobody says."""
    text = container.options.labels.get(labels.NUMBER, "")
    return int(text) if text.isdecimal() else 0


def is_one_off(container: Container) -> bool:
    """Whether ``compose run`` made it."""
    return container.options.labels.get(labels.ONE_OFF, "").lower() == "true"


def containers_of(engine: Engine, project: str, services: Collection[str] = (), *, one_off: bool = False) -> list[Container]:
    """The containers of an app by service and number, those of these services or all; those of ``compose run`` as well with ``one_off``."""
    found = (
        container
        for container in engine.containers.labelled(labels.PROJECT, project)
        if (not services or service_of(container) in services) and (one_off or not is_one_off(container))
    )
    return sorted(found, key=lambda one: (service_of(one), number_of(one), one.created_at_ns))
