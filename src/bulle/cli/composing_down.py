"""``bulle compose down``: what ``up`` made is removed."""

from __future__ import annotations

from collections.abc import Sequence

import click

from bulle.cli.composing import App, complete_services, for_root, pass_app
from bulle.cli.option_types import Choice, Whole
from bulle.cli.verb import verb
from bulle.compose.halting import Halt


@verb("down", "[SERVICE...]")
@click.argument("services", nargs=-1, shell_complete=complete_services)
@click.option("--remove-orphans", is_flag=True, help="Remove containers for services not defined in the Compose file")
@click.option("--rmi", type=Choice("local", "all"), help="Remove images used by services: all of them, or those without a name of their own (local)")
@click.option("-t", "--timeout", type=Whole(-1), help="Seconds for containers to end in")
@click.option("-v", "--volumes", is_flag=True, help="Remove named volumes of the Compose file and anonymous volumes attached to containers")
@pass_app
def down(app: App, services: Sequence[str], remove_orphans: bool, rmi: str | None, timeout: int | None, volumes: bool) -> int:
    """Stop and remove containers, networks."""
    project = app.project_if_any()
    with app.locked():
        halt = Halt(app.engine, app.name, app.report, project=project, services=services, one_off=not services, timeout_s=timeout)
        if app.flags.dry_run:
            halt.tell("Removed")
        else:
            halt.down(volumes=volumes, images=rmi or "", orphans=remove_orphans)
    return 0


def bring_down(app: App) -> None:
    """Stop and remove all of an app but its volumes."""
    with app.locked():
        Halt(app.engine, app.name, app.report, project=app.project_if_any(), one_off=True).down()


root_down = for_root(down, "Stop and remove the containers and networks of an app (bulle compose down).")
