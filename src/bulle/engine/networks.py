"""The networks of a home: make them, put containers on them, take them off, remove them; and the ports of running containers."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from bulle.engine import keeping, networking
from bulle.engine.directories import write_hosts
from bulle.errors import BulleError, Conflict, InvalidInput, NotFound, Unsupported
from bulle.linux.netlink import random_mac
from bulle.model.network import DEFAULT_NETWORK, NetworkConfig, NetworkOption, PortMapping, PublishedPort
from bulle.model.run_plan import Network
from bulle.monitor.state import current_state
from bulle.network.devices import remove_bridge
from bulle.network.members import published_ports
from bulle.network.naming import table_name
from bulle.network.protocol import Connect, Disconnect, Forget, Publish, Retract
from bulle.records.containers import ContainerRecord, ContainerRecords
from bulle.records.database import Database
from bulle.records.events import publish
from bulle.records.networks import Endpoint, NetworkRecord, NetworkRecords

if TYPE_CHECKING:
    import builtins

    from bulle.engine.container import Container
    from bulle.engine.pruning import Pruned, PruneFilter

PREDEFINED = (DEFAULT_NETWORK, "host", "none")
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_MOST_INTERFACES = 64


class Networks:
    """The networks of a home. ``bridge``, ``host`` and ``none`` are always there."""

    def __init__(self, home: Path, database: Database) -> None:
        self._home = home
        self._database = database
        self._records = NetworkRecords(database)

    def create(self, config: NetworkConfig) -> NetworkRecord:
        """A network as asked for; what was left open is chosen. Raises InvalidInput, Conflict."""
        if not _NAME.fullmatch(config.name):
            raise InvalidInput(f"invalid network name: {config.name!r}", "", "use letters, digits, _ . - and begin with a letter or digit")
        if config.driver in ("host", "none"):
            raise InvalidInput(f'only one instance of "{config.driver}" network is allowed', "it is there", f"use --network {config.driver}")
        if config.name in (*PREDEFINED, "default", "container"):
            raise Conflict(f"operation is not permitted on predefined {config.name} network", "", "choose another name")
        if config.driver == "macvlan" and not config.parent:
            raise InvalidInput("a macvlan needs a device of this host to stand on", "", "name it with -o parent=eth0")
        with self._database.transaction() as connection:
            record = self._records.create(networking.complete(config, connection, self._records), time.time_ns(), connection)
        publish(self._home, "network", "create", record.id, {"name": record.name, "type": config.driver})
        return record

    def list(self) -> list[NetworkRecord]:
        """All networks; the predefined ones first."""
        with self._database.transaction() as connection:
            for name in PREDEFINED:
                self._find(connection, name)
        found = self._records.all()
        return sorted(found, key=lambda one: (one.name not in PREDEFINED, one.created_at_ns))

    def get(self, name: str) -> NetworkRecord:
        """By name, id or unambiguous beginning of an id. Raises NotFound."""
        if name not in (*PREDEFINED, "default"):
            return self._records.find(name)
        with self._database.transaction() as connection:
            return self._find(connection, name)

    def _find(self, connection: sqlite3.Connection, name: str) -> NetworkRecord:
        if name in ("host", "none") and not connection.execute("SELECT 1 FROM network WHERE name = ?", (name,)).fetchone():
            return self._records.create(NetworkConfig(name=name, driver=name), time.time_ns(), connection)  # type: ignore[arg-type]
        return networking.find_or_default(connection, self._records, name)

    def endpoints(self, record: NetworkRecord) -> builtins.list[tuple[Endpoint, ContainerRecord]]:
        """Who is on a network, running or not."""
        records = {one.id: one for one in ContainerRecords(self._database).all()}
        return [(endpoint, records[endpoint.container_id]) for endpoint in self._records.endpoints(record.id) if endpoint.container_id in records]

    def remove(self, name: str) -> None:
        """Remove a network that no container is on. Raises Conflict, NotFound."""
        record = self.get(name)
        if record.name in PREDEFINED:
            raise Conflict(f"{record.name} is a pre-defined network and cannot be removed", "", "leave it")
        self._records.delete(record)
        if record.config.driver == "bridge" and not keeping.tell(self._home, Forget(record.id, record.device)):
            remove_bridge(record.device)  # a keeper that ends at this very moment knows it no longer
        publish(self._home, "network", "destroy", record.id, {"name": record.name, "type": record.config.driver})

    def rules(self) -> str:
        """The nftables rules that stand for this home's networks, as nft(8) writes them; empty where none do."""
        from bulle.network.rules import Rules

        try:
            return Rules(table_name(self._home)).describe()
        except BulleError as error:
            if "No such file" in error.details:
                return ""
            raise

    def prune(self, chosen: PruneFilter | None = None) -> Pruned:
        """Remove every network that no container is on, of those that the filter takes; says their names."""
        from bulle.engine.pruning import Pruned

        removed = []
        for record in self._records.all():
            if record.name in PREDEFINED or not (chosen is None or chosen.takes(record.created_at_ns, record.config.labels)):
                continue
            try:
                self.remove(record.id)
            except (Conflict, NotFound):
                continue
            removed.append(record.name)
        return Pruned(removed)

    def connect(self, network: str, container: Container, option: NetworkOption) -> None:
        """Put a container on one more network, also while it runs. Raises Conflict, InvalidInput, and Unsupported for a machine that runs."""
        plan = container.plan
        _refuse_running_machine(container, "way to get one more network while it runs", "stop it, connect it, and start it again")
        if plan.network.mode != "own":
            raise Conflict(
                f"container {container.name} cannot be connected to {network}", f"its network is {plan.network.mode}", "make it on a network"
            )
        with self._database.transaction() as connection:
            record = self._find(connection, network)
            if record.config.driver in ("host", "none"):
                raise InvalidInput(f"container cannot be connected to network {record.name}", "it is no network of containers", "use another")
            taken = {attachment.interface for attachment in plan.network.attachments}
            interface = next(name for name in (f"eth{number}" for number in range(_MOST_INTERFACES)) if name not in taken)
            attachment = self._records.attach(connection, record, container.id, option, random_mac(), interface)
            if plan.network.egress.mode != "all":
                networking.refuse_unruled([attachment])
            changed = replace(plan.network, attachments=(*plan.network.attachments, attachment))
            self._change(connection, container, changed)
        try:
            if current_state(container.directory).status == "running":
                keeping.ask(self._home, Connect(container.id, attachment))
        except BulleError:
            with self._database.transaction() as connection:
                self._records.detach(connection, record.id, container.id)
                self._change(connection, container, plan.network)
            raise
        write_hosts(container.plan)
        publish(self._home, "network", "connect", record.id, {"container": container.id, "name": record.name, "type": record.config.driver})

    def disconnect(self, network: str, container: Container) -> None:
        """Take a container off a network, also while it runs. Raises Conflict where it is not on it, and Unsupported for a machine that runs."""
        record = self.get(network)
        attachments = container.plan.network.attachments
        left = tuple(one for one in attachments if one.network_id != record.id)
        if len(left) == len(attachments):
            details = "it is on " + (", ".join(one.network for one in attachments) or "none")
            raise Conflict(f"container {container.name} is not connected to network {record.name}", details, "name one of those")
        _refuse_running_machine(container, "way to lose a network while it runs", "stop it, disconnect it, and start it again")
        with self._database.transaction() as connection:
            self._records.detach(connection, record.id, container.id)
            self._change(connection, container, replace(container.plan.network, attachments=left))
        if current_state(container.directory).status == "running":
            keeping.ask(self._home, Disconnect(container.id, record.id))
        write_hosts(container.plan)
        publish(self._home, "network", "disconnect", record.id, {"container": container.id, "name": record.name, "type": record.config.driver})

    def _change(self, connection: sqlite3.Connection, container: Container, network: Network) -> None:
        container.record = ContainerRecords(self._database).change_network(connection, container.record, network)

    def publish_ports(self, container: Container, mappings: Sequence[PortMapping]) -> tuple[PublishedPort, ...]:
        """Publish more ports of a container, also while it runs; returns all that it publishes then. Raises Conflict for one that is taken."""
        network = container.plan.network
        if network.mode != "own":
            raise Conflict(f"container {container.name} cannot publish ports", f"its network is {network.mode}", "put it on a bridge")
        ports = (*network.ports, *networking.with_addresses(mappings))
        with self._database.transaction() as connection:
            self._change(connection, container, replace(network, ports=ports))
        if current_state(container.directory).status != "running":
            return ()
        try:
            return keeping.ask(self._home, Publish(container.id, ports)).ports
        except BulleError:
            with self._database.transaction() as connection:
                self._change(connection, container, network)
            raise

    def retract_ports(self, container: Container, wanted: Sequence[PortMapping]) -> None:
        """Stop publishing ports of a container, by container port and, where given, host port and address. Raises NotFound."""
        network = container.plan.network
        going = [one for one in network.ports if any(_matches(one, mapping) for mapping in wanted)]
        runs = current_state(container.directory).status == "running"
        standing = published_ports(container.directory) if runs else ()
        closing = tuple(port for port in standing if any(_matches_published(port, mapping) for mapping in wanted))
        if not going and not closing:
            raise NotFound(f"container {container.name} does not publish that port", "", f"`bulle port {container.name}` lists its ports")
        left = tuple(one for one in network.ports if one not in going)
        with self._database.transaction() as connection:
            self._change(connection, container, replace(network, ports=left))
        if runs:  # also where none of them stands: what is meant from now on is told
            keeping.ask(self._home, Retract(container.id, closing, left))


def _matches(one: PortMapping, wanted: PortMapping) -> bool:
    same_host = not wanted.host_port or one.host_port in (0, wanted.host_port)
    same_address = not wanted.host_addresses or set(wanted.host_addresses) == set(one.host_addresses)
    return (one.container_port, one.protocol) == (wanted.container_port, wanted.protocol) and same_host and same_address


def _matches_published(port: PublishedPort, wanted: PortMapping) -> bool:
    same_host = not wanted.host_port or port.host_port == wanted.host_port
    same_address = not wanted.host_addresses or port.host_address in wanted.host_addresses
    return (port.container_port, port.protocol) == (wanted.container_port, wanted.protocol) and same_host and same_address


def _refuse_running_machine(container: Container, what: str, mend: str) -> None:
    """The devices of a machine are there from its start to its end."""
    if container.plan.guest is not None and current_state(container.directory).status == "running":
        raise Unsupported(what, container.plan.isolation, mend)
