"""``bulle stats``: what containers use, once or as a table that is drawn again and again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from bulle.cli import human
from bulle.cli.option_types import Suggestion, complete_containers
from bulle.cli.session import Session, write
from bulle.cli.table import Listing, render
from bulle.cli.verb import verb
from bulle.errors import NotFound

if TYPE_CHECKING:
    from bulle.engine import Container, Engine
    from bulle.engine.measuring import ContainerStatistics

_SHORT_ID = 12
_FIRST_S, _EVERY_S = 0.25, 1.0
_HOME, _REST_OF_LINE, _REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"
_FORMAT_HELP = "Format output: 'table', 'table TEMPLATE', 'json', or a Go TEMPLATE"


def _listing(*, truncate: bool, named: dict[str, str]) -> Listing[ContainerStatistics]:
    """The fields of ``stats``; ``named`` is what the user called the containers, by id."""

    def identity(one: ContainerStatistics) -> str:
        return one.id[:_SHORT_ID] if truncate else one.id

    def pair(first: int, second: int) -> str:
        return f"{human.size(first)} / {human.size(second)}"

    return Listing(
        fields={
            "Container": ("CONTAINER", lambda one: named.get(one.id) or identity(one)),
            "ID": ("CONTAINER ID", identity),
            "Name": ("NAME", lambda one: one.name),
            "CPUPerc": ("CPU %", lambda one: f"{one.cpu_percent:.2f}%"),
            "MemUsage": ("MEM USAGE / LIMIT", lambda one: f"{human.binary_size(one.memory_bytes)} / {human.binary_size(one.memory_limit_bytes)}"),
            "MemPerc": ("MEM %", lambda one: f"{one.memory_percent:.2f}%"),
            "NetIO": ("NET I/O", lambda one: pair(one.network_received_bytes, one.network_sent_bytes)),
            "BlockIO": ("BLOCK I/O", lambda one: pair(one.block_read_bytes, one.block_written_bytes)),
            "PIDs": ("PIDS", lambda one: str(one.pids)),
        },
        columns=("ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs"),
        methods={},
    )


@verb("stats", "[CONTAINER...]")
@click.argument("containers", nargs=-1, shell_complete=complete_containers)
@click.option("-a", "--all", "every", is_flag=True, help="Show all containers (default shows just running)")
@click.option("--no-stream", is_flag=True, help="Disable streaming stats and only pull the first result")
@click.option("--no-trunc", is_flag=True, help="Do not truncate output")
@click.option("--format", "form", type=Suggestion("string", "table", "json"), default="", help=_FORMAT_HELP)
@click.pass_obj
def stats(session: Session, containers: Sequence[str], every: bool, no_stream: bool, no_trunc: bool, form: str) -> int:
    """Display a live stream of container(s) resource usage statistics."""
    engine = session.engine
    named = {engine.containers.get(name).id: name for name in containers}

    def look() -> list[Container]:
        # Others may have been started meanwhile, and some of those that were named be gone.
        return _those_left(engine, named) if containers else engine.containers.list(all=every)

    return show_usage(engine, look, named, form, stream=not no_stream, truncate=not no_trunc, endless=not containers)


def show_usage(
    engine: Engine, look: Callable[[], list[Container]], named: dict[str, str], form: str, *, stream: bool, truncate: bool, endless: bool
) -> int:
    """What the containers use that ``look`` finds, once or again and again, until it finds none unless ``endless``."""
    from bulle.engine.measuring import Meter

    shown = _listing(truncate=truncate, named=named)
    meter = Meter(engine.home)
    meter.measure(look())
    time.sleep(_FIRST_S)
    on_terminal = stream and os.isatty(1)
    write(_HOME + _REST_OF_SCREEN if on_terminal else "")
    while True:
        chosen = look()
        text = render(shown, meter.measure(chosen), form)
        write(_HOME + text.replace("\n", _REST_OF_LINE + "\n") + _REST_OF_SCREEN if on_terminal else text)
        if not stream or not (endless or chosen):
            return 0
        time.sleep(_EVERY_S)


def _those_left(engine: Engine, identifiers: Iterable[str]) -> list[Container]:
    found = []
    for identifier in identifiers:
        with suppress(NotFound):
            found.append(engine.containers.get(identifier))
    return found
