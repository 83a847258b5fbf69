"""Ports of the host that replicas share: held once for each group, and led to those of its members that are in balance.

A group is a name that several containers give to the same port (:class:`bulle.model.network.PortMapping`); who has another name, or none, does not
get it. The kernel chooses among the replicas (:mod:`bulle.network.ruleset`), a relay of the keeper where the kernel cannot. A connection stays where
it is until it ends, also when its replica is taken out of the balance. Called by the keeper and its members alone.
"""

from __future__ import annotations

import random
import re
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from bulle.errors import Conflict
from bulle.model.network import PortMapping, PublishedPort
from bulle.network import ruleset
from bulle.network.loop import Loop
from bulle.network.relay import Relay, UdpRelay, relay_of
from bulle.network.reservations import reserve
from bulle.network.rules import Balance, Replica, Rules

if TYPE_CHECKING:
    from bulle.network.members import Member

_Key = tuple[str, str, int]


class _Place(NamedTuple):
    """A member of a group, and which of its ports is meant."""

    member: Member
    container_port: int


class _SharedPort:
    """One port of one address; ``places`` has the group's members, in balance or not, by container id."""

    def __init__(self, group: str, published: PublishedPort, bound: socket.socket | None, loop: Loop) -> None:
        self.group = group
        self.protocol, self.host_address, self.host_port = published.protocol, published.host_address, published.host_port
        self.bound = bound
        self.is_sticky = False
        self.places: dict[str, _Place] = {}
        self.relayed: tuple[Replica, ...] = ()
        """Whom the relay leads to."""
        self.relay: Relay | UdpRelay | None = None
        if ":" in self.host_address and bound is not None:
            self.relay = relay_of(published.protocol, bound, loop, self._choose)

    def _choose(self, client: str) -> tuple[str, int] | None:
        if not self.relayed:
            return None
        number = random.randrange(len(self.relayed))
        if self.is_sticky:
            number = ruleset.places(tuple(replica.name for replica in self.relayed))[ruleset.share_of(client)]
        return self.relayed[number].address, self.relayed[number].port

    def balance(self) -> Balance:
        """How the kernel is to lead now; notes how the relay does."""
        ready = sorted((place for place in self.places.values() if place.member.standing == "ready"), key=lambda place: place.member.name)
        version = 6 if ":" in self.host_address else 4
        direct = [
            Replica(_lasting(one.name), one.address(version), port, one.listens(port)) for one, port in ready
        ]  # fmt: skip
        self.relayed = tuple(replica._replace(address=place.member.any_address) for replica, place in zip(direct, ready, strict=True))
        needs_relay = self.host_address == "::1" or not all(replica.address for replica in direct)
        return Balance(self.protocol, self.host_address, self.host_port, tuple(direct), self.is_sticky, needs_relay)

    def close(self) -> None:
        """Give the port back."""
        if self.relay is not None:
            self.relay.close()
        if self.bound is not None:
            self.bound.close()


class SharedPorts:
    """All of a home."""

    def __init__(self, rules: Rules, loop: Loop) -> None:
        self._rules = rules
        self._loop = loop
        self._ports: dict[_Key, _SharedPort] = {}

    def join(self, member: Member, mapping: PortMapping) -> tuple[PublishedPort, ...]:
        """Have a container publish a port with its group, whose first takes it. Raises Conflict where another has it."""
        joined = {}
        for address in mapping.host_addresses:
            port = self._ports.get((mapping.protocol, address, mapping.host_port))
            if port is not None and port.group == mapping.shared:
                if member.container_id in port.places:
                    raise Conflict(f"port {mapping.host_port}/{mapping.protocol} is already taken", "", "")
                joined[address] = port
        missing = tuple(address for address in mapping.host_addresses if address not in joined)
        taken = reserve(replace(mapping, host_addresses=missing), beside=bool(joined)) if missing else []
        for published, bound in taken:
            port = joined[published.host_address] = _SharedPort(mapping.shared, published, bound, self._loop)
            self._ports[_key(published)] = port
        for port in joined.values():
            port.is_sticky = mapping.balance == "sticky"
            port.places[member.container_id] = _Place(member, mapping.container_port)
        addresses = [address for address in mapping.host_addresses if address in joined]
        made = tuple(PublishedPort(address, mapping.host_port, mapping.container_port, mapping.protocol) for address in addresses)
        try:
            self._rules.balance([port.balance() for port in joined.values()])
        except BaseException:
            self.leave(member, made)
            raise
        self._rules.forget_datagrams([published for published, _bound in taken])
        return made

    def leave(self, member: Member, ports: Sequence[PublishedPort]) -> None:
        """A container publishes them no longer; who was the last of its group gives them back."""
        standing: list[_SharedPort] = []
        gone: list[_SharedPort] = []
        for key in map(_key, ports):
            port = self._ports.get(key)
            if port is None or port.places.pop(member.container_id, None) is None:
                continue
            (standing if port.places else gone).append(port)
        if not standing and not gone:
            return
        self._rules.balance([port.balance() for port in standing], [port.balance() for port in gone])
        addresses = [address for address in (member.address(4), member.address(6)) if address]
        for address in addresses:
            self._rules.forget_datagrams(ports, address)
        for port in standing:
            if isinstance(port.relay, UdpRelay):
                for address in addresses:
                    port.relay.forget(address)
        for port in gone:
            del self._ports[port.protocol, port.host_address, port.host_port]
            port.close()

    def refresh(self, member: Member) -> None:
        """It is in balance now, or no longer, or reached at another address."""
        balances = [port.balance() for port in self._ports.values() if member.container_id in port.places]
        if balances:
            self._rules.balance(balances)


def _lasting(name: str) -> str:
    """The name of whose place a container is to take, while it is still called ``0123456789ab_NAME``: it is to have that one's clients."""
    return re.sub("^[0-9a-f]{12}_", "", name)


def _key(port: PublishedPort) -> _Key:
    return port.protocol, port.host_address, port.host_port
