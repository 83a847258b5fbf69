"""``bulle compose watch``: services that follow the files they are made from; ``up --watch`` does the same beside the logs."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import click

from bulle.cli.composing import App, complete_services, pass_app
from bulle.cli.composing_images import build_images
from bulle.cli.session import note, printable
from bulle.cli.verb import verb
from bulle.compose.building import Asked
from bulle.compose.containers import check_services

if TYPE_CHECKING:
    from bulle.compose.model import Service
    from bulle.compose.watching import Watcher


@verb("watch", "[SERVICE...]")
@click.argument("services", nargs=-1, shell_complete=complete_services)
@click.option("--no-up", is_flag=True, help="Do not build & start services before watching")
@click.option("--prune", is_flag=True, default=True, help="Prune dangling images on rebuild (default true)")
@click.option("--quiet", is_flag=True, help="Hide build output")
@pass_app
def watch(app: App, services: Sequence[str], no_up: bool, prune: bool, quiet: bool) -> int:
    """Watch build context for service and rebuild/refresh containers when files are updated."""
    check_services(app.project, services)
    watcher = watcher_of(app, services, prune=prune, quiet=quiet)
    if app.flags.dry_run:
        return 0
    if not no_up:
        _bring_up(app, services, quiet=quiet, build=True)
    watcher.run()
    return 0


def watcher_of(app: App, services: Sequence[str], *, prune: bool = True, quiet: bool = False) -> Watcher:
    """What watches for these services, or for all. Raises BulleError where none is to be watched."""
    from bulle.compose.watching import Watcher

    project = app.project

    def rebuild(changed: Sequence[Service]) -> None:
        _bring_up(app, [one.name for one in changed], quiet=quiet, build=True, with_dependencies=False)
        if prune:
            app.engine.images.prune()

    chosen = [project.services[name] for name in services or project.services if name in project.services]
    return Watcher(app.engine, project, chosen, rebuild=rebuild, report=lambda text: note(printable(text)))


def watch_beside(watcher: Watcher) -> threading.Event:
    """Watch in a thread of its own until the event that is returned is set: for ``up --watch``."""
    stop = threading.Event()
    threading.Thread(target=watcher.run, args=(stop,), daemon=True).start()
    return stop


def _bring_up(app: App, services: Sequence[str], *, quiet: bool, build: bool, with_dependencies: bool = True) -> None:
    """Have services run as the files say, their images built."""
    from bulle.compose.converging import Convergence, Orders
    from bulle.compose.record import locked

    def report(kind: str, name: str, text: str) -> None:
        if not quiet:
            note(printable(f" {kind} {name}  {text}"))

    def make(wanted: Collection[Service]) -> None:
        build_images(app, tuple(wanted), Asked(one_platform=True), progress="quiet" if quiet else "plain")

    with locked(app.engine, app.name):
        orders = Orders(services=tuple(services), build=build or None, with_dependencies=with_dependencies)
        convergence = Convergence(app.engine, app.project, orders, report, make)
        convergence.prepare()
        convergence.apply()
