"""Taking a replica out of the balance of its names and published ports before it is stopped: the one place that does so."""

from __future__ import annotations

import time

from bulle.compose.model import Service
from bulle.engine.container import Container
from bulle.network.sockets import connected

_DRAIN_S = 1.0
_LEAST_S, _PAUSE_S = 0.02, 0.01


def withdraw(service: Service, container: Container) -> None:
    """Have no new connection reach it, and leave it a while (``drain``) to finish those that it has; it ends when there are none any more.

    Nothing where it has no share in a port.
    """
    state = container.state()
    ports = {one.container_port for one in container.plan.network.ports if one.shared}
    if not ports or state.status != "running":
        return
    container.withdraw()
    deadline = time.monotonic() + (service.drain / 1e9 or _DRAIN_S)
    time.sleep(_LEAST_S)  # who was led to it at the last moment arrives
    while time.monotonic() < deadline and (container.plan.guest is not None or ports & connected(state.pid)):
        time.sleep(_PAUSE_S)
