"""``bulle serve`` under load: hundreds of clients, some slow, some gone; ten thousand requests. Nothing of the server grows, and no client makes
another wait. Its figures are read from /proc.
"""

from __future__ import annotations

import json
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bulle_testing.running import Machine, wait_for
from bulle_testing.socket_clients import Served, UnixConnection, received, serving

pytestmark = [pytest.mark.root, pytest.mark.slow]

CLIENTS = 200
REQUESTS = 10_000
NEIGHBOUR_S = 30.0
"""The most that one small request may take meanwhile, on a machine that does nothing else; usually it is milliseconds."""
IDLE_THREADS = 2
"""One for the connections, one for the journal."""
GROWTH_KIB = 3 * 1024
"""What two halves of the same load may differ by: allocators keep pages, a leak of one kilobyte per request would be ten times that."""


@pytest.fixture(scope="module")
def server(module_machine: Machine) -> Iterator[Served]:
    """The module's home, served."""
    with serving(module_machine.home) as served:
        yield served


@pytest.fixture
def api(server: Served, box: Machine) -> Served:
    """The server, in a test that leaves no container."""
    return server


def create(api: Served, *command: str) -> str:
    """A container that was not started."""
    answer = api.request("POST", "/containers/create", {"Image": "busybox", "Cmd": list(command), "HostConfig": {"NetworkMode": "none"}})
    assert answer.status == 201, answer.body
    return str(answer.document["Id"])


def start(api: Served, identifier: str) -> None:
    assert api.request("POST", f"/containers/{identifier}/start").status == 204


def remove(api: Served, identifier: str) -> None:
    assert api.request("DELETE", f"/containers/{identifier}?force=1").status == 204


def status(pid: int, key: str) -> int:
    """A number of proc_pid_status(5)."""
    return next(int(line.split()[1]) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(f"{key}:"))


def rest(api: Served) -> int:
    """Descriptors of the server once what was idle has ended: its threads live for a while, and keep a database open each."""
    wait_for(lambda: status(api.pid, "Threads") <= IDLE_THREADS, "threads that have nothing to do end", 60)
    return api.descriptors()


def comes_to_rest(api: Served, before: int) -> None:
    """All is given back; a connection that was just closed may still be seen."""
    rest(api)
    api.settles(before)


def at_once(count: int, act: Callable[[int], None]) -> None:
    """So many clients, all of which must end well."""
    wrong: list[str] = []

    def live(number: int) -> None:
        try:
            act(number)
        except Exception as error:  # noqa: BLE001 -- raised below
            wrong.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=live, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, (len(wrong), wrong[:3])


def is_prompt(api: Served) -> None:
    """A neighbour is answered, small and large, as if it were alone."""
    for path in ("/_ping", "/containers/json?all=1"):
        began = time.monotonic()
        assert api.request("GET", path).status == 200
        assert time.monotonic() - began < NEIGHBOUR_S, path


@pytest.mark.alone
def test_two_hundred_clients_and_ten_thousand_requests(api: Served) -> None:
    made = [create(api, "true") for _ in range(5)]
    before = rest(api)
    paths = (
        "/_ping",
        "/containers/json?all=1",
        f"/containers/{made[0]}/json",
        "/images/json",
        "/containers/nope/json",
        "/version",
        "/_ping",
        "/nowhere",
    )
    sizes = []

    def ask(number: int) -> None:
        connection = UnixConnection(api.path, 120)
        try:
            for turn in range(REQUESTS // 2 // CLIENTS):
                path = paths[(number + turn) % len(paths)]
                connection.request("GET", path)
                answer = connection.getresponse()
                body = answer.read()
                assert answer.status == (404 if path in ("/containers/nope/json", "/nowhere") else 200), (path, answer.status, body)
                assert "all=1" not in path or len(json.loads(body)) == len(made)
        finally:
            connection.close()

    for _ in range(2):
        at_once(CLIENTS, ask)
        comes_to_rest(api, before)
        sizes.append(status(api.pid, "VmRSS"))
    assert sizes[1] - sizes[0] < GROWTH_KIB, sizes
    for one in made:
        remove(api, one)


@pytest.mark.alone
def test_slow_readers_make_nobody_wait_and_cost_little(api: Served) -> None:
    """Each is sent far more than it reads: the server holds a bounded piece of it."""
    made = create(api, "sh", "-c", "yes 0123456789abcdef | head -c 20000000; exec sleep 1000")
    start(api, made)
    wait_for(lambda: len(api.request("GET", f"/containers/{made}/logs?stdout=1&tail=1000000").body) > 20_000_000, "all is written")
    before, size = rest(api), status(api.pid, "VmRSS")
    with ExitStack() as stack:
        slow = [stack.enter_context(api.send(f"GET /containers/{made}/logs?stdout=1&follow=1 HTTP/1.1\nHost: x\n\n")) for _ in range(60)]
        slow += [stack.enter_context(api.send(f"GET /containers/{made}/export HTTP/1.1\nHost: x\n\n")) for _ in range(4)]
        for one in slow:
            assert one.recv(12) == b"HTTP/1.1 200"
        time.sleep(1)
        is_prompt(api)
        assert status(api.pid, "VmRSS") - size < len(slow) * 2048
    comes_to_rest(api, before)
    remove(api, made)


def test_clients_that_never_finish_what_they_say(api: Served) -> None:
    """Half a head, half a body, nothing at all: they cost a descriptor each, and their end gives it back."""
    made = create(api, "true")
    before = rest(api)
    body = "HTTP/1.1\nHost: x\nContent-Length: 1000\n\n"
    said = (
        "", "GET /_ping HTTP/1.1\nHo", f"POST /containers/create {body}{{", "POST /images/load HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\n\n5\n",
        f"POST /build {body}x", f"PUT /containers/{made}/archive?path=/tmp {body}x", f"POST /images/create?fromSrc=- {body}",
        f"POST /volumes/create {body}",
    )  # fmt: skip
    with ExitStack() as stack:
        for number in range(CLIENTS):
            stack.enter_context(api.send(said[number % len(said)]))
        wait_for(lambda: api.descriptors() >= before + CLIENTS, "all are connected")
        is_prompt(api)
    comes_to_rest(api, before)
    wait_for(lambda: api.request("HEAD", f"/containers/{made}/archive?path=/tmp").status == 200, "the container's files are free again")
    assert [one["RepoTags"] for one in api.request("GET", "/images/json").document] == [["busybox:latest"]]
    remove(api, made)


def test_clients_that_vanish_in_the_middle(api: Served) -> None:
    """Eight hundred, twenty at a time, in the midst of every kind of stream. Memory comes to rest after the first half."""
    made = create(api, "sh", "-c", "yes | head -c 3000000; exec cat")
    start(api, made)
    before = rest(api)
    hijack = "HTTP/1.1\nHost: x\nConnection: Upgrade\nUpgrade: tcp\nContent-Length: 0\n\n"
    plain = "HTTP/1.1\nHost: x\n\n"
    kinds = (
        f"GET /events {plain}", f"GET /containers/{made}/logs?stdout=1&follow=1 {plain}", f"GET /containers/{made}/stats {plain}",
        f"POST /containers/{made}/wait {plain}", f"POST /containers/{made}/attach?stream=1&stdout=1&stdin=1&logs=1 {hijack}",
        f"GET /containers/json?all=1 {plain}",
    )  # fmt: skip
    sizes = []
    for turn in range(40):
        for number in range(CLIENTS // 10):
            with api.send(kinds[(turn + number) % len(kinds)]) as connection:
                if number % 2:
                    connection.recv(100)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        is_prompt(api)
        sizes.append(status(api.pid, "VmRSS"))
    comes_to_rest(api, before)
    assert statistics.median(sizes[30:]) - statistics.median(sizes[20:30]) < GROWTH_KIB, sizes
    remove(api, made)


def test_heads_and_documents_that_never_end(api: Served) -> None:
    """What is sent of them is refused or read no further; none of it stays."""
    before, size = rest(api), status(api.pid, "VmRSS")

    def flood(number: int) -> None:
        begin = "GET /_ping HTTP/1.1\nX: " if number % 2 else "POST /containers/create HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\n\n"
        piece = b"x" * 65536 if number % 2 else b"10000\r\n" + b" " * 65536 + b"\r\n"
        with api.send(begin) as connection:
            try:
                for _ in range(400):
                    connection.sendall(piece)
            except OSError:
                return
            answered = received(connection, b"\r\n")
            assert answered.startswith(b"HTTP/1.1 4"), answered

    at_once(20, flood)
    is_prompt(api)
    comes_to_rest(api, before)
    assert status(api.pid, "VmRSS") - size < 20 * 1024
