"""Interfaces, addresses and routes of one network namespace, by messages to the kernel. rtnetlink(7), netlink(7)

A :class:`RouteSocket` belongs to the namespace in which it was opened, wherever its process goes afterwards.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface

from bulle.linux.netlink_attributes import attribute, attributes, nested

_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_EXCL, _NLM_F_CREATE, _NLM_F_DUMP = 0x1, 0x4, 0x200, 0x400, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK, _RTM_NEWADDR, _RTM_DELADDR, _RTM_NEWROUTE, _RTM_GETROUTE = 16, 17, 18, 20, 21, 24, 26
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_AF_SPEC, _IFLA_NET_NS_FD = 1, 3, 4, 5, 10, 18, 26, 28
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER, _IFLA_MACVLAN_MODE = 1, 2, 1, 1
_IFLA_INET6_ADDR_GEN_MODE, _ADDR_GEN_NONE = 8, 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS, _IFA_F_NODAD = 1, 2, 8, 0x02
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_RT_TABLE_MAIN, _RTPROT_STATIC, _RT_SCOPE_UNIVERSE, _RT_SCOPE_LINK, _RTN_UNICAST = 254, 4, 0, 253, 1
_IFF_UP = 1
_MACVLAN_MODE_BRIDGE = 4
_LOCAL_BIT, _GROUP_BIT = 0x02, 0x01
_LARGEST = 1 << 17


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("I", value))


def _name(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _link(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return struct.pack("BxHiII", socket.AF_UNSPEC, 0, index, flags, change)


def _address(index: int, cidr: str) -> bytes:
    interface = ip_interface(cidr)
    family = socket.AF_INET if interface.version == 4 else socket.AF_INET6
    header = struct.pack("BBBBI", family, interface.network.prefixlen, 0, 0, index)
    return header + attribute(_IFA_LOCAL, interface.ip.packed) + attribute(_IFA_ADDRESS, interface.ip.packed)


def random_mac() -> str:
    """A hardware address that no maker of hardware gives."""
    first, *rest = os.urandom(6)
    return bytes([(first | _LOCAL_BIT) & ~_GROUP_BIT, *rest]).hex(":")


def _hardware_address(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def has_ipv6() -> bool:
    """Whether this kernel speaks IPv6 at all."""
    return os.path.exists("/proc/sys/net/ipv6")


def _no_link_local() -> bytes:
    """Have the interface make no IPv6 address by itself."""
    if not has_ipv6():
        return b""
    return nested(_IFLA_AF_SPEC, nested(socket.AF_INET6, attribute(_IFLA_INET6_ADDR_GEN_MODE, bytes([_ADDR_GEN_NONE]))))


class RouteSocket:
    """A conversation with the kernel about one network namespace; every method raises OSError where the kernel refuses."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def __enter__(self) -> RouteSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, kind: int, flags: int, payload: bytes) -> Iterator[tuple[int, bytes]]:
        self._sequence += 1
        header = struct.pack("IHHII", len(payload) + 16, kind, flags | _NLM_F_REQUEST, self._sequence, 0)
        self._socket.send(header + payload)
        while True:
            data = self._socket.recv(_LARGEST)
            while data:
                length, answer, _flags, sequence, _pid = struct.unpack_from("IHHII", data)
                body, data = data[16:length], data[(length + 3) & ~3 :]
                if sequence != self._sequence:
                    continue
                if answer == _NLMSG_ERROR:
                    (error,) = struct.unpack_from("i", body)
                    if error:
                        raise OSError(-error, os.strerror(-error))
                    return
                if answer == _NLMSG_DONE:
                    return
                yield answer, body

    def _tell(self, kind: int, payload: bytes, flags: int = 0) -> None:
        for _ in self._ask(kind, flags | _NLM_F_ACK, payload):
            pass

    def add_bridge(self, name: str, mac: str, mtu: int = 0) -> None:
        """A bridge that is up, with a hardware address that does not change with its ports."""
        parts = [
            _link(0, _IFF_UP, _IFF_UP), _name(_IFLA_IFNAME, name), attribute(_IFLA_ADDRESS, _hardware_address(mac)),
            nested(_IFLA_LINKINFO, _name(_IFLA_INFO_KIND, "bridge")),
        ]  # fmt: skip
        if mtu:
            parts.append(_number(_IFLA_MTU, mtu))
        self._tell(_RTM_NEWLINK, b"".join(parts), _NLM_F_CREATE | _NLM_F_EXCL)

    def add_veth(self, name: str, bridge: str, namespace_fd: int, interface: str, mac: str, mtu: int = 0) -> None:
        """A pair of veths: one up and a port of a bridge here, the other called ``interface`` in the network namespace behind the descriptor."""
        size = _number(_IFLA_MTU, mtu) if mtu else b""
        peer = b"".join((
            _link(), _name(_IFLA_IFNAME, interface), attribute(_IFLA_ADDRESS, _hardware_address(mac)), size,
            _number(_IFLA_NET_NS_FD, namespace_fd),
        ))  # fmt: skip
        parts = (
            _link(), _name(_IFLA_IFNAME, name), size, _number(_IFLA_MASTER, socket.if_nametoindex(bridge)),
            nested(_IFLA_LINKINFO, _name(_IFLA_INFO_KIND, "veth"), nested(_IFLA_INFO_DATA, nested(_VETH_INFO_PEER, peer))),
        )  # fmt: skip
        self._tell(_RTM_NEWLINK, b"".join(parts), _NLM_F_CREATE | _NLM_F_EXCL)
        self.set_up(socket.if_nametoindex(name), link_local=False)

    def add_macvlan(self, parent: str, namespace_fd: int, interface: str, mac: str, mtu: int = 0) -> None:
        """An interface of its own on the parent's wire, called ``interface`` in the network namespace behind the descriptor."""
        info = nested(
            _IFLA_LINKINFO, _name(_IFLA_INFO_KIND, "macvlan"), nested(_IFLA_INFO_DATA, _number(_IFLA_MACVLAN_MODE, _MACVLAN_MODE_BRIDGE))
        )
        parts = (
            _link(), _name(_IFLA_IFNAME, interface), attribute(_IFLA_ADDRESS, _hardware_address(mac)), _number(_IFLA_MTU, mtu) if mtu else b"",
            _number(_IFLA_LINK, socket.if_nametoindex(parent)), _number(_IFLA_NET_NS_FD, namespace_fd), info,
        )  # fmt: skip
        self._tell(_RTM_NEWLINK, b"".join(parts), _NLM_F_CREATE | _NLM_F_EXCL)

    def set_up(self, index: int, *, link_local: bool) -> None:
        """Bring an interface up, with or without an IPv6 address that it makes for itself."""
        if not link_local and (never := _no_link_local()):
            self._tell(_RTM_NEWLINK, _link(index) + never)  # before it is up, or it has made one already
        self._tell(_RTM_NEWLINK, _link(index, _IFF_UP, _IFF_UP))

    def set_port(self, index: int, bridge: int) -> None:
        """Make an interface a port of a bridge, both by index."""
        self._tell(_RTM_NEWLINK, _link(index) + _number(_IFLA_MASTER, bridge))

    def set_hardware_address(self, index: int, mac: str) -> None:
        """Give an interface another hardware address."""
        self._tell(_RTM_NEWLINK, _link(index) + attribute(_IFLA_ADDRESS, _hardware_address(mac)))

    def delete_link(self, index: int) -> None:
        """Remove an interface, and its peer."""
        self._tell(_RTM_DELLINK, _link(index))

    def links(self) -> dict[str, tuple[int, int]]:
        """Every interface by name: its index, and the index of what it is linked to (a veth's peer, a macvlan's parent; 0 for none)."""
        found = {}
        for _kind, body in self._ask(_RTM_GETLINK, _NLM_F_DUMP, _link()):
            index = struct.unpack_from("i", body, 4)[0]
            said = attributes(body[16:])
            peer = struct.unpack("I", said[_IFLA_LINK])[0] if _IFLA_LINK in said else 0
            found[said[_IFLA_IFNAME].rstrip(b"\0").decode()] = (index, peer)
        return found

    def add_address(self, index: int, cidr: str) -> None:
        """Give an interface an address with the prefix of its network; in use at once, nobody is asked whether it is taken."""
        flags = b"" if ip_interface(cidr).version == 4 else _number(_IFA_FLAGS, _IFA_F_NODAD)
        self._tell(_RTM_NEWADDR, _address(index, cidr) + flags, _NLM_F_CREATE | _NLM_F_EXCL)

    def remove_address(self, index: int, cidr: str) -> None:
        """Take an address from an interface."""
        self._tell(_RTM_DELADDR, _address(index, cidr))

    def add_default_route(self, gateway: str, index: int) -> None:
        """Send everything else over an interface to a gateway."""
        address = ip_address(gateway)
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        header = struct.pack("BBBBBBBBI", family, 0, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC, _RT_SCOPE_UNIVERSE, _RTN_UNICAST, 0)
        self._tell(_RTM_NEWROUTE, header + attribute(_RTA_GATEWAY, address.packed) + _number(_RTA_OIF, index), _NLM_F_CREATE | _NLM_F_EXCL)

    def add_host_route(self, address: str, index: int) -> None:
        """One IPv4 address is at the other end of an interface."""
        header = struct.pack("BBBBBBBBI", socket.AF_INET, 32, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC, _RT_SCOPE_LINK, _RTN_UNICAST, 0)
        self._tell(_RTM_NEWROUTE, header + attribute(_RTA_DST, ip_address(address).packed) + _number(_RTA_OIF, index), _NLM_F_CREATE | _NLM_F_EXCL)

    def destinations(self) -> list[str]:
        """The CIDR of every route but the default ones, of both families, in every table."""
        found = []
        for family, size in ((socket.AF_INET, 4), (socket.AF_INET6, 16)):
            header = struct.pack("BBBBBBBBI", family, 0, 0, 0, 0, 0, 0, 0, 0)
            for _kind, body in self._ask(_RTM_GETROUTE, _NLM_F_DUMP, header):
                address = attributes(body[12:]).get(_RTA_DST)
                if body[0] == family and address is not None and len(address) == size and body[1]:
                    found.append(f"{ip_address(address)}/{body[1]}")
        return found

