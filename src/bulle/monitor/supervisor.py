"""The loop of one monitor process: a workload, its streams, its log, and those who attach.

Single-threaded, one poll(2). It knows nothing of images or databases: what must happen at the end (restart, removal) is a callable that it is given.
Output is read only as fast as the slowest attached client takes it (up to a bound), as a pipe would do; a client that vanishes is forgotten.
"""

from __future__ import annotations

import fcntl
import math
import os
import select
import signal
import socket
import struct
import termios
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Protocol

import msgspec

from bulle.linux import process
from bulle.monitor.client import Client
from bulle.monitor.frames import MOST_PAYLOAD, Hello, Kind, event, frame
from bulle.monitor.limits import Ender
from bulle.monitor.local import LocalStreams
from bulle.monitor.log_drivers import Log
from bulle.monitor.stdio import Streams

_CHUNK = 64 * 1024
_MOST_WAITING = 1 << 20  # bytes that may wait for one client before the container itself must wait
_REAPED_ELSEWHERE_S = 2.0
_TIOCGPTPEER = 0x5441  # ioctl_tty(2); termios has it only since Python 3.13


class Watchdog(Protocol):
    """Something that a monitor does besides: it is called when one of its descriptors is readable, and from its deadline on (time.monotonic())."""

    def descriptors(self) -> Collection[int]: ...
    def deadline(self) -> float: ...
    def act(self, ready: Collection[int]) -> None: ...
    def close(self) -> None: ...


class Detached(Exception):
    """The detach keys were typed."""


class Supervisor:
    """Watches one workload until it ends."""

    def __init__(self, pidfd: int, streams: Streams, terminal: int, log: Log | None, listener: int = -1) -> None:
        """Of open descriptors, which it owns; ``terminal`` and ``listener`` (a socket of :func:`listen`) are -1 where there is none."""
        self._pidfd = pidfd
        self._terminal = terminal
        self._console = -1
        self._stdin = terminal if terminal >= 0 else streams.stdin
        self._streams = streams
        outputs = ((terminal, "stdout"), (streams.stdout, "stdout"), (streams.stderr, "stderr"))
        self._outputs = {descriptor: name for descriptor, name in outputs if descriptor >= 0}
        self._log = log
        self._listener = listener
        self._clients: dict[int, Client] = {}
        self.local: LocalStreams | None = None
        """The caller's own streams, where the supervisor runs in the caller's process."""
        self._input = bytearray()
        self._close_input = False
        self.kept_status: Callable[[], int] = lambda: -1
        """What somebody else knows of the end of a workload that was not ours to reap: a wait status, or -1."""
        self.input_ended: Callable[[], None] = lambda: None
        """Called when the workload's input is closed, so that whoever keeps a copy of our end closes it as well."""
        self.released = False
        """Whether a client has said that the container's row is deleted."""
        self.watchdogs: list[Watchdog] = []
        self.ender: Ender | None = None
        """The watchdog that ends the workload, where there is one."""
        self.busy = False
        """Set whenever something was said or typed; for whoever looks, to clear."""

    def add_client(self, connection: socket.socket, hello: Hello | None, *, bound: bool = False) -> None:
        """Serve one more connection; ``hello`` None means that it will introduce itself. The workload dies with one that it is ``bound`` to."""
        self._clients[connection.fileno()] = Client(connection, hello, bound)

    def send_all(self, data: bytes) -> None:
        """The same bytes (an event) to every client."""
        for client in list(self._clients.values()):
            self._guarded(client, lambda client=client: client.send(data))  # type: ignore[misc]

    def run(self) -> int:
        """Serve until the workload has ended and its last output is passed on; returns its wait status, -1 where nobody could learn it.

        With local streams: raises Detached when the keys were typed, and OSError (BrokenPipeError) when their reader is gone; the workload goes on.
        """
        while True:
            ready = [descriptor for descriptor, _events in self._poll()]
            ended = self._pidfd in ready
            for descriptor in ready:
                if descriptor in self._outputs:
                    self._read_output(descriptor)
                elif descriptor == self._listener and not ended:  # who is answered may rely on it that the workload runs
                    self._accept()
                elif descriptor in self._clients:
                    self._serve(self._clients[descriptor])
                elif self.local is not None and descriptor == self.local.stdin:
                    self._read_local(self.local)
            if self.local is not None:
                self.local.flush()
            self._write_input()
            for watchdog in self.watchdogs:
                watchdog.act(ready)
            if self._log is not None and self._log.helper in ready:
                self._log.reap()
            if ended:
                return self._finish()

    def prepare(self) -> select.poll:
        """What is waited for next."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        if self._listener >= 0:
            poll.register(self._listener, select.POLLIN)
        if self._log is not None and self._log.helper >= 0:
            poll.register(self._log.helper, select.POLLIN)
        waiting = max((len(client.waiting) for client in self._clients.values()), default=0)
        if max(waiting, self.local.waiting if self.local else 0) <= _MOST_WAITING:
            for descriptor in self._outputs:
                poll.register(descriptor, select.POLLIN)
        if self._input and self._stdin >= 0 and self._stdin != self._terminal:
            poll.register(self._stdin, select.POLLOUT)
        hungry = len(self._input) < _MOST_WAITING
        for descriptor, client in self._clients.items():
            poll.register(descriptor, (select.POLLIN if hungry else 0) | (select.POLLOUT if client.waiting else 0))
        if self.local is not None:
            for descriptor in self.local.blocked():
                poll.register(descriptor, select.POLLOUT)
            if hungry and self.local.stdin >= 0:
                poll.register(self.local.stdin, select.POLLIN)
        for watchdog in self.watchdogs:
            for descriptor in watchdog.descriptors():
                poll.register(descriptor, select.POLLIN)
        return poll

    def _poll(self) -> list[tuple[int, int]]:
        patience_ms: float | None = 50 if self._input and self._stdin == self._terminal else None
        if self.watchdogs:
            until = min(watchdog.deadline() for watchdog in self.watchdogs)
            if until < math.inf:
                remaining_ms = max(0.0, math.ceil((until - time.monotonic()) * 1000))
                patience_ms = remaining_ms if patience_ms is None else min(patience_ms, remaining_ms)
        return self.prepare().poll(patience_ms)

    def _read_local(self, local: LocalStreams) -> None:
        data = local.read()
        if data is None:
            local.stdin = -1
            self._close_input = self._terminal < 0
        else:
            self._input += data
        if local.keys.complete:
            self._write_input()
            raise Detached

    def finish_clients(self, exit_event: bytes, patience_s: float = 10.0) -> None:
        """Tell everyone the end, and wait a little for those who still have output to take, until they have closed."""
        self.send_all(exit_event)
        deadline = time.monotonic() + patience_s
        while self._clients:
            poll = select.poll()
            for number, client in self._clients.items():
                poll.register(number, select.POLLIN | (select.POLLOUT if client.waiting else 0))
            ready = poll.poll(max(0, int((deadline - time.monotonic()) * 1000)))
            if not ready:
                break
            for number, _events in ready:
                self._serve(self._clients[number])
        for client in list(self._clients.values()):
            self._forget(client)

    def resize(self, rows: int, columns: int) -> None:
        """Give the workload's terminal a size."""
        if self._terminal >= 0:
            fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def close_log(self) -> None:
        """Stop logging: another monitor goes on."""
        if self._log is not None:
            self._log.close()
            self._log = None

    @property
    def kept(self) -> list[int]:
        """Our ends of the workload's streams, its input last: what is lost with this process unless somebody keeps copies."""
        outputs = (self._streams.stdout, self._streams.stderr)
        return [descriptor for descriptor in (*outputs, self._stdin) if descriptor >= 0]

    def descriptors(self) -> list[int]:
        """Everything that this loop holds, for a child that must not."""
        held = [self._pidfd, self._listener, self._terminal, *self.kept, *self._clients]
        return list(dict.fromkeys(descriptor for descriptor in held if descriptor >= 0))

    def close(self) -> None:
        """After the end: let go of everything."""
        for client in list(self._clients.values()):
            self._forget(client)
        if self._listener >= 0:
            os.close(self._listener)
        for descriptor in dict.fromkeys([self._pidfd, self._terminal, *self.kept]):
            if descriptor >= 0:
                os.close(descriptor)

    def drain(self) -> None:
        """Pass on and log what was written and not read yet, and close the log."""
        for descriptor in list(self._outputs):
            while self._read_output(descriptor):
                pass
        self.close_log()

    def _finish(self) -> int:
        if self._listener >= 0:
            os.close(self._listener)
            self._listener = -1
        for watchdog in self.watchdogs:
            watchdog.close()
        self.drain()
        if self._console >= 0:
            os.close(self._console)
        return wait_status(self._pidfd, self.kept_status)

    def _read_output(self, descriptor: int) -> bool:
        """Pass one block on; False when there is nothing (more) to read."""
        try:
            data = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            return False
        except OSError:  # EIO: the last holder of the terminal's other side is gone
            if self._hold_terminal(descriptor):
                return False
            data = b""
        if not data:
            self._outputs.pop(descriptor, None)
            return False
        self.busy = True
        stream = self._outputs[descriptor]
        if self._log is not None:
            self._log.write(stream, data)
        if self.local is not None:
            self.local.write(stream, data)
        out = frame(Kind.STDOUT if stream == "stdout" else Kind.STDERR, data)
        for client in list(self._clients.values()):
            if client.hello is not None and client.hello.output:
                self._guarded(client, lambda client=client: client.send(out))  # type: ignore[misc]
        return True

    def _hold_terminal(self, descriptor: int) -> bool:
        """Keep the other side of the workload's terminal open, once nobody does: an init opens its console only when it has something to say."""
        if descriptor != self._terminal or self._console >= 0:
            return False
        try:
            self._console = fcntl.ioctl(self._terminal, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            return False
        return True

    def _accept(self) -> None:
        # A socket object only for this moment: an idle monitor has none, and less memory of its own.
        listener = socket.socket(fileno=self._listener)
        try:
            connection, _address = listener.accept()
            self.add_client(connection, None)
        except OSError:
            pass  # it did not wait for us
        finally:
            listener.detach()

    def _serve(self, client: Client) -> None:
        self._guarded(client, client.flush)
        try:
            data = client.connection.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._forget(client)
            return
        try:
            for kind, payload in client.reader.feed(data):
                self._obey(client, kind, payload)
        except (ValueError, msgspec.MsgspecError, struct.error):
            self._forget(client)

    def _obey(self, client: Client, kind: int, payload: bytes) -> None:
        if kind == Kind.HELLO:
            client.hello = msgspec.json.decode(payload, type=Hello)
            self._guarded(client, lambda: client.send(event("started")))
        elif kind == Kind.RELEASED:
            self.released = True
        elif kind == Kind.RESIZE:
            self.resize(*struct.unpack(">HH", payload))
        elif kind == Kind.STDIN and self._stdin >= 0:
            if payload:
                self._input += payload
            elif self._terminal < 0:
                self._close_input = True

    def _write_input(self) -> None:
        if self._stdin < 0:
            self._input.clear()
            return
        self.busy = self.busy or bool(self._input)
        try:
            while self._input:
                del self._input[: os.write(self._stdin, self._input[:MOST_PAYLOAD])]
        except BlockingIOError:
            return
        except OSError:  # EPIPE: the workload closed its input
            self._input.clear()
            self._close_input = self._terminal < 0
        if self._close_input and not self._input:
            os.close(self._stdin)
            self._stdin = -1
            self.input_ended()

    def _guarded(self, client: Client, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError:
            self._forget(client)

    def _forget(self, client: Client) -> None:
        for number, known in list(self._clients.items()):
            if known is client:
                del self._clients[number]
        client.connection.close()
        if client.bound:
            with suppress(OSError):  # it has ended
                process.pidfd_send_signal(self._pidfd, signal.SIGKILL)


def wait_status(pidfd: int, kept_status: Callable[[], int] = lambda: -1) -> int:
    """Reap the process behind a readable pidfd and return its wait status.

    Of one that is not our child: what the kernel still tells, or else what ``kept_status`` does, which is asked for a while; -1 for unknown.
    """
    try:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    except ChildProcessError:
        deadline = time.monotonic() + _REAPED_ELSEWHERE_S
        while time.monotonic() < deadline:
            status = process.exit_status_of(pidfd)
            if status is None:
                status = kept_status()
            if status >= 0:
                return status
            time.sleep(0.005)
        return -1
    if result is None:
        return -1
    return result.si_status << 8 if result.si_code == os.CLD_EXITED else result.si_status


def exit_code(status: int) -> int:
    """A wait status as Docker's exit code: 128+n for signal n, -1 for unknown."""
    if status < 0:
        return -1
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def listen(directory: str) -> int:
    """The descriptor of the listening socket ``attach.sock`` in the container's host directory, whose path may be longer than a socket's name."""
    here = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path = f"/proc/self/fd/{here}/attach.sock"
        with suppress(FileNotFoundError):
            os.unlink(path)
        listener.bind(path)
        listener.listen(64)
        listener.setblocking(False)
    finally:
        os.close(here)
    return listener.detach()
