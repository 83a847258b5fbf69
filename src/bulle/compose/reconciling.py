"""The reconciler: one process per home that keeps the home's apps as they are wanted, for as long as one is.

It is told of what happens by the home's journal, and looks at every app from time to time all the same. What is to be done is decided by
:mod:`bulle.compose.healing` while the app is locked, and done by children of this process, so that nothing that takes long keeps it from the next
replica that dies; the child has the app's lock meanwhile, but for what only gives old replicas time to end. It remembers nothing that matters: killed
at any moment, it is forked anew by the spawner and decides from what there is. The same process scales (decision 24).
"""

from __future__ import annotations

import fcntl
import os
import select
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from bulle.compose import labels, record
from bulle.compose.actual import containers_of
from bulle.compose.autoscaling import STEADY_S, Autoscaler
from bulle.compose.healing import Actions, Failures, Healing, Key
from bulle.compose.keeping import open_lock
from bulle.compose.mending import end_slowly, mend, say
from bulle.compose.taking import without_taken
from bulle.engine.engine import Engine
from bulle.errors import BulleError
from bulle.linux.fork import fork
from bulle.records.apps import AppRecords
from bulle.records.events import Following, publish

if TYPE_CHECKING:
    from bulle.compose.model import Service
    from bulle.engine.container import Container
    from bulle.spawner.leash import Leash

STEADY_SETTING = "BULLE_AUTOSCALE_STEADY_S"
_PATIENCE_S, _PAUSE_S = 1.0, 0.02
_LOOKS_EVERY_S = 5.0
_LOCKED_S, _LOCKED_AT_MOST_S = 0.02, 0.2
_MEASURES_EVERY_S = 2.0
_TELLING = ("die", "destroy", "start", "stop", "create", "rename", "health_status")
_LONGEST = 1 << 16


def main(argv: Sequence[str], _descriptors: Sequence[int], leash: Leash | None) -> int:
    """The entry ``reconciler``: the first of ``argv`` is the home."""
    from bulle.isolation.namespaces import NamespaceDriver

    NamespaceDriver.close_shell()
    Reconciler(Path(argv[0]), leash).serve()
    if leash is not None:
        leash.release()
    return 0


@dataclass
class _Child:
    """A process that does something about an app. ``containers`` are ids of those that it ends; ``words`` is the read end of what it says last."""

    pid: int
    pidfd: int
    app: str
    containers: frozenset[str] = frozenset()
    words: int = -1


@dataclass
class _Watched:
    """An app, as far as it is remembered: when it is looked at next (time.time), and what failed."""

    app: record.App
    failures: Failures
    due_s: float = 0.0
    locked_s: float = _LOCKED_S
    is_worked_on: bool = False


class Reconciler:
    """See the module."""

    def __init__(self, home: Path, leash: Leash | None = None) -> None:
        self._home = home
        self._leash = leash
        self._lock = -1
        self._engine = Engine(home)
        self._apps: dict[str, _Watched] = {}
        self._children: list[_Child] = []
        try:
            steady_s = float(os.environ.get(STEADY_SETTING) or STEADY_S)
        except ValueError:
            steady_s = STEADY_S
        self._autoscaler = Autoscaler(home, steady_s)
        self._measure_at_s = 0.0

    def serve(self) -> None:
        """Keep the home's apps until none is wanted; returns at once where another does."""
        with Following(self._home) as events:
            while self._take_lock():
                while self._read_apps() or self._children:
                    self._guarded("scaling", lambda _: self._scale())
                    for name in [name for name, one in self._apps.items() if one.due_s <= time.time()]:
                        self._guarded(name, self._look)
                    self._wait(events)
                os.close(self._lock)
                if not self._read_apps():  # who wanted one before that saw the lock, and relies on us
                    break

    def _take_lock(self) -> bool:
        self._lock = open_lock(self._home)
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.ftruncate(self._lock, 0)
                os.pwrite(self._lock, str(os.getpid()).encode(), 0)  # for who wonders
                return True
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(self._lock)
                    return False
                time.sleep(_PAUSE_S)  # somebody looks whether there is a reconciler

    def _read_apps(self) -> bool:
        """Know of every app; whether one is to run."""
        if not self._engine.database.path.exists():
            return False  # the home was removed, and must not come back
        rows = {row.name: row for row in AppRecords(self._engine.database).all()}
        for name in self._apps.keys() - rows.keys():
            del self._apps[name]
        for name, row in rows.items():
            known = self._apps.get(name)
            if known is None or known.app.changed_at_ns != row.changed_at_ns:
                self._guarded(name, self._read_app)
        return any(one.app.choices.running for one in self._apps.values())

    def _read_app(self, name: str) -> None:
        known = self._apps.get(name)
        if (app := record.read(self._engine, name)) is not None:
            self._apps[name] = _Watched(app, known.failures if known is not None else Failures())
            self._apps[name].is_worked_on = known is not None and known.is_worked_on

    def _guarded(self, name: str, act: Callable[[str], None]) -> None:
        """What goes wrong with one app keeps nobody from the others; it is tried again with the next look."""
        try:
            act(name)
        except (BulleError, OSError, msgspec.MsgspecError, LookupError) as error:
            say(self._home, f"{name}: {type(error).__name__}: {error}")

    def _wait(self, events: Following) -> None:
        """Until something happened that concerns an app, a child ended, or something is due."""
        due_s = min([one.due_s for one in self._apps.values() if not one.is_worked_on], default=time.time() + _LOOKS_EVERY_S)
        if self._scaled():
            due_s = min(due_s, self._measure_at_s)
        poll = select.poll()
        for child in self._children:
            poll.register(child.pidfd, select.POLLIN)
        if events.fileno() >= 0:
            poll.register(events.fileno(), select.POLLIN)
        self._engine.close()
        poll.poll(max(0.0, min(due_s - time.time(), _LOOKS_EVERY_S)) * 1000)
        for event in events.arrived():
            name = event.actor.attributes.get(labels.PROJECT, "")
            if event.kind == "container" and name in self._apps and event.action.partition(":")[0] in _TELLING:
                self._apps[name].due_s = 0.0
        for child in [child for child in self._children if _has_ended(child)]:
            self._reap(child)

    # One app

    def _look(self, name: str) -> None:
        watched = self._apps[name]
        if watched.is_worked_on:
            return  # its child's end is told
        watched.due_s = time.time() + _LOOKS_EVERY_S
        if not watched.app.choices.running:
            return
        with record.locked(self._engine, name, wait=False) as ours:
            if not ours:
                watched.due_s = time.time() + watched.locked_s
                watched.locked_s = min(2 * watched.locked_s, _LOCKED_AT_MOST_S)
                return
            watched.locked_s = _LOCKED_S
            app = record.read(self._engine, name)
            if app is None:
                return
            watched.app = app
            busy = frozenset(one for child in self._children for one in child.containers)
            actions = Healing(app, containers_of(self._engine, name), watched.failures, busy).decide()
            if any(beside is None for _, _, beside in actions.make) and (fewer := without_taken(self._home, app)) is not app:
                record.write(self._engine, fewer, fewer.changed_at_ns)  # and what was decided is decided anew
                watched.due_s = 0.0
                return
            watched.due_s = min(watched.due_s, actions.look_at_s)
            if actions.is_quick:
                watched.is_worked_on = True
                self._do(name, lambda words: mend(self._home, name, actions, words), actions)
        for again, going in ((False, actions.retire), (True, actions.restart)):
            for service, container in going:
                self._end(name, partial(end_slowly, self._home, name, service, container.id, again=again), container)

    def _do(self, app: str, work: Callable[[int], None], actions: Actions) -> None:
        """Have a child do the quick part. It has the lock until its end, as it was forked with it."""
        for service, number, beside in actions.make:
            if beside is None:
                self._apps[app].failures.add((service.name, number))  # forgotten when it lives
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            pid = self._fork(lambda: work(theirs))
        finally:
            os.close(theirs)
        self._children.append(_Child(pid, os.pidfd_open(pid), app, words=ours))

    def _end(self, app: str, work: Callable[[], None], container: Container) -> None:
        pid = self._fork(work)
        self._children.append(_Child(pid, os.pidfd_open(pid), app, frozenset({container.id})))

    def _fork(self, work: Callable[[], None]) -> int:
        self._engine.close()  # nothing of SQLite crosses a fork
        pid = fork()
        if pid == 0:
            try:
                for descriptor in (self._lock, *([self._leash.fileno()] if self._leash is not None else [])):
                    os.close(descriptor)
                work()
            finally:
                os._exit(0)
        return pid

    def _reap(self, child: _Child) -> None:
        self._children.remove(child)
        with suppress(ChildProcessError):
            os.waitpid(child.pid, 0)
        os.close(child.pidfd)
        failed: list[Key] = []
        if child.words >= 0:
            with suppress(msgspec.MsgspecError):
                failed = msgspec.json.decode(os.read(child.words, _LONGEST) or b"[]", type=list[Key])
            os.close(child.words)
        if (watched := self._apps.get(child.app)) is not None:
            watched.is_worked_on = watched.is_worked_on and child.words < 0
            watched.due_s = 0.0
            for key in failed:
                watched.failures.add(key)

    # Scaling

    def _scaled(self) -> bool:
        """Whether there is something to measure."""
        return any(service.autoscale for one in self._apps.values() for service in _running(one.app))

    def _scale(self) -> None:
        if time.time() < self._measure_at_s or not self._scaled():
            return
        self._measure_at_s = time.time() + _MEASURES_EVERY_S
        there: list[tuple[str, str, list[Container]]] = []
        for name, watched in self._apps.items():
            for service in _running(watched.app):
                if service.autoscale is not None:
                    there.append((name, service.name, containers_of(self._engine, name, [service.name])))
        self._autoscaler.look([one for _, _, containers in there for one in containers])
        for name, service_name, containers in there:
            app = self._apps[name].app
            service = app.service(service_name)
            assert service.autoscale is not None
            wanted = self._autoscaler.replicas(name, service_name, service.autoscale, service.replicas, containers)
            if wanted != service.replicas:
                self._choose(name, service_name, service.replicas, wanted)

    def _choose(self, name: str, service: str, before: int, wanted: int) -> None:
        """Have another number of replicas; the next look makes it so. Where somebody else changes the app, it is measured again."""
        with record.locked(self._engine, name, wait=False) as ours:
            app = record.read(self._engine, name) if ours else None
            if app is None or service not in app.choices.running or app.service(service).replicas != before:
                return
            record.write(self._engine, replace(app, choices=replace(app.choices, scales={**app.choices.scales, service: wanted})))
        attributes = {labels.PROJECT: name, labels.SERVICE: service, "name": f"{name}-{service}"}
        publish(self._home, "service", "update", f"{name}-{service}", {**attributes, "replicas.old": str(before), "replicas.new": str(wanted)})


def _running(app: record.App) -> list[Service]:
    """The services that are to run."""
    return [app.project.services[name] for name in app.choices.running if name in app.project.services]


def _has_ended(child: _Child) -> bool:
    poll = select.poll()
    poll.register(child.pidfd, select.POLLIN)
    return bool(poll.poll(0))
