"""The name server of each container: it answers on 127.0.0.11:53 inside the container's network namespace, from the keeper's process outside.

Names of containers are answered here, by UDP and TCP, for the networks that the asking container is on; everything else is asked of its own or the
host's name servers (:mod:`bulle.network.forwarding`), as far as its egress rules let it (:mod:`bulle.network.name_policy`). Called by the keeper,
which opens the sockets and says who is called what; nothing here enters a namespace.

The common question is one that was asked before: its answers stand ready in a dictionary, under the question's own bytes, until a name changes.
"""

from __future__ import annotations

import functools
import itertools
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from bulle.errors import BulleError
from bulle.model.network import Egress
from bulle.network import dns_messages
from bulle.network.dns_messages import AAAA, PTR, A, Malformed, Question
from bulle.network.dns_streams import Reply, Streams
from bulle.network.forwarding import Forwarder
from bulle.network.loop import Loop
from bulle.network.name_policy import NamePolicy, Screened
from bulle.network.resolvers import PORT, Server, is_address
from bulle.network.zones import Names, Zones

Allowed = Callable[[str, Sequence[str], Sequence[int], int], None]

_MOST_AT_ONCE = 32  # datagrams of one container before others have their turn
_MOST_OPENED = 4096
_MOST_REMEMBERED_BYTES = 8 * 1024 * 1024
_LONGEST_REMEMBERED = 320  # a question; one with cookies and padding comes only once anyhow


class View(NamedTuple):
    """What one container sees: names on ``networks`` (ids, in the order in which they are asked) and, through ``upstreams`` (addresses; none: the
    host's servers), what ``egress`` allows of the others.

    ``search`` is what stands in its resolv.conf. Who asks puts these domains behind a name (resolv.conf(5)); a name that comes here is taken as it
    is, as Docker does, so that a container's name hides no other host of a search domain.
    """

    networks: tuple[str, ...]
    search: tuple[str, ...] = ()
    upstreams: tuple[str, ...] = ()
    egress: Egress = Egress()


class _Client:
    """One container that asks: its view, its sockets, and the answers that stand ready for its view."""

    def __init__(self, container_id: str, view: View, udp: socket.socket) -> None:
        self.container_id = container_id
        self.udp = udp
        self.streams: Streams | None = None
        self.is_gone = False
        self.ready: dict[bytes, Iterator[bytes]] = {}
        self.set_view(view)

    def set_view(self, view: View) -> None:
        """See something else from now on."""
        self.view = view
        self.policy = NamePolicy(view.egress)
        self.opened: dict[tuple[str, tuple[int, ...]], float] = {}  # addresses of allowed names and their ports, until when
        self.upstreams = tuple((address, PORT) for address in view.upstreams if is_address(address))


class NameServer:
    """All name servers of all containers of one keeper, on its loop; ``upstreams`` gives the host's name servers whenever it is called."""

    def __init__(self, loop: Loop, upstreams: Callable[[], Sequence[Server]]) -> None:
        self.on_allowed: Allowed | None = None
        """Told a container, addresses, ports (none: all of them) and seconds before an allowed name is answered; if it fails, so does the answer."""
        self._loop = loop
        self._upstreams = upstreams
        self._zones = Zones()
        self._forwarder = Forwarder(loop)
        self._clients: dict[str, _Client] = {}
        self._ready: dict[tuple[str, ...], dict[bytes, Iterator[bytes]]] = {}
        self._ready_bytes = 0
        self._turns = itertools.count()

    def add(self, container_id: str, view: View, udp: socket.socket, listener: socket.socket) -> None:
        """Answer a container on these sockets, which are bound (and listen) inside its network namespace and are closed here in the end."""
        self.remove(container_id)
        client = _Client(container_id, view, udp)
        client.ready = self._ready.setdefault(view.networks, {})
        udp.setblocking(False)
        listener.setblocking(False)
        client.streams = Streams(self._loop, listener, functools.partial(self._answer_stream, client))
        self._clients[container_id] = client
        self._loop.watch(udp.fileno(), functools.partial(self._answer_datagrams, client))

    def change(self, container_id: str, view: View) -> None:
        """A container is on other networks, or other rules hold for it; harmless where it is not known."""
        client = self._clients.get(container_id)
        if client is not None:
            client.set_view(view)
            self._forget_ready()

    def remove(self, container_id: str) -> None:
        """Answer a container no longer and close its sockets; harmless where it is not known."""
        client = self._clients.pop(container_id, None)
        if client is None:
            return
        client.is_gone = True
        self._forwarder.forget(container_id)
        self._loop.forget(client.udp.fileno())
        client.udp.close()
        if client.streams is not None:
            client.streams.close()
        if not any(other.view.networks == client.view.networks for other in self._clients.values()):
            self._forget_ready()

    def set_names(self, container_id: str, names: Names, own_name: str, rank: int = 0) -> None:
        """What a container is called on each network, besides its own name and short id, and its addresses there; what was said before is gone.

        Of several who are called the same, only those of the lowest rank answer.
        """
        self._zones.set_names(container_id, names, own_name, rank)
        self._forget_ready()

    def forget_names(self, container_id: str) -> None:
        """A container is called nothing any longer: it has ended."""
        self._zones.forget_names(container_id)
        self._forget_ready()

    def set_network(self, network_id: str, name: str) -> None:
        """A network's own name: containers on it are also found as ``container.network``, and addresses are called so. Without it that is the id."""
        self._zones.set_network(network_id, name)
        self._forget_ready()

    def forget_network(self, network_id: str) -> None:
        """The network is no more."""
        self._zones.forget_network(network_id)

    def close(self) -> None:
        """Answer nobody any longer."""
        for container_id in list(self._clients):
            self.remove(container_id)
        self._forwarder.close()

    def _forget_ready(self) -> None:
        """Names have changed: make every answer anew."""
        self._ready = {}
        self._ready_bytes = 0
        for client in self._clients.values():
            client.ready = self._ready.setdefault(client.view.networks, {})

    def _answer_datagrams(self, client: _Client, _: int) -> None:
        """Answer what has come, at most so much as leaves the others their turn."""
        receive, send, ready = client.udp.recvfrom, client.udp.sendto, client.ready
        for _ in range(_MOST_AT_ONCE):
            try:
                message, sender = receive(dns_messages.LARGEST_DATAGRAM)
            except BlockingIOError:
                return
            except OSError:  # an earlier answer found nobody
                continue
            answers = ready.get(message[2:])
            if answers is None:
                self._answer(client, message, False, functools.partial(self._send, client, sender))
                if client.is_gone:
                    return
                ready = client.ready
                continue
            with suppress(OSError):
                send(message[:2] + next(answers), sender)

    @staticmethod
    def _send(client: _Client, receiver: tuple[str, int], message: bytes | None) -> None:
        if message is not None and not client.is_gone:
            with suppress(OSError):  # nobody waits there any longer, or does not read
                client.udp.sendto(message, receiver)

    def _answer_stream(self, client: _Client, message: bytes, reply: Reply) -> None:
        self._answer(client, message, True, reply)

    def _answer(self, client: _Client, message: bytes, by_stream: bool, reply: Reply) -> None:
        """Answer one message, now or later; ``reply`` is called once, with None where there is nothing to say to it."""
        try:
            question = dns_messages.read_question(message)
        except Malformed as error:
            reply(dns_messages.failure(message, error.code))
            return
        if question is None:
            reply(None)
            return
        own = self._own_answer(client, message, question, by_stream)
        if own is not None:
            reply(own)
            return
        code = client.policy.refusal(question)
        if code is not None:
            reply(dns_messages.empty(message, question, code))
            return
        self._forward(client, message, question, by_stream, reply)

    def _own_answer(self, client: _Client, message: bytes, question: Question, by_stream: bool) -> bytes | None:
        """The answer to a question about containers, None if it is about none that this one may see."""
        key = question.key
        networks = client.view.networks
        addresses = self._zones.find(networks, key)
        if addresses is None:
            name = self._zones.name_of(networks, key)
            if name is None:
                return None
            return dns_messages.pointer(message, question, name) if question.kind == PTR else dns_messages.empty(message, question)
        length = {A: 4, AAAA: 16}.get(question.kind)
        found = [address for address in addresses if len(address) == length]
        if not found:
            return dns_messages.empty(message, question)
        answers = dns_messages.answers(message, question, found, dns_messages.LARGEST_MESSAGE if by_stream else question.payload_bytes)
        turn = next(self._turns) % len(answers)  # also for those who never ask twice in the same words (with a cookie), or by a stream
        if not by_stream and len(message) <= _LONGEST_REMEMBERED:
            self._remember(client, message, answers[turn + 1 :] + answers[: turn + 1])
        return message[:2] + answers[turn]

    def _remember(self, client: _Client, message: bytes, answers: list[bytes]) -> None:
        """Have the answers to a datagram ready, in this order."""
        if self._ready_bytes > _MOST_REMEMBERED_BYTES:
            self._forget_ready()
        self._ready_bytes += len(message) + sum(map(len, answers)) + 500
        client.ready[message[2:]] = itertools.cycle(answers)

    def _forward(self, client: _Client, message: bytes, question: Question, by_stream: bool, reply: Reply) -> None:
        """Have a question answered by others, and look at what comes back."""
        largest_bytes = dns_messages.LARGEST_MESSAGE if by_stream else question.payload_bytes

        def arrived(answer: bytes | None) -> None:
            code = client.policy.refusal(question)  # other rules may hold by now
            if code is not None:
                reply(dns_messages.empty(message, question, code))
                return
            try:
                if answer is None:
                    raise Malformed(dns_messages.SERVER_FAILURE)
                screened = client.policy.screen(answer, question, largest_bytes)
                self._open(client, question, screened)
            except Malformed as error:
                reply(dns_messages.failure(message, error.code))
            except (BulleError, OSError):  # what cannot be opened is of no use, and is asked for again
                reply(dns_messages.failure(message, dns_messages.SERVER_FAILURE))
            else:
                reply(message[:2] + screened.message[2:])

        servers = client.upstreams or self._upstreams()
        self._forwarder.ask(client.container_id, client.policy.outgoing(message, question), question, servers, by_stream, arrived)

    def _open(self, client: _Client, question: Question, screened: Screened) -> None:
        """Have the addresses of an allowed name opened, for twice as long as an answer is good, so that it is done once in that time only."""
        if not screened.addresses or self.on_allowed is None:
            return
        ports = client.policy.ports(question)
        now = self._loop.now()
        if len(client.opened) > _MOST_OPENED:
            client.opened.clear()
        new = tuple(address for address in screened.addresses if client.opened.get((address, ports), 0.0) < now + screened.lifetime_s)
        if new:
            self.on_allowed(client.container_id, new, ports, 2 * screened.lifetime_s)
            client.opened.update(((address, ports), now + 2 * screened.lifetime_s) for address in new)
