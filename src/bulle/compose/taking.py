"""Replicas that somebody took away: stopped as a user does, and then removed, by Docker's own client on the socket for instance. They are not wanted.

What is removed while it runs (``bulle rm -f``) is made anew; what was stopped first was ended on purpose, and so was its removal. The home's journal
tells both, so that whoever decides needs no memory of its own. Called by the reconciler, before it makes anything anew.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from pathlib import Path

from msgspec.structs import replace

from bulle.compose import labels
from bulle.compose.healing import Key
from bulle.compose.record import App
from bulle.records.events import read


def without_taken(home: Path, app: App) -> App:
    """The app with so many replicas fewer, until the next ``up``; the same one where nothing was taken away since it was changed."""
    taken = _taken(home, app)
    counts = Counter(service for service, _number in taken)
    wanted = {name: app.service(name).replicas for name in app.choices.running if name in app.project.services}
    fewer = {name: max(0, wanted[name] - count) for name, count in counts.items() if wanted.get(name)}
    if not fewer:
        return app
    running = tuple(name for name in app.choices.running if fewer.get(name, 1))
    choices = replace(app.choices, scales={**app.choices.scales, **fewer}, running=running)
    return replace(app, choices=choices, changed_at_ns=max(taken.values()))


def _taken(home: Path, app: App) -> dict[Key, int]:
    """When each was removed."""
    stopped: set[str] = set()
    taken: dict[Key, int] = {}
    for event in read(home):
        attributes = event.actor.attributes
        if event.kind != "container" or attributes.get(labels.PROJECT) != app.project.name or attributes.get(labels.ONE_OFF) == "True":
            continue
        if event.action == "stop":
            stopped.add(event.actor.identifier)
        elif event.action == "start":
            stopped.discard(event.actor.identifier)
        elif event.action in ("create", "destroy"):
            with suppress(ValueError):
                key = (attributes.get(labels.SERVICE, ""), int(attributes.get(labels.NUMBER, "")))
                taken.pop(key, None)
                if event.action == "destroy" and event.actor.identifier in stopped and event.time_ns > app.changed_at_ns:
                    taken[key] = event.time_ns
    return taken
