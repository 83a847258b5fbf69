"""The images of services between registries and this machine, several at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from bulle.compose.app_images import image_name
from bulle.compose.model import Project, Service
from bulle.engine.parallel import each
from bulle.errors import BulleError, InvalidInput, NotFound

if TYPE_CHECKING:
    from bulle.engine import Engine
    from bulle.registry.progress import Progress

    Showing = Callable[[Progress], None] | None

Report = Callable[[str, str], object]
"""Told the name of a service and what became of its image; from several threads."""
AT_ONCE = 4


def pull_services(
    engine: Engine,
    services: Iterable[Service],
    *,
    policy: str = "",
    ignore_buildable: bool = False,
    at_once: int = AT_ONCE,
    report: Report,
    showing: Showing = None,
) -> dict[str, BulleError]:
    """Pull the images of services, each once; returns why services have none, those that can be built left out. ``policy`` replaces their own."""
    wanted: dict[tuple[str, str], list[Service]] = {}
    for service in services:
        own = policy or service.pull_policy
        if service.build is not None and (ignore_buildable or not service.image):
            report(service.name, "Skipped - No image to be pulled" if not service.image else "Skipped - Image can be built")
        elif not policy and own in ("never", "build"):
            report(service.name, f"Skipped - Its policy is {own}")
        elif own in ("missing", "if_not_present") and _is_here(engine, service):
            report(service.name, "Skipped - Image is already present locally")
        elif (found := wanted.setdefault((service.image, service.platform), [])) is not None:
            found.append(service)
    failures: dict[str, BulleError] = {}

    def pull(number: int) -> None:
        (image, platform), users = list(wanted.items())[number]
        for one in users[1:]:
            report(one.name, f"Skipped - Image is already being pulled by {users[0].name}")
        report(users[0].name, "Pulling")
        try:
            engine.images.pull(image, platform=platform, progress=showing)
        except BulleError as error:
            buildable = all(one.build is not None for one in users)
            report(users[0].name, f"Warning {error}; it can be built" if buildable else f"Error {error}")
            if not buildable:
                failures.update((one.name, error) for one in users)
        else:
            report(users[0].name, "Pulled")

    each(pull, len(wanted), engine.close, lambda: None, at_once)
    return failures


def _is_here(engine: Engine, service: Service) -> bool:
    try:
        engine.images.get(service.image, service.platform)
    except NotFound:
        return False
    return True


def push_services(
    engine: Engine, project: Project, services: Sequence[Service], *, at_once: int = AT_ONCE, report: Report, showing: Showing = None
) -> dict[str, BulleError]:
    """Push the images of services that are built under all their names; returns why services' could not be."""
    wanted = []
    for service in services:
        if service.build is None or not service.image:
            report(service.name, "Skipped")
        else:
            wanted += [(service.name, name) for name in dict.fromkeys((image_name(project, service), *service.build.tags))]
    failures: dict[str, BulleError] = {}
    lock = threading.Lock()

    def push(number: int) -> None:
        service, name = wanted[number]
        report(service, f"Pushing {name}")
        try:
            _push(engine, name, showing)
        except BulleError as error:
            report(service, f"Error {error}")
            with lock:
                failures[service] = error
        else:
            report(service, f"Pushed {name}")

    each(push, len(wanted), engine.close, lambda: None, at_once)
    return failures


def _push(engine: Engine, name: str, showing: Showing) -> None:
    try:
        engine.indexes.get(name)
    except (NotFound, InvalidInput):
        engine.images.push(name, progress=showing)
    else:
        engine.indexes.push(name, progress=showing)
