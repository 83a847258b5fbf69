"""The text of our rules: ``ruleset.nft`` beside this module, and what networks, containers and published ports are as elements of its sets.

Pure text; :mod:`bulle.network.rules` keeps it standing.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from bulle.linux import nftables
from bulle.model.network import Destination, Egress, PublishedPort
from bulle.network import egress as ranges

Elements = dict[tuple[str, str, str], str]
"""What is in the sets and maps: family, set and key, to the value of a map (of a set: empty)."""

_TARGET = "@th,64,128"  # of a neighbour message. RFC 4861, 4.3
_SHARES, _SEED = 64, "0x62756c6c"  # a fixed seed, so that an address stays with its replica when the rules are made anew
_WITH_PORTS = "meta l4proto { tcp, udp, sctp }"


class Link(NamedTuple):
    """One interface of a container: the host's end of its veth, what it may send as, and addresses without a prefix."""

    network_id: str
    veth: str
    mac: str
    addresses: tuple[str, ...]


class Replica(NamedTuple):
    """Who shares a port: what it is called, and where it is reached."""

    name: str
    address: str
    port: int
    listens: bool = False
    """Whether it was seen to."""


class Balance(NamedTuple):
    """A port of the host that replicas share, and those of them that are in balance; ``is_relayed``: the keeper itself leads there."""

    protocol: str
    host_address: str
    host_port: int
    replicas: tuple[Replica, ...] = ()
    is_sticky: bool = False
    is_relayed: bool = False


@functools.cache
def _template() -> str:
    return Path(__file__).with_name("ruleset.nft").read_text()


@functools.cache
def _knows_neighbours() -> bool:
    """Whether this nft can name the address that a neighbour message is about, as those before 1.0.8 cannot: to them it is a plain number."""
    return nftables.understands("table bridge bulle_question { chain question { icmpv6 taddr ::1 accept; }; }\n")


def static_text(table: str) -> str:
    """Both tables, in place of whatever is called so, with what never changes. What translates IPv6 addresses is left out where there is no IPv6."""
    text = _template()
    if not os.path.exists("/proc/sys/net/ipv6"):
        text = "\n".join(line for line in text.splitlines() if not line.endswith("# IPv6"))
    if not _knows_neighbours():
        text = text.replace("icmpv6 taddr @own6", f"{_TARGET} @neighbour6")
        text = text.replace("table bridge TABLE {\n", f"table bridge TABLE {{\n\tset neighbour6 {{ typeof iifname . ether saddr . {_TARGET}; }}\n")
    text = re.sub(r"\bTABLE\b", table, text)
    fixed: Elements = {("inet", "private4", network): "" for network in ranges.PRIVATE4}
    fixed |= {("inet", "private6", network): "" for network in ranges.PRIVATE6}
    fixed |= {("inet", "public6", network): "" for network in ranges.PUBLIC6}
    return f"{removal(table)}{text}\n{added(table, fixed)}"


def limits(table: str, *, stand: bool) -> str:
    """The rules by which limited containers are found, which every packet would pay for where nobody is limited."""
    if not stand:
        return f"flush chain inet {table} egress\n"
    ways = ((4, "ip"), (6, "ip6"))
    return "".join(f"add rule inet {table} egress iifname . {protocol} saddr vmap @limited{version}\n" for version, protocol in ways)


def removal(table: str) -> str:
    """Both tables go, if they are there."""
    return "".join(f"table {family} {table} {{}}\ndelete table {family} {table}\n" for family in ("bridge", "inet"))


def added(table: str, elements: Elements) -> str:
    """Commands that add elements, one for each set."""
    return _commands("add", table, ((key, f"{key[2]} : {value}" if value else key[2]) for key, value in elements.items()))


def difference(table: str, before: Elements, after: Elements) -> str:
    """Commands that make ``after`` out of ``before``."""
    gone = ((key, key[2]) for key, value in before.items() if after.get(key) != value)
    return _commands("delete", table, gone) + added(table, {key: value for key, value in after.items() if before.get(key) != value})


def _commands(verb: str, table: str, elements: Iterable[tuple[tuple[str, str, str], str]]) -> str:
    lists: dict[tuple[str, str], list[str]] = {}
    for (family, name, _), text in elements:
        lists.setdefault((family, name), []).append(text)
    return "".join(f"{verb} element {family} {table} {name} {{ {', '.join(texts)} }}\n" for (family, name), texts in lists.items())


def _version(address: str) -> int:
    return 6 if ":" in address else 4


def network_elements(device: str, subnets: Sequence[str], internal: bool) -> Elements:
    """A bridge with its subnets."""
    found: Elements = {("inet", "bridges", f'"{device}"'): "", ("inet", "same_bridge", f'"{device}" . "{device}"'): ""}
    if internal:
        found["inet", "internal", f'"{device}"'] = ""
    for subnet in subnets:
        found["inet", f"networks{_version(subnet)}", f'"{device}" . {subnet}'] = ""
        if not internal:
            found["inet", f"masqueraded{_version(subnet)}", subnet] = ""
    return found


def link_local(mac: str) -> str:
    """The IPv6 address that an interface gives itself. RFC 4291, appendix A"""
    octets = bytes.fromhex(mac.replace(":", ""))
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]))


def member_elements(links: Sequence[tuple[str, Link]], egress: Egress, list_name: str) -> Elements:
    """A container's interfaces, each with its bridge: what it may send, and by which chain. ``list_name`` is its chain in mode ``allow``."""
    found: Elements = {}
    for device, (_, veth, mac, given) in links:
        found["bridge", "members", f'"{veth}"'] = ""
        addresses = list(given)
        if any(_version(address) == 6 for address in given):
            addresses.append(link_local(mac))
            found["bridge", "speaks6", f'"{veth}" . {mac}'] = ""
        for address in addresses:
            version = _version(address)
            found["bridge", f"own{version}", f'"{veth}" . {mac} . {address}'] = ""
            if version == 6 and not _knows_neighbours():
                found["bridge", "neighbour6", f'"{veth}" . {mac} . {int(ipaddress.IPv6Address(address)):#034x}'] = ""
            if egress.mode != "all":
                found["inet", f"limited{version}", f'"{device}" . {address}'] = f"goto egress_{'listed' if list_name else egress.mode}"
                found["inet", f"lists{version}", f'"{device}" . {address}'] = f"goto {list_name or 'refuse'}"
    return found


def port_elements(ports: Sequence[tuple[PublishedPort, str]]) -> Elements:
    """Published ports; without those whose two addresses are of different families, and ::1, from which nothing can be routed."""
    found: Elements = {}
    for port, target in ports:
        version = _version(target)
        if _version(port.host_address) != version or port.host_address == "::1":
            continue
        if port.host_address in ("0.0.0.0", "::"):
            name, key = f"everywhere{version}", f"{port.protocol} . {port.host_port}"
        else:
            name, key = f"published{version}", f"{port.protocol} . {port.host_address} . {port.host_port}"
        found["inet", name, key] = f"{target} . {port.container_port}"
    return found


def port_text(element: tuple[str, str, str]) -> str:
    """A published port's element as people write it."""
    _, name, key = element
    protocol, *address, port = key.split(" . ")
    host = address[0] if address else {"everywhere4": "0.0.0.0", "everywhere6": "::"}[name]
    return f"{f'[{host}]' if ':' in host else host}:{port}/{protocol}"


def balance_name(balance: Balance) -> str:
    """The chain of a shared port."""
    return re.sub(r"[^0-9A-Za-z]", "_", f"balance_{balance.protocol}_{balance.host_address}_{balance.host_port}")


def balance_elements(balance: Balance) -> Elements:
    """How its chain is found."""
    version, verdict = _version(balance.host_address), f"goto {balance_name(balance)}"
    if balance.host_address in ("0.0.0.0", "::"):
        return {("inet", "balanced_everywhere", f"ipv{version} . {balance.protocol} . {balance.host_port}"): verdict}
    return {("inet", f"balanced{version}", f"{balance.protocol} . {balance.host_address} . {balance.host_port}"): verdict}


def sharing_elements(balances: Iterable[Balance]) -> Elements:
    """Those of whom a refusal is not to be believed."""
    direct = (replica for balance in balances if balance.protocol == "tcp" and not balance.is_relayed for replica in balance.replicas)
    return {("inet", f"sharing{_version(one.address)}", f"{one.address} . {one.port}"): "" for one in direct if one.listens}


def balance_text(table: str, balance: Balance) -> str:
    """The chain of a shared port, made or made anew."""
    chain = f"inet {table} {balance_name(balance)}"
    return f"add chain {chain}\nflush chain {chain}\nadd rule {chain} {_balance_rule(balance)}\n"


def balance_removal(table: str, balance: Balance) -> str:
    """The chain goes, and what leads there."""
    chain = f"inet {table} {balance_name(balance)}"
    return f"{difference(table, balance_elements(balance), {})}flush chain {chain}\ndelete chain {chain}\n"


def _balance_rule(balance: Balance) -> str:
    if not balance.replicas:
        return "goto nobody"
    if balance.is_relayed:
        return "accept"
    family = "ip6" if ":" in balance.host_address else "ip"
    lead = f"meta l4proto {balance.protocol} dnat {family} to"
    targets = [f"{replica.address} . {replica.port}" for replica in balance.replicas]
    if len(targets) == 1:
        host = f"[{balance.replicas[0].address}]" if family == "ip6" else balance.replicas[0].address
        return f"{lead} {host}:{balance.replicas[0].port}"
    if balance.is_sticky:
        targets = [targets[place] for place in places(tuple(replica.name for replica in balance.replicas))]
    choice = f"jhash {family} saddr mod {len(targets)} seed {_SEED}" if balance.is_sticky else f"numgen random mod {len(targets)}"
    return f"{lead} {choice} map {{ {', '.join(f'{number} : {target}' for number, target in enumerate(targets))} }}"


def share_of(client: str) -> int:
    """The share of an address, for who does not ask the kernel."""
    return int.from_bytes(hashlib.blake2b(client.encode(), digest_size=2).digest(), "big") % _SHARES


@functools.lru_cache
def places(names: tuple[str, ...]) -> list[int]:
    """Which replica each of 64 shares of all addresses is led to. Each has a rank of its own at each: who leaves or comes moves its part only."""
    return [
        max(range(len(names)), key=lambda number: hashlib.blake2b(f"{share} {names[number]}".encode(), digest_size=8).digest())
        for share in range(_SHARES)
    ]


def list_name_of(container_id: str) -> str:
    """The chain of a container in mode ``allow``; its sets of resolved names have a suffix."""
    return "list_" + re.sub(r"[^0-9A-Za-z]", "_", container_id)[:32]


def named_set(list_name: str, address: str, port: int) -> str:
    """The set that such an address of an allowed name stands in."""
    return f"{list_name}_{'ported' if port else 'any'}{_version(address)}"


def list_text(table: str, list_name: str, destinations: Sequence[Destination]) -> str:
    """The chain of what one container may reach, made or made anew: its CIDRs, then the addresses that its names were found to have."""
    chain = f"inet {table} {list_name}"
    lines = [f"add chain {chain}", f"flush chain {chain}"]
    rules = []
    for version, protocol in ((4, "ip"), (6, "ip6")):
        ported, free = _ranges_of(destinations, version)
        if free:
            rules.append(f"{protocol} daddr {{ {', '.join(free)} }} accept")
        if ported:
            rules.append(f"{_WITH_PORTS} {protocol} daddr . th dport {{ {', '.join(ported)} }} accept")
    if any(ranges.is_name(destination.target) for destination in destinations):
        # A name may say anything, so also that it is this host.
        rules.append("fib daddr type { local, broadcast, anycast, multicast } goto refuse")
        for version, protocol in ((4, "ip"), (6, "ip6")):
            rules.append(f"{protocol} daddr @{list_name}_any{version} accept")
            rules.append(f"{_WITH_PORTS} {protocol} daddr . th dport @{list_name}_ported{version} accept")
            for name, kind in ((f"any{version}", ""), (f"ported{version}", " . inet_service")):
                full = f"inet {table} {list_name}_{name}"
                lines += [f"add set {full} {{ type ipv{version}_addr{kind}; flags timeout; }}", f"flush set {full}"]
    lines += [f"add rule {chain} {rule}" for rule in [*rules, "goto refuse"]]
    return "".join(f"{line}\n" for line in lines)


def list_removal(table: str, list_name: str, destinations: Sequence[Destination]) -> str:
    """The chain and its sets go; nothing leads there any more."""
    text = f"flush chain inet {table} {list_name}\ndelete chain inet {table} {list_name}\n"
    if any(ranges.is_name(destination.target) for destination in destinations):
        text += "".join(f"delete set inet {table} {list_name}_{name}\n" for name in ("any4", "ported4", "any6", "ported6"))
    return text


def _ranges_of(destinations: Sequence[Destination], version: int) -> tuple[list[str], list[str]]:
    """The CIDRs of a list as elements, with ports and without; nft takes none that overlap."""
    by_port: dict[int, list[ipaddress.IPv4Network | ipaddress.IPv6Network]] = {}
    for destination in destinations:
        if not ranges.is_name(destination.target):
            network = ipaddress.ip_network(destination.target)
            if network.version == version:
                for port in destination.ports or (0,):
                    by_port.setdefault(port, []).append(network)
    collapsed = {port: [str(network) for network in ipaddress.collapse_addresses(networks)] for port, networks in by_port.items()}  # type: ignore[type-var]
    free = collapsed.pop(0, [])
    return [f"{network} . {port}" for port, networks in sorted(collapsed.items()) for network in networks], free
