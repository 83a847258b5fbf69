"""The addresses of a new network: what was asked for, checked, and what was left open, chosen so that it overlaps nothing of this machine. Pure."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from msgspec.structs import replace

from bulle.engine.network_settings import NetworkSettings
from bulle.errors import InvalidInput
from bulle.model.network import NetworkConfig
from bulle.records.networks import free_subnet


def completed(config: NetworkConfig, others: Sequence[str], routes: Sequence[str], settings: NetworkSettings, first: int = 0) -> NetworkConfig:
    """``others`` are the subnets of other networks, ``routes`` where this machine's routes lead (CIDRs).

    ``first`` is where in the pool the search begins: homes of one machine see each other's subnets only while they have containers.
    """
    if config.driver not in ("bridge", "macvlan"):
        return config
    subnets = [_subnet(text) for text in config.subnets]
    if len({subnet.version for subnet in subnets}) < len(subnets):
        raise InvalidInput("a network has one subnet of each family", "there are two of one here", "make two networks")
    if not any(subnet.version == 4 for subnet in subnets):
        candidates = settings.subnets()
        first %= len(candidates)
        candidates = candidates[first:] + candidates[:first]
        subnets.insert(0, ip_network(free_subnet(candidates, [*others, *_host_routes(routes)])))
    if config.ipv6 and not any(subnet.version == 6 for subnet in subnets):
        # A prefix of its own, at random, as RFC 4193 wants it.
        subnets.append(ip_network((b"\xfd" + secrets.token_bytes(5) + bytes(10), 64)))
    gateways = [_within(config.gateways, subnet, "--gateway") or str(subnet[1]) for subnet in subnets]
    ranges = [_range(config.ip_ranges, subnet) for subnet in subnets]
    return replace(
        config,
        subnets=tuple(map(str, subnets)),
        gateways=tuple(gateways),
        ip_ranges=tuple(ranges),
        ipv6=any(subnet.version == 6 for subnet in subnets),
        dns=tuple(_server(text) for text in config.dns),
    )


def _server(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        raise InvalidInput(f"{text!r} is not an address for --dns", "", "write one such as 192.0.2.1") from None


def _host_routes(routes: Sequence[str]) -> list[str]:
    """Routes but those that lead everywhere or to whole families of addresses, which overlap everything."""
    return [route for route in routes if ":" not in route and int(route.rpartition("/")[2]) >= 8]


def _subnet(text: str) -> IPv4Network | IPv6Network:
    try:
        subnet = ip_network(text)
    except ValueError as error:
        raise InvalidInput(f"invalid subnet {text}", str(error), "write it as 192.0.2.0/24") from None
    if subnet.num_addresses < 4:
        raise InvalidInput(f"invalid subnet {text}", "it has no room for containers", "make it larger")
    for kind in ("loopback", "multicast", "link_local", "unspecified"):
        if getattr(subnet[0], f"is_{kind}") or getattr(subnet[-1], f"is_{kind}"):
            raise InvalidInput(f"invalid subnet {text}", f"it has {kind.replace('_', '-')} addresses", "take one of 10.0.0.0/8, or of fd00::/8")
    return subnet


def _within(texts: Sequence[str], subnet: IPv4Network | IPv6Network, flag: str) -> str:
    for text in texts:
        try:
            address = ip_address(text)
        except ValueError:
            raise InvalidInput(f"invalid address {text} for {flag}", "", "write one such as 192.0.2.1") from None
        if address.version == subnet.version:
            if address not in subnet:
                raise InvalidInput(f"no matching subnet for gateway {address}", f"the subnet is {subnet}", "choose an address of it")
            return str(address)
    return ""


def _range(texts: Sequence[str], subnet: IPv4Network | IPv6Network) -> str:
    for text in texts:
        if not text:
            continue
        chosen = _subnet_of_any_size(text)
        if chosen.version == subnet.version:
            if chosen[0] not in subnet or chosen[-1] not in subnet:
                raise InvalidInput(f"the range {text} is not in the subnet {subnet}", "", "choose a part of it")
            return str(chosen)
    return ""


def _subnet_of_any_size(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text, strict=False)
    except ValueError as error:
        raise InvalidInput(f"invalid range {text}", str(error), "write it as 192.0.2.0/28") from None
