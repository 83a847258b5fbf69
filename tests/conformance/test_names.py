"""Names of containers, asked from inside: own names, aliases, reverse, taking turns, renaming, and what becomes of them; other names go upstream."""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bulle_testing import places
from bulle_testing.networking import IMAGE, Networked, ask, free_ports, ip, other_machine
from bulle_testing.running import wait_for

pytestmark = [pytest.mark.root, pytest.mark.programs("nft", "ip", "unshare", "nsenter")]
ARCHIVE = "python_archive"

# Prints the first address of a name as any program would get it, or the name of the error.
LOOKUP = """
import socket, sys
try:
    print(socket.getaddrinfo(sys.argv[1], None, socket.AF_INET)[0][4][0])
except OSError as error:
    print(type(error).__name__)
"""


def sleeper(net: Networked, name: str, *flags: str) -> str:
    """A container that does nothing; returns its id."""
    return net("run", "-d", "--name", name, "-v", "/usr:/usr:ro", *flags, IMAGE, "sleep", "1000")


def look_up(net: Networked, container: str, name: str) -> str:
    """What a container hears of a name."""
    return net.python(container, LOOKUP, name)


def first_answers(net: Networked, container: str, name: str) -> set[str]:
    """What stands first in the answers to many questions."""
    script = f"for i in $(seq 20); do nslookup -type=a {name} | awk '/^Address: 10/ {{print $2; exit}}'; done"
    return set(net("exec", container, "sh", "-c", script).split())


def test_names_aliases_and_ids(net: Networked) -> None:
    net("network", "create", "shop")
    identifier = sleeper(net, "db", "--network", "shop", "--network-alias", "store", "--network-alias", "Data.example", "--hostname", "other")
    sleeper(net, "web", "--network", "shop")
    address = net.address("db", "shop")
    for name in ("db", "DB", "db.", "db.shop", "store", "data.example", identifier[:12]):
        assert look_up(net, "web", name) == address, name
    assert look_up(net, "db", "db") == address, "itself too"
    for name in ("other", "nobody", "db.shop.example", identifier[:11]):
        assert look_up(net, "web", name) == "gaierror", name
    reverse = net("exec", "web", "nslookup", address)
    assert "name = db.shop" in reverse


def test_ipv6_names(net: Networked) -> None:
    net("network", "create", "--ipv6", "six")
    sleeper(net, "db", "--network", "six")
    sleeper(net, "web", "--network", "six")
    text = net("exec", "web", "nslookup", "db")
    assert f"Address: {net.address('db', 'six')}" in text and f"Address: {net.address('db', 'six', 6)}" in text
    assert "name = db.six" in net("exec", "web", "nslookup", net.address("db", "six", 6))


def test_the_default_network_has_names(net: Networked) -> None:
    sleeper(net, "db")
    assert net.run("--", "nslookup", "-type=a", "db").count(net.address("db")) == 1


def test_containers_of_one_alias_take_turns(net: Networked) -> None:
    addresses = set()
    for number in range(3):
        sleeper(net, f"web{number}", "--network-alias", "web")
        addresses.add(net.address(f"web{number}"))
    sleeper(net, "client")
    assert first_answers(net, "client", "web") == addresses
    net("stop", "-t", "0", "web1")
    assert first_answers(net, "client", "web") == addresses - {net.address("web1")}


def test_a_name_goes_with_its_container_and_comes_back(net: Networked) -> None:
    sleeper(net, "db")
    sleeper(net, "web")
    address = net.address("db")
    net("pause", "db")
    assert look_up(net, "web", "db") == address
    net("unpause", "db")
    net("stop", "-t", "0", "db")
    assert look_up(net, "web", "db") == "gaierror"
    net("start", "db")
    assert look_up(net, "web", "db") == address
    net("rm", "-f", "db")
    assert look_up(net, "web", "db") == "gaierror"
    sleeper(net, "db")
    assert look_up(net, "web", "db") == net.address("db") != address, "the next of that name, at once"


def test_renaming(net: Networked) -> None:
    sleeper(net, "old", "--network-alias", "stays")
    sleeper(net, "web")
    address = net.address("old")
    net("rename", "old", "new")
    assert [look_up(net, "web", name) for name in ("new", "old", "stays")] == [address, "gaierror", address]
    net("restart", "-t", "0", "new")
    assert look_up(net, "web", "new") == address
    net("stop", "-t", "0", "new")
    net("rename", "new", "newest")
    net("start", "newest")
    assert look_up(net, "web", "newest") == address


def test_a_name_that_two_have(net: Networked) -> None:
    """An alias that is another container's name is answered with both; nobody loses a name by it."""
    sleeper(net, "db")
    sleeper(net, "copy", "--network-alias", "db")
    sleeper(net, "web")
    assert first_answers(net, "web", "db") == {net.address("db"), net.address("copy")}


def test_a_container_that_is_a_name_server(net: Networked) -> None:
    """One that publishes its port 53 has it on all its addresses, and asks the same servers as this machine."""
    port = free_ports(1)
    net.start("server", "-p", f"{port}:53/udp", "-p", f"{port}:53", "--dns", "192.0.2.53", ports=(53,))
    for protocol in ("tcp", "udp"):
        for address in ("127.0.0.1", "::1"):
            assert ask(address, port, protocol).startswith("server ")
    assert "nameserver 192.0.2.53" in net("exec", "server", "cat", "/etc/resolv.conf")
    sleeper(net, "web")
    assert look_up(net, "web", "server") == net.address("server"), "others know its name"
    net("restart", "-t", "0", "server")
    before = places.keeper_pid(net.home)
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: ask("::1", port).startswith("server "), "its port with the next keeper")


# Upstream


def answer(question: bytes, known: dict[str, str]) -> bytes:
    """An answer as a name server gives it: the address of a known name, else that there is none."""
    labels, position = [], 12
    while question[position]:
        labels.append(question[position + 1 : position + 1 + question[position]].decode())
        position += 1 + question[position]
    end = position + 5
    kind = struct.unpack_from("!H", question, position + 1)[0]
    address = known.get(".".join(labels).lower())
    found = address is not None and kind == (28 if ":" in address else 1)
    header = question[:2] + struct.pack("!HHHHH", 0x8180 if address else 0x8183, 1, int(found), 0, 0)
    if not found:
        return header + question[12:end]
    packed = socket.inet_pton(socket.AF_INET6 if ":" in str(address) else socket.AF_INET, str(address))
    return header + question[12:end] + struct.pack("!HHHIH", 0xC00C, kind, 1, 60, len(packed)) + packed


@contextmanager
def name_server(known: dict[str, str], address: str = "127.0.0.53") -> Iterator[list[bytes]]:
    """A name server of this machine, at an address of its own; what it was asked so far."""
    asked: list[bytes] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((address, 53))

        def serve() -> None:
            while True:
                question, peer = server.recvfrom(4096)
                if len(question) < 12:
                    return
                asked.append(question)
                server.sendto(answer(question, known), peer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield asked
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
                end.sendto(b"end", (address, 53))
            thread.join()


UPSTREAM = "127.83.0.53"


def test_other_names_go_to_the_servers_that_were_named(net: Networked) -> None:
    with name_server({"shop.example": "203.0.113.7", "only.six.example": "2001:db8::7", "host.corp.example": "203.0.113.8"}, UPSTREAM) as asked:
        sleeper(net, "web", "--dns", UPSTREAM, "--dns-search", "corp.example")
        sleeper(net, "db")
        assert look_up(net, "web", "shop.example") == "203.0.113.7"
        assert look_up(net, "web", "host") == "203.0.113.8", "the search list"
        assert look_up(net, "web", "nothing.example") == "gaierror"
        assert "2001:db8::7" in net("exec", "web", "nslookup", "-type=aaaa", "only.six.example")
        before = len(asked)
        assert look_up(net, "web", "db") == net.address("db")
        assert not any(b"\x02db" in question for question in asked[before:]), "names of containers are nobody else's business"
        net("network", "create", "--dns", UPSTREAM, "shop")
        sleeper(net, "late", "--network", "shop")
        assert look_up(net, "late", "shop.example") == "203.0.113.7", "a network's servers"


def test_internal_networks_ask_nobody(net: Networked) -> None:
    """What is asked upstream leaves the machine, and would carry out whatever the question says."""
    with name_server({"shop.example": "203.0.113.7"}, UPSTREAM) as asked:
        net("network", "create", "--internal", "--dns", UPSTREAM, "inside")
        sleeper(net, "one", "--network", "inside")
        sleeper(net, "two", "--network", "inside")
        assert look_up(net, "one", "two") == net.address("two", "inside")
        assert look_up(net, "one", "shop.example") == "gaierror"
        assert asked == []


@pytest.mark.parametrize(
    ("egress", "reached"),
    [("all", {"public", "private"}), ("internet", {"public"}), ("allow:shop.example:80", {"public"}), ("allow:*.example:81", set()), ("none", set())],
)
def test_ways_out_by_name(net: Networked, egress: str, reached: set[str]) -> None:
    """What an allowed name leads to is in reach as soon as it is answered; a name that leads to a private address opens nothing."""
    with other_machine(5) as outside, outside.serving("outside", 80, 81):
        known = {"shop.example": "203.0.114.7", "private.example": "10.99.99.99"}
        # Addresses of documents count as public nowhere; the other machine has two that do and do not.
        for address in known.values():
            ip("address", "add", f"{address}/32", "dev", "lo", pid=outside.pid)
            ip("route", "add", f"{address}/32", "via", outside.address)
        try:
            with name_server(known, UPSTREAM):
                net.start("client", "--dns", UPSTREAM, "--egress", egress)
                found = {name for name, target in (("public", "shop.example"), ("private", "private.example")) if _hears(net, target)}
        finally:
            for address in known.values():
                ip("route", "delete", f"{address}/32")
    assert found == reached


def _hears(net: Networked, target: str) -> bool:
    return net.ask_from("client", target, 80, patience_s=0.5).startswith("outside ")


def test_names_after_the_keeper_was_killed(net: Networked) -> None:
    sleeper(net, "db", "--network-alias", "store")
    sleeper(net, "web")
    keeper = places.keeper_pid(net.home)
    os.kill(keeper, signal.SIGKILL)
    wait_for(lambda: places.keeper_pid(net.home) not in (0, keeper), "another keeper, without a command that needs one")
    assert look_up(net, "web", "store") == net.address("db")
