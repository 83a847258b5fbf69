"""The entries of monitors: what the spawner forks for each container (``start``), for each ``exec``, and to replace a monitor that was killed
(``monitor``).

A monitor stays small, because it does little: a *starter*, its child, mounts the layers and has the driver start the workload (as the monitor's
child), hands its descriptors over and ends; the monitor watches until the end, records it and removes what was to be removed. With ``--recover`` it
finds a workload again by pid and start time and goes on with the same FIFOs, terminal and log. Everything was imported before the fork: a monitor
outlives an upgrade of the files that it was loaded from.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path

import msgspec

from bulle.engine import removal
from bulle.engine.drivers import LEVELS, driver_for
from bulle.engine.ending import finish, stay_ended
from bulle.engine.executing import execute, send
from bulle.engine.starting import Order, begin, kept_status_of, take_lock
from bulle.engine.watching import equip
from bulle.errors import BulleError, from_parts, to_parts
from bulle.isolation import seccomp_profile
from bulle.isolation.driver import Driver
from bulle.isolation.namespaces import NamespaceDriver
from bulle.linux import capabilities, process
from bulle.linux.fork import fork
from bulle.model.container import ContainerState
from bulle.model.run_plan import LogSettings
from bulle.monitor import ends, supervisor
from bulle.monitor.frames import Hello, event
from bulle.monitor.log_drivers import log_writer, open_log
from bulle.monitor.log_writer import DEFAULT
from bulle.monitor.state import read_state, write_state
from bulle.monitor.stdio import Streams, open_fifos
from bulle.records.containers import ContainerRecords
from bulle.records.database import Database
from bulle.spawner import client
from bulle.spawner.leash import Leash
from bulle.store import Store

RECOVER = "--recover"
_ASKED_FOR_WITHIN_S = 3600.0
_PRECEDENCE_S = 3.0
_HAS_TERMINAL, _HAS_STDIN, _HAS_MORE, _HAS_LOG_SETTINGS, _FAILED = 1, 2, 4, 8, 0xFF
_MOST_SETTINGS = 64 << 10
_SWEPT_EVERY_S = 60.0
_swept_at_s = 0.0


_orders = msgspec.json.Decoder(Order)


def main(argv: Sequence[str], descriptors: Sequence[int], leash: Leash | None) -> int:
    """The entry ``monitor``: exec, a run that somebody waits for, or with ``--recover`` a monitor for a container that has lost its own.

    ``argv`` is an :class:`Order` as JSON and perhaps that word; ``descriptors``: the socket of who asked, or what was held.
    """
    try:
        order = _orders.decode(argv[0])
        if RECOVER in argv[1:]:
            NamespaceDriver.close_shell()
            _recover(order, descriptors, leash)
        elif order.execute is not None:
            execute(order, socket.socket(fileno=descriptors[0]))
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
            caller, parent = (socket.socket(fileno=descriptor) for descriptor in descriptors)
            _start_for_parent(_orders.decode(argv[0]), caller, parent, leash)
        return 0
    line, starter = _fork_starter(lambda parent: start(argv, [descriptors[0], parent.detach()], leash))
    os.close(descriptors[0])
    watch(line, starter, lambda: list(argv), lambda: leash)
    return 0


def _fork_starter(body: Callable[[socket.socket], object]) -> tuple[socket.socket, int]:
    """A child that starts the container; returns the socket over which it hands over what there is to watch, and its pid."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = fork()
    if pid == 0:
        try:
            ours.close()
            body(theirs)
        finally:
            os._exit(0)
    theirs.close()
    return ours, pid


def watch(line: socket.socket, starter: int, argv: Callable[[], list[str]], leash: Callable[[], Leash | None]) -> None:
    """Be the monitor of what the starter at the other end starts.

    Until the end this touches as little memory as it can: what it writes to is its own.
    """
    words, descriptors, _flags, _address = socket.recv_fds(line, 16, 8)
    log = msgspec.json.decode(line.recv(_MOST_SETTINGS), type=LogSettings) if words and words[0] & _HAS_LOG_SETTINGS else DEFAULT
    line.close()
    _reap(starter, words)
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
        watching = _watching(words[0], descriptors, log)
        watching.input_ended = input_ended
        if words[0] & _HAS_MORE:
            order = _orders.decode(argv()[0])
            equip(watching, order, driver_for(order.plan.isolation, Path(order.home)), descriptors[1], _not_for_children(descriptors[0], own_leash()))
        status = watching.run()
        order = _orders.decode(argv()[0])
        _go_on(order, driver_for(order.plan.isolation, Path(order.home)), watching, status, descriptors[0], own_leash)
    finally:
        if (held := own_leash()) is not None:
            held.release()


def _reap(starter: int, words: bytes) -> None:
    """Reap a starter that has said its word, and the helper of its start, of which it speaks behind the first byte."""
    os.waitpid(starter, 0)
    if len(words) > 1:
        os.waitpid(int(words[1:]), 0)


def _watching(words: int, descriptors: list[int], settings: LogSettings = DEFAULT) -> supervisor.Supervisor:
    """The loop over what a starter handed over. The lock, the first descriptor, only has to stay open."""
    _lock_descriptor, pidfd, listener, log, *rest = descriptors
    terminal = rest[0] if words & _HAS_TERMINAL else -1
    streams = Streams() if terminal >= 0 else Streams(rest[2] if words & _HAS_STDIN else -1, rest[0], rest[1])
    return supervisor.Supervisor(pidfd, streams, terminal, log_writer(log, settings), listener)


def rehearse_watch() -> None:
    """What :func:`watch` does until it waits, with descriptors of nothing.

    Python counts a function's first calls in its code, and then rewrites that: done here once, no monitor has to copy the page for it.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    socket.send_fds(theirs, [b"\0"], [null] * 6)
    words, descriptors, _flags, _address = socket.recv_fds(ours, 16, 8)
    with suppress(OSError):  # it sees an end at once, and nobody to reap
        _watching(words[0], descriptors).run()
    for descriptor in (*descriptors, null):
        with suppress(OSError):
            os.close(descriptor)
    ours.close()
    theirs.close()


def record_orphan(home: Path, pid: int, status: int) -> None:
    """Keep the wait status of a workload whose monitor died first; called by the spawner, which inherits and reaps it.

    What nobody asked for within an hour is thrown away: most orphans are processes that a command left behind. Seldom, because there may be many.
    """
    global _swept_at_s
    directory = home / "run" / "exits"
    with suppress(OSError):
        directory.mkdir(exist_ok=True)
        (directory / str(pid)).write_text(str(status))
        if time.monotonic() - _swept_at_s < _SWEPT_EVERY_S:
            return
        _swept_at_s = time.monotonic()
        for entry in os.scandir(directory):
            if time.time() - entry.stat().st_mtime > _ASKED_FOR_WITHIN_S:
                os.unlink(entry)


def warm(home: Path) -> None:
    """Find out before the first fork what every monitor would find out anew: filters, control groups, the boot."""
    process.boot_id()
    for level in LEVELS:
        driver_for(level, home).probe()
    Store(home, Database(home)).layers.backend()
    seccomp_profile.program_for("default", frozenset(capabilities.parse_caps()), home / "cache")


def _run(order: Order, caller: socket.socket, leash: Leash | None) -> None:
    """Start a container and watch it in one process: quicker than a monitor with a starter, and larger, which a run that is waited for may be."""
    try:
        started = begin(order, leash)
    except BulleError as error:
        send(caller, event("error", error=error))
        return
    send(caller, event("started", pid=started.workload.pid, notes=tuple(started.workload.notes)))
    watching = started.supervisor()
    if leash is not None:
        watching.input_ended = leash.drop
    watching.add_client(caller, Hello(True, True), bound=order.bound)
    equip(watching, order, started.driver, started.workload.pidfd, _not_for_children(started.lock, leash))
    _go_on(order, started.driver, watching, watching.run(), started.lock, lambda: leash)


def _start_for_parent(order: Order, answer: socket.socket | None, parent: socket.socket, leash: Leash | None, lock: int = -1) -> None:
    """The starter's whole life. ``answer`` is who asked for the start, None where the parent itself did, with its ``lock``."""
    if answer is None:
        from bulle.engine.updating import as_recorded  # only a restart looks for what was changed since the start

        order = msgspec.structs.replace(order, plan=as_recorded(Path(order.home), order.plan))
    try:
        started = begin(order, leash, for_parent=True, lock=lock)
    except BulleError as error:
        if answer is not None:
            send(answer, event("error", error=error))
        else:
            parent.send(bytes([_FAILED]) + msgspec.json.encode(to_parts(error)))
        return
    workload, streams = started.workload, started.streams
    words = (_HAS_TERMINAL if workload.terminal >= 0 else 0) | (_HAS_STDIN if streams.stdin >= 0 else 0)
    words |= _HAS_MORE if order.plan.lifecycle.watched else 0
    outputs = [workload.terminal] if workload.terminal >= 0 else [streams.stdout, streams.stderr, *([streams.stdin] if streams.stdin >= 0 else [])]
    if answer is not None:
        send(answer, event("started", pid=workload.pid, notes=tuple(workload.notes)))
    # Of a log of the usual kind nothing is said: a monitor decodes nothing then.
    settings = b"" if order.plan.log == DEFAULT else msgspec.json.encode(order.plan.log)
    words |= _HAS_LOG_SETTINGS if settings else 0
    helper = str(workload.helper).encode() if workload.helper else b""
    socket.send_fds(parent, [bytes([words]) + helper], [started.lock, workload.pidfd, started.listener, started.log, *outputs])
    if settings:
        parent.send(settings)


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
    if lock < 0 or order.execute is not None:
        return
    state = read_state(directory)
    driver = driver_for(order.plan.isolation, Path(order.home))
    if not state.active:
        if order.auto_remove:
            _remove_the_rest(order, driver)
        return
    if state.status == "restarting":
        _write_monitor(directory, state)
        _start_again(order, driver, state.restart_delay_s, lock, lambda: leash)
        return
    pidfd = process.open_process(state.pid, state.pid_start_ticks) if state.boot_id == process.boot_id() else None
    if has_terminal:
        terminal, streams = held[0] if held else -1, Streams()
    else:
        terminal, streams = -1, Streams(held[2] if len(held) > 2 else -1, *held[:2]) if held else open_fifos(directory, -1)
    if pidfd is None:
        supervisor.Supervisor(-1, streams, terminal, log_writer(open_log(order.plan, anew=True), order.plan.log)).drain()
        _go_on(order, driver, None, kept_status_of(order.home, state), lock, lambda: leash)
        return
    if leash is not None:
        for descriptor in held:
            leash.hold(descriptor)
    state = _write_monitor(directory, state)
    log = log_writer(open_log(order.plan, anew=True), order.plan.log)
    watch = supervisor.Supervisor(pidfd, streams, terminal, log, supervisor.listen(directory))
    watch.kept_status = lambda: kept_status_of(order.home, state)
    if leash is not None:
        watch.input_ended = leash.drop
    equip(watch, order, driver, pidfd, _not_for_children(lock, leash))
    _go_on(order, driver, watch, watch.run(), lock, lambda: leash)


def _remove_the_rest(order: Order, driver: Driver) -> None:
    """Where who removed the container was killed in the middle of it, perhaps after its state was gone: its row went first."""
    with closing(Database(Path(order.home))) as database:
        if ContainerRecords(database).exists(order.plan.container_id):
            return
    driver.clean_up(order.plan)
    removal.remove_directory(order.plan)


def _write_monitor(directory: str, state: ContainerState) -> ContainerState:
    """This process is the monitor now."""
    state = msgspec.structs.replace(state, monitor_pid=os.getpid(), monitor_start_ticks=process.start_ticks(os.getpid()))
    write_state(directory, state)
    return state


def _not_for_children(lock: int, leash: Leash | None) -> list[int]:
    return [lock] if leash is None else [lock, leash.fileno()]


def _go_on(
    order: Order, driver: Driver, watch: supervisor.Supervisor | None, status: int, lock: int, leash: Callable[[], Leash | None]
) -> None:
    """After the end: record it, and start the container again where it is to be."""
    delay_s = finish(order, driver, watch, status)
    if delay_s is not None:
        _start_again(order, driver, delay_s, lock, leash)


def _start_again(order: Order, driver: Driver, delay_s: float, lock: int, leash: Callable[[], Leash | None]) -> None:
    """Start the container after a while, and watch it, again and again until its end is the last one or somebody stops it."""
    order = msgspec.structs.replace(order, attach=False, bound=False)
    NamespaceDriver.close_shell()
    again: float | None = delay_s
    while again is not None:
        if (held := leash()) is not None:
            held.clear()
        if not _wait_to_start(order.plan.state_host_path, again):
            stay_ended(order)
            return
        line, starter = _fork_starter(lambda parent: _start_for_parent(order, None, parent, leash(), lock))
        words, descriptors, _flags, _address = socket.recv_fds(line, 1 << 16, 8)
        line.close()
        _reap(starter, words if words[:1] != bytes([_FAILED]) else b"")
        if not words or words[0] == _FAILED:
            killed = BulleError("the container could not be started again", "its start was killed")
            error = from_parts(msgspec.json.decode(words[1:])) if words else killed
            again = finish(order, driver, None, -1, error)
            continue
        os.close(descriptors[0])  # the lock, which this process has
        watching = _watching(words[0], descriptors, order.plan.log)
        equip(watching, order, driver, descriptors[1], _not_for_children(lock, leash()))
        if (held := leash()) is not None:
            watching.input_ended = held.drop
        again = finish(order, driver, watching, watching.run())


def _wait_to_start(directory: str, delay_s: float) -> bool:
    """Wait, unless a command stops the container meanwhile: it says so, and connects. False where it did, or the container was removed."""
    deadline = time.monotonic() + delay_s
    try:
        listener = socket.socket(fileno=supervisor.listen(directory))
    except FileNotFoundError:
        return False
    with listener:
        while os.path.exists(directory) and ends.read_intent(directory) is None:
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                return True
            if select.select([listener], [], [], remaining_s)[0]:
                with suppress(OSError):
                    listener.accept()[0].close()
    return False
