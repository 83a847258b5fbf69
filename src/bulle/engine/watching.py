"""What a container's monitor does besides passing on: health checks and limits of time, as watchdogs of its loop.

A check is an ``exec`` in a child of the monitor, so that it needs nobody else; it ends with the connection that the watchdog holds.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from bulle.engine import balancing, pausing, planning
from bulle.engine.executing import execute
from bulle.engine.starting import Order
from bulle.isolation.driver import Driver
from bulle.linux.fork import fork
from bulle.model.container import ExecOptions
from bulle.model.lifecycle import Health
from bulle.monitor import Attachment
from bulle.monitor.health import HealthMonitor
from bulle.monitor.limits import Ender, IdleLimit, TimeLimit
from bulle.monitor.state import read_state, write_state
from bulle.monitor.supervisor import Supervisor
from bulle.records.events import publish_container


def equip(watch: Supervisor, order: Order, driver: Driver, pidfd: int, kept: Sequence[int]) -> None:
    """Give the loop the watchdogs that the plan wants. ``kept`` are descriptors of the monitor that no child of it may keep open."""
    plan = order.plan
    lifecycle = plan.lifecycle
    if not lifecycle.watched:
        return
    state = read_state(plan.state_host_path)
    number = planning.signal_number(plan.stop_signal)

    def send(wanted: int) -> None:
        driver.signal(plan, pidfd, wanted)

    ender = watch.ender = Ender(send, number, plan.stop_timeout_s, lambda: pausing.resume(Path(order.home), plan))
    watch.watchdogs.append(ender)
    if lifecycle.timeout_s:
        watch.watchdogs.append(TimeLimit(ender, state.started_at_ns, lifecycle.timeout_s))
    if lifecycle.idle_timeout_s:

        def is_busy() -> bool:
            busy, watch.busy = watch.busy, False
            return busy or driver.is_paused(plan)  # it was told to do nothing

        watch.watchdogs.append(IdleLimit(ender, lifecycle.idle_timeout_s, is_busy, lambda: driver.processor_ns(plan, state.pid)))
    if lifecycle.health is not None:
        on_failure = lifecycle.health.on_failure
        children = _Children()
        wanted = planning.exec_process(plan, ExecOptions(command=lifecycle.health.command))
        check = msgspec.structs.replace(order, attach=True, interactive=False, bound=True, execute=wanted, pid=state.pid)

        def changed(health: Health, failed: bool) -> None:
            before = read_state(plan.state_host_path)
            write_state(plan.state_host_path, msgspec.structs.replace(before, health=health))
            if before.health is None or before.health.status != health.status:
                balancing.changed(Path(order.home), plan)
                publish_container(plan.state_host_path, f"health_status: {health.status}")
            if failed and on_failure != "none":
                ender.end("unhealthy", kill=on_failure == "kill", again=on_failure == "restart", final=on_failure == "stop")

        watch.watchdogs += [
            HealthMonitor(
                lifecycle.health,
                state.started_at_ns,
                state.health,
                lambda: children.begin(check, (*kept, *watch.descriptors())),
                changed,
                lambda: driver.is_paused(plan),
            ),
            children,
        ]


class _Children:
    """The monitor's children that run checks, until they are reaped."""

    def __init__(self) -> None:
        self._pidfds: list[int] = []

    def begin(self, order: Order, not_for_child: Sequence[int]) -> Attachment:
        """Run a check; its end comes over the connection. Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            pid = fork()
            if pid == 0:
                try:
                    ours.close()
                    for descriptor in not_for_child:
                        os.close(descriptor)
                    execute(order, theirs)
                finally:
                    os._exit(0)
        self._pidfds.append(os.pidfd_open(pid))
        return Attachment(ours)

    def descriptors(self) -> Collection[int]:
        """Readable when a child has ended."""
        return tuple(self._pidfds)

    def deadline(self) -> float:
        """None: the descriptors tell."""
        return float("inf")

    def act(self, ready: Collection[int]) -> None:
        """Reap who has ended."""
        for pidfd in [one for one in self._pidfds if one in ready]:
            self._reap(pidfd)

    def close(self) -> None:
        """The checks' connections are closed: they end now."""
        for pidfd in list(self._pidfds):
            self._reap(pidfd)

    def _reap(self, pidfd: int) -> None:
        with suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        os.close(pidfd)
        self._pidfds.remove(pidfd)
