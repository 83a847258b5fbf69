"""The client's side of a monitor: wait for the start, carry input and output, learn the end.

Used by the engine for ``run``, ``attach``, ``exec`` and ``wait``. It writes to descriptors that it is given and does nothing to terminals: raw mode
is the command line's business.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import msgspec

from bulle.errors import BulleError, from_parts
from bulle.monitor.frames import MOST_PAYLOAD, Event, FrameReader, Hello, Kind, frame
from bulle.monitor.local import DetachKeys

_CHUNK = 64 * 1024


@dataclass(frozen=True)
class Outcome:
    """How an attachment ended: the exit code, or None with ``detached`` (by keys), or None alone where the monitor vanished."""

    exit_code: int | None
    detached: bool = False


class Attached(Protocol):
    """What a command that follows a container needs: of a connection to its monitor, or of a monitor in its own process."""

    notes: tuple[str, ...]

    def pump(self, stdin_fd: int, stdout_fd: int, stderr_fd: int, detach_keys: bytes = b"") -> Outcome: ...
    def resize(self, rows: int, columns: int) -> None: ...
    def close(self) -> None: ...


class Attachment:
    """One connection to a monitor, owned by the caller."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._reader = FrameReader()
        self._frames: list[tuple[int, bytes]] = []
        self.exit_code: int | None = None
        self.notes: tuple[str, ...] = ()
        self.pid = 0
        self._started = False
        self._sending = False
        self._window: tuple[int, int] | None = None
        self.when_exited: Callable[[], None] | None = None
        """Called once by whoever reads the end here, before it is told."""

    @classmethod
    def connect(cls, directory: str, *, output: bool, stdin: bool) -> Attachment | None:
        """Attach to the monitor of the container with this host directory, or None where none listens."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        here = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            connection.connect(f"/proc/self/fd/{here}/attach.sock")  # the path may be longer than sun_path
            connection.sendall(frame(Kind.HELLO, msgspec.json.encode(Hello(output, stdin))))
        except (FileNotFoundError, ConnectionRefusedError, BrokenPipeError, ConnectionResetError):
            connection.close()
            return None
        finally:
            os.close(here)
        return cls(connection)

    def fileno(self) -> int:
        """The connection's descriptor, readable when there is something to receive."""
        return self._connection.fileno()

    def close(self) -> None:
        """Leave; the container goes on."""
        self._connection.close()

    def give_up(self) -> None:
        """Have whoever waits for the next frame, in another thread, find that there is none."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    @property
    def has_received(self) -> bool:
        """Whether :meth:`receive` has a frame that has arrived already, which no poll(2) sees."""
        return bool(self._frames)

    def send_some(self, data: bytes | bytearray) -> int:
        """Send as much of these bytes (frames) as goes without waiting; returns how many. What goes to a monitor that is gone is lost."""
        try:
            return self._connection.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except (BrokenPipeError, ConnectionResetError):
            return len(data)  # receive() tells the end

    def receive(self) -> tuple[int, bytes] | None:
        """The next frame, waiting for it; None when the monitor is gone."""
        while not self._frames:
            try:
                data = self._connection.recv(_CHUNK)
            except ConnectionResetError:
                data = b""
            if not data:
                return None
            self._frames += self._reader.feed(data)
        kind, payload = self._frames.pop(0)
        if kind == Kind.EVENT and b'"exited"' in payload and b'"kept":true' not in payload and self.when_exited is not None:
            self.when_exited()
            self.when_exited = None
            with suppress(OSError):
                self._connection.send(frame(Kind.RELEASED))
        return kind, payload

    def take(self) -> list[tuple[int, bytes]] | None:
        """The frames that have arrived, without waiting; None when the monitor is gone. For loops that watch many; :attr:`when_exited` is theirs."""
        frames, self._frames = self._frames, []
        try:
            data = self._connection.recv(_CHUNK, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return frames
        except ConnectionResetError:
            data = b""
        if not data:
            return frames or None
        return frames + self._reader.feed(data)

    @property
    def has_more(self) -> bool:
        """Whether frames were read already that :meth:`receive` has not given yet: poll(2) does not tell of those."""
        return bool(self._frames)

    def wait_started(self) -> None:
        """Return once the command is executed, at once where that is known already; raises the error that the start ended in."""
        while not self._started and (received := self.receive()) is not None:
            kind, payload = received
            if kind == Kind.EVENT:
                happened = msgspec.json.decode(payload, type=Event)
                if happened.event == "error":
                    raise from_parts(happened.error)
                self.pid, self.notes, self._started = happened.pid, happened.notes, True
        if not self._started:
            raise BulleError(
                "the container's monitor ended before the container started", "it was killed, or memory ran out", "try again, or see `bulle doctor`"
            )

    def send_stdin(self, data: bytes) -> None:
        """Give bytes to the container's standard input."""
        for start in range(0, len(data), MOST_PAYLOAD):
            self._send(frame(Kind.STDIN, data[start : start + MOST_PAYLOAD]))

    def close_stdin(self) -> None:
        """End the container's standard input."""
        self._send(frame(Kind.STDIN))

    def resize(self, rows: int, columns: int) -> None:
        """Tell the container's terminal its new size."""
        self._window = (rows, columns)
        if not self._sending:
            self._send_window()

    def _send(self, data: bytes) -> None:
        """Send a frame whole. A handler of SIGWINCH may run in the middle of it: its own frame waits until this one is out."""
        self._sending = True
        try:
            self._connection.sendall(data)
        finally:
            self._sending = False
        self._send_window()

    def _send_window(self) -> None:
        while self._window is not None:
            rows, columns = self._window
            self._window = None
            try:
                self._connection.sendall(frame(Kind.RESIZE, rows.to_bytes(2, "big") + columns.to_bytes(2, "big")))
            except OSError:
                return  # it ended meanwhile

    def pump(self, stdin_fd: int, stdout_fd: int, stderr_fd: int, detach_keys: bytes = b"") -> Outcome:
        """Carry input and output until the container ends, the keys are typed, or the monitor is gone. Descriptors of the caller; -1 for none."""
        keys = DetachKeys(detach_keys)
        while True:
            if not self._frames:
                sources = [self.fileno()] + ([stdin_fd] if stdin_fd >= 0 else [])
                readable = select.select(sources, [], [])[0]
                if stdin_fd in readable and not self._forward_input(stdin_fd, keys):
                    if keys.complete:
                        return Outcome(None, True)
                    stdin_fd = -1
                if self.fileno() not in readable:
                    continue
            received = self.receive()
            if received is None:
                return Outcome(self.exit_code)
            kind, payload = received
            if kind in (Kind.STDOUT, Kind.STDERR):
                _write_all(stdout_fd if kind == Kind.STDOUT else stderr_fd, payload)
            elif kind == Kind.EVENT:
                happened = msgspec.json.decode(payload, type=Event)
                if happened.event == "error":
                    raise from_parts(happened.error)
                if happened.event == "exited":
                    self.exit_code = happened.exit_code
                    return Outcome(self.exit_code)

    def wait_exit(self, timeout_s: float | None = None) -> int | None:
        """Discard output until the container ends; None where the monitor vanished first. TimeoutError after ``timeout_s``."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            # What has arrived already is in our buffer, where select(2) cannot see it.
            if deadline is not None and not self._frames and not select.select([self], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError
            received = self.receive()
            if received is None:
                return None
            kind, payload = received
            if kind == Kind.EVENT and (happened := msgspec.json.decode(payload, type=Event)).event == "exited":
                return happened.exit_code

    def _forward_input(self, stdin_fd: int, keys: DetachKeys) -> bool:
        """Pass on what can be read; False at the end of input or when the detach keys were typed."""
        try:
            data = os.read(stdin_fd, _CHUNK)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        try:
            if not data:
                self.close_stdin()
                return False
            data = keys.filter(data)
            if data:
                self.send_stdin(data)
        except (BrokenPipeError, ConnectionResetError):
            return False  # it ended meanwhile; the exit follows
        return not keys.complete


def _write_all(descriptor: int, data: bytes) -> None:
    """Write to the caller's descriptor, which may be non-blocking; a reader that went away is the caller's BrokenPipeError."""
    while data and descriptor >= 0:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:
            select.select([], [descriptor], [])
