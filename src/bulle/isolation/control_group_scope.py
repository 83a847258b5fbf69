"""The part of version 2's tree that systemd hands to Bulle: ``bulle.scope`` in ``bulle.slice``, of the system or of the user's manager.

On a machine that systemd runs, it alone may write in the tree; others ask it for a unit with ``Delegate=yes`` and are left alone below that. The
scope's name is fixed, so that a container's group is found again by any process: ``.../bulle.slice/bulle.scope/ID``. A scope lives as long as it has
processes: whoever comes first (the spawner when it starts, else a container's monitor) makes it and moves into its leaf ``supervisor``, because a
group that hands controllers down may hold no process itself; whoever comes later is attached to it. That move also takes the process out of the ssh
session or job that started it. busctl(1) speaks to systemd, once in the life of a spawner; :func:`prepare` is all that others call. Specification:
systemd's CGROUP_DELEGATION.md, org.freedesktop.systemd1(5).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence

from bulle.linux import control_group as kernel

Prepare = Callable[[str, str], str]
Run = Callable[[Sequence[str]], tuple[int, str]]

SLICE = "bulle.slice"
SCOPE = "bulle.scope"
SUPERVISOR = "supervisor"
_MANAGER = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")


def systemd_runs() -> bool:
    """sd_booted(3)."""
    return os.path.isdir("/run/systemd/system")


def _manager(user_id: int) -> str:
    """The group of the manager that would own our units, below the root: the system's own for root, the user's service else."""
    return "" if user_id == 0 else f"/user.slice/user-{user_id}.slice/user@{user_id}.service"


def base(root: str, user_id: int | None = None) -> str:
    """The scope's directory below the mount ``root`` (host paths), whether it is there or not."""
    return f"{root}{_manager(os.geteuid() if user_id is None else user_id)}/{SLICE}/{SCOPE}"


def offered(root: str, scope: str) -> tuple[set[str], str]:
    """The controllers that the scope has, or that the manager could give it, and why there are none."""
    if os.path.isdir(scope):
        return set(kernel.read_words(f"{scope}/cgroup.controllers")), ""
    manager = scope.removesuffix(f"/{SLICE}/{SCOPE}")
    if not os.path.isdir(manager):
        return set(), f"systemd runs no manager for this user ({manager.removeprefix(root)} is not there): log in, or `loginctl enable-linger`"
    return set(kernel.read_words(f"{manager}/cgroup.controllers")), ""


def busctl(arguments: Sequence[str]) -> tuple[int, str]:
    """Run busctl; its status and its errors."""
    import subprocess

    try:
        done = subprocess.run(["busctl", *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 127, str(error)
    return done.returncode, done.stderr.strip()


def request(user_id: int, pid: int, scope_exists: bool) -> list[str]:
    """The arguments of busctl that put ``pid`` into the scope: make it with systemd's delegation, or join the one that lives."""
    call = ["--user" if user_id else "--system", "call", *_MANAGER]
    if scope_exists:
        return [*call, "AttachProcessesToUnit", "ssau", SCOPE, f"/{SUPERVISOR}", "1", str(pid)]
    properties = ["Description", "s", "Bulle's containers", "Slice", "s", SLICE, "Delegate", "b", "true", "PIDs", "au", "1", str(pid)]
    return [*call, "StartTransientUnit", "ssa(sv)a(sa(sv))", SCOPE, "fail", "4", *properties, "0"]


def prepare(root: str, scope: str, *, run: Run = busctl, pid: int | None = None, timeout_s: float = 5.0) -> str:
    """Have the scope, with the calling process in its leaf; returns why that failed, empty when it is there.

    Harmless to repeat. ``run`` speaks to systemd; tests give another.
    """
    del root
    own = os.getpid() if pid is None else pid
    supervisor = f"{scope}/{SUPERVISOR}"
    if own in kernel.processes(supervisor):
        return ""
    existed = os.path.isdir(scope)
    if existed:
        _make(supervisor)  # systemd attaches to what is there
    status, error = run(request(os.geteuid(), own, existed))
    if status and not existed and os.path.isdir(scope):
        _make(supervisor)  # another was first
        status, error = run(request(os.geteuid(), own, True))
    if status:
        return f"systemd gave no delegated scope: {error}"
    deadline = time.monotonic() + timeout_s
    # Its directory is there a moment before systemd moves the process: whoever went on sooner would be moved back out of the leaf.
    while own not in kernel.processes(scope):
        if time.monotonic() > deadline:
            return "systemd did not start the scope in time"
        time.sleep(0.005)
    _make(supervisor)
    if own in kernel.processes(supervisor):
        return ""
    try:
        kernel.write(supervisor, "cgroup.procs", str(own))
    except OSError as failure:
        return f"{supervisor}: {failure.strerror}"
    return ""


def _make(supervisor: str) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(supervisor, 0o755)
