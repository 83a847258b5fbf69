"""The images of an app's services: found, pulled or built before anything that runs is changed."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

from bulle.compose.foundations import Report
from bulle.compose.model import Project, Service
from bulle.engine.parallel import each
from bulle.errors import BulleError, InvalidInput, NotFound

if TYPE_CHECKING:
    from bulle.engine import Engine
    from bulle.store import Image

_REFRESHED_S = {"daily": 86400.0, "weekly": 7 * 86400.0}
_EVERY = re.compile(r"every_(?:(\d+)w)?(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_PULLS_AT_ONCE = 4

Builder = Callable[[Collection[Service]], object]
"""Builds the images of services and gives them their names."""
Puller = Callable[[Service], object]
"""Pulls the image of one service."""


def image_name(project: Project, service: Service) -> str:
    """What the image of a service is called: as it says, else by the app and the service."""
    return service.image or f"{project.name}-{service.name}"


def ensure_images(
    engine: Engine,
    project: Project,
    services: Collection[Service],
    report: Report,
    *,
    builder: Builder,
    build: bool | None = None,
    pull: str = "",
    quiet: bool = False,
    dry: bool = False,
) -> dict[str, str]:
    """The ids of the services' images by service, pulled and built as ``pull_policy`` says, or ``pull`` instead. ``build`` None: where one is
    missing. ``dry`` only says what would be pulled.

    Raises NotFound with file and line for one that is not there and can be neither pulled nor built.
    """
    found = {key: _find(engine, project, one) for key, one in {(image_name(project, one), one.platform): one for one in services}.items()}
    here = {one.name: found[image_name(project, one), one.platform] for one in services}
    to_build = [one for one in services if one.build is not None and build is not False and (build or _must_build(one, here[one.name], pull))]
    built = {one.name for one in to_build}
    to_pull = {
        (image_name(project, one), one.platform): one for one in services if one.name not in built and _must_pull(one, here[one.name], pull)
    }
    if dry:
        for name, _platform in to_pull:
            report("Image", name, "Pulling")
        return {name: image.id if image else "" for name, image in here.items()}
    _pull(engine, project, list(to_pull.values()), report, quiet=quiet)
    if to_build:
        builder(to_build)
    ids = {}
    for service in services:
        image = here[service.name] if service.name not in built and (image_name(project, service), service.platform) not in to_pull else None
        image = image or _find(engine, project, service)
        if image is None:
            place = project.place("services", service.name, "image")
            mend = "leave --no-build out" if service.build else f"pull it with `bulle compose pull {service.name}`"
            raise NotFound(f"{place}: image {image_name(project, service)} is not here", "it is neither to be pulled nor to be built", mend)
        ids[service.name] = image.id
    return ids


def _find(engine: Engine, project: Project, service: Service) -> Image | None:
    try:
        return engine.images.get(image_name(project, service), service.platform)
    except NotFound:
        return None


def _must_build(service: Service, image: Image | None, pull: str) -> bool:
    return service.pull_policy == "build" or pull == "build" or (image is None and (pull or service.pull_policy) != "never")


def _must_pull(service: Service, image: Image | None, pull: str) -> bool:
    policy = pull or service.pull_policy or "missing"
    if service.build is not None and not service.image:
        return False
    if policy == "always":
        return True
    if policy in ("never", "build"):
        return False
    if image is None:
        return service.build is None or bool(pull or service.pull_policy)
    age_s = _refreshed_s(policy)
    return age_s is not None and time.time() - image.created_at_ns / 1e9 > age_s


def _refreshed_s(policy: str) -> float | None:
    if policy in _REFRESHED_S:
        return _REFRESHED_S[policy]
    if policy in ("missing", "if_not_present"):
        return None
    if (match := _EVERY.fullmatch(policy)) and policy != "every_":
        return sum(int(number or 0) * seconds for number, seconds in zip(match.groups(), (604800, 86400, 3600, 60, 1), strict=True))
    raise InvalidInput(f"there is no pull policy {policy!r}", "", "use always, missing, never, build, daily, weekly or every_<duration>")


def _pull(engine: Engine, project: Project, services: list[Service], report: Report, *, quiet: bool) -> None:
    def pull(number: int) -> None:
        service = services[number]
        name = image_name(project, service)
        if not quiet:
            report("Image", name, "Pulling")
        try:
            engine.images.pull(name, platform=service.platform)
        except BulleError as error:
            place = project.place("services", service.name, "image")
            raise type(error)(f"{place}: {error.brief}", error.details, error.resolution) from None
        if not quiet:
            report("Image", name, "Pulled")

    each(pull, len(services), engine.close, lambda: None, _PULLS_AT_ONCE)


def image_ids(engine: Engine, project: Project, services: Mapping[str, Service]) -> dict[str, str]:
    """The ids of the images that are here, for whoever makes replicas without pulling. Raises NotFound."""
    return {name: engine.images.get(image_name(project, one), one.platform).id for name, one in services.items()}
