"""``bulle compose config --format kubernetes``: the app's documents, and on standard error what is lost on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from bulle.cli.session import note, printable
from bulle.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from bulle.compose.model import Project
    from bulle.compose.service_parts import Healthcheck
    from bulle.engine import Engine


def rendered(engine: Engine, project: Project, services: Sequence[str], *, strict: bool) -> str:
    """The documents as YAML, of these services and what they depend on or of all; notes are printed, with ``strict`` they are refusals. Raises
    InvalidInput, when every reason was printed.
    """
    from bulle.kube.manifests import manifests
    from bulle.kube.report import NotMapped
    from bulle.kube.writing import write_yaml

    if services:
        project = _only(project, services)
    try:
        found = manifests(project, lambda image: _health(engine, image), strict=strict)
    except NotMapped as error:
        for one in error.refusals:
            note(printable(str(one)))
        raise InvalidInput(error.brief, "", "each is named above") from None
    for one in found.notes:
        note(f"WARNING: {printable(str(one))}")
    return write_yaml(found.documents)


def _only(project: Project, services: Sequence[str]) -> Project:
    wanted: dict[str, None] = {}
    waiting = list(services)
    while waiting:
        name = waiting.pop()
        if name not in project.services:
            raise NotFound(f"no service {name}", "", "the file has " + (", ".join(project.services) or "none"))
        if name not in wanted:
            wanted[name] = None
            waiting += [other for other in project.services[name].depends_on if other in project.services]
    return msgspec.structs.replace(project, services={name: one for name, one in project.services.items() if name in wanted})


def _health(engine: Engine, name: str) -> Healthcheck | None:
    """The HEALTHCHECK of an image that is here."""
    from bulle.compose.service_parts import Healthcheck, Nanoseconds

    try:
        said = engine.images.get(name).config.config.healthcheck
    except (NotFound, InvalidInput):
        return None
    if said is None or not said.test:
        return None
    return Healthcheck(
        test=said.test,
        interval=Nanoseconds(said.interval),
        timeout=Nanoseconds(said.timeout),
        retries=said.retries or None,
        start_period=Nanoseconds(said.start_period),
        start_interval=Nanoseconds(said.start_interval),
    )
