"""A replica's share of the ports that its service publishes: waited for before it counts, and given up before it is stopped."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

from bulle.compose.model import Service
from bulle.engine.container import Container
from bulle.errors import BulleError
from bulle.network.sockets import connected

_DRAIN_S = 1.0
_LISTENS_WITHIN_S = 10.0
_LEAST_S, _PAUSE_S = 0.02, 0.02


def await_share(container: Container, given_up: threading.Event) -> None:
    """Wait until new connections are led to it, as they are once it is healthy or listens; one that never does is not waited for long."""
    if not any(port.shared for port in container.plan.network.ports):
        return
    deadline = time.monotonic() + _LISTENS_WITHIN_S
    while container.standing() != "ready" and time.monotonic() < deadline and not given_up.wait(_PAUSE_S):
        continue


def withdraw(service: Service, container: Container) -> None:
    """Have no new connection reach it, and leave it a while (``drain``) to finish those that it has; that is over when there are none any more."""
    state = container.state()
    ports = {port.container_port for port in container.plan.network.ports if port.shared}
    if not ports or state.status != "running":
        return
    with suppress(BulleError):  # who cannot be told must not keep it from its end
        container.withdraw()
    deadline = time.monotonic() + (service.drain / 1e9 or _DRAIN_S)
    time.sleep(_LEAST_S)  # who was led to it at the last moment arrives
    while time.monotonic() < deadline and (container.plan.guest is not None or ports & connected(state.pid)):
        time.sleep(_PAUSE_S)
