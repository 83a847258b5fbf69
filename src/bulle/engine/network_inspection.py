"""What is known of networks and of a container's place on them, in Docker's form."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from bulle.model.container import ContainerState
from bulle.model.network import Attachment, PortMapping, PublishedPort
from bulle.monitor.logs import timestamp
from bulle.network.members import published_ports
from bulle.records.containers import ContainerRecord

if TYPE_CHECKING:
    from bulle.engine.networks import Networks


def standing_ports(record: ContainerRecord, state: ContainerState) -> tuple[PublishedPort, ...]:
    """The ports that a container publishes now: none unless it runs."""
    plan = record.plan
    if not plan.network.ports or state.status != "running":
        return ()
    if plan.network.mode == "user":  # the hypervisor holds them, and knows the older kind of addresses only
        held = [(one, address) for one in plan.network.ports for address in one.host_addresses if ":" not in address]
        return tuple(PublishedPort(address, one.host_port, one.container_port, one.protocol) for one, address in held)
    return published_ports(plan.state_host_path)


def network_mode(record: ContainerRecord) -> str:
    """The network as it was asked for: a name, ``host``, ``none`` or ``container:ID``."""
    network = record.plan.network
    if network.mode == "container":
        return f"container:{network.container_id}"
    if network.mode == "own":
        return record.options.network or (network.attachments[0].network if network.attachments else "bridge")
    return network.mode


def network_host_config(record: ContainerRecord) -> dict[str, object]:
    """The part of ``HostConfig`` that says what was asked for."""
    options, network = record.options, record.plan.network
    return {
        "NetworkMode": network_mode(record),
        "PortBindings": _port_bindings(network.ports),
        "PublishAllPorts": options.publish_all,
        "Dns": list(options.dns),
        "DnsOptions": list(options.dns_options),
        "DnsSearch": list(options.dns_search),
        "ExtraHosts": [f"{name}:{address}" for name, address in options.extra_hosts] or None,
        "Egress": network.egress.mode,
    }


def _port_bindings(ports: tuple[PortMapping, ...]) -> dict[str, list[dict[str, str]]]:
    bindings: dict[str, list[dict[str, str]]] = {}
    for port in ports:
        for address in port.host_addresses:
            host_port = f"{port.host_port}-{port.last_host_port}" if port.last_host_port else str(port.host_port or "")
            bindings.setdefault(f"{port.container_port}/{port.protocol}", []).append({"HostIp": address, "HostPort": host_port})
    return bindings


def network_settings(record: ContainerRecord, state: ContainerState) -> dict[str, object]:
    """``NetworkSettings`` of ``inspect``."""
    network = record.plan.network
    ports: dict[str, list[dict[str, str]]] = {}
    for port in standing_ports(record, state):
        places = ports.setdefault(f"{port.container_port}/{port.protocol}", [])
        places.append({"HostIp": port.host_address, "HostPort": str(port.host_port)})
    runs = state.status == "running"
    names = [record.name, record.id[:12]]
    networks = {one.network: _endpoint(one, record.id, names, runs) for one in network.attachments}
    first = next(iter(networks.values()), {}) if network.mode == "own" else {}
    return {
        "Bridge": "",
        "SandboxKey": f"/proc/{state.pid}/ns/net" if runs and network.mode == "own" else "",
        "Ports": ports,
        **{key: first.get(key, 0 if key.endswith("Len") else "") for key in _OF_FIRST},
        "Networks": networks if network.mode == "own" else {network.mode: {}} if network.mode != "container" else {},
    }


_OF_FIRST = (
    "EndpointID", "Gateway", "GlobalIPv6Address", "GlobalIPv6PrefixLen", "IPAddress", "IPPrefixLen", "IPv6Gateway", "MacAddress",
)  # fmt: skip


def _endpoint(attachment: Attachment, container_id: str, names: list[str], runs: bool) -> dict[str, object]:
    four = next((cidr for cidr in attachment.addresses if ":" not in cidr), "").partition("/")
    six = next((cidr for cidr in attachment.addresses if ":" in cidr), "").partition("/")
    return {
        "Aliases": list(attachment.names) or None,
        "MacAddress": attachment.mac if runs else "",
        "NetworkID": attachment.network_id,
        "EndpointID": endpoint_id(attachment.network_id, container_id) if runs else "",
        "Gateway": next((gateway for gateway in attachment.gateways if ":" not in gateway), ""),
        "IPAddress": four[0],
        "IPPrefixLen": int(four[2] or 0),
        "IPv6Gateway": next((gateway for gateway in attachment.gateways if ":" in gateway), ""),
        "GlobalIPv6Address": six[0],
        "GlobalIPv6PrefixLen": int(six[2] or 0),
        "DNSNames": [*names[:1], *attachment.names, *names[1:]],
        "Interface": attachment.interface,
    }


def endpoint_id(network_id: str, container_id: str) -> str:
    """A container's place on a network as an id, which Docker's documents have."""
    return hashlib.sha256(f"{network_id}/{container_id}".encode()).hexdigest()


def network_document(networks: Networks, name: str) -> dict[str, object]:
    """Docker's document of a network. Its ``Containers`` are all that are on it, also those that do not run."""
    record = networks.get(name)
    config = record.config
    containers = {}
    for endpoint, container in networks.endpoints(record):
        attachment = next((one for one in container.plan.network.attachments if one.network_id == record.id), None)
        if attachment is not None:
            document = _endpoint(attachment, container.id, [], runs=True)
            containers[container.id] = {
                "Name": container.name,
                "EndpointID": document["EndpointID"],
                "MacAddress": attachment.mac,
                "IPv4Address": f"{endpoint.ipv4}/{document['IPPrefixLen']}" if endpoint.ipv4 else "",
                "IPv6Address": f"{endpoint.ipv6}/{document['GlobalIPv6PrefixLen']}" if endpoint.ipv6 else "",
            }
    return {
        "Name": record.name,
        "Id": record.id,
        "Created": timestamp(record.created_at_ns),
        "Scope": "local",
        "Driver": "null" if config.driver == "none" else config.driver,
        "EnableIPv4": config.driver in ("bridge", "macvlan"),
        "EnableIPv6": config.ipv6,
        "IPAM": {
            "Driver": "default",
            "Options": {},
            "Config": [
                {"Subnet": subnet, "Gateway": config.gateways[number]}
                | ({"IPRange": config.ip_ranges[number]} if number < len(config.ip_ranges) and config.ip_ranges[number] else {})
                for number, subnet in enumerate(config.subnets)
            ],
        },
        "Internal": config.internal,
        "Attachable": True,
        "Ingress": False,
        "Containers": containers,
        "Options": config.options | ({"mtu": str(config.mtu)} if config.mtu and not config.options else {}),
        "Labels": config.labels,
        "Device": record.device,
        "Egress": config.egress.mode,
        "DNS": list(config.dns),
    }
