"""What the reconciler's children do: replicas are made, started, ended and replaced, as :mod:`bulle.compose.healing` decided."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec

from bulle.compose import balance, labels, record
from bulle.compose.actual import containers_of, number_of
from bulle.compose.app_images import ensure_images
from bulle.compose.hashing import service_hash
from bulle.compose.healing import Actions, Key
from bulle.compose.model import Service
from bulle.compose.replicas import Replicas, by_service
from bulle.engine.container import Container
from bulle.engine.engine import Engine
from bulle.engine.parallel import each
from bulle.errors import BulleError

_AT_ONCE = 8
_LOG_NAME = "reconciler.log"
_MOST_LOG_BYTES = 256 * 1024


def mend(home: Path, name: str, actions: Actions, words: int) -> None:
    """Make and start replicas of a locked app; which of them failed is written to the descriptor ``words`` in the end."""
    with Engine(home) as engine:
        if (app := record.read(engine, name)) is None:
            return
        replicas = _replicas(engine, app)
        there = {one.id: one for found in replicas.containers.values() for one in found}
        failed: list[Key] = []

        def make(service: Service, number: int, beside: Container | None) -> None:
            _find_image(engine, app, replicas, service)
            replicas.start(service, replicas.make(service, number, predecessor=beside, aside=beside is not None))

        work: list[tuple[Key, str, Callable[[], object]]] = []
        for service, container in (one for one in actions.rename if one[1].id in there):
            act = partial(replicas.succeed, service, there[container.id])
            work.append(((service.name, number_of(container)), f"{container.name} takes its name", act))
        for service, container in (one for one in actions.start if one[1].id in there):
            act = partial(replicas.start, service, there[container.id])
            work.append(((service.name, number_of(container)), f"{container.name} is started again", act))
        for service, number, beside in actions.make:
            what = f"{service.name} {number} is made anew" if beside is None else f"another {beside.name} is started beside it"
            work.append(((service.name, number), what, partial(make, service, number, beside)))

        def do(at: int) -> None:
            key, what, act = work[at]
            try:
                act()
                say(home, f"{name}: {what}")
            except (BulleError, OSError) as error:
                failed.append(key)
                say(home, f"{name}: {what}: {error}")

        each(do, len(work), engine.close, lambda: None, _AT_ONCE)
        os.write(words, msgspec.json.encode(failed))


def end_slowly(home: Path, name: str, service: Service, identifier: str, *, again: bool) -> None:
    """Take a replica out of the balance, give it its time to end, and remove it, or start it ``again``."""
    with Engine(home) as engine, suppress(BulleError):
        container = engine.containers.get(identifier)
        say(home, f"{name}: {container.name} is {'restarted' if again else 'removed'}")
        app = record.read(engine, name)
        if app is None:
            return
        if not again:
            # Whoever changes the app meanwhile must not see it vanish; and where that had it run again it is wanted, and would be after this stop.
            _replicas(engine, app).end(service, container, remove=False, verb="restart")
            with record.locked(engine, name):
                if not container.state().active:
                    container.remove()
            return
        balance.withdraw(service, container)
        container.stop(verb="restart")
        with record.locked(engine, name):
            app = record.read(engine, name)
            if app is not None and service.name in app.choices.running:  # nobody has stopped it meanwhile
                container.start()


def _replicas(engine: Engine, app: record.App) -> Replicas:
    return Replicas(engine, app.project, lambda *_: None, {}, by_service(containers_of(engine, app.name)), from_record=True)


def _find_image(engine: Engine, app: record.App, replicas: Replicas, service: Service) -> None:
    """The image of the other replicas, else that which is called so now; nothing is fetched."""
    if service.name in replicas.images:
        return
    alike = [one.image_id for one in replicas.of(service.name) if one.options.labels.get(labels.CONFIG_HASH) == service_hash(service)]
    images = {service.name: alike[-1]} if alike else ensure_images(engine, app.project, [service], replicas.report, builder=_refuse, pull="never")
    replicas.images = {**replicas.images, **images}


def _refuse(_services: Collection[Service]) -> None:
    """Nothing is built by who only heals."""


def say(home: Path, text: str) -> None:
    """A line for who wonders what was done."""
    path = home / "run" / _LOG_NAME
    with suppress(OSError), open(path, "a") as file:
        if file.tell() > _MOST_LOG_BYTES:
            file.truncate(0)
        file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}\n")
