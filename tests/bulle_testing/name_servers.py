"""What tests of names need around the server: its loop in a thread, foreign name servers to ask, and a client that says what it got."""

from __future__ import annotations

import contextlib
import queue
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import dnslib

from bulle.network.dns import NameServer, View
from bulle.network.loop import Loop


class LoopThread:
    """A loop of its own; :meth:`do` calls something there, as everything of a loop has to be."""

    def __init__(self) -> None:
        self.loop = Loop()
        self._calls: queue.SimpleQueue = queue.SimpleQueue()
        self._near, self._far = socket.socketpair()
        self.loop.watch(self._far.fileno(), self._call)
        self._thread = threading.Thread(target=self.loop.run)
        self._thread.start()

    def _call(self, _: int) -> None:
        self._far.recv(1)
        future, function = self._calls.get()
        try:
            future.set_result(function())
        except Exception as error:  # noqa: BLE001 (it is raised where the call was made)
            future.set_exception(error)

    def do(self, function: Callable[[], object]) -> object:
        future: Future = Future()
        self._calls.put((future, function))
        self._near.send(b"x")
        return future.result(timeout=10)

    def turns_in(self, duration_s: float) -> int:
        """How often the loop turns in a while, with what it takes to count that."""
        counted = [0]
        turn = self.loop.turn

        def counting(longest_s: float = -1) -> None:
            counted[0] += 1
            turn(longest_s)

        self.do(lambda: setattr(self.loop, "turn", counting))
        time.sleep(duration_s)
        self.do(lambda: setattr(self.loop, "turn", turn))
        return counted[0]

    def close(self) -> None:
        if self._thread.is_alive():
            self.do(lambda: setattr(self.loop, "ended", True))
        self._thread.join(10)
        self.loop.close()
        self._near.close()
        self._far.close()


@contextlib.contextmanager
def no_more_descriptors() -> Iterator[None]:
    """This process can open nothing for a while."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open("/dev/null") as file:
        free = file.fileno()  # the lowest that is free: more may be open above, which stay so
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def bound_pair(address: str = "127.0.0.1", port: int = 0) -> tuple[socket.socket, socket.socket]:
    """A socket for datagrams and a listening one, with the same address and port."""
    while True:
        udp, listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket()
        try:
            udp.bind((address, port))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(udp.getsockname())
            listener.listen(64)
            return udp, listener
        except OSError:  # somebody else's, for TCP
            udp.close()
            listener.close()
            if port:
                raise


class Upstream:
    """A name server of somebody else's. ``reply(question)`` gives the lines of a zone, a message, or None for silence; ``seen`` are the queries."""

    def __init__(self, reply: Callable[[dnslib.DNSRecord], str | bytes | dnslib.DNSRecord | None], address: str = "127.0.0.1", port: int = 0) -> None:
        self.reply = reply
        self.seen: list[tuple[dnslib.DNSRecord, str, tuple]] = []
        self.udp, self.tcp = bound_pair(address, port)
        self.server = self.udp.getsockname()
        self._threads = [threading.Thread(target=self._datagrams), threading.Thread(target=self._streams)]
        for thread in self._threads:
            thread.start()

    def answer(self, message: bytes, by: str, sender: tuple) -> bytes | None:
        asked = dnslib.DNSRecord.parse(message)
        self.seen.append((asked, by, sender))
        answer = self.reply(asked)
        if answer is None or isinstance(answer, (bytes, bytearray)):
            return answer
        if isinstance(answer, str):
            lines, answer = answer, asked.reply(aa=0)
            for line in dnslib.RR.fromZone(lines):
                answer.add_answer(line)
        return answer.truncate().pack() if by == "udp" and len(answer.pack()) > 512 and not asked.ar else answer.pack()

    def names(self) -> list[str]:
        """The names that were asked for."""
        return [str(asked.q.qname) for asked, *_ in self.seen]

    def _datagrams(self) -> None:
        while True:
            message, sender = self.udp.recvfrom(65535)
            if sender[1] == self.server[1]:
                return
            answer = self.answer(message, "udp", sender)
            if answer is not None:
                self.udp.sendto(answer, sender)

    def _streams(self) -> None:
        while True:
            connection, sender = self.tcp.accept()
            with connection:
                length = int.from_bytes(connection.recv(2), "big")
                if not length:
                    return
                answer = self.answer(connection.recv(length), "tcp", sender)
                if answer is not None:
                    connection.sendall(len(answer).to_bytes(2, "big") + answer)

    def close(self) -> None:
        self.udp.sendto(b"", self.server)
        socket.create_connection(self.server).close()
        for thread in self._threads:
            thread.join(10)
        self.udp.close()
        self.tcp.close()


class Names:
    """A name server with its containers' sockets on loopback, each with a port of its own."""

    def __init__(self) -> None:
        self.thread = LoopThread()
        self.upstreams: list[tuple[str, int]] = []
        self.server = NameServer(self.thread.loop, lambda: self.upstreams)
        self._foreign: list[Upstream] = []

    def do(self, method: str, *arguments: object) -> None:
        """Call a method of the server in its thread."""
        self.thread.do(lambda: getattr(self.server, method)(*arguments))

    def add(self, container_id: str, view: View) -> tuple[str, int]:
        """A container; where to ask as it."""
        return self.add_with(container_id, view, *bound_pair())

    def add_with(self, container_id: str, view: View, udp: socket.socket, listener: socket.socket) -> tuple[str, int]:
        """A container whose sockets are made already, in a namespace of its own perhaps."""
        place: tuple[str, int] = udp.getsockname()
        self.do("add", container_id, view, udp, listener)
        return place

    def upstream(self, reply: Callable, **options: object) -> Upstream:
        """One more name server that is asked for what is nobody's here."""
        upstream = Upstream(reply, **options)
        self._foreign.append(upstream)
        self.upstreams.append(upstream.server)
        return upstream

    def close(self) -> None:
        try:
            if self.thread._thread.is_alive():
                self.do("close")
        finally:
            self.thread.close()
            for upstream in self._foreign:
                upstream.close()


def ask(place: tuple[str, int], name: str, kind: str = "A", *, tcp: bool = False, timeout_s: float = 9) -> dnslib.DNSRecord:
    """One question, and the whole answer."""
    question = dnslib.DNSRecord.question(name, kind)
    answer = dnslib.DNSRecord.parse(exchange(place, question.pack(), tcp=tcp, timeout_s=timeout_s))
    assert answer.header.id == question.header.id
    assert answer.header.qr == 1
    return answer


def exchange(place: tuple[str, int], message: bytes, *, tcp: bool = False, timeout_s: float = 9) -> bytes:
    """Bytes there and back."""
    if tcp:
        with socket.create_connection(place, timeout=timeout_s) as connection:
            connection.sendall(len(message).to_bytes(2, "big") + message)
            file = connection.makefile("rb")
            with file:
                return file.read(int.from_bytes(file.read(2), "big"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(timeout_s)
        client.connect(place)
        client.send(message)
        return client.recv(65535)


def values(answer: dnslib.DNSRecord) -> list[str]:
    """The data of an answer's records, or the code of its failure."""
    if answer.header.rcode:
        return [dnslib.RCODE[answer.header.rcode]]
    return [str(record.rdata) for record in answer.rr]
