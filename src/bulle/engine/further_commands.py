"""``exec``, from the side of whoever asks: a command is announced, and a monitor ordered for it, which is :mod:`bulle.engine.executing`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bulle.engine import pausing, planning
from bulle.engine.starting import Order
from bulle.errors import BulleError, Conflict, InvalidInput
from bulle.model.container import ContainerState, ExecOptions
from bulle.monitor import Attachment
from bulle.records.events import publish_container

if TYPE_CHECKING:
    from bulle.engine.container import Container


def prepare(home: Path, container: Container, options: ExecOptions) -> str:
    """Whether the command could be run now; its id. Raises Conflict, InvalidInput."""
    _require(home, container, options)
    exec_id = os.urandom(32).hex()
    publish_container(container.directory, f"exec_create: {_words(options)}", execID=exec_id)
    return exec_id


def execute(
    home: Path, container: Container, options: ExecOptions, order: Callable[[Order], Attachment], *, detach: bool, exec_id: str
) -> Attachment | None:
    """Run it, by a monitor that is had with ``order``; see :meth:`bulle.engine.container.Container.execute`."""
    state = _require(home, container, options)
    wanted = planning.exec_process(container.plan, options)
    exec_id = exec_id or prepare(home, container, options)
    publish_container(container.directory, f"exec_start: {_words(options)}", execID=exec_id)
    try:
        attachment = order(Order(str(home), container.plan, not detach, options.interactive, execute=wanted, pid=state.pid, exec_id=exec_id))
    except BulleError as error:
        publish_container(container.directory, "exec_die", execID=exec_id, exitCode=str(error.exit_code))
        raise
    if detach:
        attachment.close()
        return None
    return attachment


def _require(home: Path, container: Container, options: ExecOptions) -> ContainerState:
    state = container.state()
    if state.status != "running":
        raise Conflict(f"container {container.name} is not running", "", f"start it with `bulle start {container.name}`")
    pausing.refuse_paused(home, container, "exec")
    if not options.command:
        raise InvalidInput("no command specified", "exec needs one", "add it after the container's name")
    return state


def _words(options: ExecOptions) -> str:
    """As Docker writes it, whose program and arguments have a blank between them also where there is no argument."""
    return f"{options.command[0]} {' '.join(options.command[1:])}"
