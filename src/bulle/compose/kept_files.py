"""Secrets and configs: kept as files below the home, which nobody else can enter, and bound read-only into containers.

A file's name has a digest of what is in it, made with a key of the home, so that a container whose secret changed is recognised and nobody can try
what a short secret might be. What is in them stands nowhere else: not in the database, not in labels, not in a variable.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Collection, Iterator
from pathlib import Path

from bulle.compose.model import Project, Service
from bulle.compose.service_parts import FileReference
from bulle.errors import InvalidInput, NotFound
from bulle.model.volume import MountOption

_MODE = 0o444
_KEY = "key"


def directory_of(home: Path, project: str) -> Path:
    """Where the files of an app are kept (host path)."""
    return home / "apps" / project


def kept_files(home: Path, project: Project, service: Service) -> tuple[MountOption, ...]:
    """The mounts of a service's secrets and configs, kept now where they are not yet. Raises InvalidInput, NotFound with file and line."""
    return tuple(_keep(home, project, service, kind, number, one) for kind, number, one in _references(service))


def files_at_hand(home: Path, project: Project, service: Service) -> tuple[MountOption, ...]:
    """The same as they were kept last, without asking where they came from."""
    found = []
    for kind, number, one in _references(service):
        kept = sorted(directory_of(home, project.name).glob(f"{service.name}.{kind}.{number}.*"), key=lambda path: path.stat().st_mtime_ns)
        if not kept:
            raise NotFound(f"{kind[:-1]} {one.source} of service {service.name} is not kept any more", "", "run `bulle compose up` again")
        found.append(_mount(kept[-1], kind, one))
    return tuple(found)


def check_files(project: Project, service: Service) -> None:
    """Whether all of them can be read. Raises InvalidInput, NotFound with file and line."""
    for kind, _number, one in _references(service):
        _content(project, kind, one)


def sweep(home: Path, project: str, in_use: Collection[str]) -> None:
    """Remove the files of an app but those that are in use (host paths), and the directory where none is left."""
    directory = directory_of(home, project)
    if not directory.is_dir():
        return
    for path in directory.iterdir():
        if str(path) not in in_use:
            path.unlink(missing_ok=True)
    if not in_use:
        directory.rmdir()


def _references(service: Service) -> Iterator[tuple[str, int, FileReference]]:
    for number, one in enumerate(service.secrets):
        yield "secrets", number, one
    for number, one in enumerate(service.configs):
        yield "configs", number, one


def _keep(home: Path, project: Project, service: Service, kind: str, number: int, one: FileReference) -> MountOption:
    content = _content(project, kind, one)
    mode = _MODE if one.mode is None else one.mode
    owner = (_id(project, service, kind, number, one.uid), _id(project, service, kind, number, one.gid))
    digest = hashlib.blake2b(content + repr((mode, owner)).encode(), key=_key(home), digest_size=16).hexdigest()
    path = directory_of(home, project.name) / f"{service.name}.{kind}.{number}.{digest}"
    if not path.exists():
        path.parent.mkdir(mode=0o700, exist_ok=True)
        _write(path, content, mode, owner)
    return _mount(path, kind, one)


def _mount(path: Path, kind: str, one: FileReference) -> MountOption:
    below = "/run/secrets" if kind == "secrets" else ""
    target = one.target or one.source
    return MountOption(kind="bind", source=str(path), target=target if target.startswith("/") else f"{below}/{target}", read_only=True)


def _write(path: Path, content: bytes, mode: int, owner: tuple[int, int]) -> None:
    temporary = path.with_name(f".{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
        if os.geteuid() == 0:
            os.fchown(descriptor, *owner)
        os.fchmod(descriptor, mode & 0o777)
    temporary.rename(path)


def _id(project: Project, service: Service, kind: str, number: int, text: str) -> int:
    if text and (not text.isdecimal() or len(text) > 9):
        place = project.place("services", service.name, kind, number)
        raise InvalidInput(f"{place}: {text} is no user or group for a file", "", "write its number")
    return int(text or 0)


def _content(project: Project, kind: str, one: FileReference) -> bytes:
    known = project.secrets if kind == "secrets" else project.configs
    place = project.place(kind, one.source)
    if one.source not in known:
        raise InvalidInput(f"{place}: {kind[:-1]} {one.source} is not known", "", f"describe it below {kind}")
    source = known[one.source]
    if source.content is not None:
        return source.content.encode()
    if source.environment:
        if source.environment not in project.environment:
            raise NotFound(f"{place}: {kind[:-1]} {one.source} is empty", f"the variable {source.environment} is not set", "set it")
        return project.environment[source.environment].encode("utf-8", "surrogateescape")
    try:
        return Path(source.file).read_bytes()
    except OSError as error:
        raise NotFound(f"{place}: {kind[:-1]} {one.source} cannot be read", f"{source.file}: {error.strerror}", "make the file") from None


def _key(home: Path) -> bytes:
    """The key of this home, made at the first use."""
    path = home / "apps" / _KEY
    try:
        return path.read_bytes()
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        temporary = path.with_name(f".{secrets.token_hex(8)}")
        temporary.touch(0o600)
        temporary.write_bytes(secrets.token_bytes(32))
        try:
            os.link(temporary, path)  # whoever is second takes the first one's
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
        return path.read_bytes()
