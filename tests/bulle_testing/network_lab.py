"""A small internet of network namespaces: a machine with bridges, what stands for containers on them, and a world beyond its uplink. Needs root.

No container and no keeper is part of it: :class:`bulle.network.rules.Rules` runs in a process of its own inside of the machine's namespace, and
traffic is real, by sockets that this process opens in the namespace of whoever is to send. All of it ends with its descriptors.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import struct
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from bulle.linux import namespaces
from bulle.linux.libc import check, libc
from bulle.model.network import Egress, PublishedPort
from bulle.network import host_settings
from bulle.network.egress import parse_egress
from bulle.network.rules import Link, Rules

WORLD, WORLD6 = "93.184.0.2", "2a00:1::2"
HOST, HOST6 = "93.184.0.1", "2a00:1::1"
PRIVATE, METADATA, PRIVATE6 = "192.168.77.2", "169.254.169.254", "fd77::2"
"""Addresses of the world; the last three are not the internet."""
QUICK_S = 0.3
"""How long to wait for a packet that should not come; one that comes needs a thousandth of it."""
PATIENT_S = 5.0
"""How long to wait for one that should, on a machine that has much else to do."""


class Space:
    """A network namespace, alive as long as its descriptor."""

    def __init__(self, name: str) -> None:
        self.name = name
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            check(libc.unshare(namespaces.CLONE_NEWNET), "unshare")
            self.descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            for setting in ("accept_dad", "dad_transmits"):
                for scope in ("all", "default"):
                    with open(f"/proc/sys/net/ipv6/conf/{scope}/{setting}", "w") as file:
                        file.write("0")
            run("ip link set lo up")
        finally:
            check(libc.setns(before, namespaces.CLONE_NEWNET), "setns")
            os.close(before)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """This process is in it for as long as the block lasts; sockets opened there stay there."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        check(libc.setns(self.descriptor, namespaces.CLONE_NEWNET), "setns")
        try:
            yield
        finally:
            check(libc.setns(before, namespaces.CLONE_NEWNET), "setns")
            os.close(before)

    def run(self, *commands: str, check: bool = True) -> str:
        """Run commands of a shell in it."""
        with self.inside():
            return "".join(run(command, check=check) for command in commands)

    def close(self) -> None:
        """Let it go."""
        os.close(self.descriptor)


def run(command: str, *, check: bool = True) -> str:
    """One command of a shell, in the namespace of this process."""
    environment = os.environ | {"PATH": os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"}
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL)
    assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


class RulesProcess:
    """:class:`Rules`, or what else ``make`` makes, in a process of its own inside of a namespace; its methods can be called here."""

    def __init__(self, space: Space, make: Callable[[], object]) -> None:
        self._channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._channel, other):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._channel.close()
                check(libc.setns(space.descriptor, namespaces.CLONE_NEWNET), "setns")
                self._serve(other, make())
            finally:
                os._exit(0)
        other.close()

    def _serve(self, channel: socket.socket, served: object) -> None:
        while data := channel.recv(1 << 20):
            name, arguments, keywords = pickle.loads(data)
            try:
                answer: object = (True, getattr(served, name)(*arguments, **keywords))
            except Exception as error:  # noqa: BLE001 - it is raised again on the other side
                answer = (False, error)
            channel.send(pickle.dumps(answer))

    def __getattr__(self, name: str) -> Callable[..., object]:
        def call(*arguments: object, **keywords: object) -> object:
            self._channel.send(pickle.dumps((name, arguments, keywords)))
            went_well, value = pickle.loads(self._channel.recv(1 << 20))
            if not went_well:
                raise value
            return value

        return call

    def kill(self) -> None:
        """End it without warning."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0
            self._channel.close()


class WatchingRules(Rules):
    """Rules that can be asked over a channel whether others changed them."""

    def touched(self) -> bool:
        """What the keeper's loop would see."""
        return self.was_touched(self.watcher())


@dataclass
class Member:
    """What stands for a container: a namespace with one interface on a bridge."""

    name: str
    space: Space
    link: Link
    address: str
    address6: str
    egress: Egress


@dataclass
class Lab:
    """The machine, the world, and who is on the bridges."""

    machine: Space
    world: Space
    spaces: list[Space] = field(default_factory=list)
    processes: list[RulesProcess] = field(default_factory=list)
    networks: dict[str, tuple[str, str, str]] = field(default_factory=dict)  # id: device, IPv4 prefix, IPv6 prefix

    @classmethod
    def make(cls) -> Lab:
        """A machine with an uplink to the world, which has no way back to the bridges."""
        machine, world = Space("machine"), Space("world")
        machine.run(
            f"ip link add uplink type veth peer name eth0 netns /proc/{os.getpid()}/fd/{world.descriptor}",
            f"ip addr add {HOST}/24 dev uplink; ip addr add {HOST6}/64 dev uplink nodad; ip link set uplink up",
            f"ip route add default via {WORLD}; ip route add {METADATA} via {WORLD}; ip -6 route add default via {WORLD6}",
        )
        world.run(
            f"ip addr add {WORLD}/24 dev eth0; ip addr add {WORLD6}/64 dev eth0 nodad; ip link set eth0 up",
            f"ip addr add {PRIVATE}/32 dev eth0; ip addr add {METADATA}/32 dev eth0; ip addr add {PRIVATE6}/128 dev eth0 nodad",
        )
        lab = cls(machine, world, [machine, world])
        with machine.inside():
            host_settings.prepare_host(ipv6=True)
        return lab

    def rules(self, table: str = "bulle_0badcafe", kind: type[Rules] = WatchingRules) -> RulesProcess:
        """Rules of the machine, not yet open."""
        process = RulesProcess(self.machine, lambda: kind(table))
        self.processes.append(process)
        return process

    def serve(self, make: Callable[[], object]) -> RulesProcess:
        """Some other object in a process in the machine's namespace."""
        process = RulesProcess(self.machine, make)
        self.processes.append(process)
        return process

    def network(self, rules: RulesProcess, number: int, *, internal: bool = False, ipv6: bool = True) -> str:
        """A bridge ``10.208.NUMBER.0/24`` and ``fd00:NUMBER::/64``, known to the rules; returns its id."""
        device, network_id = f"bulle{number:08x}", f"network{number}"
        four, six = f"10.208.{number}", f"fd00:{number:x}:"
        self.machine.run(
            f"ip link add {device} address 02:42:0a:d0:{number:02x}:01 type bridge && ip addr add {four}.1/24 dev {device} && ip link set {device} up"
        )
        with self.machine.inside():
            host_settings.open_bridge(device, ipv6=ipv6)
        if ipv6:
            self.machine.run(f"ip addr add {six}:1/64 dev {device} nodad")
        subnets, gateways = [f"{four}.0/24"], [f"{four}.1"]
        rules.add_network(network_id, device, subnets + [f"{six}:/64"] * ipv6, gateways + [f"{six}:1"] * ipv6, internal)
        self.networks[network_id] = (device, four, six if ipv6 else "")
        return network_id

    def member(self, rules: RulesProcess, network_id: str, last: int, egress: str = "all") -> Member:
        """Someone with the address that ends in ``last`` on a network."""
        device, four, six = self.networks[network_id]
        number = int(device[5:], 16)
        name, veth = f"member{number}x{last}", f"bullev{number:04x}{last:04x}"
        mac = f"02:42:0a:d0:{number:02x}:{last:02x}"
        space = Space(name)
        self.spaces.append(space)
        member = Member(name, space, Link(network_id, veth, mac, ()), f"{four}.{last}", f"{six}:{last:x}" if six else "", parse_egress(egress))
        member.link = member.link._replace(addresses=tuple(filter(None, (member.address, member.address6))))
        rules.add_member(name, [member.link], member.egress)
        self.attach(space, veth, device)
        with self.machine.inside():
            host_settings.open_port(veth)
        space.run(
            f"ip link set eth0 address {mac} && ip addr add {member.address}/24 dev eth0 && ip link set eth0 up && ip route add default via {four}.1",
            f"ip addr add {member.address6}/64 dev eth0 nodad && ip -6 route add default via {six}:1" if six else "true",
        )
        return member

    def attach(self, space: Space, veth: str, bridge: str) -> None:
        """Give somebody an ``eth0`` on a bridge of the machine."""
        self.machine.run(
            f"ip link add {veth} type veth peer name eth0 netns /proc/{os.getpid()}/fd/{space.descriptor}"
            f" && ip link set {veth} master {bridge} && ip link set {veth} up"
        )

    def close(self) -> None:
        """End everything."""
        for process in self.processes:
            process.kill()
        for space in self.spaces:
            space.close()


def family(address: str) -> socket.AddressFamily:
    """The family of an address' text."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@contextlib.contextmanager
def listening(space: Space, address: str, port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> Iterator[socket.socket]:
    """A socket that waits there."""
    with space.inside():
        listener = socket.socket(family(address), kind)
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.settimeout(5)
        if kind == socket.SOCK_STREAM:
            listener.listen()
        yield listener


def connected(space: Space, address: str, port: int, patience_s: float = PATIENT_S) -> socket.socket | None:
    """A TCP connection from there, or None where none comes about."""
    with space.inside():
        connection = socket.socket(family(address), socket.SOCK_STREAM)
    connection.settimeout(patience_s)
    try:
        connection.connect((address, port))
    except OSError:
        connection.close()
        return None
    connection.settimeout(5)
    return connection


def taken(listener: socket.socket) -> socket.socket:
    """The next connection of a listener; what does not come on it is an error before long."""
    accepted, _ = listener.accept()
    accepted.settimeout(5)
    return accepted


def all_refused(*attempts: tuple[Space, str, int]) -> bool:
    """Whether no TCP connection comes about, from there to an address and port; all are tried at once."""
    with ThreadPoolExecutor(len(attempts)) as pool:
        made = [connection for connection in pool.map(lambda attempt: connected(*attempt, QUICK_S), attempts) if connection is not None]
    for connection in made:
        connection.close()
    return not made


def reaches(space: Space, address: str, port: int, listener: socket.socket, patience_s: float = PATIENT_S) -> str:
    """The address that the listener sees when somebody connects from there and is heard and answered; empty if nobody comes."""
    connection = connected(space, address, port, patience_s)
    if connection is None:
        return ""
    with connection, taken(listener) as accepted:
        peer = accepted.getpeername()
        connection.sendall(b"to")
        assert accepted.recv(9) == b"to"
        accepted.sendall(b"fro")
        assert connection.recv(9) == b"fro"
    return str(peer[0])


def reaches_udp(space: Space, address: str, port: int, listener: socket.socket, patience_s: float = PATIENT_S) -> str:
    """The same by one datagram and its answer."""
    with space.inside():
        sender = socket.socket(family(address), socket.SOCK_DGRAM)
    with sender:
        sender.settimeout(patience_s)
        listener.settimeout(patience_s)
        try:
            sender.connect((address, port))
            sender.send(b"to")
            _, peer = listener.recvfrom(9)
            listener.sendto(b"fro", peer)
            assert sender.recv(9) == b"fro"
        except OSError:
            return ""
    return str(peer[0])


def silent(space: Space, address: str) -> bool:
    """Whether an ICMP echo request is not answered."""
    return not echoes(space, address, QUICK_S)


def echoes(space: Space, address: str, patience_s: float = PATIENT_S) -> bool:
    """Whether an ICMP echo request is answered."""
    version6 = ":" in address
    number = zlib.crc32(address.encode()) & 0x7FFF | 1
    with space.inside():
        pinger = socket.socket(family(address), socket.SOCK_RAW, socket.IPPROTO_ICMPV6 if version6 else socket.IPPROTO_ICMP)
    with pinger:
        request, reply = (128, 129) if version6 else (8, 0)
        packet = struct.pack("!BBHHH", request, 0, 0, number, 1)
        if not version6:
            packet = struct.pack("!BBHHH", request, 0, checksum(packet), number, 1)
        deadline = time.monotonic() + patience_s
        try:
            pinger.sendto(packet, (address, 0))
            while (left_s := deadline - time.monotonic()) > 0:
                pinger.settimeout(left_s)
                data = pinger.recv(2048)
                data = data if version6 else data[20:]
                if data[0] == reply and data[4:6] == struct.pack("!H", number):
                    return True
        except OSError:
            pass
        return False


def carries(source: Space, target: Space, address: str, protocol: int, payload: bytes = b"", patience_s: float = PATIENT_S) -> bool:
    """Whether a raw packet of some IP protocol from there arrives (at whatever address of the target's)."""
    payload = payload or b"smuggled to %s." % address.encode()
    with target.inside():
        receiver = socket.socket(family(address), socket.SOCK_RAW, protocol)
    with source.inside():
        sender = socket.socket(family(address), socket.SOCK_RAW, protocol)
    with sender, receiver:
        receiver.settimeout(patience_s)
        try:
            sender.sendto(payload, (address, 0))
            while True:
                if payload in receiver.recv(4096):
                    return True
        except OSError:
            return False


def ports(*published: PublishedPort, target: str) -> Sequence[tuple[PublishedPort, str]]:
    """What :meth:`Rules.publish` takes, all leading to one address."""
    return [(port, target) for port in published]


def mac_bytes(mac: str) -> bytes:
    """A MAC address as it is on the wire."""
    return bytes.fromhex(mac.replace(":", ""))


def mac_of(space: Space, device: str) -> str:
    """The MAC address of an interface."""
    return space.run(f"ip -o link show dev {device}").partition("link/ether ")[2][:17]


def checksum(data: bytes) -> int:
    """The Internet checksum. RFC 1071"""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data)) + (data[-1] << 8 if len(data) % 2 else 0)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4_packet(source: str, target: str, payload: bytes, protocol: int) -> bytes:
    """An IPv4 packet with a right checksum."""
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0, socket.inet_aton(source), socket.inet_aton(target))
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload


def ipv6_packet(source: str, target: str, payload: bytes, protocol: int) -> bytes:
    """An IPv6 packet."""
    addresses = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, target)
    return struct.pack("!IHBB", 0x60000000, len(payload), protocol, 255) + addresses + payload


def udp(target_port: int, payload: bytes) -> bytes:
    """A UDP datagram without a checksum, which IPv4 allows."""
    return struct.pack("!HHHH", 4444, target_port, 8 + len(payload), 0) + payload


def icmpv6(source: str, target: str, kind: int, body: bytes) -> bytes:
    """A whole IPv6 packet with such a message."""
    addresses = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, target)
    bare = struct.pack("!BBH", kind, 0, 0) + body
    right = checksum(addresses + struct.pack("!II", len(bare), socket.IPPROTO_ICMPV6) + bare)
    return ipv6_packet(source, target, struct.pack("!BBH", kind, 0, right) + body, socket.IPPROTO_ICMPV6)


def frame(source_mac: str, target_mac: str, kind: int, payload: bytes) -> bytes:
    """An Ethernet frame."""
    return mac_bytes(target_mac) + mac_bytes(source_mac) + struct.pack("!H", kind) + payload


def send_frame(space: Space, data: bytes, device: str = "eth0") -> None:
    """Send it as it is, as CAP_NET_RAW allows."""
    with space.inside(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind((device, 0))
        sender.send(data)


@contextlib.contextmanager
def sniffing(space: Space, device: str = "eth0") -> Iterator[Callable[[bytes, bytes], bool]]:
    """``arrived(frame, last)``: whether exactly this frame came in there, before the one that was sent after it, which must come."""
    with space.inside():
        sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        sniffer.bind((device, 3))
    with sniffer:

        def arrived(data: bytes, last: bytes) -> bool:
            sniffer.settimeout(5)
            came_in = False
            while (came := sniffer.recv(4096))[: len(last)] != last:
                # A VLAN tag is taken out of what a packet socket is given.
                untagged = data[:12] + data[16:] if data[12:14] == b"\x81\x00" else data
                came_in = came_in or came[: len(data)] == data or came[: len(untagged)] == untagged
            return came_in

        yield arrived
