"""A container as the keeper knows it: its namespace, its interfaces and the ports that are published for it."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from bulle.errors import BulleError, Conflict
from bulle.model.network import PortMapping, PublishedPort
from bulle.network.loop import Loop
from bulle.network.protocol import Register
from bulle.network.relay import Relay, UdpRelay
from bulle.network.reservations import reserve
from bulle.network.rules import Rules

PORTS_NAME = "ports.json"
_published = msgspec.json.Decoder(tuple[PublishedPort, ...])


def published_ports(directory: str) -> tuple[PublishedPort, ...]:
    """The ports of a container, from its host directory; they stand only while it runs."""
    try:
        return _published.decode(Path(directory, PORTS_NAME).read_bytes())
    except (OSError, msgspec.DecodeError):
        return ()


def as_before(mappings: Sequence[PortMapping], ports: Sequence[PublishedPort]) -> Iterator[PortMapping]:
    """The mappings with the host ports that a keeper before this one chose for them."""
    left = list(ports)
    # Who is free to have any is asked last: it must not be given what another alone may have.
    for mapping in sorted(mappings, key=lambda one: (not one.host_port, one.last_host_port)):
        held = [port for port in left if _can_be(port, mapping)]
        if held:
            mapping = msgspec.structs.replace(mapping, host_port=held[0].host_port, last_host_port=0)
            left = [port for port in left if not _can_be(port, mapping)]
        yield mapping


def _can_be(port: PublishedPort, mapping: PortMapping) -> bool:
    first = mapping.host_port
    same = (port.container_port, port.protocol) == (mapping.container_port, mapping.protocol) and port.host_address in mapping.host_addresses
    return same and (not first or first <= port.host_port <= (mapping.last_host_port or first))


class Member:
    """One running container. The descriptors are the keeper's own."""

    def __init__(self, request: Register) -> None:
        self.container_id = request.container_id
        self.name = request.name
        self.directory = request.directory
        self.network = request.network
        self.links: dict[str, str] = {}
        """The host's end of each interface, by network id."""
        self.ports: tuple[PublishedPort, ...] = ()
        self._held: dict[PublishedPort, tuple[socket.socket | None, Relay | UdpRelay | None]] = {}
        try:
            self.pidfd = os.pidfd_open(request.pid)
            self.namespace_fd = os.open(f"/proc/{request.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise BulleError("the container's network could not be made", "its first process has ended", "see `bulle logs`") from error

    def address(self, version: int) -> str:
        """Where its published ports lead: its address on the first network that leads out of itself, else on the first bridge; or none."""
        bridges = [one for one in self.network.attachments if one.driver == "bridge"]
        for attachment in [one for one in bridges if one.gateways] or bridges:
            for cidr in attachment.addresses:
                if (":" in cidr) == (version == 6):
                    return cidr.partition("/")[0]
        return ""

    def publish(self, mapping: PortMapping, rules: Rules, loop: Loop, holder: Callable[[str, int], str]) -> None:
        """Publish one mapping. Raises Conflict that names who has the port."""
        attachments = self.network.attachments
        if attachments and not any(one.driver == "bridge" for one in attachments):
            return  # a macvlan's ports are open on its own address
        try:
            taken = reserve(mapping)
        except Conflict as error:
            name = holder(mapping.protocol, mapping.host_port)
            if name:
                raise Conflict(error.args[0], f"container {name} publishes it", f"publish another, or stop {name}") from error
            raise
        made = []
        for published, bound in taken:
            is_six = ":" in published.host_address
            relay = self._relay(published, bound, loop) if is_six and bound is not None else None
            self._held[published] = (bound, relay)
            self.ports += (published,)
            target = self.address(6 if is_six else 4)
            if target:
                made.append((published, target))
        rules.publish(self.container_id, made)

    def publish_new(self, wanted: tuple[PortMapping, ...], rules: Rules, loop: Loop, holder: Callable[[str, int], str]) -> None:
        """Publish what is new in all that the container is to publish, or nothing; a keeper that took over amid it has done so already."""
        before = self.ports
        try:
            for mapping in (Counter(wanted) - Counter(self.network.ports)).elements():
                self.publish(mapping, rules, loop, holder)
        except BaseException:
            self.retract(tuple(port for port in self.ports if port not in before), rules)
            raise
        self.wants(wanted)

    def wants(self, ports: tuple[PortMapping, ...]) -> None:
        """Note what the container is to publish."""
        self.network = msgspec.structs.replace(self.network, ports=ports)

    def _relay(self, published: PublishedPort, bound: socket.socket, loop: Loop) -> Relay | UdpRelay | None:
        """Connections over IPv6 that no rule leads on (from ::1, or to a container that has only IPv4) are carried by the keeper."""
        target = self.address(4) or self.address(6)
        if published.protocol == "tcp":
            return Relay(loop, bound, (target, published.container_port))
        return UdpRelay(loop, bound, (target, published.container_port)) if published.protocol == "udp" else None

    @contextmanager
    def moving(self, rules: Rules) -> Iterator[None]:
        """Lead what is published to where the container can be reached after the block."""
        before = self._targets()
        yield
        after = self._targets()
        if before != after:
            rules.retract(self.container_id, [(port, target) for port, target in before.items() if target])
            rules.publish(self.container_id, [(port, target) for port, target in after.items() if target])
            for _bound, relay in self._held.values():
                if relay is not None:
                    relay.lead_to(self.address(4) or self.address(6))

    def _targets(self) -> dict[PublishedPort, str]:
        return {port: self.address(6 if ":" in port.host_address else 4) for port in self._held}

    def retract(self, ports: tuple[PublishedPort, ...], rules: Rules) -> None:
        """Give ports back."""
        going = [port for port in ports if port in self._held]
        if going:
            targets = self._targets()
            rules.retract(self.container_id, [(port, targets[port]) for port in going if targets[port]])
        for port in going:
            bound, relay = self._held.pop(port)
            if relay is not None:
                relay.close()
            if bound is not None:
                bound.close()
        self.ports = tuple(port for port in self.ports if port not in going)

    def write_ports(self) -> None:
        """Tell who looks at the container which ports it has."""
        path = Path(self.directory, PORTS_NAME)
        with suppress(OSError):
            if not self.ports:
                path.unlink(missing_ok=True)
                return
            new = path.with_suffix(".new")
            new.write_bytes(msgspec.json.encode(self.ports))
            new.rename(path)

    def close(self) -> None:
        """Close what is held of it."""
        for descriptor in (self.pidfd, self.namespace_fd):
            if descriptor >= 0:
                os.close(descriptor)
        self.pidfd = self.namespace_fd = -1
