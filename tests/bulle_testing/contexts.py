"""Contexts of builds as tables, and what an image holds as a table: what the tests of ``bulle build`` share."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(frozen=True)
class Same:
    """A hard link to another file of the context."""

    other: str


@dataclass(frozen=True)
class Mode:
    """A file or (with no content) a directory with a mode."""

    mode: int
    content: str | bytes | None = None


Files = Mapping[str, "str | bytes | Link | Same | Mode | None"]
"""By path: a text or bytes for a file, None for a directory, or one of the classes above."""


def fill(directory: Path, files: Files) -> Path:
    """Make the files of a context; parents come by themselves. Modes are the same whatever the umask is."""
    directory.mkdir(exist_ok=True)
    directory.chmod(0o755)
    for name, what in files.items():
        path = directory / name
        for parent in reversed(path.parents):
            if not parent.exists():
                parent.mkdir()
                parent.chmod(0o755)
        content = what.content if isinstance(what, Mode) else what
        if isinstance(content, Link):
            path.symlink_to(content.target)
            continue
        if isinstance(content, Same):
            os.link(directory / content.other, path)
            continue
        if content is None:
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(what.mode if isinstance(what, Mode) else 0o755 if content is None else 0o644)
    return directory


def archive(files: Files, compression: str = "", owner: tuple[int, int] = (0, 0)) -> bytes:
    """A tar of such files, compressed with gz, bz2 or xz; the same bytes each time but for gz."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=f"w:{compression}") as tar:
        for name, what in files.items():
            member = tarfile.TarInfo(name)
            member.uid, member.gid = owner
            member.mtime = 1_600_000_000
            content = what.content if isinstance(what, Mode) else what
            member.mode = what.mode if isinstance(what, Mode) else 0o755 if content is None else 0o644
            if isinstance(content, Link):
                member.type, member.linkname = tarfile.SYMTYPE, content.target
            elif isinstance(content, Same):
                member.type, member.linkname = tarfile.LNKTYPE, content.other
            elif content is None:
                member.type = tarfile.DIRTYPE
            else:
                content = content.encode() if isinstance(content, str) else content
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return out.getvalue()


_OF_THE_RUNTIME = ("dev", "proc", "sys", ".dockerenv", "etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/mtab")
_KINDS = {b"0": "file", b"1": "file", b"2": "link", b"3": "character device", b"4": "block device", b"5": "directory", b"6": "fifo"}


def tree(tar: bytes) -> dict[str, tuple[object, ...]]:
    """What a tar of a root filesystem holds, by path, times left out, and what a runtime adds. Names of one file all say the first of them."""
    found: dict[str, tuple[object, ...]] = {}
    first: dict[str, list[str]] = {}
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        for member in opened:
            path = os.path.normpath(member.name.lstrip("/"))
            if path == "." or path in _OF_THE_RUNTIME or path.startswith(("dev/", "proc/", "sys/")):
                continue
            if member.islnk():
                first.setdefault(os.path.normpath(member.linkname.lstrip("/")), []).append(path)
                continue
            content = opened.extractfile(member) if member.isreg() else None
            what: object = hashlib.sha256(content.read()).hexdigest()[:12] if content is not None else member.linkname
            if member.ischr() or member.isblk():
                what = (member.devmajor, member.devminor)
            mode = 0o777 if member.issym() else member.mode & 0o7777  # docker writes the type as well
            capability = member.pax_headers.get("SCHILY.xattr.security.capability", "").encode("utf-8", "surrogateescape")
            found[path] = (_KINDS[member.type], oct(mode), member.uid, member.gid, what, capability)
    for path, others in first.items():
        names = sorted([path, *others])
        for name in names:
            found[name] = (*found[path], names[0])
    return found
