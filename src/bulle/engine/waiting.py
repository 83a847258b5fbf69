"""Waiting for a container: until it does not run, until it ends the next time, or until it is gone.

The end is told by its monitor at once; what no monitor can tell (it is started again later, its row goes) is looked for a few times a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from bulle.errors import InvalidInput, NotFound
from bulle.monitor import Attachment

if TYPE_CHECKING:
    from bulle.engine.container import Container

Condition = Literal["not-running", "next-exit", "removed"]
CONDITIONS: tuple[Condition, ...] = ("not-running", "next-exit", "removed")

_AT_ONCE_S, _SOON_S, _IDLE_S = 0.002, 0.02, 0.1
_PATIENCE_S = 1.0


def wait_for(container: Container, condition: Condition, exists: Callable[[], bool]) -> int:
    """Block until the condition holds; the exit code of the last run that is known (-1 unknown, 0 of one that never ran).

    ``exists`` says whether the container is still known. Raises NotFound when it is removed and no end of it was seen.
    """
    if condition not in CONDITIONS:
        raise InvalidInput(f"invalid condition: {condition!r}", "", f"it is one of {', '.join(CONDITIONS)}")
    state = container.state()
    first, told = state, None
    code = state.exit_code if state.finished_at_ns else None
    while True:
        if condition == "not-running" and not state.active:
            return code or 0
        if condition == "next-exit" and (told is not None or state.finished_at_ns > first.finished_at_ns):
            return code or 0
        if state.active and (told := _end(container, condition)) is not None:
            code = told
            if condition != "removed" and container.options.auto_remove:
                return code  # it is removed now, and not started again
        if not exists():
            if told is None and condition != "removed":
                raise NotFound(f"container {container.name} was removed", "what was waited for cannot come any more", "")
            return code or 0
        if told is None or condition == "removed":
            time.sleep(_SOON_S if state.active else _IDLE_S)
        elif condition == "not-running":
            time.sleep(_AT_ONCE_S)  # its monitor is about to write whether that was all
        state = container.state()
        if not state.active and state.finished_at_ns:
            code = state.exit_code


def _end(container: Container, condition: Condition) -> int | None:
    """The exit code that its monitor tells; None where it tells none. Whoever waits for the removal looks up from time to time."""
    attachment = None
    with suppress(FileNotFoundError):  # removed meanwhile
        attachment = Attachment.connect(container.directory, output=False, stdin=False)
    if attachment is None:
        return None
    try:
        with suppress(TimeoutError):
            return attachment.wait_exit(None if condition == "not-running" else _PATIENCE_S)
    finally:
        attachment.close()
    return None
