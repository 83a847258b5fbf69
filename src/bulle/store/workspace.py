"""A directory of ``tmp/`` in which one process prepares what will later appear in the store in one step.

The owner holds it locked (flock) for as long as it lives, so that anyone can tell the leavings of a dead process from work in progress, whatever
became of the owner. Its name is also the owner's name on leases of layers. flock(2)
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import threading
from pathlib import Path

from bulle.store.failures import storage_errors


class Workspace:
    """The locked directory of this process; made at first use, again after a fork."""

    def __init__(self, home: Path) -> None:
        self._parent = home / "tmp"
        self._lock = threading.Lock()
        self._fd = -1
        self._pid = 0
        self._name = ""

    @property
    def name(self) -> str:
        """The directory's name: what leases are held under."""
        with self._lock:
            if self._pid != os.getpid():
                self._create()
            return self._name

    @property
    def path(self) -> Path:
        """The directory (host path)."""
        return self._parent / self.name

    def directory(self) -> Path:
        """A new empty directory inside; whoever asked removes or renames it."""
        path = self.path / secrets.token_hex(8)
        path.mkdir(mode=0o700)
        return path

    def close(self) -> None:
        """Remove it with all that is in it, and unlock."""
        with self._lock:
            if self._pid == os.getpid():
                shutil.rmtree(self._parent / self._name, ignore_errors=True)
                os.close(self._fd)
                self._pid = 0

    def living(self) -> list[str]:
        """The names of all workspaces whose owners live."""
        if not self._parent.is_dir():
            return []
        return [entry.name for entry in self._parent.iterdir() if entry.is_dir() and (entry.name == self._name or not _is_dead(entry))]

    def collect_dead(self) -> None:
        """Remove what dead processes left in ``tmp/``."""
        if not self._parent.is_dir():
            return
        for entry in self._parent.iterdir():
            if entry.name != self._name and entry.is_dir() and _is_dead(entry):
                remove_tree(entry)

    def _create(self) -> None:
        # After a fork the inherited descriptor shares the parent's lock: it is left alone, and closed by exec or exit.
        with storage_errors(f"the store in {self._parent.parent} could not be written"):
            while True:
                self._parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                name = f"{os.getpid()}-{secrets.token_hex(6)}"
                path = self._parent / name
                path.mkdir(mode=0o700)
                try:
                    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                except FileNotFoundError:
                    continue
                fcntl.flock(fd, fcntl.LOCK_EX)
                # A collector may have taken it for dead between mkdir and flock.
                if path.is_dir():
                    self._fd, self._pid, self._name = fd, os.getpid(), name
                    return
                os.close(fd)


def _is_dead(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def remove_tree(path: Path) -> None:
    """Remove a directory with all its content; directories without permissions are made removable first. Never follows a symlink."""
    shutil.rmtree(path, onerror=_make_removable)


def _make_removable(function: object, path: str, information: object) -> None:
    try:
        os.chmod(os.path.dirname(path), 0o700)
        if os.path.isdir(path) and not os.path.islink(path):
            os.chmod(path, 0o700)
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)
    except OSError:
        return
