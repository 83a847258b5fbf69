"""What is wanted of an app, kept in the database; and the lock that whoever changes its containers holds.

``up`` writes it before it changes anything, ``down`` forgets it when all is gone, the reconciler reads it. Every change of an app's containers, also
the reconciler's, is made while :func:`locked`.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from bulle.compose.keeping import ensure
from bulle.compose.model import Project, Service
from bulle.records.apps import AppRecords, AppRow, Choices

if TYPE_CHECKING:
    from bulle.engine import Engine


_PATIENCE_S, _PAUSE_S = 1.0, 0.005


def _plain(value: object) -> int:
    """Lengths of time and sizes are numbers of a kind of their own."""
    if isinstance(value, int):
        return int(value)
    raise TypeError(f"{type(value)} in a project")


def _own_kind(kind: type, value: object) -> object:
    return kind(value)


_encoder = msgspec.json.Encoder(enc_hook=_plain, order="deterministic")
_project = msgspec.json.Decoder(Project, dec_hook=_own_kind)
_services = msgspec.json.Decoder(dict[str, Service], dec_hook=_own_kind)


def encoded(value: object) -> bytes:
    """A part of a project as JSON, the same for equal ones."""
    return _encoder.encode(value)


class App(msgspec.Struct, frozen=True):
    """What is wanted of one app. ``project`` is the file's, without places and documents; ``previous`` are services before their last change."""

    project: Project
    previous: dict[str, Service] = {}
    choices: Choices = Choices()
    changed_at_ns: int = 0

    @property
    def name(self) -> str:
        """The project's name."""
        return self.project.name

    def service(self, name: str) -> Service:
        """A service as it is wanted: of the file, with what was chosen since. Raises KeyError."""
        return effective(self.project.services[name], self.choices)


def effective(service: Service, choices: Choices) -> Service:
    """The service with the image that ``update`` chose and the number of replicas that ``scale`` chose."""
    if image := choices.images.get(service.name):
        service = replace(service, image=image)
    if (scale := choices.scales.get(service.name)) is not None and scale != service.replicas:
        deploy = service.deploy and replace(service.deploy, replicas=None)
        service = replace(service, scale=scale, deploy=deploy)
    return service


def read(engine: Engine, name: str) -> App | None:
    """What is wanted of the app of that name, None where nothing is."""
    row = AppRecords(engine.database).find(name)
    return None if row is None else _app(row)


def read_all(engine: Engine) -> list[App]:
    """Of every app of the home."""
    return [_app(row) for row in AppRecords(engine.database).all()]


def write(engine: Engine, app: App, at_ns: int = 0) -> None:
    """Keep what is wanted from now on (or from a moment before), in one transaction; nothing is written where nothing changed."""
    records = AppRecords(engine.database)
    row = AppRow(app.name, at_ns or time.time_ns(), encoded(_kept(app.project)), encoded(app.previous), app.choices)
    before = records.find(app.name)
    if before is None or replace(before, changed_at_ns=row.changed_at_ns) != row:
        records.put(row)
    if app.choices.running:
        ensure(engine.home)


def have_kept(engine: Engine) -> None:
    """Have the home's apps kept as they are wanted, if one is."""
    if any(row.choices.running for row in AppRecords(engine.database).all()):
        ensure(engine.home)


def forget(engine: Engine, name: str) -> None:
    """Nothing is wanted of it any more."""
    AppRecords(engine.database).delete(name)


def _kept(project: Project) -> Project:
    """Without what only messages and ``config`` need; the caller's variables may hold secrets, which are kept as files."""
    return replace(project, places={}, document={}, notes=(), environment={}, disabled={})


def _app(row: AppRow) -> App:
    return App(_project.decode(row.project), _services.decode(row.previous), row.choices, row.changed_at_ns)


def _wait_for(descriptor: int, say: Callable[[], object]) -> None:
    """Wait for the lock; somebody who has it for a moment only is not worth a word."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(_PAUSE_S)
    say()
    fcntl.flock(descriptor, fcntl.LOCK_EX)


@contextmanager
def locked(engine: Engine, name: str, *, wait: bool = True, say: Callable[[], object] = lambda: None) -> Iterator[bool]:
    """Be the only one who changes the containers of an app; ``say`` is called where that has to be waited for.

    Without ``wait`` gives False where somebody else does. The lock dies with the process.
    """
    path = engine.home / "run" / f"app-{re.sub(r'[^a-zA-Z0-9_.-]', '_', name)}.lock"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                yield False
                return
            _wait_for(descriptor, say)
        yield True
    finally:
        os.close(descriptor)
