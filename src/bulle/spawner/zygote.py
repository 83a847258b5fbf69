"""A quiet copy of the spawner that only forks: its children share nearly all their memory with it, and with each other, for as long as they live.

The spawner itself is a poor parent for long-lived children: each request writes to its pages, and every copy that this makes leaves a child alone
with the old page. The zygote touches almost nothing between two forks. What it forks are the spawner's children (CLONE_PARENT), to wait for and to
recover as any other. Used by the nursery alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from bulle.linux.fork import fork
from bulle.linux.namespaces import CLONE_PARENT, clone3
from bulle.spawner.child import Assignment, Entry, leave_server, live, unpack_assignment
from bulle.spawner.leash import Leash
from bulle.spawner.protocol import receive_with_descriptors, send_with_descriptors

Watcher = Callable[[socket.socket, int, Callable[[], list[str]], Callable[[], Leash]], object]
"""What a watcher does: with its socket, the pid of its child, and ways to get (when it needs them) the argv of its entry and its leash."""

_ANSWER = struct.Struct("<i")
_CHUNK = 16 << 10


class Zygote:
    """One such process, forked from this one when it is made; ``pid`` is its own."""

    def __init__(self, entries: Mapping[str, Entry], watcher: Watcher) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.pid = fork()
        if self.pid == 0:
            try:
                leave_server([theirs.fileno()])
                _serve(theirs, dict(entries), watcher)
            finally:
                os._exit(70)
        theirs.close()
        self._control = ours

    def start(self, assignment: Assignment, given: Sequence[int]) -> int:
        """Have a child forked that lives by the assignment, with copies of the descriptors ``given``; returns its pid. Raises OSError."""
        send_with_descriptors(self._control, assignment.pack(), given)
        answer = self._control.recv(_ANSWER.size)
        if len(answer) < _ANSWER.size:
            raise BrokenPipeError("the zygote has ended")
        (pid,) = _ANSWER.unpack(answer)
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        return int(pid)

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
        try:
            pid, pidfd = clone3(CLONE_PARENT)
        except OSError as error:
            control.send(_ANSWER.pack(-(error.errno or 1)))
            pidfd, pid = -1, -1
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
