"""From what a service says of networks, names and ports to fields of :class:`~bulle.model.container.ContainerOptions`. Pure."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, cast

from msgspec.structs import replace

from bulle.compose.model import Project, Service
from bulle.compose.service_parts import Port, ServiceNetwork
from bulle.compose.verdicts import refused
from bulle.model.network import NetworkOption, PortMapping, Protocol

SHARED = "service:"


def network_fields(project: Project, service: Service, container_of: Callable[[str], str]) -> dict[str, Any]:
    """The fields; ``container_of`` names the container of a service whose network is shared. Raises InvalidInput."""
    mode = network_mode(project, service)
    if mode.startswith(SHARED):
        return {"network": f"container:{container_of(mode.removeprefix(SHARED))}"}
    fields: dict[str, Any] = {
        "network": mode,
        "dns": service.dns,
        "dns_search": service.dns_search,
        "dns_options": service.dns_opt,
        "extra_hosts": tuple(_host(entry) for entry in service.extra_hosts),
        "hostname": ".".join(filter(None, (service.hostname or (service.name if service.domainname else ""), service.domainname))),
        "expose": tuple(one if "/" in one else f"{one}/tcp" for one in service.expose),
    }
    if mode:
        return fields if mode.startswith("container:") or not service.ports else fields | {"ports": port_mappings(project, service)}
    options = tuple(_options(project, service))
    return fields | {"network": options[0].name if options else "none", "networks": options, "ports": port_mappings(project, service)}


def network_mode(project: Project, service: Service) -> str:
    """``host``, ``none``, ``service:NAME``, ``container:NAME`` or the name of a network of the engine; empty where the file's networks hold."""
    if service.isolation == "chroot" and not service.network_mode:
        return "host"
    if service.isolation == "vm" and os.geteuid() != 0 and not service.network_mode:
        return "user"
    if service.network_mode == "default":
        return "bridge"
    return service.network_mode or ("" if networks_of(project, service) else "none")


def networks_of(project: Project, service: Service) -> dict[str, ServiceNetwork]:
    """The networks that a service is on by their keys, those of the highest priority first."""
    if service.network_mode or service.isolation == "chroot" or (service.isolation == "vm" and os.geteuid() != 0):
        return {}
    found = service.networks or ({"default": ServiceNetwork()} if "default" in project.networks else {})
    return dict(sorted(found.items(), key=lambda one: (-one[1].gw_priority, -one[1].priority, one[0])))


def _options(project: Project, service: Service) -> Iterator[NetworkOption]:
    for position, (key, one) in enumerate(networks_of(project, service).items()):
        if key not in project.networks:
            raise refused(project, ("services", service.name, "networks", key), "", "the file names no such network below networks")
        mac = one.mac_address or (service.mac_address if position == 0 else "")
        aliases = dict.fromkeys((service.name, *one.aliases, *_linked_names(project, service, key)))
        yield NetworkOption(project.networks[key].name, one.ipv4_address, one.ipv6_address, mac.lower(), tuple(aliases))


def _linked_names(project: Project, service: Service, network: str) -> Iterator[str]:
    """What others that link to this service call it, on a network that both are on."""
    for other in project.services.values():
        for link in other.links:
            name, colon, alias = link.partition(":")
            if colon and name == service.name and network in networks_of(project, other):
                yield alias


def _host(entry: str) -> tuple[str, str]:
    name, _, address = entry.partition("=")
    return name, address.strip("[]")


def port_mappings(project: Project, service: Service) -> tuple[PortMapping, ...]:
    """Its published ports."""
    return tuple(_port(project, service, number, port) for number, port in enumerate(service.ports))


def _port(project: Project, service: Service, number: int, port: Port) -> PortMapping:
    first, _, last = port.published.partition("-")
    try:
        lowest, highest = int(first or 0), int(last or 0)
    except ValueError:
        raise refused(project, ("services", service.name, "ports", number), port.published, "write a port or a range of ports") from None
    if port.protocol not in ("tcp", "udp", "sctp"):
        raise refused(project, ("services", service.name, "ports", number), port.protocol, "use tcp, udp or sctp")
    addresses = (port.host_ip.strip("[]"),) if port.host_ip else ()
    mapping = PortMapping(port.target, cast("Protocol", port.protocol), addresses, lowest, highest if highest > lowest else 0)
    # One port for all replicas; of a range, or of any, each takes its own.
    is_one = bool(lowest) and not mapping.last_host_port
    return replace(mapping, shared=f"{project.name}/{service.name}", balance=service.balance) if is_one else mapping
