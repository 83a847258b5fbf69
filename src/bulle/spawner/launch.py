"""Finding the spawner of a BULLE_HOME, and starting it where there is none.

Called by the Python callers (:mod:`bulle.spawner.stub`, :mod:`bulle.spawner.client`); ``native/bulle.c`` does the same by itself. Two starts at
once give one spawner: whoever holds the lock on ``run/start.lock`` starts it, the other one waits and finds it. Started by posix_spawn(3), never by
fork: a caller may be a threaded process with a large heap. What the new process does first is in :mod:`bulle.spawner.server`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

SOCKET_NAME = "spawner.sock"
START_LOCK_NAME = "start.lock"
START_TIMEOUT_S = 20.0
PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])

# Runs the package under -I also where it was found through PYTHONPATH or a user's site directory; argv: sys.path entries joined by ":", then the
# rest.
BOOTSTRAP = "import sys; sys.path[:] = sys.argv.pop(1).split(':'); import runpy; runpy.run_module('bulle', run_name='__main__', alter_sys=True)"


def default_home() -> Path:
    """BULLE_HOME, else /var/lib/bulle for root, else the user's XDG data directory."""
    asked = os.environ.get("BULLE_HOME")
    if asked:
        return Path(os.path.abspath(asked))
    if os.geteuid() == 0:
        return Path("/var/lib/bulle")
    data = os.environ.get("XDG_DATA_HOME", "")
    return (Path(data) if data.startswith("/") else Path.home() / ".local/share") / "bulle"


def interpreter_directory() -> bytes:
    """How this process names its installation: the real directory of its interpreter, which in a venv is the venv's."""
    return os.fsencode(os.path.realpath(os.path.dirname(sys.executable)))


def command_line(*arguments: str) -> list[str]:
    """The argv that runs this very package in a fresh interpreter."""
    entries = [PACKAGE_ROOT, *(entry for entry in sys.path if entry and entry != PACKAGE_ROOT and os.path.isabs(entry))]
    return [sys.executable, "-I", "-c", BOOTSTRAP, ":".join(entries), *arguments]


def connect(home: Path) -> socket.socket | None:
    """A connection to the living spawner of ``home``, or None. Paths longer than sun_path are reached through /proc/self/fd."""
    path = f"{home}/run/{SOCKET_NAME}"
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if len(os.fsencode(path)) < 108:
            connection.connect(path)
        else:
            directory = os.open(f"{home}/run", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                connection.connect(f"/proc/self/fd/{directory}/{SOCKET_NAME}")
            finally:
                os.close(directory)
    except OSError:
        connection.close()
        return None
    return connection


def connect_or_start(home: Path, command: Sequence[str] | None = None) -> socket.socket | None:
    """A connection to the spawner of ``home``, started by ``command`` (default: this package) where there is none; None where it cannot be had."""
    connection = connect(home)
    if connection is not None:
        return connection
    run = home / "run"
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        run.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(run / START_LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        connection = connect(home)
        if connection is None and _start(home, command or command_line()):
            connection = connect(home)
        return connection
    finally:
        os.close(lock)


def _start(home: Path, command: Sequence[str]) -> bool:
    """Start a spawner and wait until it listens (it then writes one byte) or has failed (the pipe ends)."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        arguments = [*command, "--spawner", str(home), "--ready", "3"]
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        actions = [(os.POSIX_SPAWN_DUP2, null, number) for number in (0, 1, 2)]
        # The pipe goes to 3 through a number that is not 3: a dup2 onto itself would keep close-on-exec.
        high = fcntl.fcntl(write_end, fcntl.F_DUPFD_CLOEXEC, 10)
        try:
            actions.append((os.POSIX_SPAWN_DUP2, high, 3))
            pid = os.posix_spawn(arguments[0], arguments, os.environ, file_actions=actions, setsigmask=())
        finally:
            os.close(high)
            os.close(null)
    except OSError:
        os.close(read_end)
        os.close(write_end)
        return False
    os.close(write_end)
    try:
        # The process started here forks the spawner and ends, so that no caller has a child that it did not ask for.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
        deadline = time.monotonic() + START_TIMEOUT_S
        poll = select.poll()
        poll.register(read_end, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            if poll.poll(left * 1000):
                return os.read(read_end, 1) == b"\1"
        return False
    finally:
        os.close(read_end)
