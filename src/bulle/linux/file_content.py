"""Copying what is in a file: shared where the file system can, by the kernel where it cannot, holes left holes. ioctl_ficlone(2), lseek(2)"""

from __future__ import annotations

import errno
import fcntl
import os

FICLONE = 0x40049409
_CHUNK_BYTES = 8 << 20
_CANNOT = (errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM)


def copy_content(source: int, target: int) -> None:
    """Make the new file ``target`` hold what ``source`` holds (descriptors of regular files); sharing the blocks where that is possible."""
    try:
        fcntl.ioctl(target, FICLONE, source)
        return
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    size, position = os.fstat(source).st_size, 0
    os.ftruncate(target, size)
    while position < size:
        try:
            start = os.lseek(source, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return  # nothing but a hole is left
        end = os.lseek(source, start, os.SEEK_HOLE)
        _copy_range(source, target, start, end)
        position = end


def _copy_range(source: int, target: int, position: int, end: int) -> None:
    os.lseek(target, position, os.SEEK_SET)
    while position < end and (count := os.sendfile(target, source, position, min(_CHUNK_BYTES, end - position))):
        position += count  # none: it shrank meanwhile
