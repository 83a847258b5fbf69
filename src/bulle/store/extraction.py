"""Extracting a layer to a directory: from its index and its tar, so that the result is what mounting the index would show.

Called by the directory backend, as root or as root of a user namespace. The index holds no path that leaves it, and every directory is opened
from the target's descriptor with openat2(2), no symlink followed: whatever a layer holds and whoever renames beneath us, nothing outside the
target is touched. What a namespace's root may not make is made as near as possible: a device becomes an empty file, overlayfs's marks
``user.overlay.*`` instead of ``trusted.overlay.*``.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from bulle.errors import Unavailable
from bulle.linux.process import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2
from bulle.store.erofs_reader import Index
from bulle.store.tree import Node

_COPY_BYTES = 1 << 26
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_NOT_HERE = (errno.EPERM, errno.EACCES, errno.ENOTSUP)


class Extraction:
    """One layer being extracted into the empty directory ``target`` (host path).

    ``keep_owners`` False: only one id is mapped, so every file becomes the namespace root's and loses setuid and setgid.
    """

    def __init__(self, index: Path, tar: Path, target: Path, keep_owners: bool = True) -> None:
        self._index = Index(index)
        self._index_fd = os.open(index, os.O_RDONLY | os.O_CLOEXEC)
        self._tar_fd = os.open(tar, os.O_RDONLY | os.O_CLOEXEC)
        self._root_fd = os.open(target, _DIRECTORY | os.O_CLOEXEC)
        self._keep_owners = keep_owners
        self._first_links: dict[int, tuple[bytes, bytes]] = {}

    def run(self) -> None:
        """Extract everything. Raises OSError, or Unavailable for an owner whose id is not mapped here."""
        try:
            directories = [(b".", self._index.root)]
            for path, nid in directories:  # grows while it runs
                fd = self._open_directory(path)
                try:
                    for name, child, kind in self._index.entries(nid):
                        where = name if path == b"." else path + b"/" + name
                        if kind == 2:
                            os.mkdir(name, 0o700, dir_fd=fd)
                            directories.append((where, child))
                        else:
                            self._make(fd, path, name, child)
                finally:
                    os.close(fd)
            # Deepest first, and only now: a read-only directory could not be filled, and filling changes its time.
            for path, nid in reversed(directories):
                fd = self._open_directory(path)
                try:
                    self._describe(fd, b"", self._index.node(nid), fd)
                finally:
                    os.close(fd)
        finally:
            for descriptor in (self._index_fd, self._tar_fd, self._root_fd):
                os.close(descriptor)
            self._index.close()

    def _open_directory(self, path: bytes) -> int:
        return openat2(self._root_fd, path, _DIRECTORY, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)

    def _make(self, fd: int, path: bytes, name: bytes, nid: int) -> None:
        node = self._index.node(nid)
        if node.links > 1 and not node.is_whiteout:
            first = self._first_links.setdefault(nid, (path, name))
            if first != (path, name):
                source = self._open_directory(first[0])
                try:
                    os.link(first[1], name, src_dir_fd=source, dst_dir_fd=fd, follow_symlinks=False)
                finally:
                    os.close(source)
                return
        kind = stat.S_IFMT(node.mode)
        if kind == stat.S_IFREG:
            file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=fd)
            try:
                self._fill(file, node)
                self._describe(fd, name, node, file)
            finally:
                os.close(file)
            return
        if kind == stat.S_IFLNK:
            os.symlink(node.target, name, dir_fd=fd)
        else:
            self._make_special(fd, name, node)
        self._describe(fd, name, node, -1)

    def _make_special(self, fd: int, name: bytes, node: Node) -> None:
        try:
            os.mknod(name, stat.S_IFMT(node.mode) | 0o600, os.makedev(*node.device), dir_fd=fd)
        except PermissionError:
            if node.is_whiteout:
                raise
            # Devices are made in the container's own /dev; a placeholder keeps the name from showing what lies below.
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=fd))

    def _fill(self, file: int, node: Node) -> None:
        if node.data_offset >= 0:
            if node.size:
                _copy(self._tar_fd, node.data_offset, file, 0, node.size)
            return
        # A sparse file lies in the index, holes included.
        start, position = -node.data_offset, -node.data_offset
        end = start + node.size
        while position < end:
            try:
                position = os.lseek(self._index_fd, position, os.SEEK_DATA)
                hole = os.lseek(self._index_fd, position, os.SEEK_HOLE)
            except OSError:
                break
            if position < end:
                _copy(self._index_fd, position, file, position - start, min(hole, end) - position)
            position = hole
        os.ftruncate(file, node.size)

    def _describe(self, fd: int, name: bytes, node: Node, file: int) -> None:
        """Owner, mode, extended attributes and time, in this order: a change of owner clears some of the others."""
        where: int | bytes = file if file >= 0 else b"/proc/self/fd/%d/%s" % (fd, name)
        mode = stat.S_IMODE(node.mode)
        if self._keep_owners:
            try:
                os.chown(where, node.uid, node.gid) if file >= 0 else os.chown(name, node.uid, node.gid, dir_fd=fd, follow_symlinks=False)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                why = f"it has files of {node.uid}:{node.gid}, which are not among your ids"
                raise Unavailable("the image cannot be extracted", why, "give yourself more in /etc/subuid and /etc/subgid") from error
        elif node.uid or node.gid:
            mode &= 0o1777
        if not stat.S_ISLNK(node.mode):
            os.chmod(where, mode) if file >= 0 else os.chmod(name, mode, dir_fd=fd)
        for key, value in (node.xattrs or {}).items():
            try:
                os.setxattr(where, key, value) if file >= 0 else os.setxattr(where, key, value, follow_symlinks=False)
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
        if node.opaque:
            _mark(file, b"overlay.opaque", b"y")
        if node.holds_whiteouts:
            _mark(file, b"overlay.origin", b"")
        times = node.mtime * 1_000_000_000 + node.mtime_ns
        os.utime(where, ns=(times, times)) if file >= 0 else os.utime(name, ns=(times, times), dir_fd=fd, follow_symlinks=False)


def _mark(directory: int, name: bytes, value: bytes) -> None:
    """Tell overlayfs about a directory: as root by the attribute that only root can set, else by the one that ``userxattr`` makes it read."""
    with suppress(PermissionError):
        os.setxattr(directory, b"trusted." + name, value)
        return
    os.setxattr(directory, b"user." + name, value)


def _copy(source: int, source_offset: int, target: int, target_offset: int, count: int) -> None:
    while count:
        try:
            done = os.copy_file_range(source, target, min(count, _COPY_BYTES), source_offset, target_offset)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            done = os.pwrite(target, os.pread(source, min(count, 1 << 20), source_offset), target_offset)
        if not done:
            raise OSError(errno.EIO, "the stored layer is shorter than its index says")
        source_offset, target_offset, count = source_offset + done, target_offset + done, count - done
