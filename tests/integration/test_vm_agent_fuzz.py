"""A hostile or broken host's stream: the agent answers or ends with its own word, never by a signal. In a user namespace of nobody's."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import struct
import time
from pathlib import Path

import pytest

from bulle.isolation.microvm.agent_protocol import HEADER, Execution, FromHost, frame, preparation_payload
from bulle_testing.guests import PATH, agent_line

pytestmark = [pytest.mark.user_namespaces, pytest.mark.programs("unshare", "pivot_root", "setpriv")]

ROUNDS = 60


def right_words() -> list[bytes]:
    """Frames that make sense, with session numbers that meet."""
    commands = (("true",), ("cat",), ("sh", "-c", "echo a; echo b >&2; exit 3"), ("yes",), ("nowhere",))
    words = []
    for number, arguments in enumerate(commands, 1):
        for first in (True, False):
            wanted = Execution(
                arguments,
                (PATH,),
                first=first,
                stdin=number % 2 == 0,
                terminal=number == 3,
                groups=(1, 2),
                limits=((7, 64, 64),),
                steps=(("mkdir", "tmp/x", "755"),),
            )
            words.append(frame(FromHost.EXEC, number, wanted.pack()))
    words.append(frame(FromHost.EXEC, 9, Execution(first=True, idle=True).pack()))
    steps = (("mkdir", "tmp/a/b", "700"), ("file", "/tmp/f", "600"), ("write", "/tmp/f", "x"), ("symlink", "/", "tmp/l"), ("umount", "tmp", "2"))
    steps += (
        ("mount", "tmpfs", "tmp", "tmpfs", "0", "size=1m"),
        ("address", "lo", "10.0.0.1/8"),
        ("link", "lo", "up"),
        ("hostname", "h"),
        ("wait", "tmp/w", "3"),
    )
    for number, step in enumerate(steps, 20):
        words.append(frame(FromHost.STEP, number, b"".join(word.encode() + b"\0" for word in step)))
    for number in (1, 2, 3, 4, 40, 41, 77):
        words += [frame(FromHost.DATA, number, b"data"), frame(FromHost.DATA, number), frame(FromHost.SIGNAL, number, struct.pack("<I", 15))]
        words += [
            frame(FromHost.CLOSE, number),
            frame(FromHost.WINSIZE, number, bytes(4)),
            frame(FromHost.WINDOW, number, struct.pack("<BI", 1, 100)),
        ]
    flags = struct.pack("<I", 0)
    words += [
        frame(FromHost.TAR_IN, 40, flags + b"tmp\0"),
        frame(FromHost.TAR_OUT, 41, flags + b"bin\0sh\0"),
        frame(FromHost.LIST, 42, flags + b"/\0"),
    ]
    words += [frame(FromHost.READ, 43, flags + struct.pack("<I", 9) + b"bin/busybox\0"), frame(FromHost.GREET, 0), frame(FromHost.MORE, 5, bytes(9))]
    words += [frame(FromHost.PREPARE, 44, preparation_payload([("mkdir", "a", "755")])), frame(FromHost.PREPARE, 45, bytes(3))]
    return words


def drained(line: socket.socket, patience_s: float) -> tuple[bool, list[int]]:
    """Whether the agent hung up, and the types of the frames that came, which are whole."""
    data, ended, deadline = bytearray(), False, time.monotonic() + patience_s
    while not ended and time.monotonic() < deadline and select.select([line], [], [], 0.02)[0]:
        with contextlib.suppress(ConnectionError):
            part = line.recv(1 << 20)
            data += part
            ended = not part
            continue
        ended = True
    kinds, at = [], 0
    while at + HEADER.size <= len(data):
        length, _session, kind = HEADER.unpack_from(data, at)
        if at + HEADER.size + length > len(data):
            break
        assert length <= 65536
        assert kind in (4, 64, 65, 66, 67, 68, 69)
        kinds.append(kind)
        at += HEADER.size + length
    return ended, kinds


def test_no_stream_breaks_the_agent(tmp_path: Path) -> None:
    numbers = random.Random(20260102)
    words = right_words()
    ends = []
    for _ in range(ROUNDS):
        with agent_line(tmp_path, confined=True) as (line, process):
            stream = bytearray(b"".join(numbers.choices(words, k=numbers.randrange(1, 30))))
            for _ in range(numbers.choice((0, 0, 1, 3, 10))):
                stream[numbers.randrange(len(stream))] = numbers.choice((0, 1, 2, 255, numbers.randrange(256)))
            if numbers.random() < 0.2:
                stream += numbers.randbytes(numbers.randrange(2000))
            line.settimeout(5)
            with contextlib.suppress(ConnectionError):
                line.sendall(stream)
            _ended, kinds = drained(line, 0.3)
            assert kinds[:1] in ([64], []), kinds
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
            ends.append(process.wait(20))
    # Hung up by the host (0) or refused (1): never by a signal of its own.
    assert set(ends) <= {0, 1}
    assert {0, 1} <= set(ends)


@pytest.mark.parametrize(
    "words",
    [
        HEADER.pack(65537, 1, FromHost.DATA),
        HEADER.pack(0, 1, 200),
        frame(FromHost.SIGNAL, 1, struct.pack("<I", 65)),
        frame(FromHost.WINSIZE, 1, b"x"),
        frame(FromHost.MORE, 1, b"x") + frame(FromHost.GREET, 0),
        frame(FromHost.MORE, 1, bytes(65536)) * 33,
        frame(FromHost.EXEC, 3, Execution(("cat",), (PATH,), first=True, stdin=True).pack()) + frame(FromHost.DATA, 3, bytes(65536)) * 4,
        frame(FromHost.EXEC, 3, Execution(("cat",), (PATH,), first=True, stdin=True).pack()) * 2,
    ],
)
def test_a_stream_that_cannot_be_trusted_ends_the_agent(tmp_path: Path, words: bytes) -> None:
    with agent_line(tmp_path, confined=True) as (line, process):
        line.settimeout(10)
        with contextlib.suppress(ConnectionError):
            line.sendall(words)
        assert process.wait(20) == 1


@pytest.mark.parametrize(
    "payload", [b"", b"x", bytes(52), b"\xff" * 52, Execution(("a",)).pack()[:-1], Execution(("a",)).pack() + b"x", Execution(()).pack()]
)
def test_a_malformed_request_is_answered(tmp_path: Path, payload: bytes) -> None:
    with agent_line(tmp_path, confined=True) as (line, _process):
        line.settimeout(10)
        line.sendall(frame(FromHost.EXEC, 5, payload) + frame(FromHost.STEP, 6, payload[:1]) + frame(FromHost.READ, 7, payload[:5]))
        data = b""
        while data.count(struct.pack("<i", 71)) < 3:
            part = line.recv(65536)
            assert part
            data += part
