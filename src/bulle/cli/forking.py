"""``bulle fork``: a second machine from one that runs."""

from __future__ import annotations

import click

from bulle.cli.option_types import complete_containers
from bulle.cli.session import Session, warn_of, write
from bulle.cli.verb import verb


@verb("fork", "[OPTIONS] CONTAINER")
@click.option("--name", metavar="string", help="The name of the second one")
@click.argument("container", shell_complete=complete_containers)
@click.pass_obj
def fork(session: Session, container: str, name: str | None) -> int:
    """Make a second virtual machine from a running one, with its memory and all that runs in it; prints its id."""
    containers = session.engine.containers
    made = containers.fork(containers.get(container), name or "")
    warn_of(made.notes)
    write(f"{made.id}\n")
    return 0
