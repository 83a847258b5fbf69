"""When a container is started again after its end: the restart policy as a decision.

Docker's rules: the wait doubles with each run that ends soon, and begins anew after one that lasted; what a command ended stays ended.
"""

from __future__ import annotations

import os
from contextlib import suppress

import msgspec

from bulle.model.lifecycle import RestartPolicy

_POLICY = "restart.json"
_FIRST_S, _LONGEST_S = 0.1, 60.0
_LASTED_S = 10.0


def next_delay(policy: RestartPolicy, *, exit_code: int, restarts: int, ran_s: float, last_delay_s: float, wanted: bool) -> float | None:
    """Seconds until it is started again; None for never.

    ``restarts`` counts those since somebody started it, ``last_delay_s`` is what was waited before the run that ended (0: it was not a restart).
    ``wanted``: a command, or a limit, ended it. An unknown exit code (-1) is a failure.
    """
    if wanted or policy.name == "no":
        return None
    if policy.name == "on-failure" and (exit_code == 0 or 0 < policy.retries <= restarts):
        return None
    return _FIRST_S if ran_s >= _LASTED_S or not last_delay_s else min(2 * last_delay_s, _LONGEST_S)


def change_policy(directory: str, policy: RestartPolicy) -> None:
    """Have another policy hold from now on for the container with this host directory, also while it runs: its monitor has an older plan."""
    temporary = f"{directory}/.{_POLICY}.{os.getpid()}"
    with open(temporary, "wb") as file:
        file.write(msgspec.json.encode(policy))
    os.rename(temporary, f"{directory}/{_POLICY}")


def policy_of(directory: str) -> RestartPolicy | None:
    """What :func:`change_policy` said, None where the plan still holds."""
    with suppress(FileNotFoundError, msgspec.DecodeError), open(f"{directory}/{_POLICY}", "rb") as file:
        return msgspec.json.decode(file.read(), type=RestartPolicy)
    return None
