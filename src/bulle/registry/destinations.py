"""Where a registry client may connect to, decided on the addresses that a name really has.

A registry's answers name other places: redirects to storage, token services. Such an answer must not lead the client into places that the registry
itself could not reach: the metadata service of a cloud, this machine's own services, a private network. The rule: an answer may lead outwards,
never inwards. ``client`` asks here before each connection and connects to the very address that was checked, so a name that changes its mind
meanwhile gains nothing (DNS rebinding). Knows nothing of HTTP.
"""

from __future__ import annotations

import enum
import ipaddress
import socket
from urllib.parse import SplitResult, urljoin, urlsplit

from bulle.errors import RegistryFailure

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Services inside cloud machines whose addresses are not link-local: AWS (IPv6), Google (IPv6), Alibaba, Oracle, Azure.
_METADATA = frozenset(ipaddress.ip_address(text) for text in ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "192.0.0.192", "168.63.129.16"))
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class Reach(enum.IntEnum):
    """How far out an address lies; an answer may only lead to the same or a larger reach."""

    FORBIDDEN = 0
    LOOPBACK = 1
    PRIVATE = 2
    PUBLIC = 3


def reach(text: str) -> Reach:
    """The reach of one address as getaddrinfo(3) or a URL spells it."""
    address = _embedded(ipaddress.ip_address(text.partition("%")[0]))
    if address in _METADATA or address.is_link_local or address.is_multicast or address.is_unspecified:
        return Reach.FORBIDDEN
    if address.is_loopback:
        return Reach.LOOPBACK
    if address.is_global:
        return Reach.PUBLIC
    return Reach.PRIVATE


def _embedded(address: Address) -> Address:
    """The IPv4 address inside an IPv6 one that stands for it."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address.sixtofour is not None:
            return address.sixtofour
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def resolve(host: str, port: int, least: Reach) -> list[tuple[str, int, Reach]]:
    """The addresses of a host that may be connected to, in the system's order of preference: (address, family, reach).

    Raises RegistryFailure where the name does not exist, or where any of its addresses lies further in than ``least``: a name that has both is a
    trap.
    """
    try:
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RegistryFailure(f"cannot find {host}", reason, "check the name and this machine's network") from None
    found: list[tuple[str, int, Reach]] = []
    for family, _, _, _, address in answers:
        text = str(address[0])
        found.append((text, int(family), judge(host, text, least)))
    return found


def judge(host: str, address: str, least: Reach) -> Reach:
    """The reach of one address of a host, if it may be connected to; RegistryFailure otherwise, ValueError where it is no address."""
    distance = reach(address)
    if distance is Reach.FORBIDDEN:
        raise RegistryFailure(f"refusing to connect to {host}", f"{address} is a link-local, metadata or otherwise special address")
    if distance < least:
        kind = "this machine itself" if distance is Reach.LOOPBACK else "a private network"
        raise RegistryFailure(f"refusing to follow a registry to {host}", f"{address} belongs to {kind}, which the registry is not part of")
    return distance


def follow(current: str, location: str) -> SplitResult:
    """The address that an answer from ``current`` leads to, if its form alone allows it; RegistryFailure otherwise."""
    try:
        target = urlsplit(urljoin(current, location))
        port = target.port
    except ValueError:
        raise RegistryFailure("a registry answered with an impossible address", repr(location[:200])) from None
    if target.scheme not in ("http", "https") or not target.hostname or target.username is not None or port == 0:
        raise RegistryFailure("a registry answered with an address that is not followed", repr(location[:200]))
    if urlsplit(current).scheme == "https" and target.scheme != "https":
        raise RegistryFailure("refusing to follow a registry from https to plain http", repr(location[:200]))
    return target


def is_loopback_name(host: str) -> bool:
    """Whether a registry's host (without port) is this machine by its very name: there plain http is allowed, as in Docker."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
