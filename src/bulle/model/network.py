"""Networks and what ties a container to them: pure data.

Addresses are text without a prefix (``10.208.0.2``) unless a field says ``CIDR``. A *device* is an interface of the host. What a container holds
for its whole life (its interfaces and addresses) stands in its plan; what it holds while it runs (host ports) is the keeper's.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Protocol = Literal["tcp", "udp", "sctp"]
NetworkDriver = Literal["bridge", "macvlan", "host", "none"]
Standing = Literal["ready", "unready", "withdrawn"]
"""Whether a container that runs is in balance: as a replica of what it serves it is found by its name, and led to by the ports that it shares."""
DEFAULT_NETWORK = "bridge"
"""The network of a container that asks for none, as in Docker."""


class PortMapping(msgspec.Struct, frozen=True):
    """One ``-p``: a port of the host that leads to a port of the container.

    ``host_addresses`` are where it is published, at the same port of each (none: where the configuration says). ``host_port`` 0 takes any that is
    free, ``last_host_port`` the first that is free from ``host_port`` on. Containers whose mappings name the same group in ``shared`` may have the
    same port (``host_port`` then says which): who connects is led to one of those that are in balance, any (``random``) or always the same for one
    address (``sticky``).
    """

    container_port: int
    protocol: Protocol = "tcp"
    host_addresses: tuple[str, ...] = ()
    host_port: int = 0
    last_host_port: int = 0
    shared: str = ""
    balance: Literal["random", "sticky"] = "random"


class PublishedPort(msgspec.Struct, frozen=True):
    """A port that stands: ``host_address`` is ``127.0.0.1``, ``::1``, ``0.0.0.0``, ``::`` or one of the host's own addresses."""

    host_address: str
    host_port: int
    container_port: int
    protocol: Protocol = "tcp"


class Attachment(msgspec.Struct, frozen=True):
    """One interface of a container in one network, for the container's whole life.

    ``device`` is the host's bridge, or the parent of a macvlan; ``interface`` the name inside; ``addresses`` are CIDRs (one of each family at most);
    ``gateways`` stand in the same order, empty where the network has none (internal ones). ``names`` are what others on this network may call it by,
    besides its own name and short id. ``mtu`` 0 leaves it to the kernel.
    """

    network_id: str
    network: str
    device: str
    interface: str
    mac: str
    addresses: tuple[str, ...]
    gateways: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    driver: NetworkDriver = "bridge"
    mtu: int = 0


class Destination(msgspec.Struct, frozen=True):
    """Where a container may go: a name (``pypi.org``, ``*.debian.org``) or a CIDR, and its ports (none: all)."""

    target: str
    ports: tuple[int, ...] = ()


class Egress(msgspec.Struct, frozen=True):
    """What a container may reach outside of its networks, by whatever protocol.

    ``all`` is no rule; ``internet`` everything but private, link-local, shared and metadata addresses and this host; ``allow`` only ``destinations``;
    ``none`` nothing. Containers on its own networks are always in reach.
    """

    mode: Literal["all", "internet", "allow", "none"] = "all"
    destinations: tuple[Destination, ...] = ()


class NetworkConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked of ``network create``, with what it left open filled in.

    ``subnets`` are CIDRs, one of each family at most; ``gateways`` the host's address in each (in the same order); ``ip_ranges`` the CIDRs from which
    addresses are given (empty text: the whole subnet). ``parent`` is the host's device under a macvlan. ``dns`` are servers to ask instead of the
    host's. ``mtu`` 0 leaves it to the kernel.
    """

    name: str
    driver: NetworkDriver = "bridge"
    subnets: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    ip_ranges: tuple[str, ...] = ()
    internal: bool = False
    ipv6: bool = False
    mtu: int = 0
    parent: str = ""
    dns: tuple[str, ...] = ()
    egress: Egress = Egress()
    labels: dict[str, str] = {}
    options: dict[str, str] = {}


class NetworkOption(msgspec.Struct, frozen=True):
    """One ``--network NAME`` of a container, or what ``network connect`` says; empty fields are chosen for it."""

    name: str
    ipv4: str = ""
    ipv6: str = ""
    mac: str = ""
    aliases: tuple[str, ...] = ()
