"""``--egress``, seen by traffic: what each mode lets out, by whatever protocol, and what it never keeps from a container."""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from bulle.model.network import PublishedPort
from bulle.network.egress import parse_egress
from bulle.network.ruleset import link_local
from bulle_testing.network_lab import (
    HOST,
    HOST6,
    METADATA,
    PATIENT_S,
    PRIVATE,
    PRIVATE6,
    QUICK_S,
    WORLD,
    WORLD6,
    Lab,
    Member,
    Space,
    carries,
    echoes,
    frame,
    ipv4_packet,
    listening,
    mac_of,
    ports,
    reaches,
    reaches_udp,
    send_frame,
    silent,
    udp,
)

pytestmark = [pytest.mark.root, pytest.mark.programs("ip", "nft")]

GATEWAY, GATEWAY6 = "10.208.1.1", "fd00:1::1"
EVERYWHERE = {WORLD, WORLD6, PRIVATE, PRIVATE6, METADATA, HOST, HOST6, GATEWAY, GATEWAY6}
SCTP, RAW = 132, 253
PROTOCOLS = ("tcp", "udp", "icmp", "sctp", "raw")


either_way = pytest.mark.parametrize("lab", ["1", "0"], indirect=True, ids=["bridges-filtered", "bridges-free"])


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A machine whose kernel shows the rules what stays on a bridge, as where Docker runs; ``either_way`` also one where it does not."""
    made = Lab.make()
    filtered = getattr(request, "param", "1")
    try:
        made.machine.run(
            f"for family in iptables ip6tables; do echo {filtered} >/proc/sys/net/bridge/bridge-nf-call-$family; done",
            f"sysctl -qw net.ipv4.conf.all.rp_filter={filtered}",
        )
        yield made
    finally:
        made.close()


def in_reach(lab: Lab, member: Member, hoped: Mapping[str, set[str]], port: int = 80) -> dict[str, set[str]]:
    """Which addresses of all a member reaches, by way of each protocol; all are tried at once, and longer those that are hoped for."""

    def by_tcp(there: Space, address: str, patience_s: float) -> bool:
        with listening(there, address, port) as listener:
            return bool(reaches(member.space, address, port, listener, patience_s))

    def by_udp(there: Space, address: str, patience_s: float) -> bool:
        with listening(there, address, port, socket.SOCK_DGRAM) as listener:
            return bool(reaches_udp(member.space, address, port, listener, patience_s))

    ways: dict[str, Callable[[Space, str, float], bool]] = {
        "tcp": by_tcp,
        "udp": by_udp,
        "icmp": lambda there, address, patience_s: echoes(member.space, address, patience_s),
        "sctp": lambda there, address, patience_s: carries(member.space, there, address, SCTP, patience_s=patience_s),
        "raw": lambda there, address, patience_s: carries(member.space, there, address, RAW, patience_s=patience_s),
    }
    places = {address: lab.world if address in (WORLD, WORLD6, PRIVATE, PRIVATE6, METADATA) else lab.machine for address in EVERYWHERE}
    with ThreadPoolExecutor(len(ways) * len(places)) as pool:
        tried = {}
        for name, address in itertools.product(ways, places):
            patience_s = PATIENT_S if address in hoped.get(name, ()) else QUICK_S
            tried[name, address] = pool.submit(ways[name], places[address], address, patience_s)
    return {name: {address for address in places if tried[name, address].result()} for name in ways}


def own_network_works(lab: Lab, member: Member, neighbour: Member) -> None:
    """Whatever its egress: it reaches its neighbours, is reached by them and through published ports, and can answer."""
    with listening(neighbour.space, "::", 80) as listener:
        assert reaches(member.space, neighbour.address6, 80, listener) == member.address6
    with listening(neighbour.space, "0.0.0.0", 53, socket.SOCK_DGRAM) as listener:
        assert reaches_udp(member.space, neighbour.address, 53, listener) == member.address
    assert echoes(member.space, neighbour.address)
    assert carries(member.space, neighbour.space, neighbour.address, RAW)
    with listening(member.space, "0.0.0.0", 80) as listener:
        assert reaches(neighbour.space, member.address, 80, listener) == neighbour.address
        assert reaches(lab.world, HOST, 8080, listener) == WORLD
        assert reaches(lab.machine, "127.0.0.1", 8080, listener) == GATEWAY
    assert echoes(lab.machine, member.address)


@either_way
@pytest.mark.parametrize(
    ("text", "open_to"),
    [
        ("all", EVERYWHERE),
        ("internet", {WORLD, WORLD6}),
        ("none", set()),
        (f"allow:{WORLD},fd77::/64", {WORLD, PRIVATE6}),
        (f"allow:93.184.0.0/24,{GATEWAY6}", {WORLD, HOST, GATEWAY6}),
    ],
)
def test_what_each_mode_opens_is_open_to_every_protocol_and_the_rest_to_none(lab: Lab, text: str, open_to: set[str]) -> None:
    rules = lab.rules()
    rules.open()
    network = lab.network(rules, 1)
    member, neighbour = lab.member(rules, network, 2, text), lab.member(rules, network, 3)
    rules.publish(member.name, ports(PublishedPort("0.0.0.0", 8080, 80), target=member.address))
    for protocol, found in in_reach(lab, member, dict.fromkeys(PROTOCOLS, open_to)).items():
        assert found == open_to, protocol
    own_network_works(lab, member, neighbour)
    host_by_link = f"{link_local(mac_of(lab.machine, 'bulle00000001'))}%eth0"
    assert echoes(neighbour.space, host_by_link)
    assert (echoes if text == "all" else silent)(member.space, host_by_link)
    assert in_reach(lab, neighbour, {"tcp": EVERYWHERE})["tcp"] == EVERYWHERE, "another's rules are not its own"


def test_ipv6_forms_of_private_addresses_are_not_the_internet(lab: Lab) -> None:
    rules = lab.rules()
    rules.open()
    member = lab.member(rules, lab.network(rules, 1), 2, "internet")
    foreign = ["64:ff9b::808:808", "2002:808:808::1", "2003::1"]
    closed = ["64:ff9b::c0a8:4d02", "64:ff9b::a9fe:a9fe", "2002:c0a8:4d02::1", "2001:db8::1", "2001::1", "64:ff9b:1::1", "1000::1", "4000::1"]
    lab.world.run(*(f"ip addr add {address}/128 dev eth0 nodad" for address in (*foreign, *closed)))
    assert all(echoes(member.space, address) for address in foreign)
    with ThreadPoolExecutor(len(closed)) as pool:
        assert all(pool.map(lambda address: silent(member.space, address), closed))


def test_a_list_opens_only_its_ports(lab: Lab) -> None:
    rules = lab.rules()
    rules.open()
    member = lab.member(rules, lab.network(rules, 1), 2, f"allow:{WORLD}:80,93.184.0.0/16:443,[{WORLD6}]:80,192.168.0.0/16:80")
    for port, listed in ((80, {WORLD, WORLD6, PRIVATE}), (443, {WORLD, HOST})):
        nothing: set[str] = set()
        expected = {"tcp": listed, "udp": listed, "icmp": nothing, "sctp": nothing, "raw": nothing}
        assert in_reach(lab, member, expected, port) == expected
    # As raw packets that look like the allowed ones in all but their protocol.
    assert not carries(member.space, lab.world, WORLD, RAW, udp(80, b"in disguise"), QUICK_S)


@pytest.mark.parametrize("text", ["internet", "allow:example.org"])
def test_broadcast_and_multicast_do_not_reach_the_host(lab: Lab, text: str) -> None:
    rules = lab.rules()
    rules.open()
    member = lab.member(rules, lab.network(rules, 1), 2, text)
    free = lab.member(rules, "network1", 3)
    lab.machine.run("echo 0 >/proc/sys/net/ipv4/icmp_echo_ignore_broadcasts")
    to_host = mac_of(lab.machine, "bulle00000001")
    with (
        listening(lab.machine, "0.0.0.0", 5353, socket.SOCK_DGRAM) as listener,
        listening(free.space, "0.0.0.0", 5353, socket.SOCK_DGRAM) as neighbour,
    ):
        listener.settimeout(QUICK_S)
        for target in ("255.255.255.255", "10.208.1.255"):
            for who, heard in ((member, False), (free, True)):
                send_frame(who.space, frame(who.link.mac, "ff:ff:ff:ff:ff:ff", 0x0800, ipv4_packet(who.address, target, udp(5353, b"psst"), 17)))
                with contextlib.nullcontext() if heard else pytest.raises(TimeoutError):
                    assert listener.recvfrom(99)[1][0] == who.address
            assert neighbour.recvfrom(99)[1][0] == member.address, "while its neighbours hear it"
        neighbour.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("224.0.0.251") + socket.inet_aton(free.address))
        everyone = "01:00:5e:00:00:fb"
        send_frame(member.space, frame(member.link.mac, everyone, 0x0800, ipv4_packet(member.address, "224.0.0.251", udp(5353, b"psst"), 17)))
        assert neighbour.recvfrom(99)[1][0] == member.address
        listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("224.0.0.251") + socket.inet_aton(GATEWAY))
        for who, heard in ((member, False), (free, True)):
            send_frame(who.space, frame(who.link.mac, to_host, 0x0800, ipv4_packet(who.address, "224.0.0.251", udp(5353, b"psst"), 17)))
            with contextlib.nullcontext() if heard else pytest.raises(TimeoutError):
                assert listener.recvfrom(99)[1][0] == who.address


def test_a_name_opens_no_private_address_and_not_this_host(lab: Lab) -> None:
    rules = lab.rules()
    rules.open()
    member = lab.member(rules, lab.network(rules, 1), 2, f"allow:example.org,{PRIVATE}:80")
    for address in EVERYWHERE - {WORLD, WORLD6}:
        rules.allow(member.name, [address], [], 60)
    rules.allow(member.name, ["::ffff:192.168.77.2", "64:ff9b::c0a8:4d02", "2002:c0a8:4d02::1", "0.0.0.0", "::"], [], 60)
    nothing: dict[str, set[str]] = {name: set() for name in PROTOCOLS}
    expected = nothing | {"tcp": {PRIVATE}, "udp": {PRIVATE}}
    assert in_reach(lab, member, expected, 80) == expected
    assert in_reach(lab, member, nothing, 81) == nothing


def test_another_mode_counts_at_once_and_an_old_list_is_forgotten(lab: Lab) -> None:
    rules = lab.rules()
    rules.open()
    member = lab.member(rules, lab.network(rules, 1), 2, "allow:example.org")
    rules.allow(member.name, [WORLD], [], 60)
    assert echoes(member.space, WORLD)
    for text, reached in (
        ("none", False),
        ("internet", True),
        ("allow:example.org", False),
        ("all", True),
        (f"allow:{WORLD}", True),
        ("none", False),
    ):
        rules.change_member(member.name, [member.link], parse_egress(text))  # although the echo that went before was answered
        assert (echoes if reached else silent)(member.space, WORLD), text
    rules.remove_member(member.name)
    rules.remove_member(member.name)
    assert "list_" not in rules.describe()
