"""Space of the disk that is held back in a home (``bulle.db-reserve``) and given up when the disk is full, so that containers can still be listed,
ended and removed then: all that takes a few pages. Made again as soon as there is space.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_NAME = "bulle.db-reserve"
_BYTES = 1 << 20
_ONLY_WITH_BYTES = 64 << 20  # free on the disk


def hold_back(home: Path) -> None:
    """Take the space, if there is plenty; nothing happens where it is taken."""
    path = home / _NAME
    if path.exists():
        return
    with suppress(OSError):
        state = os.statvfs(home)
        if state.f_bavail * state.f_frsize < _ONLY_WITH_BYTES:
            return
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, _BYTES)
        finally:
            os.close(descriptor)


def give_way(home: Path) -> bool:
    """Give it up; whether there was any."""
    try:
        (home / _NAME).unlink()
    except OSError:
        return False
    return True


def replace_file(home: Path, path: str, content: bytes) -> None:
    """Write a small file of the home anew, whole or not at all. Raises OSError."""
    temporary = f"{path}.{os.getpid()}"
    try:
        _with_reserve(home, lambda: _write(temporary, os.O_TRUNC, content))
        os.rename(temporary, path)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def append(home: Path, path: str, content: bytes) -> None:
    """Write at the end of a small file of the home. Raises OSError."""
    _with_reserve(home, lambda: _write(path, os.O_APPEND, content))


def _with_reserve(home: Path, write: Callable[[], None]) -> None:
    try:
        write()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not give_way(home):
            raise
        write()


def _write(path: str, flags: int, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, 0o600)
    try:
        if os.write(descriptor, content) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    finally:
        os.close(descriptor)
