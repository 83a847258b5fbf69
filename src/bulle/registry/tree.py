"""Turns a directory of this machine into the bytes of a layer: a tar stream in one fixed order, the same for the same files.

Used for ``dir:`` and to make the ``host`` image self-contained. Every file is reached through the descriptor of its directory and never by
following a link, so that a directory that someone else swaps meanwhile leads nowhere. Sockets are left out; holes of sparse files are written as
the zeros they read as; the contents of kernel file systems (/proc below a root) are left out. Extended attributes: file capabilities and
``user.*``, as image tools do.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from bulle.errors import BulleError, Conflict, InvalidInput, NotFound
from bulle.registry import tar_format
from bulle.registry.compression import CHUNK_BYTES

_KERNEL_FILE_SYSTEMS = frozenset({
    "autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs", "efivarfs", "fusectl", "hugetlbfs",
    "mqueue", "nsfs", "proc", "pstore", "securityfs", "selinuxfs", "sysfs", "tracefs",
})  # fmt: skip
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CAPABILITY_REVISION_2, _CAPABILITY_REVISION_3, _CAPABILITY_3_BYTES = 2, 3, 24
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

Unreadable = Callable[[str, OSError], None]


def tar_stream(root: Path, prefix: str = "", *, unreadable: Unreadable | None = None, end: bool = True) -> Iterator[bytes]:
    """The tar of what is below ``root`` (a host path), its names below ``prefix``.

    Without a prefix the root itself has no member: its mode and owner are those of whoever made the directory. ``unreadable`` is told of files that
    may not be read and are left out; without it they are an error. An ordinary user's own files become root's, as she can own none of root's.
    Raises NotFound, InvalidInput (a name that means a whiteout), Conflict (a file that shrank meanwhile), BulleError.
    """
    try:
        descriptor = os.open(root, _DIRECTORY_FLAGS & ~os.O_NOFOLLOW)
    except FileNotFoundError:
        raise NotFound(f"no such directory: {root}") from None
    except NotADirectoryError:
        raise InvalidInput(f"{root} is not a directory") from None
    except OSError as error:
        raise BulleError(f"cannot read {root}", error.strerror or str(error)) from None
    walk = Walk(root, unreadable)
    start = os.fsencode(prefix.strip("/"))
    try:
        if start:
            yield walk.directory_header(os.fstat(descriptor), start, {})
        yield from not_too_deep(walk.below(descriptor, start + b"/" if start else b""), str(root))
    finally:
        os.close(descriptor)
    if end:
        yield tar_format.END


def not_too_deep(chunks: Iterator[bytes], what: str) -> Iterator[bytes]:
    """Pass on the tar of a tree; InvalidInput where its directories are nested deeper than can be followed."""
    try:
        yield from chunks
    except RecursionError:
        raise InvalidInput(f"cannot make a layer of {what}", "its directories are nested too deeply", "remove the deepest of them") from None


class Walk:
    """One pass over one tree; :mod:`changes` has a reading of its own for what overlayfs means by some entries."""

    makes_layer = True
    """Whether a name can mean a whiteout, and so must not be there."""

    def __init__(self, root: Path, unreadable: Unreadable | None = None, latest_ns: int | None = None) -> None:
        self._root = root
        self._unreadable = unreadable
        self._links: dict[tuple[int, int], bytes] = {}
        self._kernel_devices = _kernel_devices()
        self._latest_ns = latest_ns
        self._own = (os.geteuid(), os.getegid()) if os.geteuid() else (-1, -1)

    def below(self, descriptor: int, prefix: bytes) -> Iterator[bytes]:
        """Everything in one directory, sorted by bytes, depth first."""
        for name in sorted(os.fsencode(entry) for entry in os.listdir(descriptor)):
            if self.makes_layer and name.startswith(b".wh."):
                where = self._root / os.fsdecode(prefix + name)
                raise InvalidInput(f"cannot make a layer of {where}", "in a layer, names that begin with .wh. delete files")
            try:
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                yield from self.entry(descriptor, name, prefix + name, status)
            except PermissionError as error:
                path = self._root / os.fsdecode(prefix + name)
                if self._unreadable is None:
                    raise BulleError(f"cannot read {path}", error.strerror or "", "run this as root") from None
                self._unreadable(str(path), error)
            except FileNotFoundError:
                # Deleted since it was listed: it could as well have been deleted before.
                continue
            except OSError as error:
                path = self._root / os.fsdecode(prefix + name)
                if error.errno in (errno.ENOTDIR, errno.ELOOP):
                    raise Conflict(f"{path} changed while it was read", "it became something else") from None
                raise BulleError(f"cannot read {path}", error.strerror or str(error)) from None

    def entry(self, parent: int, name: bytes, path: bytes, status: os.stat_result) -> Iterator[bytes]:
        """The members of one name in a directory: its own, and those of all that is below."""
        kind = tar_format.kind_of(status.st_mode)
        if kind is None:
            return
        if kind == tar_format.DIRECTORY:
            yield from self.directory(parent, name, path)
            return
        inode = (status.st_dev, status.st_ino)
        if status.st_nlink > 1 and inode in self._links:
            yield tar_format.header(self.member(status, path, tar_format.HARD_LINK, target=self._links[inode]))
            return
        if kind == tar_format.FILE:
            yield from self._file(parent, name, path)
        elif kind == tar_format.SYMBOLIC_LINK:
            target = os.fsencode(os.readlink(name, dir_fd=parent))
            yield tar_format.header(self.member(status, path, kind, target=target))
        else:
            yield tar_format.header(self.member(status, path, kind))
        if status.st_nlink > 1:
            self._links[inode] = path

    def directory(self, parent: int, name: bytes, path: bytes) -> Iterator[bytes]:
        """A directory's header, and what is in it."""
        descriptor = os.open(name, _DIRECTORY_FLAGS, dir_fd=parent)
        try:
            status = os.fstat(descriptor)
            yield self.directory_header(status, path, attributes_of(descriptor))
            if status.st_dev not in self._kernel_devices:
                yield from self.below(descriptor, path + b"/")
        finally:
            os.close(descriptor)

    def directory_header(self, status: os.stat_result, path: bytes, attributes: dict[bytes, bytes]) -> bytes:
        """The header of a directory."""
        return tar_format.header(self.member(status, path + b"/", tar_format.DIRECTORY, attributes=attributes))

    def _file(self, parent: int, name: bytes, path: bytes) -> Iterator[bytes]:
        descriptor = os.open(name, _FILE_FLAGS, dir_fd=parent)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise Conflict(f"{self._root / os.fsdecode(path)} changed while it was read")
            yield tar_format.header(self.member(status, path, tar_format.FILE, attributes=attributes_of(descriptor), size=status.st_size))
            left = status.st_size
            while left:
                chunk = os.read(descriptor, min(CHUNK_BYTES, left))
                if not chunk:
                    raise Conflict(f"{self._root / os.fsdecode(path)} changed while it was read", "it shrank")
                left -= len(chunk)
                yield chunk
            yield tar_format.padding(status.st_size)
        finally:
            os.close(descriptor)

    def member(
        self, status: os.stat_result, path: bytes, kind: bytes, *, target: bytes = b"", size: int = 0, attributes: dict[bytes, bytes] | None = None
    ) -> tar_format.Member:
        """What stands in a header; times are ``latest_ns`` at most, where the walk was given one."""
        device = kind in (tar_format.CHARACTER_DEVICE, tar_format.BLOCK_DEVICE)
        return tar_format.Member(
            name=path,
            kind=kind,
            mode=stat.S_IMODE(status.st_mode),
            uid=0 if status.st_uid == self._own[0] else status.st_uid,
            gid=0 if status.st_gid == self._own[1] else status.st_gid,
            size=size,
            mtime_ns=status.st_mtime_ns if self._latest_ns is None else min(status.st_mtime_ns, self._latest_ns),
            target=target,
            device_major=os.major(status.st_rdev) if device else 0,
            device_minor=os.minor(status.st_rdev) if device else 0,
            attributes=attributes or {},
        )


def attributes_of(descriptor: int) -> dict[bytes, bytes]:
    """The extended attributes that belong into an image; none where the file system has none."""
    try:
        names = os.listxattr(descriptor)
    except OSError:
        return {}
    found = {}
    for name in names:
        if name == "security.capability" or (name.startswith("user.") and not name.startswith("user.overlay.")):
            try:
                value = os.getxattr(descriptor, name)
            except OSError:
                continue
            found[os.fsencode(name)] = _without_namespace(value) if name == "security.capability" else value
    return found


def _without_namespace(capability: bytes) -> bytes:
    """A file's capabilities as every root sees them: version 3 names the user namespace that they were set in. capabilities(7)"""
    revision = int.from_bytes(capability[:4], "little")
    if revision >> 24 != _CAPABILITY_REVISION_3 or len(capability) != _CAPABILITY_3_BYTES:
        return capability
    return (revision & 0xFFFFFF | _CAPABILITY_REVISION_2 << 24).to_bytes(4, "little") + capability[4:-4]


def _kernel_devices() -> frozenset[int]:
    """The st_dev numbers of mounted file systems that hold no files of anyone's."""
    found = set()
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields = line.split(b" ")
        kind = fields[fields.index(b"-") + 1].decode()
        if kind in _KERNEL_FILE_SYSTEMS:
            major, _, minor = fields[2].partition(b":")
            found.add(os.makedev(int(major), int(minor)))
    return frozenset(found)
