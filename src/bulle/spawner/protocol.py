"""The words between a caller and the spawner: one request, a few replies, over a stream socket of the caller's user.

Neutral of language: ``native/bulle.c``, its Python twin :mod:`bulle.spawner.stub` and the library (:mod:`bulle.spawner.client`) all speak it, the
server answers it. It carries no pickles and knows no command of ours: an entry's name, its argv, the environment, the working directory, resource
limits and descriptors (SCM_RIGHTS). What a caller could lie about to get out of a sandbox (uid, namespaces, capabilities, umask, groups...) is not
in the request: the server asks the kernel (:mod:`bulle.spawner.caller`).

Request, integers little-endian::

    u32 magic "BUR1" · u32 length of the body · u32 flags · u32 argv count · u32 environment count · u32 descriptor count · u32 0 · u32 0
    u64 soft, u64 hard · 16 times: getrlimit(2), by number
    body: NUL-ended strings: entry · directory of the interpreter · directory of the package (may be empty) · cwd · argv... · environment...

The descriptors come with the first byte; an ATTACHED request begins them with stdin, stdout, stderr and the working directory (O_PATH). Replies are
16 bytes, ``u32 magic "BUS1" · u32 kind · i32 value · u32 0``. Nothing was started before ACCEPTED, so a caller whose connection ends without it may
ask again. A malformed request gets no reply but the end of the connection.
"""

from __future__ import annotations

import array
import resource
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag

REQUEST_MAGIC = 0x31525542
REPLY_MAGIC = 0x31535542
HEADER = struct.Struct("<8I32Q")
REPLY = struct.Struct("<IIiI")
BODY_LIMIT = 8 << 20
DESCRIPTOR_LIMIT = 64
LIMIT_COUNT = 16


class Flag(IntFlag):
    """What a request asks for beside its entry."""

    ATTACHED = 1  # the child lives no longer than the connection, which gets its exit
    LEASH = 2  # the child gets a Leash: it is forked anew when it dies without releasing it


class Reply(IntEnum):
    """Kinds of replies."""

    ACCEPTED = 1  # a child will be forked
    CHILD = 2  # value: its pid, with a pidfd as descriptor where the kernel has them
    EXITED = 3  # value: exit code
    SIGNALED = 4  # value: signal number
    BYPASS = 5  # value: a Reason; the caller must do it in its own process


class Reason(IntEnum):
    """Why the spawner does not serve a caller."""

    NAMESPACES = 1
    CAPABILITIES = 2
    NO_NEW_PRIVILEGES = 3
    SECCOMP = 4
    LSM_LABEL = 5
    ROOT_DIRECTORY = 6
    IDENTITY = 7  # real, effective and saved ids or groups that the spawner cannot take over
    LIMITS = 8  # limits above the spawner's own, which it may not raise
    INSTALLATION = 9  # the caller belongs to another installation of Bulle
    UNREADABLE = 10  # /proc does not say who the caller is
    BROKEN_CODE = 11  # the code changed and does not start: the caller's own process shows why
    FORK = 12  # the kernel refused a process
    ENTRY = 13  # no entry of that name
    UNREACHABLE = 14  # (caller's side) no spawner and none could be started
    ASKED = 15  # (caller's side) BULLE_NO_SPAWNER


class MalformedRequestError(Exception):
    """Bytes that are no request; the connection is closed."""


@dataclass(slots=True)
class Request:
    """One request, decoded; strings stay bytes because environment and arguments need not be text."""

    entry: str
    interpreter: bytes
    package: bytes
    cwd: bytes
    argv: list[bytes]
    environment: list[bytes]
    flags: int
    limits: bytes
    descriptor_count: int


def pack_request(request: Request) -> bytes:
    """The bytes of a request. Raises MalformedRequestError where it cannot be said (a NUL byte, too large)."""
    strings = [request.entry.encode(), request.interpreter, request.package, request.cwd, *request.argv, *request.environment]
    body = b"\0".join(strings) + b"\0"
    if len(body) > BODY_LIMIT or body.count(b"\0") != len(strings) or request.descriptor_count > DESCRIPTOR_LIMIT:
        raise MalformedRequestError("too large, or a NUL byte inside")
    head = struct.pack(
        "<8I", REQUEST_MAGIC, len(body), request.flags, len(request.argv), len(request.environment), request.descriptor_count, 0, 0
    )
    return head + request.limits + body


def body_length(header: bytes | bytearray) -> int:
    """The length of the body that a complete header announces. Raises MalformedRequestError."""
    magic, length = struct.unpack_from("<II", header)
    if magic != REQUEST_MAGIC or not 4 <= length <= BODY_LIMIT:
        raise MalformedRequestError("not a request")
    return int(length)


def parse_request(frame: bytes) -> Request:
    """The request in a complete frame. Raises MalformedRequestError."""
    _magic, length, flags, argv_count, environment_count, descriptor_count, *_ = struct.unpack_from("<8I", frame)
    if len(frame) != HEADER.size + length or frame[-1] or flags & ~3 or descriptor_count > DESCRIPTOR_LIMIT:
        raise MalformedRequestError("lengths or flags that cannot be")
    strings = frame[HEADER.size : -1].split(b"\0")
    if len(strings) != 4 + argv_count + environment_count or (flags & Flag.ATTACHED and descriptor_count < 4):
        raise MalformedRequestError("counts that do not match")
    try:
        entry = strings[0].decode("ascii")
    except UnicodeDecodeError:
        raise MalformedRequestError("an entry that is no name") from None
    return Request(
        entry=entry,
        interpreter=strings[1],
        package=strings[2],
        cwd=strings[3],
        argv=strings[4 : 4 + argv_count],
        environment=strings[4 + argv_count :],
        flags=flags,
        limits=frame[32 : HEADER.size],
        descriptor_count=descriptor_count,
    )


def current_limits() -> bytes:
    """The resource limits of this process as they stand in a request."""
    values = []
    for number in range(LIMIT_COUNT):
        soft, hard = resource.getrlimit(number)
        values += [soft & 0xFFFFFFFFFFFFFFFF, hard & 0xFFFFFFFFFFFFFFFF]
    return struct.pack("<32Q", *values)


def send_with_descriptors(connection: socket.socket, data: bytes, descriptors: Sequence[int]) -> None:
    """All of ``data`` on a blocking socket, the descriptors with its first byte."""
    if not descriptors:
        connection.sendall(data)
        return
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
    sent = connection.sendmsg([data], ancillary)
    if sent < len(data):
        connection.sendall(memoryview(data)[sent:])


def receive_with_descriptors(connection: socket.socket, size: int) -> tuple[bytes, list[int], bool]:
    """One recvmsg: data, the descriptors that came (close-on-exec), and whether any were lost."""
    data, ancillary, flags, _ = connection.recvmsg(size, socket.CMSG_SPACE(DESCRIPTOR_LIMIT * 4), socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    return data, list(descriptors), bool(flags & socket.MSG_CTRUNC)


def pack_reply(kind: Reply, value: int) -> bytes:
    """The bytes of a reply."""
    return REPLY.pack(REPLY_MAGIC, kind, value, 0)


def read_reply(connection: socket.socket) -> tuple[int, int, int] | None:
    """The next reply on a blocking socket as (kind, value, descriptor or -1), or None where the connection ended."""
    try:
        data, descriptors, _ = receive_with_descriptors(connection, REPLY.size)
        while data and len(data) < REPLY.size:
            more = connection.recv(REPLY.size - len(data))
            if not more:
                return None
            data += more
    except (ConnectionResetError, BrokenPipeError):
        return None
    if not data:
        return None
    _magic, kind, value, _ = REPLY.unpack(data)
    return kind, value, descriptors[0] if descriptors else -1
