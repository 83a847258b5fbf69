"""Attacks over the network, from inside a container that may do on its wire whatever it likes (root, NET_ADMIN, NET_RAW).

Numbers are those of the list of attacks: 21 (the metadata service of a cloud), 29 (egress rules hold for IPv6, raw IP and UDP, and after a restart).
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from bulle_testing import places
from bulle_testing.networking import SERVER, Networked, OtherMachine, ip, other_machine
from bulle_testing.running import wait_for

pytestmark = [pytest.mark.root, pytest.mark.programs("nft", "ip", "unshare", "nsenter")]
ARCHIVE = "python_archive"

STRONG = ("--cap-add", "NET_ADMIN", "--cap-add", "NET_RAW")
PATIENCE_S = 0.35

# Sends datagrams of any protocols with any sources, in Ethernet frames of its own making:
# python3 -c RAW DEVICE SOURCE_MAC TARGET_MAC SOURCE,... TARGET PROTOCOL,... PORT
RAW = """
import socket, struct, sys
device, source_mac, target_mac, sources, target, protocols, port = sys.argv[1:]
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as opened:
    opened.bind((device, 0))
    for source in sources.split(","):
        for protocol in protocols.split(","):
            payload = b"intruder"
            if protocol == "17":
                payload = struct.pack("!HHHH", 4444, int(port), 8 + len(payload), 0) + payload
            elif protocol == "6":
                payload = struct.pack("!HHIIBBHHH", 4444, int(port), 1, 0, 0x50, 2, 1024, 0, 0)
            addresses = socket.inet_aton(source) + socket.inet_aton(target)
            header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, int(protocol), 0) + addresses
            total = sum(struct.unpack("!10H", header))
            total = (total & 0xFFFF) + (total >> 16)
            total = (total & 0xFFFF) + (total >> 16)
            header = header[:10] + struct.pack("!H", ~total & 0xFFFF) + header[12:]
            frame = bytes.fromhex(target_mac.replace(":", "") + source_mac.replace(":", "")) + b"\\x08\\x00" + header + payload
            for _ in range(3):
                opened.send(frame)
print("sent")
"""
# Listens to everything on all devices for a while and prints the sources of IPv4 packets that say "intruder" or go to port 7777.
LISTEN = """
import select, socket, struct, sys, time
with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3)) as opened:
    opened.settimeout(0.1)
    print("ready", flush=True)
    seen, end = set(), None
    while end is None or time.monotonic() < end:
        if end is None and select.select([sys.stdin], [], [], 0)[0]:
            end = time.monotonic() + float(sys.argv[1])
        try:
            data, address = opened.recvfrom(4096)
        except TimeoutError:
            continue
        if address[2] == 4:
            continue
        if address[1] == 0x0800 and (b"intruder" in data or data[22:24] == struct.pack("!H", 7777)):
            seen.add(socket.inet_ntoa(data[12:16]) + ("" if data[9] != 1 else f"(icmp {data[20]})"))
        if address[1] == 0x0806 and data[14:18] == socket.inet_aton(sys.argv[2]):
            seen.add("arp " + sys.argv[2])
    print(" ".join(sorted(seen)))
"""


@pytest.fixture
def outside() -> Iterator[OtherMachine]:
    """A machine that has a public address, one that is private, and one like a cloud's metadata service."""
    with other_machine(7) as made:
        for address in PLACES:
            ip("address", "add", f"{address}/{128 if ':' in address else 32}", "dev", "lo", pid=made.pid)
            ip("route", "replace", f"{address}/{128 if ':' in address else 32}", "via", made.address6 if ":" in address else made.address)
        with made.serving("outside", 80, 443):
            yield made


PUBLIC, PRIVATE, METADATA, PUBLIC6, PRIVATE6 = "203.0.114.77", "10.97.97.97", "169.254.169.254", "2600:9999::77", "fd98:9999::77"
PLACES = (PUBLIC, PRIVATE, METADATA, PUBLIC6, PRIVATE6)


@contextmanager
def heard(pid: int, address: str = "0.0.0.0", seconds: float = 1.0) -> Iterator[list[str]]:
    """What a listener in the network namespace of a process hears of an intruder during the block and a moment after it."""
    line = ["nsenter", f"--net=/proc/{pid}/ns/net", "/usr/bin/python3", "-c", LISTEN, str(seconds), address]
    found: list[str] = []
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield found
        finally:
            process.stdin.close()
        found += process.stdout.read().split("\n")[0].split(" ")
        found[:] = [one for one in found if one]


def reached(net: Networked, name: str, places_: tuple[str, ...] = PLACES, protocols: tuple[str, ...] = ("tcp", "udp")) -> set[str]:
    """Which places a container reaches by any protocol, all asked at once."""
    script = (
        "import socket, sys, threading\nfound = set()\n"
        "def ask(address, kind):\n"
        "    try:\n"
        "        with socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET, kind) as opened:\n"
        f"            opened.settimeout({PATIENCE_S})\n"
        "            opened.connect((address, 80))\n"
        "            if kind == socket.SOCK_DGRAM: opened.send(b'who?')\n"
        "            if opened.recv(100).startswith(b'outside '): found.add(address)\n"
        "    except OSError:\n        pass\n"
        "kinds = {'tcp': socket.SOCK_STREAM, 'udp': socket.SOCK_DGRAM}\n"
        "threads = [threading.Thread(target=ask, args=(a, kinds[k])) for a in sys.argv[2:] for k in sys.argv[1].split(',')]\n"
        "for one in threads: one.start()\n"
        "for one in threads: one.join()\n"
        "print(*sorted(found))\n"
    )
    return set(net.python(name, script, ",".join(protocols), *places_).split())


def mac_of(net: Networked, name: str, network: str = "bridge") -> str:
    return str(net.inspect(name, ".NetworkSettings.Networks")[network]["MacAddress"])


def bridge_mac(net: Networked, network: str = "bridge") -> str:
    return Path("/sys/class/net", net.network(network)["Device"], "address").read_text().strip()


# What may leave


MODES = [
    ("all", {PUBLIC, PRIVATE, METADATA, PUBLIC6, PRIVATE6}),
    ("internet", {PUBLIC, PUBLIC6}),
    ("none", set()),
    (f"allow:{PRIVATE}/32:80,{PUBLIC6}/128", {PRIVATE, PUBLIC6}),
]


@pytest.mark.parametrize(("mode", "wanted"), MODES, ids=["all", "internet", "none", "allow"])
def test_29_ways_out(net: Networked, outside: OtherMachine, mode: str, wanted: set[str]) -> None:
    """Both versions of IP, TCP and UDP; by root of the container; after a restart, and with the keeper killed."""
    net("network", "create", "--ipv6", "six")
    net.start("intruder", "--network", "six", "--egress", mode, *STRONG)
    net.start("friend", "--network", "six")
    assert reached(net, "intruder") == wanted
    assert reached(net, "friend") == set(PLACES), "others are not concerned"
    assert "friend" in net.ask_from("intruder", "friend"), "its own network is in reach"
    net("restart", "-t", "0", "intruder")
    assert reached(net, "intruder") == wanted, "after a restart"
    before = places.keeper_pid(net.home)
    os.kill(before, signal.SIGKILL)
    assert reached(net, "intruder") == wanted, "without a keeper"
    wait_for(lambda: places.keeper_pid(net.home) not in (0, before), "another keeper")
    assert reached(net, "intruder") == wanted, "with the next keeper"


def test_29_its_own_routes_and_rules_do_not_help(net: Networked, outside: OtherMachine) -> None:
    net("network", "create", "--ipv6", "six")
    net.start("intruder", "--network", "six", "--egress", "none", *STRONG)
    gateway, gateway6 = (one["Gateway"] for one in net.network("six")["IPAM"]["Config"])
    script = (
        "ip route flush table all; ip route add $0/32 dev eth0; ip route add default via $0 src $2;"
        "ip -6 route add default via $1 metric 1; ip address add 203.0.113.9/32 dev eth0; echo done"
    )
    net("exec", "intruder", "sh", "-c", script, gateway, gateway6, net.address("intruder", "six"))
    assert reached(net, "intruder") == set()


def test_29_raw_packets(net: Networked, outside: OtherMachine) -> None:
    """Protocols that have no ports, and packets that no socket made, are held by the rules as others are."""
    net.start("intruder", "--egress", "none", *STRONG)
    net.start("free", *STRONG)
    with heard(outside.pid) as found:
        for name in ("intruder", "free"):
            arguments = ("eth0", mac_of(net, name), bridge_mac(net), net.address(name), PUBLIC, "17,6,47,253", "7777")
            assert net.python(name, RAW, *arguments) == "sent"
    assert outside.here in found, "those of the free one come"
    assert net.address("intruder") not in found
    with heard(outside.pid) as found:
        net.python("intruder", RAW, "eth0", mac_of(net, "intruder"), bridge_mac(net), net.address("intruder"), PUBLIC, "17,6,47,253", "7777")
    assert found == []


def test_29_other_name_servers(net: Networked, outside: OtherMachine) -> None:
    """Names, and whatever they carry out, are asked for at the keeper alone, which asks nobody for this one."""
    dns = "import socket, sys\nopened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\nopened.sendto(b'intruder', (sys.argv[1], 53))\n"
    for mode in ("none", "allow:shop.example"):
        net.start("intruder", "--egress", mode, *STRONG)
        with heard(outside.pid, seconds=0.6) as found:
            for address in (PUBLIC, PRIVATE, METADATA):
                net.bulle("exec", "intruder", "/usr/bin/python3", "-c", dns, address)
        assert found == [], mode
        net("rm", "-f", "intruder")


@pytest.mark.parametrize("mode", ["internet", "none", "allow:pypi.org"])
def test_21_metadata_of_this_machine_s_cloud(net: Networked, mode: str) -> None:
    """Also where the address is this machine's own."""
    ip("address", "add", f"{METADATA}/32", "dev", "lo")
    try:
        line = ["/usr/bin/python3", "-c", SERVER.replace('"0.0.0.0"', f'"{METADATA}"').replace('(socket.AF_INET6, "::")', ""), "outside", "80"]
        with subprocess.Popen(line, stdout=subprocess.PIPE) as server:
            try:
                assert server.stdout is not None
                assert server.stdout.readline() == b"ready\n"
                net.start("open")
                assert reached(net, "open", (METADATA,)) == {METADATA}
                net.start("intruder", "--egress", mode, *STRONG)
                assert reached(net, "intruder", (METADATA,)) == set()
                net("restart", "-t", "0", "intruder")
                assert reached(net, "intruder", (METADATA,)) == set()
            finally:
                server.kill()
    finally:
        ip("address", "delete", f"{METADATA}/32", "dev", "lo")


def test_this_machine_from_a_limited_container(net: Networked, outside: OtherMachine) -> None:
    """Its services are not in reach by any of its addresses, nor those that it published to itself."""
    with subprocess.Popen(["/usr/bin/python3", "-c", SERVER, "outside", "18080"], stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            net.start("open")
            gateway = net.network("bridge")["IPAM"]["Config"][0]["Gateway"]
            assert net.ask_from("open", gateway, 18080).startswith("outside ")
            for mode in ("internet", "none", "allow:pypi.org"):
                net.start("intruder", "--egress", mode, *STRONG)
                for address in (gateway, outside.here, "127.0.0.1"):
                    for protocol in ("tcp", "udp"):
                        assert "outside" not in net.ask_from("intruder", address, 18080, protocol, PATIENCE_S), (mode, address, protocol)
                net("rm", "-f", "intruder")
        finally:
            server.kill()


# As whom


def test_another_s_address(net: Networked, outside: OtherMachine) -> None:
    """Packets with another source than its own come nowhere: neither another container's, nor the gateway's, nor one of the world."""
    net.start("victim")
    net.start("intruder", *STRONG)
    gateway = net.network("bridge")["IPAM"]["Config"][0]["Gateway"]
    victim_pid = net.inspect("victim", ".State.Pid")
    own = net.address("intruder")
    for target, mac, pid in ((net.address("victim"), mac_of(net, "victim"), victim_pid), (PUBLIC, bridge_mac(net), outside.pid)):
        with heard(pid) as found:
            sources = (net.address("victim"), gateway, "203.0.113.5", "127.0.0.1", "255.255.255.255", "10.255.0.9", own)
            net.python("intruder", RAW, "eth0", mac_of(net, "intruder"), mac, ",".join(sources), target, "17", "7777")
        assert found == [own if pid == victim_pid else outside.here], "only what it sent as itself"


def test_another_s_hardware_address(net: Networked) -> None:
    net.start("victim")
    net.start("friend")
    net.start("intruder", *STRONG)
    victim_pid, friend = net.inspect("victim", ".State.Pid"), mac_of(net, "friend")
    with heard(victim_pid) as found:
        for mac in (friend, bridge_mac(net), "02:00:00:00:00:01"):
            net.python("intruder", RAW, "eth0", mac, mac_of(net, "victim"), net.address("intruder"), net.address("victim"), "17", "7777")
    assert found == []
    # It takes the friend's address and hardware address altogether, and asks who has them; the victim goes on talking to the friend.
    script = (
        "ip link set eth0 down; ip link set eth0 address $0; ip address flush dev eth0; ip address add $1/20 dev eth0; ip link set eth0 up;"
        "arping -c1 -w1 -U -I eth0 $1; arping -c1 -w1 -A -I eth0 $1; ping -c1 -W1 $2; true"
    )
    with heard(victim_pid, net.address("friend"), 3.0) as found:
        net("exec", "intruder", "sh", "-c", script, friend, net.address("friend"), net.address("victim"))
    assert found == []
    assert net.ask_from("victim", "friend").startswith("friend ") and net.ask_from("friend", "victim").startswith("victim ")


def test_router_of_its_neighbours(net: Networked, outside: OtherMachine) -> None:
    """It says by ARP that it is the gateway; nobody hears it, and everybody goes on reaching the world."""
    net.start("victim")
    net.start("intruder", *STRONG)
    gateway = net.network("bridge")["IPAM"]["Config"][0]["Gateway"]
    claim = (
        "import socket, struct, sys\nmac, gateway, victim, other = sys.argv[1:]\nm = bytes.fromhex(mac.replace(':', ''))\n"
        "o = bytes.fromhex(other.replace(':', ''))\n"
        "arp = struct.pack('!HHBBH', 1, 0x0800, 6, 4, 2) + m + socket.inet_aton(gateway) + o + socket.inet_aton(victim)\n"
        "s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\ns.bind(('eth0', 0))\n"
        "for _ in range(5): s.send(o + m + b'\\x08\\x06' + arp)\nprint('sent')\n"
    )
    with heard(net.inspect("victim", ".State.Pid"), gateway) as found:
        arguments = (mac_of(net, "intruder"), gateway, net.address("victim"), mac_of(net, "victim"))
        assert net.python("intruder", claim, *arguments) == "sent"
    assert "arp " + gateway not in found
    assert net.ask_from("victim", PUBLIC).startswith("outside ")


def test_a_taken_address_is_of_no_use(net: Networked, outside: OtherMachine) -> None:
    """A limited container that takes a free container's address, or one that is nobody's, still reaches nothing."""
    net.start("free")
    net.start("intruder", "--egress", "none", *STRONG)
    net("stop", "-t", "0", "free")
    gateway = net.network("bridge")["IPAM"]["Config"][0]["Gateway"]
    for address in (net.address("free"), str(ip_address(gateway) + 2000)):
        net("exec", "intruder", "sh", "-c", "ip address flush dev eth0; ip address add $0/20 dev eth0; ip route add default via $1", address, gateway)
        assert reached(net, "intruder", (PUBLIC, PRIVATE, METADATA)) == set(), address


def test_other_networks_by_a_made_up_route(net: Networked) -> None:
    net("network", "create", "--subnet", "10.113.1.0/24", "red")
    net("network", "create", "--subnet", "10.113.2.0/24", "blue")
    net.start("victim", "--network", "blue", "-p", "80")
    net.start("intruder", "--network", "red", *STRONG)
    net("exec", "intruder", "ip", "route", "add", "10.113.2.0/24", "via", "10.113.1.1")
    with heard(net.inspect("victim", ".State.Pid")) as found:
        sender = ("eth0", mac_of(net, "intruder", "red"), bridge_mac(net, "red"), net.address("intruder", "red"))
        net.python("intruder", RAW, *sender, "10.113.2.2", "17,6,253", "80")
        assert "victim" not in net.ask_from("intruder", "10.113.2.2", 80, patience_s=PATIENCE_S)
    assert found == []


def test_loopback_of_this_machine(net: Networked) -> None:
    """Bridges route 127.0.0.0/8 for published ports; a container that sends there by a frame of its own reaches nothing (CVE-2020-8558)."""
    net.start("intruder", *STRONG)
    with subprocess.Popen(["/usr/bin/python3", "-c", LISTEN, "1.0", "0.0.0.0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as listener:
        assert listener.stdout is not None
        assert listener.stdout.readline() == "ready\n"
        with subprocess.Popen(["/usr/bin/python3", "-c", RECEIVE], stdout=subprocess.PIPE, text=True) as receiver:
            assert receiver.stdout is not None
            assert receiver.stdout.readline() == "ready\n"
            net.python("intruder", RAW, "eth0", mac_of(net, "intruder"), bridge_mac(net), net.address("intruder"), "127.0.0.1", "17", "7777")
            assert receiver.stdout.read() == "nothing\n"


# Waits a moment on this machine's loopback.
RECEIVE = """
import socket
opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
opened.bind(("127.0.0.1", 7777))
opened.settimeout(0.8)
print("ready", flush=True)
try:
    print(opened.recv(100))
except TimeoutError:
    print("nothing")
"""
