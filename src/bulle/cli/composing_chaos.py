"""``bulle compose chaos``: replicas are killed, and what becomes of them is measured."""

from __future__ import annotations

import time
from collections.abc import Sequence

import click

from bulle.cli.composing import App, pass_app
from bulle.cli.option_types import Duration, Whole
from bulle.cli.session import note, write
from bulle.cli.table import Listing, render
from bulle.cli.verb import verb
from bulle.compose import record
from bulle.compose.chaos import Killing, candidates, kill_one
from bulle.errors import InvalidInput, NotFound

_SECOND_NS = 1_000_000_000
LISTING: Listing[Killing] = Listing(
    {
        "Name": ("NAME", lambda one: one.container),
        "Started": ("STARTED AGAIN", lambda one: _seconds(one.started_s)),
        "Recovered": ("IN BALANCE", lambda one: _seconds(one.recovered_s)),
        "Requests": ("REQUESTS", lambda one: str(one.asked) if one.asked else ""),
        "Lost": ("LOST", lambda one: str(one.lost) if one.asked else ""),
    },
    ("Name", "Started", "Recovered", "Requests", "Lost"),
    {},
)


def _seconds(length_s: float | None) -> str:
    return "never" if length_s is None else f"{length_s:.3f}s"


@verb("chaos", "[APP | APP/SERVICE | SERVICE...]")
@click.argument("targets", nargs=-1)
@click.option("--kill", "number", type=Whole(1), default=1, help="How many replicas are killed, one after the other")
@click.option("--interval", type=Duration(), default=_SECOND_NS, help="Time between one that is back and the next kill (default 1s)")
@click.option("--timeout", type=Duration(), default=60 * _SECOND_NS, help="How long one is waited for (default 1m0s)")
@pass_app
def chaos(app: App, targets: Sequence[str], number: int, interval: int, timeout: int) -> int:
    """Kill replicas at random, as a crash would, and measure how they come back."""
    chosen = _chosen(app, targets)
    done: list[Killing] = []
    for turn in range(number):
        if turn:
            time.sleep(interval / _SECOND_NS)
        running = [name for name, services in chosen.items() if candidates(app.engine, name, services)]
        name = running[turn % len(running)] if running else next(iter(chosen))
        killing = kill_one(app.engine, name, chosen[name], timeout / _SECOND_NS)
        done.append(killing)
        lost = f", {killing.lost} of {killing.asked} requests lost" if killing.asked else ""
        note(f"{killing.container} was killed; in balance again: {_seconds(killing.recovered_s)}{lost}")
    write(render(LISTING, done))
    return 0 if all(one.recovered_s is not None for one in done) else 1


def _chosen(app: App, targets: Sequence[str]) -> dict[str, list[str]]:
    """Services by app; an empty list is all of them. Raises NotFound, InvalidInput."""
    found: dict[str, list[str]] = {}
    for target in targets or (app.name,):
        name, slash, service = target.partition("/")
        if slash and not (name and service):
            raise InvalidInput(f"{target!r} names no service", "", "write APP/SERVICE")
        wanted = record.read(app.engine, name)
        if wanted is None and not slash:
            name, service = app.name, target
            wanted = record.read(app.engine, name)
        if wanted is None:
            raise NotFound(f"no such app: {name}", "", "`bulle compose ls` lists those that there are")
        if service and service not in wanted.project.services:
            raise NotFound(f"no such service: {service}", f"{name} has {', '.join(sorted(wanted.project.services))}", "")
        found.setdefault(name, []).extend([service] if service else [])
    return found
