"""A sandbox's files, read and written by the program that made it, while whatever runs in the sandbox tries to make it read or write others.

Nothing is forked and nothing of the sandbox is executed, so that this is quick and safe in threads. Every path is resolved once below the sandbox's
root, which symlinks cannot leave; what is found is looked at before it is opened, and only regular files are, of no file system in which the kernel
itself listens; and all of it is done as the sandbox's own user, who may not do more here than in the sandbox. openat2(2), setfsuid(2), fcntl(2)
"""

from __future__ import annotations

import errno
import os
import stat

from bulle.errors import BulleError, Conflict, InvalidInput, NotFound, StorageFull
from bulle.isolation import inside
from bulle.isolation.root_access import open_below
from bulle.linux import mount, process

KERNEL_FILE_SYSTEMS = frozenset({mount.PROC_SUPER_MAGIC, 0x62656572, 0x27E0EB, 0x63677270, 0x1CD1})  # proc, sysfs, cgroup, cgroup2, devpts
_ATTEMPTS = 8
_CHUNK_BYTES = 1 << 20


class SandboxFiles:
    """The files below one root. ``root`` is a descriptor, which it owns; the ids are those of the sandbox's user on the host."""

    def __init__(self, root: int, user_id: int, group_id: int) -> None:
        self._root = root
        self._user = (user_id, group_id)

    def close(self) -> None:
        """Let go of the root."""
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def write(self, path: str, content: bytes, mode: int) -> None:
        """Make or overwrite a file at an absolute container path, and the directories that it needs. Raises BulleError."""
        try:
            with process.file_system_user(*self._user):
                descriptor = self._open_to_write(path, mode)
                try:
                    view = memoryview(content)
                    while view:
                        view = view[os.write(descriptor, view) :]
                finally:
                    os.close(descriptor)
        except OSError as error:
            raise _explained(error, "written", path) from error

    def read(self, path: str, most_bytes: int) -> bytes:
        """What is in the regular file at an absolute container path, ``most_bytes`` at most. Raises BulleError."""
        try:
            with process.file_system_user(*self._user):
                descriptor = self._open_known(path, os.O_RDONLY, "read")
                try:
                    content = bytearray()
                    while len(content) <= most_bytes and (chunk := os.read(descriptor, min(_CHUNK_BYTES, most_bytes + 1 - len(content)))):
                        content += chunk
                finally:
                    os.close(descriptor)
        except OSError as error:
            raise _explained(error, "read", path) from error
        if len(content) > most_bytes:
            raise InvalidInput(f"{path} cannot be read from the sandbox", f"it has more than {most_bytes} bytes", "read it with a larger most_bytes")
        return bytes(content)

    def _open_to_write(self, path: str, mode: int) -> int:
        for _ in range(_ATTEMPTS):  # what runs inside may make and remove it meanwhile
            try:
                return self._open_known(path, os.O_WRONLY | os.O_TRUNC, "written")
            except FileNotFoundError:
                os.close(inside.make_directory(self._root, os.path.dirname(path) or "/"))
            try:
                descriptor = process.openat2(
                    self._root, path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, process.RESOLVE_IN_ROOT | process.RESOLVE_NO_MAGICLINKS, mode
                )
                os.fchmod(descriptor, mode)
                return descriptor
            except FileExistsError:
                continue
        raise Conflict(f"{path} cannot be written in the sandbox", "it is a symlink that leads nowhere, or keeps changing", "choose another path")

    def _open_known(self, path: str, flags: int, verb: str) -> int:
        """Open what is there, once it is known to be a regular file; never waits (for the other end of a FIFO, or whoever holds a lease)."""
        found = open_below(self._root, path, os.O_PATH)
        try:
            if not stat.S_ISREG(os.fstat(found).st_mode):
                raise InvalidInput(f"{path} cannot be {verb} in the sandbox", "it is no regular file", "choose another path")
            if mount.filesystem_type(found) in KERNEL_FILE_SYSTEMS:
                raise InvalidInput(f"{path} cannot be {verb} in the sandbox", "it is the kernel's, no file of the sandbox", "choose another path")
            return os.open(f"/proc/self/fd/{found}", flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        finally:
            os.close(found)


def _explained(error: OSError, verb: str, path: str) -> BulleError:
    brief, reason = f"{path} cannot be {verb} in the sandbox", os.strerror(error.errno or 0)
    if error.errno == errno.ENOENT:
        return NotFound(brief, "there is no such file", "check its path")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(brief, reason, "give the sandbox a larger disk")
    if error.errno == errno.EROFS:
        return InvalidInput(brief, "the sandbox's root file system is read-only", "use /work or /tmp, or make the sandbox with writable=True")
    if error.errno == errno.EAGAIN:
        return Conflict(brief, "a process in the sandbox holds it", "try again when that has ended")
    return BulleError(brief, reason, "check its path and whose it is")
