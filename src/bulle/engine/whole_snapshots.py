"""Snapshots of machines with a system of their own: the files that such a machine is made of, beside them in its directory.

They are its disk, its firmware's variables and its seed, copied while it stands still (blocks are shared where the file system can), and there before
the snapshot's row is: a directory without a row is nobody's, and is swept. Called by :mod:`bulle.engine.rebasing`, which holds the container's lock.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bulle.engine.inner_worker import kept_from_starting
from bulle.errors import BulleError, Conflict, CorruptImage, StorageFull, from_parts
from bulle.linux.file_content import copy_content
from bulle.store.workspace import remove_tree

if TYPE_CHECKING:
    from bulle.engine.container import Container
    from bulle.model.run_plan import RunPlan
    from bulle.store import Store

_PATIENCE_S = 120.0
_PREFIX = "snapshot-"
_NO_SPACE = (28, 122)  # ENOSPC, EDQUOT


def is_whole(plan: RunPlan) -> bool:
    """Whether a container is such a machine."""
    return plan.guest is not None and plan.guest.whole is not None


def keep(container: Container, tag: str) -> int:
    """Copy a machine's files as they are at one moment, in which it stands still; returns the bytes that the copy takes.

    Raises Conflict for one that is paused, StorageFull; what it left then is to be swept.
    """
    place = _place(container.plan, tag)
    with _standing_still(container):
        _copy(Path(container.plan.root.writable_host_path), place)
    return sum(file.stat().st_blocks * 512 for file in place.iterdir())


@contextmanager
def copied(store: Store, plan: RunPlan, tag: str) -> Iterator[Path]:
    """A directory (host path) with a copy of the files that a snapshot has. Raises CorruptImage where they are damaged or gone, StorageFull."""
    from bulle.isolation.microvm import disk_formats

    source, place = _place(plan, tag), store.temporary_directory()
    try:
        try:
            with (source / "disk").open("rb") as disk:
                disk_formats.look(disk.fileno(), "its disk", "qcow2")
        except (OSError, BulleError) as error:
            why = f"{error.brief} ({error.details})" if isinstance(error, BulleError) else "its disk is gone"
            raise CorruptImage(f"the snapshot {tag} is damaged", why, "remove it: `bulle snapshot rm`") from error
        _copy(source, place / "files")
        yield place / "files"
    finally:
        remove_tree(place)


def put(files: Path, plan: RunPlan) -> None:
    """Have a machine's new directory hold these files."""
    for file in files.iterdir():
        file.rename(f"{plan.root.writable_host_path}/{file.name}")


def sweep(plan: RunPlan, tags: Collection[str]) -> None:
    """Remove what is of no snapshot: what was killed between its files and its row."""
    for entry in os.listdir(plan.state_host_path):
        if entry.startswith(_PREFIX) and entry.removeprefix(_PREFIX) not in tags:
            remove_tree(Path(plan.state_host_path, entry))


def _place(plan: RunPlan, tag: str) -> Path:
    return Path(plan.state_host_path, f"{_PREFIX}{tag}")


def _copy(source: Path, target: Path) -> None:
    """All files, to be found after a power cut too."""
    try:
        target.mkdir(mode=0o755)
        for file in source.iterdir():
            with file.open("rb") as old, open(target / file.name, "xb") as new:
                os.fchmod(new.fileno(), 0o600)
                copy_content(old.fileno(), new.fileno())
                os.fsync(new.fileno())
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise StorageFull("the machine's disk could not be copied", os.strerror(error.errno or 0), "free some space") from error


@contextmanager
def _standing_still(container: Container) -> Iterator[None]:
    """While it lasts nothing is written, and all that QEMU was told to write is in the files. Raises where that was not so to its end."""
    if container.state().status != "running":
        with kept_from_starting(container.plan, container.name):
            yield
        return
    if container.is_paused():
        raise Conflict(f"container {container.name} is paused", "it does not answer", f"let it go on first, with `bulle unpause {container.name}`")
    from bulle.isolation.microvm import sessions

    ended = BulleError(f"the machine {container.name} was not kept", "it ended meanwhile", "do it again")
    try:
        line = sessions.connect(container.directory)
    except OSError as error:
        raise ended from error
    with line:
        line.settimeout(_PATIENCE_S)
        try:
            sessions.send(line, sessions.StandRequest())
            answer = line.recv(1 << 18)
        except OSError as error:
            raise BulleError(f"the machine {container.name} was not kept", f"it does not answer ({error})", "see `bulle why`") from error
        if not answer:
            raise ended
        word = sessions.words.decode(answer)
        if word.kind == "error":
            raise from_parts(word.parts)
        yield
        line.settimeout(0)
        try:
            line.recv(1)
        except BlockingIOError:
            return  # it stands there still
        except OSError:
            pass
        raise ended
