"""``bulle compose scale``, ``update`` and ``rollback``: more or fewer replicas, another image, or what was before, while the app goes on."""

from __future__ import annotations

from collections.abc import Sequence

import click

from bulle.cli.composing import App, complete_services, pass_app
from bulle.cli.composing_images import build_images
from bulle.cli.composing_up import converge, scales
from bulle.cli.option_types import Text
from bulle.cli.session import note
from bulle.cli.verb import verb
from bulle.compose import record, updating
from bulle.compose.building import Asked
from bulle.compose.converging import Orders
from bulle.errors import InvalidInput, NotFound


@verb("scale", "SERVICE=REPLICAS...")
@click.argument("wanted", nargs=-1, required=True, shell_complete=complete_services)
@click.option("--no-deps", is_flag=True, help="Don't start linked services")
@pass_app
def scale(app: App, wanted: Sequence[str], no_deps: bool) -> int:
    """Scale services."""
    numbers = scales(wanted)
    converge(app, Orders(services=tuple(numbers), scales=numbers, with_dependencies=not no_deps, recreate=False, dry=app.flags.dry_run))
    return 0


def _app(app: App) -> record.App:
    found = record.read(app.engine, app.name)
    if found is None:
        raise NotFound(f"the app {app.name} is not there", "", "start it with `bulle compose up -d`")
    return found


@verb("update", "SERVICE")
@click.argument("service", shell_complete=complete_services)
@click.option("--image", type=Text(), help="The image that its replicas get, one after the other as deploy.update_config says")
@pass_app
def update(app: App, service: str, image: str | None) -> int:
    """Give the replicas of a service another image, without a pause."""
    if not image:
        raise InvalidInput("nothing to update", "", "say --image IMAGE; for all else change the file and run `bulle compose up`")
    with app.locked():
        found = _app(app)
        if app.flags.dry_run:
            note(f" DRY-RUN MODE -  Service {service}  would be updated to {image}")
            return 0
        updating.update(app.engine, found, service, image, app.report, lambda services: build_images(app, list(services), Asked(one_platform=True)))
    return 0


@verb("rollback", "[SERVICE...]")
@click.argument("services", nargs=-1, shell_complete=complete_services)
@pass_app
def rollback(app: App, services: Sequence[str]) -> int:
    """Bring services back to what they were before their last change, without a pause."""
    with app.locked():
        found = _app(app)
        if app.flags.dry_run:
            for name in services or sorted(found.previous):
                note(f" DRY-RUN MODE -  Service {name}  would be rolled back")
            return 0
        updating.rollback(app.engine, found, services, app.report, lambda one: build_images(app, list(one), Asked(one_platform=True)))
    return 0
