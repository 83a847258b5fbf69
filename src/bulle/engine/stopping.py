"""Ending a container from outside: signals to its first process, patience, force. The intent is written first, for ``why`` and the restart policy."""

from __future__ import annotations

import os
import time
from contextlib import closing, suppress
from pathlib import Path
from signal import SIGKILL
from typing import TYPE_CHECKING

from bulle.engine import balancing, pausing, planning
from bulle.engine.drivers import driver_for
from bulle.errors import BulleError, Conflict
from bulle.linux import process
from bulle.monitor import Attachment, ends
from bulle.records.events import publish_container

if TYPE_CHECKING:
    from bulle.engine.container import Container

_RESTART_MARGIN_S = 10.0
_KILL_MARGIN_S = 45.0  # a virtual machine writes what it has in memory
_FORCE_MARGIN_S = 10.0


def kill(home: Path, container: Container, signal: str) -> None:
    """Send a signal; after SIGKILL the end is waited for. Raises Conflict where it does not run, and is not about to run again."""
    name = planning.signal_name(signal)
    number = planning.signal_number(name)
    if number == SIGKILL or name == container.plan.stop_signal:
        ends.intend(container.directory, "kill", name)
        balancing.changed(home, container.plan)
    if number != SIGKILL:
        _send_signal(home, container, number)
        return
    for last in (False, False, True):
        if not container.state().active:
            break
        try:
            with closing(container.attach(output=False)) as watch:
                _send_signal(home, container, number)
                _ended(watch, _KILL_MARGIN_S)
            return
        except Conflict:
            if last or container.plan.lifecycle.restart.name == "no":
                raise
            _wait_while_restarting(container)  # it has just ended by itself: the intent ends what its policy would start again
            if not container.state().active:
                return
    raise _not_running(container)


def end(home: Path, container: Container, timeout_s: int | None, signal: str, verb: str) -> None:
    """Ask it to end, and kill it after its patience. The verb ``rm`` wants nothing of it any more: a virtual machine is then not asked to write."""
    name = planning.signal_name(signal or container.plan.stop_signal)
    with suppress(FileNotFoundError):  # somebody else removes it
        ends.intend(container.directory, verb, name)
    balancing.changed(home, container.plan)
    patience = container.plan.stop_timeout_s if timeout_s is None else timeout_s
    try:
        _wait_while_restarting(container)
        with closing(container.attach(output=False)) as watch:
            number = planning.signal_number(name)
            with suppress(Conflict):  # it has just ended: that is recorded now, and waited for
                _send_signal(home, container, number, kept=verb != "rm")
                if number != SIGKILL:
                    if _ended(watch, patience if patience >= 0 else None):
                        return
                    _send_signal(home, container, SIGKILL)
            if _ended(watch, _KILL_MARGIN_S):
                return
            with suppress(Conflict):  # a shepherd that hangs does not switch its machine off
                _send_signal(home, container, SIGKILL, kept=False)
            if not _ended(watch, _FORCE_MARGIN_S):
                raise BulleError(f"container {container.name} could not be stopped", "its process does not end although it was killed", "see dmesg")
    except Conflict:  # it ended by itself meanwhile; or, on a full disk, nobody could be started to watch its end
        if verb == "rm":
            with suppress(Conflict):
                _send_signal(home, container, SIGKILL, kept=False)


def _wait_while_restarting(container: Container) -> None:
    """Have a monitor that waits before it starts the container again look for an intent, and wait for what it makes of it."""
    deadline = time.monotonic() + _RESTART_MARGIN_S
    while container.state().status == "restarting" and time.monotonic() < deadline:
        if (waiting := Attachment.connect(container.directory, output=False, stdin=False)) is not None:
            waiting.close()
        time.sleep(0.005)


def _send_signal(home: Path, container: Container, number: int, *, kept: bool = True) -> None:
    state = container.state()
    pidfd = process.open_process(state.pid, state.pid_start_ticks) if state.status == "running" else None
    if pidfd is None:
        raise _not_running(container)
    publish_container(container.directory, "kill", signal=str(number))
    try:
        if kept:
            driver_for(container.plan.isolation, home).signal(container.plan, pidfd, number)
        else:
            process.pidfd_send_signal(pidfd, number)
    except ProcessLookupError as error:
        raise Conflict(f"container {container.name} is not running", "it has just ended", "") from error
    finally:
        os.close(pidfd)
    pausing.resume(home, container.plan)  # a signal wakes nobody who stands still


def _ended(watch: Attachment, patience_s: float | None) -> bool:
    """Wait for the end on an attachment without output; False after the patience."""
    with suppress(TimeoutError):
        watch.wait_exit(patience_s)
        return True
    return False


def _not_running(container: Container) -> Conflict:
    return Conflict(f"container {container.name} is not running", "", f"start it with `bulle start {container.name}`")
