"""The entry of a monitor process: what the spawner forks for each container, and for each ``exec``.

It mounts the layers, has the driver start the workload, then supervises it until the end, records the exit and removes what was to be removed.
Started with ``--recover`` (its predecessor was killed) it finds the workload again by pid and start time and continues with the same FIFOs,
terminal and log. Everything it needs was imported before the fork: a monitor outlives an upgrade of the files that it was loaded from.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bulle.engine import removal
from bulle.engine.drivers import LEVELS, driver_for
from bulle.errors import BulleError, Conflict, StorageFull
from bulle.isolation import seccomp_profile
from bulle.isolation.driver import Driver, Stdio, Workload
from bulle.linux import capabilities, process
from bulle.model.container import ContainerState
from bulle.model.run_plan import Process, RunPlan
from bulle.monitor import supervisor
from bulle.monitor.frames import Hello, event
from bulle.monitor.logs import LogWriter
from bulle.monitor.state import read_state, write_state
from bulle.monitor.stdio import Streams, close_stdio, make_fifos, make_pipes, open_fifos
from bulle.records.database import Database
from bulle.spawner import client
from bulle.spawner.leash import Leash
from bulle.store import Store

RECOVER = "--recover"
_PREDECESSOR_PATIENCE_S = 15.0  # longer than a monitor waits for clients that do not take their output


class Order(msgspec.Struct, frozen=True):
    """What a monitor is to do: run the plan, or with ``execute`` one more process in the container whose first process is ``pid``.

    ``attach`` says that the descriptor that came along is a client that wants output (and sends input where ``interactive``). ``home`` is a host
    path.
    """

    home: str
    plan: RunPlan
    attach: bool = False
    interactive: bool = False
    auto_remove: bool = False
    execute: Process | None = None
    pid: int = 0


def main(argv: Sequence[str], descriptors: Sequence[int], leash: Leash | None) -> int:
    """Be the monitor; ``argv`` is an :class:`Order` as JSON. ``descriptors``: the first client's socket, or after ``--recover`` what was held."""
    order = msgspec.json.decode(argv[0], type=Order)
    try:
        if RECOVER in argv[1:]:
            _recover(order, descriptors, leash)
        elif order.execute is not None:
            _execute(order, order.execute, socket.socket(fileno=descriptors[0]))
        else:
            _run(order, socket.socket(fileno=descriptors[0]), leash)
    finally:
        if leash is not None:
            leash.release()
    return 0


def record_orphan(home: Path, pid: int, status: int) -> None:
    """Keep the wait status of a workload whose monitor died first; called by the spawner, which inherits and reaps it."""
    directory = home / "run" / "exits"
    with suppress(OSError):
        directory.mkdir(exist_ok=True)
        (directory / str(pid)).write_text(str(status))


def warm(home: Path) -> None:
    """Find out before the first fork what every monitor would find out anew: filters, control groups, the boot."""
    process.boot_id()
    for kind in LEVELS:
        kind(home / "cache").probe()
    Store(home, Database(home)).layers.backend()
    seccomp_profile.program_for("default", frozenset(capabilities.parse_caps()), home / "cache")


@dataclass
class Watch:
    """A container that was started by this process, which is its monitor now. ``lock`` is held as long as this process is that."""

    order: Order
    driver: Driver
    workload: Workload
    state: ContainerState
    supervisor: supervisor.Supervisor
    lock: int


def begin(order: Order, leash: Leash | None) -> Watch:
    """Start the container and become its monitor.

    Raises BulleError; then it is recorded as failed, or gone if it was to be removed.
    """
    plan, home = order.plan, Path(order.home)
    directory = plan.state_host_path
    lock = _lock(directory, _PREDECESSOR_PATIENCE_S)
    if lock < 0:
        raise Conflict("the container is being started by somebody else", "", "wait a moment")
    driver = driver_for(plan.isolation, home)
    try:
        driver.require(plan)
        Store(home, Database(home)).layers.mount(plan.root.layers)
        owner = plan.security.id_mappings[0].host_id if plan.security.id_mappings and os.geteuid() == 0 else 0
        streams, stdio = (Streams(), _no_stdio()) if plan.process.terminal else make_fifos(directory, owner, order.interactive)
        try:
            workload = driver.start(plan, stdio)
        finally:
            close_stdio(stdio)
        log = LogWriter(directory)
        listener = supervisor.listen(directory)
    except (BulleError, OSError) as error:
        failure = error if isinstance(error, BulleError) else _as_error(error)
        _start_failed(order, driver, failure)
        os.close(lock)
        raise failure from error
    state = ContainerState(
        status="running",
        pid=workload.pid,
        pid_start_ticks=process.start_ticks(workload.pid),
        boot_id=process.boot_id(),
        monitor_pid=os.getpid(),
        monitor_start_ticks=process.start_ticks(os.getpid()),
        started_at_ns=time.time_ns(),
        isolation_obtained=plan.isolation,
    )
    write_state(directory, state)
    if workload.terminal >= 0:
        os.set_blocking(workload.terminal, False)
        if leash is not None:
            leash.hold(workload.terminal)
    return Watch(order, driver, workload, state, supervisor.Supervisor(workload.pidfd, streams, workload.terminal, log, listener), lock)


def _run(order: Order, caller: socket.socket, leash: Leash | None) -> None:
    try:
        watch = begin(order, leash)
    except BulleError as error:
        _send(caller, event("error", error=error))
        return
    _send(caller, event("started", pid=watch.workload.pid, notes=tuple(watch.workload.notes)))
    watch.supervisor.add_client(caller, Hello(order.attach, order.interactive))
    _finish(order, watch.driver, watch.state, watch.supervisor)


def hand_over(order: Order, terminal: int) -> None:
    """Have a monitor forked that takes over a running container whose lock is free; ``terminal`` is the master of its terminal, or -1."""
    argv = [msgspec.json.encode(order).decode(), RECOVER]
    client.submit(Path(order.home), "monitor", argv, [terminal] if terminal >= 0 else [], local=main)


def _recover(order: Order, held: Sequence[int], leash: Leash | None) -> None:
    directory = order.plan.state_host_path
    lock = _lock(directory)
    state = read_state(directory)
    if lock < 0 or state.status != "running" or order.execute is not None:
        return
    driver = driver_for(order.plan.isolation, Path(order.home))
    pidfd = process.open_process(state.pid, state.pid_start_ticks) if state.boot_id == process.boot_id() else None
    if pidfd is None:
        record_end(order, driver, state, _orphan_status(order, state.pid))
        return
    terminal = held[0] if held else -1
    if leash is not None and terminal >= 0:
        leash.hold(terminal)
    streams = Streams() if order.plan.process.terminal else open_fifos(directory, order.interactive)
    state = msgspec.structs.replace(state, monitor_pid=os.getpid(), monitor_start_ticks=process.start_ticks(os.getpid()))
    write_state(directory, state)
    watch = supervisor.Supervisor(pidfd, streams, terminal, LogWriter(directory), supervisor.listen(directory))
    _finish(order, driver, state, watch)


def _execute(order: Order, wanted: Process, caller: socket.socket) -> None:
    plan = order.plan
    driver = driver_for(plan.isolation, Path(order.home))
    owner = plan.security.id_mappings[0].host_id if plan.security.id_mappings and os.geteuid() == 0 else 0
    try:
        streams, stdio = (Streams(), _no_stdio()) if wanted.terminal else make_pipes(owner, order.interactive)
        try:
            workload = driver.execute(plan, order.pid, wanted, stdio)
        finally:
            close_stdio(stdio)
    except (BulleError, OSError) as error:
        _send(caller, event("error", error=error if isinstance(error, BulleError) else _as_error(error)))
        return
    if workload.terminal >= 0:
        os.set_blocking(workload.terminal, False)
    _send(caller, event("started", pid=workload.pid, notes=tuple(workload.notes)))
    watch = supervisor.Supervisor(workload.pidfd, streams, workload.terminal, None, None)
    watch.add_client(caller, Hello(order.attach, order.interactive))
    watch.finish_clients(event("exited", exit_code=supervisor.exit_code(watch.run())))


def _finish(order: Order, driver: Driver, state: ContainerState, watch: supervisor.Supervisor) -> None:
    status = ended_status(order, state, watch.run())
    finish = event("exited", exit_code=supervisor.exit_code(status))
    if not order.auto_remove:
        record_end(order, driver, state, status)
        watch.finish_clients(finish)
        return
    # A client that waits for the end frees the name itself (its database is open, ours is not): we only do it for one that is gone.
    watch.finish_clients(finish)
    if not watch.released:
        removal.forget(Database(Path(order.home)), order.plan)
    driver.clean_up(order.plan)
    removal.remove_directory(order.plan)


def ended_status(order: Order, state: ContainerState, status: int) -> int:
    """The wait status of the workload, from what the spawner kept where it was not ours to reap; -1 for unknown."""
    return status if status >= 0 else _orphan_status(order, state.pid)


def record_end(order: Order, driver: Driver, state: ContainerState, status: int) -> None:
    """Clean up and write how the container ended (``status`` as of wait(2), -1 for unknown)."""
    out_of_memory = driver.ran_out_of_memory(order.plan)
    driver.clean_up(order.plan)
    ended = msgspec.structs.replace(
        state,
        status="exited",
        pid=0,
        exit_code=supervisor.exit_code(status),
        finished_at_ns=time.time_ns(),
        out_of_memory=out_of_memory,
        error="" if status >= 0 else "its exit code is unknown: the processes that watched it were killed",
    )
    with suppress(FileNotFoundError):  # removed by force meanwhile
        write_state(order.plan.state_host_path, ended)
    if order.auto_remove:
        removal.forget(Database(Path(order.home)), order.plan)
        removal.remove_directory(order.plan)


def _start_failed(order: Order, driver: Driver, error: BulleError) -> None:
    with suppress(OSError, BulleError):
        driver.clean_up(order.plan)
    if order.auto_remove:
        with suppress(OSError, BulleError):
            removal.forget(Database(Path(order.home)), order.plan)
            removal.remove_directory(order.plan)
    else:
        with suppress(OSError):
            write_state(order.plan.state_host_path, ContainerState(exit_code=error.exit_code, error=str(error), finished_at_ns=time.time_ns()))


def _orphan_status(order: Order, pid: int) -> int:
    """What the spawner kept of a workload that it reaped, or -1."""
    path = Path(order.home) / "run" / "exits" / str(pid)
    try:
        status = int(path.read_text())
        path.unlink()
        return status
    except (OSError, ValueError):
        return -1


def _lock(directory: str, patience_s: float = 0.0) -> int:
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
            if time.monotonic() >= deadline or read_state(directory).status == "running":
                os.close(descriptor)
                return -1
        time.sleep(0.002)


def _send(caller: socket.socket, data: bytes) -> None:
    with suppress(OSError):  # the client went away; the container goes on
        caller.sendall(data)


def _no_stdio() -> Stdio:
    return Stdio(*(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC) for _ in range(3)))


def _as_error(error: OSError) -> BulleError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (28, 122):
        return StorageFull("the container could not be started", f"{reason}{where}", "free some space, for example with `bulle rm` and `bulle rmi`")
    return BulleError("the container could not be started", f"{error.strerror or reason}{where}", "see `bulle doctor`")


__all__ = ["Order", "Workload", "main", "record_orphan"]
