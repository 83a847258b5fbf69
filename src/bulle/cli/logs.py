"""``bulle logs``: what a container wrote, each stream to the caller's stream of the same name."""

from __future__ import annotations

import click

from bulle.cli.option_types import Text, Time, complete_containers
from bulle.cli.session import Session, write_bytes
from bulle.cli.verb import verb
from bulle.monitor.log_reading import Choice


@verb("logs", "CONTAINER")
@click.argument("container", shell_complete=complete_containers)
@click.option("-f", "--follow", is_flag=True, help="Follow log output")
@click.option("-n", "--tail", type=Text(), default="all", help='Number of lines to show from the end of the logs (default "all")')
@click.option("--since", type=Time(), help='Show logs since timestamp (e.g. "2026-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)')
@click.option("--until", type=Time(), help='Show logs before a timestamp (e.g. "2026-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)')
@click.option("-t", "--timestamps", is_flag=True, help="Show timestamps")
@click.option("--details", is_flag=True, help="Show extra details provided to logs")
@click.pass_obj
def logs(session: Session, container: str, follow: bool, tail: str, since: int | None, until: int | None, timestamps: bool, details: bool) -> int:
    """Fetch the logs of a container."""
    # As in Docker everything that is not a number of lines means all of them.
    lines = int(tail) if tail.isdecimal() else None
    choice = Choice(lines, since or 0, until or 0)
    log = session.engine.containers.get(container).log
    for stream, text in log.text(choice, follow=follow, timestamps=timestamps, details=details):
        write_bytes(2 if stream == "stderr" else 1, text)
    return 0
