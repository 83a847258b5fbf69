"""The leash between a detached child and the spawner: descriptors in safe keeping, and a second life.

A detached child (a container's monitor) hands the spawner copies of what must not die with it (the master of a pty, a FIFO's other end, a pidfd):
:meth:`Leash.hold`. When it dies without :meth:`Leash.release`, the spawner forks its entry anew with ``--recover`` and those descriptors. A leash
whose spawner is gone does nothing: whoever finds the container then recovers what the kernel still has. A command that becomes a container's
monitor itself says by :meth:`Leash.recover_as` what is to be forked in its place.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
from collections.abc import Sequence

from bulle.spawner.protocol import DESCRIPTOR_LIMIT, receive_with_descriptors

HOLD = b"H"
DROP = b"D"
RELEASE = b"R"
CLEAR = b"C"
RECOVER_AS = b"A"
_LONGEST = 1 << 18  # bytes of one message


class Leash:
    """The child's end."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def fileno(self) -> int:
        """The descriptor, for a child that closes or keeps descriptors by number."""
        return self._connection.fileno()

    def hold(self, descriptor: int) -> None:
        """Give the spawner a copy of ``descriptor``; a recovered child gets the copies in the order in which they were held."""
        # SEQPACKET: once sent it is kept by the kernel, also when this process dies at once. Without a spawner there is nobody to hold it.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.sendmsg([HOLD], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))])

    def drop(self) -> None:
        """Have the copy closed that was held last."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.send(DROP)

    def clear(self) -> None:
        """Have all copies closed: what they were of has ended."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.send(CLEAR)

    def recover_as(self, entry: str, argv: Sequence[str]) -> None:
        """Say what is to be forked if this process, an attached one, dies without release: another entry, with an argv of its own."""
        words = [os.fsencode(word) for word in (entry, *argv)]
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.send(RECOVER_AS + b"\0".join(words))

    def release(self) -> None:
        """Say that this child's end is wanted: it is not forked anew, and what was held is closed."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.send(RELEASE)


class Tether:
    """The spawner's end: what a child gave into keeping and whether it was released."""

    def __init__(self, connection: socket.socket, held: list[int]) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.held = held
        self.released = False
        self.ended = False
        self.recover_as: list[bytes] = []
        """Entry and argv that replace the child's own when it is forked anew."""

    def read(self) -> None:
        """Take everything that the child has said so far."""
        while not self.ended:
            try:
                data, descriptors, _ = receive_with_descriptors(self.connection, _LONGEST)
            except BlockingIOError:
                return
            except OSError:
                data, descriptors = b"", []
            if data == HOLD and len(self.held) + len(descriptors) <= DESCRIPTOR_LIMIT:
                self._keep(descriptors)
                continue
            for descriptor in descriptors:
                os.close(descriptor)
            if data == CLEAR:
                for descriptor in self.held:
                    os.close(descriptor)
                self.held = []
            elif data == RELEASE:
                self.released = True
            elif data == DROP:
                for descriptor in self.held[-1:]:
                    os.close(descriptor)
                del self.held[-1:]
            elif data.startswith(RECOVER_AS):
                self.recover_as = data[1:].split(b"\0")
                self.released = False
            elif not data:
                self.ended = True

    def _keep(self, descriptors: list[int]) -> None:
        """A child that was forked anew holds what it was given once more: one copy is enough, and one is what a drop closes."""
        for descriptor in descriptors:
            if any(os.path.sameopenfile(descriptor, held) for held in self.held):
                os.close(descriptor)
            else:
                self.held.append(descriptor)

    def close(self) -> None:
        """Let go of everything."""
        self.connection.close()
        for descriptor in self.held:
            os.close(descriptor)
        self.held = []


def pair(held: list[int]) -> tuple[Tether, socket.socket]:
    """A new leash: the spawner's end and the socket of the child's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    return Tether(ours, held), theirs
