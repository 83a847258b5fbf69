"""The host's side of the conversation with a guest's agent: one socket, any number of sessions, no threads.

The shepherd of a virtual machine owns an :class:`Agent` and calls :meth:`Agent.receive` and :meth:`Agent.flush` when poll(2) says so; everything else
only queues words or looks at what has arrived. The guest is nobody's friend: whatever it says out of turn, too long or of unknown sessions raises
one BulleError, after which the connection is dead, and it cannot make this side keep more than a window for each stream that was asked for.
What is not here: what a container needs (steps are the driver's), and where streams go. ``docs/vm-agent.md``
"""

from __future__ import annotations

import dataclasses
import socket
import struct
from collections.abc import Sequence

from bulle.errors import BulleError, Conflict
from bulle.isolation.microvm.agent_protocol import (
    HEADER,
    MOST_PAYLOAD_BYTES,
    MOST_SESSIONS,
    VERSION,
    Execution,
    FileFlags,
    FromGuest,
    FromHost,
    execution_frames,
    frame,
    preparation_payload,
    step_payload,
    strings,
)
from bulle.isolation.microvm.agent_session import Session, malformed
from bulle.isolation.microvm.agent_state import AgentState

_MOST_NAMES_BYTES = 16 << 20


@dataclasses.dataclass(frozen=True)
class Hello:
    """What the guest says of itself first: its kernel's release and its processor (uname(2)). The guest's word, good for messages only."""

    release: str
    machine: str


class Agent:
    """The connection to one guest. Every method returns at once."""

    def __init__(self, line: socket.socket) -> None:
        line.setblocking(False)
        self.line = line
        self.hello: Hello | None = None
        self.ended = False
        self._greeted = 1  # greetings that the guest owes
        self._sessions: dict[int, Session] = {}
        self._next_number = 1
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self._failure: BulleError | None = None
        self.received_bytes = 0
        self.held = False
        """Whether nothing is sent for now: words wait here, where another process can go on with them."""

    @classmethod
    def continued(cls, line: socket.socket, state: AgentState) -> Agent:
        """The connection to a guest that was kept while it spoke to another process."""
        agent = cls(line)
        agent.hello, agent._greeted = Hello(state.release, state.machine), 0
        agent._next_number, agent._incoming[:], agent._outgoing[:] = state.next_number, state.incoming, state.outgoing
        agent._sessions = {one.number: Session.continued(agent, one) for one in state.sessions}
        return agent

    def state(self) -> AgentState:
        """What another process has to know to go on, once the guest has all that was sent and stands still."""
        assert self.hello is not None
        sessions = tuple(one.state() for one in self._sessions.values())
        return AgentState(self.hello.release, self.hello.machine, self._next_number, bytes(self._incoming), sessions, bytes(self._outgoing))

    def fileno(self) -> int:
        """The socket's descriptor, for poll(2): always for reading, for writing where :attr:`wants_to_write`."""
        return self.line.fileno()

    @property
    def wants_to_write(self) -> bool:
        """Whether words wait to be sent."""
        return bool(self._outgoing) and not self.held

    @property
    def queued_bytes(self) -> int:
        """How much waits to be sent."""
        return len(self._outgoing)

    @property
    def sessions(self) -> Sequence[Session]:
        """Those that are not final."""
        return tuple(self._sessions.values())

    def queue(self, words: bytes) -> None:
        """Words to be sent as soon as the socket takes them. Raises what ended the connection."""
        if self._failure:
            raise self._failure
        self._outgoing += words

    def flush(self) -> None:
        """Send what the socket takes."""
        while self.wants_to_write and not self.ended:
            try:
                sent = self.line.send(memoryview(self._outgoing)[: 1 << 18], socket.MSG_NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self.ended = True
                return
            del self._outgoing[:sent]

    def receive(self) -> bool:
        """Take what has arrived, once; False where the guest has hung up. Raises one BulleError for whatever is not the protocol, and again."""
        if self._failure:
            raise self._failure
        try:
            data = self.line.recv(1 << 18)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            data = b""
        if not data:
            self.ended = True
            return False
        self.received_bytes += len(data)
        try:
            self.feed(data)
        except BulleError as error:
            self._failure = error
            raise
        return True

    def feed(self, data: bytes) -> None:
        """Bytes of the guest, as they come."""
        self._incoming += data
        at = 0
        view = memoryview(self._incoming)
        try:
            while len(view) - at >= HEADER.size:
                length, number, kind = HEADER.unpack_from(view, at)
                if length > MOST_PAYLOAD_BYTES or any(view[at + 9 : at + 12]):
                    raise malformed("a frame that is too long")
                if len(view) - at - HEADER.size < length:
                    break
                at += HEADER.size
                with view[at : at + length] as payload:
                    self._take_frame(kind, number, payload)
                at += length
        finally:
            view.release()
        del self._incoming[:at]

    def _take_frame(self, kind_number: int, number: int, payload: memoryview) -> None:
        try:
            kind = FromGuest(kind_number)
        except ValueError:
            raise malformed(f"a frame of type {kind_number}") from None
        if kind is FromGuest.HELLO:
            self._take_hello(number, payload)
            return
        session = self._sessions.get(number)
        if self.hello is None or session is None:
            raise malformed("it speaks of a session that does not exist")
        session.arrive(kind, payload)
        if session.final:
            del self._sessions[number]

    def _take_hello(self, number: int, payload: memoryview) -> None:
        words = bytes(payload[4:]).split(b"\0")
        if number or not self._greeted or len(payload) < 4 or len(words) != 3 or words[2] or max(map(len, words)) > 64:
            raise malformed("a greeting out of turn")
        (version,) = struct.unpack_from("<I", payload)
        if version != VERSION:
            brief = f"the virtual machine's agent speaks version {version} of its protocol"
            raise BulleError(brief, f"{VERSION} is spoken here", "install Bulle anew")
        release, machine = ("".join(chr(byte) if 32 < byte < 127 else "?" for byte in word) for word in words[:2])
        self.hello = Hello(release, machine)
        self._greeted -= 1

    def greet(self, *, again: bool = True) -> None:
        """Ask the guest to say hello again: after it was restored from a template there is nothing else to know it by.

        Without ``again`` it has not said it to this side yet.
        """
        self._greeted += again
        self.hello = None
        self.queue(frame(FromHost.GREET, 0))

    def step(self, *words: str) -> Session:
        """Have one step done; until the first command runs, steps are done in the order in which they are asked."""
        return self._ask(FromHost.STEP, step_payload(words))

    def prepare(self, steps: Sequence[tuple[str, ...]]) -> Session:
        """Have the container's process 1 made, and these steps done in its namespaces, ahead of its command: the next first execution is its."""
        return self._ask(FromHost.PREPARE, preparation_payload(steps))

    def execute(self, wanted: Execution) -> Session:
        """Start a command. Raises InvalidInput where it cannot be said; what the guest thinks of it is in the session."""
        session = self._new_session(FromHost.EXEC, terminal=wanted.terminal, stdin=wanted.stdin)
        payload = wanted.pack()
        self._sessions[session.number] = session
        self.queue(execution_frames(session.number, payload))
        return session

    def read(self, path: str, most_bytes: int = MOST_PAYLOAD_BYTES, *, own_root: bool = False) -> Session:
        """Have the beginning of a regular file, at most ``most_bytes``, in the session's ``content``."""
        session = self._ask(FromHost.READ, struct.pack("<II", int(own_root), most_bytes) + strings([path]))
        session.content_limit = most_bytes
        return session

    def list(self, path: str, *, own_root: bool = False) -> Session:
        """Have the names in a directory, each ending with NUL, in the session's ``content``."""
        session = self._ask(FromHost.LIST, struct.pack("<I", int(own_root)) + strings([path]))
        session.content_limit = _MOST_NAMES_BYTES
        return session

    def stat(self, path: str, flags: FileFlags = FileFlags(0)) -> Session:  # noqa: B008 -- a constant
        """Have mode, owner, size and time of what is there (``<IIIQq``), and where a symlink leads, in the session's ``content``."""
        session = self._ask(FromHost.STAT, struct.pack("<I", flags) + strings([path]))
        session.content_limit = MOST_PAYLOAD_BYTES
        return session

    def tar_out(
        self, path: str, leave_out: Sequence[str] = (), flags: FileFlags = FileFlags(0), name: str = ""  # noqa: B008 -- a constant
    ) -> Session:
        """Have a tar as the session's ``output``, under a name; without one a directory is ``./`` with what is below, anything else its last name."""
        return self._ask(FromHost.TAR_OUT, struct.pack("<I", flags) + strings([path, name, *leave_out]))

    def tar_in(self, path: str, flags: FileFlags = FileFlags(0)) -> Session:  # noqa: B008 -- a constant
        """Extract the tar that is then sent to the session, in a directory that exists."""
        return self._ask(FromHost.TAR_IN, struct.pack("<I", flags) + strings([path]))

    def power_off(self) -> None:
        """Have everything in the guest end, and then the guest."""
        self.queue(frame(FromHost.POWER_OFF, 0))

    def _new_session(self, kind: FromHost, *, terminal: bool = False, stdin: bool = False) -> Session:
        if len(self._sessions) >= MOST_SESSIONS:
            raise Conflict("the virtual machine has too many commands at once", f"{MOST_SESSIONS} are running", "wait until one has ended")
        while self._next_number in self._sessions or not self._next_number:
            self._next_number = (self._next_number + 1) & 0xFFFFFFFF
        number = self._next_number
        self._next_number = (number + 1) & 0xFFFFFFFF
        return Session(self, number, kind, terminal=terminal, stdin=stdin)

    def _ask(self, kind: FromHost, payload: bytes) -> Session:
        session = self._new_session(kind)
        self._sessions[session.number] = session
        session.say(kind, payload)
        return session
