"""Where a container may go: the texts of ``--egress`` as data, and which addresses are not the internet.

``none``, ``internet``, ``all``, or ``allow:LIST`` with destinations between commas: a name (``pypi.org``, ``*.debian.org``), an address or a CIDR,
each with a port if wanted (``pypi.org:443``, ``10.0.0.0/8:5432``, ``[2001:db8::/32]:443``); for several ports there are several entries.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from typing import TypeAlias

from bulle.errors import InvalidInput
from bulle.model.network import Destination, Egress

PRIVATE4 = (
    "0.0.0.0/8",  # "this network": Linux takes 0.0.0.0 for the host itself
    "10.0.0.0/8",
    "100.64.0.0/10",  # shared behind carriers; also metadata of some clouds
    "127.0.0.0/8",
    "168.63.129.16/32",  # the host's own services, in Azure
    "169.254.0.0/16",  # link-local; metadata of most clouds
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",  # documentation, as are the other two
    "192.88.99.0/24",  # relays of 6to4
    "192.168.0.0/16",
    "198.18.0.0/15",  # benchmarks
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/3",  # multicast, reserved, broadcast
)
"""IPv4 addresses that are not the internet. IANA's special-purpose registry, and what clouds tell a machine about itself."""


def _embedded(prefix: int, shift: int) -> tuple[str, ...]:
    """The private IPv4 ranges where an IPv6 prefix carries an IPv4 address, ``shift`` bits from the right."""
    found = []
    for text in PRIVATE4:
        inner = ipaddress.ip_network(text)
        address = ipaddress.IPv6Address(prefix | int(inner.network_address) << shift)
        found.append(f"{address}/{128 - shift - 32 + inner.prefixlen}")
    return tuple(found)


PUBLIC6 = ("2000::/3", "64:ff9b::/96")
"""What can be the internet in IPv6: global unicast, and IPv4 behind NAT64 (RFC 6052). All else is private, link-local, metadata or multicast."""

PRIVATE6 = (
    "2001::/23",  # Teredo and other protocols' own
    "2001:db8::/32",  # documentation, as is the next
    "3fff::/20",
    *_embedded(0x0064FF9B << 96, 0),  # private IPv4 addresses behind NAT64
    *_embedded(0x2002 << 112, 80),  # and behind 6to4 (RFC 3056)
)
"""What of that is not the internet all the same."""

IPNetwork: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_EXPLAINED = "write none, internet, all, or allow: and a list such as allow:pypi.org:443,*.debian.org,10.0.0.0/8"


def parse_egress(text: str) -> Egress:
    """The text of ``--egress`` as data: names in lower case, addresses as CIDRs, the ports of one target together. Errors: InvalidInput."""
    if text in ("none", "internet", "all"):
        return Egress(mode=text)  # type: ignore[arg-type]
    word, colon, rest = text.partition(":")
    if word != "allow" or not colon:
        raise InvalidInput(f"egress {text!r} is none of the words", "", _EXPLAINED)
    ports: dict[str, set[int] | None] = {}  # None: all of them
    for entry in rest.split(","):
        target, port = _destination(entry.strip(), text)
        wanted = ports.setdefault(target, set())
        if port is None:
            ports[target] = None
        elif wanted is not None:
            wanted.add(port)
    return Egress(mode="allow", destinations=tuple(Destination(target, tuple(sorted(given or ()))) for target, given in ports.items()))


def _destination(entry: str, text: str) -> tuple[str, int | None]:
    """One entry of a list: a name or CIDR, and its port."""
    target, port_text = entry, ""
    if entry.startswith("["):
        target, bracket, port_text = entry[1:].partition("]")
        if not bracket or (port_text and not port_text.startswith(":")):
            raise InvalidInput(f"{entry!r} in egress {text!r} is no address", "", "write [2001:db8::/32]:443")
        port_text = port_text.removeprefix(":")
        if entry.endswith(":"):
            port_text = "nothing"
    elif entry.count(":") == 1:
        target, _, port_text = entry.partition(":")
        port_text = port_text or "nothing"
    port = None
    if port_text:
        if not port_text.isascii() or not port_text.isdecimal() or not 0 < int(port_text) < 65536:
            raise InvalidInput(f"{entry!r} in egress {text!r} has no port from 1 to 65535", "", "write NAME:443, or NAME alone for all ports")
        port = int(port_text)
    return _target(target, entry, text), port


def _target(target: str, entry: str, text: str) -> str:
    """A name in lower case, or a CIDR with its prefix."""
    try:
        if "%" not in target:  # an interface means nothing here
            return str(ipaddress.ip_network(target))
    except ValueError as error:
        if "host bits" in str(error):
            whole = ipaddress.ip_network(target, strict=False)
            raise InvalidInput(f"{entry!r} in egress {text!r} is no network", "its address has bits beyond the prefix", f"write {whole}") from None
    name = target.lower().removesuffix(".")
    labels = name.removeprefix("*.").split(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels) or labels[-1].isdecimal():
        raise InvalidInput(f"{entry!r} in egress {text!r} is neither a name nor a CIDR", "", _EXPLAINED)
    return name


def narrower(one: Egress, other: Egress) -> Egress:
    """What both allow: of a container's own word, say, and its network's."""
    first, second = sorted((one, other), key=lambda egress: ("none", "allow", "internet", "all").index(egress.mode))
    if first.mode == "none" or second.mode == "all" or first == second:
        return first
    found = _public_part(first) if second.mode == "internet" else _common_part(first, second)
    return Egress(mode="allow", destinations=tuple(found)) if found else Egress(mode="none")


def _public_part(egress: Egress) -> list[Destination]:
    """A list without what is not the internet."""
    private4, public6, private6 = _ranges()
    closed: list[IPNetwork] = [*private4, *private6]
    found = []
    for destination in egress.destinations:
        if is_name(destination.target):  # of which private addresses are refused anyway
            found.append(destination)
            continue
        network = ipaddress.ip_network(destination.target)
        parts: list[IPNetwork] = [network]
        if network.version == 6:
            parts = [narrow for wide in public6 if (narrow := _overlap(network, wide)) is not None]
        for private in closed:
            parts = [left for part in parts for left in _without(part, private)]
        found += [Destination(str(part), destination.ports) for part in parts]
    return found


def _common_part(one: Egress, other: Egress) -> list[Destination]:
    """The destinations on both lists."""
    found = []
    for left in one.destinations:
        for right in other.destinations:
            ports = tuple(sorted(set(left.ports) & set(right.ports))) if left.ports and right.ports else left.ports or right.ports
            target = _common_target(left.target, right.target)
            if target and bool(ports) == bool(left.ports or right.ports):
                found.append(Destination(target, ports))
    return found


def _common_target(one: str, other: str) -> str:
    """The name or CIDR that is covered by both, empty if there is none."""
    if is_name(one) != is_name(other):
        return ""
    if is_name(one):
        for narrow, wide in ((one, other), (other, one)):
            if narrow == wide or (wide.startswith("*.") and narrow.removeprefix("*").endswith(wide[1:])):
                return narrow
        return ""
    overlap = _overlap(ipaddress.ip_network(one), ipaddress.ip_network(other))
    return "" if overlap is None else str(overlap)


def _overlap(one: IPNetwork, other: IPNetwork) -> IPNetwork | None:
    """The narrower of two networks, where one contains the other."""
    if one.version != other.version or not one.overlaps(other):
        return None
    return one if one.prefixlen >= other.prefixlen else other


def _without(whole: IPNetwork, hole: IPNetwork) -> list[IPNetwork]:
    """A network without another."""
    overlap = _overlap(whole, hole)
    if overlap is None:
        return [whole]
    return [] if overlap == whole else list(whole.address_exclude(overlap))  # type: ignore[arg-type]


def is_name(target: str) -> bool:
    """Whether a destination's target is a name (else it is a CIDR)."""
    return "/" not in target


@functools.cache
def _ranges() -> tuple[tuple[ipaddress.IPv4Network, ...], tuple[ipaddress.IPv6Network, ...], tuple[ipaddress.IPv6Network, ...]]:
    """The texts above as networks: private IPv4, public IPv6, private IPv6."""
    four, six = ipaddress.IPv4Network, ipaddress.IPv6Network
    return tuple(map(four, PRIVATE4)), tuple(map(six, PUBLIC6)), tuple(map(six, PRIVATE6))


def is_private(address: str) -> bool:
    """Whether an address is not the internet: private, link-local, metadata, loopback, multicast, or an IPv6 form of one of those."""
    parsed = ipaddress.ip_address(address)
    private4, public6, private6 = _ranges()
    if isinstance(parsed, ipaddress.IPv4Address):
        return any(parsed in network for network in private4)
    return not any(parsed in network for network in public6) or any(parsed in network for network in private6)


def is_listed(egress: Egress, address: str, port: int) -> bool:
    """Whether a CIDR of the list covers an address, with that port."""
    parsed = ipaddress.ip_address(address)
    return any(
        parsed in ipaddress.ip_network(destination.target) and (not destination.ports or port in destination.ports)
        for destination in egress.destinations
        if not is_name(destination.target)
    )
