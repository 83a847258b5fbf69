"""``bulle compose watch``: services that follow the files they are made from; ``up --watch`` does the same beside the logs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from bulle.cli.composing import App, complete_services, pass_app
from bulle.cli.session import note, printable
from bulle.cli.verb import verb
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
    app.services = tuple(services)
    check_services(app.project, services)
    watcher = watcher_of(app, services, prune=prune, quiet=quiet)
    if app.flags.dry_run:
        return 0
    if not no_up:
        _quietly(app, quiet, services)
    watcher.run()
    return 0


def watcher_of(app: App, services: Sequence[str], *, prune: bool = True, quiet: bool = False) -> Watcher:
    """What watches for these services, or for all. Raises BulleError where none is to be watched."""
    from bulle.compose.watching import Watcher

    project = app.project

    def rebuild(changed: Sequence[Service]) -> None:
        _quietly(app, quiet, [one.name for one in changed], with_dependencies=False)
        if prune:
            app.engine.images.prune()

    chosen = [project.services[name] for name in services or project.services if name in project.services]
    return Watcher(app.engine, project, chosen, rebuild=rebuild, report=lambda text: note(printable(text)))


def watch_beside(watcher: Watcher) -> threading.Event:
    """Watch in a thread of its own until the event that is returned is set: for ``up --watch``."""
    stop = threading.Event()
    threading.Thread(target=watcher.run, args=(stop,), daemon=True).start()
    return stop


def _quietly(app: App, quiet: bool, services: Sequence[str], *, with_dependencies: bool = True) -> None:
    """Have services run as the files say, their images built."""
    from bulle.cli.composing_up import converge
    from bulle.compose.converging import Orders

    shown = replace(app, flags=replace(app.flags, progress="quiet" if quiet else "plain"))
    converge(shown, Orders(services=tuple(services), build=True, with_dependencies=with_dependencies))
