"""Questions that are passed on to other name servers, from the network namespace of whoever runs the loop.

Each has a socket of its own, with a port that the kernel chooses at random and connected to the server, and a random id; what comes back has to
repeat the question (RFC 5452). The next server is asked when one is silent for a while, or says that it cannot; a late answer is still taken.
Bounded in all and for each asker, and those who wait take turns, so that nobody's flood keeps others from being answered. Called by
:mod:`bulle.network.dns`; knows no names and no rules.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from bulle.network import dns_messages
from bulle.network.dns_messages import Question
from bulle.network.loop import READ, WRITE, Loop
from bulle.network.resolvers import Server

Done = Callable[[bytes | None], None]

_PATIENCE_S = 2.0
"""How long one server is waited for alone; the last one for twice as long, which is in all what a resolver waits for us (5 s) or less."""
_MOST_SERVERS = 3  # as many as a resolv.conf may name, resolv.conf(5)
_MOST_ASKING, _MOST_ASKING_EACH = 512, 64
_RESERVED, _FEW = 512, 4  # room besides for those who have only a few questions open, however many others ask
_MOST_WAITING, _MOST_WAITING_EACH = 8192, 256
_SHUNNED_S = 15.0
_TRY_ANOTHER = (dns_messages.SERVER_FAILURE, dns_messages.REFUSED, dns_messages.NOT_IMPLEMENTED)


class _Exchange:
    """One question on its way to one server after the other; ``sockets`` are all that an answer may still come from."""

    def __init__(self, asker: str, message: bytes, question: Question, servers: Sequence[Server], by_stream: bool, done: Done) -> None:
        self.asker = asker
        self.message = message
        self.question = question
        self.servers = deque(servers)
        self.by_stream = by_stream
        self.done = done
        self.sockets: list[_Asking] = []
        self.is_last_wait = False
        self.last: bytes | None = None


class _Asking:
    """One server that was asked: its socket, the id in the question, and what has come or has to go so far (streams)."""

    def __init__(self, server: Server, opened: socket.socket, identity: bytes) -> None:
        self.server = server
        self.socket = opened
        self.identity = identity
        self.incoming = bytearray()
        self.outgoing = b""


class Forwarder:
    """Passes questions on and answers back, or None where there is no answer."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._asking: dict[_Exchange, float] = {}  # and when it is given up or passed on; the order is that of the moments
        self._asking_each: dict[str, int] = {}
        self._waiting: dict[str, deque[_Exchange]] = {}  # whose turn it is comes first
        self._waiting_in_all = 0
        self._shunned: dict[Server, float] = {}
        self._sweep_due = False
        self._is_starting = False

    def ask(self, asker: str, message: bytes, question: Question, servers: Sequence[Server], by_stream: bool, done: Done) -> None:
        """Ask these servers, one after the other; ``done`` gets the answer (with an id of its own), once, perhaps before this returns."""
        now = self._loop.now()
        in_order = sorted(servers[:_MOST_SERVERS], key=lambda server: self._shunned.get(server, 0) > now)
        exchange = _Exchange(asker, message, question, in_order, by_stream, done)
        if self._may_start(asker):
            self._start(exchange)
        elif self._waiting_in_all < _MOST_WAITING and len(self._waiting.get(asker, ())) < _MOST_WAITING_EACH:
            self._waiting.setdefault(asker, deque()).append(exchange)
            self._waiting_in_all += 1
        else:
            done(None)

    def forget(self, asker: str) -> None:
        """Nobody waits for this asker's answers any longer."""
        self._waiting_in_all -= len(self._waiting.pop(asker, ()))
        for exchange in [exchange for exchange in self._asking if exchange.asker == asker]:
            self._end(exchange)
        self._start_waiting()

    def close(self) -> None:
        """Give up whatever is on its way."""
        self._waiting.clear()
        self._waiting_in_all = 0
        for exchange in list(self._asking):
            self._end(exchange)

    def _may_start(self, asker: str) -> bool:
        open_questions = self._asking_each.get(asker, 0)
        room = _MOST_ASKING + (_RESERVED if open_questions < _FEW else 0)
        return len(self._asking) < room and open_questions < _MOST_ASKING_EACH

    def _start(self, exchange: _Exchange) -> None:
        self._asking_each[exchange.asker] = self._asking_each.get(exchange.asker, 0) + 1
        self._asking[exchange] = 0.0
        self._ask_next(exchange)

    def _start_waiting(self) -> None:
        """Let those who wait take turns for what has become free."""
        if self._is_starting:  # one that fails at once comes here again
            return
        self._is_starting = True
        while len(self._asking) < _MOST_ASKING + _RESERVED:
            asker = next((asker for asker in self._waiting if self._may_start(asker)), None)
            if asker is None:
                break
            queue = self._waiting.pop(asker)
            exchange = queue.popleft()
            self._waiting_in_all -= 1
            if queue:
                self._waiting[asker] = queue
            self._start(exchange)
        self._is_starting = False

    def _ask_next(self, exchange: _Exchange) -> None:
        """Ask the next server that can be asked at all; if there is none, wait a last time for those that were."""
        exchange.is_last_wait = not exchange.servers
        while exchange.servers:
            asking = self._open(exchange, exchange.servers.popleft())
            if asking is not None:
                exchange.sockets.append(asking)
                break
        if not exchange.sockets:
            self._finish(exchange, exchange.last)
            return
        self._asking.pop(exchange)
        self._asking[exchange] = self._loop.now() + _PATIENCE_S
        if not self._sweep_due:
            self._sweep_due = True
            self._loop.later(_PATIENCE_S, self._sweep)

    def _open(self, exchange: _Exchange, server: Server) -> _Asking | None:
        family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
        kind = socket.SOCK_STREAM if exchange.by_stream else socket.SOCK_DGRAM
        try:
            opened = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError:  # no descriptors left
            return None
        asking = _Asking(server, opened, os.urandom(2))
        message = asking.identity + exchange.message[2:]
        try:
            with suppress(BlockingIOError):
                opened.connect(server)
            if exchange.by_stream:
                asking.outgoing = len(message).to_bytes(2, "big") + message
                self._loop.watch(opened.fileno(), lambda _: self._write(exchange, asking), WRITE)
            else:
                opened.send(message)
                self._loop.watch(opened.fileno(), lambda _: self._receive(exchange, asking))
        except OSError:  # no way to it
            opened.close()
            return None
        return asking

    def _receive(self, exchange: _Exchange, asking: _Asking) -> None:
        try:
            message = asking.socket.recv(dns_messages.LARGEST_MESSAGE)
        except BlockingIOError:
            return
        except OSError:  # nobody listens there
            self._give_up(exchange, asking)
            return
        self._consider(exchange, asking, message)

    def _write(self, exchange: _Exchange, asking: _Asking) -> None:
        try:
            sent = asking.socket.send(asking.outgoing)
        except BlockingIOError:
            return
        except OSError:
            self._give_up(exchange, asking)
            return
        asking.outgoing = asking.outgoing[sent:]
        if not asking.outgoing:
            self._loop.watch(asking.socket.fileno(), lambda _: self._read(exchange, asking), READ)

    def _read(self, exchange: _Exchange, asking: _Asking) -> None:
        try:
            received = asking.socket.recv(dns_messages.LARGEST_MESSAGE)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        asking.incoming += received
        length = int.from_bytes(asking.incoming[:2], "big")
        if len(asking.incoming) >= 2 + length > 2:
            self._consider(exchange, asking, bytes(asking.incoming[2 : 2 + length]))
            if exchange not in self._asking or asking not in exchange.sockets:
                return
        elif received:
            return
        self._give_up(exchange, asking)

    def _consider(self, exchange: _Exchange, asking: _Asking, message: bytes) -> None:
        """Take an answer if it is one to this question; anything else is as if it had not come."""
        if len(message) < 12 or message[:2] != asking.identity or not message[2] & 0x80:
            return
        code = dns_messages.code_of(message)
        end = exchange.question.end
        is_truncated = dns_messages.is_truncated(message)
        if message[4:6] == b"\0\0" and (code or is_truncated):  # some repeat no question when they have nothing to say to it
            message = dns_messages.failure(exchange.message, code, is_truncated)
        elif message[4:6] != b"\0\1" or message[12:end].lower() != exchange.message[12:end].lower():
            return
        self._shunned.pop(asking.server, None)
        if code in _TRY_ANOTHER and (exchange.servers or len(exchange.sockets) > 1):
            exchange.last = message
            self._give_up(exchange, asking)
            return
        self._finish(exchange, message)

    def _give_up(self, exchange: _Exchange, asking: _Asking) -> None:
        """One server will not answer: close its socket, and ask the next one at once."""
        self._close(asking)
        exchange.sockets.remove(asking)
        if exchange.servers or not exchange.sockets:
            self._ask_next(exchange)

    def _sweep(self) -> None:
        """Pass on, or give up, what was waited for long enough."""
        self._sweep_due = False
        now = self._loop.now()
        for exchange, moment in list(self._asking.items()):
            if moment > now:
                self._sweep_due = True
                self._loop.later(moment - now, self._sweep)
                break
            if exchange in self._asking:  # ending another one may have ended this
                self._shunned[exchange.sockets[-1].server] = now + _SHUNNED_S
                if exchange.is_last_wait:
                    self._finish(exchange, exchange.last)
                else:
                    self._ask_next(exchange)
        if len(self._shunned) > _MOST_ASKING:
            self._shunned = {server: until for server, until in self._shunned.items() if until > now}

    def _finish(self, exchange: _Exchange, message: bytes | None) -> None:
        self._end(exchange)
        exchange.done(message)
        self._start_waiting()

    def _end(self, exchange: _Exchange) -> None:
        for asking in exchange.sockets:
            self._close(asking)
        exchange.sockets.clear()
        if self._asking.pop(exchange, None) is not None:
            self._asking_each[exchange.asker] -= 1
            if not self._asking_each[exchange.asker]:
                del self._asking_each[exchange.asker]

    def _close(self, asking: _Asking) -> None:
        self._loop.forget(asking.socket.fileno())
        asking.socket.close()
