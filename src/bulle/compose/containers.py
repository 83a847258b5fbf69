"""Which containers of an app a verb is about: by the names of services, by a replica's number."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from bulle.compose import labels
from bulle.compose.actual import is_one_off, number_of, service_of
from bulle.errors import NotFound

if TYPE_CHECKING:
    from bulle.compose.model import Project
    from bulle.engine import Container, Engine


def check_services(project: Project | None, services: Iterable[str]) -> None:
    """Raise NotFound for a name that is no service of the app's files; without files nobody knows better than the labels."""
    if project is None:
        return
    for name in services:
        if name not in project.services and name not in project.disabled:
            raise NotFound(f"no such service: {name}", "", f"the app {project.name} has {', '.join(sorted(project.services)) or 'none'}")


def pick(containers: Collection[Container], service: str, index: int = 0) -> Container:
    """The replica of a service with that number, or the first; what ``compose run`` made comes last. Raises NotFound."""
    found = [one for one in containers if service_of(one) == service and index in (0, number_of(one))]
    if not found:
        replica = f" container #{index}" if index else ""
        raise NotFound(f'service "{service}" is not running{replica}', "", "`bulle compose ps -a` shows what there is")
    return min(found, key=lambda one: (is_one_off(one), number_of(one), one.created_at_ns))


def short_name(container: Container) -> str:
    """How its lines are labelled: ``web-1``, or the whole name of one that has a name of its own."""
    found = container.options.labels
    project = found.get(labels.PROJECT, "")
    usual = labels.container_name(project, service_of(container), number_of(container))
    return container.name.removeprefix(f"{project}-") if container.name == usual else container.name


def by_project(engine: Engine) -> dict[str, list[Container]]:
    """The containers of all apps of the home by the apps' names, in the order of these."""
    found: dict[str, list[Container]] = {}
    for container in engine.containers.labelled(labels.PROJECT):
        found.setdefault(container.options.labels[labels.PROJECT], []).append(container)
    return dict(sorted(found.items()))
