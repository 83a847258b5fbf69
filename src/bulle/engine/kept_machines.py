"""A machine that was kept as three files: its memory and devices, what is known of it, and its disk. For ``fork``, snapshots and states.

They belong together, and are in one host directory: work in progress, a snapshot's, or a container's writable layer, where its next start goes on
from them. Whoever brings them from elsewhere compares digests first. A disk's digest is that of its content packed (:func:`pack`), which does not
depend on where the file has holes.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from bulle.errors import BulleError, Conflict, CorruptImage, Unsupported, from_parts
from bulle.isolation.microvm.checkpoint import DISK_NAME, KEPT_NAME, SHOWS_DIRECTORIES, STATE_NAME
from bulle.linux.file_content import copy_content
from bulle.model.run_plan import RunPlan
from bulle.store import Store
from bulle.store.failures import storage_errors
from bulle.store.workspace import remove_tree

if TYPE_CHECKING:
    from bulle.engine.container import Container

NAMES = (STATE_NAME, KEPT_NAME, DISK_NAME)
_PATIENCE_S = 120.0
_BLOCK_BYTES = 65536
_ZEROS = bytes(_BLOCK_BYTES)
_MOST_DISK_BYTES = 1 << 43
_NUMBER = struct.Struct("<Q")


def why_not(plan: RunPlan) -> str:
    """Why the memory of a machine of this plan cannot be kept; empty where it can."""
    if plan.guest is None:
        return "it is the memory of this machine's kernel"
    if plan.guest.whole is not None:
        return "it has a system of its own"
    if any(mount.kind != "tmpfs" for mount in plan.mounts):
        return SHOWS_DIRECTORIES
    return "its instructions are shown (--trace)" if plan.guest.trace else ""


def keeps_memory(container: Container, notes: list[str], *, disk_only: bool) -> bool:
    """Whether memory is kept with a container: that of a machine which runs, where it can be kept; where it cannot, ``notes`` say why."""
    plan = container.plan
    if disk_only or plan.guest is None or plan.guest.whole is not None or container.state().status != "running" or container.is_paused():
        return False
    why = why_not(plan)
    if why:
        notes.append(f"its memory is not kept: {why}")
    return not why


def require_running(container: Container, what: str) -> None:
    """Raise Conflict unless it runs and does not stand still."""
    if container.state().status != "running" or container.is_paused():
        state = "paused" if container.is_paused() else "not running"
        raise Conflict(f"container {container.name} is {state}", "", f"only a running one can be {what}")


def keep(container: Container, place: Path) -> None:
    """Keep a running machine in a directory (host path), all of it from one moment. It stands still meanwhile, and goes on also where this is killed.

    Raises Unsupported, Conflict, StorageFull, BulleError as the machine says it.
    """
    if why := why_not(container.plan):
        raise Unsupported(f"memory that can be kept ({why})", container.plan.isolation, "leave the memory out")
    disk = f"{container.plan.root.writable_host_path}/{DISK_NAME}"
    with (
        storage_errors("the machine could not be kept"),
        standing_still(container, place),
        open(disk, "rb") as source,
        open(place / DISK_NAME, "xb") as target,
    ):
        copy_content(source.fileno(), target.fileno())


@contextmanager
def standing_still(container: Container, place: Path) -> Iterator[None]:
    """Have a machine's memory kept in a directory (host path), and stand still in the block. Raises BulleError as the machine says it."""
    import socket

    import msgspec

    from bulle.isolation.microvm import sessions

    with ExitStack() as stack:
        files = [stack.enter_context(open(place / name, "xb")) for name in (STATE_NAME, KEPT_NAME)]
        try:
            line = stack.enter_context(sessions.connect(container.directory))
        except OSError as error:
            raise Conflict(f"container {container.name} is not running", "its machine has ended", "start it first") from error
        line.settimeout(_PATIENCE_S)
        try:
            socket.send_fds(line, [msgspec.json.encode(sessions.KeepRequest())], [file.fileno() for file in files])
            answer = line.recv(1 << 18)
        except OSError as error:
            raise BulleError(f"the machine of {container.name} could not be kept", f"it does not answer ({error})", "see `bulle why`") from error
        word = sessions.words.decode(answer) if answer else sessions.Word("error", parts=("the machine ended", "while it was kept"))
        if word.kind == "error":
            raise from_parts(word.parts)
        yield


def put(place: Path, plan: RunPlan, names: Iterable[str] = NAMES) -> None:
    """Move what was kept in a directory (host path) into the writable layer of a container that has just been made."""
    for name in names:
        os.rename(place / name, f"{plan.root.writable_host_path}/{name}")


@contextmanager
def copied(store: Store, source: Path, digests: Mapping[str, str], names: Iterable[str] = NAMES) -> Iterator[Path]:
    """A directory (host path) with copies of these files, which are what they were; it is gone behind the block. Raises CorruptImage, StorageFull."""
    place = store.temporary_directory()
    try:
        for name in names:
            with storage_errors("the machine that was kept could not be copied"):
                _copy(source / name, place / name)
            if digest(place, name) != digests.get(name):
                raise damaged(f"its {name} is not what was written")
        yield place
    finally:
        remove_tree(place)


def _copy(source: Path, target: Path) -> None:
    if not source.exists():
        raise damaged(f"{source.name} is missing")
    with source.open("rb") as file, target.open("xb") as copy:
        copy_content(file.fileno(), copy.fileno())


def damaged(why: str) -> CorruptImage:
    """What was kept is not what it was."""
    return CorruptImage("the machine that was kept is damaged", why, "it cannot be begun; remove it")


def digests(place: Path) -> dict[str, str]:
    """Of all files of a machine in a directory (host path), by their names."""
    return {name: digest(place, name) for name in NAMES}


def digest(place: Path, name: str) -> str:
    """SHA-256 of one of the files."""
    with open(place / name, "rb") as file:
        if name != DISK_NAME:
            return hashlib.file_digest(file, "sha256").hexdigest()
        found = hashlib.sha256()
        for chunk in pack(file.fileno()):
            found.update(chunk)
        return found.hexdigest()


def pack(descriptor: int) -> Iterator[bytes]:
    """The content of a disk: its size, and each block of it that is not empty, behind its place. The same for the same content."""
    size, position = os.fstat(descriptor).st_size, 0
    yield _NUMBER.pack(size)
    while position < size:
        try:
            position = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError:
            return  # nothing but a hole is left
        position -= position % _BLOCK_BYTES
        end = os.lseek(descriptor, position, os.SEEK_HOLE) if os.lseek(descriptor, position, os.SEEK_DATA) == position else position + 1
        while position < end:
            block = os.pread(descriptor, _BLOCK_BYTES, position)
            if block != _ZEROS[: len(block)]:
                yield _NUMBER.pack(position)
                yield block
            position += _BLOCK_BYTES


def unpack(stream: IO[bytes], descriptor: int) -> None:
    """Write what :func:`pack` made to an empty file. Raises ValueError for anything else."""
    size = _number(stream.read(_NUMBER.size))
    if size > _MOST_DISK_BYTES:
        raise ValueError("the disk is too large")
    os.ftruncate(descriptor, size)
    at = -_BLOCK_BYTES
    while head := stream.read(_NUMBER.size):
        last, at = at, _number(head)
        block = stream.read(_BLOCK_BYTES)
        if at % _BLOCK_BYTES or not last < at < size or len(block) != min(_BLOCK_BYTES, size - at):
            raise ValueError("the disk is damaged")
        os.pwrite(descriptor, block, at)


def _number(head: bytes) -> int:
    if len(head) != _NUMBER.size:
        raise ValueError("the disk is cut off")
    number: int = _NUMBER.unpack(head)[0]
    return number
