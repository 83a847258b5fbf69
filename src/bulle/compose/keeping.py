"""That there is a reconciler while an app is wanted: who wants one calls :func:`ensure`; the reconciler holds a lock for as long as it lives."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from bulle.spawner import client

ENTRY = "reconciler"
LOCK_NAME = "reconciler.lock"


def ensure(home: Path) -> None:
    """Have the home's reconciler live; costs nothing to speak of where it does. What is wanted has to be written before."""
    descriptor = open_lock(home)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    finally:
        os.close(descriptor)
    client.submit(home, ENTRY, [str(home)])


def open_lock(home: Path) -> int:
    """The descriptor of the lock's file."""
    return os.open(home / "run" / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
