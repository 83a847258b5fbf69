"""A hostile guest: whatever it says wrongly is one error on the host's side, which keeps no more than it asked for. The guest is played here."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterator

import pytest

from bulle.errors import BulleError, InvalidInput
from bulle.isolation.microvm.agent import Agent
from bulle.isolation.microvm.agent_program import agent_program
from bulle.isolation.microvm.agent_protocol import HEADER, INPUT_WINDOW_BYTES, OUTPUT_WINDOW_BYTES, Execution
from bulle.isolation.microvm.agent_session import Session

WINDOW, HELLO, RESULT, STARTED, OUTPUT, ERROR, EXITED = 4, 64, 65, 66, 67, 68, 69


def said(kind: int, session: int = 0, payload: bytes = b"") -> bytes:
    return HEADER.pack(len(payload), session, kind) + payload


GREETING = said(HELLO, 0, struct.pack("<I", 1) + b"6.1.0\0x86_64\0")
SUCCESS = struct.pack("<i", 0)
PID = struct.pack("<I", 7)


@pytest.fixture
def line() -> Iterator[tuple[Agent, socket.socket]]:
    """The host's side, greeted, and the guest's end."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        agent = Agent(ours)
        theirs.sendall(GREETING)
        assert agent.receive()
        yield agent, theirs


def asked(agent: Agent) -> tuple[Session, Session, Session, Session]:
    """Sessions 1 to 4: a command, one with stdin, a step, a list."""
    return agent.execute(Execution(("a",))), agent.execute(Execution(("b",), stdin=True)), agent.step("hostname", "x"), agent.list("/")


WRONG = {
    "unknown type": said(99, 1),
    "type of the host": said(1, 1),
    "too long": HEADER.pack(65537, 1, OUTPUT),
    "padding": struct.pack("<IIBBBB", 0, 1, OUTPUT, 1, 0, 0),
    "unknown session": said(RESULT, 77, SUCCESS),
    "no session": said(OUTPUT, 0, b"x"),
    "second greeting": GREETING,
    "started twice": said(STARTED, 1, PID) * 2,
    "started short": said(STARTED, 1, b"x"),
    "a step started": said(STARTED, 3, PID),
    "output before start": said(OUTPUT, 1, b"x"),
    "error output of a list": said(ERROR, 4, b"x"),
    "output of a step": said(OUTPUT, 3, b"x"),
    "output after its end": said(STARTED, 1, PID) + said(OUTPUT, 1) + said(OUTPUT, 1, b"x"),
    "ended twice": said(STARTED, 1, PID) + said(OUTPUT, 1) * 2,
    "more than a window": said(STARTED, 1, PID) + said(OUTPUT, 1, bytes(65536)) * 5,
    "exit before its streams": said(STARTED, 1, PID) + said(OUTPUT, 1) + said(EXITED, 1, PID),
    "exit before start": said(EXITED, 1, PID),
    "exit of a step": said(EXITED, 3, PID),
    "exit short": said(STARTED, 1, PID) + said(OUTPUT, 1) + said(ERROR, 1) + said(EXITED, 1, b""),
    "result after start": said(STARTED, 1, PID) + said(RESULT, 1, struct.pack("<i", 2)),
    "success without start": said(RESULT, 1, SUCCESS),
    "negative errno": said(RESULT, 3, struct.pack("<i", -2)),
    "large errno": said(RESULT, 3, struct.pack("<i", 4096)),
    "short result": said(RESULT, 3, b"\0\0"),
    "long result": said(RESULT, 3, SUCCESS + bytes(5000)),
    "result twice": said(RESULT, 3, SUCCESS) * 2,
    "list without its end": said(RESULT, 4, SUCCESS),
    "window of what was not sent": said(WINDOW, 2, struct.pack("<BI", 0, 1)),
    "window of no stdin": said(WINDOW, 1, struct.pack("<BI", 0, 1)),
    "window of a stream of the guest": said(WINDOW, 2, struct.pack("<BI", 1, 1)),
    "window of nothing": said(WINDOW, 2, struct.pack("<BI", 0, 0)),
    "short window": said(WINDOW, 2, b"\0"),
}


@pytest.mark.parametrize("words", WRONG.values(), ids=WRONG)
def test_every_wrong_word_is_one_error_for_good(line: tuple[Agent, socket.socket], words: bytes) -> None:
    agent, guest = line
    asked(agent)
    with pytest.raises(BulleError, match="does not keep to its protocol"):
        for at in range(0, len(words), 10_000):
            guest.sendall(words[at : at + 10_000])
            agent.receive()
    with pytest.raises(BulleError, match="does not keep to its protocol"):
        agent.receive()
    with pytest.raises(BulleError, match="does not keep to its protocol"):
        agent.step("hostname", "x")


@pytest.mark.parametrize(
    "greeting",
    [
        said(HELLO, 1, struct.pack("<I", 1) + b"a\0b\0"),
        said(HELLO, 0, struct.pack("<I", 2) + b"a\0b\0"),
        said(HELLO, 0, struct.pack("<I", 1) + b"a\0b"),
        said(HELLO, 0, struct.pack("<I", 1) + b"a" * 65 + b"\0b\0"),
        said(HELLO, 0, b"\1\0"),
        said(RESULT, 0, SUCCESS),
    ],
)
def test_wrong_greetings(greeting: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        agent = Agent(ours)
        theirs.sendall(greeting)
        with pytest.raises(BulleError, match="protocol"):
            agent.receive()


def test_right_words_in_pieces(line: tuple[Agent, socket.socket]) -> None:
    agent, guest = line
    command, fed, step, names = asked(agent)
    words = said(RESULT, 3, struct.pack("<i", 2) + b"mount \x1b[2J\xff") + said(OUTPUT, 4, b"a\0b\0") + said(OUTPUT, 4) + said(RESULT, 4, SUCCESS)
    words += said(STARTED, 1, PID) + said(OUTPUT, 1, b"out") + said(ERROR, 1) + said(OUTPUT, 1) + said(EXITED, 1, struct.pack("<I", 3 << 8))
    for byte in words:
        guest.sendall(bytes([byte]))
        assert agent.receive()
    assert (step.error, step.text) == (2, "mount ?[2J\N{REPLACEMENT CHARACTER}")
    assert bytes(names.content) == b"a\0b\0"
    assert (command.pid, bytes(command.output.data), command.status) == (7, b"out", 3 << 8)
    assert agent.sessions == (fed,)
    with pytest.raises(BulleError, match=r"it: mount \?"):
        step.raise_error("it")
    guest.shutdown(socket.SHUT_WR)
    assert agent.receive() is False
    assert agent.ended


def test_content_is_as_long_as_was_asked(line: tuple[Agent, socket.socket]) -> None:
    agent, guest = line
    agent.read("/x", 10)
    guest.sendall(said(OUTPUT, 1, bytes(11)))
    with pytest.raises(BulleError, match="more content"):
        agent.receive()


def test_nothing_is_kept_beyond_a_window(line: tuple[Agent, socket.socket]) -> None:
    agent, guest = line
    session = agent.execute(Execution(("a",), stdin=True))
    guest.sendall(said(STARTED, 1, PID))
    assert agent.receive()
    guest.setblocking(False)
    for _ in range(OUTPUT_WINDOW_BYTES // 8192):
        guest.sendall(said(OUTPUT, 1, bytes(8192)))
        agent.receive()
    assert len(session.output.data) == OUTPUT_WINDOW_BYTES
    # A guest that takes nothing is sent a window, and no more.
    assert session.send(bytes(1 << 20)) == INPUT_WINDOW_BYTES
    assert session.send(b"x") == 0
    assert agent.queued_bytes < 2 * INPUT_WINDOW_BYTES


def test_random_and_mutated_words_never_do_worse() -> None:
    numbers = random.Random(20260101)
    right = [said(STARTED, 1, PID), said(OUTPUT, 1, b"x" * 50), said(ERROR, 1), said(RESULT, 3, SUCCESS), said(OUTPUT, 4), said(RESULT, 4, SUCCESS)]
    right += [GREETING, said(EXITED, 1, PID), said(OUTPUT, 2, bytes(3000)), said(WINDOW, 2, struct.pack("<BI", 0, 9)), said(STARTED, 2, PID)]
    refused = 0
    for _ in range(3000):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            agent = Agent(ours)
            sessions = asked(agent)
            words = bytearray(GREETING + b"".join(numbers.choices(right, k=numbers.randrange(12))))
            for _ in range(numbers.randrange(4)):
                words[numbers.randrange(len(words))] = numbers.randrange(256)
            if numbers.random() < 0.1:
                words += numbers.randbytes(numbers.randrange(300))
            try:
                for at in range(0, len(words), 700):
                    agent.feed(bytes(words[at : at + 700]))
            except BulleError:
                refused += 1
            assert all(len(session.output.data) <= OUTPUT_WINDOW_BYTES and len(session.content) <= 1 << 24 for session in sessions)
    assert 500 < refused < 3000


def test_what_cannot_be_said_is_refused_here(line: tuple[Agent, socket.socket]) -> None:
    agent, _guest = line
    for wrong in (Execution(("a",), user_id=-1), Execution(("a\0b",)), Execution(("a",), limits=((1, 2, 2**70),), rows=70000)):
        with pytest.raises(InvalidInput):
            agent.execute(wrong)
    with pytest.raises(InvalidInput):
        agent.step(*["x"] * 9)
    assert not agent.sessions


def test_a_processor_that_there_is_no_agent_for() -> None:
    with pytest.raises(BulleError, match="s390x are not available"):
        agent_program("s390x")
