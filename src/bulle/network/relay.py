"""Bytes from one address of the host to a container's, for what the kernel does not translate: ``::1``, which no rule can lead elsewhere.

:class:`Relay` is for TCP, :class:`UdpRelay` for UDP. Both live on the keeper's loop, on sockets that the keeper has bound. A container sees the
host's bridge address as the other side. Nothing is read faster than the other side takes it; what a side says last (that it sends nothing more, or
that it was cut off) the other side hears.
"""

from __future__ import annotations

import errno
import functools
import ipaddress
import socket
import struct
from collections.abc import Callable
from contextlib import suppress

from bulle.network.loop import READ, WRITE, Loop

_CHUNK_BYTES = 64 * 1024
_MOST_CONNECTIONS = 1024
_PAUSE_S = 0.1  # before somebody is accepted again when there were no descriptors left
_LINGER_RESET = struct.pack("ii", 1, 0)  # a close says that the connection is broken, socket(7)
_MOST_AT_ONCE = 32
_MOST_SESSIONS = 1024
_SESSION_IDLE_S = 60.0
_LARGEST_DATAGRAM = 65535

Choose = Callable[[str], tuple[str, int] | None]
"""The target (an address and a port) of a new connection from an address, None where there is none at the moment."""


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET


class _Side:
    """One end of a connection: what waits to be sent to it, and whether it has ended what it sends, or has been told that there is nothing more."""

    def __init__(self, opened: socket.socket) -> None:
        self.socket = opened
        self.pending = b""
        self.ended = False
        self.told = False


class _Connection:
    """Two ends; each is read only while nothing waits to be sent to the other, so a chunk at most is held for each way."""

    def __init__(self, loop: Loop, accepted: socket.socket, target: tuple[str, int], on_end: Callable[[_Connection], None]) -> None:
        self._loop = loop
        self._on_end = on_end
        self._near = _Side(accepted)
        self._far = _Side(socket.socket(_family(target[0]), socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC))
        self._is_connecting = True
        for side in (self._near, self._far):
            side.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            side.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        code = self._far.socket.connect_ex(target)
        if code not in (0, errno.EINPROGRESS):
            self._far.socket.close()
            raise OSError(code, "connect")
        self._watch()

    def end(self, is_reset: bool = False) -> None:
        """Close both sides; a reset tells them that bytes may be missing."""
        for side in (self._near, self._far):
            self._loop.forget(side.socket.fileno())
            if is_reset:
                with suppress(OSError):
                    side.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            side.socket.close()
        self._on_end(self)

    def _watch(self) -> None:
        """Wait for what each side can do now."""
        if self._is_connecting:
            self._loop.watch(self._far.socket.fileno(), self._connected, WRITE)
            return
        for side, other in ((self._near, self._far), (self._far, self._near)):
            events = (WRITE if side.pending else 0) | (0 if side.ended or other.pending else READ)
            # That it was cut off is told even without events; once it was told that there is nothing more, so is its regular end, without end.
            if events or not side.told:
                self._loop.watch(side.socket.fileno(), functools.partial(self._ready, side, other), events)
            else:
                self._loop.forget(side.socket.fileno())

    def _connected(self, _: int) -> None:
        if self._far.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.end(is_reset=True)
            return
        self._is_connecting = False
        self._watch()

    def _ready(self, side: _Side, other: _Side, events: int) -> None:
        before = (side.pending != b"", other.pending != b"", side.ended)
        try:
            if events & ~(READ | WRITE) and side.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self.end(is_reset=True)
                return
            if side.pending:
                self._send(side, b"")
            if not side.ended and not other.pending and events & ~WRITE:
                received = side.socket.recv(_CHUNK_BYTES)
                side.ended = not received
                if received:
                    self._send(other, received)
            for one, another in ((side, other), (other, side)):
                if one.ended and not another.pending and not another.told:
                    another.told = True
                    another.socket.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        except OSError:
            self.end(is_reset=True)
            return
        if self._near.told and self._far.told:
            self.end()
        elif before != (side.pending != b"", other.pending != b"", side.ended):
            self._watch()

    @staticmethod
    def _send(side: _Side, more: bytes) -> None:
        """Send what waits, and what has come; keep what the side does not take."""
        waiting = side.pending or more
        try:
            sent = side.socket.send(waiting)
        except BlockingIOError:
            sent = 0
        side.pending = waiting[sent:] if sent < len(waiting) else b""


class Relay:
    """Accepts on a listening socket, which it closes in the end, and connects each that comes to the target that is chosen for it."""

    def __init__(self, loop: Loop, listener: socket.socket, choose: Choose) -> None:
        self._loop = loop
        self._listener = listener
        self._choose = choose
        self._connections: set[_Connection] = set()
        self._is_closed = False
        listener.setblocking(False)
        loop.watch(listener.fileno(), self._accept)

    def close(self) -> None:
        """Accept nobody any longer, and cut off who is connected."""
        self._is_closed = True
        self._loop.forget(self._listener.fileno())
        self._listener.close()
        for connection in list(self._connections):
            connection.end(is_reset=True)

    def _accept(self, _: int) -> None:
        for _turn in range(_MOST_AT_ONCE):
            if len(self._connections) >= _MOST_CONNECTIONS:
                self._loop.forget(self._listener.fileno())  # they wait in the listener's queue until one ends
                return
            try:
                accepted, peer = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:  # no descriptors left
                self._pause()
                return
            accepted.setblocking(False)
            try:
                if (target := self._choose(peer[0])) is None:
                    raise ConnectionRefusedError
                self._connections.add(_Connection(self._loop, accepted, target, self._ended))
            except OSError as error:
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
                accepted.close()
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    self._pause()
                    return

    def _pause(self) -> None:
        self._loop.forget(self._listener.fileno())
        self._loop.later(_PAUSE_S, self._listen_again)

    def _ended(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        self._listen_again()

    def _listen_again(self) -> None:
        if not self._is_closed:
            self._loop.watch(self._listener.fileno(), self._accept)


class _Session:
    """One sender of datagrams: the socket that speaks to the target for it, and where answers to it leave from."""

    def __init__(self, opened: socket.socket, target: tuple[str, int], sender: tuple[str, int], packet_info: bytes) -> None:
        self.socket = opened
        self.target = target
        self.sender = sender
        self.packet_info = packet_info


class UdpRelay:
    """Passes datagrams of a bound socket, which it closes in the end, on to the target that is chosen for a sender, and answers back to that.

    A sender that is silent for a minute is forgotten, as is whoever was silent for longest when there are too many.
    """

    def __init__(self, loop: Loop, bound: socket.socket, choose: Choose) -> None:
        self._loop = loop
        self._socket = bound
        self._choose = choose
        self._sessions: dict[tuple[tuple[str, int], bytes], tuple[_Session, float]] = {}  # who was silent for longest comes first
        self._sweep_due = False
        bound.setblocking(False)
        if bound.family == socket.AF_INET6:
            # On :: an answer has to leave from the address that was asked. ipv6(7)
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        loop.watch(bound.fileno(), self._receive)

    def forget(self, address: str) -> None:
        """Choose anew for whoever sends to this target: it is gone."""
        for key in [key for key, (session, _) in self._sessions.items() if session.target[0] == address]:
            self._end(key)

    def close(self) -> None:
        """Close everything."""
        self._loop.forget(self._socket.fileno())
        self._socket.close()
        while self._sessions:
            self._end(next(iter(self._sessions)))

    def _receive(self, _: int) -> None:
        for _turn in range(_MOST_AT_ONCE):
            try:
                message, ancillary, _flags, sender = self._socket.recvmsg(_LARGEST_DATAGRAM, 64)
            except BlockingIOError:
                return
            except OSError:  # an earlier answer found nobody
                continue
            packet_info = next((data for level, kind, data in ancillary if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO)), b"")
            session = self._session(sender, packet_info)
            if session is not None:
                with suppress(OSError):  # nobody listens there, or too much at once: datagrams may be lost
                    session.socket.send(message)

    def _session(self, sender: tuple[str, int], packet_info: bytes) -> _Session | None:
        """The sender's session, made where it is new; the one that was heard of last stands last."""
        key = (sender, packet_info)
        known = self._sessions.pop(key, None)
        if known is not None:
            session = known[0]
        else:
            if (target := self._choose(sender[0])) is None:
                return None
            if len(self._sessions) >= _MOST_SESSIONS:
                self._end(next(iter(self._sessions)))
            try:
                opened = socket.socket(_family(target[0]), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            except OSError:  # no descriptors left
                return None
            session = _Session(opened, target, sender, packet_info)
            try:
                opened.connect(target)
            except OSError:  # no way to it
                opened.close()
                return None
            self._loop.watch(opened.fileno(), lambda _: self._answer(key, session))
        self._sessions[key] = (session, self._loop.now())
        if not self._sweep_due:
            self._sweep_due = True
            self._loop.later(_SESSION_IDLE_S, self._sweep)
        return session

    def _answer(self, key: tuple[tuple[str, int], bytes], session: _Session) -> None:
        for _turn in range(_MOST_AT_ONCE):
            try:
                message = session.socket.recv(_LARGEST_DATAGRAM)
            except BlockingIOError:
                break
            except OSError:  # nobody listens there
                continue
            ancillary = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, session.packet_info)] if session.packet_info else []
            with suppress(OSError):
                self._socket.sendmsg([message], ancillary, 0, session.sender)
        if key in self._sessions:
            self._sessions.pop(key)
            self._sessions[key] = (session, self._loop.now())

    def _end(self, key: tuple[tuple[str, int], bytes]) -> None:
        session, _ = self._sessions.pop(key)
        self._loop.forget(session.socket.fileno())
        session.socket.close()

    def _sweep(self) -> None:
        """End those that were silent for long enough."""
        self._sweep_due = False
        for key, (_, since) in list(self._sessions.items()):
            left_s = since + _SESSION_IDLE_S - self._loop.now()
            if left_s > 0:
                self._sweep_due = True
                self._loop.later(left_s, self._sweep)
                break
            self._end(key)


def relay_of(protocol: str, bound: socket.socket, loop: Loop, choose: Choose) -> Relay | UdpRelay | None:
    """What carries a protocol; None where nothing does."""
    if protocol == "tcp":
        return Relay(loop, bound, choose)
    return UdpRelay(loop, bound, choose) if protocol == "udp" else None
