"""A container as the keeper knows it: its namespace, its interfaces and the ports that are published for it."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from bulle.errors import BulleError, Conflict
from bulle.model.network import PortMapping, PublishedPort, Standing
from bulle.network.loop import Loop
from bulle.network.protocol import Register
from bulle.network.relay import Relay, UdpRelay, relay_of
from bulle.network.reservations import reserve
from bulle.network.rules import Link, Rules
from bulle.network.sharing import SharedPorts
from bulle.network.sockets import listening

PORTS_NAME = "ports.json"
RANKS: dict[Standing, int] = {"ready": 0, "unready": 1, "withdrawn": 2}
"""Who of several is found by a name: who is in balance; else all that run, since to find one that is not ready says more than to find nobody."""
_ONE_IS_ENOUGH_S = 3.0
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


class Ground(NamedTuple):
    """What published ports stand on. ``holder`` is who has one: the name of a container by protocol and port, or nothing."""

    rules: Rules
    loop: Loop
    shared: SharedPorts
    holder: Callable[[str, int], str]


class Member:
    """One running container. The descriptors are the keeper's own."""

    def __init__(self, request: Register) -> None:
        self.request = request
        self.standing: Standing = "unready"
        self.since_s = time.monotonic()
        self._has_listened = False
        self._seen: set[int] = set()
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

    @property
    def any_address(self) -> str:
        """That at which a relay reaches it."""
        return self.address(4) or self.address(6)

    def publish(self, mapping: PortMapping, ground: Ground) -> None:
        """Publish one mapping. Raises Conflict that names who has the port."""
        attachments = self.network.attachments
        if attachments and not any(one.driver == "bridge" for one in attachments):
            return  # a macvlan's ports are open on its own address
        try:
            if mapping.shared and mapping.host_port and not mapping.last_host_port:
                self.ports += ground.shared.join(self, mapping)
                return
            taken = reserve(mapping)
        except Conflict as error:
            name = ground.holder(mapping.protocol, mapping.host_port)
            if name:
                raise Conflict(error.args[0], f"container {name} publishes it", f"publish another, or stop {name}") from error
            raise
        made = []
        for published, bound in taken:
            is_six = ":" in published.host_address
            relay = self._relay(published, bound, ground.loop) if is_six and bound is not None else None
            self._held[published] = (bound, relay)
            self.ports += (published,)
            target = self.address(6 if is_six else 4)
            if target:
                made.append((published, target))
        ground.rules.publish(self.container_id, made)

    def publish_new(self, wanted: tuple[PortMapping, ...], ground: Ground) -> None:
        """Publish what is new in all that the container is to publish, or nothing; a keeper that took over amid it has done so already."""
        before = self.ports
        try:
            for mapping in (Counter(wanted) - Counter(self.network.ports)).elements():
                self.publish(mapping, ground)
        except BaseException:
            self.retract(tuple(port for port in self.ports if port not in before), ground)
            raise
        self.wants(wanted)

    def wants(self, ports: tuple[PortMapping, ...]) -> None:
        """Note what the container is to publish."""
        self.network = msgspec.structs.replace(self.network, ports=ports)

    def _relay(self, published: PublishedPort, bound: socket.socket, loop: Loop) -> Relay | UdpRelay | None:
        """Connections over IPv6 that no rule leads on (from ::1, or to a container that has only IPv4) are carried by the keeper."""

        def choose(_client: str) -> tuple[str, int]:
            return self.any_address, published.container_port

        return relay_of(published.protocol, bound, loop, choose)

    @contextmanager
    def moving(self, ground: Ground) -> Iterator[None]:
        """Lead what is published to where the container can be reached after the block."""
        before = self._targets()
        yield
        after = self._targets()
        if before != after:
            ground.rules.retract(self.container_id, [(port, target) for port, target in before.items() if target])
            ground.rules.publish(self.container_id, [(port, target) for port, target in after.items() if target])
        ground.shared.refresh(self)

    def _targets(self) -> dict[PublishedPort, str]:
        return {port: self.address(6 if ":" in port.host_address else 4) for port in self._held}

    def retract(self, ports: tuple[PublishedPort, ...], ground: Ground) -> None:
        """Give ports back."""
        going = [port for port in ports if port in self._held]
        if going:
            targets = self._targets()
            ground.rules.retract(self.container_id, [(port, targets[port]) for port in going if targets[port]])
        for port in going:
            bound, relay = self._held.pop(port)
            if relay is not None:
                relay.close()
            if bound is not None:
                bound.close()
        ground.shared.leave(self, [port for port in ports if port in self.ports and port not in going])
        self.ports = tuple(port for port in self.ports if port not in ports)

    def looks_ready(self) -> bool:
        """Whether it listens at the ports that it shares, as far as that can be seen; after a while one of them is enough. Once is for ever."""
        if not self._has_listened:
            wanted = {(port.protocol, port.container_port) for port in self.network.ports if port.shared and port.protocol in ("tcp", "udp")}
            found = wanted & listening(self.request.pid) if self.request.listens and wanted else wanted
            self._has_listened = found == wanted or (bool(found) and time.monotonic() > self.since_s + _ONE_IS_ENOUGH_S)
        return self._has_listened

    def listens(self, port: int) -> bool:
        """Whether it was seen to listen at a TCP port."""
        if port not in self._seen and self.request.listens and ("tcp", port) in listening(self.request.pid):
            self._seen.add(port)
        return port in self._seen

    def rule_links(self) -> list[Link]:
        """Its interfaces as the rules know them."""
        found = []
        for attachment in self.network.attachments:
            if attachment.driver == "bridge":
                addresses = tuple(cidr.partition("/")[0] for cidr in attachment.addresses)
                found.append(Link(attachment.network_id, self.links[attachment.network_id], attachment.mac, addresses))
        return found

    def names(self) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
        """What it is called on each network, and its addresses there."""
        own = [name for name in (self.name, self.container_id[:12]) if name]
        return {
            attachment.network_id: ((*own, *attachment.names), tuple(cidr.partition("/")[0] for cidr in attachment.addresses))
            for attachment in self.network.attachments
        }

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
