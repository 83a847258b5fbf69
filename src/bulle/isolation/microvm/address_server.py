"""The answer to a whole machine that asks for its address: DHCP on the machine's end of each cable, for the one address that it has anyway.

The shepherd opens a raw socket on each tap before it gives its privileges up, hears nobody but the machine, and answers nobody else; nothing of
it reaches the network. What is offered is for ever: address, gateway, name server (the keeper's, which knows the names of others), host name,
MTU. RFC 2131, RFC 2132, RFC 3442
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface

from bulle.isolation.microvm import NAME_SERVER
from bulle.linux.netlink import RouteSocket
from bulle.linux.packet_filter import attach
from bulle.model.network import Attachment

_COOKIE = b"\x63\x82\x53\x63"
_DISCOVER, _OFFER, _REQUEST, _ACK, _NAK, _INFORM = 1, 2, 3, 5, 6, 8
_ETHERTYPE = 0x0800
_EVERYTHING = 3  # ETH_P_ALL: of other kinds a bridge takes what comes from its ports before anybody else sees it
_OUTGOING = 4  # PACKET_OUTGOING: what went to the machine
_FOR_EVER = 0xFFFFFFFF
_SERVER = IPv4Address(NAME_SERVER)


@dataclass(frozen=True)
class Server:
    """One cable: the socket on its tap, and what the machine is told there."""

    line: socket.socket
    attachment: Attachment
    hostname: str
    first: bool
    boot_url: str = ""

    def answer(self) -> None:
        """Answer what waits, if it is a question."""
        with suppress(BlockingIOError, OSError):
            while True:
                frame, address = self.line.recvfrom(2048)
                if address[2] != _OUTGOING and (reply := reply_to(frame, self.attachment, self.hostname, self.boot_url, first=self.first)):
                    self.line.send(reply)


def _lead_back(attachments: tuple[Attachment, ...]) -> None:
    """What the machine asks the name server with its own address is answered over the first cable."""
    own = [one.partition("/")[0] for one in attachments[0].addresses if ":" not in one] if attachments else []
    with RouteSocket() as route:
        for address in own:
            route.add_host_route(address, socket.if_nametoindex("cable0"))


def serve(taps: list[str], attachments: tuple[Attachment, ...], hostname: str, boot_url: str) -> list[Server]:
    """In the machine's own network namespace, as its root: a server on each of its taps, in their order; ``boot_url`` is what it is to fetch."""
    found = []
    _lead_back(attachments)
    for number, (tap, attachment) in enumerate(zip(taps, attachments, strict=True)):
        line = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
        _only_questions(line)
        line.bind((tap, _EVERYTHING))
        found.append(Server(line, attachment, hostname, number == 0, boot_url))
    return found


def _only_questions(line: socket.socket) -> None:
    """Have the kernel pass on nothing but UDP to port 67 that is not a later part of something."""
    attach(line, [
        (0x28, 0, 0, 12), (0x15, 0, 8, 0x0800),  # IPv4
        (0x30, 0, 0, 23), (0x15, 0, 6, 17),  # UDP
        (0x28, 0, 0, 20), (0x45, 4, 0, 0x1FFF),  # the first part
        (0xB1, 0, 0, 14), (0x48, 0, 0, 16), (0x15, 0, 1, 67),  # the port behind a header of its own length
        (0x06, 0, 0, 2048), (0x06, 0, 0, 0),
    ])  # fmt: skip


def reply_to(frame: bytes, attachment: Attachment, hostname: str, boot_url: str = "", *, first: bool) -> bytes:
    """The frame that answers a frame; empty where it is no question, or cannot be answered."""
    own = next((IPv4Interface(one) for one in attachment.addresses if ":" not in one), None)
    length = (frame[14] & 15) * 4 if len(frame) > 14 else 0
    message = frame[14 + length + 8 :]
    assert len(boot_url) < 256
    if own is None or len(message) < 240 or message[0] != 1 or message[236:240] != _COOKIE or message[1:3] != b"\x01\x06":
        return b""
    options = _options(message[240:])
    kind = options.get(53, b"\0")[0]
    wanted = options.get(50, message[12:16])
    if kind not in (_DISCOVER, _REQUEST, _INFORM) or (kind == _REQUEST and options.get(54, _SERVER.packed) != _SERVER.packed):
        return b""
    refused = kind == _REQUEST and wanted not in (own.ip.packed, bytes(4))
    answer = _NAK if refused else _OFFER if kind == _DISCOVER else _ACK
    yours = bytes(4) if refused or kind == _INFORM else own.ip.packed
    told = [(53, bytes([answer])), (54, _SERVER.packed)]
    if not refused:
        told += _told(own, attachment, hostname, boot_url, first=first, lease=kind != _INFORM)
    body = b"\x02\x01\x06\0" + message[4:8] + bytes(2) + message[10:12] + message[12:16] + yours + bytes(4) + message[24:28] + message[28:44]
    body += bytes(192) + _COOKIE + b"".join(bytes([code, len(value)]) + value for code, value in told) + b"\xff"
    return _framed(body.ljust(300, b"\0"), message[28:34])


def _told(own: IPv4Interface, attachment: Attachment, hostname: str, boot_url: str, *, first: bool, lease: bool) -> list[tuple[int, bytes]]:
    gateway = next((IPv4Address(one) for one in attachment.gateways if one and ":" not in one), None)
    found = [(1, own.netmask.packed), (26, struct.pack(">H", attachment.mtu or 1500)), (12, hostname.encode()[:63])]
    if lease:
        found.append((51, struct.pack(">I", _FOR_EVER)))
    routes = b""
    if first:
        found += [(6, _SERVER.packed), *([(67, boot_url.encode())] if boot_url else [])]
        routes = bytes([32]) + _SERVER.packed + bytes(4)  # on the cable itself
    if first and gateway is not None:
        found.append((3, gateway.packed))
        routes += bytes([0]) + gateway.packed
    return [*found, (121, routes)] if routes else found


def _options(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    place = 0
    while place + 1 < len(data) and data[place] != 255:
        if data[place] == 0:
            place += 1
            continue
        length = data[place + 1]
        if length and place + 2 + length <= len(data):
            found.setdefault(data[place], data[place + 2 : place + 2 + length])
        place += 2 + length
    return found


def _framed(body: bytes, to: bytes) -> bytes:
    """In UDP, IPv4 and Ethernet: to everybody at the other end, who has no address yet."""
    udp = struct.pack(">HHHH", 67, 68, 8 + len(body), 0) + body  # without a checksum, as IPv4 allows
    header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, _SERVER.packed, b"\xff" * 4)
    total = sum(struct.unpack(">10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    header = header[:10] + struct.pack(">H", ~(total + (total >> 16)) & 0xFFFF) + header[12:]
    return to + b"\x02\0\0\0\0\x01" + struct.pack(">H", _ETHERTYPE) + header + udp
