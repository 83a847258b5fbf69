"""``update``: other limits and another restart policy for a container, also while it runs.

The kernel is told first: what it refuses changes nothing. Then options and plan are written in one transaction; where that fails the kernel is told
the old limits again.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from bulle.engine import planning
from bulle.engine.drivers import driver_for
from bulle.engine.lifecycle import restart_policy
from bulle.errors import BulleError, Conflict, InvalidInput, NotFound
from bulle.model.container import ContainerOptions, LimitChanges
from bulle.model.run_plan import RunPlan
from bulle.monitor.restart import change_policy
from bulle.records.containers import ContainerRecord, ContainerRecords
from bulle.records.database import Database
from bulle.records.events import publish_container

if TYPE_CHECKING:
    from bulle.engine.container import Container


def update(home: Path, database: Database, container: Container, changes: LimitChanges) -> tuple[ContainerRecord, tuple[str, ...]]:
    """Change what is given and leave the rest; returns the new record, and what was weaker than asked.

    Raises InvalidInput, Unsupported, Unavailable, or BulleError where the kernel refuses; then everything is as it was.
    """
    given = {name: value for name, value in msgspec.structs.asdict(changes).items() if value is not None}
    if not given:
        raise InvalidInput("nothing is to be changed", "", "give at least one limit, or --restart")
    if given.get("memory_bytes") == 0:
        given.setdefault("memory_swap_bytes", 0)
    with alone(container.directory):
        return _update(home, database, container, given)


def as_recorded(home: Path, plan: RunPlan) -> RunPlan:
    """The plan with the limits that hold now: a monitor that starts its container again has an older one."""
    with suppress(BulleError):
        recorded = ContainerRecords(Database(home)).find(plan.container_id)
        return replace(plan, resources=recorded.plan.resources)
    return plan


@contextmanager
def alone(directory: str) -> Iterator[None]:
    """One change of a container (host directory) at a time: each undoes only its own. Raises NotFound."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound("no such container", "it was removed meanwhile", "`bulle ps -a` lists them") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _update(home: Path, database: Database, container: Container, given: dict[str, Any]) -> tuple[ContainerRecord, tuple[str, ...]]:
    records = ContainerRecords(database)
    record = records.find(container.id)
    options = replace(record.options, **given)
    plan = _changed(record.plan, options)
    driver = driver_for(plan.isolation, home)
    driver.require(plan)
    state = container.state()
    limits_differ = plan.resources != record.plan.resources
    running = limits_differ and state.status == "running"
    notes = driver.change_limits(record.plan, plan, state.pid) if running else []
    try:
        changed = records.change(record, options, plan)
    except BaseException:
        if running:
            with suppress(BulleError, OSError):
                driver.change_limits(plan, record.plan, state.pid)
        raise
    if "restart_policy" in given:
        change_policy(container.directory, plan.lifecycle.restart)
    publish_container(container.directory, "update")
    return changed, tuple(notes)


def _changed(plan: RunPlan, options: ContainerOptions) -> RunPlan:
    policy = restart_policy(options.restart_policy)
    if options.auto_remove and policy.name != "no":
        raise Conflict("a container that is removed at its end (--rm) cannot have a restart policy", "", "leave --restart out")
    return replace(plan, resources=planning.resources(options), lifecycle=replace(plan.lifecycle, restart=policy))
