"""What a client asks of networks for a container: places on networks, addresses, ports that are published. Docker Engine API, EndpointSettings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_address
from typing import cast

import msgspec

from bulle.errors import InvalidInput, Unsupported
from bulle.model.network import NetworkOption, PortMapping, Protocol


class _Document(msgspec.Struct, rename="pascal"):
    pass


class PortRequest(_Document):
    """One of ``PortBindings``."""

    host_ip: str = ""
    host_port: str = ""


class AddressRequest(_Document):
    """``IPAMConfig``: addresses that are asked for."""

    ipv4_address: str = msgspec.field(default="", name="IPv4Address")
    ipv6_address: str = msgspec.field(default="", name="IPv6Address")


class EndpointRequest(_Document):
    """A place on a network."""

    ipam_config: AddressRequest | None = msgspec.field(default=None, name="IPAMConfig")
    links: list[str] | None = None
    aliases: list[str] | None = None
    mac_address: str = ""

    def option(self, network: str) -> NetworkOption:
        """What is asked of the network of that name."""
        if self.links:
            raise Unsupported("links between containers", "container", "use the containers' names, or aliases")
        addresses = self.ipam_config or AddressRequest()
        aliases = tuple(dict.fromkeys(self.aliases or ()))
        return NetworkOption(network, addresses.ipv4_address, addresses.ipv6_address, self.mac_address.lower(), aliases)


class NetworkingRequest(_Document):
    """``NetworkingConfig``."""

    endpoints_config: dict[str, EndpointRequest | None] | None = None


def port_mappings(bindings: Mapping[str, Sequence[PortRequest] | None]) -> Iterator[PortMapping]:
    """``PortBindings``, which are by ``80/tcp``."""
    for text, places in bindings.items():
        port, protocol = _port(text)
        for place in places or (PortRequest(),):
            first, dash, last = place.host_port.partition("-")
            addresses = (_address(place.host_ip),) if place.host_ip else ()
            yield PortMapping(port, protocol, addresses, _number(first or "0", text), _number(last, text) if dash else 0)


def exposed(ports: Iterable[str]) -> Iterator[str]:
    """``ExposedPorts``, with their protocol."""
    for text in ports:
        port, protocol = _port(text)
        yield f"{port}/{protocol}"


def _port(text: str) -> tuple[int, Protocol]:
    number, _, protocol = text.partition("/")
    if protocol not in ("", "tcp", "udp", "sctp"):
        raise InvalidInput(f"invalid port specification: '{text}'", f"there is no protocol '{protocol}'", "it is one of tcp, udp, sctp")
    port = _number(number, text)
    if not port:
        raise InvalidInput(f"invalid port specification: '{text}'", "port 0 cannot be published")
    return port, cast("Protocol", protocol or "tcp")


def _number(text: str, whole: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 65536):
        raise InvalidInput(f"invalid port specification: '{whole}'", f"'{text}' is not a port", "ports go from 1 to 65535")
    return int(text)


def _address(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        raise InvalidInput(f"invalid IP address: {text}", "", "write one such as 127.0.0.1") from None


def extra_host(text: str) -> tuple[str, str]:
    """One of ``ExtraHosts``: a name and its address."""
    name, separator, address = text.partition("=") if "=" in text else text.partition(":")
    if not separator or not name or not address:
        raise InvalidInput(f'bad format for add-host: "{text}"', "", "write HOST:IP")
    return name, address.removeprefix("[").removesuffix("]")
