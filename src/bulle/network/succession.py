"""One keeper after the other: who has the lock is the home's keeper, and begins when the one before is dead."""

from __future__ import annotations

import os
import select
from contextlib import suppress

from bulle.linux import process

_PATIENCE_MS = 5000


def succeed(lock: int) -> None:
    """Wait until the one before is dead: where it was killed, the kernel gives this lock away before it has closed that one's sockets."""
    pid, _, ticks = os.pread(lock, 64, 0).decode(errors="replace").partition(" ")
    with suppress(OSError, ValueError):
        before = os.pidfd_open(int(pid))
        try:
            if process.start_ticks(int(pid)) == int(ticks):
                poll = select.poll()
                poll.register(before, select.POLLIN)
                poll.poll(_PATIENCE_MS)
        finally:
            os.close(before)
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()} {process.start_ticks(os.getpid())}".encode(), 0)
