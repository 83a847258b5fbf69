"""Rows of the tables ``network`` and ``endpoint``: networks, and the addresses that containers have on them from ``create`` to ``rm``.

Addresses are given in the transaction that makes the container, each network's in turn (the next one after the last given), so that an address is
not soon another container's. Nothing has to be given back when a container ends or is killed: its row's end frees them.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any, cast

import msgspec

from bulle.errors import BulleError, Conflict, InvalidInput, NotFound
from bulle.model.network import Attachment, NetworkConfig, NetworkOption
from bulle.records.database import Database

_COLUMNS = "id, created_at_ns, device, config"
_configs = msgspec.json.Decoder(NetworkConfig)
_SEARCHED = 1 << 20  # addresses that are looked at before a network counts as full


class NetworkRecord(msgspec.Struct, frozen=True):
    """One network; ``device`` is its bridge on the host (or the parent of its macvlans), empty for ``host`` and ``none``."""

    id: str
    created_at_ns: int
    device: str
    config: NetworkConfig

    @property
    def name(self) -> str:
        """Its name."""
        return self.config.name


class Endpoint(msgspec.Struct, frozen=True):
    """One container's place on one network; addresses without a prefix, empty for a family that the network has not."""

    network_id: str
    container_id: str
    ipv4: str
    ipv6: str


class NetworkRecords:
    """Making, finding and removing networks, and the places of containers on them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def home(self) -> Path:
        """Whose networks they are."""
        return self._database.path.parent

    def create(self, config: NetworkConfig, created_at_ns: int, connection: sqlite3.Connection | None = None) -> NetworkRecord:
        """A new network. Raises Conflict for a name that is taken, or a subnet that overlaps another network's."""
        if connection is None:
            with self._database.transaction() as own:
                return self.create(config, created_at_ns, own)
        identifier = secrets.token_hex(32)
        device = {"bridge": f"bulle{identifier[:8]}", "macvlan": config.parent}.get(config.driver, "")
        if connection.execute("SELECT 1 FROM network WHERE name = ?", (config.name,)).fetchone():
            raise Conflict(f"network with name {config.name} already exists", "", "choose another name")
        for other in self._all(connection):
            for theirs in other.config.subnets:
                for ours in config.subnets:
                    if _overlap(ours, theirs):
                        raise Conflict(
                            f"the subnet {ours} cannot be used", f"it overlaps {theirs} of network {other.name}", "choose another with --subnet"
                        )
        made = NetworkRecord(identifier, created_at_ns, device, config)
        connection.execute(
            f"INSERT INTO network (name, {_COLUMNS}) VALUES (?, ?, ?, ?, ?)",
            (config.name, identifier, created_at_ns, device, msgspec.json.encode(config)),
        )
        return made

    def all(self) -> list[NetworkRecord]:
        """Every network, oldest first."""
        return self._all(self._database.connection())

    def subnets(self, connection: sqlite3.Connection) -> list[str]:
        """The subnets of all networks."""
        return [subnet for record in self._all(connection) for subnet in record.config.subnets]

    @staticmethod
    def _all(connection: sqlite3.Connection) -> list[NetworkRecord]:
        return [_record(row) for row in connection.execute(f"SELECT {_COLUMNS} FROM network ORDER BY created_at_ns")]

    def find(self, name: str, connection: sqlite3.Connection | None = None) -> NetworkRecord:
        """By id, name or unambiguous beginning of an id. Raises NotFound."""
        connection = connection or self._database.connection()
        rows = connection.execute(f"SELECT {_COLUMNS} FROM network WHERE name = ? OR id = ?", (name, name)).fetchall()
        if not rows and name and not set(name) - set("0123456789abcdef"):
            rows = connection.execute(f"SELECT {_COLUMNS} FROM network WHERE id >= ? AND id < ? LIMIT 2", (name, name + "g")).fetchall()
            if len(rows) > 1:
                raise Conflict(f"several networks' ids begin with {name}", "", "give more of the id, or the name")
        if not rows:
            raise NotFound(f"network {name} not found", "", "`bulle network ls` lists them, `bulle network create` makes one")
        return _record(rows[0])

    def endpoints(self, network_id: str) -> list[Endpoint]:
        """Every container's place on a network, also of those that do not run."""
        rows = self._database.rows("SELECT network_id, container_id, ipv4, ipv6 FROM endpoint WHERE network_id = ?", (network_id,))
        return [Endpoint(*(str(value or "") for value in row)) for row in rows]

    def delete(self, record: NetworkRecord) -> None:
        """Remove a network. Raises Conflict where containers are on it, running or not."""
        with self._database.transaction() as connection:
            count = connection.execute("SELECT count(*) FROM endpoint WHERE network_id = ?", (record.id,)).fetchone()[0]
            if count:
                raise Conflict(
                    f"network {record.name} has active endpoints",
                    f"{count} container{'s are' if count > 1 else ' is'} on it",
                    f"`bulle network inspect {record.name}` names them; remove them, or disconnect them",
                )
            connection.execute("DELETE FROM network WHERE id = ?", (record.id,))

    def attach(
        self, connection: sqlite3.Connection, record: NetworkRecord, container_id: str, option: NetworkOption, mac: str, interface: str
    ) -> Attachment:
        """Give a container its place on a network, in the caller's transaction. Raises Conflict for an address that is taken."""
        chosen = [self._address(connection, record, number, option) for number in range(len(record.config.subnets))]
        by_version = {ip_interface(cidr).version: str(ip_interface(cidr).ip) for cidr in chosen}
        try:
            connection.execute(
                "INSERT INTO endpoint (network_id, container_id, ipv4, ipv6) VALUES (?, ?, ?, ?)",
                (record.id, container_id, by_version.get(4), by_version.get(6)),
            )
        except sqlite3.IntegrityError as error:
            raise Conflict(f"the container is already on network {record.name}", "", "disconnect it first") from error
        config = record.config
        return Attachment(
            network_id=record.id,
            network=record.name,
            device=record.device,
            interface=interface,
            mac=option.mac or mac,
            addresses=tuple(chosen),
            gateways=() if config.internal else config.gateways,
            names=option.aliases,
            driver=config.driver,
            mtu=config.mtu,
        )

    def detach(self, connection: sqlite3.Connection, network_id: str, container_id: str) -> bool:
        """Free a container's place; False where it had none."""
        return connection.execute("DELETE FROM endpoint WHERE network_id = ? AND container_id = ?", (network_id, container_id)).rowcount > 0

    def _address(self, connection: sqlite3.Connection, record: NetworkRecord, number: int, option: NetworkOption) -> str:
        """The CIDR of an address in one of the network's subnets: the one that was asked for, or the next free one."""
        config = record.config
        subnet = ip_network(config.subnets[number])
        column = f"ipv{subnet.version}"
        gateway = config.gateways[number] if number < len(config.gateways) else ""
        wanted = option.ipv4 if subnet.version == 4 else option.ipv6
        if wanted:
            address = ip_address(wanted)
            if address not in subnet:
                raise InvalidInput(f"{wanted} is not an address of network {record.name}", f"its subnet is {subnet}", "choose one of those")
            if str(address) == gateway:
                raise Conflict(f"{wanted} is the gateway of network {record.name}", "", "choose another address")
            if str(address) in _reserved(subnet, gateway):
                raise InvalidInput(f"{wanted} is the first or last address of {subnet}", "no container can have it", "choose another address")
            holder = connection.execute(
                f"SELECT container.name FROM endpoint JOIN container ON container.id = container_id WHERE network_id = ? AND {column} = ?",
                (record.id, str(address)),
            ).fetchone()
            if holder:
                raise Conflict(f"{wanted} is taken on network {record.name}", f"container {holder[0]} has it", "choose another address")
            return f"{address}/{subnet.prefixlen}"
        given = ip_network(config.ip_ranges[number]) if number < len(config.ip_ranges) and config.ip_ranges[number] else subnet
        counter = f"last_{column}"
        (last,) = connection.execute(f"SELECT {counter} FROM network WHERE id = ?", (record.id,)).fetchone()
        size = min(given.num_addresses, 1 << 62)
        reserved = _reserved(subnet, gateway)
        for step in range(1, min(size, _SEARCHED) + 1):
            offset = (last + step) % size
            text = str(given[offset])
            if text in reserved:
                continue
            if not connection.execute(f"SELECT 1 FROM endpoint WHERE network_id = ? AND {column} = ?", (record.id, text)).fetchone():
                connection.execute(f"UPDATE network SET {counter} = ? WHERE id = ?", (offset, record.id))
                return f"{text}/{subnet.prefixlen}"
        raise BulleError(f"no address is left on network {record.name}", f"all of {given} are taken", "remove containers, or make a larger network")


def _reserved(subnet: IPv4Network | IPv6Network, gateway: str) -> set[str]:
    """Addresses that no container gets: the network's own, the broadcast and the gateway's."""
    if subnet.version == 4 and subnet.prefixlen < 31:
        return {str(subnet.network_address), str(subnet.broadcast_address), gateway}
    return {str(subnet.network_address), gateway}


def _overlap(one: str, other: str) -> bool:
    first, second = ip_network(one), ip_network(other)
    return first.version == second.version and first.overlaps(cast("Any", second))


def free_subnet(candidates: Sequence[str], taken: Iterable[str]) -> str:
    """The first of the candidates that overlaps nothing that is taken (CIDRs). Raises BulleError."""
    used = list(taken)
    for candidate in candidates:
        if not any(_overlap(candidate, other) for other in used):
            return candidate
    raise BulleError("no subnet is free for the network", "all that Bulle chooses from overlap a route of this machine", "give one with --subnet")


def _record(row: tuple[object, ...]) -> NetworkRecord:
    identifier, created, device, config = cast("tuple[str, int, str, bytes]", row)
    return NetworkRecord(identifier, created, device, _configs.decode(config))
