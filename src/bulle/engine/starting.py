"""Starting a container: the part of a monitor's work that is done once, by the process that goes on to watch, or by one that hands over to it.

Used by the monitors' entries (``supervisor``) and by commands in the foreground (``foreground``). What is opened here belongs to whoever watches.
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from bulle.engine import balancing, keeping, removal
from bulle.engine.drivers import driver_for
from bulle.engine.events import publish_volumes
from bulle.errors import BulleError, Conflict, StorageFull
from bulle.isolation.driver import Driver, Stdio, Workload
from bulle.linux import process
from bulle.model.container import ContainerState
from bulle.model.lifecycle import End, Health
from bulle.model.run_plan import Process, RunPlan
from bulle.monitor import ends, supervisor
from bulle.monitor.log_drivers import log_writer, open_log
from bulle.monitor.state import current_state, read_state, write_state
from bulle.monitor.stdio import Streams, close_stdio, make_fifos
from bulle.records.database import Database
from bulle.records.events import publish_container
from bulle.spawner.leash import Leash
from bulle.store import Store

_PREDECESSOR_PATIENCE_S = 15.0  # longer than a monitor waits for clients that do not take their output


class Order(msgspec.Struct, frozen=True):
    """What a monitor is to do: run the plan, or with ``execute`` one more process in the container whose first process is ``pid``.

    ``attach`` says that the descriptor that came along is a client that wants output (and sends input where ``interactive``); where it is ``bound``
    to that client, the container is killed when the client goes away. One that ``arrives`` from another host is gone where that fails. ``home`` is a
    host path, ``exec_id`` the name of the ``execute`` in events.
    """

    home: str
    plan: RunPlan
    attach: bool = False
    interactive: bool = False
    auto_remove: bool = False
    bound: bool = False
    arrives: bool = False
    execute: Process | None = None
    pid: int = 0
    exec_id: str = ""


@dataclass
class Watch:
    """A container that was started: what its monitor needs. ``lock`` is held by whoever is that; ``listener`` and ``log`` are descriptors."""

    order: Order
    driver: Driver
    workload: Workload
    streams: Streams
    log: int
    listener: int
    lock: int

    def supervisor(self) -> supervisor.Supervisor:
        """The loop that watches it; it owns the descriptors from now on."""
        log = log_writer(self.log, self.order.plan.log)
        made = supervisor.Supervisor(self.workload.pidfd, self.streams, self.workload.terminal, log, self.listener)
        since_ns = time.time_ns()
        made.kept_status = lambda: orphan_status(self.order.home, self.workload.pid, since_ns)
        return made


def begin(order: Order, leash: Leash | None, *, for_parent: bool = False, lock: int = -1) -> Watch:
    """Start the container, for this process to be its monitor, or for its parent to be.

    ``lock`` is that of a monitor which starts it again. Raises BulleError; then a first start is recorded as failed, or what it was to start is gone
    if it was to be removed.
    """
    home, again = Path(order.home), lock >= 0
    plan = keeping.with_changed_network(home, order.plan) if again else order.plan
    directory = plan.state_host_path
    before = read_state(directory) if again else ContainerState()
    if not again:
        lock = take_lock(directory, _PREDECESSOR_PATIENCE_S)
        if lock < 0:
            raise Conflict("the container is being started by somebody else", "", "wait a moment")
        ends.forget_intent(directory)
        balancing.forget(directory)
    driver, opened = driver_for(plan.isolation, home), list[int]()

    def meanwhile(workload: Workload) -> None:
        """What can be done while the container sets itself up: its log, its socket, its state."""
        opened.extend((open_log(plan), supervisor.listen(directory)))
        monitor = os.getppid() if for_parent else os.getpid()
        state = ContainerState(
            status="running",
            pid=workload.pid,
            pid_start_ticks=process.start_ticks(workload.pid),
            boot_id=process.boot_id(),
            monitor_pid=monitor,
            monitor_start_ticks=process.start_ticks(monitor),
            started_at_ns=time.time_ns(),
            isolation_obtained=plan.isolation,
            restart_count=before.restart_count,
            restart_delay_s=before.restart_delay_s,
            health=Health() if plan.lifecycle.health else None,
        )
        write_state(directory, state)

    try:
        driver.require(plan)
        Store(home, Database(home)).layers.mount((*plan.root.layers, *plan.volume_layers))
        streams, stdio = (Streams(), no_stdio()) if plan.process.terminal else make_fifos(directory, owner_of_streams(plan), order.interactive)
        try:
            with keeping.standing_in_shared_network(plan):
                workload = driver.start(plan, stdio, sibling=for_parent, meanwhile=meanwhile, connect=partial(keeping.register, home, plan))
        finally:
            close_stdio(stdio)
    except (BulleError, OSError) as error:
        failure = error if isinstance(error, BulleError) else as_error(error)
        _start_failed(order, driver, failure, again)
        for descriptor in (*opened, lock):
            os.close(descriptor)
        raise failure from error
    if workload.terminal >= 0:
        os.set_blocking(workload.terminal, False)
    if leash is not None:
        for kept in filter(lambda held: held >= 0, (workload.terminal, streams.stdout, streams.stderr, streams.stdin)):
            leash.hold(kept)
    log, listener = opened
    _publish_start(plan)
    return Watch(order, driver, workload, streams, log, listener, lock)


def _publish_start(plan: RunPlan) -> None:
    publish_volumes(plan, "mount")
    publish_container(plan.state_host_path, "start")


def _start_failed(order: Order, driver: Driver, error: BulleError, again: bool) -> None:
    with suppress(OSError, BulleError):
        driver.clean_up(order.plan)
    if again:
        return  # its monitor decides
    if order.auto_remove or order.arrives:
        with suppress(OSError, BulleError):
            removal.forget(Database(Path(order.home)), order.plan, volumes=True)
            removal.remove_directory(order.plan)
    else:
        directory, now_ns = order.plan.state_host_path, time.time_ns()
        with suppress(OSError):
            write_state(directory, ContainerState(exit_code=error.exit_code, error=str(error), finished_at_ns=now_ns))
        ends.record(directory, End(-1, now_ns, now_ns, reason="start", error=str(error)))


def kept_status_of(home: str, state: ContainerState) -> int:
    """The wait status of a workload that was not ours to reap: of the zombie that nobody has reaped yet, else what the spawner kept; or -1."""
    if state.boot_id != process.boot_id():
        return -1  # another process may have its pid by now
    status = process.zombie_status(state.pid, state.pid_start_ticks)
    return status if status >= 0 else orphan_status(home, state.pid, state.started_at_ns)


def orphan_status(home: str, pid: int, since_ns: int) -> int:
    """What the spawner kept, at that time or later, of a workload that it reaped; -1 for nothing. Older ones are of others that had the same pid."""
    path = Path(home) / "run" / "exits" / str(pid)
    try:
        status = int(path.read_text()) if path.stat().st_mtime_ns >= since_ns else -1
        path.unlink()
        return status
    except (OSError, ValueError):
        return -1


def take_lock(directory: str, patience_s: float = 0.0) -> int:
    """Be the container's only monitor: a lock that dies with this process; -1 where another holds it and goes on holding it.

    Who starts a container again at once finds the lock of a monitor that has recorded the end and is about to go: that is waited for.
    """
    descriptor = os.open(f"{directory}/monitor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            # What runs on the disk alone is about to be recorded as ended, by a monitor that took over.
            if time.monotonic() >= deadline or current_state(directory).active:
                os.close(descriptor)
                return -1
        time.sleep(0.002)


def owner_of_streams(plan: RunPlan) -> int:
    """The user id on the host to whom the container's pipes belong: its own root, where we may give them away."""
    return plan.security.id_mappings[0].host_id if plan.security.id_mappings and os.geteuid() == 0 else 0


def no_stdio() -> Stdio:
    """Streams that nobody uses, for a process that has a terminal."""
    return Stdio(*(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC) for _ in range(3)))


def as_error(error: OSError) -> BulleError:
    """What an unexpected refusal of the kernel means for a start."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (28, 122):
        return StorageFull("the container could not be started", f"{reason}{where}", "free some space, for example with `bulle rm` and `bulle rmi`")
    return BulleError("the container could not be started", f"{error.strerror or reason}{where}", "see `bulle doctor`")
