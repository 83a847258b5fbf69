"""The entries of monitors: what the spawner forks for each container (``start``), for each ``exec``, and to replace a monitor that was killed
(``monitor``).

A monitor stays small, because it does little: a *starter*, its child, mounts the layers and has the driver start the workload (as the monitor's
child), hands its descriptors over and ends; the monitor watches until the end, records it and removes what was to be removed. With ``--recover`` it
finds a workload again by pid and start time and goes on with the same FIFOs, terminal and log. Everything was imported before the fork: a monitor
outlives an upgrade of the files that it was loaded from.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from bulle.engine import removal
from bulle.engine.drivers import LEVELS, driver_for
from bulle.engine.starting import Order, as_error, begin, kept_status_of, no_stdio, owner_of_streams, take_lock
from bulle.errors import BulleError
from bulle.isolation import seccomp_profile
from bulle.isolation.driver import Driver
from bulle.linux import capabilities, process
from bulle.linux.fork import fork
from bulle.monitor import supervisor
from bulle.monitor.frames import Hello, event
from bulle.monitor.logs import LogWriter, open_log
from bulle.monitor.state import read_state, write_state
from bulle.monitor.stdio import Streams, close_stdio, make_pipes, open_fifos
from bulle.records.database import Database
from bulle.records.events import publish_container
from bulle.spawner import client
from bulle.spawner.leash import Leash
from bulle.store import Store

RECOVER = "--recover"
_ASKED_FOR_WITHIN_S = 3600.0
_PRECEDENCE_S = 0.5
_HAS_TERMINAL, _HAS_STDIN = 1, 2


_orders = msgspec.json.Decoder(Order)


def main(argv: Sequence[str], descriptors: Sequence[int], leash: Leash | None) -> int:
    """The entry ``monitor``: exec, a run that somebody waits for, or with ``--recover`` a monitor for a container that has lost its own.

    ``argv`` is an :class:`Order` as JSON and perhaps that word; ``descriptors``: the socket of who asked, or what was held.
    """
    try:
        order = _orders.decode(argv[0])
        if RECOVER in argv[1:]:
            _recover(order, descriptors, leash)
        elif order.execute is not None:
            _execute(order, socket.socket(fileno=descriptors[0]))
        else:
            _run(order, socket.socket(fileno=descriptors[0]), leash)
    finally:
        if leash is not None:
            leash.release()
    return 0


def start(argv: Sequence[str], descriptors: Sequence[int], leash: Leash | None) -> int:
    """The entry ``start``: start a container that nobody is attached to, for the monitor at the other end of the second of ``descriptors``.

    The first is the socket of who asked. Without a second this process becomes that monitor.
    """
    if len(descriptors) > 1:
        if RECOVER not in argv[1:]:  # else its monitor, which was killed and forked anew, recovers what is left
            if leash is not None:
                leash.recover_as("monitor", list(argv[:1]))
            _start_for_parent(_orders.decode(argv[0]), descriptors[0], socket.socket(fileno=descriptors[1]), leash)
        return 0
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    starter = fork()
    if starter == 0:
        try:
            ours.close()
            start(argv, [descriptors[0], theirs.detach()], leash)
        finally:
            os._exit(0)
    theirs.close()
    os.close(descriptors[0])
    watch(ours, starter, lambda: list(argv), lambda: leash)
    return 0


def watch(line: socket.socket, starter: int, argv: Callable[[], list[str]], leash: Callable[[], Leash | None]) -> None:
    """Be the monitor of what the starter at the other end starts.

    Until the end this touches as little memory as it can: what it writes to is its own.
    """
    words, descriptors, _flags, _address = socket.recv_fds(line, 16, 8)
    line.close()
    os.waitpid(starter, 0)
    taken: list[Leash | None] = []

    def own_leash() -> Leash | None:
        if not taken:
            taken.append(leash())
        return taken[0]

    def input_ended() -> None:
        if (held := own_leash()) is not None:
            held.drop()

    try:
        if not words:  # it told the caller why, or was killed: then what it left is found as after any crash
            _recover(_orders.decode(argv()[0]), (), own_leash())
            return
        watching = _watching(words[0], descriptors)
        watching.input_ended = input_ended
        status = watching.run()
        order = _orders.decode(argv()[0])
        _finish(order, driver_for(order.plan.isolation, Path(order.home)), watching, status)
    finally:
        if (held := own_leash()) is not None:
            held.release()


def _watching(words: int, descriptors: list[int]) -> supervisor.Supervisor:
    """The loop over what a starter handed over. The lock, the first descriptor, only has to stay open."""
    _lock_descriptor, pidfd, listener, log, *rest = descriptors
    terminal = rest[0] if words & _HAS_TERMINAL else -1
    streams = Streams() if terminal >= 0 else Streams(rest[2] if words & _HAS_STDIN else -1, rest[0], rest[1])
    return supervisor.Supervisor(pidfd, streams, terminal, LogWriter(log), listener)


def rehearse_watch() -> None:
    """What :func:`watch` does until it waits, with descriptors of nothing.

    Python counts a function's first calls in its code, and then rewrites that: done here once, no monitor has to copy the page for it.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    socket.send_fds(theirs, [b"\0"], [null] * 6)
    words, descriptors, _flags, _address = socket.recv_fds(ours, 16, 8)
    with suppress(OSError):
        _watching(words[0], descriptors).prepare()
    for descriptor in (*descriptors, null):
        os.close(descriptor)
    ours.close()
    theirs.close()


def record_orphan(home: Path, pid: int, status: int) -> None:
    """Keep the wait status of a workload whose monitor died first; called by the spawner, which inherits and reaps it.

    What nobody asked for within an hour is thrown away: most orphans are processes that a command left behind.
    """
    directory = home / "run" / "exits"
    with suppress(OSError):
        directory.mkdir(exist_ok=True)
        (directory / str(pid)).write_text(str(status))
        for entry in os.scandir(directory):
            if time.time() - entry.stat().st_mtime > _ASKED_FOR_WITHIN_S:
                os.unlink(entry)


def warm(home: Path) -> None:
    """Find out before the first fork what every monitor would find out anew: filters, control groups, the boot."""
    process.boot_id()
    for kind in LEVELS:
        kind(home / "cache").probe()
    Store(home, Database(home)).layers.backend()
    seccomp_profile.program_for("default", frozenset(capabilities.parse_caps()), home / "cache")


def _run(order: Order, caller: socket.socket, leash: Leash | None) -> None:
    """Start a container and watch it in one process: quicker than a monitor with a starter, and larger, which a run that is waited for may be."""
    try:
        started = begin(order, leash)
    except BulleError as error:
        _send(caller, event("error", error=error))
        return
    _send(caller, event("started", pid=started.workload.pid, notes=tuple(started.workload.notes)))
    watching = started.supervisor()
    if leash is not None:
        watching.input_ended = leash.drop
    watching.add_client(caller, Hello(True, True), bound=order.bound)
    _finish(order, started.driver, watching, watching.run())


def _start_for_parent(order: Order, caller: int, parent: socket.socket, leash: Leash | None) -> None:
    """The starter's whole life."""
    answer = socket.socket(fileno=caller)
    try:
        started = begin(order, leash, for_parent=True)
    except BulleError as error:
        _send(answer, event("error", error=error))
        return
    workload, streams = started.workload, started.streams
    words = (_HAS_TERMINAL if workload.terminal >= 0 else 0) | (_HAS_STDIN if streams.stdin >= 0 else 0)
    outputs = [workload.terminal] if workload.terminal >= 0 else [streams.stdout, streams.stderr, *([streams.stdin] if streams.stdin >= 0 else [])]
    _send(answer, event("started", pid=workload.pid, notes=tuple(workload.notes)))
    socket.send_fds(parent, [bytes([words])], [started.lock, workload.pidfd, started.listener, started.log, *outputs])


def hand_over(order: Order, kept: Sequence[int]) -> None:
    """Have a monitor forked that takes over a running container whose lock is free.

    ``kept`` is the master of its terminal, or our ends of its outputs and perhaps its input; empty where nothing but names is left.
    """
    argv = [msgspec.json.encode(order).decode(), RECOVER]
    client.submit(Path(order.home), "monitor", argv, list(kept), local=main)


def _recover(order: Order, held: Sequence[int], leash: Leash | None) -> None:
    directory = order.plan.state_host_path
    has_terminal = order.plan.process.terminal
    if not held and (has_terminal or order.interactive):
        # The spawner may have a copy of the terminal or input, and be about to fork a monitor with it: that one goes first.
        time.sleep(_PRECEDENCE_S)
    try:
        lock = take_lock(directory)
    except FileNotFoundError:
        return  # removed meanwhile
    state = read_state(directory)
    if lock < 0 or state.status != "running" or order.execute is not None:
        return
    driver = driver_for(order.plan.isolation, Path(order.home))
    pidfd = process.open_process(state.pid, state.pid_start_ticks) if state.boot_id == process.boot_id() else None
    if has_terminal:
        terminal, streams = held[0] if held else -1, Streams()
    else:
        terminal, streams = -1, Streams(held[2] if len(held) > 2 else -1, *held[:2]) if held else open_fifos(directory, -1)
    if pidfd is None:
        supervisor.Supervisor(-1, streams, terminal, LogWriter(open_log(directory))).drain()
        _finish(order, driver, None, kept_status_of(order.home, state))
        return
    if leash is not None:
        for descriptor in held:
            leash.hold(descriptor)
    state = msgspec.structs.replace(state, monitor_pid=os.getpid(), monitor_start_ticks=process.start_ticks(os.getpid()))
    write_state(directory, state)
    watch = supervisor.Supervisor(pidfd, streams, terminal, LogWriter(open_log(directory)), supervisor.listen(directory))
    watch.kept_status = lambda: kept_status_of(order.home, state)
    if leash is not None:
        watch.input_ended = leash.drop
    _finish(order, driver, watch, watch.run())


def _execute(order: Order, caller: socket.socket) -> None:
    plan, wanted = order.plan, order.execute
    assert wanted is not None
    driver = driver_for(plan.isolation, Path(order.home))
    try:
        streams, stdio = (Streams(), no_stdio()) if wanted.terminal else make_pipes(owner_of_streams(plan), order.interactive)
        try:
            workload = driver.execute(plan, order.pid, wanted, stdio)
        finally:
            close_stdio(stdio)
    except (BulleError, OSError) as error:
        _send(caller, event("error", error=error if isinstance(error, BulleError) else as_error(error)))
        return
    if workload.terminal >= 0:
        os.set_blocking(workload.terminal, False)
    _send(caller, event("started", pid=workload.pid, notes=tuple(workload.notes)))
    watch = supervisor.Supervisor(workload.pidfd, streams, workload.terminal, None)
    watch.add_client(caller, Hello(order.attach, order.interactive))
    code = supervisor.exit_code(watch.run())
    publish_container(plan.state_host_path, "exec_die", execID=order.exec_id, exitCode=str(code))
    watch.finish_clients(event("exited", exit_code=code))


def _finish(order: Order, driver: Driver, watch: supervisor.Supervisor | None, status: int) -> None:
    """Record the end (``status`` as of wait(2), -1 for unknown), or remove the container, and tell those who are attached."""
    finish = event("exited", exit_code=supervisor.exit_code(status))
    forgotten = False
    if not order.auto_remove:
        record_end(order, driver, status)
    elif not order.attach:
        removal.forget(Database(Path(order.home)), order.plan)
        forgotten = True
    if watch is not None:
        watch.finish_clients(finish)
        # Who waits for a run frees the name itself (its database is open, ours is not): we only do it for one that is gone.
        forgotten = forgotten or watch.released
    if order.auto_remove:
        if not forgotten:
            removal.forget(Database(Path(order.home)), order.plan)
        driver.clean_up(order.plan)
        removal.remove_directory(order.plan)


def record_end(order: Order, driver: Driver, status: int) -> None:
    """Clean up and write how the container ended (``status`` as of wait(2), -1 for unknown)."""
    directory = order.plan.state_host_path
    out_of_memory = driver.ran_out_of_memory(order.plan)
    driver.clean_up(order.plan)
    ended = msgspec.structs.replace(
        read_state(directory),
        status="exited",
        pid=0,
        exit_code=supervisor.exit_code(status),
        finished_at_ns=time.time_ns(),
        out_of_memory=out_of_memory,
        error="" if status >= 0 else "its exit code is unknown: the processes that watched it were killed",
    )
    with suppress(FileNotFoundError):  # removed by force meanwhile
        write_state(directory, ended)


def _send(caller: socket.socket, data: bytes) -> None:
    with suppress(OSError):  # the client went away; the container goes on
        caller.sendall(data)
