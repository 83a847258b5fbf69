"""``bulle restart``: stop containers that run, and start them all."""

from __future__ import annotations

from collections.abc import Sequence

import click

from bulle.cli.option_types import Signal, Whole, complete_containers
from bulle.cli.session import Session
from bulle.cli.verb import verb


@verb("restart", "CONTAINER [CONTAINER...]")
@click.argument("containers", nargs=-1, required=True, shell_complete=complete_containers)
@click.option("-t", "--timeout", "--time", type=Whole(-1), help="Seconds to wait before killing the container (-1: for ever)")
@click.option("-s", "--signal", "signal_name", type=Signal(), help="Signal to send to the container")
@click.pass_obj
def restart(session: Session, containers: Sequence[str], timeout: int | None, signal_name: str | None) -> int:
    """Restart one or more containers."""
    return session.for_containers(containers, lambda container: container.restart(timeout_s=timeout, signal=signal_name or ""))
