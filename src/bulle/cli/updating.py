"""``bulle update``: other limits and another restart policy for containers, also for those that run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from bulle.cli.option_types import NanoCpus, Size, Suggestion, Text, Whole, complete_containers
from bulle.cli.session import Session
from bulle.cli.verb import verb
from bulle.model.container import LimitChanges

_RESTART = Suggestion("policy", "no", "on-failure", "always", "unless-stopped")


@verb("update", "CONTAINER [CONTAINER...]")
@click.argument("containers", nargs=-1, required=True, shell_complete=complete_containers)
@click.option("-m", "--memory", "memory_bytes", type=Size(), help="Memory limit (0: none)")
@click.option("--memory-swap", "memory_swap_bytes", type=Size(unlimited=True), help="Swap limit equal to memory plus swap (-1: unlimited)")
@click.option("--memory-reservation", "memory_reservation_bytes", type=Size(), help="Memory soft limit (0: none)")
@click.option("--cpus", "nano_cpus", type=NanoCpus(), help="Number of CPUs (0: all)")
@click.option("-c", "--cpu-shares", type=Whole(0), help="CPU shares (relative weight)")
@click.option("--cpu-quota", "cpu_quota_us", type=Whole(-1), help="Limit CPU CFS (Completely Fair Scheduler) quota, in microseconds (0: none)")
@click.option("--cpu-period", "cpu_period_us", type=Whole(0), help="Limit CPU CFS (Completely Fair Scheduler) period, in microseconds")
@click.option("--cpuset-cpus", type=Text(), help="CPUs in which to allow execution (0-3, 0,1)")
@click.option("--cpuset-mems", type=Text(), help="MEMs in which to allow execution (0-3, 0,1)")
@click.option("--pids-limit", type=Whole(-1), help="Tune container pids limit (set -1 for unlimited)")
@click.option("--blkio-weight", type=Whole(0), help="Block IO (relative weight), between 10 and 1000, or 0 to disable")
@click.option("--restart", "restart_policy", type=_RESTART, help="Restart policy to apply when the container exits")
@click.pass_obj
def update(session: Session, /, containers: Sequence[str], **flags: Any) -> int:
    """Update configuration of one or more containers."""
    changes = LimitChanges(**flags)
    return session.for_containers(containers, lambda container: container.update(changes))
