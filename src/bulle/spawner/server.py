"""The spawner: a warm process that forks commands and monitors for callers of its own user.

One thread, one poll loop, nothing in it that waits for a caller: a request is read as it comes (:mod:`bulle.spawner.reception`), judged
(:mod:`bulle.spawner.caller`), and given to a child (:mod:`bulle.spawner.child`), if possible one that was forked ahead. It knows no command of ours;
the composition root (``bulle.__main__``) hands it entries. It keeps nothing that cannot be lost: killed at any moment, its children go on and the
next caller starts another one. When the code on disk changes it executes itself anew in place (:mod:`bulle.spawner.startup`), which keeps its pid,
children, mount namespace and held descriptors.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NoReturn

from bulle.spawner import caller, leash
from bulle.spawner.child import Assignment
from bulle.spawner.code import CodeWatch
from bulle.spawner.configuration import Configuration
from bulle.spawner.mount_namespace import MountNamespace
from bulle.spawner.nursery import Nursery
from bulle.spawner.protocol import Flag, Reason, Reply, Request, current_limits, pack_reply, send_with_descriptors
from bulle.spawner.reception import Reception

REFILL_DELAY_S = 0.03
BUSY_S = 0.05
RESTING_S = 30.0
FOLLOW_DELAY_S = 0.05
RECOVER_ARGUMENT = b"--recover"
SHORT_LIFE_S = 2.0
SHORT_LIVES_LIMIT = 5
HOUSEKEEPING_S = 5.0
FORSAKEN_GRACE_S = 0.05


@dataclass(slots=True)
class Child:
    """A living child. ``connection``: of the caller that waits for it. ``tether``: its leash."""

    assignment: Assignment
    connection: socket.socket | None
    tether: leash.Tether | None
    started_s: float
    short_lives: int = 0


class Server:
    """The loop and its state. ``successor`` is called when the code changed; it returns only if the new code does not start."""

    def __init__(
        self,
        configuration: Configuration,
        listener: socket.socket,
        origin: caller.Standing,
        mounts: MountNamespace | None,
        successor: Callable[[Server], None],
    ) -> None:
        self.configuration = configuration
        self.listener = listener
        self.origin = origin
        self.mounts = mounts
        self.limits = current_limits()
        self.children: dict[int, Child] = {}
        self.recoveries: list[tuple[float, Child]] = []
        self.code = CodeWatch()
        self._successor = successor
        self._broken_code = self.code.loaded
        self._nursery = Nursery(configuration, origin.has_capability(caller.CAP_SYS_NICE))
        self._forsaken: dict[int, float] = {}  # child without a caller -> when it is ended
        self._calling: dict[int, int] = {}  # descriptor of a waiting caller's connection -> its child's pid
        self._poll = select.epoll()
        self._reception = Reception(listener, self._poll, self._dispatch)
        self._wake_read, self._wake_write = socket.socketpair()
        self._refill_at_s = 0.0
        self._started_s = 0.0
        self._active_s = time.monotonic()
        self._mounts_changed = False
        self._follow_at_s = -1.0
        self._own_place = caller.standing_of("self").place
        self._socket_inode = os.stat(f"{configuration.home}/run/spawner.sock").st_ino

    def run(self) -> None:
        """Serve until idle, or until the socket is taken away."""
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self.listener.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        self._poll.register(self.listener, select.EPOLLIN)
        self._poll.register(self._wake_read, select.EPOLLIN)
        if self.mounts:
            # The kernel reports a change of the mounts as an exceptional condition, once.
            self._poll.register(self.mounts.origin_mounts, select.EPOLLPRI | select.EPOLLERR)
        for pid, child in self.children.items():
            self._watch(pid, child)
        gc.collect()
        gc.freeze()
        self._reap()
        while not self._finished():
            for descriptor, events in self._poll.poll(self._timeout_s()):
                self._handle(descriptor, events)
            self._keep_time()

    def _handle(self, descriptor: int, events: int) -> None:
        if descriptor == self.listener.fileno():
            self._accept()
        elif descriptor == self._wake_read.fileno():
            with contextlib.suppress(BlockingIOError):
                while self._wake_read.recv(4096):
                    pass
            self._reap()
        elif descriptor in self._reception:
            self._reception.read(descriptor)
        elif descriptor in self._calling:
            self._caller_spoke(descriptor)
        elif self.mounts and descriptor == self.mounts.origin_mounts:
            # Looked into when the host has come to rest, or when somebody calls.
            self._mounts_changed = True
            self._follow_at_s = time.monotonic() + FOLLOW_DELAY_S
        else:
            for child in self.children.values():
                if child.tether and child.tether.connection.fileno() == descriptor:
                    child.tether.read()
                    if child.tether.ended:
                        self._poll.unregister(descriptor)
                    break

    # Callers

    def _accept(self) -> None:
        if self.code.changed() and self.code.fingerprint() != self._broken_code:
            # Whoever is waiting in the listener's queue is served by the successor.
            self._drop_blanks()
            self._successor(self)
            self._broken_code = self.code.fingerprint()
        self._active_s = time.monotonic()
        self._reception.accept()

    def _dispatch(self, connection: socket.socket, request: Request, descriptors: list[int]) -> None:
        judgement = self._judge(connection, request)
        if judgement is None:
            connection.close()
            return
        if isinstance(judgement, Reason):
            self._reply(connection, Reply.BYPASS, judgement)
            connection.close()
            return
        assignment = Assignment(
            request.entry,
            request.argv,
            request.environment,
            request.cwd,
            bool(request.flags & Flag.ATTACHED),
            bool(request.flags & (Flag.LEASH | Flag.ATTACHED)),
            judgement,
        )
        self._reply(connection, Reply.ACCEPTED, 0)
        try:
            pid = self._start(assignment, descriptors, connection if assignment.attached else None, [])
        except OSError:
            self._reply(connection, Reply.BYPASS, Reason.FORK)
            connection.close()
            return
        pidfd = -1
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(pid)
        with contextlib.suppress(OSError):
            send_with_descriptors(connection, pack_reply(Reply.CHILD, pid), [pidfd] if pidfd >= 0 else [])
        if pidfd >= 0:
            os.close(pidfd)
        if not assignment.attached:
            connection.close()

    def _judge(self, connection: socket.socket, request: Request) -> caller.Takeover | Reason | None:
        """What the child takes over, why the caller is not served, or None: this spawner makes way for the caller's."""
        configuration = self.configuration
        if request.interpreter != configuration.interpreter or request.package not in (b"", configuration.package):
            busy = self.children or self.recoveries or self._has_other_children()
            if not busy:
                self._retire()
            return Reason.INSTALLATION if busy else None
        if self.code.loaded != self._broken_code and self.code.fingerprint() == self._broken_code:
            return Reason.BROKEN_CODE
        if request.entry not in configuration.entries:
            return Reason.ENTRY
        try:
            _pid, standing = caller.peer_standing(connection)
        except caller.CallerUnreadableError:
            return Reason.UNREADABLE
        reason = caller.reason_to_bypass(self.origin, self._own_place, standing)
        if reason is not None:
            return reason
        return caller.takeover(self.origin, self.limits, standing, request.limits) or Reason.LIMITS

    @staticmethod
    def _reply(connection: socket.socket, kind: Reply, value: int) -> None:
        # A caller that is gone or does not read its replies loses them.
        with contextlib.suppress(OSError):
            connection.send(pack_reply(kind, value))

    def _caller_spoke(self, descriptor: int) -> None:
        """Callers say nothing after their request: this is the end of one, and so of its child."""
        pid = self._calling[descriptor]
        if (connection := self.children[pid].connection) is not None:
            with contextlib.suppress(ConnectionResetError):
                try:
                    if connection.recv(4096):
                        return
                except BlockingIOError:
                    return  # what ended was another one, whose descriptor this one has since
        self._poll.unregister(descriptor)
        del self._calling[descriptor]
        # Most often the child has just told its caller the exit code and is about to end by itself.
        self._forsaken[pid] = time.monotonic() + FORSAKEN_GRACE_S

    def _end_forsaken(self, pid: int) -> None:
        """End a child whose caller is gone: as the caller's own process would have been, at once, with what it had started for itself."""
        del self._forsaken[pid]
        # The group is the child's own since its setsid(2), which a newborn on a busy machine may not have reached.
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            os.kill(pid, signal.SIGKILL)

    # Children

    def _follow_mounts(self) -> None:
        """Where the host's mounts have changed: stand in a namespace that has them, and let the children forked ahead in the old one go."""
        self._follow_at_s = -1.0
        if self._mounts_changed and self.mounts:
            self._mounts_changed = False
            if self.mounts.lags_behind(self.configuration.home) and self.mounts.renew(self.configuration.home):
                self._own_place = caller.standing_of("self").place
                self._nursery.follow()
                # Nobody has called for long: the next to call forks for itself, and is the first of more.
                if time.monotonic() - self._active_s < RESTING_S:
                    self._refill_at_s = time.monotonic() + REFILL_DELAY_S

    def _start(self, assignment: Assignment, descriptors: list[int], connection: socket.socket | None, held: list[int], short_lives: int = 0) -> int:
        """Give the assignment to a child, blank or forked now; returns its pid. ``held`` passes to the child's new leash."""
        self._follow_mounts()
        tether, theirs = leash.pair(held) if assignment.leashed else (None, None)
        given = [*descriptors, *([connection.fileno()] if connection else []), *([theirs.fileno()] if theirs else [])]
        try:
            pid = self._nursery.start(assignment, given)
        finally:
            if theirs:
                theirs.close()
        child = self.children[pid] = Child(assignment, connection, tether, time.monotonic(), short_lives)
        self._watch(pid, child)
        # In a row of calls the next comes before there is time to rest; a single one had better not be disturbed.
        now = time.monotonic()
        self._refill_at_s = now + (0 if now - self._started_s < BUSY_S else REFILL_DELAY_S)
        self._started_s = now
        return pid

    def _watch(self, pid: int, child: Child) -> None:
        if child.connection:
            self._poll.register(child.connection, select.EPOLLIN | select.EPOLLRDHUP)
            self._calling[child.connection.fileno()] = pid
        if child.tether:
            self._poll.register(child.tether.connection, select.EPOLLIN)

    def _drop_blanks(self) -> None:
        self._nursery.drop()
        self._refill_at_s = time.monotonic() + REFILL_DELAY_S

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self._nursery:
                self._nursery.ended(pid)
            elif pid in self.children:
                self._active_s = time.monotonic()
                self._forsaken.pop(pid, None)
                self._ended(self.children.pop(pid), status)
            elif self.configuration.on_orphan:
                self.configuration.on_orphan(pid, status)

    def _ended(self, child: Child, status: int) -> None:
        if child.connection:
            if os.WIFSIGNALED(status):
                self._reply(child.connection, Reply.SIGNALED, os.WTERMSIG(status))
            else:
                self._reply(child.connection, Reply.EXITED, os.waitstatus_to_exitcode(status))
            if self._calling.pop(child.connection.fileno(), None) is not None:
                self._poll.unregister(child.connection)
            child.connection.close()
        tether = child.tether
        if tether is None:
            return
        tether.read()
        if not tether.ended:
            self._poll.unregister(tether.connection)
        now = time.monotonic()
        child.short_lives = child.short_lives + 1 if now - child.started_s < SHORT_LIFE_S else 0
        wanted = bool(tether.recover_as) or not child.assignment.attached
        if tether.released or not wanted or child.short_lives > SHORT_LIVES_LIMIT:
            tether.close()
        else:
            delay_s = 0.0 if not child.short_lives else 0.05 * 2**child.short_lives
            self.recoveries.append((now + delay_s, child))

    def _recover(self, child: Child) -> None:
        """Fork a dead child's entry anew, with what it had given into keeping."""
        assert child.tether is not None
        held = child.tether.held
        child.tether.held = []
        child.tether.close()
        assignment = child.assignment
        if child.tether.recover_as:
            entry, *argv = child.tether.recover_as
            assignment = replace(assignment, entry=os.fsdecode(entry), argv=argv, cwd=b"/", attached=False)
        if RECOVER_ARGUMENT not in assignment.argv:
            assignment.argv = [*assignment.argv, RECOVER_ARGUMENT]
        try:
            self._start(assignment, held, None, held, child.short_lives)
        except OSError:
            for descriptor in held:
                os.close(descriptor)

    # Time

    def _timeout_s(self) -> float:
        now = time.monotonic()
        times = [now + HOUSEKEEPING_S, *self._reception.deadlines_s()]
        times += [*(at for at, _ in self.recoveries), *self._forsaken.values()]
        idle_at_s = self._active_s + self.configuration.idle_s
        if not self.children and idle_at_s > now:
            times.append(idle_at_s)
        times += [at for at in (self._refill_at_s, self._follow_at_s) if at >= 0]
        return max(0.0, min(times) - now)

    def _keep_time(self) -> None:
        now = time.monotonic()
        self._reception.expire(now)
        for pid in [pid for pid, at in self._forsaken.items() if at <= now]:
            self._end_forsaken(pid)
        due = [child for at, child in self.recoveries if at <= now]
        if due:
            self.recoveries = [(at, child) for at, child in self.recoveries if at > now]
            for child in due:
                self._recover(child)
        if 0 <= self._follow_at_s <= now:
            self._follow_mounts()
        if 0 <= self._refill_at_s <= now:
            self._refill_at_s = -1.0
            self._nursery.refill()
            self.code.look()

    def _finished(self) -> bool:
        """Whether nobody needs this process any more."""
        if self.children or self._reception or self.recoveries:
            return False
        idle = time.monotonic() - self._active_s >= self.configuration.idle_s
        if not idle and self._owns_socket():
            return False
        if self._has_other_children():
            return False
        if self._owns_socket():
            os.unlink(f"{self.configuration.home}/run/spawner.sock")
        # Who connected just before gets no answer and asks the next spawner.
        return True

    def _owns_socket(self) -> bool:
        try:
            return os.stat(f"{self.configuration.home}/run/spawner.sock").st_ino == self._socket_inode
        except OSError:
            return False

    def _has_other_children(self) -> bool:
        """Whether adopted processes live, beside blanks."""
        try:
            content = open(f"/proc/self/task/{os.getpid()}/children").read()  # noqa: SIM115
        except OSError:
            self._drop_blanks()
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                return True
            return False
        return any(int(pid) not in self._nursery for pid in content.split())

    def _retire(self) -> NoReturn:
        """End at once, for a caller of another installation: it finds no answer and starts its own spawner."""
        self._drop_blanks()
        with contextlib.suppress(OSError):
            os.unlink(f"{self.configuration.home}/run/spawner.sock")
        os._exit(0)
