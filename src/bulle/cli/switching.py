"""``bulle switch``: the same container at another level of isolation."""

from __future__ import annotations

import click

from bulle.cli.option_types import Suggestion, Whole, complete_containers
from bulle.cli.session import Session, note, warn_of, write
from bulle.cli.verb import verb


@verb("switch", "CONTAINER")
@click.argument("container", shell_complete=complete_containers)
@click.option("--isolation", required=True, type=Suggestion("level", "container", "vm", "chroot"), help="The level (container, vm, chroot)")
@click.option("-t", "--timeout", type=Whole(-1), help="Seconds for it to end in")
@click.pass_obj
def switch(session: Session, container: str, isolation: str | None, timeout: int | None) -> int:
    """Have a container at another level of isolation: the same name, id, files, volumes, address, ports and labels.

    One that runs is restarted; what it had in memory is gone.
    """
    from bulle.engine.rebasing import switch as switch_level
    from bulle.errors import InvalidInput

    if not isolation:
        raise InvalidInput("no level is named", "", "say --isolation container, vm or chroot")
    before = session.engine.containers.get(container).plan
    changed = switch_level(session.engine, container, isolation, timeout)
    warn_of(changed.notes)
    if before.network.ports and not changed.plan.network.ports:
        note("WARNING: its ports are not published: it has the host's network now")
    write(f"{container}\n")
    return 0
