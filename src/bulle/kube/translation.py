"""What one translation of an app shares: the project, the report of losses, the names that were given, and the documents made so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from bulle.compose import labels as compose_labels
from bulle.compose.model import Project, Service
from bulle.compose.service_parts import Healthcheck
from bulle.kube.names import MANAGED_BY, NAME, OURS, PART_OF, Document, digest, dns_label, dns_labels, is_label_key, is_label_value
from bulle.kube.report import Report

HealthOfImage = Callable[[str], Healthcheck | None]
"""What an image's HEALTHCHECK says, None where the image has none or is not here."""

WAVES = ("ConfigMap", "Secret", "PersistentVolumeClaim", "NetworkPolicy", "Service")
"""The kinds that go before the workloads, in this order."""


@dataclass
class Translation:
    """One app on its way to a cluster."""

    project: Project
    health_of_image: HealthOfImage
    report: Report = field(init=False)
    names: dict[str, str] = field(init=False)
    """The name of each service on the cluster."""
    documents: dict[tuple[str, str], Document] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.report = Report(self.project)
        self.names = dns_labels(self.project.services)
        for name, label in self.names.items():
            if name != label:
                self.report.note(f"is called {label} on the cluster, also by the other services", "services", name)

    @property
    def part_of(self) -> str:
        """The project's name as the value of a label."""
        return dns_label(self.project.name)

    def add(self, document: Document) -> None:
        """Keep a document; the same one twice is one."""
        kind, name = document["kind"], document["metadata"]["name"]
        if self.documents.setdefault((kind, name), document) != document:
            self.report.refuse(f"two things of this app would be the {kind} {name}: give one of them another name")

    def selector(self, service: Service) -> dict[str, str]:
        """The labels that a service's pods are found by."""
        return {NAME: self.names[service.name], PART_OF: self.part_of}

    def metadata(self, name: str, original: tuple[str, str], more: tuple[dict[str, str], dict[str, str]] = ({}, {})) -> Document:
        """The metadata of an object; ``original`` is a label of Compose and what the file calls the object, ``more`` labels and annotations."""
        ours = {PART_OF: self.part_of, MANAGED_BY: "bulle"}
        if original[0] == compose_labels.SERVICE:
            ours[NAME] = self.names[original[1]]
        labels = {key: value for key, value in more[0].items() if key not in ours}
        annotations = {**more[1], compose_labels.PROJECT: self.project.name, original[0]: original[1]}
        return {"name": name, "labels": {**ours, **labels}, "annotations": annotations}

    def labelled(self, mapping: dict[str, str], *path: str | int) -> tuple[dict[str, str], dict[str, str]]:
        """A file's labels as labels, those whose values Kubernetes does not allow as annotations."""
        labels: dict[str, str] = {}
        annotations: dict[str, str] = {}
        for key, value in mapping.items():
            if not is_label_key(key) or key in OURS:
                self.report.refuse("Kubernetes takes no such key, or this command sets it itself: choose another", *path, key)
            elif is_label_value(value):
                labels[key] = value
            else:
                annotations[key] = value
        return labels, annotations

    def file_object(self, kind: str, content: bytes, key: str, name: str, metadata: Document) -> str:
        """Keep a ConfigMap or Secret with one file, and say its name, which changes with the content."""
        import base64

        # The key is in the hash too: what has another key is another object.
        full = f"{name[:52].rstrip('-')}-{digest(key.encode() + b'=' + content)}"
        document: Document = {"apiVersion": "v1", "kind": kind, "metadata": {**metadata, "name": full}, "immutable": True}
        try:
            text = content.decode() if kind == "ConfigMap" else ""
        except UnicodeDecodeError:
            text = ""
        if kind == "ConfigMap" and (text or not content) and "\0" not in text:
            document["data"] = {key: text}
        else:
            document["data" if kind == "Secret" else "binaryData"] = {key: base64.b64encode(content).decode()}
        self.add(document)
        return full
