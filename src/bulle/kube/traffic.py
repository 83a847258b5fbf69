"""How pods are reached: Services by every name that the file gives, and NetworkPolicies that let through what shares a network."""

from __future__ import annotations

import ipaddress
import re

from bulle.compose import labels as compose_labels
from bulle.compose.model import Service
from bulle.compose.service_parts import Port
from bulle.kube.names import Document, dns_label, is_label_key, joined
from bulle.kube.translation import Translation

_PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_NAME_SERVICE = 53


def network_label(network: str) -> str:
    """The label of the pods that are on a network."""
    key = f"{compose_labels.NETWORK}/{network}"
    return key if is_label_key(key) else f"{compose_labels.NETWORK}/{dns_label(network)}"


def _port_name(translation: Translation, service: Service, number: int, port: Port) -> str:
    if port.name:
        if len(port.name) > 15 or not _PORT_NAME.fullmatch(port.name):
            text = "Kubernetes takes 15 small letters, digits and hyphens"
            translation.report.refuse(text, "services", service.name, "ports", number, "name")
        return port.name
    return f"{port.protocol.lower()}-{port.target}"


def _targets(translation: Translation, service: Service) -> list[Document]:
    """The ports of a service's containers, each once."""
    found: dict[tuple[int, str], Document] = {}
    names: set[str] = set()
    for number, port in enumerate(service.ports):
        name = _port_name(translation, service, number, port)
        entry: Document = {"name": name, "port": port.target, "targetPort": port.target, "protocol": port.protocol.upper()}
        if port.app_protocol:
            entry["appProtocol"] = port.app_protocol
        key = (port.target, port.protocol.upper())
        if key not in found and name in names:
            translation.report.refuse(f"two ports are called {name}", "services", service.name, "ports", number)
        names.add(name)
        found.setdefault(key, entry)
    for text in service.expose:
        numbers, _, protocol = text.partition("/")
        first, _, last = numbers.partition("-")
        kind = (protocol or "tcp").upper()
        for target in range(int(first), int(last or first) + 1):
            entry = {"name": f"{kind.lower()}-{target}", "port": target, "targetPort": target, "protocol": kind}
            found.setdefault((target, kind), entry)
    return list(found.values())


def container_ports(translation: Translation, service: Service) -> Document:
    """The ``ports`` of a service's container."""
    found: list[Document] = []
    for entry in _targets(translation, service):
        port: Document = {"name": entry["name"], "containerPort": entry["port"], "protocol": entry["protocol"]}
        for number, said in enumerate(service.ports):
            if said.mode == "host" and (said.target, said.protocol.upper()) == (entry["port"], entry["protocol"]):
                port["hostPort"] = _published(translation, service, number, said)
                if said.host_ip:
                    port["hostIP"] = said.host_ip
        found.append(port)
    return {"ports": found} if found else {}


def _published(translation: Translation, service: Service, number: int, port: Port) -> int:
    first, dash, _ = port.published.partition("-")
    if dash:
        text = f"a cluster chooses no port from a range: it is {first}"
        translation.report.note(text, "services", service.name, "ports", number, "published")
    return int(first) if first else port.target


def add_services(translation: Translation, service: Service) -> None:
    """The Services of a service: by its name, by its aliases, and for everyone where it is published."""
    ports = _targets(translation, service)
    own = translation.names[service.name]
    headless = not ports or (service.deploy is not None and service.deploy.endpoint_mode == "dnsrr")
    translation.add(_service(translation, service, own, ports, headless=headless))
    for alias, path in _aliases(translation, service):
        label = dns_label(alias)
        if label != alias:
            translation.report.refuse("a name on a cluster is an RFC 1123 label: small letters, digits and hyphens", *path)
        elif label != own:
            translation.add(_service(translation, service, label, ports, headless=headless))
    _add_published(translation, service)


def _aliases(translation: Translation, service: Service) -> list[tuple[str, tuple[str | int, ...]]]:
    """The further names of a service, and where the file says them."""
    found: dict[str, tuple[str | int, ...]] = {}
    if service.container_name:
        found[service.container_name] = ("services", service.name, "container_name")
    for network, settings in service.networks.items():
        for alias in settings.aliases:
            found.setdefault(alias, ("services", service.name, "networks", network, "aliases"))
    for other in translation.project.services.values():
        for number, link in enumerate(other.links):
            target, _, alias = link.partition(":")
            if target == service.name and alias and alias != target:
                path = ("services", other.name, "links", number)
                translation.report.note(f"all pods of the namespace know it as {alias}", *path)
                found.setdefault(alias, path)
    return list(found.items())


def _service(translation: Translation, service: Service, name: str, ports: list[Document], *, headless: bool) -> Document:
    specification: Document = {"selector": translation.selector(service)}
    if headless:
        specification["clusterIP"] = "None"
    elif service.balance == "sticky":
        specification["sessionAffinity"] = "ClientIP"
    if ports:
        specification["ports"] = ports
    metadata = translation.metadata(name, (compose_labels.SERVICE, service.name))
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": specification}


def _is_for_everyone(translation: Translation, service: Service, number: int, port: Port) -> bool:
    """Whether a published port is one of the whole world, not of this machine alone."""
    path = ("services", service.name, "ports", number)
    if port.mode == "host":
        return False
    if not port.host_ip:
        text = "without an address it is published on loopback, so not outside of the cluster: write `0.0.0.0:` before it, or `127.0.0.1:`"
        translation.report.note(text, *path)
        return False
    address = ipaddress.ip_address(port.host_ip.strip("[]"))
    if address.is_loopback:
        return False
    if not address.is_unspecified:
        translation.report.note("the cluster chooses the address", *path, "host_ip")
    return True


def _add_published(translation: Translation, service: Service) -> None:
    published: list[Document] = []
    policy: list[Document] = []
    for number, port in enumerate(service.ports):
        outside = _is_for_everyone(translation, service, number, port)
        protocol = port.protocol.upper()
        if outside or port.mode == "host":
            policy.append({"port": port.target, "protocol": protocol})
        if outside:
            outer = _published(translation, service, number, port)
            name = _port_name(translation, service, number, port)
            if any(other["name"] == name for other in published):
                name = f"{protocol.lower()}-{port.target}-{outer}"[:63]
            entry = {"name": name, "port": outer, "targetPort": port.target, "protocol": protocol}
            published.append({**entry, **({"appProtocol": port.app_protocol} if port.app_protocol else {})})
    name = joined(translation.names[service.name], "published")
    if published:
        published = [entry for place, entry in enumerate(published) if _first(published, place)]
        document = _service(translation, service, name, published, headless=False)
        document["spec"]["type"] = "LoadBalancer"
        translation.add(document)
    if policy:
        policy = [entry for place, entry in enumerate(policy) if entry not in policy[:place]]
        translation.add(_policy(translation, name, (compose_labels.SERVICE, service.name), translation.selector(service), [{"ports": policy}]))
    if service.network_mode == "none":
        translation.report.note("pods have an interface, through which nothing goes", "services", service.name, "network_mode")
        name = joined(translation.names[service.name], "none")
        translation.add(_policy(translation, name, (compose_labels.SERVICE, service.name), translation.selector(service), [], []))


def _first(entries: list[Document], place: int) -> bool:
    """Whether no entry before it has the same port: IPv4 and IPv6 are said twice."""
    mine = (entries[place]["port"], entries[place]["protocol"])
    return all((other["port"], other["protocol"]) != mine for other in entries[:place])


def add_networks(translation: Translation) -> None:
    """A NetworkPolicy for each network that is used: who is on it reaches the others on it."""
    report = translation.report
    used = {network for service in translation.project.services.values() for network in service.networks}
    for key, network in translation.project.networks.items():
        if key not in used:
            continue
        if network.driver not in ("", "bridge", "overlay"):
            report.refuse("a cluster has one network, which policies divide: only `bridge` and `overlay` can be had", "networks", key, "driver")
        if network.external:
            report.note("of those on it, the pods of this app only are let through", "networks", key, "external")
        members = {"matchLabels": {network_label(key): "true", "app.kubernetes.io/part-of": translation.part_of}}
        more = translation.labelled(network.labels, "networks", key, "labels")
        name = dns_label(f"{translation.project.name}-{key}")
        leaving: list[Document] | None = None
        if network.internal:
            names = [{"port": _NAME_SERVICE, "protocol": protocol} for protocol in ("UDP", "TCP")]
            leaving = [{"to": [{"podSelector": members}]}, {"ports": names}]
        document = _policy(translation, name, (compose_labels.NETWORK, key), members["matchLabels"], [{"from": [{"podSelector": members}]}], leaving)
        document["metadata"] = translation.metadata(name, (compose_labels.NETWORK, key), more)
        translation.add(document)


def _policy(
    translation: Translation,
    name: str,
    original: tuple[str, str],
    selector: dict[str, str],
    entering: list[Document],
    leaving: list[Document] | None = None,
) -> Document:
    specification: Document = {"podSelector": {"matchLabels": selector}, "policyTypes": ["Ingress"], "ingress": entering}
    if leaving is not None:
        specification["policyTypes"] = ["Ingress", "Egress"]
        specification["egress"] = leaving
    metadata = translation.metadata(name, original)
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": specification}
