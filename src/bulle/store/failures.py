"""What the kernel says about a disk, as errors that a user understands. Used around every write of the store."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from bulle.errors import StorageFull, Unavailable

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def storage_errors(brief: str) -> Iterator[None]:
    """Turn a full or unwritable disk into StorageFull or Unavailable; ``brief`` says what failed."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull(brief, error.strerror or "no space left", "free some space, for example with `bulle rmi`, and try again") from error
        raise Unavailable(brief, str(error)) from error
