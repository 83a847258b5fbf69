"""Starting a process of ours from any process, through the spawner: what the engine calls to get a monitor.

Safe in threads and quick in processes with a large heap, because the caller is not forked: the spawner forks itself. Where the spawner does not
serve the caller (see :class:`~bulle.spawner.protocol.Reason`), a fresh interpreter is started instead, or, where the caller has one thread only and
hands the function, a double fork.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bulle.errors import BulleError
from bulle.spawner.child import Entry
from bulle.spawner.launch import command_line, connect, connect_or_start, interpreter_directory
from bulle.spawner.mount_namespace import MountNamespace
from bulle.spawner.protocol import (
    Flag,
    MalformedRequestError,
    Reason,
    Reply,
    Request,
    current_limits,
    pack_request,
    read_reply,
    send_with_descriptors,
)

ATTEMPTS = 3
_attached: dict[int, socket.socket] = {}  # by pid: the child ends when its connection ends, at the latest with this process


class SpawnError(BulleError):
    """A process could not be started."""


def submit(
    home: Path,
    entry: str,
    argv: Sequence[str],
    descriptors: Sequence[int] = (),
    *,
    detached: bool = True,
    local: Entry | None = None,
    process_to_join: Callable[[Path], int | None] | None = None,
    environment: dict[bytes, bytes] | None = None,
) -> int:
    """Run ``entry`` with ``argv`` in a new process; returns its pid.

    ``descriptors`` are copied to it and stay the caller's. A detached child outlives the caller, has a leash, /dev/null for stdio and "/" as its
    directory; another one has the caller's stdio and directory, and ends with the caller. ``local`` is what the entry calls, for a double fork
    where there is no spawner; ``process_to_join`` then names a process whose mount namespace to share. Raises SpawnError.
    """
    reason = Reason.ASKED
    if os.environ.get("BULLE_NO_SPAWNER", "") in ("", "0"):
        for _ in range(ATTEMPTS):
            connection = connect_or_start(home)
            if connection is None:
                reason = Reason.UNREACHABLE
                break
            answer = _ask(connection, entry, argv, descriptors, detached, environment)
            if isinstance(answer, Reason):
                reason = answer
                break
            if answer:
                return answer
    if local is not None and threading.active_count() == 1 and sys.platform == "linux":
        return _fork(home, local, argv, descriptors, process_to_join)
    return _execute(home, entry, argv, descriptors, reason)


def _own_environment(detached: bool) -> Mapping[bytes, bytes]:
    """What a child has of its caller's environment: all; or nothing where it outlives the caller, and keeps the spawner's untouched."""
    return {} if detached else os.environb


def is_served(home: Path) -> bool:
    """Whether a spawner of ``home`` lives (its socket accepts); starts none."""
    connection = connect(home)
    if connection is None:
        return False
    connection.close()
    return True


def _ask(
    connection: socket.socket, entry: str, argv: Sequence[str], descriptors: Sequence[int], detached: bool, environment: dict[bytes, bytes] | None
) -> int | Reason:
    """The child's pid, or why there is none; 0: nothing was started and one may ask again."""
    own: list[int] = []
    cwd = b"/"
    if not detached:
        own.append(os.open(".", os.O_PATH | os.O_CLOEXEC))
        with contextlib.suppress(OSError):
            cwd = os.fsencode(os.getcwd())
    given = [*(() if detached else (0, 1, 2, *own)), *descriptors]
    request = Request(
        entry=entry,
        interpreter=interpreter_directory(),
        package=os.fsencode(Path(__file__).resolve().parents[1]),
        cwd=cwd,
        argv=[os.fsencode(argument) for argument in argv],
        environment=[name + b"=" + value for name, value in (_own_environment(detached) if environment is None else environment).items()],
        flags=Flag.LEASH if detached else Flag.ATTACHED,
        limits=current_limits(),
        descriptor_count=len(given),
    )
    pid = 0
    try:
        send_with_descriptors(connection, pack_request(request), given)
        while pid == 0:
            reply = read_reply(connection)
            if reply is None:
                return 0
            kind, value, descriptor = reply
            if descriptor >= 0:
                os.close(descriptor)
            if kind == Reply.BYPASS:
                return Reason(value)
            if kind == Reply.CHILD:
                pid = value
    except (BrokenPipeError, ConnectionResetError):
        return 0
    except MalformedRequestError as error:
        raise SpawnError("a process could not be started", str(error)) from error
    finally:
        for descriptor in own:
            os.close(descriptor)
        if detached or not pid:
            connection.close()
        else:
            _attached[pid] = connection
    return pid


def _fork(
    home: Path, local: Entry, argv: Sequence[str], descriptors: Sequence[int], process_to_join: Callable[[Path], int | None] | None
) -> int:
    """Run ``local`` in a grandchild with a session of its own."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    first = os.fork()
    if first == 0:
        try:
            os.setsid()
            pid = os.fork()
            if pid:
                os.write(write_end, pid.to_bytes(4, "little"))
                os._exit(0)
            os.close(write_end)
            own = _only(descriptors)
            become_detached(home, process_to_join)
            os._exit(local(list(argv), own, None) & 0xFF)
        except BaseException:  # noqa: BLE001 -- a child must not return into its caller's frames
            with contextlib.suppress(BaseException):
                sys.excepthook(*sys.exc_info())
        finally:
            os._exit(70)
    os.close(write_end)
    try:
        content = os.read(read_end, 4)
    finally:
        os.close(read_end)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(first, 0)
    if len(content) < 4:
        raise SpawnError("a process could not be started", "fork(2) was refused")
    return int.from_bytes(content, "little")


def become_detached(home: Path, process_to_join: Callable[[Path], int | None] | None) -> None:
    """What the spawner's children have from their birth, for a process that was born elsewhere: mount namespace, directory, silent stdio."""
    process = process_to_join(home) if process_to_join else None
    MountNamespace().enter(str(home), process)
    os.chdir("/")
    null = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    if null > 2:
        os.close(null)


def _only(descriptors: Sequence[int]) -> list[int]:
    """Close every descriptor but stdio and these, so that a long-lived child keeps no pipe of its caller open."""
    first = 3
    for descriptor in sorted(set(descriptors)):
        os.closerange(first, descriptor)
        first = max(first, descriptor + 1)
    os.closerange(first, 1 << 30)
    return list(descriptors)


def _execute(home: Path, entry: str, argv: Sequence[str], descriptors: Sequence[int], reason: Reason) -> int:
    """Run the entry in a fresh interpreter, the slow way that always works. Its descriptors are 3 and up."""
    arguments = command_line("--entry", entry, str(home), str(len(descriptors)), *argv)
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    # First out of the way, then into place: a descriptor may sit where another one must go.
    first_free = 3 + len(descriptors) + 1
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, first_free) for descriptor in (*descriptors, write_end)]
    try:
        actions = [(os.POSIX_SPAWN_DUP2, descriptor, 3 + number) for number, descriptor in enumerate(high)]
        first = os.posix_spawn(arguments[0], arguments, os.environ, file_actions=actions, setsigmask=())
    except OSError as error:
        os.close(read_end)
        raise SpawnError("a process could not be started", f"{error.strerror} (without a spawner: {reason.name.lower()})") from error
    finally:
        for descriptor in (*high, write_end):
            os.close(descriptor)
    try:
        content = os.read(read_end, 4)
    finally:
        os.close(read_end)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(first, 0)
    if len(content) < 4:
        raise SpawnError("a process could not be started", f"a fresh interpreter failed (without a spawner: {reason.name.lower()})")
    return int.from_bytes(content, "little")


def run_entry(arguments: Sequence[str], resolve: Callable[[str], Entry], process_to_join: Callable[[Path], int | None] | None) -> int:
    """The other side of the fresh interpreter: ``--entry NAME HOME COUNT ARGV...``; detaches, tells its pid, runs the entry."""
    _option, name, home, count, *argv = arguments
    descriptors = list(range(3, 3 + int(count)))
    answer = 3 + int(count)
    os.setsid()
    pid = os.fork()
    if pid:
        os.write(answer, pid.to_bytes(4, "little"))
        os._exit(0)
    _only(descriptors)
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    become_detached(Path(home), process_to_join)
    os._exit(resolve(name)(argv, descriptors, None) & 0xFF)
