"""Work that must not be in anybody's way: the class SCHED_IDLE, and the session's share where the kernel divides the processors by sessions.

With autogroups a process's own priority only counts within its session, so both are lowered, and raised again. sched(7)
"""

from __future__ import annotations

import os
from contextlib import suppress

_LEAST, _USUAL = 19, 0


def step_back() -> None:
    """Let everybody else go first, from now on."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    _set_session_nice(0, _LEAST)


def step_forward(pid: int = 0) -> None:
    """Be (or let process ``pid`` be) as important as anybody again; needs CAP_SYS_NICE where the limits do not allow it."""
    _set_session_nice(pid, _USUAL)
    os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))


def _set_session_nice(pid: int, nice: int) -> None:
    with suppress(OSError):  # a kernel without autogroups, or a user who may not
        fd = os.open(f"/proc/{pid or 'self'}/autogroup", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, str(nice).encode())
        finally:
            os.close(fd)
