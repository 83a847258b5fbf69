"""fork(2) without Python's hooks.

``os.fork`` runs what libraries registered for the child (locks of logging and threading made anew...), which in a process with one thread mends
nothing but writes to, and so copies, a hundred and fifty pages. Callers have one thread; their child is told the one thing that matters: new random
numbers.
"""

from __future__ import annotations

import ctypes
import os
import sys

from bulle.linux.libc import check

# PyDLL keeps the interpreter's lock: both sides return into Python holding it.
_fork = ctypes.PyDLL(None, use_errno=True).fork


def fork() -> int:
    """The child's pid, 0 in the child. Where there are other threads after all (a monitor's that writes its log), the hooks are run."""
    threads = sys.modules.get("threading")
    if threads is not None and threads.active_count() > 1:
        return os.fork()
    pid = check(_fork(), "fork")
    if pid == 0 and "random" in sys.modules:
        sys.modules["random"].seed()
    return pid
