"""Requests on their way in: the connections of callers who have not said all of what they want yet.

Used by the server's loop alone, which it shares a poll with; it hands each complete request on and judges none. Nothing here waits for a caller: one
that is slow, says nonsense, or is one too many loses its connection, and is served by its own process (:mod:`bulle.spawner.client`).
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from bulle.spawner.caller import peer_credentials
from bulle.spawner.protocol import HEADER, MalformedRequestError, Request, body_length, parse_request, receive_with_descriptors

REQUEST_TIMEOUT_S = 10.0
PENDING_LIMIT = 128

Dispatch = Callable[[socket.socket, Request, list[int]], None]
"""Takes over the connection; the descriptors are closed when it returns."""


@dataclass(slots=True)
class Pending:
    """A connection whose request is not complete yet."""

    connection: socket.socket
    deadline_s: float
    data: bytearray = field(default_factory=bytearray)
    descriptors: list[int] = field(default_factory=list)
    expected: int = 0


class Reception:
    """All such connections of one listener."""

    def __init__(self, listener: socket.socket, poll: select.epoll, dispatch: Dispatch) -> None:
        self._listener = listener
        self._poll = poll
        self._dispatch = dispatch
        self._pending: dict[int, Pending] = {}

    def __contains__(self, descriptor: int) -> bool:
        return descriptor in self._pending

    def __len__(self) -> int:
        return len(self._pending)

    def accept(self) -> None:
        """Let everybody in who waits, and read what they have said already."""
        while True:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM) and self._pending:
                    self._forget_oldest()
                    continue
                return
            connection.setblocking(False)
            if peer_credentials(connection)[1] != os.geteuid():
                connection.close()
                continue
            if len(self._pending) >= PENDING_LIMIT:
                self._forget_oldest()
            self._pending[connection.fileno()] = Pending(connection, time.monotonic() + REQUEST_TIMEOUT_S)
            self._poll.register(connection, select.EPOLLIN)
            self.read(connection.fileno())

    def read(self, descriptor: int) -> None:
        """Take what has come on a connection; a complete request is dispatched, a wrong one ends its connection."""
        pending = self._pending[descriptor]
        try:
            while True:
                data, descriptors, lost = receive_with_descriptors(pending.connection, 1 << 18)
                pending.descriptors += descriptors
                pending.data += data
                if lost or not data:
                    raise MalformedRequestError("the connection ended early, or descriptors were lost")
                if not pending.expected and len(pending.data) >= HEADER.size:
                    pending.expected = HEADER.size + body_length(pending.data)
                if pending.expected and len(pending.data) >= pending.expected:
                    break
            request = parse_request(bytes(pending.data))
            if len(pending.descriptors) != request.descriptor_count:
                raise MalformedRequestError("descriptors that were announced did not come")
        except BlockingIOError:
            return
        except (MalformedRequestError, OSError):
            self._forget(pending)
            return
        del self._pending[descriptor]
        self._poll.unregister(pending.connection)
        try:
            self._dispatch(pending.connection, request, pending.descriptors)
        finally:
            for given in pending.descriptors:
                os.close(given)

    def deadlines_s(self) -> list[float]:
        """When patience with each ends, on the monotonic clock."""
        return [pending.deadline_s for pending in self._pending.values()]

    def expire(self, now_s: float) -> None:
        """Give up those who have taken too long."""
        for pending in [pending for pending in self._pending.values() if pending.deadline_s <= now_s]:
            self._forget(pending)

    def _forget_oldest(self) -> None:
        self._forget(min(self._pending.values(), key=lambda pending: pending.deadline_s))

    def _forget(self, pending: Pending) -> None:
        del self._pending[pending.connection.fileno()]
        self._poll.unregister(pending.connection)
        pending.connection.close()
        for descriptor in pending.descriptors:
            os.close(descriptor)
