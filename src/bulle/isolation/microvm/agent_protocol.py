"""The words of the protocol between a virtual machine's guest and its host: frames, and the request to execute a command.

Used by :mod:`bulle.isolation.microvm.agent`; the other side is ``native/bulle-agent.c``; the page of both is ``docs/vm-agent.md``. Only bytes, no
descriptors. Strings are those of the guest: they may hold any byte but NUL (surrogateescape).
"""

from __future__ import annotations

import dataclasses
import enum
import struct
from collections.abc import Sequence

from bulle.errors import InvalidInput

VERSION = 1
HEADER = struct.Struct("<IIB3x")  # payload length, session, type
MOST_PAYLOAD_BYTES = 65536
INPUT_WINDOW_BYTES = 65536
OUTPUT_WINDOW_BYTES = 262144
MOST_SESSIONS = 256
MOST_EXECUTION_BYTES = 2 << 20
RLIM_INFINITY = 2**64 - 1

_EXECUTION = struct.Struct("<IIIIHHQIIIIII")
_LIMIT = struct.Struct("<IQQ")


class FromHost(enum.IntEnum):
    """Types of the frames that the host sends."""

    STEP = 1
    EXEC = 2
    DATA = 3
    WINDOW = 4
    SIGNAL = 5
    WINSIZE = 6
    CLOSE = 7
    TAR_OUT = 8
    TAR_IN = 9
    READ = 10
    LIST = 11
    POWER_OFF = 12
    MORE = 13
    GREET = 14
    STAT = 15
    PREPARE = 16


class FromGuest(enum.IntEnum):
    """Types of the frames that the guest sends, beside WINDOW."""

    WINDOW = 4
    HELLO = 64
    RESULT = 65
    STARTED = 66
    OUTPUT = 67
    ERROR = 68
    EXITED = 69


class FileFlags(enum.IntFlag):
    """How TAR_OUT, TAR_IN, READ and LIST mean their path."""

    OWN_ROOT = 1  # below the agent's own root, else below the container's
    OVERLAY = 2  # with trusted.* attributes: an overlay's upper directory as it is
    KEEP_OWNER = 4  # TAR_IN: owners as the tar says, else root
    FOLLOW = 8  # STAT: what a symlink leads to


class _Flag(enum.IntFlag):
    TERMINAL = 1
    STDIN = 2
    FIRST = 4
    NO_NEW_PRIVILEGES = 8
    INIT = 16
    IDLE = 32
    LOG_REFUSALS = 64


def frame(kind: FromHost, session: int, payload: bytes | bytearray | memoryview = b"") -> bytes:
    """One frame, header and payload."""
    return HEADER.pack(len(payload), session, kind) + bytes(payload)


def strings(words: tuple[str, ...] | list[str]) -> bytes:
    """NUL-terminated strings, one after the other. Raises InvalidInput for one that holds a NUL."""
    encoded = [word.encode(errors="surrogateescape") for word in words]
    for word, text in zip(words, encoded, strict=True):
        if b"\0" in text:
            raise InvalidInput(f"{word[:60]!r} cannot be said to a virtual machine", "it holds a NUL byte", "leave that byte out")
    return b"".join(text + b"\0" for text in encoded)


def step_payload(words: tuple[str, ...]) -> bytes:
    """A step as STEP and EXEC carry it. Raises InvalidInput for one that no agent takes."""
    payload = strings(words)
    if not 1 <= len(words) <= 8 or len(payload) > MOST_PAYLOAD_BYTES:
        raise InvalidInput(f"the step {' '.join(words)[:60]!r} cannot be said to a virtual machine", "it is too long")
    return payload


def preparation_payload(steps: Sequence[tuple[str, ...]]) -> bytes:
    """Steps as PREPARE carries them. Raises InvalidInput for those that no agent takes."""
    payload = struct.pack("<I", len(steps)) + _packed(steps)
    if len(payload) > MOST_PAYLOAD_BYTES:
        raise InvalidInput("the steps of a container cannot be said to a virtual machine", "they are too long")
    return payload


def _packed(steps: Sequence[tuple[str, ...]]) -> bytes:
    return b"".join(struct.pack("<I", len(payload)) + payload for payload in map(step_payload, steps))


@dataclasses.dataclass(frozen=True)
class Execution:
    """A command in the guest's container, as the kernel takes it: users are numbers, capabilities a mask, the filter a program.

    ``first`` makes the container's namespaces and does ``steps`` in them; every other execution joins the first. ``environment`` has KEY=VALUE,
    ``limits`` a RLIMIT number with its soft and hard value (-1: none), ``seccomp`` an array of struct sock_filter. ``init`` puts a small process 1
    before the command, ``idle`` has only that; both need ``first``.
    """

    arguments: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    directory: str = "/"
    user_id: int = 0
    group_id: int = 0
    groups: tuple[int, ...] = ()
    umask: int = 0o022
    capabilities: int = 0
    limits: tuple[tuple[int, int, int], ...] = ()
    steps: tuple[tuple[str, ...], ...] = ()
    seccomp: bytes = b""
    terminal: bool = False
    rows: int = 0
    columns: int = 0
    stdin: bool = False
    first: bool = False
    no_new_privileges: bool = False
    init: bool = False
    idle: bool = False
    log_refusals: bool = False

    def pack(self) -> bytes:
        """The payload of EXEC. Raises InvalidInput for what cannot be said."""
        flags = _Flag.TERMINAL * self.terminal | _Flag.STDIN * self.stdin | _Flag.FIRST * self.first | _Flag.INIT * self.init | _Flag.IDLE * self.idle
        flags |= _Flag.NO_NEW_PRIVILEGES * self.no_new_privileges | _Flag.LOG_REFUSALS * self.log_refusals
        counts = (len(self.groups), len(self.limits), len(self.arguments), len(self.environment), len(self.steps), len(self.seccomp))
        try:
            head = _EXECUTION.pack(
                flags, self.user_id, self.group_id, self.umask, self.rows, self.columns, self.capabilities & RLIM_INFINITY, *counts
            )
            numbers = struct.pack(f"<{len(self.groups)}I", *self.groups)
            limits = b"".join(_LIMIT.pack(number, soft & RLIM_INFINITY, hard & RLIM_INFINITY) for number, soft, hard in self.limits)
        except struct.error as error:
            raise InvalidInput("the command cannot be said to a virtual machine", f"a number is out of range: {error}") from error
        texts = strings([self.directory, *self.arguments, *self.environment])
        payload = b"".join((head, numbers, limits, self.seccomp, texts, _packed(self.steps)))
        if len(payload) > MOST_EXECUTION_BYTES:
            raise InvalidInput("the command cannot be said to a virtual machine", "its arguments and environment are too long", "shorten them")
        return payload


def execution_frames(session: int, payload: bytes) -> bytes:
    """EXEC, with as much of a long payload as has to go ahead in MORE."""
    parts = [payload[at : at + MOST_PAYLOAD_BYTES] for at in range(0, len(payload), MOST_PAYLOAD_BYTES)]
    return b"".join([*(frame(FromHost.MORE, session, part) for part in parts[:-1]), frame(FromHost.EXEC, session, parts[-1])])
