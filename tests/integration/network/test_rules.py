"""The rules of networks, seen by traffic: published ports, masquerading, isolation, and what a container may send as."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator

import pytest

from bulle.model.network import PublishedPort
from bulle.network.ruleset import link_local
from bulle_testing.network_lab import (
    HOST,
    HOST6,
    QUICK_S,
    WORLD,
    WORLD6,
    Lab,
    all_refused,
    echoes,
    frame,
    icmpv6,
    ipv4_packet,
    ipv6_packet,
    listening,
    mac_bytes,
    mac_of,
    ports,
    reaches,
    reaches_udp,
    send_frame,
    silent,
    sniffing,
    udp,
)

pytestmark = [pytest.mark.root, pytest.mark.programs("ip", "nft")]


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


def test_a_published_port_is_reached_from_localhost_the_host_the_world_and_the_network_itself(lab: Lab) -> None:
    rules = lab.rules()
    rules.open()
    network = lab.network(rules, 1)
    server, other = lab.member(rules, network, 2), lab.member(rules, network, 3)
    stranger = lab.member(rules, lab.network(rules, 2), 2)
    published = ports(PublishedPort("127.0.0.1", 8080, 80), PublishedPort("0.0.0.0", 9090, 80), PublishedPort(HOST, 7070, 80), target=server.address)
    rules.publish(server.name, published)
    rules.publish(server.name, ports(PublishedPort("::", 9090, 80), PublishedPort("0.0.0.0", 5353, 53, "udp"), target=server.address6))
    rules.publish(server.name, ports(PublishedPort("0.0.0.0", 5353, 53, "udp"), target=server.address))
    with listening(server.space, "0.0.0.0", 80) as listener:
        assert reaches(lab.machine, "127.0.0.1", 8080, listener) == "10.208.1.1"
        assert reaches(lab.machine, "127.0.0.1", 9090, listener) == "10.208.1.1"
        assert reaches(lab.machine, HOST, 9090, listener) == HOST
        assert reaches(lab.machine, HOST, 7070, listener) == HOST
        assert reaches(lab.world, HOST, 9090, listener) == WORLD, "the client's own address is kept"
        assert reaches(lab.world, HOST, 7070, listener) == WORLD
        assert reaches(other.space, HOST, 9090, listener) == "10.208.1.1", "by way of the host"
        assert reaches(server.space, HOST, 9090, listener) == "10.208.1.1", "its own port by the host's address"
        assert reaches(other.space, server.address, 80, listener) == other.address, "not by way of the host"
        assert reaches(stranger.space, HOST, 9090, listener) == stranger.address, "another network, by what is published"
        assert all_refused((lab.machine, HOST, 8080), (lab.world, HOST, 8080), (lab.machine, "127.0.0.1", 7070), (other.space, HOST, 80))
    with listening(server.space, "::", 80) as listener:
        assert reaches(lab.world, HOST6, 9090, listener) == WORLD6
        assert reaches(lab.machine, HOST6, 9090, listener) == HOST6
        assert reaches(other.space, HOST6, 9090, listener) == "fd00:1::1"
    with listening(server.space, "0.0.0.0", 53, socket.SOCK_DGRAM) as listener:
        assert reaches_udp(lab.world, HOST, 5353, listener) == WORLD
        assert reaches_udp(lab.machine, "127.0.0.1", 5353, listener) == "10.208.1.1"
        assert reaches_udp(other.space, HOST, 5353, listener) == "10.208.1.1"
    rules.retract(server.name, published)
    with listening(server.space, "0.0.0.0", 80):
        assert all_refused((lab.world, HOST, 9090), (lab.machine, "127.0.0.1", 8080))


def test_a_port_published_on_loopback_is_not_reached_by_a_neighbour_who_names_that_address(lab: Lab) -> None:
    rules = lab.rules()
    rules.open()
    server = lab.member(rules, lab.network(rules, 1), 2)
    rules.publish(server.name, ports(PublishedPort("127.0.0.1", 5353, 53, "udp"), PublishedPort("0.0.0.0", 5354, 53, "udp"), target=server.address))
    to_host = mac_of(lab.machine, "uplink")
    with listening(server.space, "0.0.0.0", 53, socket.SOCK_DGRAM) as listener:
        listener.settimeout(QUICK_S)
        for address, port in (("127.0.0.1", 5353), ("127.0.0.1", 5354), ("127.0.0.2", 5354), (server.address, 53)):
            packet = ipv4_packet(WORLD, address, udp(port, b"from outside"), socket.IPPROTO_UDP)
            send_frame(lab.world, frame(mac_of(lab.world, "eth0"), to_host, 0x0800, packet))
        with pytest.raises(TimeoutError):
            listener.recv(99)
        packet = ipv4_packet(WORLD, HOST, udp(5354, b"from outside"), socket.IPPROTO_UDP)
        send_frame(lab.world, frame(mac_of(lab.world, "eth0"), to_host, 0x0800, packet))
        assert listener.recv(99) == b"from outside"


def test_a_container_does_not_reach_what_listens_on_the_hosts_loopback(lab: Lab) -> None:
    rules = lab.rules()
    rules.open()
    network = lab.network(rules, 1)
    member, server = lab.member(rules, network, 2), lab.member(rules, network, 3)
    rules.publish(server.name, ports(PublishedPort("127.0.0.1", 8080, 80), target=server.address))
    to_host, own = mac_of(lab.machine, "bulle00000001"), member.link.mac
    with listening(lab.machine, "127.0.0.1", 5353, socket.SOCK_DGRAM) as local, listening(lab.machine, HOST, 5353, socket.SOCK_DGRAM) as open_one:
        local.settimeout(QUICK_S)
        packet = ipv4_packet(member.address, "127.0.0.1", udp(5353, b"hello"), socket.IPPROTO_UDP)
        send_frame(member.space, frame(own, to_host, 0x0800, packet))
        with pytest.raises(TimeoutError):
            local.recv(99)
        packet = ipv4_packet(member.address, HOST, udp(5353, b"hello"), socket.IPPROTO_UDP)
        send_frame(member.space, frame(own, to_host, 0x0800, packet))
        assert open_one.recv(99) == b"hello", "while other addresses of the host are in reach"


def test_networks_do_not_reach_each_other_and_nobody_outside_reaches_in(lab: Lab) -> None:
    rules = lab.rules()
    rules.open()
    one, two = lab.network(rules, 1), lab.network(rules, 2)
    member, neighbour, stranger = lab.member(rules, one, 2), lab.member(rules, one, 3), lab.member(rules, two, 2)
    lab.world.run(f"ip route add 10.208.0.0/16 via {HOST}; ip -6 route add fd00::/16 via {HOST6}")
    with listening(member.space, "0.0.0.0", 80) as listener:
        assert reaches(neighbour.space, member.address, 80, listener) == neighbour.address
        assert reaches(lab.machine, member.address, 80, listener) == "10.208.1.1"
        assert all_refused((stranger.space, member.address, 80), (lab.world, member.address, 80))
    with listening(member.space, "::", 80) as listener:
        assert reaches(neighbour.space, member.address6, 80, listener) == neighbour.address6
        assert all_refused((stranger.space, member.address6, 80), (lab.world, member.address6, 80))
    assert silent(stranger.space, member.address)
    assert silent(stranger.space, member.address6)
    assert echoes(neighbour.space, member.address6)
    with listening(lab.world, "0.0.0.0", 80) as listener:
        assert reaches(member.space, WORLD, 80, listener) == HOST, "masqueraded"
    with listening(lab.world, "::", 80) as listener:
        assert reaches(member.space, WORLD6, 80, listener) == HOST6


def test_an_internal_network_leads_nowhere_but_to_itself(lab: Lab) -> None:
    rules = lab.rules()
    rules.open()
    network = lab.network(rules, 1, internal=True)
    member, neighbour = lab.member(rules, network, 2), lab.member(rules, network, 3)
    server = lab.member(rules, lab.network(rules, 2), 2)
    rules.publish(member.name, ports(PublishedPort("0.0.0.0", 8080, 80), target=member.address))
    rules.publish(server.name, ports(PublishedPort("0.0.0.0", 9090, 80), target=server.address))
    listeners = ((lab.world, "0.0.0.0", 80), (lab.machine, "0.0.0.0", 80), (lab.machine, "::", 81), (server.space, "0.0.0.0", 80))
    with contextlib.ExitStack() as stack:
        for space, address, port in listeners:
            stack.enter_context(listening(space, address, port))
        closed = ((WORLD, 80), (HOST, 80), ("10.208.1.1", 80), ("fd00:1::1", 81), (server.address, 80), (HOST, 9090))
        assert all_refused(*((member.space, address, port) for address, port in closed))
    assert silent(member.space, WORLD)
    assert silent(member.space, WORLD6)
    with listening(member.space, "0.0.0.0", 80) as listener:
        assert reaches(neighbour.space, member.address, 80, listener) == neighbour.address
        assert reaches(lab.machine, "127.0.0.1", 8080, listener) == "10.208.1.1", "the host is at home there"
        assert all_refused((lab.world, HOST, 8080), (server.space, HOST, 8080))


def test_what_a_container_sends_as_somebody_else_is_dropped(lab: Lab) -> None:
    rules = lab.rules()
    rules.open()
    network = lab.network(rules, 1)
    attacker, victim, target = (lab.member(rules, network, last) for last in (2, 3, 4))
    own, stolen, there, everyone = attacker.link.mac, victim.link.mac, target.link.mac, "ff:ff:ff:ff:ff:ff"

    def arp(mac: str, address: str) -> bytes:
        sender = mac_bytes(mac) + socket.inet_aton(address)
        return struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2) + sender + mac_bytes(there) + socket.inet_aton(target.address)

    def neighbour(source: str, about: str, mac: str, kind: int = 136) -> bytes:
        body = struct.pack("!I", 0x20000000) + socket.inet_pton(socket.AF_INET6, about) + b"\x02\x01" + mac_bytes(mac)
        return icmpv6(source, target.address6, kind, body)

    data = udp(9, b"who am I")
    honest = {
        "IPv4": frame(own, there, 0x0800, ipv4_packet(attacker.address, target.address, data, 17)),
        "broadcast": frame(own, everyone, 0x0800, ipv4_packet(attacker.address, "10.208.1.255", data, 17)),
        "ARP": frame(own, there, 0x0806, arp(own, attacker.address)),
        "IPv6": frame(own, there, 0x86DD, ipv6_packet(attacker.address6, target.address6, data, 17)),
        "link-local": frame(own, there, 0x86DD, ipv6_packet(link_local(own), target.address6, data, 17)),
        "neighbour": frame(own, there, 0x86DD, neighbour(attacker.address6, attacker.address6, own)),
        "is it taken": frame(own, there, 0x86DD, neighbour("::", attacker.address6, own, 135)),
    }
    forged = {
        "MAC": frame(stolen, there, 0x0800, ipv4_packet(attacker.address, target.address, data, 17)),
        "MAC and IPv4": frame(stolen, there, 0x0800, ipv4_packet(victim.address, target.address, data, 17)),
        "IPv4": frame(own, there, 0x0800, ipv4_packet(victim.address, target.address, data, 17)),
        "gateway": frame(own, there, 0x0800, ipv4_packet("10.208.1.1", target.address, data, 17)),
        "loopback": frame(own, there, 0x0800, ipv4_packet("127.0.0.1", target.address, data, 17)),
        "nobody": frame(own, there, 0x0800, ipv4_packet("0.0.0.0", target.address, data, 17)),
        "ARP for another": frame(own, there, 0x0806, arp(own, victim.address)),
        "ARP for the gateway": frame(own, everyone, 0x0806, arp(own, "10.208.1.1")),
        "ARP with another MAC inside": frame(own, there, 0x0806, arp(stolen, attacker.address)),
        "ARP from another MAC": frame(stolen, there, 0x0806, arp(own, attacker.address)),
        "IPv6": frame(own, there, 0x86DD, ipv6_packet(victim.address6, target.address6, data, 17)),
        "IPv6 MAC": frame(stolen, there, 0x86DD, ipv6_packet(attacker.address6, target.address6, data, 17)),
        "link-local": frame(own, there, 0x86DD, ipv6_packet(link_local(stolen), target.address6, data, 17)),
        "neighbour": frame(own, there, 0x86DD, neighbour(attacker.address6, victim.address6, own)),
        "neighbour by link-local": frame(own, there, 0x86DD, neighbour(link_local(own), "fd00:1::1", own)),
        "taken": frame(own, there, 0x86DD, neighbour("::", victim.address6, own, 135)),
        "router": frame(own, there, 0x86DD, icmpv6(link_local(own), "ff02::1", 134, struct.pack("!BBHII", 64, 0, 1800, 0, 0))),
        "redirect": frame(own, there, 0x86DD, neighbour(link_local(own), victim.address6, own, 137)),
        "VLAN": frame(own, there, 0x8100, struct.pack("!HH", 7, 0x0800) + ipv4_packet(attacker.address, target.address, data, 17)),
        "VLAN and IPv6": frame(own, there, 0x8100, struct.pack("!HH", 7, 0x86DD) + ipv6_packet(attacker.address6, target.address6, data, 17)),
        "another protocol": frame(own, there, 0x88CC, b"switches speak so to each other"),
    }
    with sniffing(target.space) as arrived:
        last = frame(own, there, 0x0800, ipv4_packet(attacker.address, target.address, udp(10, b"that is all"), 17))
        for name, sent in [*honest.items(), *forged.items()]:
            send_frame(attacker.space, sent)
            send_frame(attacker.space, last)
            assert arrived(sent, last) == (sent in honest.values()), name
    # Frames for the bridge itself never come out of it, but could tell it that the victim lives here.
    echoes(victim.space, target.address)
    send_frame(attacker.space, frame(stolen, "01:80:c2:00:00:0e", 0x88CC, b"x" * 50))
    assert f"{stolen} dev {victim.link.veth}" in lab.machine.run("bridge fdb show br bulle00000001")


def test_an_address_of_ones_own_is_taken_with_all_that_linux_asks_before(lab: Lab) -> None:
    rules = lab.rules()
    rules.open()
    network = lab.network(rules, 1)
    member, other = lab.member(rules, network, 2), lab.member(rules, network, 3)
    member.space.run(
        "for name in accept_dad dad_transmits; do echo 1 >/proc/sys/net/ipv6/conf/eth0/$name; done; ip link set eth0 down; ip link set eth0 up",
        f"ip -6 addr del {member.address6}/64 dev eth0; ip -6 addr add {member.address6}/64 dev eth0",
        "for i in $(seq 50); do ip -6 addr show dev eth0 | grep -q tentative || break; sleep 0.1; done",
    )
    assert "dadfailed" not in member.space.run("ip -6 addr show dev eth0")
    assert echoes(member.space, other.address6)
    assert echoes(member.space, f"{link_local(other.link.mac)}%eth0")
