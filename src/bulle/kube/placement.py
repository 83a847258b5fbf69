"""On which nodes the pods of a service run, and which runtime runs them."""

from __future__ import annotations

import re

from bulle.compose.model import Service
from bulle.kube.names import Document
from bulle.kube.translation import Translation

VM_RUNTIME = "kata-qemu"
"""The runtime class that Kata Containers makes for pods in virtual machines of QEMU."""

_CONSTRAINT = re.compile(r"\s*([A-Za-z0-9./_-]+)\s*(==|!=)\s*(\S.*?)\s*")
_KEYS = {"node.hostname": "kubernetes.io/hostname", "node.platform.os": "kubernetes.io/os", "node.platform.arch": "kubernetes.io/arch"}
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_CONTROL_PLANE = "node-role.kubernetes.io/control-plane"


def placement(translation: Translation, service: Service) -> Document:
    """The parts of a pod that say where it runs."""
    found: Document = {}
    if service.platform:
        system, _, rest = service.platform.lower().partition("/")
        architecture, _, variant = rest.partition("/")
        selector = {"kubernetes.io/os": system or "linux"}
        if architecture:
            selector["kubernetes.io/arch"] = _ARCHITECTURES.get(architecture, architecture)
        found["nodeSelector"] = selector
        if variant and (architecture, variant) != ("arm64", "v8"):
            translation.report.note(f"nodes are known as {architecture} only", "services", service.name, "platform")
    found |= _runtime(translation, service)
    if service.deploy is not None:
        found |= _affinity(translation, service)
        found |= _spread(translation, service)
    return found


def _runtime(translation: Translation, service: Service) -> Document:
    report = translation.report
    if service.runtime:
        report.note("the cluster must have a RuntimeClass of this name", "services", service.name, "runtime")
        return {"runtimeClassName": service.runtime}
    match service.isolation:
        case "vm":
            text = f"the cluster must have the RuntimeClass {VM_RUNTIME}, as Kata Containers makes it: name another with `runtime`"
            report.note(text, "services", service.name, "isolation")
            return {"runtimeClassName": VM_RUNTIME}
        case "chroot":
            report.note("a pod is never less than a container", "services", service.name, "isolation")
        case "" | "default" | "container":
            pass
        case _:
            report.refuse("not known here: say `container` or `vm`", "services", service.name, "isolation")
    return {}


def _affinity(translation: Translation, service: Service) -> Document:
    assert service.deploy is not None
    said = service.deploy.placement
    path = ("services", service.name, "deploy", "placement")
    expressions: list[Document] = []
    for number, constraint in enumerate(said.constraints):
        expression = _expression(constraint)
        if expression is None:
            translation.report.refuse("nodes of a cluster are chosen by label, host name, role or platform", *path, "constraints", number)
        else:
            expressions.append(expression)
    affinity: Document = {}
    if expressions:
        terms = [{"matchExpressions": expressions}]
        affinity["nodeAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    if said.max_replicas_per_node == 1:
        term = {"labelSelector": {"matchLabels": translation.selector(service)}, "topologyKey": "kubernetes.io/hostname"}
        affinity["podAntiAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
    elif said.max_replicas_per_node:
        translation.report.refuse("a cluster can be told 1 for each node, or nothing", *path, "max_replicas_per_node")
    return {"affinity": affinity} if affinity else {}


def _expression(constraint: str) -> Document | None:
    found = _CONSTRAINT.fullmatch(constraint)
    if found is None:
        return None
    key, equal, value = found[1], found[2] == "==", found[3]
    if key == "node.role" and value in ("manager", "worker"):
        return {"key": _CONTROL_PLANE, "operator": "Exists" if (value == "manager") == equal else "DoesNotExist"}
    if key.startswith("node.labels."):
        key = key.removeprefix("node.labels.")
    elif key in _KEYS:
        key, value = _KEYS[key], _ARCHITECTURES.get(value, value)
    else:
        return None
    return {"key": key, "operator": "In" if equal else "NotIn", "values": [value]}


def _spread(translation: Translation, service: Service) -> Document:
    assert service.deploy is not None
    spread: list[Document] = []
    for number, preference in enumerate(service.deploy.placement.preferences):
        label = preference.get("spread", "")
        if set(preference) != {"spread"} or not label.startswith("node.labels."):
            text = "only `spread: node.labels.…` can be had"
            translation.report.refuse(text, "services", service.name, "deploy", "placement", "preferences", number)
            continue
        spread.append(
            {
                "maxSkew": 1,
                "topologyKey": label.removeprefix("node.labels."),
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": translation.selector(service)},
            }
        )
    return {"topologySpreadConstraints": spread} if spread else {}
