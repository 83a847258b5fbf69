"""The private line between a driver and the child that becomes the workload: descriptors down, notes and one possible error up.

The child's end is close-on-exec: its closing without a word is how the driver learns that the command was executed. SOCK_SEQPACKET keeps messages
whole.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

import msgspec

from bulle.errors import BulleError, from_parts, to_parts

_MESSAGE_BYTES = 65536
_MOST_DESCRIPTORS = 250  # SCM_MAX_FD is 253


class Report(msgspec.Struct):
    """What the child tells: ``note`` (text), ``terminal`` and ``process`` (with a descriptor), ``running``, or ``error`` (class name and parts)."""

    kind: str
    parts: tuple[str, ...] = ()
    pid: int = 0


class Channel:
    """One end of the line."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """The driver's end and the child's end."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), cls(theirs)

    def close(self) -> None:
        """Close this end."""
        self.end.close()

    def fileno(self) -> int:
        """The descriptor of this end."""
        return self.end.fileno()

    def send_descriptors(self, descriptors: Sequence[int]) -> None:
        """Driver to child: the mounts to attach, in an order that both know, after which the child goes on."""
        for start in range(0, max(len(descriptors), 1), _MOST_DESCRIPTORS):
            part = descriptors[start : start + _MOST_DESCRIPTORS]
            last = start + _MOST_DESCRIPTORS >= len(descriptors)
            socket.send_fds(self.end, [b"." if last else b"+"], list(part))

    def receive_descriptors(self) -> list[int]:
        """Child: wait for the driver; an empty message means that it gave up or died."""
        received: list[int] = []
        while True:
            word, descriptors, _flags, _address = socket.recv_fds(self.end, 1, _MOST_DESCRIPTORS)
            if not word:
                os._exit(1)
            received += descriptors
            if word == b".":
                return received

    def report(self, kind: str, *parts: str, pid: int = 0, descriptor: int = -1) -> None:
        """Child to driver."""
        message = msgspec.json.encode(Report(kind, tuple(part[:4000] for part in parts), pid))
        if descriptor >= 0:
            socket.send_fds(self.end, [message], [descriptor])
        else:
            self.end.send(message)

    def report_error(self, error: BaseException) -> None:
        """Child to driver: whatever went wrong, as one of our errors."""
        if isinstance(error, BulleError):
            self.report("error", *to_parts(error))
        else:
            text = f"{error.strerror} ({error.filename})" if isinstance(error, OSError) and error.filename else str(error)
            self.report("error", *to_parts(BulleError("the container could not be set up", text or type(error).__name__)))

    def receive_report(self) -> tuple[Report, int] | None:
        """Driver: the next report with its descriptor (-1 without), or None at the end; an error report is raised as what it names."""
        try:
            message, descriptors, _flags, _address = socket.recv_fds(self.end, _MESSAGE_BYTES, 1)
        except ConnectionResetError:
            # The child ended before it took what was sent to it. The kernel says so once; what the child said before is still there.
            message, descriptors, _flags, _address = socket.recv_fds(self.end, _MESSAGE_BYTES, 1)
        if not message:
            return None
        report = msgspec.json.decode(message, type=Report)
        if report.kind == "error":
            raise from_parts(report.parts)
        return report, descriptors[0] if descriptors else -1
