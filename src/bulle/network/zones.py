"""Who is called what on which network: names to addresses and back.

Filled by the keeper (through :mod:`bulle.network.dns`) as containers start, stop and change; asked with the networks that somebody shares. Names are
kept in the wire form of :mod:`bulle.network.dns_messages`, each alone and below its network's name (``db`` and ``db.front``).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence

from bulle.network.dns_messages import labels, wire

Names = Mapping[str, tuple[Sequence[str], Sequence[str]]]
"""Network ids to the names and the addresses that a container has there."""


class Zones:
    """All names of all networks; :meth:`find` and :meth:`name_of` see only those of the networks that they are given."""

    def __init__(self) -> None:
        self._members: dict[str, tuple[Names, str]] = {}
        self._ranks: dict[str, int] = {}
        self._network_names: dict[str, str] = {}
        self._addresses: dict[str, dict[bytes, dict[str, tuple[bytes, ...]]]] = {}
        self._owners: dict[str, dict[bytes, str]] = {}

    def set_names(self, container_id: str, names: Names, own_name: str, rank: int = 0) -> None:
        """A container's names on each of its networks, besides its own name and its short id, which it has everywhere; what was before is gone.

        Of several who are called the same, only those of the lowest rank are found.
        """
        self.forget_names(container_id)
        self._ranks[container_id] = rank
        self._members[container_id] = (dict(names), own_name)
        for network_id in names:
            self._enter(network_id, container_id)

    def forget_names(self, container_id: str) -> None:
        """A container is called nothing any longer; harmless where it was not known."""
        names, _ = self._members.get(container_id, ({}, ""))
        for network_id in names:
            self._leave(network_id, container_id)
        self._members.pop(container_id, None)
        self._ranks.pop(container_id, None)

    def set_network(self, network_id: str, name: str) -> None:
        """A network's own name, for ``container.network`` and for the names of addresses; its id where nothing was said."""
        members = [container_id for container_id, (names, _) in self._members.items() if network_id in names]
        for container_id in members:
            self._leave(network_id, container_id)
        self._network_names[network_id] = name
        for container_id in members:
            self._enter(network_id, container_id)

    def forget_network(self, network_id: str) -> None:
        """The network is no more; harmless where it was not known."""
        self._network_names.pop(network_id, None)

    def find(self, networks: Sequence[str], name: bytes) -> list[bytes] | None:
        """Packed addresses of those of the lowest rank who are called so on the first of these networks that knows the name, None if none does."""
        for network_id in networks:
            found = self._addresses.get(network_id, {}).get(name)
            if found is not None:
                lowest = min(map(self._ranks.__getitem__, found))
                return [address for container_id, addresses in found.items() if self._ranks[container_id] == lowest for address in addresses]
        return None

    def name_of(self, networks: Sequence[str], reverse_name: bytes) -> bytes | None:
        """The name of an address that was asked for as ``4.3.2.1.in-addr.arpa``; None unless somebody has it on one of these networks."""
        address = address_in(reverse_name)
        if address is None:
            return None
        for network_id in networks:
            owner = self._owners.get(network_id, {}).get(address)
            if owner is not None:
                own_name = self._members[owner][1]
                network = self._network_names.get(network_id, network_id)
                return wire(f"{own_name}.{network}") or wire(f"{owner[:12]}.{network}") or wire(owner[:12])
        return None

    def _keys(self, network_id: str, container_id: str) -> Iterator[bytes]:
        """All wire names by which a container is known on a network."""
        names, own_name = self._members[container_id]
        network = self._network_names.get(network_id, network_id)
        for name in {own_name, container_id[:12], *names[network_id][0]}:
            for key in (wire(name), wire(f"{name}.{network}")):
                if key is not None:
                    yield key

    def _packed(self, network_id: str, container_id: str) -> tuple[bytes, ...]:
        return tuple(ipaddress.ip_address(text.partition("/")[0]).packed for text in self._members[container_id][0][network_id][1])

    def _enter(self, network_id: str, container_id: str) -> None:
        addresses = self._packed(network_id, container_id)
        zone = self._addresses.setdefault(network_id, {})
        for key in self._keys(network_id, container_id):
            zone.setdefault(key, {})[container_id] = addresses
        owners = self._owners.setdefault(network_id, {})
        for address in addresses:
            owners[address] = container_id

    def _leave(self, network_id: str, container_id: str) -> None:
        zone = self._addresses[network_id]
        for key in self._keys(network_id, container_id):
            found = zone.get(key, {})
            found.pop(container_id, None)
            if not found:
                zone.pop(key, None)
        owners = self._owners[network_id]
        for address in self._packed(network_id, container_id):
            if owners.get(address) == container_id:  # it may be another's since
                del owners[address]
        if not zone:
            self._addresses.pop(network_id)
        if not owners:
            self._owners.pop(network_id)


def address_in(reverse_name: bytes) -> bytes | None:
    """The packed address that a name below ``in-addr.arpa`` or ``ip6.arpa`` speaks of, None where it speaks of none. RFC 1035, 3.5; RFC 3596, 2.5"""
    *digits, zone, top = (b"", b"", *labels(reverse_name))[-34:]
    digits = [digit for digit in digits if digit]
    try:
        if (zone, top) == (b"in-addr", b"arpa") and len(digits) == 4:
            return ipaddress.IPv4Address(b".".join(reversed(digits)).decode("ascii")).packed
        if (zone, top) == (b"ip6", b"arpa") and len(digits) == 32 and all(len(digit) == 1 for digit in digits):
            return bytes.fromhex(b"".join(reversed(digits)).decode("ascii"))
    except ValueError:
        pass
    return None
