"""Forking: children for an assignment, and blank ones ahead of it, so that neither fork(2) nor most page copies are on a caller's way.

Used by the server alone. A blank child says when it has rehearsed; until then a fork is quicker, so it is passed over.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Sequence

from bulle.linux.fork import fork
from bulle.spawner.child import BLANK_LIMIT, READY, Assignment, leave_server, live, wait_for_assignment
from bulle.spawner.configuration import Configuration
from bulle.spawner.protocol import send_with_descriptors
from bulle.spawner.zygote import Zygote


class Nursery:
    """The blank children of one spawner."""

    def __init__(self, configuration: Configuration, may_yield: bool) -> None:
        """``may_yield``: whether this user may leave the SCHED_IDLE class again."""
        self._may_yield = may_yield
        self._entries = dict(configuration.entries)
        self._spare = configuration.spare
        self._kind = configuration.kind
        self._rehearsals = configuration.rehearsals
        self._watchers = configuration.watchers
        self._blanks: dict[int, tuple[str, socket.socket]] = {}
        self._zygotes: dict[str, Zygote] = {}

    def __contains__(self, pid: int) -> bool:
        return pid in self._blanks or any(pid == zygote.pid for zygote in self._zygotes.values())

    def start(self, assignment: Assignment, given: Sequence[int]) -> int:
        """Give the assignment and copies of the descriptors ``given`` to a child; returns its pid. Raises OSError where there can be none."""
        pid = self._from_zygote(assignment, given) if assignment.entry in self._watchers else self._give_to_blank(assignment, given)
        if pid:
            return pid
        pid = fork()
        if pid == 0:
            try:
                leave_server(list(given))
                live(self._entries, assignment, list(given))
            finally:
                os._exit(70)
        return pid

    def _from_zygote(self, assignment: Assignment, given: Sequence[int]) -> int:
        for _ in range(2):
            try:
                return self._zygote(assignment.entry).start(assignment, given)
            except OSError:  # killed, perhaps: a new one serves
                self._drop_zygotes()
        return 0

    def _zygote(self, entry: str) -> Zygote:
        if entry not in self._zygotes:
            self._zygotes[entry] = Zygote(self._entries, self._watchers[entry], self._rehearsals.get(entry))
        return self._zygotes[entry]

    def _drop_zygotes(self) -> None:
        while self._zygotes:
            self._zygotes.popitem()[1].close()

    def _give_to_blank(self, assignment: Assignment, given: Sequence[int]) -> int:
        content = assignment.pack()
        if len(content) > BLANK_LIMIT:
            return 0
        wanted = self._kind(assignment.entry, assignment.argv)
        for pid, (kind, control) in self._blanks.items():
            if kind != wanted:
                continue
            try:
                if control.recv(len(READY)) != READY:
                    continue
                send_with_descriptors(control, content, given)
            except BlockingIOError:
                continue
            except OSError:
                os.kill(pid, signal.SIGKILL)
                continue
            del self._blanks[pid]
            control.close()
            return pid
        return 0

    def refill(self) -> None:
        """Fork the children that will be needed next."""
        with contextlib.suppress(OSError):
            for entry in self._watchers:
                self._zygote(entry)
        have = [entry for entry, _ in self._blanks.values()]
        for entry, count in self._spare.items():
            for _ in range(count - have.count(entry)):
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
                ours.setblocking(False)
                try:
                    pid = fork()
                except OSError:
                    ours.close()
                    theirs.close()
                    return
                if pid == 0:
                    try:
                        leave_server([theirs.fileno()])
                        wait_for_assignment(theirs, self._entries, self._rehearsals.get(entry), self._may_yield)
                    finally:
                        os._exit(70)
                theirs.close()
                self._blanks[pid] = (entry, ours)

    def ended(self, pid: int) -> None:
        """A blank child or a zygote was reaped."""
        if pid in self._blanks:
            self._blanks.pop(pid)[1].close()
        else:
            self._drop_zygotes()

    def follow(self) -> None:
        """This process stands in another mount namespace now: end the blank children in the old one, and have the zygotes come along."""
        self._drop_blanks()
        try:
            for zygote in self._zygotes.values():
                zygote.follow()
        except OSError:
            self._drop_zygotes()

    def drop(self) -> None:
        """End all blank children and zygotes: they are of old code."""
        self._drop_blanks()
        self._drop_zygotes()

    def _drop_blanks(self) -> None:
        for pid, (_, control) in self._blanks.items():
            control.close()
            os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        self._blanks.clear()
