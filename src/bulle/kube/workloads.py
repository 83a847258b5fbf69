"""Which workload a service becomes, and how its pods are replaced and counted."""

from __future__ import annotations

from typing import Literal

from bulle.compose import labels as compose_labels
from bulle.compose.model import Project, Service
from bulle.compose.service_parts import UpdateConfig
from bulle.kube.names import Document, digest, memory, processors, seconds
from bulle.kube.pods import pod_template
from bulle.kube.resources import processor_limit
from bulle.kube.storage import is_many, owns_volume
from bulle.kube.translation import Translation

Kind = Literal["Deployment", "StatefulSet", "DaemonSet", "Job"]

FOR_EVER = 2**31 - 1
_DEADLINE_S = 600
"""How long Kubernetes waits for a Deployment to get on, unless told otherwise."""


def ends(service: Service) -> str:
    """``Never`` or ``OnFailure`` for a service that the file wants to end, with the times it may be tried; else empty."""
    policy = service.deploy.restart_policy if service.deploy is not None else None
    if policy is not None:
        return {"none": "Never", "on-failure": "OnFailure"}.get(policy.condition, "")
    said = service.restart.partition(":")[0]
    return {"no": "Never", "on-failure": "OnFailure"}.get(said, "")


def kind_of(project: Project, service: Service) -> Kind:
    """The kind of workload that a service becomes."""
    mode = service.deploy.mode if service.deploy is not None else "replicated"
    if mode == "global":
        return "DaemonSet"
    awaited = any(
        name == service.name and on.condition == "service_completed_successfully"
        for other in project.services.values()
        for name, on in other.depends_on.items()
    )
    if mode.endswith("-job") or awaited or ends(service):
        return "Job"
    return "StatefulSet" if owns_volume(project, service) and not is_many(service) else "Deployment"


def add_workload(translation: Translation, service: Service) -> None:
    """The workload of a service, and what scales it."""
    report = translation.report
    mode = service.deploy.mode if service.deploy is not None else "replicated"
    kind = kind_of(translation.project, service)
    path = ("services", service.name)
    if mode not in ("replicated", "global", "replicated-job"):
        report.refuse("a cluster has no such workload", *path, "deploy", "mode")
    if kind == "DaemonSet" and ends(service):
        report.refuse("pods on every node are always restarted", *path, "restart")
    for name, on in service.depends_on.items():
        if on.restart and (*path, "depends_on") in translation.project.places:  # else it follows from another key
            report.note("a cluster restarts no pod because another was", *path, "depends_on", name, "restart")
        if on.condition != "service_started":
            report.note("`kubectl apply` does not wait: until then the pods fail and are restarted", *path, "depends_on", name)
    name = translation.names[service.name]
    restart = "Always"
    if kind == "Job":
        restart = ends(service) or "Never"
        if service.restart in ("always", "unless-stopped"):
            report.note("another service waits for its end: it is a Job, which is not restarted after a success", *path, "restart")
    template = pod_template(translation, service, restart)
    specification = _job(service, restart) if kind == "Job" else _standing(translation, service, kind)
    specification["template"] = template
    if kind == "Job":
        # A Job cannot be changed: another template is another Job.
        name = f"{name[:52].rstrip('-')}-{digest(repr(specification).encode())}"
    workload = _workload_labels(translation, service)
    metadata = translation.metadata(name, (compose_labels.SERVICE, service.name), workload)
    version = "batch/v1" if kind == "Job" else "apps/v1"
    translation.add({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": specification})
    if service.autoscale is not None:
        if kind == "Deployment":
            translation.add(_scaler(translation, service))
        else:
            report.refuse(f"a {kind} is not scaled", *path, "x-bulle-autoscale")


def _workload_labels(translation: Translation, service: Service) -> tuple[dict[str, str], dict[str, str]]:
    return translation.labelled(service.deploy.labels if service.deploy is not None else {}, "services", service.name, "deploy", "labels")


def _attempts(service: Service) -> int | None:
    """How often the file lets a container that failed be started again; None for ever."""
    policy = service.deploy.restart_policy if service.deploy is not None else None
    if policy is not None:
        return policy.max_attempts
    text = service.restart.partition(":")[2]
    return int(text) if text.isdigit() else None


def _job(service: Service, restart: str) -> Document:
    attempts = _attempts(service)
    tries = 0 if restart == "Never" else attempts if attempts is not None else FOR_EVER
    found: Document = {"backoffLimit": tries}
    if service.replicas != 1:
        found |= {"completions": service.replicas, "parallelism": service.replicas}
    return found


def _standing(translation: Translation, service: Service, kind: Kind) -> Document:
    """The part before the template of what stands until it is removed."""
    report = translation.report
    path = ("services", service.name, "deploy")
    policy = service.deploy.restart_policy if service.deploy is not None else None
    if policy is not None and policy.max_attempts is not None:
        report.note("pods are restarted for ever, with longer and longer pauses", *path, "restart_policy", "max_attempts")
    found: Document = {"selector": {"matchLabels": translation.selector(service)}}
    if kind == "StatefulSet":
        found["serviceName"] = translation.names[service.name]
    if kind != "DaemonSet" and service.autoscale is None:
        found["replicas"] = service.replicas
    if service.deploy is not None and service.deploy.update_config is not None:
        found |= _strategy(translation, service, service.deploy.update_config, kind)
    return found


def _strategy(translation: Translation, service: Service, update: UpdateConfig, kind: Kind) -> Document:
    report = translation.report
    path = ("services", service.name, "deploy", "update_config")
    amount: int | str = update.parallelism or "100%"
    start_first = update.order == "start-first"
    found: Document = {}
    if update.failure_action != "pause":
        text = "the cluster stops and waits: `kubectl rollout undo` brings back what was before"
        report.note(text, *path, "failure_action")
    if kind == "StatefulSet":
        if start_first:
            report.note("what owns a volume is stopped before it is started anew", *path, "order")
    else:
        rolling = {"maxSurge": amount, "maxUnavailable": 0} if start_first else {"maxSurge": 0, "maxUnavailable": amount}
        found["strategy" if kind == "Deployment" else "updateStrategy"] = {"type": "RollingUpdate", "rollingUpdate": rolling}
    found["minReadySeconds"] = ready_s = seconds(max(update.delay, update.monitor))
    if kind == "Deployment":
        found["progressDeadlineSeconds"] = max(_DEADLINE_S, 2 * ready_s)
    return found


def _scaler(translation: Translation, service: Service) -> Document:
    assert service.autoscale is not None
    said = service.autoscale
    name = translation.names[service.name]
    metrics: list[Document] = []
    if said.cpu:
        metrics.append(_metric("cpu", processors(said.cpu / 100 * (processor_limit(service) or 1.0))))
    if said.memory:
        metrics.append(_metric("memory", memory(said.memory)))
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": translation.metadata(name, (compose_labels.SERVICE, service.name)),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": said.min,
            "maxReplicas": said.max,
            "metrics": metrics,
        },
    }


def _metric(name: str, average: str) -> Document:
    return {"type": "Resource", "resource": {"name": name, "target": {"type": "AverageValue", "averageValue": average}}}
