"""The flags of ``run`` and ``create`` that speak of networks, ports and names, in Docker's notation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_address
from typing import Any, cast

import click

from bulle.cli.option_types import Suggestion, Text
from bulle.cli.session import note
from bulle.errors import InvalidInput
from bulle.model.network import NetworkOption, PortMapping, Protocol

PROTOCOLS = ("tcp", "udp", "sctp")

NETWORK_FLAGS: Sequence[Callable[[Any], Any]] = (
    click.option(
        "--network", "--net", multiple=True, type=Suggestion("network", "bridge", "none", "host", "container:"),
        help="Connect a container to a network (bridge, none, host, container:NAME, or a NAME; also name=NAME,alias=…,ip=…)",
    ),
    click.option("--network-alias", "--net-alias", multiple=True, type=Text("list"), help="Add network-scoped alias for the container"),
    click.option("--ip", type=Text(), help="IPv4 address (e.g., 172.30.100.104)"),
    click.option("--ip6", type=Text(), help="IPv6 address (e.g., 2001:db8::33)"),
    click.option("--mac-address", type=Text(), help="Container MAC address (e.g., 92:d0:c6:0a:29:33)"),
    click.option("-p", "--publish", multiple=True, type=Text("list"), help="Publish a container's port(s) ([IP:][HOST:]CONTAINER[/PROTOCOL])"),
    click.option("-P", "--publish-all", is_flag=True, help="Publish all exposed ports to random ports"),
    click.option("--expose", multiple=True, type=Text("list"), help="Expose a port or a range of ports"),
    click.option("--dns", multiple=True, type=Text("list"), help="Set custom DNS servers"),
    click.option("--dns-search", multiple=True, type=Text("list"), help="Set custom DNS search domains"),
    click.option("--dns-option", "--dns-opt", multiple=True, type=Text("list"), help="Set DNS options"),
    click.option("--add-host", multiple=True, type=Text("list"), help="Add a custom host-to-IP mapping (HOST:IP)"),
    click.option(
        "--egress", type=Suggestion("rule", "none", "internet", "allow:", "all"),
        help="What it may reach outside of its networks: none, internet (no private addresses), allow:NAME|CIDR[:PORT],…, or all",
    ),
)  # fmt: skip


def network_options_from(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the container's options that these flags give."""
    networks = _networks(flags)
    names = [one.name for one in networks]
    alone = {"none", "host"}.intersection(names) or {name for name in names if name.startswith("container:")}
    if alone and len(names) > 1:
        raise InvalidInput(f"conflicting options: --network {sorted(alone)[0]} and other networks", "", "give one of them")
    if names == ["host"] and (flags["publish"] or flags["publish_all"]):
        note("WARNING: Published ports are discarded when using host network mode")
    return {
        "network": names[0] if names else "",
        "networks": tuple(networks) if networks and not alone else (),
        "ports": tuple(mapping for text in flags["publish"] for mapping in port_mappings(text)),
        "publish_all": flags["publish_all"],
        "expose": tuple(port for text in flags["expose"] for port in _exposed(text)),
        "dns": flags["dns"],
        "dns_search": tuple(domain for domain in flags["dns_search"] if domain != "."),
        "dns_options": flags["dns_option"],
        "extra_hosts": tuple(map(extra_host, flags["add_host"])),
        "egress": flags["egress"] or "",
    }


def _networks(flags: Mapping[str, Any]) -> list[NetworkOption]:
    """``--network`` in its short and its long form; the flags for one network speak of the first."""
    found = [_network(text) for text in flags["network"]]
    mine = NetworkOption("", flags["ip"] or "", flags["ip6"] or "", (flags["mac_address"] or "").lower(), flags["network_alias"])
    if mine == NetworkOption(""):
        return found
    first = found[0] if found else NetworkOption("bridge")
    if first.name in ("none", "host") or first.name.startswith("container:"):
        what = "--network-alias" if mine.aliases else "--mac-address" if mine.mac else "--ip"
        raise InvalidInput(f"conflicting options: {what} and --network {first.name}", "nobody calls it there", "use a bridge")
    merged = NetworkOption(
        first.name, mine.ipv4 or first.ipv4, mine.ipv6 or first.ipv6, mine.mac or first.mac, tuple(dict.fromkeys(first.aliases + mine.aliases))
    )
    check_option(merged)
    return [merged, *found[1:]]


def _network(text: str) -> NetworkOption:
    if "=" not in text:
        return NetworkOption(text)
    values: dict[str, str] = {}
    aliases: list[str] = []
    for part in text.split(","):
        key, _, value = part.partition("=")
        if key == "alias":
            aliases.append(value)
        elif key in ("name", "ip", "ip6", "mac-address"):
            values[key] = value
        else:
            raise InvalidInput(f"invalid field {key} in --network {text}", "", "it is one of name, alias, ip, ip6, mac-address")
    if not values.get("name"):
        raise InvalidInput(f"network name or ID is required in --network {text}", "", "write name=NAME")
    option = NetworkOption(values["name"], values.get("ip", ""), values.get("ip6", ""), values.get("mac-address", "").lower(), tuple(aliases))
    check_option(option)
    return option


def check_option(option: NetworkOption) -> None:
    """Raise InvalidInput for addresses that are none."""
    for text, version in ((option.ipv4, 4), (option.ipv6, 6)):
        if text and not _is_address(text, version):
            raise InvalidInput(f"invalid IPv{version} address: {text}", "", f"write one such as {'192.0.2.7' if version == 4 else 'fd00::7'}")
    if option.mac:
        parts = option.mac.split(":")
        if len(parts) != 6 or not all(len(part) == 2 and not set(part) - set("0123456789abcdef") for part in parts) or int(parts[0], 16) & 1:
            raise InvalidInput(f"{option.mac} is not a valid mac address", "", "write six bytes such as 92:d0:c6:0a:29:33, the first of them even")


def _is_address(text: str, version: int) -> bool:
    try:
        return ip_address(text).version == version
    except ValueError:
        return False


def port_mappings(text: str) -> list[PortMapping]:
    """``[IP:][HOST:]CONTAINER[/PROTOCOL]``, host and container as a port or a range; an IPv6 address in brackets."""
    wrong = f"invalid publish: '{text}'"
    rest, slash, protocol = text.partition("/")
    if slash and protocol not in PROTOCOLS:
        raise InvalidInput(wrong, f"there is no protocol '{protocol}'", f"it is one of {', '.join(PROTOCOLS)}")
    address = ""
    if rest.startswith("["):
        address, bracket, rest = rest[1:].partition("]")
        if not bracket or not rest.startswith(":"):
            raise InvalidInput(wrong, "", "write it as [IP]:HOST:CONTAINER")
        rest = rest[1:]
        host, _, container = rest.rpartition(":")
    else:
        *before, container = rest.split(":")
        if len(before) > 2:
            raise InvalidInput(wrong, "", "write it as [IP:][HOST:]CONTAINER[/PROTOCOL], an IPv6 address in brackets")
        host = before[-1] if before else ""
        address = before[0] if len(before) == 2 else ""
    if address and not (_is_address(address, 4) or _is_address(address, 6)):
        raise InvalidInput(wrong, f"{address} is not an address", "names of hosts are not looked up")
    first, last = _range(container, wrong)
    kind = cast("Protocol", protocol or "tcp")
    addresses = (str(ip_address(address)),) if address else ()
    if not host:
        return [PortMapping(port, kind, addresses) for port in range(first, last + 1)]
    lowest, highest = _range(host, wrong)
    if first == last and highest > lowest:
        return [PortMapping(first, kind, addresses, lowest, highest)]
    if highest - lowest != last - first:
        raise InvalidInput(wrong, "the two ranges have not the same length", "write as many ports of the host as of the container")
    return [PortMapping(port, kind, addresses, lowest + port - first) for port in range(first, last + 1)]


def _range(text: str, wrong: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    last = last if dash else first
    if not all(part.isascii() and part.isdigit() and 0 < int(part) < 65536 for part in (first, last)):
        raise InvalidInput(wrong, f"'{text}' is not a port", "ports go from 1 to 65535")
    if int(last) < int(first):
        raise InvalidInput(wrong, f"'{text}' goes backwards", "begin with the lower port")
    return int(first), int(last)


def _exposed(text: str) -> list[str]:
    wrong = f"invalid range format for --expose: {text}"
    rest, _, protocol = text.partition("/")
    if protocol not in ("", *PROTOCOLS):
        raise InvalidInput(wrong, f"there is no protocol '{protocol}'", f"it is one of {', '.join(PROTOCOLS)}")
    first, last = _range(rest, wrong)
    return [f"{port}/{protocol or 'tcp'}" for port in range(first, last + 1)]


def extra_host(text: str) -> tuple[str, str]:
    """A name and an address of ``--add-host``. Raises InvalidInput."""
    name, separator, address = text.partition("=") if "=" in text else text.partition(":")
    address = address.removeprefix("[").removesuffix("]")
    if not separator or not name or not (address == "host-gateway" or _is_address(address, 4) or _is_address(address, 6)):
        raise InvalidInput(f"bad format for add-host: '{text}'", "", "write HOST:IP, or HOST:host-gateway")
    return name, address
