"""Questions that come by TCP. RFC 7766

One object per container holds its listening socket and the connections to it: bounded in number, in questions that are being answered and in bytes
that nobody reads, and closed when they are idle. What a question is answered is somebody else's to say (:mod:`bulle.network.dns`).
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from bulle.network.loop import READ, WRITE, Loop

Reply = Callable[[bytes | None], None]
Answer = Callable[[bytes, Reply], None]
"""Told a question and whom to tell the answer, now or later; None is no answer, and ends the connection."""

_MOST_CONNECTIONS = 64
_MOST_ASKED = 16
_MOST_UNREAD_BYTES = 128 * 1024
_IDLE_S = 10.0
_PAUSE_S = 0.1  # before somebody is accepted again when there were no descriptors left


class _Connection:
    """One client: what it has sent and not been read, what it has to receive, how many of its questions are open."""

    def __init__(self, opened: socket.socket) -> None:
        self.socket = opened
        self.incoming = bytearray()
        self.outgoing = bytearray()
        self.asked = 0
        self.ended = False  # it sends nothing more
        self.closed = False


class Streams:
    """The TCP side of one container's name server."""

    def __init__(self, loop: Loop, listener: socket.socket, answer: Answer) -> None:
        self._loop = loop
        self._listener = listener
        self._answer = answer
        self._connections: dict[_Connection, float] = {}  # since when it is idle, the longest first
        self._sweep_due = False
        self._closed = False
        loop.watch(listener.fileno(), self._accept)

    def close(self) -> None:
        """Close the listening socket and every connection."""
        self._closed = True
        self._loop.forget(self._listener.fileno())
        self._listener.close()
        for connection in list(self._connections):
            self._end(connection)

    def _accept(self, _: int) -> None:
        try:
            accepted, _peer = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:  # no descriptors left
            self._loop.forget(self._listener.fileno())
            self._loop.later(_PAUSE_S, self._listen_again)
            return
        accepted.setblocking(False)
        if len(self._connections) >= _MOST_CONNECTIONS:
            self._end(next(iter(self._connections)))
        connection = _Connection(accepted)
        self._touch(connection)
        self._watch(connection)
        if not self._sweep_due:
            self._sweep_due = True
            self._loop.later(_IDLE_S, self._sweep)

    def _listen_again(self) -> None:
        if not self._closed:
            self._loop.watch(self._listener.fileno(), self._accept)

    def _touch(self, connection: _Connection) -> None:
        self._connections.pop(connection, None)
        self._connections[connection] = self._loop.now()

    def _watch(self, connection: _Connection) -> None:
        """Listen to it unless it has enough to do, and write while there is something."""
        is_full = connection.asked >= _MOST_ASKED or len(connection.outgoing) >= _MOST_UNREAD_BYTES
        events = (0 if is_full or connection.ended else READ) | (WRITE if connection.outgoing else 0)
        if events:
            self._loop.watch(connection.socket.fileno(), lambda ready: self._ready(connection, ready), events)
        else:
            self._loop.forget(connection.socket.fileno())

    def _ready(self, connection: _Connection, events: int) -> None:
        self._touch(connection)
        try:
            if events & WRITE:
                del connection.outgoing[: connection.socket.send(connection.outgoing)]
            if events & ~WRITE and not connection.ended:
                received = connection.socket.recv(4096)
                connection.ended = not received
                connection.incoming += received
        except BlockingIOError:
            return
        except OSError:
            self._end(connection)
            return
        self._read_questions(connection)

    def _read_questions(self, connection: _Connection) -> None:
        """Have the questions answered that have come whole, as many as may be open at once."""
        while not connection.closed and connection.asked < _MOST_ASKED and len(connection.outgoing) < _MOST_UNREAD_BYTES:
            end = 2 + int.from_bytes(connection.incoming[:2], "big")
            if len(connection.incoming) < max(end, 3):
                break
            message = bytes(connection.incoming[2:end])
            del connection.incoming[:end]
            connection.asked += 1
            self._answer(message, lambda answer: self._reply(connection, answer))
        if connection.closed:
            return
        if connection.ended and not connection.asked and not connection.outgoing:
            self._end(connection)
        else:
            self._watch(connection)

    def _reply(self, connection: _Connection, message: bytes | None) -> None:
        connection.asked -= 1
        if connection.closed:
            return
        if message is None:
            self._end(connection)
            return
        was_full = connection.asked + 1 >= _MOST_ASKED
        connection.outgoing += len(message).to_bytes(2, "big") + message
        self._touch(connection)
        self._watch(connection)
        if was_full and connection.incoming:
            # What it had sent already makes no event any more.
            self._loop.later(0, lambda: self._read_questions(connection))

    def _end(self, connection: _Connection) -> None:
        connection.closed = True
        self._connections.pop(connection, None)
        self._loop.forget(connection.socket.fileno())
        connection.socket.close()

    def _sweep(self) -> None:
        """End those that were idle for long enough."""
        self._sweep_due = False
        for connection, since in list(self._connections.items()):
            left_s = since + _IDLE_S - self._loop.now()
            if left_s <= 0:
                self._end(connection)
            else:
                self._sweep_due = True
                self._loop.later(left_s, self._sweep)
                break
