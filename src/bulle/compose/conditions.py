"""Waiting until containers are as ``depends_on`` or ``--wait`` want them: running, healthy, or ended well."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from bulle.compose.ordering import GivenUp
from bulle.engine.container import Container
from bulle.errors import Conflict

STARTED, HEALTHY, COMPLETED = "service_started", "service_healthy", "service_completed_successfully"
_FIRST_S, _LONGEST_S = 0.005, 0.1


def await_condition(service: str, condition: str, containers: Sequence[Container], given_up: threading.Event) -> None:
    """Wait until all of a service's containers meet the condition. Raises Conflict where they cannot any more."""
    if condition == HEALTHY:
        await_all(containers, lambda one: is_healthy(one, service), given_up)
    elif condition == COMPLETED:
        await_all(containers, lambda one: has_completed(one, service), given_up)


def await_all(containers: Sequence[Container], test: Callable[[Container], bool], given_up: threading.Event, deadline: float | None = None) -> None:
    """Wait until the test holds for each, asked again and again. ``deadline`` is a monotonic time, behind which a Conflict is raised."""
    for container in containers:
        pause = _FIRST_S
        while not test(container):
            if deadline is not None and time.monotonic() > deadline:
                raise Conflict(f"container {container.name} is not ready in time", "", f"`bulle logs {container.name}` says what it does")
            if given_up.wait(pause):
                raise GivenUp("given up")
            pause = min(pause * 1.5, _LONGEST_S)


def is_healthy(container: Container, service: str) -> bool:
    """Whether its check says so. Raises Conflict for one without a check, or that is unhealthy or has ended."""
    if container.plan.lifecycle.health is None:
        raise Conflict(f"container {container.name} has no health check", f"others wait until {service} is healthy", "give it a healthcheck")
    return is_ready(container)


def is_ready(container: Container) -> bool:
    """Whether it runs, and is healthy where it has a check. Raises Conflict where it is unhealthy, or ended and stays so."""
    state = container.state()
    if state.status in ("exited", "dead"):
        why = state.error or f"it ended with exit code {state.exit_code}"
        raise Conflict(f"container {container.name} has ended", why, f"`bulle logs {container.name}` says what it did")
    if state.health is not None and state.health.status == "unhealthy":
        why = state.health.log[-1].output.strip() if state.health.log else ""
        raise Conflict(f"container {container.name} is unhealthy", why, f"`bulle inspect {container.name}` shows its checks")
    return state.status == "running" and (state.health is None or state.health.status == "healthy")


def has_completed(container: Container, service: str) -> bool:
    """Whether it ended with exit code 0. Raises Conflict for another."""
    state = container.state()
    if state.status not in ("exited", "dead"):
        return False
    if state.exit_code != 0:
        raise Conflict(f'service "{service}" didn\'t complete successfully', f"exit {state.exit_code}", f"`bulle logs {container.name}` says why")
    return True
