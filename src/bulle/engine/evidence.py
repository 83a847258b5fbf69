"""What can be found out about an end that nobody wanted, at the moment of the end: later the kernel's log may have forgotten it."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

from bulle.linux import kernel_log
from bulle.model.run_plan import RunPlan
from bulle.monitor.log_reading import Choice, read_log

_LAST_LINES, _MOST_WORDS = 5, 2000
_MOST_CALLS = 10
_LATE_S = 0.2  # the kernel writes its audit records a little later


def last_words(directory: str) -> str:
    """The last lines of its output. Host directory of the container."""
    with suppress(OSError):
        return "".join(entry.data.decode(errors="replace") for entry in read_log(directory, Choice(_LAST_LINES)))[-_MOST_WORDS:]
    return ""


def denied(plan: RunPlan, pid: int, since_ns: int, status: int) -> tuple[str, ...]:
    """Names of the system calls that a filter refused to its processes since then, as far as the kernel's log tells; each once.

    Without a range of user ids of its own only its first process is recognised.
    """
    if plan.security.seccomp == "unconfined":
        return ()
    ranges = [(one.host_id, one.host_id + one.size) for one in plan.security.id_mappings if one.size > 1]

    def concerns(one: int, uid: int) -> bool:
        return one == pid or any(first <= uid < end for first, end in ranges)

    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGSYS if status >= 0 else False
    deadline = time.monotonic() + (_LATE_S if killed or plan.process.log_refusals else 0)
    while True:
        calls = tuple(dict.fromkeys(one.call for one in kernel_log.refusals(since_ns, concerns)))[:_MOST_CALLS]
        if calls or time.monotonic() >= deadline:
            return calls
        time.sleep(0.01)


def killed_for_memory(status: int, pid: int) -> bool:
    """Whether its first process was killed because the whole machine ran out of memory."""
    return status >= 0 and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and kernel_log.killed_for_memory(pid)
