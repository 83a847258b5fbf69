"""What the kernel remembers of connections, and forgetting some of it. ctnetlink (linux/netfilter/nfnetlink_conntrack.h), conntrack(8)

The kernel is asked for those that match only (Linux 5.8), since a busy machine knows hundreds of thousands; not by IPv6 addresses, of which it gives
all others (seen up to 6.18), so that those are looked at here.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from bulle.linux.netlink_attributes import attribute, attributes, nested

_NETLINK_NETFILTER = 12
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 1, 4, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_IPCTNL_MSG_CT_GET, _IPCTNL_MSG_CT_DELETE = 1 << 8 | 1, 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK
_CTA_TUPLE_ORIG, _CTA_TUPLE_REPLY, _CTA_ID, _CTA_ZONE, _CTA_FILTER = 1, 2, 12, 18, 25
_CTA_TUPLE_IP, _CTA_TUPLE_PROTO = 1, 2
_CTA_IP_V4_SRC, _CTA_IP_V4_DST, _CTA_IP_V6_SRC, _CTA_IP_V6_DST = 1, 2, 3, 4
_CTA_PROTO_NUM, _CTA_PROTO_DST_PORT = 1, 3
_CTA_FILTER_ORIG_FLAGS, _CTA_FILTER_REPLY_FLAGS = 1, 2
_MATCH_SOURCE, _MATCH_PROTOCOL, _MATCH_PORT = 1 << 0, 1 << 3, 1 << 5


class Connection(NamedTuple):
    """One direction of a connection as it began: who spoke to whom, by which IP protocol, to which port (0 where there are none)."""

    source: str
    target: str
    protocol: int
    port: int


def forget_from(source: str, chosen: Callable[[Connection], bool]) -> int:
    """Forget the connections that an address began and that are chosen; returns how many. What is sent on is new to the rules."""
    source = str(ipaddress.ip_address(source))
    family, packed = _packed(source)
    wanted = b"" if family == socket.AF_INET6 else nested(_CTA_TUPLE_ORIG, _ip(family, packed)) + _filter(_MATCH_SOURCE, 0)
    return _forget(family, wanted, lambda begun, answered: begun.source == source and chosen(begun))


def forget_datagrams(family: socket.AddressFamily, ports: Collection[int], answered_by: Collection[str]) -> int:
    """Forget the UDP connections that were begun to one of these ports, wherever they were led, or are answered by one of these addresses."""
    addresses = {str(ipaddress.ip_address(address)) for address in answered_by}
    begun = answered = 0
    wanted = b""
    if len(ports) == 1 and not addresses:
        wanted = nested(_CTA_TUPLE_ORIG, _protocol(socket.IPPROTO_UDP, *ports))
        begun = _MATCH_PROTOCOL | _MATCH_PORT
    elif len(addresses) == 1 and not ports and family == socket.AF_INET:
        wanted = nested(_CTA_TUPLE_REPLY, _ip(*_packed(*addresses)) + _protocol(socket.IPPROTO_UDP, 0))
        answered = _MATCH_PROTOCOL | _MATCH_SOURCE
    else:
        wanted = nested(_CTA_TUPLE_ORIG, _protocol(socket.IPPROTO_UDP, 0))
        begun = _MATCH_PROTOCOL

    def chosen(begun: Connection, answered: Connection) -> bool:
        return begun.protocol == socket.IPPROTO_UDP and (begun.port in ports or answered.source in addresses)

    return _forget(family, wanted + _filter(begun, answered), chosen)


def _packed(address: str) -> tuple[socket.AddressFamily, bytes]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.inet_pton(family, address)


def _ip(family: int, source: bytes) -> bytes:
    return nested(_CTA_TUPLE_IP, attribute(_CTA_IP_V6_SRC if family == socket.AF_INET6 else _CTA_IP_V4_SRC, source))


def _protocol(number: int, port: int) -> bytes:
    parts = attribute(_CTA_PROTO_NUM, bytes([number]))
    return nested(_CTA_TUPLE_PROTO, parts + (attribute(_CTA_PROTO_DST_PORT, struct.pack(">H", port)) if port else b""))


def _filter(begun: int, answered: int) -> bytes:
    flags = attribute(_CTA_FILTER_ORIG_FLAGS, struct.pack("=I", begun)) + attribute(_CTA_FILTER_REPLY_FLAGS, struct.pack("=I", answered))
    return nested(_CTA_FILTER, flags)


def _connection(tuple_: bytes) -> Connection:
    parts = attributes(tuple_)
    addresses, protocol = attributes(parts.get(_CTA_TUPLE_IP, b"")), attributes(parts.get(_CTA_TUPLE_PROTO, b""))
    source = addresses.get(_CTA_IP_V4_SRC) or addresses.get(_CTA_IP_V6_SRC) or bytes(4)
    target = addresses.get(_CTA_IP_V4_DST) or addresses.get(_CTA_IP_V6_DST) or bytes(4)
    (port,) = struct.unpack(">H", protocol.get(_CTA_PROTO_DST_PORT, b"\0\0"))
    return Connection(str(ipaddress.ip_address(source)), str(ipaddress.ip_address(target)), protocol.get(_CTA_PROTO_NUM, b"\0")[0], port)


def _forget(family: int, wanted: bytes, chosen: Callable[[Connection, Connection], bool]) -> int:
    """Ask for what is wanted, look at both directions of each, and delete what is chosen."""
    forgotten = 0
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as kernel:
        found = [
            parts
            for parts in _ask(kernel, _IPCTNL_MSG_CT_GET, _NLM_F_DUMP, family, wanted)
            if chosen(_connection(parts.get(_CTA_TUPLE_ORIG, b"")), _connection(parts.get(_CTA_TUPLE_REPLY, b"")))
        ]
        for parts in found:
            exactly = nested(_CTA_TUPLE_ORIG, parts[_CTA_TUPLE_ORIG])
            exactly += b"".join(attribute(kind, parts[kind]) for kind in (_CTA_ZONE, _CTA_ID) if kind in parts)
            try:
                list(_ask(kernel, _IPCTNL_MSG_CT_DELETE, _NLM_F_ACK, family, exactly))
                forgotten += 1
            except FileNotFoundError:
                pass  # it ended meanwhile
    return forgotten


def _ask(kernel: socket.socket, message: int, flags: int, family: int, wanted: bytes) -> Iterator[dict[int, bytes]]:
    """Send one request; each answer as its attributes."""
    body = struct.pack(">BBH", family, 0, 0) + wanted
    kernel.send(struct.pack("=IHHII", 16 + len(body), message, _NLM_F_REQUEST | flags, 1, 0) + body)
    while True:
        data = kernel.recv(1 << 17)
        position = 0
        while position + 16 <= len(data):
            length, kind = struct.unpack_from("=IH", data, position)
            if kind == _NLMSG_ERROR:
                (error,) = struct.unpack_from("=i", data, position + 16)
                if error:
                    raise OSError(-error, f"ctnetlink: {os.strerror(-error)}")
                return
            if kind == _NLMSG_DONE:
                return
            yield attributes(data[position + 20 : position + length])
            position += (length + 3) & ~3
