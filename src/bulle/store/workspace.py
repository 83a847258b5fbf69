"""A directory of ``tmp/`` in which one process prepares what will later appear in the store in one step.

The owner holds it locked (flock) for as long as it lives, so that anyone can tell the leavings of a dead process from work in progress, whatever
became of the owner. Its name is also the owner's name on leases of layers. flock(2)
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bulle.errors import BulleError
from bulle.linux import user_namespace
from bulle.linux.subordinate_ids import rootless_mappings
from bulle.store.failures import storage_errors

_NAME = re.compile(r"[0-9]+-[0-9a-f]{12}")


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
    def is_made(self) -> bool:
        """Whether this process has it already."""
        with self._lock:
            return self._pid == os.getpid()

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
                remove_tree(self._parent / self._name)
                os.close(self._fd)
                self._pid = 0

    def collect_dead(self) -> list[str]:
        """Remove what dead processes left in ``tmp/``; returns the names of all workspaces whose owners live."""
        living = []
        for entry in self._parent.iterdir() if self._parent.is_dir() else ():
            if not _NAME.fullmatch(entry.name):
                continue  # somebody else's temporary file
            with _locked_if_dead(entry) as dead:
                if dead:
                    remove_tree(entry)
                else:
                    living.append(entry.name)
        return living

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


@contextmanager
def _locked_if_dead(path: Path) -> Iterator[bool]:
    """True, and locked meanwhile, when the owner of a workspace is dead; it stays locked while it is removed, or it could be adopted half gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        dead = True
    except BlockingIOError:
        dead = False
    try:
        yield dead
    finally:
        os.close(fd)


def remove_tree(path: Path) -> None:
    """Remove a directory with all its content, never following a symlink; what belongs to subordinate ids is removed in a user namespace."""
    _remove(path)
    if path.exists() and os.geteuid() != 0:
        with suppress(BulleError):  # a later collection tries again
            user_namespace.call(*rootless_mappings(), lambda: _remove(path, _retry_opened))


def _remove(path: Path, on_error: Callable[[Callable[[str], object], str, object], object] | None = None) -> None:
    try:
        shutil.rmtree(path, ignore_errors=on_error is None, onerror=on_error)
    except RecursionError:
        # A container can nest directories deeper than Python can follow; rm(1) goes down as far as there is anything.
        subprocess.run(["rm", "-rf", "--one-file-system", "--", str(path)], check=False, capture_output=True)


def _retry_opened(function: Callable[[str], object], path: str, information: object) -> None:
    """A directory without permissions is opened first; with one mapped id even the namespace's root needs them."""
    with suppress(OSError):
        for directory in (Path(path).parent, Path(path)):
            if not directory.is_symlink() and directory.is_dir():
                directory.chmod(0o700)
        if function in (os.scandir, os.listdir, os.open, os.lstat):
            shutil.rmtree(path, ignore_errors=True)
        else:
            function(path)
