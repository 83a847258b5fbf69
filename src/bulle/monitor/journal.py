"""The journal of the machine as a container's log, written by its native protocol; ``journal_reading`` reads it.

One datagram is one message: lines ``NAME=value``, or for values with newlines the name, a newline, the length in 64 bits little-endian and the value.
What is too large for a datagram goes as a sealed memfd. Fields are Docker's, so that ``journalctl CONTAINER_NAME=web`` works for both. See "Native
Journal Protocol" of systemd and systemd.journal-fields(7).
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import time
from contextlib import suppress

from bulle.errors import Unavailable
from bulle.model.run_plan import LogSettings
from bulle.monitor.logs import cut, cut_unfinished, timestamp

SOCKET = "/run/systemd/journal/socket"
_PRIORITY = {"stdout": b"6", "stderr": b"3"}  # info and error, as Docker has them
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def open_journal(settings: LogSettings, *, required: bool = True) -> int:
    """A descriptor of a socket to the journal. Raises Unavailable where there is none; if that is not ``required``, each message looks again."""
    address = settings.socket_host_path or SOCKET
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        sender.connect(address)
    except OSError as error:
        if not required:
            return sender.detach()
        sender.close()
        raise Unavailable(
            "the container's log cannot be written to the journal",
            f"no journal listens at {address} ({error.strerror})",
            "start systemd-journald, or use another --log-driver",
        ) from None
    return sender.detach()


class JournalWriter:
    """Sends a container's output to the journal, a message for each line."""

    helper = -1

    def __init__(self, descriptor: int, settings: LogSettings) -> None:
        """Of a socket from :func:`open_journal`, which it closes at the end."""
        self._socket = socket.socket(fileno=descriptor)
        self._address = settings.socket_host_path or SOCKET
        self._fields = b"".join(_field(name, value.encode(errors="surrogateescape")) for name, value in settings.fields.items())
        self._pending = {"stdout": b"", "stderr": b""}
        self._lost = 0
        self.failed = ""

    def reap(self) -> None:
        """Nothing: there are no children."""

    def write(self, stream: str, data: bytes, time_ns: int = 0) -> None:
        """Add what the container wrote. What a journal that is gone does not take is counted, and said once it is back."""
        now = time_ns or time.time_ns()
        *lines, rest = (self._pending[stream] + data).split(b"\n")
        for line in lines:
            *parts, last = cut(line) or [b""]
            for part in parts:
                self._message(stream, part, now, partial=True)
            self._message(stream, last, now)
        parts, self._pending[stream] = cut_unfinished(rest)
        for part in parts:
            self._message(stream, part, now, partial=True)

    def note(self, text: str, time_ns: int = 0) -> None:
        """Add a sentence of our own."""
        self._message("stderr", f"bulle: {text}".encode(), time_ns or time.time_ns())

    def close(self) -> None:
        """Send what has no newline yet, and close."""
        for stream, rest in self._pending.items():
            if rest:
                self._message(stream, rest, time.time_ns(), partial=True)
        self._socket.close()

    def _message(self, stream: str, line: bytes, now: int, *, partial: bool = False) -> None:
        if self._lost:
            lost, self._lost = self._lost, 0
            if not self._send("stderr", f"bulle: {lost} messages are missing here: {self.failed}".encode(), now, b""):
                self._lost = lost + 1
                return
        if not self._send(stream, line, now, b"CONTAINER_PARTIAL_MESSAGE=true\n" if partial else b""):
            self._lost += 1

    def _send(self, stream: str, line: bytes, now: int, extra: bytes) -> bool:
        fields = b"PRIORITY=%s\nSYSLOG_TIMESTAMP=%s\n" % (_PRIORITY[stream], timestamp(now).encode())
        datagram = _field("MESSAGE", line) + fields + extra + self._fields
        for attempt in range(2):
            try:
                self._deliver(datagram)
            except OSError as error:
                self.failed = os.strerror(error.errno or 0)
                if attempt or error.errno not in (errno.ECONNREFUSED, errno.ENOTCONN, errno.ECONNRESET):
                    return False
                with suppress(OSError):  # a journal that was started anew
                    self._socket.connect(self._address)
            else:
                return True
        return False

    def _deliver(self, datagram: bytes) -> None:
        try:
            self._socket.send(datagram)
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            memory = os.memfd_create("bulle-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                rest = datagram
                while rest:
                    rest = rest[os.write(memory, rest) :]
                fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
                socket.send_fds(self._socket, [b""], [memory])
            finally:
                os.close(memory)


def _field(name: str, value: bytes) -> bytes:
    if b"\n" in value:
        return b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(value)), value)
    return b"%s=%s\n" % (name.encode(), value)
