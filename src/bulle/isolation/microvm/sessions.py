"""Commands in a guest, seen from the host: who asks the shepherd for one, and how its streams are carried.

``exec`` is a process that sends its descriptors to the shepherd over ``vm.sock`` in the container's directory and waits; the shepherd copies between
them and the guest's agent, never more than the other side takes. unix(7), pty(7)
"""

from __future__ import annotations

import fcntl
import gc
import os
import select
import signal
import socket
import struct
import termios
import tty
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

import msgspec

from bulle.errors import BulleError, from_parts, to_parts
from bulle.isolation.channel import Channel
from bulle.isolation.launch import ChildKit
from bulle.isolation.microvm.agent_session import Session, Stream
from bulle.model.run_plan import Process, RunPlan

SOCKET_NAME = "vm.sock"
_LONGEST = 1 << 18
_CHUNK_BYTES = 65536


class Request(msgspec.Struct, frozen=True, tag=True):
    """One more command for the guest. Three descriptors come with it."""

    process: Process
    filter_program: bytes = b""


class FileRequest(msgspec.Struct, frozen=True, tag=True):
    """Work on the guest's files. One descriptor comes with it, for what is read or written; ``set`` writes ``name`` into a setting."""

    kind: Literal["read", "list", "stat", "tar-out", "tar-in", "set", "sync"]
    path: str
    flags: int = 0
    name: str = ""
    without: tuple[str, ...] = ()
    most: int = 4 << 20


class EndRequest(msgspec.Struct, frozen=True, tag=True):
    """Kill the command, and switch the guest off. Nothing is answered."""


class TemplateRequest(msgspec.Struct, frozen=True, tag=True):
    """Hand out the memory of the template that this machine was begun from, if it is this one: a descriptor comes with the answer."""

    key: str


class KeepRequest(msgspec.Struct, frozen=True, tag=True):
    """Have the machine stand still and keep it (:mod:`bulle.isolation.microvm.checkpoint`). Two descriptors come with it, for its state and for
    what is known of it; the answer is ``done``, and the machine goes on when the client goes away."""


class StandRequest(msgspec.Struct, frozen=True, tag=True):
    """Have a machine with a system of its own stand still, and all that it wrote be in its files. The answer is ``done``, and the machine goes on
    when the client goes away."""


class Word(msgspec.Struct, frozen=True):
    """From the shepherd: ``running``, ``error`` (its parts), ``exited`` (a wait status), ``done`` (an errno); to it ``signal`` and ``resize``."""

    kind: str
    number: int = 0
    parts: tuple[str, ...] = ()
    rows: int = 0
    columns: int = 0


Condition = Callable[[], bool]

words = msgspec.json.Decoder(Word)
requests = msgspec.json.Decoder(Request | FileRequest | EndRequest | TemplateRequest | KeepRequest | StandRequest)


def listen(directory: str, name: str = SOCKET_NAME, kind: int = socket.SOCK_SEQPACKET) -> socket.socket:
    """Where the shepherd is asked, in the container's host directory; or another socket there."""
    listener = socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    with _near(directory, name) as path:
        with suppress(FileNotFoundError):
            os.unlink(path)
        listener.bind(path)
        os.chmod(path, 0o600)
    listener.listen(64)
    return listener


def connect(directory: str, *, blocking: bool = True) -> socket.socket:
    """A connection to the shepherd of a container, by its host directory. Raises OSError where none listens."""
    line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | (0 if blocking else socket.SOCK_NONBLOCK))
    with _near(directory) as path:
        line.connect(path)
    return line


def send(line: socket.socket, request: StandRequest | EndRequest) -> None:
    """Ask the shepherd for what takes no descriptors. Raises OSError."""
    line.send(msgspec.json.encode(request))


def end(directory: str) -> None:
    """Have the shepherd of a container end its machine. Raises OSError where none listens, or it takes no more requests."""
    with connect(directory, blocking=False) as line:
        send(line, EndRequest())


def open_terminal(channel: Channel, wanted: Process) -> int:
    """A terminal whose master goes to the driver; returns its other side, as it is: the guest's own terminal does all that a terminal does."""
    master, slave = os.openpty()
    if wanted.rows and wanted.columns:
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", wanted.rows, wanted.columns, 0, 0))
    tty.setraw(slave)
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    channel.report("terminal", descriptor=master)
    os.close(master)
    return slave


def close_all_but(kept: Iterable[int]) -> None:
    """Close what came from the process that this one was forked from, and keep the three standard streams and these.

    A process that executes something else is rid of it by that; one that stays must not hold other containers' pipes and locks.
    """
    keep = {0, 1, 2, *kept}
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            with suppress(OSError):
                os.close(int(name))


def window_of(terminal: int) -> tuple[int, int]:
    """Rows and columns."""
    rows, columns, _x, _y = struct.unpack("HHHH", fcntl.ioctl(terminal, termios.TIOCGWINSZ, bytes(8)))
    return rows, columns


def watch_signals() -> int:
    """From now on every signal that this process gets is a byte with its number, to be read from the returned descriptor."""
    reading, writing = socket.socketpair()
    for end in (reading, writing):
        end.setblocking(False)
    signal.set_wakeup_fd(writing.detach(), warn_on_full_buffer=False)
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGPIPE):
            with suppress(OSError, ValueError):
                signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    return reading.detach()


def exit_code(status: int) -> int:
    """What a shell says of a wait status."""
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def ask(plan: RunPlan, channel: Channel, wanted: Process, kit: ChildKit) -> None:
    """Have a command run in the guest, and end with its exit code; never returns."""
    close_all_but((channel.fileno(), kit.stdio.stdin, kit.stdio.stdout, kit.stdio.stderr))
    gc.disable()
    woken = watch_signals()
    try:
        line = connect(plan.state_host_path)
    except OSError as error:
        raise BulleError("the container is not running", "its machine has ended", "start it first") from error
    terminal = open_terminal(channel, wanted) if wanted.terminal else -1
    descriptors = [terminal] * 3 if terminal >= 0 else [kit.stdio.stdin, kit.stdio.stdout, kit.stdio.stderr]
    socket.send_fds(line, [msgspec.json.encode(Request(wanted, kit.filter_program or b""))], descriptors)
    for descriptor in {*descriptors} - {terminal}:
        os.close(descriptor)  # who reads them sees the end when the guest's side has ended
    poll = select.poll()
    for descriptor in (line.fileno(), woken):
        poll.register(descriptor, select.POLLIN)
    started = False
    while True:
        for descriptor, _events in poll.poll():
            if descriptor == woken:
                for number in os.read(woken, 256):
                    _tell_signal(line, number, terminal)
                continue
            data = line.recv(_LONGEST)
            if not data:
                if not started:
                    raise BulleError("the command could not be started", "the machine ended", "see `bulle why`")
                os._exit(128 + signal.SIGKILL)
            word = words.decode(data)
            if word.kind == "error":
                raise from_parts(word.parts)
            if word.kind == "running":
                started = True
                channel.report("running")
                channel.close()
            elif word.kind == "exited":
                os._exit(exit_code(word.number))


def _tell_signal(line: socket.socket, number: int, terminal: int) -> None:
    if number == signal.SIGCHLD:
        return
    word = Word("signal", number)
    if number == signal.SIGWINCH and terminal >= 0:
        rows, columns = window_of(terminal)
        word = Word("resize", rows=rows, columns=columns)
    with suppress(OSError):
        line.send(msgspec.json.encode(word))


def refuse(client: socket.socket, descriptors: Sequence[int], error: Exception) -> None:
    """Tell a client why its command was not started, and let go of what it sent."""
    for descriptor in descriptors:
        with suppress(OSError):
            os.close(descriptor)
    failure = error if isinstance(error, BulleError) else BulleError("the command could not be started", str(error))
    tell(client, Word("error", parts=to_parts(failure)))
    client.close()


def tell(client: socket.socket, word: Word) -> None:
    """Send it a word, if it still listens."""
    with suppress(OSError):
        client.send(msgspec.json.encode(word))


@contextmanager
def _near(directory: str, name: str = SOCKET_NAME) -> Iterator[str]:
    """A path to the socket that fits into an address, whatever the directory's own length."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)


@dataclass
class Sink:
    """A descriptor that is written to as it takes it, from what has arrived of a stream. A broken one swallows the rest."""

    descriptor: int
    stream: Stream
    session: Session

    def __post_init__(self) -> None:
        os.set_blocking(self.descriptor, False)

    @property
    def wants_to_write(self) -> bool:
        """Whether its descriptor must be watched."""
        return bool(self.stream.data) and self.descriptor >= 0

    @property
    def done(self) -> bool:
        """Whether nothing more will be written."""
        return self.descriptor < 0 and not self.stream.data

    def flush(self) -> None:
        """Write what can be written now; the guest may then send as much more."""
        while data := self.stream.data:
            try:
                written = os.write(self.descriptor, data) if self.descriptor >= 0 else len(data)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self.close()
                continue
            self.stream.consume(written)
        if self.stream.ended or self.session.final:
            self.close()

    def close(self) -> None:
        """Nothing more is written."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def read_input(descriptor: int, most: int) -> bytes | None:
    """What there is to read, at most so much; empty at the end, None where there is nothing now."""
    try:
        return os.read(descriptor, min(most, _CHUNK_BYTES))
    except (BlockingIOError, InterruptedError):
        return None
    except OSError:  # a terminal whose other side is gone
        return b""


@dataclass
class Relay:
    """One request to the guest, and the host's descriptors that are its streams. ``client`` asked for it; None for the container's command."""

    session: Session
    stdin: int
    sinks: tuple[Sink, ...]
    client: socket.socket | None = None
    terminal: int = -1
    unsent: bytes = b""

    @property
    def finished(self) -> bool:
        """Whether it has ended, and all that came from it has gone."""
        return self.session.final and all(sink.done for sink in self.sinks)

    @property
    def wants_input(self) -> bool:
        """Whether the guest would take more, and this side has not ended."""
        return self.stdin >= 0 and self.session.room > 0

    def carry_output(self) -> None:
        """Write what has arrived, as far as it is taken."""
        for sink in self.sinks:
            sink.flush()

    def carry_input(self) -> None:
        """Read what there is, and send it."""
        data = read_input(self.stdin, self.session.room)
        if data:
            self.session.send(data)
        elif data is not None:
            self.session.end_input()
            os.close(self.stdin)
            self.stdin = -1

    def close(self) -> None:
        """Let go of the streams."""
        if self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1
        for sink in self.sinks:
            sink.close()


@dataclass
class Opening:
    """A command that is being started for a client; the rest of its ``steps`` is done once it is ``ready``."""

    steps: Iterator[Condition]
    ready: Condition
    client: socket.socket
    descriptors: list[int]
