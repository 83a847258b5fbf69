"""A systemd scope of the spawner's own, so that the end of the login or service that started it kills no container.

Asks the manager (of the system for root, of the user otherwise) by busctl(1) to move this process into a transient scope with delegation; what
``systemd-run --scope`` does, but for a process that runs already, so that a refusal costs nothing: then the spawner stays where it is. Without
systemd there is nothing to do. org.freedesktop.systemd1(5), StartTransientUnit
"""

from __future__ import annotations

import hashlib
import os
import select
import signal
import time

TIMEOUT_S = 3.0


def enter(home: str) -> bool:
    """Move this process into its own scope where systemd manages the machine; whether it did."""
    if not os.path.isdir("/run/systemd/system"):
        return False
    before = _control_groups()
    if not _run(command(home, os.getpid(), os.geteuid())):
        return False
    # The call only queues a job: wait until this process has been moved.
    deadline = time.monotonic() + TIMEOUT_S
    while _control_groups() == before:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def command(home: str, pid: int, uid: int) -> list[str]:
    """The busctl(1) call. The unit's name has the pid, since the scope of a killed spawner lives as long as its children."""
    unit = f"bulle-{hashlib.sha256(os.fsencode(home)).hexdigest()[:12]}-{pid}.scope"
    properties = ["4", "PIDs", "au", "1", str(pid), "Delegate", "b", "true", "Description", "s", "Bulle containers"]
    properties += ["CollectMode", "s", "inactive-or-failed"]
    target = ["org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager", "StartTransientUnit"]
    manager = "--system" if uid == 0 else "--user"
    options = ["--quiet", f"--timeout={TIMEOUT_S:.0f}", manager]
    return ["busctl", *options, "call", *target, "ssa(sv)a(sa(sv))", unit, "fail", *properties, "0"]


def _run(arguments: list[str]) -> bool:
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        actions = [(os.POSIX_SPAWN_DUP2, null, number) for number in (0, 1, 2)]
        pid = os.posix_spawnp(arguments[0], arguments, os.environ, file_actions=actions)
    except OSError:
        return False
    finally:
        os.close(null)
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if not poll.poll((TIMEOUT_S + 1) * 1000):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.close(pidfd)
    return os.waitpid(pid, 0)[1] == 0


def _control_groups() -> bytes:
    fd = os.open("/proc/self/cgroup", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 65536)
    finally:
        os.close(fd)
