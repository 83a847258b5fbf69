"""``bulle compose watch``: services that follow the files they are made from; ``up --watch`` does the same beside the logs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from bulle.cli.composing import App
from bulle.cli.composing_images import build_images
from bulle.cli.session import note, printable
from bulle.compose.building import Asked

if TYPE_CHECKING:
    from bulle.compose.model import Service
    from bulle.compose.watching import Watcher


def watcher_of(app: App, services: Sequence[str], bring_up: Callable[[Sequence[str]], object], *, prune: bool = True, quiet: bool = False) -> Watcher:
    """What watches for these services, or for all; ``bring_up`` makes the containers of services anew where their image changed."""
    from bulle.compose.watching import Watcher

    project = app.project

    def rebuild(changed: Sequence[Service]) -> None:
        build_images(app, changed, Asked(one_platform=True), progress="quiet" if quiet else "plain")
        bring_up([one.name for one in changed])
        if prune:
            app.engine.images.prune()

    chosen = [project.services[name] for name in services or project.services if name in project.services]
    return Watcher(app.engine, project, chosen, rebuild=rebuild, report=lambda text: note(printable(text)))


def watch_beside(watcher: Watcher) -> threading.Event:
    """Watch in a thread of its own until the event that is returned is set: for ``up --watch``."""
    stop = threading.Event()
    threading.Thread(target=watcher.run, args=(stop,), daemon=True).start()
    return stop
