"""``bulle logs``: what a container wrote, each stream to the caller's stream of the same name."""

from __future__ import annotations

import click

from bulle.cli import human
from bulle.cli.option_types import Text, Time, complete_containers
from bulle.cli.session import Session, write_bytes
from bulle.cli.verb import verb


@verb("logs", "CONTAINER")
@click.argument("container", shell_complete=complete_containers)
@click.option("-f", "--follow", is_flag=True, help="Follow log output")
@click.option("-n", "--tail", type=Text(), default="all", help='Number of lines to show from the end of the logs (default "all")')
@click.option("--since", type=Time(), help='Show logs since timestamp (e.g. "2026-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)')
@click.option("--until", type=Time(), help='Show logs before a timestamp (e.g. "2026-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)')
@click.option("-t", "--timestamps", is_flag=True, help="Show timestamps")
@click.pass_obj
def logs(session: Session, container: str, follow: bool, tail: str, since: int | None, until: int | None, timestamps: bool) -> int:
    """Fetch the logs of a container."""
    # As in Docker everything that is not a number of lines means all of them.
    lines = int(tail) if tail.isdecimal() else None
    found = session.engine.containers.get(container)
    for entry in found.logs(follow=follow, tail=lines, since_ns=since or 0, until_ns=until or 0):
        stamp = human.rfc3339(entry.time_ns).encode() + b" " if timestamps else b""
        write_bytes(2 if entry.stream == "stderr" else 1, stamp + entry.data)
    return 0
