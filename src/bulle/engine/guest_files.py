"""``cp`` for virtual machines: the same two lines as those to a container's files, to a guest's (:mod:`bulle.isolation.microvm.files`)."""

from __future__ import annotations

import errno
import os
import posixpath
import signal
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec
from msgspec.structs import replace

from bulle.engine import copy_ends
from bulle.engine.drivers import driver_for
from bulle.engine.starting import as_error, no_stdio, take_lock
from bulle.errors import BulleError, Conflict, InvalidInput, NotFound, StorageFull, from_parts, to_parts
from bulle.linux.fork import fork
from bulle.model.run_plan import Network, Resources, RunPlan
from bulle.monitor.state import current_state

if TYPE_CHECKING:
    from bulle.isolation.microvm.files import GuestFiles, Status

_PATIENCE_S = 60.0
_MOST_LINKS = 40
_READY = b"ready"


@contextmanager
def files_of(home: Path, plan: RunPlan, name: str) -> Iterator[GuestFiles]:
    """The files of a container that is a virtual machine. One that does not run is started without its command for as long as this lasts: its disk is
    for its own kind of kernel alone, never for the host's. Raises Conflict, Unsupported."""
    from bulle.isolation.microvm import checkpoint
    from bulle.isolation.microvm.files import GuestFiles

    if plan.guest is not None and plan.guest.whole is not None:
        from bulle.isolation.microvm.whole_shepherd import no_way_in

        raise no_way_in()
    directory = plan.state_host_path
    if current_state(directory).status == "running":
        if driver_for(plan.isolation, home).is_paused(plan):
            raise Conflict(f"the files of container {name} cannot be reached", "it is paused, and its kernel stands still too", "unpause it first")
        yield GuestFiles(directory)
        return
    if checkpoint.is_kept(plan.root.writable_host_path):
        why = "it goes on from its memory when it is started, and its disk is as that has it"
        raise Conflict(f"the files of container {name} cannot be reached", why, "start it first")
    lock = take_lock(directory, _PATIENCE_S)
    if lock < 0:
        raise Conflict(f"container {name} is being started", "", "wait a moment")
    try:
        with _idle_machine(home, plan):
            yield GuestFiles(directory)
    finally:
        os.close(lock)


@contextmanager
def _idle_machine(home: Path, plan: RunPlan) -> Iterator[None]:
    """A guest with the container's root and nothing that runs in it, held by a child of ours; with the block it writes everything and ends."""
    process = replace(plan.process, arguments=(), terminal=False, init=False, idle=True, user="", limits=(), working_directory="/")
    idle = replace(plan, process=process, network=Network(), resources=Resources(), root=replace(plan.root, volatile=False))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = fork()
    if pid == 0:
        try:
            ours.close()
            _hold(home, idle, theirs)
        finally:
            os._exit(0)
    theirs.close()
    with ours:
        try:
            word = ours.recv(1 << 16)
            if word != _READY:
                killed = BulleError("the machine could not be started", "its start was killed", "try again")
                raise from_parts(msgspec.json.decode(word)) if word else killed
            yield
        finally:
            with suppress(OSError):
                ours.shutdown(socket.SHUT_WR)  # and with this process's death too
            os.waitpid(pid, 0)


def _hold(home: Path, plan: RunPlan, line: socket.socket) -> None:
    os.setsid()  # whoever kills the command and its group leaves this to see the end of the line, and to have the machine write everything
    driver = driver_for(plan.isolation, home)
    try:
        workload = driver.start(plan, no_stdio())
    except (BulleError, OSError) as error:
        line.send(msgspec.json.encode(to_parts(error if isinstance(error, BulleError) else as_error(error))))
        return
    try:
        line.send(_READY)
        line.recv(1)
    finally:
        os.kill(workload.pid, signal.SIGTERM)
        os.waitpid(workload.pid, 0)
        driver.clean_up(plan)


class OutLine:
    """From the guest: once it is told the name of the copy, ``reading`` is its tar."""

    reading: BinaryIO

    def __init__(self, files: GuestFiles, path: str, cleanup: ExitStack) -> None:
        self._files = files
        self._path = path
        self._cleanup = cleanup

    def send(self, name: str) -> None:
        """Begin."""
        given = "" if name == "." else name
        # What the kernel only pretends to hold is left out, as from any copy.
        without = tuple(posixpath.join(given, one) for one in ("proc", "sys", "dev/pts")) if self._path.strip("/.") == "" else ()
        self.reading = self._cleanup.enter_context(self._files.tar_of(self._path, given, without=without))


class InLine:
    """To the guest: told whether the copy goes into what is there, it takes a tar."""

    def __init__(self, files: GuestFiles, path: str, owners: bool) -> None:
        self._files = files
        self._path = path
        self._owners = owners
        self._directory = path
        self._chunks: list[bytes] = []

    def send(self, into_directory: bool) -> None:
        """Say where."""
        self._directory = self._path if into_directory else copy_ends.split(self._path)[0]
        self._stack = ExitStack()
        self._writer = self._stack.enter_context(self._files.unpacking(self._directory, owners=self._owners))

    def write(self, chunk: bytes) -> int:
        """More of the tar."""
        self._writer.write(chunk)
        return len(chunk)

    def end_stream(self) -> None:
        """All was written: wait until it is there."""
        try:
            self._stack.close()
        except OSError as error:
            raise _failed(self._path, error) from None

    def receive(self) -> list[str]:
        """What was left out: nothing."""
        return []


@contextmanager
def reading(files: GuestFiles, path: str, follow: bool) -> Iterator[tuple[OutLine, bool, str]]:
    """What is at a container path: a line, whether it is a directory, and its name. Raises NotFound, InvalidInput."""
    _directory, name, insists = copy_ends.split(path)
    place = _resolved(files, path) if follow or insists else path
    found = _status(files, place)
    if found is None:
        raise NotFound(path)
    is_directory = stat.S_ISDIR(found.mode)
    if insists and not is_directory:
        raise InvalidInput(f"cannot copy {path}", "it is not a directory")
    if not (is_directory or stat.S_ISREG(found.mode) or stat.S_ISLNK(found.mode) or stat.S_ISFIFO(found.mode)):
        raise InvalidInput(f"cannot copy {path}", "it is a device or a socket")
    try:
        with ExitStack() as cleanup:
            yield OutLine(files, place, cleanup), is_directory, name
    except OSError as error:
        raise _failed(path, error) from None


@contextmanager
def writing(files: GuestFiles, path: str, owners: bool) -> Iterator[tuple[InLine, str, str]]:
    """A destination in the guest: a line, what is there (as :func:`bulle.engine.copy_ends.look` says it), and its name."""
    insists = copy_ends.split(path)[2]
    place = _resolved(files, path)
    directory, name, _ = copy_ends.split(place)
    found = _status(files, place)
    if found is None:
        there = _status(files, directory, follow=True)
        if there is None or not stat.S_ISDIR(there.mode):
            raise NotFound(path)
        what = "missing directory" if insists else ""
    else:
        what = "directory" if stat.S_ISDIR(found.mode) else "file"
        if insists and what == "file":
            raise InvalidInput(f"cannot copy to {path}", "it is not a directory")
    yield InLine(files, place, owners), what, name


def status_of(files: GuestFiles, path: str) -> copy_ends.FileStatus:
    """What is at a container path; a symlink as its last name is not followed. Raises NotFound."""
    found = _status(files, _resolved(files, path) if path.endswith(("/", "/.")) else path)
    if found is None:
        raise NotFound(path)
    return copy_ends.FileStatus(posixpath.basename(path.rstrip("/")), found.mode, found.size, found.modified_s * 1_000_000_000, found.target)


def _resolved(files: GuestFiles, path: str) -> str:
    """A path whose last name is no symlink; one that leads to nothing counts as what it would lead to."""
    for _ in range(_MOST_LINKS):
        found = _status(files, path)
        if found is None or not stat.S_ISLNK(found.mode):
            return path
        path = posixpath.normpath(posixpath.join(posixpath.dirname(path.rstrip("/")) or "/", found.target))
    raise InvalidInput(f"{path} leads nowhere", "too many symlinks")


def _status(files: GuestFiles, path: str, *, follow: bool = False) -> Status | None:
    try:
        return files.status(path, follow=follow)
    except NotADirectoryError:
        raise InvalidInput(f"cannot copy {path}", "a part of the path is not a directory") from None
    except OSError as error:
        raise _failed(path, error) from None


def _failed(path: str, error: OSError) -> BulleError:
    if error.errno == errno.EROFS:
        return BulleError(f"cannot copy to {path}", "it is read-only in the container")
    if error.errno == errno.ENOSPC:
        return StorageFull(f"cannot copy to {path}", os.strerror(error.errno), "the machine's disk is full")
    if error.errno == errno.ELOOP:
        return BulleError(f"cannot copy {path}", "a symlink is in the way", "name the directory that it leads to")
    return BulleError(f"cannot copy {path}", os.strerror(error.errno or 0))
