"""What is in a volume: filled from an image, copied from another volume, given to somebody.

Everything goes through descriptors below the volume's own directory, and no link is ever followed. Ids are the container's: as root those on disk,
for an ordinary user the work is done in a user namespace. New content of a volume that others may have mounted is made beside it first and gets its
place when it is whole, so that nobody sees a half (:func:`replace`).
"""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from bulle.errors import Conflict, InvalidInput
from bulle.isolation import sized_file_system
from bulle.isolation.host_mounts import DATA, DISK
from bulle.linux import user_namespace
from bulle.linux.file_content import copy_content
from bulle.linux.subordinate_ids import rootless_mappings
from bulle.store.merged_view import MergedView, Place
from bulle.store.workspace import remove_tree

_NEW, _WHOLE = "_new", "_whole"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def make_directory(path: Path, size_bytes: int) -> None:
    """A new volume's host directory, empty: ``_data``, or a file system of a limited size with that in it. Raises Unavailable, StorageFull."""
    path.mkdir(mode=0o700)
    if size_bytes:
        mend = "leave out size=, or give the machine loop devices and ext4 (modprobe loop ext4)"
        sized_file_system.make(str(path / DISK), size_bytes, "the volume", mend)
    with opened(path) as base:
        os.mkdir(DATA, 0o755, dir_fd=base)
        with data_of(base) as data:
            os.fchmod(data, 0o755)


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """The descriptor of the directory that holds a volume's ``_data``: its host directory, or the root of its file system of a limited size."""
    disk = path / DISK
    with ExitStack() as stack:
        whole = -1
        if disk.exists():
            whole = sized_file_system.detached(str(disk), f"volume {path.name}", "give the machine loop devices and ext4 (modprobe loop ext4)")
            stack.callback(os.close, whole)
        base = os.open("." if whole >= 0 else path, _DIRECTORY, dir_fd=whole if whole >= 0 else None)
        stack.callback(os.close, base)
        yield base


@contextmanager
def data_of(base: int) -> Iterator[int]:
    """The descriptor of the directory with the files."""
    with _open(base, DATA) as data:
        yield data


def as_container_root(work: Callable[[], object]) -> None:
    """Do something with ids as a container sees them."""
    if os.geteuid() == 0:
        work()
    else:
        user_namespace.call(*rootless_mappings(), work)


def is_empty(base: int) -> bool:
    """Whether a volume holds nothing."""
    with data_of(base) as data, os.scandir(data) as entries:
        return next(entries, None) is None


def replace(base: int, write: Callable[[int], None]) -> None:
    """Give an empty volume the content that ``write`` makes in a directory whose descriptor it gets. The caller holds the volume's lock.

    Whoever is killed meanwhile leaves the volume empty, or what :func:`settle` completes.
    """
    with aside(base) as new:
        write(new)
        os.rename(_NEW, _WHOLE, src_dir_fd=base, dst_dir_fd=base)


def is_filled(base: int) -> bool:
    """Whether a volume holds something and nobody is about to change that; an ordinary user may have to look as her containers' root."""

    def look() -> None:
        if is_settled(base) and not is_empty(base):
            raise Conflict("it is filled")

    try:
        try:
            look()
        except PermissionError:
            as_container_root(look)
    except Conflict:
        return True
    return False


@contextmanager
def aside(base: int) -> Iterator[int]:
    """The descriptor of a new directory beside a volume's files, that nobody has mounted; what is left of it at the end goes."""
    os.mkdir(_NEW, 0o700, dir_fd=base)
    try:
        with _open(base, _NEW) as new:
            yield new
    finally:
        settle(base)


def is_settled(base: int) -> bool:
    """Whether there is nothing for :func:`settle` to do."""
    return not {_NEW, _WHOLE}.intersection(os.listdir(base))


def settle(base: int) -> None:
    """Finish or undo what was begun: content that is whole gets its place, what is not goes."""
    with suppress(FileNotFoundError):
        with _open(base, _WHOLE) as whole, data_of(base) as data:
            for name in os.listdir(whole):
                os.rename(name, name, src_dir_fd=whole, dst_dir_fd=data)
            _describe(data, _OnDisk(whole, b""))
        os.rmdir(_WHOLE, dir_fd=base)
    with suppress(FileNotFoundError):
        os.stat(_NEW, dir_fd=base, follow_symlinks=False)
        remove_tree(Path(f"/proc/self/fd/{base}/{_NEW}"))


def fill(base: int, view: MergedView, path: str) -> None:
    """Fill a volume that is empty with what an image has in the directory at a container path, if it has one. The caller holds the volume's lock."""
    settle(base)
    try:
        place = view.resolve(os.fsencode(path)).place
    except InvalidInput:
        return  # its links lead nowhere: there is nothing to copy
    if place is not None and place.is_directory and is_empty(base):
        replace(base, lambda new: write_image(view, place, new))


def write_image(view: MergedView, place: Place, target: int) -> None:
    """Write what an image has in a directory into an empty one. Devices stay out."""
    _write_tree(_InImage(view, place), target)


def copy(source: int, target: int) -> None:
    """Copy all that one volume holds into a new one, blocks shared where the file system can. Devices and sockets stay out."""
    with data_of(source) as old, data_of(target) as new:
        _write_tree(_OnDisk(old, b""), new)


def change_owner(parent: int | None, name: str, user_id: int, group_id: int) -> None:
    """Give a directory (its name in an opened one, or a host path) and all that is in it to somebody. Raises InvalidInput where that cannot be."""

    def work() -> None:
        with _open(parent, name) as directory:
            os.fchown(directory, user_id, group_id)
            for _, directories, files, here in os.fwalk(".", dir_fd=directory):
                for one in (*directories, *files):
                    os.chown(one, user_id, group_id, dir_fd=here, follow_symlinks=False)

    def explained() -> None:
        try:
            work()
        except OSError as error:
            why = f"{user_id}:{group_id} on {name}: {os.strerror(error.errno or 0)}"
            mend = "leave out U; an ordinary user needs a range of ids in /etc/subuid and /etc/subgid for it"
            raise InvalidInput("the owner cannot be changed", why, mend) from error

    as_container_root(explained)


class _Entry(ABC):
    """One file of any kind that is written anew somewhere else."""

    name: bytes
    mode: int
    owner: tuple[int, int]
    modified_ns: int
    link: tuple[int, int] | None
    """What all names of one file have in common; None for a file with one name."""

    @abstractmethod
    def children(self) -> Iterator[_Entry]:
        """What is in a directory."""

    @abstractmethod
    def write_content(self, target: int) -> None:
        """Write what is in a regular file."""

    @abstractmethod
    def target(self) -> bytes:
        """Where a symbolic link leads."""

    @abstractmethod
    def attributes(self) -> Mapping[str, bytes]:
        """The extended attributes of a directory or regular file."""

    @abstractmethod
    def close(self) -> None:
        """No more is asked of it."""


class _InImage(_Entry):
    """A place of an image."""

    def __init__(self, view: MergedView, place: Place) -> None:
        self._view, self._place, node = view, place, place.node
        self.name = place.path[-1] if place.path else b""
        self.mode, self.owner, self.modified_ns = node.mode, (node.uid, node.gid), node.mtime * 1_000_000_000 + node.mtime_ns
        self.link = place.where[0] if node.links > 1 else None

    def children(self) -> Iterator[_Entry]:
        for place in self._view.children(self._place):
            yield _InImage(self._view, place)

    def write_content(self, target: int) -> None:
        for chunk in self._view.read(self._place):
            view = memoryview(chunk)
            while view:
                view = view[os.write(target, view) :]

    def target(self) -> bytes:
        return self._place.node.target

    def attributes(self) -> Mapping[str, bytes]:
        return {os.fsdecode(name): value for name, value in (self._place.node.xattrs or {}).items()}

    def close(self) -> None:
        """Nothing was opened."""


class _OnDisk(_Entry):
    """A name in an opened directory; without a name the directory itself. What is opened is closed when it was dealt with."""

    def __init__(self, parent: int, name: bytes) -> None:
        self._parent, self.name, self._descriptor = parent, name, -1
        status = os.stat(name, dir_fd=parent, follow_symlinks=False) if name else os.fstat(parent)
        self.mode, self.owner, self.modified_ns = status.st_mode, (status.st_uid, status.st_gid), status.st_mtime_ns
        self.link = (status.st_dev, status.st_ino) if status.st_nlink > 1 else None

    def children(self) -> Iterator[_Entry]:
        self._descriptor = os.open(self.name, _DIRECTORY, dir_fd=self._parent) if self.name else os.dup(self._parent)
        for name in os.listdir(self._descriptor):
            try:
                child = _OnDisk(self._descriptor, os.fsencode(name))
            except FileNotFoundError:
                continue  # removed since
            yield child

    def write_content(self, target: int) -> None:
        self._descriptor = os.open(self.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._parent)
        copy_content(self._descriptor, target)

    def target(self) -> bytes:
        return os.fsencode(os.readlink(self.name, dir_fd=self._parent))

    def attributes(self) -> Mapping[str, bytes]:
        return attributes_of(self._descriptor if self._descriptor >= 0 else self._parent)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def attributes_of(descriptor: int) -> dict[str, bytes]:
    """The extended attributes of an opened file that belong to its content."""
    try:
        names = [name for name in os.listxattr(descriptor) if name == "security.capability" or name.startswith("user.")]
        return {name: os.getxattr(descriptor, name) for name in names}
    except OSError:  # the file system has none
        return {}


def _write_tree(first: _Entry, target: int) -> None:
    """Write all that is in a directory into an empty one, and describe that like it; deep trees are no recursion."""
    links: dict[tuple[int, int], bytes] = {}
    trail = [(first, os.dup(target), b"", first.children())]
    try:
        while trail:
            directory, here, path, children = trail[-1]
            entry = next(children, None)
            if entry is None:
                _describe(here, directory)
                directory.close()
                os.close(trail.pop()[1])
            elif stat.S_ISDIR(entry.mode):
                os.mkdir(entry.name, 0o700, dir_fd=here)
                trail.append((entry, os.open(entry.name, _DIRECTORY, dir_fd=here), path + entry.name + b"/", entry.children()))
            elif entry.link in links and entry.link is not None:
                os.link(links[entry.link], entry.name, src_dir_fd=target, dst_dir_fd=here, follow_symlinks=False)
            else:
                _write_file(entry, here)
                if entry.link is not None and stat.S_ISREG(entry.mode):
                    links[entry.link] = path + entry.name
    finally:
        for directory, here, _, _ in trail:
            directory.close()
            os.close(here)


def _write_file(entry: _Entry, parent: int) -> None:
    """Everything but a directory."""
    if stat.S_ISREG(entry.mode):
        descriptor = os.open(entry.name, _FILE, 0o600, dir_fd=parent)
        try:
            entry.write_content(descriptor)
            _describe(descriptor, entry)
        finally:
            os.close(descriptor)
            entry.close()
        return
    if stat.S_ISLNK(entry.mode):
        os.symlink(entry.target(), entry.name, dir_fd=parent)
    elif stat.S_ISFIFO(entry.mode):
        os.mkfifo(entry.name, 0o600, dir_fd=parent)
    else:
        return
    _own(lambda user, group: os.chown(entry.name, user, group, dir_fd=parent, follow_symlinks=False), entry)
    if stat.S_ISFIFO(entry.mode):
        os.chmod(entry.name, stat.S_IMODE(entry.mode), dir_fd=parent)
    os.utime(entry.name, ns=(entry.modified_ns, entry.modified_ns), dir_fd=parent, follow_symlinks=False)


def _describe(descriptor: int, entry: _Entry) -> None:
    """Owner, mode, attributes and time of an opened file, in the order in which none undoes another."""
    _own(lambda user, group: os.fchown(descriptor, user, group), entry)
    os.fchmod(descriptor, stat.S_IMODE(entry.mode))
    for name, value in entry.attributes().items():
        with suppress(OSError):  # where the file system has none
            os.setxattr(descriptor, name, value)
    os.utime(descriptor, ns=(entry.modified_ns, entry.modified_ns))


def _own(act: Callable[[int, int], None], entry: _Entry) -> None:
    try:
        act(*entry.owner)
    except OSError as error:
        # An ordinary user without a range of ids has one only: everything is hers.
        if error.errno not in (errno.EINVAL, errno.EPERM):
            raise


@contextmanager
def _open(base: int | None, name: str) -> Iterator[int]:
    descriptor = os.open(name, _DIRECTORY, dir_fd=base)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
