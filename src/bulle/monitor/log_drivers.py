"""Where a container's output is kept, by its plan: opened by whoever starts it, written by its monitor.

``open_log`` gives a descriptor, which goes from the starter to the monitor as the others do; ``log_writer`` makes of it what the supervisor
writes to.
"""

from __future__ import annotations

import os
from typing import Protocol

from bulle.model.run_plan import LogSettings, RunPlan
from bulle.monitor.journal import JournalWriter, open_journal
from bulle.monitor.log_buffer import BufferedLog
from bulle.monitor.log_writer import DEFAULT, LogWriter
from bulle.monitor.logs import LOG_FILE


class Log(Protocol):
    """What a supervisor needs of a container's log."""

    @property
    def helper(self) -> int:
        """A descriptor to wait for beside all others (-1: none); when it is readable :meth:`reap` is called."""

    def reap(self) -> None:
        """Look after a child that has ended."""

    def write(self, stream: str, data: bytes) -> None:
        """Keep what the container wrote to ``stdout`` or ``stderr``. Raises nothing."""

    def close(self) -> None:
        """Keep what is left, and close."""


def open_log(plan: RunPlan, *, anew: bool = False) -> int:
    """A descriptor for :func:`log_writer`. Raises Unavailable where the journal is wanted and missing, but for a container that runs (``anew``)."""
    if plan.log.driver == "journald":
        return open_journal(plan.log, required=not anew)
    if plan.log.driver == "none":
        return os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
    return os.open(f"{plan.state_host_path}/{LOG_FILE}", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def log_writer(descriptor: int, settings: LogSettings = DEFAULT) -> Log | None:
    """The log behind a descriptor of :func:`open_log`, which it owns; None where nothing is kept."""
    if settings.driver == "none":
        os.close(descriptor)
        return None
    writer = JournalWriter(descriptor, settings) if settings.driver == "journald" else LogWriter(descriptor, settings)
    return BufferedLog(writer, settings.buffer_bytes) if settings.buffer_bytes else writer
