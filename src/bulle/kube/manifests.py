"""An app as Kubernetes documents: :func:`manifests` is what the command line calls; nothing is applied here.

The documents come in the order in which they can be applied: files, claims, policies and names first, then the workloads, those that others depend on
before them. The same app gives the same documents.
"""

from __future__ import annotations

from dataclasses import dataclass

from bulle.compose.model import Note, Project, Service
from bulle.kube.names import Document
from bulle.kube.report import look_at
from bulle.kube.traffic import add_networks, add_services
from bulle.kube.translation import WAVES, HealthOfImage, Translation
from bulle.kube.workloads import add_workload


@dataclass(frozen=True)
class Manifests:
    """What goes to the cluster, in its order, and what is lost on the way."""

    documents: tuple[Document, ...]
    notes: tuple[Note, ...]


def manifests(project: Project, health_of_image: HealthOfImage = lambda image: None, *, strict: bool = False) -> Manifests:
    """The documents of a project. Raises NotMapped for keys that cannot be mapped, ``strict``: also for those with a note."""
    translation = Translation(project, health_of_image)
    for service in project.services.values():
        look_at(translation.report, service, ("services", service.name))
    for section, names in _used(project).items():
        objects = getattr(project, section)
        for name in names:
            if name in objects:
                look_at(translation.report, objects[name], (section, name))
    add_networks(translation)
    for service in in_waves(project):
        add_services(translation, service)
        add_workload(translation, service)
    translation.report.check(strict=strict)
    documents = sorted(
        translation.documents.values(), key=lambda document: WAVES.index(document["kind"]) if document["kind"] in WAVES else len(WAVES)
    )
    notes = sorted(translation.report.notes, key=lambda note: (note.place.file, note.place.line))
    return Manifests(tuple(documents), tuple(notes))


def _used(project: Project) -> dict[str, list[str]]:
    """The networks, volumes, secrets and configs that services use."""
    services = project.services.values()
    used = {
        "networks": [name for service in services for name in service.networks],
        "volumes": [mount.source for service in services for mount in service.volumes if mount.type == "volume"],
        "secrets": [reference.source for service in services for reference in service.secrets],
        "configs": [reference.source for service in services for reference in service.configs],
    }
    return {section: list(dict.fromkeys(names)) for section, names in used.items()}


def in_waves(project: Project) -> list[Service]:
    """The services, each after those that it depends on."""
    found: dict[str, Service] = {}
    begun: set[str] = set()

    def visit(name: str) -> None:
        service = project.services.get(name)
        if service is not None and name not in found and name not in begun:
            begun.add(name)
            for other in service.depends_on:
                visit(other)
            found[name] = service

    for name in project.services:
        visit(name)
    return list(found.values())
