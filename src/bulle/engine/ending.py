"""The end of a run: it is recorded with what is known of its cause, those who are attached are told, and it is decided whether there will be another.

Done by the container's monitor, also by one that took over, and by a command that is a monitor itself.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import msgspec

from bulle.engine import evidence, removal
from bulle.engine.events import publish_volumes
from bulle.engine.starting import Order
from bulle.errors import BulleError
from bulle.isolation.driver import Driver
from bulle.linux import process
from bulle.model.lifecycle import End
from bulle.model.run_plan import RunPlan
from bulle.monitor import ends, restart, supervisor
from bulle.monitor.frames import event
from bulle.monitor.state import read_state, write_state
from bulle.records.database import Database
from bulle.records.events import publish_container


def finish(order: Order, driver: Driver, watch: supervisor.Supervisor | None, status: int, error: BulleError | None = None) -> float | None:
    """Record the end (``status`` as of wait(2), -1 for unknown), or remove the container, and tell those who are attached.

    ``error`` is that of a restart that failed. Returns the seconds after which it is to be started again, None for never.
    """
    status, machine = driver.end_of(order.plan, status) if error is None else (status, "")
    code = error.exit_code if error else supervisor.exit_code(status)
    removed = is_removed(order)
    finished = event("exited", exit_code=code, kept=not removed)
    forgotten, delay_s = False, None
    if not removed:
        delay_s = record_end(order, driver, watch, status, error, machine)
    else:
        publish_container(order.plan.state_host_path, "die", exitCode=str(code))
        publish_volumes(order.plan, "unmount")
        if not order.attach:
            removal.forget(Database(Path(order.home)), order.plan, volumes=True)
            forgotten = True
    if watch is not None:
        watch.finish_clients(finished)
        # Who waits for a run frees the name itself (its database is open, ours is not): we only do it for one that is gone.
        forgotten = forgotten or watch.released
        watch.close()
    if removed:
        if not forgotten:
            removal.forget(Database(Path(order.home)), order.plan, volumes=True)
        driver.clean_up(order.plan)
        removal.remove_directory(order.plan)
    return delay_s


def is_removed(order: Order) -> bool:
    """Whether the container goes with its end: it was to, and is not just being started again by a command."""
    if not order.auto_remove:
        return False
    intent = ends.read_intent(order.plan.state_host_path)
    return intent is None or intent.verb != "restart"


def record_end(
    order: Order, driver: Driver, watch: supervisor.Supervisor | None, status: int, error: BulleError | None = None, machine: str = ""
) -> float | None:
    """Clean up and write how the container ended; returns as :func:`finish` does. ``machine`` is why what it ran in ended before it."""
    directory, plan = order.plan.state_host_path, order.plan
    out_of_memory = error is None and driver.ran_out_of_memory(plan)
    driver.clean_up(plan)
    state = read_state(directory)
    now_ns = time.time_ns()
    code, intent = error.exit_code if error else supervisor.exit_code(status), ends.read_intent(directory)
    ender = watch.ender if watch is not None else None
    went_down = error is None and state.boot_id != process.boot_id()
    if ender is not None and ender.again and intent is None:
        delay_s: float | None = 0.0
    else:
        delay_s = restart.next_delay(
            restart.policy_of(directory) or plan.lifecycle.restart,
            exit_code=code,
            restarts=state.restart_count,
            ran_s=0 if error else (now_ns - state.started_at_ns) / 1e9,
            last_delay_s=state.restart_delay_s,
            # What went down with the machine `system boot` starts again, and not whoever looks first.
            wanted=intent is not None or went_down or (ender is not None and ender.final),
        )
    end = End(
        status,
        state.started_at_ns,
        now_ns,
        reason="start" if error else ender.reason if ender is not None else "",
        intent=intent,
        out_of_memory=out_of_memory,
        health=state.health.log[-1] if state.health is not None and state.health.log else None,
        error=str(error) if error else "",
        again_in_s=delay_s,
        machine=machine,
    )
    if code != 0 and intent is None and error is None and not went_down:
        end = _with_evidence(end, plan, state.pid, driver)
    ends.record(directory, end)
    ended = msgspec.structs.replace(
        state,
        status="exited" if delay_s is None else "restarting",
        pid=0,
        exit_code=code,
        finished_at_ns=now_ns,
        out_of_memory=out_of_memory,
        error=end.error or machine or ("" if status >= 0 else "its exit code is unknown: the processes that watched it were killed"),
        restart_count=state.restart_count + (delay_s is not None),
        restart_delay_s=delay_s or 0,
    )
    with suppress(FileNotFoundError):  # removed by force meanwhile
        write_state(directory, ended)
    if end.out_of_memory:
        publish_container(directory, "oom")
    if error is None:
        publish_container(directory, "die", exitCode=str(code))
        publish_volumes(plan, "unmount")
    return delay_s


def _with_evidence(end: End, plan: RunPlan, pid: int, driver: Driver) -> End:
    """With what can still be found out of an end that nobody wanted."""
    denied = driver.refused_calls(plan)
    return msgspec.structs.replace(
        end,
        last_words=evidence.last_words(plan.state_host_path),
        denied=evidence.denied(plan, pid, end.started_at_ns, end.status) if denied is None else denied,
        out_of_memory=end.out_of_memory or evidence.killed_for_memory(end.status, pid),
    )


def stay_ended(order: Order) -> None:
    """A container that was to be started again is not: somebody stopped it."""
    directory = order.plan.state_host_path
    with suppress(FileNotFoundError):
        write_state(directory, msgspec.structs.replace(read_state(directory), status="exited", restart_delay_s=0))
