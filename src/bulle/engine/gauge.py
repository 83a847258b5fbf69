"""The gauge: the program of ours that does the same work on the bare host and at every level (``native/bulle-gauge.c``), and how to speak to it.

It comes to a container as one more layer of its image, so that it is there at every level, whatever the image holds. A :class:`Gauge` is one that
waits for requests; over pipes (:class:`PipeChannel`) or over a container's attachment (:class:`AttachmentChannel`).
"""

from __future__ import annotations

import os
import select
import time
from pathlib import Path
from typing import Protocol

import msgspec

from bulle.errors import BulleError, Unavailable, from_parts
from bulle.monitor.attachment import Attachment
from bulle.monitor.frames import Event, Kind

PROGRAM = Path(__file__).parent.parent / "_bin" / "bulle-gauge"
CONTAINER_DIRECTORY = "/.bulle-gauge"
CONTAINER_PROGRAM = f"{CONTAINER_DIRECTORY}/bulle-gauge"
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
PATIENCE_S = 300.0  # an emulated processor may be a hundred times slower

REFUSED = frozenset(".pk")
"""What stands in the answer to ``calls`` for a system call that did not reach the kernel's code."""


def program_for(image: str, architecture: str) -> Path:
    """The program for an image's processor (as the image specification calls it; host path). Raises Unavailable where there is none."""
    from bulle.model.platform import this_platform

    if not PROGRAM.exists():
        why = "this installation was built without its compiled programs"
        raise Unavailable("levels cannot be compared: the program that measures is not there", why, "install Bulle from its wheel")
    here = this_platform().architecture
    if architecture in ("", here):
        return PROGRAM
    other = PROGRAM.with_name(f"{PROGRAM.name}-{_MACHINES.get(architecture, architecture)}")
    if not other.exists():
        why = f"it is for {architecture}, and the program that measures is here for {here}"
        raise Unavailable(f"image {image} cannot be compared", why, "take one for this machine's processor")
    return other


def layer(program: Path) -> bytes:
    """The layer that brings the program, as a tar. The same bytes for the same program."""
    from bulle.registry import tar_format

    name = CONTAINER_DIRECTORY.strip("/")
    return b"".join((
        tar_format.directory(name),
        tar_format.file(CONTAINER_PROGRAM.strip("/"), program.read_bytes(), mode=0o755),
        tar_format.END,
    ))  # fmt: skip


class Channel(Protocol):
    """How bytes get to a gauge and back; ``receive`` waits until something comes and raises BulleError at the deadline or the end."""

    def send(self, data: bytes) -> None: ...
    def receive(self, deadline: float) -> bytes: ...


class PipeChannel:
    """A process of this machine behind two pipes."""

    def __init__(self, stdin: int, stdout: int) -> None:
        self._stdin, self._stdout = stdin, stdout

    def send(self, data: bytes) -> None:
        """To its standard input."""
        os.write(self._stdin, data)

    def receive(self, deadline: float) -> bytes:
        """From its standard output."""
        poll = select.poll()
        poll.register(self._stdout, select.POLLIN)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise _too_slow()
        if not (data := os.read(self._stdout, 65536)):
            raise BulleError("the measuring program ended early", "it was killed, or memory ran out")
        return data


class AttachmentChannel:
    """A container's first process, through its monitor."""

    def __init__(self, attachment: Attachment) -> None:
        self._attachment = attachment
        self._said = bytearray()

    def send(self, data: bytes) -> None:
        """To its standard input."""
        try:
            self._attachment.send_stdin(data)
        except (BrokenPipeError, ConnectionResetError):
            raise self._ended(None) from None

    def receive(self, deadline: float) -> bytes:
        """From its standard output."""
        while True:
            if not self._attachment.has_received and not select.select([self._attachment], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise _too_slow()
            received = self._attachment.receive()
            if received is None:
                raise self._ended(None)
            kind, payload = received
            if kind == Kind.STDOUT:
                return payload
            if kind == Kind.STDERR:
                self._said += payload[:1000]
            elif kind == Kind.EVENT:
                happened = msgspec.json.decode(payload, type=Event)
                if happened.event == "error":
                    raise from_parts(happened.error)
                if happened.event == "exited":
                    raise self._ended(happened.exit_code)

    def _ended(self, code: int | None) -> BulleError:
        said = bytes(self._said).decode(errors="replace").strip().splitlines()
        why = said[-1] if said else "its monitor was killed" if code is None else f"exit code {code}"
        return BulleError("the measuring program ended early in its container", why)


class Gauge:
    """A gauge that said that it is ready. Every request may raise BulleError."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._buffer = bytearray()

    def wait_ready(self) -> None:
        """Return when it has said so."""
        self._line(time.monotonic() + PATIENCE_S)

    def ask(self, *words: object) -> list[tuple[str, str]]:
        """Have one thing done; returns what it says as pairs of a name and a value. Raises BulleError with the kernel's word where it failed."""
        self._channel.send(" ".join(map(str, words)).encode() + b"\n")
        deadline = time.monotonic() + PATIENCE_S
        answer: list[tuple[str, str]] = []
        while (text := self._line(deadline)) != "done":
            name, _, value = text.partition(" ")
            if name == "failed":
                number, _, stage = value.partition(" ")
                raise BulleError(f"{words[0]} could not be measured", f"{stage}: {os.strerror(int(number))}")
            answer.append((name, value))
        return answer

    def _line(self, deadline: float) -> str:
        while (end := self._buffer.find(b"\n")) < 0:
            self._buffer += self._channel.receive(deadline)
            if len(self._buffer) > 1 << 20:
                raise BulleError("the measuring program wrote what is no answer")
        text = bytes(self._buffer[:end]).decode(errors="replace")
        del self._buffer[: end + 1]
        return text


def _too_slow() -> BulleError:
    return BulleError("the measuring program gave no answer", f"nothing came within {PATIENCE_S:g} s", "look at what else this machine does")
