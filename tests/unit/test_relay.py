"""Relays from ::1 to an address of IPv4: bytes both ways, ends and breaks of connections, floods; on loopback sockets."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import random
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from bulle.network import relay
from bulle.network.relay import Relay, UdpRelay
from bulle_testing.name_servers import LoopThread, no_more_descriptors

RESET = struct.pack("ii", 1, 0)


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    made = LoopThread()
    yield made
    made.close()


class Server:
    """What a container listens with: a thread for each connection."""

    def __init__(self, serve: Callable[[socket.socket], object]) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=2000)
        self.address = self.listener.getsockname()
        self._serve = serve
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                self._threads.append(threading.Thread(target=self._one, args=(self.listener.accept()[0],)))
                self._threads[-1].start()

    def _one(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            self._serve(connection)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self._threads:
            thread.join(10)


@pytest.fixture
def relayed(thread: LoopThread) -> Iterator[Callable]:
    """Puts a server behind ::1; gives where to connect."""
    closing: list[Callable] = []

    def start(serve: Callable[[socket.socket], object] | None, host: str = "::1") -> tuple[str, int]:
        if serve is None:
            with socket.create_server(("127.0.0.1", 0)) as unused:
                target = unused.getsockname()
        else:
            server = Server(serve)
            closing.append(server.close)
            target = server.address
        listener = socket.create_server((host, 0), family=socket.AF_INET6, backlog=2000)
        place: tuple[str, int] = ("::1", listener.getsockname()[1])
        made = thread.do(lambda: Relay(thread.loop, listener, lambda _: target))
        closing.insert(0, lambda: thread.do(made.close))
        return place

    yield start
    for close in closing:
        close()


def echo(connection: socket.socket) -> None:
    while data := connection.recv(65536):
        connection.sendall(data)


def read_all(connection: socket.socket) -> bytes:
    parts = []
    while data := connection.recv(1 << 20):
        parts.append(data)
    return b"".join(parts)


@pytest.mark.parametrize("host", ["::1", "::"])
def test_bytes_go_both_ways(relayed: Callable, host: str) -> None:
    place = relayed(echo, host)
    sent = random.Random(1).randbytes(8 << 20)
    with socket.create_connection(place, timeout=240) as client:
        writer = threading.Thread(target=lambda: (client.sendall(sent), client.shutdown(socket.SHUT_WR)))
        writer.start()
        received = read_all(client)
        writer.join()
    assert hashlib.sha256(received).digest() == hashlib.sha256(sent).digest()


def test_each_way_ends_for_itself(relayed: Callable) -> None:
    def counts(connection: socket.socket) -> None:
        received = read_all(connection)
        connection.sendall(b"%d bytes" % len(received))

    with socket.create_connection(relayed(counts), timeout=9) as client:
        client.sendall(b"x" * 100_000)
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"100000 bytes"

    heard: list[bytes] = []
    done = threading.Event()

    def speaks_first(connection: socket.socket) -> None:
        connection.sendall(b"that is all")
        connection.shutdown(socket.SHUT_WR)
        heard.append(read_all(connection))
        done.set()

    with socket.create_connection(relayed(speaks_first), timeout=9) as client:
        assert read_all(client) == b"that is all"
        client.sendall(b"later ")
        time.sleep(0.05)
        client.sendall(b"words")
    assert done.wait(9)
    assert heard == [b"later words"]


def test_who_listens_nowhere_is_heard_as_a_reset(relayed: Callable) -> None:
    place = relayed(None)
    with pytest.raises(ConnectionResetError), socket.create_connection(place, timeout=9) as client:  # one of the two hears it
        client.recv(1)


def test_a_broken_connection_breaks_on_the_other_side(relayed: Callable) -> None:
    def breaks(connection: socket.socket) -> None:
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    with socket.create_connection(relayed(breaks), timeout=9) as client:
        client.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            client.recv(1)

    heard: list[int | None] = []
    done = threading.Event()

    def listens(connection: socket.socket) -> None:
        try:
            connection.recv(10)
            connection.recv(10)
        except OSError as error:
            heard.append(error.errno)
        done.set()

    client = socket.create_connection(relayed(listens), timeout=9)
    client.sendall(b"x")
    time.sleep(0.1)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.close()
    assert done.wait(9)
    assert heard == [errno.ECONNRESET]


def test_a_break_is_heard_after_a_half_close_and_by_one_who_does_not_read(relayed: Callable) -> None:
    """Both times nothing is to be read or written on the broken side."""
    for sent in (b"", b"x" * (32 << 20)):
        heard: list[int | None] = []
        done = threading.Event()

        def waits(connection: socket.socket, heard: list = heard, done: threading.Event = done) -> None:
            time.sleep(0.3)
            try:
                while connection.recv(1 << 20):
                    pass
                time.sleep(0.3)
                heard.append(connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))  # reading says only that the end was regular
            except OSError as error:
                heard.append(error.errno)
            done.set()

        client = socket.create_connection(relayed(waits), timeout=9)
        client.setblocking(False)
        with suppress(BlockingIOError):
            for at in range(0, len(sent), 1 << 16):
                client.send(sent[at : at + (1 << 16)])
        if not sent:
            client.shutdown(socket.SHUT_WR)
        time.sleep(0.1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.close()
        assert done.wait(9)
        assert heard
        assert heard[0] in (errno.ECONNRESET, errno.EPIPE)


def test_nothing_is_read_faster_than_it_is_taken(relayed: Callable, thread: LoopThread) -> None:
    """A client that sends to somebody who does not read is held back, nothing grows, and the loop rests."""
    go_on = threading.Event()
    received: list[int] = []

    def slow(connection: socket.socket) -> None:
        go_on.wait(20)
        received.append(len(read_all(connection)))

    with socket.create_connection(relayed(slow), timeout=9) as client:
        client.setblocking(False)
        sent = 0
        quiet_since = time.monotonic()
        while time.monotonic() - quiet_since < 0.3:
            try:
                sent += client.send(b"x" * 65536)
                quiet_since = time.monotonic()
            except BlockingIOError:
                time.sleep(0.01)
            assert sent < 64 << 20, "somebody holds all that"
        assert thread.turns_in(0.3) < 20
        client.setblocking(True)
        go_on.set()
    deadline = time.monotonic() + 9
    while not received and time.monotonic() < deadline:
        time.sleep(0.01)
    assert received == [sent]


def test_the_loop_rests_while_nothing_happens(relayed: Callable, thread: LoopThread) -> None:
    """Connections that are half closed, on either side, cost nothing."""
    go_on = threading.Event()

    def waits(connection: socket.socket) -> None:
        read_all(connection)
        go_on.wait(20)

    def speaks(connection: socket.socket) -> None:
        connection.shutdown(socket.SHUT_WR)
        go_on.wait(20)

    with socket.create_connection(relayed(waits)) as one, socket.create_connection(relayed(speaks)) as two:
        one.shutdown(socket.SHUT_WR)
        assert two.recv(1) == b""
        time.sleep(0.1)
        assert thread.turns_in(0.3) < 10
        go_on.set()


def test_the_loop_rests_while_an_end_waits_behind_what_nobody_reads(relayed: Callable, thread: LoopThread) -> None:
    """The server has ended what it says and reads slowly; the client's end is in the relay's queue, behind bytes. poll(2), POLLHUP"""
    steps = threading.Semaphore(0)
    received: list[int] = []
    done = threading.Event()

    def slow(connection: socket.socket) -> None:
        connection.shutdown(socket.SHUT_WR)
        count = 0
        while steps.acquire(timeout=240) and (data := connection.recv(1 << 16)):
            count += len(data)
        received.append(count)
        done.set()

    with socket.create_connection(relayed(slow), timeout=9) as client:
        assert client.recv(1) == b""
        client.setblocking(False)
        sent = 0
        quiet_since = time.monotonic()
        while time.monotonic() - quiet_since < 0.2:
            try:
                sent += client.send(b"x" * 65536)
                quiet_since = time.monotonic()
            except BlockingIOError:
                time.sleep(0.01)
        while struct.unpack("i", fcntl.ioctl(client, termios.TIOCOUTQ, bytes(4)))[0]:
            steps.release()
            time.sleep(0.005)
        client.shutdown(socket.SHUT_WR)
        time.sleep(0.1)
        assert thread.turns_in(0.3) < 20
        assert not received
        steps.release(10_000)
        assert done.wait(9)
    assert received == [sent]


def test_many_connections(relayed: Callable) -> None:
    place = relayed(echo)
    clients = [socket.create_connection(place, timeout=9) for _ in range(200)]
    for number, client in enumerate(clients):
        client.sendall(b"%d" % number)
    for number, client in enumerate(clients):
        assert client.recv(10) == b"%d" % number
    for client in clients:
        client.close()


def test_those_that_are_too_many_wait(relayed: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_MOST_CONNECTIONS", 3)
    place = relayed(echo)
    clients = [socket.create_connection(place, timeout=9) for _ in range(5)]
    for client in clients:
        client.sendall(b"x")
    for client in clients[:3]:
        assert client.recv(1) == b"x"
    clients[3].settimeout(0.2)
    with pytest.raises(TimeoutError):
        clients[3].recv(1)
    clients[3].settimeout(9)
    for client in clients[:3]:
        client.close()
    for client in clients[3:]:
        assert client.recv(1) == b"x"
        client.close()


def test_without_descriptors_the_loop_rests_and_goes_on_later(relayed: Callable, thread: LoopThread) -> None:
    place = relayed(echo)
    with socket.socket(socket.AF_INET6) as client, no_more_descriptors():
        client.settimeout(9)
        client.connect(place)
        client.sendall(b"x")
        assert thread.turns_in(0.3) < 20
    with socket.create_connection(place, timeout=9) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"


def test_closing_cuts_everybody_off(thread: LoopThread) -> None:
    server = Server(echo)
    listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    place = listener.getsockname()[:2]
    made = thread.do(lambda: Relay(thread.loop, listener, lambda _: server.address))
    with socket.create_connection(place, timeout=9) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        thread.do(made.close)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(place)
    server.close()


# Datagrams


class Echo:
    """A server of datagrams that says who asked; ``senders`` are the ports that it saw."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.address = self.socket.getsockname()
        self.senders: list[int] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            data, sender = self.socket.recvfrom(65535)
            if data == b"end":
                return
            self.senders.append(sender[1])
            self.socket.sendto(b"heard " + data, sender)

    def close(self) -> None:
        self.socket.sendto(b"end", self.address)
        self._thread.join(10)
        self.socket.close()


@pytest.fixture
def datagrams(thread: LoopThread) -> Iterator[tuple[tuple[str, int], Echo]]:
    server = Echo()
    bound = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    bound.bind(("::", 0))
    place = ("::1", bound.getsockname()[1])
    made = thread.do(lambda: UdpRelay(thread.loop, bound, lambda _: server.address))
    yield place, server
    thread.do(made.close)
    server.close()


def udp_client(place: tuple[str, int]) -> socket.socket:
    client = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    client.settimeout(9)
    client.connect(place)  # so that only what comes from there is received
    return client


def test_datagrams_go_both_ways_each_sender_for_itself(datagrams: tuple[tuple[str, int], Echo]) -> None:
    place, server = datagrams
    clients = [udp_client(place) for _ in range(50)]
    for _ in range(2):
        for number, client in enumerate(clients):
            client.send(b"%d" % number)
            assert client.recv(100) == b"heard %d" % number
    assert len(set(server.senders)) == 50
    big = os.urandom(60000)
    clients[0].send(big)
    assert clients[0].recv(65535) == b"heard " + big
    clients[0].send(b"")
    assert clients[0].recv(100) == b"heard "
    for client in clients:
        client.close()


def test_senders_of_datagrams_are_bounded_and_forgotten(
    datagrams: tuple[tuple[str, int], Echo], thread: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, server = datagrams
    monkeypatch.setattr(relay, "_MOST_SESSIONS", 3)
    monkeypatch.setattr(relay, "_SESSION_IDLE_S", 0.3)
    before = len(os.listdir("/proc/self/fd"))
    with udp_client(place) as first:
        for _ in range(10):
            with udp_client(place) as client:
                client.send(b"x")
                assert client.recv(10) == b"heard x"
        assert len(os.listdir("/proc/self/fd")) <= before + 4
        first.send(b"y")
        assert first.recv(10) == b"heard y"
        port = server.senders[-1]
        first.send(b"y")
        assert first.recv(10) == b"heard y"
        assert server.senders[-1] == port
        time.sleep(0.7)
        assert len(os.listdir("/proc/self/fd")) == before + 1
        first.send(b"z")
        assert first.recv(10) == b"heard z"


def test_nobody_listening_harms_nobody(thread: LoopThread) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
        unused.bind(("127.0.0.1", 0))
        target = unused.getsockname()
    bound = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    bound.bind(("::1", 0))
    place = bound.getsockname()[:2]
    made = thread.do(lambda: UdpRelay(thread.loop, bound, lambda _: target))
    with udp_client(place) as client:
        for _ in range(20):
            client.send(b"x")
        assert thread.turns_in(0.3) < 60
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind(target)
            server.settimeout(9)
            client.send(b"now")
            while (received := server.recvfrom(10))[0] != b"now":
                pass
            server.sendto(b"yes", received[1])
            assert client.recv(10) == b"yes"
    thread.do(made.close)
