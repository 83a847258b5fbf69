"""``bulle ps`` and ``bulle top``: which containers there are, and which processes one of them has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from bulle.cli import human
from bulle.cli.filters import parse
from bulle.cli.go_functions import quote
from bulle.cli.option_types import Suggestion, Text, Whole, complete_containers
from bulle.cli.session import Session, note, printable, write
from bulle.cli.table import FORMAT_HELP as FORMAT_HELP
from bulle.cli.table import Listing, align, render
from bulle.cli.verb import verb
from bulle.engine import filters
from bulle.engine.listing import command_of, status_of

if TYPE_CHECKING:
    from bulle.engine import Container

SHORT_ID = 12
_COMMAND_WIDTH = 20
_TOP_WIDTH = 20
_COLUMNS = ("ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names")


def _labels(container: Container) -> str:
    return ",".join(f"{name}={value}" for name, value in sorted(container.options.labels.items()))


def _mounts(container: Container) -> list[str]:
    """Names of volumes, and host paths of binds."""
    return [one.volume or one.host_path or one.image for one in container.plan.mounts if one.kind != "tmpfs" or one.volume]


def _identity(text: str) -> str:
    return text


def _ports(container: Container) -> str:
    """What it publishes, as Docker writes it; ports that have the same number on both sides and follow each other as a range."""
    texts = []
    ranges: dict[tuple[str, str], list[list[int]]] = {}
    for port in sorted(container.published_ports(), key=lambda one: (one.container_port, one.protocol, one.host_address)):
        address = f"[{port.host_address}]" if ":" in port.host_address else port.host_address
        if port.host_port != port.container_port:
            texts.append(f"{address}:{port.host_port}->{port.container_port}/{port.protocol}")
            continue
        known = ranges.setdefault((address, port.protocol), [])
        if known and known[-1][1] == port.container_port - 1:
            known[-1][1] = port.container_port
        else:
            known.append([port.container_port, port.container_port])
    same = [
        f"{address}:{text}->{text}/{protocol}"
        for (address, protocol), known in ranges.items()
        for first, last in known
        for text in (str(first) if first == last else f"{first}-{last}",)
    ]
    return ", ".join(same + texts)


def _size(container: Container) -> str:
    own, whole = container.sizes()
    return f"{human.size(own)} (virtual {human.size(whole)})"


def listing(*, truncate: bool, sizes: bool = False) -> Listing[Container]:
    """The fields of ``ps``; with ``truncate`` long values are cut as in Docker's table, with ``sizes`` the files of each are counted."""

    def cut(width: int) -> Callable[[str], str]:
        return (lambda text: human.ellipsis(text, width)) if truncate else _identity

    return Listing(
        fields={
            "ID": ("CONTAINER ID", lambda one: one.id[:SHORT_ID] if truncate else one.id),
            "Names": ("NAMES", lambda one: one.name),
            "Image": ("IMAGE", lambda one: one.image),
            "Command": ("COMMAND", lambda one: quote(cut(_COMMAND_WIDTH)(command_of(one)))),
            "CreatedAt": ("CREATED AT", lambda one: human.timestamp(one.created_at_ns)),
            "RunningFor": ("CREATED", lambda one: human.ago(one.created_at_ns)),
            "Ports": ("PORTS", _ports),
            "State": ("STATE", filters.shown_status),
            "Status": ("STATUS", lambda one: status_of(one.state(), paused=one.is_paused())),
            "Labels": ("LABELS", _labels),
            "Mounts": ("MOUNTS", lambda one: ",".join(map(cut(15), _mounts(one)))),
            "LocalVolumes": ("LOCAL VOLUMES", lambda one: str(sum(bool(mount.volume) for mount in one.plan.mounts))),
            "Networks": ("NETWORKS", lambda one: ",".join(one.plan.network.names)),
            "Size": ("SIZE", _size if sizes else lambda one: "0B"),
            "Isolation": ("ISOLATION", lambda one: one.plan.isolation),
        },
        columns=(*_COLUMNS, "Size") if sizes else _COLUMNS,
        methods={"Label": ("LABEL", lambda one: lambda name: one.options.labels.get(name, ""))},
    )


@verb("ps")
@click.option("-a", "--all", "every", is_flag=True, help="Show all containers (default shows just running)")
@click.option("-q", "--quiet", is_flag=True, help="Only display container IDs")
@click.option("-l", "--latest", is_flag=True, help="Show the latest created container (includes all states)")
@click.option("-n", "--last", type=Whole(), default=-1, help="Show n last created containers (includes all states) (default -1)")
@click.option("-s", "--size", "sizes", is_flag=True, help="Display total file sizes")
@click.option("--no-trunc", is_flag=True, help="Don't truncate output")
@click.option(
    "-f", "--filter", "wanted", multiple=True, type=Suggestion("filter", *(f"{key}=" for key in filters.CONTAINER_KEYS)), help="Filter output"
)
@click.option("--format", "form", type=Suggestion("string", "table", "json"), default="", help=FORMAT_HELP)
@click.pass_obj
def ps(session: Session, every: bool, quiet: bool, latest: bool, last: int, sizes: bool, no_trunc: bool, wanted: Sequence[str], form: str) -> int:
    """List containers."""
    chosen = parse(wanted, filters.CONTAINER_KEYS)
    last = 1 if latest and last <= 0 else last
    tests = filters.containers(session.engine, chosen) if chosen else []
    found = session.engine.containers.list(all=every or last > 0 or filters.shows_stopped(chosen))
    found = sorted(found, key=lambda one: one.created_at_ns, reverse=True)
    found = [one for one in found if all(test(one) for test in tests)]
    found = found[:last] if last > 0 else found
    if quiet:
        if form:
            note("WARNING: Ignoring custom format, because both --format and --quiet are set.")
        write("".join((one.id if no_trunc else one.id[:SHORT_ID]) + "\n" for one in found))
    else:
        write(render(listing(truncate=not no_trunc, sizes=sizes or ".Size" in form), found, form))
    return 0


@verb("top", "CONTAINER [ps OPTIONS]", interspersed=False)
@click.argument("container", shell_complete=complete_containers)
@click.argument("ps_options", nargs=-1)
@click.option("--format", "form", type=Text(), default="", help="Format output: 'json', or a Go TEMPLATE for every process")
@click.pass_obj
def top(session: Session, container: str, ps_options: Sequence[str], form: str) -> int:
    """Display the running processes of a container."""
    titles, rows = session.engine.containers.get(container).top(tuple(ps_options))
    if form:
        from bulle.cli.table import render_one

        write("".join(render_one(dict(zip(titles, row, strict=False)), form) for row in rows))
    else:
        write(align([[printable(cell) for cell in line] for line in (titles, *rows)], least_width=_TOP_WIDTH))
    return 0
