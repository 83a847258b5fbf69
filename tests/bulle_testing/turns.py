"""Tests that run alone: ``make test`` runs the suite in two processes, and no other test runs while one marked ``alone`` does.

Marked are tests that load the whole machine, or whose outcome a busy machine changes. conftest.py takes a turn for every test; the two locks are
those of flock(2) on files of this checkout, so nothing is left where a process dies, and runs that know nothing of each other take turns too.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Turns:
    """The locks of one test process, on a file and its directory."""

    def __init__(self, path: Path = Path(__file__)) -> None:
        self._queue, self._machine = (os.open(one, os.O_RDONLY | os.O_CLOEXEC) for one in (path, path.parent))

    @contextmanager
    def take(self, alone: bool) -> Iterator[None]:
        """Wait for the turn of a test, beside others or alone."""
        # Whoever waits for the machine holds the queue: tests that come one after the other in another process do not let it wait for ever.
        fcntl.flock(self._queue, fcntl.LOCK_EX)
        try:
            fcntl.flock(self._machine, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        finally:
            fcntl.flock(self._queue, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(self._machine, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the files."""
        os.close(self._queue)
        os.close(self._machine)
