"""``pause`` and ``unpause``: a container's processes stand still, and go on.

Nothing is written down: whether a container is paused is asked of the kernel. What ends a paused container (``kill``, ``stop``, ``rm --force``, a
limit of time) lets it go on first, or it could not end.
"""

from __future__ import annotations

import os
import signal
import socket
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bulle.engine.drivers import driver_for
from bulle.errors import BulleError, Conflict
from bulle.linux.fork import fork
from bulle.model.run_plan import RunPlan
from bulle.records.events import publish_container

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bulle.engine.container import Container
    from bulle.isolation.driver import Driver
    from bulle.monitor import Attachment


def is_paused(home: Path, plan: RunPlan) -> bool:
    """Whether the container was told to stand still; one look at the kernel."""
    return driver_for(plan.isolation, home).is_paused(plan)


def pause(home: Path, container: Container) -> None:
    """Stop every process of a running container where it stands. Raises Conflict, Unsupported where the level or the machine cannot do it."""
    state = container.state()
    if state.status != "running":
        raise Conflict(f"container {container.name} is {'restarting' if state.active else 'not running'}", "", "only a running one can be paused")
    if is_paused(home, container.plan):
        raise Conflict(f"container {container.name} is already paused", "", f"let it go on with `bulle unpause {container.name}`")
    driver_for(container.plan.isolation, home).pause(container.plan, state.pid)
    publish_container(container.directory, "pause")


def unpause(home: Path, container: Container) -> None:
    """Let a paused container go on. Raises Conflict for one that is not paused."""
    if not resume(home, container.plan):
        raise Conflict(f"container {container.name} is not paused", "", f"pause it with `bulle pause {container.name}`")


def resume(home: Path, plan: RunPlan) -> bool:
    """Let the container go on if it is paused; False where there was nothing to do."""
    if not is_paused(home, plan):
        return False
    driver_for(plan.isolation, home).resume(plan)
    publish_container(plan.state_host_path, "unpause")
    return True


def refuse_paused(home: Path, container: Container, wanted: Literal["attach", "exec", "start"], attachment: Attachment | None = None) -> None:
    """Raise Conflict for what cannot be done to processes that stand still, and close ``attachment``, the connection to its monitor.

    A start that has none finds nothing that runs, and so nothing that is paused.
    """
    if (attachment is None and wanted == "start") or not is_paused(home, container.plan):
        return
    if attachment is not None:
        attachment.close()
    mend = f"let it go on first, with `bulle unpause {container.name}`"
    raise Conflict(f"container {container.name} is paused", f"{wanted} would wait for as long as it is", mend)


@contextmanager
def standing_still(home: Path, container: Container, notes: list[str]) -> Iterator[None]:
    """While it lasts a running container's processes stand still where the machine can do that; one that is paused already stays so."""
    state = container.state()
    driver, plan = driver_for(container.plan.isolation, home), container.plan
    if state.status != "running" or driver.is_paused(plan):
        yield
        return
    with _going_on(driver, plan):
        try:
            driver.pause(plan, state.pid)
        except BulleError:
            notes.append("the container went on while its files were read: it cannot be paused here")
        yield


@contextmanager
def _going_on(driver: Driver, plan: RunPlan) -> Iterator[None]:
    """Have what stands still go on at the end of the block, also where that is this process's end by force: a child sees it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = fork()
    if pid == 0:
        try:
            ours.close()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            if not theirs.recv(1) and driver.is_paused(plan):
                driver.resume(plan)
        finally:
            os._exit(0)
    os.setpgid(pid, pid)  # whose caller is killed is killed with its whole group
    theirs.close()
    try:
        yield
    finally:
        if driver.is_paused(plan):  # also where it was interrupted while they came to a stand
            driver.resume(plan)
        with ours:
            ours.send(b".")
        os.waitpid(pid, 0)
