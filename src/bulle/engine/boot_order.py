"""In which order containers are started after a reboot: those that others depend on first, as the labels of docker compose say it.

What a container waits for is another's start, or its health where that was asked for. Nothing is waited for longer than a while, nor for what does
not start: after a reboot a service that is there too early is better than one that is not there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bulle.engine.container import Container

PROJECT, SERVICE, DEPENDS_ON = "com.docker.compose.project", "com.docker.compose.service", "com.docker.compose.depends_on"
HEALTHY = "service_healthy"
_PATIENCE_S = 60.0
_PAUSE_S = 0.05

_Place = tuple[str, str]
"""App and service."""


class BootOrder:
    """The order of some containers, and who has had its turn."""

    def __init__(self, containers: Sequence[Container]) -> None:
        self._members: dict[_Place, list[Container]] = {}
        for container in containers:
            if (place := _place(container)) is not None:
                self._members.setdefault(place, []).append(container)
        self._had_turn = {container.id: threading.Event() for container in containers}
        self.containers = sorted(containers, key=lambda one: self._depth(_place(one), ()))

    def _depth(self, place: _Place | None, above: tuple[_Place, ...]) -> int:
        """How many stand before a service in the longest chain; a circle ends where it began."""
        if place is None or place in above:
            return 0
        others = {(place[0], name) for one in self._members.get(place, ()) for name in dependencies(one)}
        return max((1 + self._depth(other, (*above, place)) for other in others if other in self._members), default=0)

    def had_turn(self, container: Container) -> None:
        """It was started, or not: who waits for it may look."""
        self._had_turn[container.id].set()

    def await_dependencies(self, container: Container) -> None:
        """Wait for those that it depends on."""
        place = _place(container)
        deadline = time.monotonic() + _PATIENCE_S
        for name, condition in dependencies(container).items() if place is not None else ():
            for other in self._members.get((place[0], name), ()) if place is not None else ():
                self._had_turn[other.id].wait(max(deadline - time.monotonic(), 0))
                while condition == HEALTHY and _is_coming(other) and time.monotonic() < deadline:
                    time.sleep(_PAUSE_S)


def dependencies(container: Container) -> dict[str, str]:
    """The services that a container depends on, and with which condition."""
    parts = (part.split(":") for part in container.options.labels.get(DEPENDS_ON, "").split(",") if part)
    return {part[0]: part[1] if len(part) > 1 else "" for part in parts}


def _place(container: Container) -> _Place | None:
    labels = container.options.labels
    return (labels[PROJECT], labels[SERVICE]) if PROJECT in labels and SERVICE in labels else None


def _is_coming(container: Container) -> bool:
    """Whether it runs and nobody knows yet how well."""
    state = container.state()
    return state.status == "running" and state.health is not None and state.health.status == "starting"
