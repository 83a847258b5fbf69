"""From what was asked of networks and ports to the network part of a container's plan, and to its places on networks."""

from __future__ import annotations

import os
import socket
import sqlite3
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING

from msgspec.structs import replace

from bulle.engine.network_settings import read_settings
from bulle.errors import InvalidInput, Unavailable, Unsupported
from bulle.isolation.driver import Feature
from bulle.isolation.microvm import NAME_SERVER as GUEST_NAME_SERVER
from bulle.linux.netlink import RouteSocket, random_mac
from bulle.model.container import ContainerOptions
from bulle.model.image import ExecutionConfig
from bulle.model.network import DEFAULT_NETWORK, Attachment, NetworkConfig, NetworkOption, PortMapping
from bulle.model.run_plan import Network
from bulle.network.egress import narrower, parse_egress
from bulle.network.naming import table_name
from bulle.records.networks import NetworkRecord, NetworkRecords

if TYPE_CHECKING:
    from bulle.model.network import Egress

_SHARED = "container:"
_NAME_SERVER_PORT = 53
_NOT_SHARED = {
    "networks": "--ip, --mac-address and --network-alias", "ports": "-p", "publish_all": "-P", "dns": "--dns", "dns_search": "--dns-search",
    "dns_options": "--dns-option", "extra_hosts": "--add-host", "egress": "--egress",
}  # fmt: skip


def network_of(options: ContainerOptions, config: ExecutionConfig) -> Network:
    """The network part of a plan, but for its attachments; see :func:`attach`. Raises InvalidInput, Unsupported."""
    isolation = options.isolation or "container"
    mode = _wanted(options)
    if isolation == "chroot" and mode != "host":
        raise Unsupported(Feature.OWN_NETWORK.value, "chroot", "use --isolation container, or --network host")
    if mode.startswith(_SHARED) and isolation == "vm":
        raise Unsupported("way onto another container's network", "vm", "put both on one network, where they know each other by name")
    if mode.startswith(_SHARED):
        for field, flag in _NOT_SHARED.items():
            if getattr(options, field):
                raise InvalidInput(f"conflicting options: {flag} and --network {mode}", "that network is another container's", f"leave {flag} out")
        if options.hostname:
            raise InvalidInput(f"conflicting options: --hostname and --network {mode}", "it has the other container's name", "leave it out")
        return Network("container", container_id=mode.removeprefix(_SHARED))
    if isolation == "vm" and mode == "host":
        raise Unsupported(Feature.HOST_NETWORK.value, "vm", "leave --network out, or use --isolation container")
    if isolation == "vm" and os.geteuid() != 0 and mode in ("user", DEFAULT_NETWORK):
        mode = "user"
    elif os.geteuid() != 0 and (mode not in ("none", "host") or ((options.ports or options.publish_all) and mode == "none")):
        what = "ports cannot be published" if mode == "none" else f"network {mode} cannot be used"
        raise Unavailable(what, "bridges need root", "use --network host or none, or run it as root")
    ports = () if mode in ("none", "host") else _ports(options, config)  # as in Docker: the host's ports are open anyway
    if mode == "user":
        ports = tuple(map(_chosen, ports))
    return Network(
        mode if mode in ("none", "host", "user") else "own",  # type: ignore[arg-type]
        ports=ports,
        dns=tuple(_address(text, "--dns") for text in options.dns),
        search=options.dns_search,
        dns_options=options.dns_options,
        extra_hosts=tuple((name, address if address == "host-gateway" else _address(address, "--add-host")) for name, address in options.extra_hosts),
        egress=_egress(options, mode),
        serves_names=any(port.container_port == _NAME_SERVER_PORT for port in ports),
        name_server=GUEST_NAME_SERVER if isolation == "vm" else "",
    )


def _wanted(options: ContainerOptions) -> str:
    """The network's name, ``none``, ``host`` or ``container:ID``."""
    if wanted := options.network or (options.networks[0].name if options.networks else ""):
        return "bridge" if wanted == "default" else wanted
    if options.isolation == "chroot":
        return "host"
    if options.isolation == "vm" and os.geteuid() != 0:
        return "user"
    return read_settings().default_network if os.geteuid() == 0 else "none"


def _address(text: str, flag: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        raise InvalidInput(f"{text!r} is not an address for {flag}", "", "write one such as 192.0.2.1") from None


def _egress(options: ContainerOptions, mode: str) -> Egress:
    egress = parse_egress(options.egress or "all")
    if options.egress and mode == "host" and egress.mode != "all":
        raise InvalidInput("conflicting options: --egress and --network host", "the host's own network has no rules of ours", "use a bridge")
    return egress


def _ports(options: ContainerOptions, config: ExecutionConfig) -> tuple[PortMapping, ...]:
    found = list(with_addresses(options.ports, options.publish_addresses))
    if options.publish_all:
        addresses = options.publish_addresses or read_settings().publish_addresses
        known = {(mapping.container_port, mapping.protocol) for mapping in found}
        for text in dict.fromkeys((*(config.exposed_ports or {}), *options.expose)):
            port, _, protocol = text.partition("/")
            if (int(port), protocol or "tcp") not in known:
                found.append(PortMapping(int(port), protocol or "tcp", addresses))  # type: ignore[arg-type]
    return tuple(found)


def _chosen(mapping: PortMapping) -> PortMapping:
    """With one port of the host: a hypervisor would take any that is free and tell nobody. Raises Unavailable."""
    if mapping.host_port and not mapping.last_host_port:
        return mapping
    kind = socket.SOCK_DGRAM if mapping.protocol == "udp" else socket.SOCK_STREAM
    addresses = [address for address in mapping.host_addresses if ":" not in address]
    for port in range(mapping.host_port, (mapping.last_host_port or mapping.host_port) + 1):
        with ExitStack() as stack, suppress(OSError):
            for address in addresses:
                tried = stack.enter_context(socket.socket(socket.AF_INET, kind))
                tried.bind((address, port))
                port = tried.getsockname()[1]
            return replace(mapping, host_port=port, last_host_port=0)
    raise Unavailable(f"port {mapping.container_port} cannot be published", "every port of the range is taken", "name another range")


def with_addresses(mappings: Sequence[PortMapping], default: tuple[str, ...] = ()) -> tuple[PortMapping, ...]:
    """The mappings, published at the default addresses, or where the configuration says, when they say nothing themselves."""
    addresses = default or (read_settings().publish_addresses if mappings else ())
    return tuple(mapping if mapping.host_addresses else replace(mapping, host_addresses=addresses) for mapping in mappings)


def attach(
    connection: sqlite3.Connection, records: NetworkRecords, container_id: str, options: ContainerOptions, network: Network
) -> Network:
    """The same with the container's places on its networks, taken in the caller's transaction. Raises NotFound, Conflict."""
    if network.mode != "own":
        return network
    wanted = options.networks or (NetworkOption(_wanted(options)),)
    attachments: list[Attachment] = []
    egress, dns = network.egress, network.dns
    for number, option in enumerate(wanted):
        record = find_or_default(connection, records, option.name)
        if record.config.driver in ("host", "none"):
            raise InvalidInput(f"container cannot be connected to network {record.name} and others", "", "leave the others out")
        attachments.append(records.attach(connection, record, container_id, option, random_mac(), f"eth{number}"))
        egress = narrower(egress, record.config.egress)
        dns = dns or record.config.dns
    if egress.mode != "all":
        refuse_unruled(attachments)
    return replace(network, attachments=tuple(attachments), egress=egress, dns=dns)


def refuse_unruled(attachments: Sequence[Attachment]) -> None:
    """Raise InvalidInput for interfaces whose packets pass no rule of ours, which no egress could hold."""
    for attachment in attachments:
        if attachment.driver == "macvlan":
            raise InvalidInput(f"--egress cannot hold on network {attachment.network}", "what a macvlan sends passes no rule", "use a bridge")


def find_or_default(connection: sqlite3.Connection, records: NetworkRecords, name: str) -> NetworkRecord:
    """A network by name or id; the default one is made when it is first needed."""
    if name in (DEFAULT_NETWORK, "default"):
        known = connection.execute("SELECT 1 FROM network WHERE name = ?", (DEFAULT_NETWORK,)).fetchone()
        if not known:
            config = complete(NetworkConfig(name=DEFAULT_NETWORK), connection, records)
            return records.create(config, time.time_ns(), connection)
        name = DEFAULT_NETWORK
    return records.find(name, connection)


def complete(config: NetworkConfig, connection: sqlite3.Connection, records: NetworkRecords) -> NetworkConfig:
    """What was asked for with subnets and gateways that are free on this machine. Raises InvalidInput, BulleError."""
    from bulle.engine.subnets import completed

    with RouteSocket() as route:
        return completed(config, records.subnets(connection), route.destinations(), read_settings(), first=int(table_name(records.home)[-8:], 16))
