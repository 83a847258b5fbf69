"""Taking a replica out of the balance of its published ports before it is stopped, and into it when it is ready: the one place that does so."""

from __future__ import annotations

import time

from bulle.compose.model import Service
from bulle.engine.container import Container

_DRAIN_S = 1.0


def admit(container: Container) -> None:
    """Have new connections to its published ports reach it."""
    if (act := getattr(container, "admit", None)) is not None:
        act()


def withdraw(service: Service, container: Container) -> None:
    """Have no new connection reach it, and leave it a while to finish those that it has; nothing where it has no share in a port."""
    act = getattr(container, "withdraw", None)
    if act is None or not service.ports or not container.state().active:
        return
    act()
    time.sleep(service.drain / 1e9 or _DRAIN_S)
