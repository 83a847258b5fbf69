"""``--egress``, seen by traffic: what each mode lets out, by whatever protocol, and what it never keeps from a container."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from bulle.model.network import PublishedPort
from bulle.network.egress import parse_egress
from bulle.network.ruleset import link_local
from bulle_testing.network_lab import (
    HOST,
    HOST6,
    METADATA,
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
    udp,
)

pytestmark = [pytest.mark.root, pytest.mark.programs("ip", "nft")]

GATEWAY, GATEWAY6 = "10.208.1.1", "fd00:1::1"
EVERYWHERE = {WORLD, WORLD6, PRIVATE, PRIVATE6, METADATA, HOST, HOST6, GATEWAY, GATEWAY6}
SCTP, RAW = 132, 253


@pytest.fixture(params=["1", "0"], ids=["bridges-filtered", "bridges-free"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A machine whose kernel shows the rules what stays on a bridge, as where Docker runs, and one where it does not."""
    made = Lab.make()
    try:
        made.machine.run(
            f"for family in iptables ip6tables; do echo {request.param} >/proc/sys/net/bridge/bridge-nf-call-$family; done",
            f"sysctl -qw net.ipv4.conf.all.rp_filter={request.param}",
        )
        yield made
    finally:
        made.close()


def in_reach(lab: Lab, member: Member, port: int = 80) -> dict[str, set[str]]:
    """Which addresses of all a member reaches, by way of each protocol; all are tried at once."""

    def by_tcp(there: Space, address: str) -> bool:
        with listening(there, address, port) as listener:
            return bool(reaches(member.space, address, port, listener))

    def by_udp(there: Space, address: str) -> bool:
        with listening(there, address, port, socket.SOCK_DGRAM) as listener:
            return bool(reaches_udp(member.space, address, port, listener))

    ways: dict[str, Callable[[Space, str], bool]] = {
        "tcp": by_tcp,
        "udp": by_udp,
        "icmp": lambda there, address: echoes(member.space, address),
        "sctp": lambda there, address: carries(member.space, there, address, SCTP),
        "raw": lambda there, address: carries(member.space, there, address, RAW),
    }
    places = {address: lab.world if address in (WORLD, WORLD6, PRIVATE, PRIVATE6, METADATA) else lab.machine for address in EVERYWHERE}
    with ThreadPoolExecutor(len(ways) * len(places)) as pool:
        tried = {(name, address): pool.submit(way, places[address], address) for name, way in ways.items() for address in places}
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
    for protocol, found in in_reach(lab, member).items():
        assert found == open_to, protocol
    own_network_works(lab, member, neighbour)
    host_by_link = f"{link_local(mac_of(lab.machine, 'bulle00000001'))}%eth0"
    assert echoes(neighbour.space, host_by_link)
    assert echoes(member.space, host_by_link) == (text == "all")
    assert in_reach(lab, neighbour)["tcp"] == EVERYWHERE, "another's rules are not its own"


def test_ipv6_forms_of_private_addresses_are_not_the_internet(lab: Lab) -> None:
    rules = lab.rules()
    rules.open()
    member = lab.member(rules, lab.network(rules, 1), 2, "internet")
    foreign = ["64:ff9b::808:808", "2002:808:808::1", "2003::1"]
    closed = ["64:ff9b::c0a8:4d02", "64:ff9b::a9fe:a9fe", "2002:c0a8:4d02::1", "2001:db8::1", "2001::1", "64:ff9b:1::1", "1000::1", "4000::1"]
    lab.world.run(*(f"ip addr add {address}/128 dev eth0 nodad" for address in (*foreign, *closed)))
    with ThreadPoolExecutor(len(foreign) + len(closed)) as pool:
        reached = dict(zip((*foreign, *closed), pool.map(lambda address: echoes(member.space, address), (*foreign, *closed)), strict=True))
    assert [address for address, came in reached.items() if came] == foreign


def test_a_list_opens_only_its_ports(lab: Lab) -> None:
    rules = lab.rules()
    rules.open()
    member = lab.member(rules, lab.network(rules, 1), 2, f"allow:{WORLD}:80,93.184.0.0/16:443,[{WORLD6}]:80,192.168.0.0/16:80")
    eighty, other = in_reach(lab, member, 80), in_reach(lab, member, 443)
    assert eighty["tcp"] == eighty["udp"] == {WORLD, WORLD6, PRIVATE}
    assert other["tcp"] == other["udp"] == {WORLD, HOST}
    assert eighty["icmp"] == eighty["raw"] == set()
    # As raw packets that look like the allowed ones in all but their protocol.
    assert not carries(member.space, lab.world, WORLD, RAW, udp(80, b"in disguise"))


@pytest.mark.parametrize("text", ["none", "internet", "allow:example.org"])
def test_broadcast_and_multicast_do_not_reach_the_host(lab: Lab, text: str) -> None:
    rules = lab.rules()
    rules.open()
    member = lab.member(rules, lab.network(rules, 1), 2, text)
    free = lab.member(rules, "network1", 3)
    lab.machine.run("echo 0 >/proc/sys/net/ipv4/icmp_echo_ignore_broadcasts")
    to_host = mac_of(lab.machine, "bulle00000001")
    with listening(lab.machine, "0.0.0.0", 5353, socket.SOCK_DGRAM) as listener:
        listener.settimeout(QUICK_S)
        for target in ("255.255.255.255", "10.208.1.255"):
            for who, heard in ((member, False), (free, True)):
                send_frame(who.space, frame(who.link.mac, "ff:ff:ff:ff:ff:ff", 0x0800, ipv4_packet(who.address, target, udp(5353, b"psst"), 17)))
                with contextlib.nullcontext() if heard else pytest.raises(TimeoutError):
                    assert listener.recvfrom(99)[1][0] == who.address
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
    assert in_reach(lab, member, 80) == {"tcp": {PRIVATE}, "udp": {PRIVATE}, "icmp": set(), "sctp": set(), "raw": set()}
    assert in_reach(lab, member, 81) == {name: set() for name in ("tcp", "udp", "icmp", "sctp", "raw")}


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
        assert echoes(member.space, WORLD) == reached, text
    rules.remove_member(member.name)
    rules.remove_member(member.name)
    assert "list_" not in rules.describe()
