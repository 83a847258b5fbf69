"""One request to a guest's agent and what becomes of it: a command, a step, or work on files; its streams and their windows.

Made by :class:`bulle.isolation.microvm.agent.Agent`, which carries the frames. Every word of the guest is checked here against what was asked of it.
``docs/vm-agent.md``
"""

from __future__ import annotations

import os
import struct
from typing import Protocol

from bulle.errors import BulleError, CommandNotExecutable, CommandNotFound
from bulle.isolation.microvm.agent_protocol import (
    INPUT_WINDOW_BYTES,
    MOST_PAYLOAD_BYTES,
    OUTPUT_WINDOW_BYTES,
    FromGuest,
    FromHost,
    frame,
)
from bulle.isolation.microvm.agent_state import SessionState, StreamState

STDIN, STDOUT, STDERR = 0, 1, 2
_WINDOW = struct.Struct("<BI")
_MOST_QUEUED_BYTES = 1 << 20  # of DATA that this side has not got rid of
_MOST_TEXT_BYTES = 4096
_TOLD_AFTER_BYTES = 65536
WITH_OUTPUT = (FromHost.EXEC, FromHost.TAR_OUT, FromHost.READ, FromHost.LIST, FromHost.STAT)


class Carrier(Protocol):
    """What takes a session's frames to the guest."""

    @property
    def queued_bytes(self) -> int: ...

    def queue(self, words: bytes) -> None: ...


def malformed(what: str) -> BulleError:
    """The one error for everything that a guest says wrongly."""
    return BulleError("the virtual machine's agent does not keep to its protocol", what, "the machine is not to be trusted any more and is ended")


class Stream:
    """What came from the guest and was not consumed yet: at most a window."""

    def __init__(self, session: Session, number: int) -> None:
        self.data = bytearray()
        self.ended = False
        self._session = session
        self._number = number
        self._in_flight = 0  # bytes that the guest sent and was not told to be consumed

    def arrive(self, payload: memoryview) -> None:
        """Called by :class:`Agent` with a frame's payload."""
        if not payload:
            self.ended = True
            return
        self._in_flight += len(payload)
        if self._in_flight > OUTPUT_WINDOW_BYTES:
            raise malformed("it sent more than it may")
        self.data += payload

    def state(self) -> StreamState:
        """See :mod:`bulle.isolation.microvm.agent_state`."""
        return StreamState(bytes(self.data), self.ended, self._in_flight)

    def continue_from(self, state: StreamState) -> None:
        """Be what another process's stream was."""
        self.data[:], self.ended, self._in_flight = state.data, state.ended, state.in_flight

    def consume(self, count: int) -> None:
        """The first ``count`` bytes of ``data`` are done with; the guest may send as many more."""
        del self.data[:count]
        free = self._in_flight - len(self.data)
        if free and (free >= _TOLD_AFTER_BYTES or not self.data) and not self.ended and not self._session.final:
            self._in_flight -= free
            self._session.say(FromHost.WINDOW, _WINDOW.pack(self._number, free))

    def take(self) -> bytes:
        """All that is there, consumed."""
        data = bytes(self.data)
        self.consume(len(data))
        return data


class Session:
    """One request and what becomes of it: a command, a step, or work on files.

    ``final`` when there is nothing more to come: then ``error`` (an errno; 0: done) and ``text`` (what failed) are right, and a command that was
    executed has its ``status`` (as wait(2) gives it) and had its ``pid`` (in the guest). ``output`` has stdout, the terminal or the tar.
    """

    def __init__(self, agent: Carrier, number: int, kind: FromHost, *, terminal: bool = False, stdin: bool = False) -> None:
        self.number = number
        self.kind = kind
        self.final = False
        self.started = False
        self.pid = 0
        self.error = 0
        self.text = ""
        self.status = -1
        self.closed = False
        self.output = Stream(self, STDOUT)
        self.errors = Stream(self, STDERR)
        self.content = bytearray()
        self.content_limit = 0
        self.terminal = terminal
        self._agent = agent
        self._takes_input = stdin or terminal or kind is FromHost.TAR_IN
        self._credit = INPUT_WINDOW_BYTES if self._takes_input else 0
        self._input_ended = not self._takes_input

    def state(self) -> SessionState:
        """See :mod:`bulle.isolation.microvm.agent_state`."""
        return SessionState(
            self.number, int(self.kind), self.started, self.pid, self.terminal, self._takes_input, self._input_ended, self.closed, self._credit,
            self.output.state(), self.errors.state(),
        )  # fmt: skip

    @classmethod
    def continued(cls, agent: Carrier, state: SessionState) -> Session:
        """One that another process began."""
        session = cls(agent, state.number, FromHost(state.kind), terminal=state.terminal, stdin=state.takes_input)
        session.started, session.pid, session.closed = state.started, state.pid, state.closed
        session._input_ended, session._credit = state.input_ended, state.credit
        session.output.continue_from(state.output)
        session.errors.continue_from(state.errors)
        return session

    def say(self, kind: FromHost, payload: bytes | memoryview = b"") -> None:
        """Queue one frame of this session."""
        self._agent.queue(frame(kind, self.number, payload))

    @property
    def room(self) -> int:
        """Bytes that :meth:`send` takes now; more after the guest has consumed some, or the queue has gone out."""
        if self._input_ended or self.final or self.closed:
            return 0
        return max(0, min(self._credit, _MOST_QUEUED_BYTES - self._agent.queued_bytes))

    def send(self, data: bytes | memoryview) -> int:
        """Bytes for stdin (or of the tar), as many as there is room for; returns how many that were."""
        view = memoryview(data)[: self.room]
        for at in range(0, len(view), MOST_PAYLOAD_BYTES):
            self.say(FromHost.DATA, view[at : at + MOST_PAYLOAD_BYTES])
        self._credit -= len(view)
        return len(view)

    def end_input(self) -> None:
        """Nothing more comes. A terminal stays open."""
        if not self._input_ended and not self.final:
            self._input_ended = True
            self.say(FromHost.DATA)

    def signal(self, number: int) -> None:
        """Send a signal to the session's process; nothing happens where it has ended."""
        if not self.final:
            self.say(FromHost.SIGNAL, struct.pack("<I", number))

    def resize(self, rows: int, columns: int) -> None:
        """The size of its terminal, in characters."""
        if not self.final:
            self.say(FromHost.WINSIZE, struct.pack("<HH", min(rows, 65535), min(columns, 65535)))

    def close(self) -> None:
        """Kill what is left of it; what it still says is dropped, and ``final`` comes soon."""
        if not self.final and not self.closed:
            self.closed = True
            self.say(FromHost.CLOSE)

    def raise_error(self, what: str) -> None:
        """Raise what the guest said to have failed, if anything did; ``what`` begins the sentence. A command gets 126 and 127 as a shell says it."""
        if not self.error:
            return
        why = os.strerror(self.error)
        if self.kind is FromHost.EXEC and self.text == "exec":
            if self.error == 2:
                raise CommandNotFound(f"{what}: no such command in the container", "neither it, nor perhaps its interpreter", "check its name")
            raise CommandNotExecutable(f"{what}: cannot be executed", why, "")
        raise BulleError(what, f"{self.text}: {why}" if self.text else why)

    def arrive(self, kind: FromGuest, payload: memoryview) -> None:
        """Called by :class:`Agent` with each frame of this session. Raises BulleError for one out of turn."""
        if kind is FromGuest.RESULT:
            self._take_result(payload)
        elif kind in (FromGuest.OUTPUT, FromGuest.ERROR):
            self._take_output(kind, payload)
        elif kind is FromGuest.STARTED:
            if self.kind is not FromHost.EXEC or self.started or len(payload) != 4:
                raise malformed("a command started that was not asked for")
            self.started = True
            (self.pid,) = struct.unpack("<I", payload)
        elif kind is FromGuest.EXITED:
            if not self.started or len(payload) != 4 or not self.output.ended or not self.errors.ended:
                raise malformed("a command ended before its streams")
            (self.status,) = struct.unpack("<I", payload)
            self.final = True
        elif kind is FromGuest.WINDOW:
            if len(payload) != _WINDOW.size:
                raise malformed("a window of a wrong size")
            stream, count = _WINDOW.unpack(payload)
            if stream != STDIN or not self._takes_input or not 0 < count <= INPUT_WINDOW_BYTES - self._credit:
                raise malformed("it consumed what was not sent")
            self._credit += count
        else:
            raise malformed("it greets a session")

    def _take_result(self, payload: memoryview) -> None:
        if not 4 <= len(payload) <= _MOST_TEXT_BYTES or self.started:
            raise malformed("a result out of turn")
        (self.error,) = struct.unpack_from("<i", payload)
        if not 0 <= self.error < 4096 or (not self.error and self.kind is FromHost.EXEC):
            raise malformed("a result that is none")
        if not self.error and self.kind in WITH_OUTPUT and not self.output.ended and not self.closed:
            raise malformed("a result before its content")
        text = bytes(payload[4:]).decode(errors="replace")
        self.text = "".join(character if character.isprintable() else "?" for character in text)
        self.final = True

    def _take_output(self, kind: FromGuest, payload: memoryview) -> None:
        stream = self.output if kind is FromGuest.OUTPUT else self.errors
        allowed = self.started if self.kind is FromHost.EXEC else self.kind in WITH_OUTPUT and stream is self.output
        if not allowed or stream.ended or (self.terminal and stream is self.errors and payload):
            raise malformed("output out of turn")
        stream.arrive(payload)
        if self.content_limit and payload:
            if len(self.content) + len(payload) > self.content_limit:
                raise malformed("more content than was asked for")
            self.content += stream.take()
        if self.closed:
            stream.take()
