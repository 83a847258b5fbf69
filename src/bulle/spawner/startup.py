"""From a fresh interpreter to a serving spawner, and from one version of the code to the next in the same process.

:func:`main` is what ``python -m bulle --spawner HOME`` runs. It detaches from whoever started it, notes where it stands, takes the lock that makes
it the only one, loads what the composition root configures, enters its mount namespace and serves. :func:`succeed` is the other way in: execve(2)
in place, with the listening socket, callers' connections, leashes and held descriptors passed on, after a trial run of the new code has shown that
it starts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import marshal
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import cast

from bulle.linux.process import PR_SET_CHILD_SUBREAPER, prctl
from bulle.spawner.caller import Standing, standing_of
from bulle.spawner.child import unpack_assignment
from bulle.spawner.configuration import Configuration
from bulle.spawner.launch import SOCKET_NAME
from bulle.spawner.leash import Tether
from bulle.spawner.mount_namespace import MountNamespace
from bulle.spawner.server import Child, Server

TRIAL_TIMEOUT_S = 20.0
LOG_LIMIT_BYTES = 1 << 20

Configure = Callable[[str], Configuration]


def main(arguments: Sequence[str], configure: Configure) -> int:
    """``--spawner HOME [--ready FD | --resume FD | --check]``: be the spawner of HOME. ``configure`` may import much: it is called when detached."""
    options = dict(zip(arguments[::2], arguments[1::2], strict=False))
    home = options["--spawner"]
    if "--check" in arguments:
        configure(home)
        return 0
    if "--resume" in options:
        return _resume(int(options["--resume"]), configure(home))
    return _begin(home, int(options.get("--ready", "-1")), configure)


def _begin(home: str, ready: int, configure: Configure) -> int:
    if os.fork():
        os._exit(0)
    os.setsid()
    _forget_origins(home, ready)
    origin = standing_of("self")
    _lock, mine = _take_lock(home)
    if not mine:
        # Somebody serves already; whoever started this process finds that one.
        _announce(ready)
        return 0
    configuration = configure(home)
    configuration.enter_scope()
    namespace: MountNamespace | None = MountNamespace()
    if namespace and not namespace.enter(home, configuration.process_to_join()):
        namespace = None
    configuration.prepare()
    listener = _listen(home)
    server = _server(configuration, listener, origin, namespace)
    _announce(ready)
    server.run()
    return 0


def _server(configuration: Configuration, listener: socket.socket, origin: Standing, namespace: MountNamespace | None) -> Server:
    with contextlib.suppress(OSError):
        prctl(PR_SET_CHILD_SUBREAPER, 1)
    # Many callers and held descriptors; children get their caller's own limit.
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return Server(configuration, listener, origin, namespace, succeed)


def _forget_origins(home: str, ready: int) -> None:
    """Keep nothing of whoever started this process: descriptors, directory, signals, umask."""
    if ready >= 0 and ready != 3:
        os.dup2(ready, 3)
    os.closerange(4 if ready >= 0 else 3, 1 << 30)
    if ready >= 0:
        os.set_inheritable(3, False)
    os.umask(0o077)
    os.chdir("/")
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGINT}:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    path = f"{home}/run/spawner.log"
    append = os.O_TRUNC if os.path.exists(path) and os.path.getsize(path) > LOG_LIMIT_BYTES else os.O_APPEND
    try:
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | append, 0o600)
    except OSError:
        log = os.dup(null)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.dup2(log, 2)
    os.close(null)
    os.close(log)


def _announce(ready: int) -> None:
    if ready >= 0:
        with contextlib.suppress(OSError):
            os.write(3, b"\1")
        os.close(3)


def _take_lock(home: str) -> tuple[int, bool]:
    """The lock of the one spawner of ``home``: a POSIX record lock, which children do not inherit and execve(2) keeps. Never closed."""
    lock = os.open(f"{home}/run/spawner.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return lock, False
    return lock, True


def _listen(home: str) -> socket.socket:
    """A listening socket that takes the place of a dead spawner's in one step."""
    directory = os.open(f"{home}/run", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    temporary = f"{SOCKET_NAME}.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=directory)
    # Through the descriptor, because a path to a socket has 108 bytes at most.
    listener.bind(f"/proc/self/fd/{directory}/{temporary}")
    listener.listen(512)
    os.rename(temporary, SOCKET_NAME, src_dir_fd=directory, dst_dir_fd=directory)
    os.close(directory)
    return listener


def succeed(server: Server) -> None:
    """Execute the code that is on disk now, in this process. Returns where a trial run of it fails."""
    command = [sys.executable, *_without_handover(sys.orig_argv[1:])]
    if not _trial(command):
        return
    mounts = server.mounts
    now = time.monotonic()
    state: dict[str, object] = {
        "listener": server.listener.fileno(),
        "origin_place": server.origin.place,
        "origin": mounts.origin if mounts else -1,
        "origin_mounts": mounts.origin_mounts if mounts else -1,
        "children": [_child_state(pid, child, 0.0) for pid, child in server.children.items()],
        "recoveries": [_child_state(0, child, max(0.0, at - now)) for at, child in server.recoveries],
    }
    memory = os.memfd_create("spawner-state", os.MFD_CLOEXEC)
    os.write(memory, marshal.dumps(state, 4))
    lock = _lock_descriptor(server.configuration.home)
    kept = [memory, lock, server.listener.fileno()]
    if mounts:
        kept += [mounts.origin, mounts.origin_mounts]
    for child in [*server.children.values(), *(child for _, child in server.recoveries)]:
        if child.connection:
            kept.append(child.connection.fileno())
        if child.tether:
            kept += [child.tether.connection.fileno(), *child.tether.held]
    for descriptor in kept:
        os.set_inheritable(descriptor, True)
    try:
        os.execv(command[0], [*command, "--resume", str(memory)])
    except OSError:
        for descriptor in kept:
            os.set_inheritable(descriptor, False)
        os.close(memory)


def _lock_descriptor(home: str) -> int:
    """The descriptor that :func:`_take_lock` left open, found again: opening and closing the file once more would drop the lock."""
    wanted = os.stat(f"{home}/run/spawner.lock")
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(int(name)), wanted):
                return int(name)
    raise FileNotFoundError("the lock of the spawner is gone")


def _without_handover(arguments: Sequence[str]) -> list[str]:
    result = list(arguments)
    for option in ("--ready", "--resume"):
        while option in result:
            del result[result.index(option) : result.index(option) + 2]
    return result


def _trial(command: Sequence[str]) -> bool:
    """Whether the code on disk can be loaded: a half-installed version must not take the place of one that works."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        actions = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, null, 1)]
        pid = os.posix_spawn(command[0], [*command, "--check"], os.environ, file_actions=actions)
    except OSError:
        return False
    finally:
        os.close(null)
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if not poll.poll(TRIAL_TIMEOUT_S * 1000):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.close(pidfd)
    _, status = os.waitpid(pid, 0)
    return status == 0


def _child_state(pid: int, child: Child, delay_s: float) -> dict[str, object]:
    return {
        "pid": pid,
        "assignment": child.assignment.pack()[4:],
        "connection": child.connection.fileno() if child.connection else -1,
        "tether": child.tether.connection.fileno() if child.tether else -1,
        "held": child.tether.held if child.tether else [],
        "recover_as": child.tether.recover_as if child.tether else [],
        "started_s": child.started_s,
        "short_lives": child.short_lives,
        "delay_s": delay_s,
    }


def _restored(state: dict[str, object]) -> Child:
    connection, tether, held = state["connection"], state["tether"], state["held"]
    assert isinstance(connection, int)
    assert isinstance(tether, int)
    assert isinstance(held, list)
    assert isinstance(state["assignment"], bytes)
    for descriptor in [connection, tether, *held]:
        if descriptor >= 0:
            os.set_inheritable(descriptor, False)
    caller_socket = socket.socket(fileno=connection) if connection >= 0 else None
    if caller_socket:
        caller_socket.setblocking(False)
    restored = Tether(socket.socket(fileno=tether), held) if tether >= 0 else None
    if restored:
        restored.recover_as = list(cast("list[bytes]", state["recover_as"]))
    return Child(
        unpack_assignment(state["assignment"]),
        caller_socket,
        restored,
        float(str(state["started_s"])),
        int(str(state["short_lives"])),
    )


def _resume(memory: int, configuration: Configuration) -> int:
    os.lseek(memory, 0, os.SEEK_SET)
    with open(memory, "rb") as file:
        state = marshal.loads(file.read())
    listener = socket.socket(fileno=state["listener"])
    for descriptor in (state["listener"], state["origin"], state["origin_mounts"], _lock_descriptor(configuration.home)):
        if descriptor >= 0:
            os.set_inheritable(descriptor, False)
    origin = standing_of("self")
    namespace = None
    if state["origin"] >= 0:
        namespace = MountNamespace(state["origin"], state["origin_mounts"])
    mount_namespace, root = state["origin_place"]
    origin = dataclasses.replace(origin, mount_namespace=mount_namespace, root=root)
    configuration.prepare()
    server = _server(configuration, listener, origin, namespace)
    now = time.monotonic()
    for item in state["children"]:
        server.children[item["pid"]] = _restored(item)
    for item in state["recoveries"]:
        server.recoveries.append((now + item["delay_s"], _restored(item)))
    server.run()
    return 0
