"""Templates: the state of a machine that has booted and shows its image, kept so that the next one like it begins there instead of at power-on.

The first machine of a kind that is started with ``--start template`` boots, and leaves its memory and its devices' state here, before anything of a
container is in it: no disk that is written to, no address, no command. A later one has that memory as its own, copied page by page when it writes;
until then all of them share it. What was remembered of time and randomness is replaced before the command runs.

One directory for each kind, below the home's cache, named by a digest of everything that the state depends on: QEMU, kernel, agent, devices, layers,
this machine. ``known.json`` is written last: without it there is no template. Memory goes to QEMU as a memfd that is sealed against writing, since a
hypervisor opens its memory for writing: not even one that a guest broke into can change what others begin with. memfd_create(2), fcntl(2)
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from bulle.errors import StorageFull
from bulle.isolation.microvm.sessions import TemplateRequest, connect
from bulle.linux.file_content import copy_content

_MOST_KEPT = 8
_F_ADD_SEALS, _SEALS = 1033, 0x1 | 0x2 | 0x4 | 0x8  # F_SEAL_SEAL, SHRINK, GROW, WRITE: linux/fcntl.h
_PATIENCE_S = 2.0


class Known(msgspec.Struct, frozen=True):
    """What was found out of the machine before it was kept: its disks' device nodes by serial, its interfaces' names in the order of the plan.

    ``files``, of one whose root stands, are the contents of those that are looked at before a command runs; None for one that is not there.
    """

    disks: dict[str, str]
    interfaces: tuple[str, ...]
    files: dict[str, bytes | None] = {}


@dataclass(frozen=True)
class Template:
    """``memory`` and ``state`` are open files, ``remembered`` is that of ``known``, which is None where this machine is the one that is kept.

    ``source`` is what :func:`fill` has to copy into the memory first. Where one is kept, ``kept`` takes its memory, ``kept_disk`` what is on its
    disk, and ``lock`` is held so that no other is kept meanwhile. ``fresh``: nothing was ever written by the container, so that its root stands in
    the template too, and its disk is a copy. A generic one is a machine that booted and has no image: another's memory is where it is begun.
    """

    key: str
    memory: int
    state: int
    fresh: bool
    known: Known | None = None
    source: int = -1
    kept: int = -1
    kept_disk: int = -1
    remembered: int = -1
    lock: int = -1

    @property
    def descriptors(self) -> tuple[int, ...]:
        """All that are open."""
        return tuple(one for one in (self.memory, self.state, self.source, self.kept, self.kept_disk, self.remembered, self.lock) if one >= 0)


_decoder = msgspec.json.Decoder(Known)
_KNOWN, _MEMORY, _STATE, _DISK, _LAST = "known.json", "memory", "state", "disk", "last"


def key_of(parts: object) -> str:
    """The name of the template for everything that the state of a machine depends on."""
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:32]


def identity(path: str) -> tuple[str, int, int]:
    """A file of the host, as it is now."""
    status = os.stat(path)
    return path, status.st_size, status.st_mtime_ns


def prepare(place: Path, key: str, memory_bytes: int, container_directory: str, fresh_disk: int, opened: ExitStack) -> Template | None:
    """The template, or what takes one; None where another machine is just making it. ``place`` is a host directory; ``opened`` closes everything.

    ``fresh_disk`` is the disk of a container that never ran, which becomes as the template's is; -1 for one that did.
    """

    def keep(descriptor: int) -> int:
        opened.callback(os.close, descriptor)
        return descriptor

    path = place / key
    known, made = _found(place, key, keep)
    if known is None:
        return made and replace(made, memory=keep(_memory(memory_bytes)), fresh=fresh_disk >= 0)
    memory = _borrowed(path, key)
    source = keep(os.open(path / _MEMORY, os.O_RDONLY | os.O_CLOEXEC)) if memory < 0 else -1
    memory = keep(memory if memory >= 0 else _memory(memory_bytes))
    remembered = keep(os.open(path / _KNOWN, os.O_RDWR | os.O_CLOEXEC))
    if fresh_disk >= 0:
        os.ftruncate(fresh_disk, 0)
        with open(path / _DISK, "rb") as disk:
            copy_content(disk.fileno(), fresh_disk)
    state = keep(os.open(path / _STATE, os.O_RDONLY | os.O_CLOEXEC))
    os.utime(path / _KNOWN)
    aside = path / f"{_LAST}.{os.getpid()}"
    aside.write_text(container_directory)
    aside.rename(path / _LAST)
    return Template(key, memory, state, fresh_disk >= 0, known, source, remembered=remembered)


def prepare_generic(place: Path, key: str, opened: ExitStack) -> Template | None:
    """The same for one without an image, whose memory that of another template begins with, or which takes it in passing."""

    def keep(descriptor: int) -> int:
        opened.callback(os.close, descriptor)
        return descriptor

    known, made = _found(place, key, keep)
    if known is None:
        return made
    source, state = (keep(os.open(place / key / name, os.O_RDONLY | os.O_CLOEXEC)) for name in (_MEMORY, _STATE))
    remembered = keep(os.open(place / key / _KNOWN, os.O_RDWR | os.O_CLOEXEC))
    os.utime(place / key / _KNOWN)
    return Template(key, -1, state, fresh=False, known=known, source=source, remembered=remembered)


def _found(place: Path, key: str, keep: Callable[[int], int]) -> tuple[Known | None, Template | None]:
    """What is known of a template; where there is none, what it is to be kept in, or None where another machine is just making it."""
    path = place / key
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    known = _read(path)
    if known is not None:
        return known, None
    lock = keep(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until the last of those who inherit it has ended or let go
    except BlockingIOError:
        return None, None
    known = _read(path)  # one that was made meanwhile
    if known is not None:
        return known, None
    forget_oldest(place, _MOST_KEPT - 1)
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    kept, disk, state, remembered = (keep(os.open(path / name, flags, 0o600)) for name in (_MEMORY, _DISK, _STATE, _KNOWN))
    return None, Template(key, -1, state, fresh=False, kept=kept, kept_disk=disk, remembered=remembered, lock=lock)


def _read(path: Path) -> Known | None:
    try:
        return _decoder.decode((path / _KNOWN).read_bytes())
    except (OSError, msgspec.DecodeError):
        return None


def forget_oldest(place: Path, most: int) -> None:
    """Leave so many templates, those used last. Machines that were begun from one go on."""
    found = []
    for one in place.iterdir():
        with suppress(FileNotFoundError):
            found.append(((one / _KNOWN).stat().st_mtime_ns, one))
    for _time, path in sorted(found, reverse=True)[most:]:
        shutil.rmtree(path, ignore_errors=True)


def finish(template: Template, known: Known, memory: int, disk: int) -> None:
    """Keep a machine that stands still, its state written: its memory and disk, and then what makes it a template. Raises StorageFull."""
    try:
        copy_content(memory, template.kept)
        if template.fresh:
            copy_content(disk, template.kept_disk)
        for descriptor in (template.kept, template.kept_disk, template.state):
            os.fdatasync(descriptor)
        os.pwrite(template.remembered, msgspec.json.encode(known), 0)
    except OSError as error:
        raise StorageFull("the machine could not be kept as a template", error.strerror or "", "free some space") from error


def fill(template: Template, memory: int) -> None:
    """Have a machine's memory be the template's, while its hypervisor starts, before anything runs in it. Raises StorageFull.

    Nobody can change the template's own from then on; what a generic one is copied into becomes another template's.
    """
    if template.source < 0:
        return
    try:
        copy_content(template.source, memory)
        if memory == template.memory:
            fcntl.fcntl(memory, _F_ADD_SEALS, _SEALS)
    except OSError as error:
        raise StorageFull("the template of the machine could not be read", error.strerror or "", "free some memory") from error
    os.close(template.source)


def forget(template: Template) -> None:
    """Have the next machine boot, because this one could not begin with what was kept."""
    os.ftruncate(template.remembered, 0)


def give_up(template: Template) -> None:
    """Give back the space of a machine that could not be kept."""
    for descriptor in (template.kept, template.kept_disk, template.state):
        os.ftruncate(descriptor, 0)


def share(template: Template | None, client: socket.socket, key: str) -> None:
    """Hand out the memory that a machine was begun from, if it is that of this template: it is sealed, whoever has it can only read."""
    with client:
        if template is not None and template.known is not None and template.key == key:
            socket.send_fds(client, [b"{}"], [template.memory])


def _memory(size: int) -> int:
    descriptor = os.memfd_create("bulle-memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    os.fchmod(descriptor, 0o666)  # the hypervisor is somebody else, and gets it from here only
    return descriptor


def _borrowed(path: Path, key: str) -> int:
    """The memory that the machine which was begun last has, so that both share it; -1 where there is none."""
    with suppress(OSError, ValueError), connect((path / _LAST).read_text(), blocking=False) as line:
        line.settimeout(_PATIENCE_S)
        line.send(msgspec.json.encode(TemplateRequest(key)))
        _data, descriptors, _flags, _address = socket.recv_fds(line, 64, 1)
        if descriptors:
            os.set_inheritable(descriptors[0], False)
            return descriptors[0]
    return -1
