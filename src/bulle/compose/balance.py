"""A replica's share of the ports that its service publishes: waited for before it counts, and given up before it is stopped."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

from bulle.compose.model import Service
from bulle.engine.container import Container
from bulle.errors import BulleError

_DRAIN_S = 1.0
_LISTENS_WITHIN_S = 10.0
_PAUSE_S = 0.02


def await_share(container: Container, given_up: threading.Event) -> None:
    """Wait until new connections are led to it, as they are once it is healthy or listens; one that never does is not waited for long."""
    if not any(port.shared for port in container.plan.network.ports):
        return
    deadline = time.monotonic() + _LISTENS_WITHIN_S
    while container.standing() != "ready" and time.monotonic() < deadline and not given_up.wait(_PAUSE_S):
        continue


def withdraw(service: Service, container: Container) -> None:
    """Have no new connection reach it, and leave it a while to finish those that it has."""
    if any(port.shared for port in container.plan.network.ports) and container.state().active:
        with suppress(BulleError):  # who cannot be told must not keep it from its end
            container.withdraw()
        time.sleep(service.drain / 1e9 or _DRAIN_S)
