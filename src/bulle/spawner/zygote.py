"""A quiet copy of the spawner that only forks: its children share nearly all their memory with it, and with each other, for as long as they live.

The spawner itself is a poor parent for long-lived children: each request writes to its pages, and every copy that this makes leaves a child alone
with the old page. The zygote touches almost nothing between two forks. What it forks are the spawner's children (CLONE_PARENT), to wait for and to
recover as any other. Used by the nursery alone.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from bulle.linux.fork import fork
from bulle.linux.namespaces import CLONE_NEWNS, CLONE_PARENT, clone3, setns
from bulle.spawner.child import Assignment, Entry, leave_server, live, unpack_assignment
from bulle.spawner.leash import Leash
from bulle.spawner.protocol import receive_with_descriptors, send_with_descriptors

Watcher = Callable[[socket.socket, int, Callable[[], list[str]], Callable[[], Leash]], object]
"""What a watcher does: with its socket, the pid of its child, and ways to get (when it needs them) the argv of its entry and its leash."""

_ANSWER = struct.Struct("<i")
_CHUNK = 4 << 10
_REHEARSALS = 20  # more calls than Python counts before it leaves a function's code alone
_FOLLOW = struct.pack("<I", 0)
"""Instead of an assignment's length and content."""


class Zygote:
    """One such process, forked from this one when it is made; ``pid`` is its own."""

    def __init__(self, entries: Mapping[str, Entry], watcher: Watcher, rehearse: Callable[[], object] | None = None) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.pid = fork()
        if self.pid == 0:
            try:
                leave_server([theirs.fileno()])
                for _ in range(_REHEARSALS if rehearse else 0):
                    rehearse()  # type: ignore[misc]
                gc.collect()
                gc.freeze()
                _serve(theirs, dict(entries), watcher)
            finally:
                os._exit(70)
        theirs.close()
        self._control = ours

    def start(self, assignment: Assignment, given: Sequence[int]) -> int:
        """Have a child forked that lives by the assignment, with copies of the descriptors ``given``; returns its pid. Raises OSError."""
        return self._ask(assignment.pack(), given)

    def follow(self) -> None:
        """Have it enter the mount namespace of this process. Raises OSError."""
        namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._ask(_FOLLOW, [namespace])
        finally:
            os.close(namespace)

    def _ask(self, content: bytes, descriptors: Sequence[int]) -> int:
        send_with_descriptors(self._control, content, descriptors)
        answer = self._control.recv(_ANSWER.size)
        if len(answer) < _ANSWER.size:
            raise BrokenPipeError("the zygote has ended")
        (value,) = _ANSWER.unpack(answer)
        if value < 0:
            raise OSError(-value, os.strerror(-value))
        return int(value)

    def close(self) -> None:
        """End it; its children live on."""
        self._control.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def _serve(control: socket.socket, entries: dict[str, Entry], watcher: Watcher) -> NoReturn:
    """Fork on demand until the spawner closes its end."""
    while True:
        data, descriptors, _lost = receive_with_descriptors(control, _CHUNK)
        while len(data) < 4 or len(data) < 4 + struct.unpack_from("<I", data)[0]:
            more = control.recv(_CHUNK)
            if not more:
                os._exit(0)
            data += more
        pid, pidfd = -1, -1
        try:
            if data == _FOLLOW:
                setns(descriptors[0], CLONE_NEWNS)
                control.send(_ANSWER.pack(0))
            else:
                pid, pidfd = clone3(CLONE_PARENT)
        except OSError as error:
            control.send(_ANSWER.pack(-(error.errno or 1)))
        if pid == 0:
            os.setsid()
            control.close()
            _watch(entries, watcher, data, descriptors)
        if pid > 0:
            control.send(_ANSWER.pack(pid))
        for descriptor in (*descriptors, *((pidfd,) if pidfd >= 0 else ())):
            os.close(descriptor)
        del data, descriptors


def _watch(entries: dict[str, Entry], watcher: Watcher, data: bytes, descriptors: list[int]) -> NoReturn:
    """The life of a watcher. Until it has something to do it writes to as few pages as it can: not even the assignment is unpacked in it."""
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        starter = fork()
        if starter == 0:
            ours.close()
            live(entries, unpack_assignment(data[4:]), [*descriptors[:-1], theirs.detach(), descriptors[-1]])
        theirs.close()
        for descriptor in descriptors[:-1]:
            os.close(descriptor)
        watcher(
            ours,
            starter,
            lambda: [os.fsdecode(word) for word in unpack_assignment(data[4:]).argv],
            lambda: Leash(socket.socket(fileno=descriptors[-1])),
        )
    except BaseException:  # noqa: BLE001 -- a child must not return into its parent's loop, whatever happens
        with contextlib.suppress(BaseException):
            sys.excepthook(*sys.exc_info())
    finally:
        os._exit(0)
