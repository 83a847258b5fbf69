"""A service as the template of its pods: one container, its volumes, its names."""

from __future__ import annotations

import ipaddress
import re

from bulle.compose import labels as compose_labels
from bulle.compose.model import Service
from bulle.kube import security
from bulle.kube.files import mount_references
from bulle.kube.mounts import Mounts
from bulle.kube.names import Document, dns_label, seconds
from bulle.kube.placement import placement
from bulle.kube.probes import LIVENESS, lifecycle, probes, stop_signal
from bulle.kube.resources import resources
from bulle.kube.storage import mount_volumes
from bulle.kube.traffic import container_ports, network_label
from bulle.kube.translation import Translation

_OURS = re.compile(r"(deb|docker-archive|docker-daemon|oci|oci-archive|dir|host|containers-storage):|host$")
_VARIABLE = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")
_GRACE_S = 10
"""How long Compose waits for a container to stop."""


def pod_template(translation: Translation, service: Service, restart: str) -> Document:
    """The ``template`` of a workload; ``restart`` is the pods' restart policy."""
    mounts = Mounts(translation.report)
    mount_volumes(translation, service, mounts)
    mount_references(translation, service, mounts)
    volumes, volume_mounts = mounts.parts()
    container: Document = {"name": translation.names[service.name], "image": _image(translation, service)}
    container |= _process(translation, service)
    container |= container_ports(translation, service)
    container |= resources(translation, service)
    container |= probes(translation, service)
    container |= lifecycle(translation, service)
    container |= security.of_container(translation, service)
    if volume_mounts:
        container["volumeMounts"] = volume_mounts
    specification: Document = {"automountServiceAccountToken": False, "enableServiceLinks": False}
    if restart != "Always":
        specification["restartPolicy"] = restart
    if stop_signal(service) != "SIGTERM":
        specification["os"] = {"name": "linux"}
    specification |= _naming(translation, service)
    specification |= security.namespaces(translation, service)
    specification |= placement(translation, service)
    specification |= security.of_pod(translation, service, has_volumes=bool(volumes))
    if service.stop_grace_period is not None or service.drain:
        grace_s = seconds(service.stop_grace_period) if service.stop_grace_period is not None else _GRACE_S
        specification["terminationGracePeriodSeconds"] = grace_s + seconds(service.drain)
    specification["containers"] = [container]
    if volumes:
        specification["volumes"] = volumes
    return {"metadata": _metadata(translation, service), "spec": specification}


def _metadata(translation: Translation, service: Service) -> Document:
    labels, annotations = translation.labelled(service.labels, "services", service.name, "labels")
    more = translation.labelled(service.annotations, "services", service.name, "annotations")
    annotations |= {key: value for part in more for key, value in part.items()}
    if service.depends_on:
        said = [f"{name}:{on.condition}:{str(on.restart).lower()}" for name, on in service.depends_on.items()]
        annotations[compose_labels.DEPENDS_ON] = ",".join(said)
    labels |= {network_label(network): "true" for network in service.networks}
    for key in service.extensions:
        if key != LIVENESS:
            translation.report.note("an extension that means nothing here", "services", service.name, key)
    metadata = translation.metadata("", (compose_labels.SERVICE, service.name), (labels, annotations))
    del metadata["name"]
    return metadata


def _image(translation: Translation, service: Service) -> str:
    if not service.image:
        text = "a cluster pulls its images: say `image: REGISTRY/NAME` too, which `bulle compose push` pushes to"
        translation.report.refuse(text, "services", service.name, *(("build",) if service.build is not None else ()))
    elif _OURS.match(service.image):
        translation.report.refuse(
            f"no cluster can pull {service.image}: push it to a registry, and say its name there", "services", service.name, "image"
        )
    return service.image


def _process(translation: Translation, service: Service) -> Document:
    report = translation.report
    found: Document = {}
    match service.pull_policy:
        case "always" | "never":
            found["imagePullPolicy"] = service.pull_policy.capitalize()
        case "missing" | "if_not_present" | "build":
            found["imagePullPolicy"] = "IfNotPresent"
        case "":
            pass
        case _:
            report.note("a cluster pulls at each start, or when it has no such image", "services", service.name, "pull_policy")
            found["imagePullPolicy"] = "Always"
    entrypoint, command = service.entrypoint, service.command
    if entrypoint == ():
        if not command:
            report.refuse("Kubernetes cannot take the image's entrypoint away without a command", "services", service.name, "entrypoint")
        entrypoint, command = command, None
    if entrypoint:
        found["command"] = [literal(word) for word in entrypoint]
    if command:
        found["args"] = [literal(word) for word in command]
    if service.working_dir:
        found["workingDir"] = service.working_dir
    variables = []
    for name, value in service.environment.items():
        if not _VARIABLE.fullmatch(name):
            report.refuse("Kubernetes takes no variable of this name", "services", service.name, "environment", name)
        elif value is not None:
            variables.append({"name": name, "value": literal(value)})
    if variables:
        found["env"] = variables
    if service.tty:
        found["tty"] = True
    if service.stdin_open:
        found["stdin"] = True
    return found


def literal(text: str) -> str:
    """A text in which Kubernetes sees no variable of its own."""
    return text.replace("$", "$$") if "$(" in text or "$$" in text else text


def _naming(translation: Translation, service: Service) -> Document:
    report = translation.report
    found: Document = {}
    if service.hostname:
        if dns_label(service.hostname) != service.hostname:
            report.refuse("a pod's name is an RFC 1123 label: small letters, digits and hyphens", "services", service.name, "hostname")
        found["hostname"] = service.hostname
    aliases: dict[str, list[str]] = {}
    for number, entry in enumerate(service.extra_hosts):
        name, _, address = entry.partition("=")
        try:
            aliases.setdefault(str(ipaddress.ip_address(address.strip("[]"))), []).append(name)
        except ValueError:
            report.refuse("a pod knows no address of this machine: write the address", "services", service.name, "extra_hosts", number)
    if aliases:
        found["hostAliases"] = [{"ip": address, "hostnames": names} for address, names in aliases.items()]
    asked: Document = {}
    if service.dns:
        report.note("they are asked beside the cluster's own name servers", "services", service.name, "dns")
        asked["nameservers"] = list(service.dns)
    if service.dns_search:
        asked["searches"] = list(service.dns_search)
    if service.dns_opt:
        options = [option.partition(":") for option in service.dns_opt]
        asked["options"] = [{"name": name, **({"value": value} if value else {})} for name, _, value in options]
    if asked:
        found["dnsConfig"] = asked
    return found
