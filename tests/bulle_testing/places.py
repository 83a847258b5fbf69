"""Where tests keep things: one directory per run on a real disk, a cache of costly files across runs, and homes (``BULLE_HOME``) that clean up.

Nothing here starts Bulle; it ends what a test's own home still runs, by the pids that the kernel and that home name, never by a program's name.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from bulle_testing import leaks, tiers

SOURCE = Path(__file__).resolve().parents[2]
# Most tests are of something else than networks: their containers have none unless they ask, and what networks need goes as soon as it is not needed.
QUIET_NETWORK = {"BULLE_NETWORK": "none", "BULLE_KEEPER_IDLE_S": "0.05"}


def run_directory() -> Path:
    """A new directory for this run on a real file system (``BULLE_TEST_DIRECTORY``, else /var/tmp: /tmp is often a tmpfs)."""
    return Path(tempfile.mkdtemp(prefix="bulle-", dir=os.environ.get("BULLE_TEST_DIRECTORY", "/var/tmp")))


def cache_directory() -> Path:
    """Where costly test data is kept from one run to the next (``BULLE_TEST_CACHE``, else below ~/.cache)."""
    chosen = os.environ.get("BULLE_TEST_CACHE")
    path = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bulle-tests"
    path.mkdir(parents=True, exist_ok=True)
    return path


def command_line() -> list[str]:
    """The installed ``bulle`` command of the interpreter that runs the tests, else the module."""
    installed = Path(sysconfig.get_path("scripts")) / "bulle"
    return [str(installed)] if installed.exists() else [sys.executable, "-m", "bulle"]


def environment(home: Path) -> dict[str, str]:
    """The environment of a command in a test: the caller's, with this home and no surprises."""
    chosen = {name: value for name, value in os.environ.items() if not name.startswith("BULLE_")}
    chosen |= {"BULLE_HOME": str(home), "LC_ALL": "C.UTF-8", "BULLE_KERNEL": str(guest_kernel()), "BULLE_AUTOSCALE_STEADY_S": "1", **QUIET_NETWORK}
    if not (Path(sysconfig.get_path("scripts")) / "bulle").exists():
        chosen["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SOURCE / "src"), os.environ.get("PYTHONPATH")]))
    return chosen


def guest_kernel() -> Path:
    """Where the kernel is that all virtual machines of tests run; fetched by the first test that needs it."""
    return cache_directory() / f"kernels/debian-trixie-{os.uname().machine}"


def spawner_pid(home: Path) -> int:
    """The pid of the spawner that listens in this home (0: none), told by the kernel."""
    return _listener_pid(home, "spawner.sock")


def keeper_pid(home: Path) -> int:
    """The pid of the keeper of this home's networks (0: none), told by the kernel."""
    return _listener_pid(home, "keeper.sock")


def reconciler_pid(home: Path) -> int:
    """The pid of who keeps this home's apps (0: none): whoever holds its lock has written it there."""
    from bulle.linux.process import start_ticks

    try:
        pid = int((home / "run" / "reconciler.lock").read_text() or 0)
    except OSError:
        return 0
    return pid if start_ticks(pid) else 0


def _listener_pid(home: Path, name: str) -> int:
    try:
        directory = os.open(home / "run", os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
            with socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC) as connection, suppress(OSError):
                connection.connect(f"/proc/self/fd/{directory}/{name}")
                return _peer(connection)
    finally:
        os.close(directory)
    return 0


def _peer(connection: socket.socket) -> int:
    pid: int = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    return pid


def close_home(home: Path) -> list[str]:
    """End everything that runs in a home and remove it: containers by the command itself, then the spawner by its pid.

    Returns the mounts that were left below it (now detached): nothing may ever be removed through a forgotten bind of the host.
    """
    if (home / "containers").is_dir() and any((home / "containers").iterdir()):
        with suppress(OSError, subprocess.TimeoutExpired):
            listed = subprocess.run([*command_line(), "ps", "-aq"], env=environment(home), capture_output=True, text=True, timeout=240)
            if names := listed.stdout.split():
                subprocess.run([*command_line(), "rm", "-f", *names], env=environment(home), capture_output=True, timeout=120)
    for pid in (keeper_pid(home), spawner_pid(home)):
        if pid > 0 and pid != os.getpid():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            _wait_gone(pid, 5)
    left = mounts_below(home)
    remove_tree(home)
    return left


def mounts_below(path: Path) -> list[str]:
    """Where something is mounted below a directory in this mount namespace, deepest first."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return sorted((point for point in points if point == str(path) or point.startswith(f"{path}/")), reverse=True)


def _wait_gone(pid: int, patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        if pid not in leaks.descendants():
            return
        time.sleep(0.01)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def remove_tree(path: Path) -> None:
    """Remove a directory, also one with files of mapped ids (through a user namespace) or directories that were closed."""
    for point in mounts_below(path):
        subprocess.run(["umount", "--lazy", point], capture_output=True, timeout=240)
    if mounts_below(path):
        return
    shutil.rmtree(path, ignore_errors=True)
    if not path.exists():
        return
    for directory, _, _ in os.walk(path):
        with suppress(OSError):
            os.chmod(directory, stat.S_IRWXU)
    shutil.rmtree(path, ignore_errors=True)
    if path.exists() and os.geteuid() != 0 and (unshare := tiers.program("unshare")):
        subprocess.run([unshare, "--user", "--map-root-user", "--map-auto", "rm", "-rf", str(path)], capture_output=True, timeout=240)
