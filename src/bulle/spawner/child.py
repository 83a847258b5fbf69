"""What a forked child does: it leaves the spawner behind, becomes what its caller asked for, runs its entry and reports the exit.

Called by :mod:`bulle.spawner.server` right after fork(2). A child is forked either for one request, or *blank*, ahead of it: then it waits on a
socket for its assignment, so that neither the fork nor most of its page copies are on the caller's way. It never returns into the server's loop.
"""

from __future__ import annotations

import contextlib
import gc
import marshal
import os
import resource
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from bulle.linux import scheduling
from bulle.linux.namespaces import CLONE_NEWNS, setns
from bulle.spawner.caller import Takeover, peer_credentials
from bulle.spawner.leash import Leash
from bulle.spawner.protocol import Reply, pack_reply, receive_with_descriptors

# An entry: (argv, descriptors beyond stdio, leash) -> exit code. It may also raise SystemExit.
Entry = Callable[[list[str], list[int], Leash | None], int]

BLANK_LIMIT = 64 << 10
READY = b"\1"  # from a blank child that has rehearsed

own_leash: Leash | None = None
"""The leash of this process, where it is a child of a spawner."""
callers_line = -1
"""The connection to the caller of this process, where one waits for it: the kernel knows who that is. SO_PEERCRED in unix(7)"""
afterwards: list[Callable[[], object]] = []
"""What this process does when its caller knows the end already: tidying that nobody should wait for."""


def return_to_callers_mounts() -> None:
    """Move this process, which has one thread yet, to the mount namespace that its caller is in; where there is no spawner or no right to, it stays.

    For a child that lives on and on, and itself asks the spawner: when the machine's mounts change the spawner takes another namespace, and whoever
    stands in an old one is a stranger to it, served by fresh interpreters only.
    """
    if callers_line < 0:
        return
    with contextlib.suppress(OSError):
        with socket.socket(fileno=os.dup(callers_line)) as line:
            pid, _uid, _gid = peer_credentials(line)
        namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.fstat(namespace).st_ino != os.stat("/proc/self/ns/mnt").st_ino:
                directory = os.getcwd()
                setns(namespace, CLONE_NEWNS)
                os.chdir(directory)
        finally:
            os.close(namespace)


@dataclass(slots=True)
class Assignment:
    """What a child is to do. ``descriptors``: the caller's, then its connection when attached, then the leash when it has one."""

    entry: str
    argv: list[bytes]
    environment: list[bytes]
    cwd: bytes
    attached: bool
    leashed: bool
    takeover: Takeover

    def pack(self) -> bytes:
        """The bytes for a blank child, which is a fork of the same code: marshal is safe and quick here."""
        over = self.takeover
        values = (over.umask, over.limits, over.group_ids, over.groups, over.processors, over.oom_score_adjustment)
        fields = (self.entry, self.argv, self.environment, self.cwd, self.attached, self.leashed, values)
        content = marshal.dumps(fields)
        return struct.pack("<I", len(content)) + content


def unpack_assignment(content: bytes) -> Assignment:
    """The inverse of :meth:`Assignment.pack`, without its length."""
    entry, argv, environment, cwd, attached, leashed, values = marshal.loads(content)
    return Assignment(entry, argv, environment, cwd, attached, leashed, Takeover(*values))


def leave_server(kept: list[int]) -> None:
    """Right after the fork: default signals, a session of its own, and none of the server's descriptors but ``kept``."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.setsid()
    first = 3
    for descriptor in sorted(kept):
        os.closerange(first, descriptor)
        first = descriptor + 1
    os.closerange(first, 1 << 30)


def wait_for_assignment(
    control: socket.socket, entries: dict[str, Entry], rehearse: Callable[[], object] | None, may_yield: bool
) -> NoReturn:
    """The life of a blank child: rehearse, wait, live. Without an assignment (the server ended or changed) it just ends."""
    code = 0
    try:
        if rehearse is not None:
            _rehearse(rehearse, may_yield)
        control.send(READY)
        try:
            data, descriptors, _ = receive_with_descriptors(control, BLANK_LIMIT + 4)
        except ConnectionResetError:
            os._exit(0)
        while len(data) < 4 or len(data) < 4 + struct.unpack_from("<I", data)[0]:
            more = control.recv(BLANK_LIMIT)
            if not more:
                os._exit(0)
            data += more
        control.close()
        live(entries, unpack_assignment(data[4:]), descriptors)
    except BaseException:  # noqa: BLE001 -- a child must not return into the server's loop, whatever happens
        code = 70
        with contextlib.suppress(BaseException):
            sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def _rehearse(rehearse: Callable[[], object], may_yield: bool) -> None:
    """Write now to the pages that a command writes to (reference counts, above all), and so copy them, while nobody waits for it."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    error = os.dup(2)
    os.dup2(null, 2)
    try:
        # In time that nobody else wants: the command before may still be running.
        if may_yield:
            scheduling.step_back()
        rehearse()
    except BaseException:  # noqa: BLE001 -- a rehearsal may fail as it likes
        pass
    finally:
        if may_yield:
            scheduling.step_forward()
        os.dup2(error, 2)
        os.close(error)
        os.close(null)
    gc.collect()


def live(entries: dict[str, Entry], assignment: Assignment, descriptors: list[int]) -> NoReturn:
    """Become the child of the assignment, run its entry, report, end."""
    global own_leash, callers_line
    code = 70
    connection = -1
    try:
        leash = own_leash = Leash(socket.socket(fileno=descriptors.pop())) if assignment.leashed else None
        if assignment.attached:
            connection = callers_line = descriptors.pop()
            directory = _take_stdio(descriptors)
            _take_terminal_signals()
        else:
            directory = -1
        _take_over(assignment.takeover)
        _enter_directory(assignment.cwd, directory)
        argv = [os.fsdecode(argument) for argument in assignment.argv]
        if assignment.attached or assignment.environment:
            _take_environment(assignment.environment)
        if assignment.attached:
            sys.argv = ["bulle", *argv]
            _open_streams()
        gc.enable()
        code = _run(entries[assignment.entry], argv, descriptors, leash)
    except BaseException:  # noqa: BLE001 -- as above
        with contextlib.suppress(BaseException):
            sys.excepthook(*sys.exc_info())
    finally:
        if connection >= 0:
            # The caller may end as soon as it knows; taking this process apart is not worth its waiting.
            with contextlib.suppress(OSError):
                os.write(connection, pack_reply(Reply.EXITED, code))
        for action in afterwards:
            with contextlib.suppress(Exception):
                action()
        os._exit(code)


def _run(entry: Entry, argv: list[str], descriptors: list[int], leash: Leash | None) -> int:
    try:
        result: object = entry(argv, descriptors, leash)
    except SystemExit as request:
        result = request.code
    except KeyboardInterrupt:
        # As Python's own end after Ctrl-C: dead by SIGINT, which the caller then dies of too.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        result = 130
    except BaseException:  # noqa: BLE001 -- the last resort; entries explain their own failures
        sys.excepthook(*sys.exc_info())
        result = 1
    if isinstance(result, str):
        print(result, file=sys.stderr)  # noqa: T201 -- what sys.exit("text") means
        result = 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            result = result or 120
    return result & 0xFF if isinstance(result, int) else 0


def _take_stdio(descriptors: list[int]) -> int:
    """Put the first three descriptors on 0, 1, 2; returns the working directory's."""
    stdio, directory = descriptors[:3], descriptors[3]
    del descriptors[:4]
    for number, descriptor in enumerate(stdio):
        os.dup2(descriptor, number)
        os.close(descriptor)
    return directory


def _take_terminal_signals() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # The child's process group is orphaned, in which the kernel drops SIGTSTP: stop by the signal that cannot be dropped.
    signal.signal(signal.SIGTSTP, lambda _number, _frame: os.kill(os.getpid(), signal.SIGSTOP))


def _take_over(takeover: Takeover) -> None:
    os.umask(takeover.umask)
    if takeover.oom_score_adjustment is not None:
        with contextlib.suppress(OSError):
            fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
            os.write(fd, str(takeover.oom_score_adjustment).encode())
            os.close(fd)
    if takeover.processors is not None:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, takeover.processors)
    for number, soft, hard in takeover.limits:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(number, (soft, hard))
    if takeover.group_ids is not None:
        os.setgroups(takeover.groups)
        os.setresgid(*takeover.group_ids)


def _enter_directory(path: bytes, descriptor: int) -> None:
    """The caller's working directory, by its path where that leads to the same place (getcwd(2) then works), else by descriptor."""
    try:
        if path:
            os.chdir(path)
            if descriptor < 0 or os.path.samestat(os.stat("."), os.fstat(descriptor)):
                return
    except OSError:
        pass
    finally:
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                if not path or not os.path.samestat(os.stat("."), os.fstat(descriptor)):
                    os.fchdir(descriptor)
            os.close(descriptor)


def _take_environment(environment: list[bytes]) -> None:
    asked = {name: value for name, separator, value in (text.partition(b"=") for text in environment) if separator and name}
    current = os.environb
    zone = current.get(b"TZ")
    for name in [name for name in current if name not in asked]:
        del current[name]
    for name, value in asked.items():
        if current.get(name) != value:
            current[name] = value
    if current.get(b"TZ") != zone:
        time.tzset()


def _open_streams() -> None:
    """Python's own streams anew: those of the server were made for /dev/null."""
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # type: ignore[misc]  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(  # type: ignore[misc]  # noqa: SIM115
        1, "w", encoding="utf-8", errors="surrogateescape", closefd=False, buffering=1 if os.isatty(1) else -1
    )
    sys.stderr = sys.__stderr__ = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False, buffering=1)  # type: ignore[misc]  # noqa: SIM115
