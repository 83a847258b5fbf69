"""``bulle rename``: another name for a container."""

from __future__ import annotations

import click

from bulle.cli.option_types import complete_containers
from bulle.cli.session import Session
from bulle.cli.verb import verb
from bulle.errors import InvalidInput


@verb("rename", "CONTAINER NEW_NAME")
@click.argument("container", shell_complete=complete_containers)
@click.argument("new_name")
@click.pass_obj
def rename(session: Session, container: str, new_name: str) -> int:
    """Rename a container."""
    if not container.strip() or not new_name.strip():
        raise InvalidInput("Neither old nor new names may be empty", "", "name both")
    session.engine.containers.get(container).rename(new_name.removeprefix("/"))
    return 0
