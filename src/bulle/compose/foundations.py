"""The networks and volumes of an app: which there are to be, made before its containers, removed behind them.

What is external is looked for and left alone. A network whose configuration changed is made anew; a volume keeps what is in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from bulle.compose import labels
from bulle.compose.attachments import networks_of
from bulle.compose.model import Network, Note, Project, Service, Volume
from bulle.compose.record import encoded
from bulle.compose.verdicts import refused
from bulle.engine.network_options import network_config
from bulle.errors import BulleError, Conflict, InvalidInput, NotFound
from bulle.records.networks import NetworkRecord, NetworkRecords
from bulle.version import VERSION

if TYPE_CHECKING:
    from bulle.engine import Engine

Report = Callable[[str, str, str], object]
"""Told what happens: ``Network``, ``Volume``, ``Container`` or ``Image``; its name; and what was done to it."""


def used_networks(project: Project, services: Iterable[Service], *, every: bool = False) -> dict[str, Network]:
    """The networks that services are on, by their keys; with ``every`` also those that no service is on."""
    keys = project.networks.keys() if every else dict.fromkeys(key for service in services for key in networks_of(project, service))
    return {key: project.networks[key] for key in keys if key in project.networks}


def used_volumes(project: Project, services: Iterable[Service], *, every: bool = False) -> dict[str, Volume]:
    """The same of volumes."""
    used = dict.fromkeys(one.source for service in services for one in service.volumes if one.type == "volume" and one.source)
    return {key: project.volumes[key] for key in (project.volumes if every else used) if key in project.volumes}


class Foundations:
    """The networks and volumes of an app as they are to be and as they are."""

    def __init__(self, engine: Engine, project: Project, services: Iterable[Service], *, every: bool = False) -> None:
        self._engine = engine
        self._project = project
        chosen = tuple(services)
        self.networks = used_networks(project, chosen, every=every)
        self.volumes = used_volumes(project, chosen, every=every)
        self._there = {record.name: record for record in NetworkRecords(engine.database).all()}
        self._volumes_there = {one.name: one for one in engine.volumes.list()} if self.volumes else {}

    def check(self) -> list[Note]:
        """Whether what is external is there, and all else can be made. Raises BulleError with file and line."""
        notes = []
        for key, network in self.networks.items():
            place = self._project.place("networks", key)
            if network.external and network.name not in self._there and network.name not in ("bridge", "host", "none"):
                raise NotFound(f"{place}: network {network.name} is external and not there", "", "make it with `bulle network create`")
            if not network.external:
                self._config(key, network)
        for key, volume in self.volumes.items():
            place, there = self._project.place("volumes", key), self._volumes_there.get(volume.name)
            if volume.external and there is None:
                raise NotFound(f"{place}: volume {volume.name} is external and not there", "", "make it with `bulle volume create`")
            if not volume.external and there is not None and there.options != volume.driver_opts:
                notes.append(Note(place, key, f"volume {volume.name} is there with other options and stays as it is; `down -v` removes it"))
        return notes

    def record(self, name: str) -> NetworkRecord | None:
        """A network of the engine by name."""
        return self._there.get(name)

    def changed(self) -> dict[str, NetworkRecord]:
        """Networks that are there and are to be otherwise, by their keys."""
        found = {}
        for key, network in self.networks.items():
            record = self._there.get(network.name)
            if record is None or network.external:
                continue
            if record.config.labels.get(labels.PROJECT, self._project.name) != self._project.name:
                place = self._project.place("networks", key)
                raise Conflict(f"{place}: network {network.name} is another app's", "", "choose another name, or say external: true")
            if record.config.labels.get(labels.CONFIG_HASH) not in (None, network_hash(network)):
                found[key] = record
        return found

    def make(self, report: Report) -> None:
        """Make what is missing."""
        for key, network in self.networks.items():
            if not network.external and network.name not in self._there:
                self._there[network.name] = self._engine.networks.create(self._config(key, network))
                report("Network", network.name, "Created")
        for key, volume in self.volumes.items():
            if not volume.external and volume.name not in self._volumes_there:
                own = {labels.PROJECT: self._project.name, labels.VOLUME: key, labels.VERSION: VERSION}
                self._engine.volumes.create(volume.name, labels={**volume.labels, **own}, options=volume.driver_opts)
                report("Volume", volume.name, "Created")

    def remove_changed(self, records: Mapping[str, NetworkRecord], report: Report) -> None:
        """Remove networks that are to be made anew: whoever is on one is taken off, and has to be made anew as well."""
        for record in records.values():
            for _endpoint, found in self._engine.networks.endpoints(record):
                self._engine.networks.disconnect(record.id, self._engine.containers.get(found.id))
            self._engine.networks.remove(record.id)
            del self._there[record.name]
            report("Network", record.name, "Removed")

    def _config(self, key: str, network: Network) -> Any:
        own = {labels.PROJECT: self._project.name, labels.NETWORK: key, labels.VERSION: VERSION, labels.CONFIG_HASH: network_hash(network)}
        pools = [_pool(self._project, key, number, pool) for number, pool in enumerate(network.ipam.config)]
        try:
            return network_config(
                network.name, network.driver or "bridge", subnets=[one[0] for one in pools if one[0]], gateways=[one[1] for one in pools if one[1]],
                ip_ranges=[one[2] for one in pools if one[2]], internal=network.internal, ipv6=bool(network.enable_ipv6),
                labels={**network.labels, **own}, options=network.driver_opts,
            )  # fmt: skip
        except InvalidInput as error:
            raise InvalidInput(f"{self._project.place('networks', key)}: {error.brief}", error.details, error.resolution) from None


def _pool(project: Project, key: str, number: int, pool: Mapping[str, Any]) -> tuple[str, str, str]:
    for name, value in pool.items():
        if name not in ("subnet", "gateway", "ip_range") and value:
            raise refused(project, ("networks", key, "ipam", "config", number, name), "", "addresses are given by the engine; leave it out")
    return pool.get("subnet", ""), pool.get("gateway", ""), pool.get("ip_range", "")


def network_hash(network: Network) -> str:
    """What tells whether a network was made from this."""
    return hashlib.sha256(encoded(network)).hexdigest()


def remove_networks(engine: Engine, project: str, report: Report) -> None:
    """Remove the networks of an app; one that others are on is left, and told of."""
    for record in NetworkRecords(engine.database).all():
        if record.config.labels.get(labels.PROJECT) != project:
            continue
        try:
            engine.networks.remove(record.id)
            report("Network", record.name, "Removed")
        except Conflict:
            report("Network", record.name, "Resource is still in use")
        except NotFound:
            continue


def remove_volumes(engine: Engine, project: str, report: Report) -> None:
    """Remove the volumes of an app that have a name, and all that is in them."""
    for volume in engine.volumes.list():
        if volume.labels.get(labels.PROJECT) != project:
            continue
        try:
            engine.volumes.remove(volume.name)
            report("Volume", volume.name, "Removed")
        except BulleError as error:
            report("Volume", volume.name, f"Error: {error}")
