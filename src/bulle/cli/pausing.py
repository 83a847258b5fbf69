"""``bulle pause`` and ``bulle unpause``: have containers stand still, and go on."""

from __future__ import annotations

from collections.abc import Sequence

import click

from bulle.cli.option_types import complete_containers
from bulle.cli.session import Session
from bulle.cli.verb import verb

_SEVERAL = "CONTAINER [CONTAINER...]"


@verb("pause", _SEVERAL)
@click.argument("containers", nargs=-1, required=True, shell_complete=complete_containers)
@click.pass_obj
def pause(session: Session, containers: Sequence[str]) -> int:
    """Pause all processes within one or more containers."""
    return session.for_containers(containers, lambda container: container.pause())


@verb("unpause", _SEVERAL)
@click.argument("containers", nargs=-1, required=True, shell_complete=complete_containers)
@click.pass_obj
def unpause(session: Session, containers: Sequence[str]) -> int:
    """Unpause all processes within one or more containers."""
    return session.for_containers(containers, lambda container: container.unpause())
