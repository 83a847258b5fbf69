"""Writes what a tar holds below a directory, through descriptors only: the way back of :mod:`bulle.registry.tree`.

Used by ``cp``, in a container's root and on the host alike. The directory is given as a descriptor; below it no symlink is ever followed, so that
whoever swaps names meanwhile leads nothing astray. A file appears under its name when it is whole. Devices are left out.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import tarfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import BinaryIO

from bulle.errors import BulleError, Conflict, CorruptImage, InvalidInput, StorageFull
from bulle.linux import process
from bulle.registry.compression import CHUNK_BYTES

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_XATTR = "SCHILY.xattr."
_NO_ID = 2**32 - 1


@dataclass(frozen=True)
class Rules:
    """How attributes are taken over.

    ``owners`` keeps the numbers of users and groups, with ``lenient`` where they exist; without it everything new belongs to ``owner`` (None: whoever
    writes). ``privileges`` keeps set-user-id bits and file capabilities. ``place`` is how errors name the directory.
    """

    owners: bool = False
    lenient: bool = False
    owner: tuple[int, int] | None = None
    privileges: bool = False
    place: str = ""


@dataclass
class TreeWriter:
    """One tar on its way below one directory.

    ``left_out`` are the names of what could not be written, ``root`` is what the archive says of the directory itself, which is left as it is.
    """

    directory: int
    rules: Rules
    left_out: list[str] = field(default_factory=list)
    root: tarfile.TarInfo | None = None
    _path: list[str] = field(default_factory=list)
    _opened: list[int] = field(default_factory=list)
    _directories: dict[tuple[str, ...], tarfile.TarInfo] = field(default_factory=dict)

    def write(self, stream: BinaryIO) -> None:
        """Write everything. Raises InvalidInput (names that leave the directory, what is no tar), Conflict, StorageFull, BulleError."""
        try:
            with tarfile.open(fileobj=stream, mode="r|", bufsize=CHUNK_BYTES, errorlevel=2) as archive:
                while (member := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # else it remembers all
                    self._member(archive, member)
            for parts, member in reversed(self._directories.items()):
                self._finish_directory(parts, member)
        except tarfile.ReadError as error:
            raise CorruptImage("the tar archive is damaged", str(error)) from None
        finally:
            self._leave(0)

    def _member(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        parts = tuple(part for part in member.name.split("/") if part not in ("", "."))
        if ".." in parts:
            raise InvalidInput("the archive contains a path that leaves its directory", f"{member.name!r} contains '..'")
        if not parts:
            self.root = member if member.isdir() else self.root
            return
        try:
            parent = self._enter(parts[:-1])
            if member.isdir():
                self._make_directory(parent, parts, member)
            elif member.isreg():
                self._replace(parent, parts, member, lambda temporary: self._make_file(archive, parent, temporary, member))
            elif member.issym():
                self._replace(parent, parts, member, lambda temporary: os.symlink(member.linkname, temporary, dir_fd=parent))
            elif member.islnk():
                self._make_link(parent, parts, member)
            elif member.isfifo():
                self._replace(parent, parts, member, lambda temporary: os.mkfifo(temporary, 0o600, dir_fd=parent))
            else:
                self.left_out.append(member.name)
        except OSError as error:
            raise self._explained(error, member.name) from error

    def _enter(self, parts: tuple[str, ...]) -> int:
        """The descriptor of a directory below ours; those on the way are kept open while members lie below them."""
        same = 0
        while same < min(len(parts), len(self._path)) and parts[same] == self._path[same]:
            same += 1
        self._leave(same)
        for part in parts[same:]:
            here = self._opened[-1] if self._opened else self.directory
            with suppress(FileExistsError):
                os.mkdir(part, 0o755, dir_fd=here)
            self._opened.append(os.open(part, _DIRECTORY, dir_fd=here))
            self._path.append(part)
        return self._opened[-1] if self._opened else self.directory

    def _leave(self, depth: int) -> None:
        while len(self._opened) > depth:
            os.close(self._opened.pop())
            self._path.pop()

    def _make_directory(self, parent: int, parts: tuple[str, ...], member: tarfile.TarInfo) -> None:
        try:
            os.mkdir(parts[-1], 0o700, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(parts[-1], dir_fd=parent, follow_symlinks=False).st_mode):
                raise Conflict(f"cannot overwrite non-directory {self._shown(parts)} with directory {member.name!r}") from None
        else:
            descriptor = os.open(parts[-1], _DIRECTORY, dir_fd=parent)
            try:
                self._own(descriptor, member)
            finally:
                os.close(descriptor)
        # Its mode and times come last: what is written into it would change them, or be refused.
        self._directories[parts] = member

    def _finish_directory(self, parts: tuple[str, ...], member: tarfile.TarInfo) -> None:
        with suppress(OSError):  # it was replaced meanwhile, by somebody or by the archive itself
            descriptor = os.open(parts[-1], _DIRECTORY, dir_fd=self._enter(parts[:-1]))
            try:
                if self.rules.owners:
                    self._own(descriptor, member)
                os.fchmod(descriptor, self._mode(member))
                os.utime(descriptor, ns=_times(member))
            finally:
                os.close(descriptor)

    def _make_file(self, archive: tarfile.TarFile, parent: int, temporary: str, member: tarfile.TarInfo) -> None:
        content = archive.extractfile(member)
        assert content is not None
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent)
        try:
            while chunk := content.read(CHUNK_BYTES):
                view = memoryview(chunk)
                while view:
                    view = view[os.write(descriptor, view) :]
            self._own(descriptor, member)
            self._set_attributes(descriptor, member)
            os.fchmod(descriptor, self._mode(member))
            os.utime(descriptor, ns=_times(member))
        finally:
            os.close(descriptor)

    def _make_link(self, parent: int, parts: tuple[str, ...], member: tarfile.TarInfo) -> None:
        source = tuple(part for part in member.linkname.split("/") if part not in ("", "."))
        if not source or ".." in source:
            raise InvalidInput("the archive contains a link that leaves its directory", repr(member.linkname))
        keep = os.dup(parent)
        try:
            there = self._enter(source[:-1])
            self._replace(
                keep, parts, None, lambda temporary: os.link(source[-1], temporary, src_dir_fd=there, dst_dir_fd=keep, follow_symlinks=False)
            )
        finally:
            os.close(keep)

    def _replace(self, parent: int, parts: tuple[str, ...], member: tarfile.TarInfo | None, make: Callable[[str], object]) -> None:
        """Make something under a name of its own, and give it its name once it is whole; what had the name is gone then."""
        name = parts[-1]
        with suppress(FileNotFoundError):
            if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                raise Conflict(f"cannot overwrite directory {self._shown(parts)} with non-directory")
        temporary = f".bulle-{secrets.token_hex(8)}"
        try:
            make(temporary)
            if member is not None and not member.isreg():
                self._describe_special(parent, temporary, member)
            if not _is_mount_point(parent, name):
                os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
            elif member is not None and member.isreg():
                _overwrite(parent, temporary, name)
            else:
                raise Conflict(f"cannot overwrite {self._shown(parts)}", "something is mounted there")
        finally:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=parent)

    def _describe_special(self, parent: int, name: str, member: tarfile.TarInfo) -> None:
        self._chown(lambda user, group: os.chown(name, user, group, dir_fd=parent, follow_symlinks=False), member)
        if member.isfifo():
            descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            os.fchmod(descriptor, self._mode(member))
            os.close(descriptor)
        os.utime(name, ns=_times(member), dir_fd=parent, follow_symlinks=False)

    def _own(self, descriptor: int, member: tarfile.TarInfo) -> None:
        self._chown(lambda user, group: os.fchown(descriptor, user, group), member)

    def _chown(self, act: Callable[[int, int], None], member: tarfile.TarInfo) -> None:
        owner = owner_of(member) if self.rules.owners else self.rules.owner
        if owner is None:
            return
        try:
            act(*owner)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EPERM, errno.EOVERFLOW):
                raise
            if self.rules.lenient and self.rules.owner is not None:
                act(*self.rules.owner)
                return
            raise InvalidInput(
                f"the owner of {member.name!r} cannot be kept", f"user {owner[0]} and group {owner[1]} do not exist there", "copy without -a"
            ) from None

    def _set_attributes(self, descriptor: int, member: tarfile.TarInfo) -> None:
        for key, value in member.pax_headers.items():
            name = key.removeprefix(_XATTR)
            if key.startswith(_XATTR) and (name.startswith("user.") or (name == "security.capability" and self.rules.privileges)):
                with suppress(OSError):  # where the file system has none
                    os.setxattr(descriptor, name, value.encode("utf-8", "surrogateescape"))

    def _mode(self, member: tarfile.TarInfo) -> int:
        return member.mode & (0o7777 if self.rules.privileges or member.isdir() else 0o1777)

    def _shown(self, parts: tuple[str, ...]) -> str:
        return repr("/".join((self.rules.place.rstrip("/"), *parts)))

    def _explained(self, error: OSError, name: str) -> BulleError:
        what = f"cannot write {self._shown(tuple(name.strip('/').split('/')))}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StorageFull(what, os.strerror(error.errno), "free some space")
        if error.errno == errno.EROFS:
            return Conflict(what, "it is marked read-only", "copy to a volume that may be written to")
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            return Conflict(what, "a directory on its way is none, or a symlink")
        return BulleError(what, os.strerror(error.errno or 0))


def owner_of(member: tarfile.TarInfo) -> tuple[int, int]:
    """The numbers of a member's user and group. Raises InvalidInput for what the kernel would take for something else: -1 is nobody's number."""
    if not (0 <= member.uid < _NO_ID and 0 <= member.gid < _NO_ID):
        raise InvalidInput(f"the owner of {member.name!r} cannot be kept", f"{member.uid}:{member.gid} is no user and group", "correct the archive")
    return member.uid, member.gid


def _is_mount_point(parent: int, name: str) -> bool:
    """Whether something is mounted on the very file. A rename from another mount namespace would take that mount away."""
    try:
        os.close(process.openat2(parent, name, os.O_PATH | os.O_NOFOLLOW, process.RESOLVE_NO_XDEV))
    except OSError as error:
        return error.errno == errno.EXDEV
    return False


def _overwrite(parent: int, source: str, name: str) -> None:
    reading = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        writing = os.open(name, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            while os.sendfile(writing, reading, None, CHUNK_BYTES):
                continue
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def _times(member: tarfile.TarInfo) -> tuple[int, int]:
    text = member.pax_headers.get("mtime", "")
    seconds, _, fraction = text.partition(".")
    try:
        if text and not text.startswith("-"):
            exact = int(seconds) * 1_000_000_000 + int(fraction[:9].ljust(9, "0"))
            return exact, exact
    except ValueError:
        pass
    whole = int(member.mtime) * 1_000_000_000
    return whole, whole
