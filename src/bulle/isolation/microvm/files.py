"""Files of a running guest, read and written through its shepherd: nothing of the guest is mounted, opened or executed on the host.

A path is resolved in the guest, below the container's root, where symlinks lead nowhere else. Trees come and go as tar streams. tar(5)
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import RawIOBase
from typing import BinaryIO

import msgspec

from bulle.errors import BulleError, Conflict, CorruptImage
from bulle.isolation.microvm.agent import Agent
from bulle.isolation.microvm.agent_protocol import FileFlags
from bulle.isolation.microvm.agent_session import Session
from bulle.isolation.microvm.sessions import FileRequest, Word, connect, words

_STATUS = struct.Struct("<IIIQq")
_LONGEST = 1 << 16
_PATIENCE_S = 10.0


def ask(agent: Agent, request: FileRequest) -> Session:
    """The shepherd's part: say it to the agent; what comes is the session's output."""
    own_root = bool(request.flags & FileFlags.OWN_ROOT)
    if request.kind in ("read", "list", "stat"):
        if request.kind == "read":
            session = agent.read(request.path, request.most, own_root=own_root)
        elif request.kind == "list":
            session = agent.list(request.path, own_root=own_root)
        else:
            session = agent.stat(request.path, FileFlags(request.flags))
        session.content_limit = 0  # it goes on as it comes
        return session
    if request.kind == "set":
        return agent.step("write", request.path, request.name)
    if request.kind == "sync":
        return agent.step("sync")
    if request.kind == "tar-out":
        return agent.tar_out(request.path, request.without, FileFlags(request.flags), request.name)
    return agent.tar_in(request.path, FileFlags(request.flags))


def word_of(session: Session) -> Word:
    """The shepherd's last word on one."""
    return Word("done", session.error if session.final else errno.EIO)


@dataclass(frozen=True)
class Status:
    """What stat(2) says in the guest, and where a symlink leads."""

    mode: int
    user_id: int
    group_id: int
    size: int
    modified_s: int
    target: str


class TarSink:
    """A stream whose reader may have given up: why, is told at its end."""

    def __init__(self, stream: RawIOBase | BinaryIO) -> None:
        self._stream = stream

    def write(self, data: bytes) -> None:
        """All of it."""
        with suppress(BrokenPipeError):
            while data:
                data = data[self._stream.write(data) or 0 :]


class GuestFiles:
    """The files of one running guest; ``directory`` is its container's on the host."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def status(self, path: str, *, follow: bool = False) -> Status | None:
        """What is at a container path; None for nothing."""
        try:
            content = self._content(FileRequest("stat", path, FileFlags.FOLLOW if follow else 0))
        except FileNotFoundError:
            return None
        mode, user_id, group_id, size, modified_s = _STATUS.unpack_from(content)
        return Status(mode, user_id, group_id, size, modified_s, os.fsdecode(content[_STATUS.size :]))

    def read(self, path: str, most: int = 4 << 20, *, own_root: bool = False) -> bytes:
        """A file's content, at most so much; ``own_root``: below the agent's own root. Raises OSError as open(2) and read(2) do."""
        return self._content(FileRequest("read", path, FileFlags.OWN_ROOT if own_root else 0, most=most))

    def names(self, path: str, *, own_root: bool = False) -> list[str]:
        """The names in a directory; ``own_root``: below the agent's own root."""
        flags = FileFlags.OWN_ROOT if own_root else 0
        return [os.fsdecode(name) for name in self._content(FileRequest("list", path, flags)).split(b"\0") if name]

    def set(self, path: str, value: str) -> None:
        """Write a value into a setting of the guest's kernel, below the agent's own root."""
        with self._asking(FileRequest("set", path, name=value), os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)):
            pass

    def sync(self) -> None:
        """Have everything that was written on the guest's disk."""
        with self._asking(FileRequest("sync", ""), os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)):
            pass

    @contextmanager
    def tar_of(
        self, path: str, name: str, *, own_root: bool = False, raw: bool = False, without: tuple[str, ...] = ()
    ) -> Iterator[BinaryIO]:
        """The tar of what is at a path, under another name; empty: a directory's content. ``raw``: whiteouts and trusted attributes as they are;
        ``without`` are names in the tar."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        flags = (FileFlags.OWN_ROOT if own_root else 0) | (FileFlags.OVERLAY if raw else 0)
        with self._asking(FileRequest("tar-out", path, flags, name, without), writing, reading), open(reading, "rb") as stream:
            yield stream

    @contextmanager
    def unpacking(self, path: str, *, owners: bool) -> Iterator[TarSink]:
        """A tar that is written to what this gives is unpacked below a directory of the container; without ``owners`` all belongs to root."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        request = FileRequest("tar-in", path, FileFlags.KEEP_OWNER if owners else 0)
        with self._asking(request, reading, writing), open(writing, "wb", buffering=0) as stream:
            yield TarSink(stream)

    def _content(self, request: FileRequest) -> bytes:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        content = b""
        with self._asking(request, writing, reading), open(reading, "rb", buffering=0) as stream:
            while select.select([stream], [], [], _PATIENCE_S)[0]:
                if not (chunk := stream.read(1 << 16)):
                    return content
                content += chunk
            raise TimeoutError(errno.ETIMEDOUT, "the guest does not answer", request.path)

    @contextmanager
    def _asking(self, request: FileRequest, given: int, kept: int = -1) -> Iterator[None]:
        """Send it with a descriptor, which is closed here, as is ``kept`` where it cannot be sent. Behind the block the end is waited for.

        Raises OSError as the guest's kernel said, also where its stream broke off for that."""
        with ExitStack() as unsent:
            unsent.callback(os.close, given)
            if kept >= 0:
                unsent.callback(os.close, kept)
            try:
                line = connect(self._directory)
            except OSError as error:
                raise Conflict("the files of the machine cannot be reached", "it has just ended", "is it still running?") from error
            unsent.enter_context(line)
            socket.send_fds(line, [msgspec.json.encode(request)], [given])
            unsent.pop_all()
            os.close(given)
        with line:
            broken = None
            try:
                yield
            except CorruptImage as error:
                broken = error
            data = line.recv(_LONGEST)
        if not data:
            raise BulleError("the files of the machine could not be read", "it ended meanwhile", "see `bulle why`")
        word: Word = words.decode(data)
        if word.number:
            raise OSError(word.number, os.strerror(word.number), request.path)
        if broken:
            raise broken
