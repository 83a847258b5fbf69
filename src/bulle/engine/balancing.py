"""Which containers are in balance: found by a name that several share, and led to by a port that several share.

What decides stands in a container's directory: that it was withdrawn, that somebody wants its end, what its health check says. The keeper looks there
whenever it is told to, and when it begins; so nothing is lost with a keeper, nor with who told it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from bulle.engine import keeping
from bulle.errors import BulleError
from bulle.model.network import Standing
from bulle.model.run_plan import RunPlan
from bulle.monitor import ends
from bulle.monitor.state import current_state, read_state
from bulle.network.protocol import Reconsider, Register
from bulle.records import reserve

if TYPE_CHECKING:
    from bulle.engine.container import Container

_WITHDRAWN = "withdrawn"
_PATIENCE_S = 1.0  # who ends a container, or watches it, does not wait for a keeper that hangs


def standing_of(register: Register) -> Standing:
    """What is known of a container that runs; the keeper asks."""
    directory = register.directory
    if os.path.exists(f"{directory}/{_WITHDRAWN}") or ends.read_intent(directory) is not None:
        return "withdrawn"
    if not register.checked:
        return "ready"
    state = read_state(directory)
    is_healthy = state.pid == register.pid and state.health is not None and state.health.status == "healthy"
    return "ready" if is_healthy else "unready"


def withdraw(home: Path, container: Container) -> None:
    """See :meth:`Container.withdraw`."""
    if current_state(container.directory).active:
        reserve.replace_file(home, f"{container.directory}/{_WITHDRAWN}", b"")
        standing(home, container)


def admit(home: Path, container: Container) -> None:
    """See :meth:`Container.admit`."""
    forget(container.directory)
    standing(home, container)


def standing(home: Path, container: Container) -> Standing:
    """See :meth:`Container.standing`; the keeper has done what it says when this returns."""
    if container.plan.network.mode != "own" or current_state(container.directory).status != "running":
        return "withdrawn"
    return keeping.ask(home, Reconsider(container.id)).standing


def changed(home: Path, plan: RunPlan) -> None:
    """Have the keeper, if there is one, look at a container whose health or intent was written, where that means anything to others."""
    network = plan.network
    if network.mode == "own" and (any(port.shared for port in network.ports) or any(one.names for one in network.attachments)):
        with suppress(BulleError, OSError):
            keeping.tell(home, Reconsider(plan.container_id), _PATIENCE_S)


def forget(directory: str) -> None:
    """It is started: what was wanted before is over."""
    with suppress(FileNotFoundError):
        os.unlink(f"{directory}/{_WITHDRAWN}")
