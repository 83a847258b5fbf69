"""``bulle compose config --format kubernetes``: the app's documents on standard output, what is lost on the way on standard error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bulle.cli.session import note, printable, write
from bulle.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from bulle.compose.model import Project
    from bulle.compose.service_parts import Healthcheck
    from bulle.engine import Engine


def print_manifests(engine: Engine, project: Project, *, strict: bool) -> None:
    """Print the documents and the notes; with ``strict`` notes are refusals. Raises InvalidInput, when every reason was printed."""
    from bulle.kube.manifests import manifests
    from bulle.kube.report import NotMapped
    from bulle.kube.writing import write_yaml

    try:
        found = manifests(project, lambda image: _health(engine, image), strict=strict)
    except NotMapped as error:
        for one in error.refusals:
            note(printable(str(one)))
        raise InvalidInput(error.brief, "", "each is named above") from None
    write(write_yaml(found.documents))
    for one in found.notes:
        note(f"WARNING: {printable(str(one))}")


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
