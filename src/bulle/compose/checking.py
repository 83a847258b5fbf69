"""What can be known to be wrong before anything is changed: options that the engine refuses, names and ports that are taken."""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress

from bulle.compose.attachments import port_mappings
from bulle.compose.deciding import Step
from bulle.compose.model import Note, Project, Service
from bulle.compose.options import container_options
from bulle.compose.replicas import Replicas
from bulle.compose.verdicts import refused
from bulle.engine.container import Container
from bulle.engine.network_settings import read_settings
from bulle.errors import BulleError, Conflict, InvalidInput
from bulle.model.network import PortMapping

_LOOPBACK = ("127.0.0.1", "::1")
_IN_USE = 98  # EADDRINUSE


def check_replicas(project: Project, services: Iterable[Service], scales: Mapping[str, int]) -> None:
    """Whether there can be as many of each. Raises InvalidInput."""
    for name, number in scales.items():
        if name not in project.services:
            raise InvalidInput(f"no such service: {name}", "", f"the app has {', '.join(sorted(project.services))}")
        if number < 0:
            raise InvalidInput(f"service {name} cannot have {number} replicas", "", "give a number from 0 on")
    for service in services:
        if service.container_name and service.replicas > 1:
            why = f"each of its {service.replicas} replicas needs a name of its own; leave it out"
            raise refused(project, ("services", service.name, "container_name"), service.container_name, why)
        if any(one.ipv4_address or one.ipv6_address for one in service.networks.values()) and service.replicas > 1:
            raise refused(project, ("services", service.name, "networks"), "", f"{service.replicas} replicas cannot have one address")


def check_options(replicas: Replicas, services: Collection[Service]) -> None:
    """Whether the engine would make their containers. Raises InvalidInput with file and line."""
    for service in services:
        place = replicas.project.place("services", service.name)
        options = container_options(replicas.project, service, 1)
        try:
            replicas.engine.containers.check(options)
        except BulleError as error:
            raise InvalidInput(f"{place}: service {service.name} cannot be made: {error.brief}", error.details, error.resolution) from None


def check_ports(project: Project, steps: Iterable[Step]) -> None:
    """Whether somebody else has a port that is to be published. Raises Conflict with file and line."""
    waiting = list(steps)
    published: set[tuple[int, str]] | None = None
    for step in waiting:
        if not step.renews or not step.service.ports:
            continue
        if published is None:
            published = {port for other in waiting for one in (*other.kept, *other.outdated, *other.surplus) for port in _published(one)}
        for number, mapping in enumerate(port_mappings(project, step.service)):
            if mapping.host_port and not mapping.last_host_port and (mapping.host_port, mapping.protocol) not in published:
                _check_free(project, step.service, number, mapping)


def _published(container: Container) -> Iterable[tuple[int, str]]:
    return {(one.host_port, one.protocol) for one in container.published_ports()}


def _check_free(project: Project, service: Service, number: int, mapping: PortMapping) -> None:
    for address in mapping.host_addresses or read_settings().publish_addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        kind = socket.SOCK_DGRAM if mapping.protocol == "udp" else socket.SOCK_STREAM
        with suppress(OSError), socket.socket(family, kind) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, kind == socket.SOCK_STREAM)
            try:
                tried.bind((address, mapping.host_port))
            except OSError as error:
                if error.errno == _IN_USE:
                    place = project.place("services", service.name, "ports", number)
                    raise Conflict(
                        f"{place}: port {mapping.host_port} of {address} cannot be published", "somebody else has it", "choose another, or end that"
                    ) from None


def loopback_ports(project: Project, services: Iterable[Service]) -> list[Note]:
    """One note where ports are published for this machine alone because no address is said."""
    if not set(read_settings().publish_addresses) <= set(_LOOPBACK):
        return []
    for service in services:
        for number, port in enumerate(service.ports):
            if not port.host_ip and service.network_mode != "host":
                place = project.place("services", service.name, "ports", number)
                example = f'"0.0.0.0:{port.published or port.target}:{port.target}"'
                text = f"a port without an address is published on 127.0.0.1 alone; write {example} for others to reach it"
                return [Note(place, "ports", text)]
    return []
