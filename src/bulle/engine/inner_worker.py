"""A forked child that works in a container's root filesystem, and the line to it.

``cp``, ``export`` and the like speak with it over a socket: what belongs to the host stays on this side, what belongs to the container on that side.
It ends when its work is done, or when this side closes the line (also by dying). How it gets there is ``isolation.root_access``'s business.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import msgspec

from bulle.engine.starting import take_lock
from bulle.errors import BulleError, Conflict, CorruptImage, NotFound, from_parts, to_parts
from bulle.linux import process, user_namespace
from bulle.model.run_plan import IdMapping, RunPlan
from bulle.monitor import current_state
from bulle.store import Store

if TYPE_CHECKING:
    from pathlib import Path

_PATIENCE_S = 15.0
_CHUNK_BYTES = 1 << 18
_LENGTH = struct.Struct("<I")

Work = Callable[[int, "Line"], None]
"""What the child does with the descriptor of the root and its end of the line."""


class Line:
    """One end of the line: messages, then perhaps a stream of bytes until its end."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self.reading: BinaryIO = cast("BinaryIO", end.makefile("rb", buffering=_CHUNK_BYTES))

    def close(self) -> None:
        """Close this end."""
        self.reading.close()
        self._end.close()

    def send(self, message: object) -> None:
        """One message, as JSON."""
        content = msgspec.json.encode(message)
        self._end.sendall(_LENGTH.pack(len(content)) + content)

    def receive(self) -> Any:
        """The next message; EOFError where the other side is gone."""
        head = self.reading.read(_LENGTH.size)
        if len(head) < _LENGTH.size:
            raise EOFError
        return msgspec.json.decode(self.reading.read(_LENGTH.unpack(head)[0]))

    def write(self, chunk: bytes) -> int:
        """A piece of the stream."""
        self._end.sendall(chunk)
        return len(chunk)

    def end_stream(self) -> None:
        """No more comes from this side."""
        self._end.shutdown(socket.SHUT_WR)


@contextmanager
def working(home: Path, plan: RunPlan, name: str, work: Work, *, merged: bool = False) -> Iterator[Line]:
    """The line to a child that does ``work`` in the root of a container, running or not; leaving the block waits for its end.

    With ``merged`` the child sees its layers and writable layer without any mount in them, and cannot write. What the child raises is raised here, in
    place of what its silence led to on this side (an end of the stream, an archive cut short).
    """
    lock = pidfd = -1
    try:
        if merged:
            require_writable_layer(plan)
        else:
            pidfd, lock = _seize(plan, name)
            if pidfd < 0 and os.path.exists(plan.root.memory_host_path):
                raise Conflict(f"the files of {name} cannot be reached", "it goes on from its memory, which fits them as they are", "start it first")
        mappings = mappings_of(plan) if os.geteuid() != 0 and pidfd < 0 else None
        with _forked(lambda: _enter(home, plan, pidfd, merged), work, mappings) as line:
            yield line
    finally:
        for descriptor in (lock, pidfd):
            if descriptor >= 0:
                os.close(descriptor)


Mappings = tuple[Sequence[IdMapping], Sequence[IdMapping]]


def mappings_of(plan: RunPlan) -> Mappings:
    """The users and groups of a container's user namespace."""
    return plan.security.id_mappings, plan.security.group_mappings or plan.security.id_mappings


@contextmanager
def beside(mappings: Mappings, work: Callable[[Line], None]) -> Iterator[Line]:
    """The line to a child that looks at containers' files on the host as the root of their users, which an ordinary user needs to be."""
    with _forked(lambda: -1, lambda _root, line: work(line), mappings if os.geteuid() != 0 else None) as line:
        yield line


def require_writable_layer(plan: RunPlan) -> None:
    """Raise Unavailable where a running container's writable layer is not on the disk."""
    from bulle.isolation import root_access

    state = current_state(plan.state_host_path)
    if state.status == "running" and plan.guest is None and root_access.root_copy(plan) is None:
        root_access.require_writable_layer(plan, state.pid)


@contextmanager
def kept_from_starting(plan: RunPlan, name: str) -> Iterator[None]:
    """While it lasts nobody starts the container. Raises Conflict where it runs."""
    pidfd, lock = _seize(plan, name)
    try:
        if pidfd >= 0:
            raise Conflict(f"container {name} was started meanwhile", "", "do it again")
        yield
    finally:
        os.close(pidfd if pidfd >= 0 else lock)


def _seize(plan: RunPlan, name: str) -> tuple[int, int]:
    """The first process's pidfd where the container runs, else the lock that keeps it from being started meanwhile."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        state = current_state(plan.state_host_path)
        if state.status == "running":
            pidfd = process.open_process(state.pid, state.pid_start_ticks)
            if pidfd is not None:
                return pidfd, -1
        else:
            try:
                lock = take_lock(plan.state_host_path, _PATIENCE_S)
            except FileNotFoundError:
                raise NotFound(f"no such container: {name}", "it was removed meanwhile") from None
            if lock >= 0:
                if current_state(plan.state_host_path).status != "running":
                    return -1, lock
                os.close(lock)
        time.sleep(0.01)
    raise Conflict(f"container {name} is busy", "it is being started, or something else is copied", "wait a moment")


def _enter(home: Path, plan: RunPlan, pidfd: int, merged: bool) -> int:
    from bulle.isolation import root_access

    if pidfd >= 0:
        return root_access.running_root(plan, pidfd)
    enter = root_access.merged_view if merged else root_access.stopped_root

    def mount_layers() -> None:
        from bulle.records.database import Database

        Store(home, Database(home)).layers.mount((*plan.root.layers, *plan.volume_layers))

    return enter(plan, mount_layers, rootless_user=os.geteuid() != 0 or _in_user_namespace)


_in_user_namespace = False


@contextmanager
def _forked(enter: Callable[[], int], work: Work, mappings: Mappings | None) -> Iterator[Line]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be_child(enter, work, ours, theirs, writing, mappings)
    theirs.close()
    os.close(writing)
    line = Line(ours)
    failed: BaseException | None = None
    try:
        yield line
    except (OSError, EOFError, BulleError, ValueError) as error:
        failed = error
    finally:
        line.close()
        said = _read_all(reading)
        status = os.waitpid(pid, 0)[1]
    if said and (failed is None or isinstance(failed, CorruptImage) or not isinstance(failed, BulleError)):
        raise from_parts(said.decode(errors="replace").split("\0")) from failed
    if failed is not None and not isinstance(failed, EOFError):
        raise failed
    if failed is not None or status:
        raise BulleError("the copy was interrupted", "the process at work in the container's files was killed") from failed


def _be_child(
    enter: Callable[[], int], work: Work, ours: socket.socket, theirs: socket.socket, writing: int, mappings: Mappings | None
) -> None:
    global _in_user_namespace
    code = 1

    def do() -> None:
        with suppress(BrokenPipeError, ConnectionResetError, EOFError):  # nobody is there any more to be told
            work(enter(), Line(theirs))

    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever waits is told, and closes the line
        ours.close()
        if mappings is not None:
            _in_user_namespace = True
            user_namespace.call(*mappings, do)
        else:
            do()
        code = 0
    except BaseException as error:  # noqa: BLE001 -- told to the parent
        text = f"{error.strerror} ({error.filename})" if isinstance(error, OSError) and error.filename else str(error)
        kind = error if isinstance(error, BulleError) else BulleError("the container's files cannot be reached", text or type(error).__name__)
        os.write(writing, "\0".join(to_parts(kind)).encode("utf-8", "replace")[:60000])
    finally:
        os._exit(code)


def _read_all(descriptor: int) -> bytes:
    content = b""
    try:
        while chunk := os.read(descriptor, 65536):
            content += chunk
    finally:
        os.close(descriptor)
    return content
