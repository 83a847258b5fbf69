"""``develop.watch``: files of this machine that change, and what that means for the replicas of the services that watch them.

Changes that come together are one batch. What is to be synced goes as one tar into every replica; whoever builds and makes containers anew is the
caller's. Compose specification, "Compose Develop Specification".
"""

from __future__ import annotations

import io
import os
import re
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bulle.build.context import ignore_rules
from bulle.build.patterns import IgnoreRules
from bulle.compose.actual import containers_of
from bulle.compose.model import Project, Service
from bulle.compose.replicas import run_hook
from bulle.compose.service_parts import Hook, WatchRule
from bulle.errors import BulleError, InvalidInput, NotFound

if TYPE_CHECKING:
    from bulle.engine import Container, Engine

_EPHEMERAL = re.compile(r".*~|\.#.*|#.*#|\..*\.sw[a-z]{1,2}|\..*\.kate-swp|4913|.*___jb_(tmp|old)___")
"""Names of what editors keep beside a file while it is open."""
_SETTLED_MS, _LONGEST_MS, _LOOK_UP_MS = 50, 1600, 5000
"""A batch ends when nothing changed for that long, and at the latest after that long."""

Rebuild = Callable[[Sequence[Service]], object]
Report = Callable[[str], object]


@dataclass(frozen=True)
class _Rule:
    """One rule with its patterns."""

    service: Service
    rule: WatchRule
    ignored: IgnoreRules
    included: IgnoreRules
    context: str
    context_ignored: IgnoreRules | None

    def covers(self, path: str) -> bool:
        """Whether the rule is about a host path."""
        if path != self.rule.path and not path.startswith(self.rule.path.rstrip("/") + "/"):
            return False
        relative = os.path.relpath(path, self.rule.path)
        if _EPHEMERAL.fullmatch(os.path.basename(path)) or (relative != "." and self.ignored.excludes(relative)):
            return False
        if self.included and not self.included.excludes(relative):
            return False
        in_context = self.context_ignored is not None and path.startswith(self.context + "/")
        return not (in_context and self.context_ignored is not None and self.context_ignored.excludes(os.path.relpath(path, self.context)))

    def inside(self, path: str) -> str:
        """The container path of a host path."""
        relative = os.path.relpath(path, self.rule.path)
        return self.rule.target if relative == "." else f"{self.rule.target.rstrip('/')}/{relative}"

    def files(self) -> Iterator[str]:
        """Every host path that it covers."""
        if not os.path.isdir(self.rule.path):
            yield self.rule.path
        for directory, _, names in os.walk(self.rule.path):
            yield from (path for name in names if self.covers(path := os.path.join(directory, name)))


@dataclass
class _Work:
    """What a batch means for one service: ``files`` are container paths with the host path of each."""

    service: Service
    files: dict[str, str] = field(default_factory=dict)
    hooks: list[Hook] = field(default_factory=list)
    restart: bool = False
    rebuild: bool = False


class Watcher:
    """Watches for the services that say ``develop.watch``. Raises InvalidInput or NotFound with file and line for rules that cannot be kept."""

    def __init__(self, engine: Engine, project: Project, services: Iterable[Service], *, rebuild: Rebuild, report: Report) -> None:
        self._engine = engine
        self._project = project
        self._rebuild = rebuild
        self._report = report
        self._rules = [rule for service in services if service.develop is not None for rule in _rules(project, service)]
        if not self._rules:
            raise InvalidInput(
                "none of the selected services is configured for watch", "no service says develop.watch", "add a develop section to one"
            )

    def run(self, stop: threading.Event | None = None) -> None:
        """Watch until ``stop`` is set, or for ever; an interrupt of the main thread is raised."""
        from watchfiles._rust_notify import RustNotify  # what only this verb needs; the public way to it brings asyncio along

        first = {rule.service.name: _Work(rule.service) for rule in self._rules}
        places = {rule.rule.path if os.path.isdir(rule.rule.path) else os.path.dirname(rule.rule.path) for rule in self._rules}
        with RustNotify(sorted(places), False, False, 0, True, True) as changes:  # from now on nothing is missed
            for rule in self._rules:
                if rule.rule.initial_sync and "sync" in rule.rule.action:
                    first[rule.service.name].files.update((rule.inside(path), path) for path in rule.files())
            self._do([work for work in first.values() if work.files])
            self._report("Watch enabled")
            while True:
                batch = changes.watch(_LONGEST_MS, _SETTLED_MS, _LOOK_UP_MS, stop)
                if batch == "stop":
                    return
                if batch == "signal":
                    raise KeyboardInterrupt
                if isinstance(batch, set):
                    self._do(self._works({path for _, path in batch}))

    def _works(self, paths: set[str]) -> list[_Work]:
        """What is to be done for each service."""
        works: dict[str, _Work] = {}
        for path in sorted({one for changed in paths for one in _with_what_is_in(changed)}):
            for rule in self._rules:
                if not rule.covers(path):
                    continue
                action = rule.rule.action
                work = works.setdefault(rule.service.name, _Work(rule.service))
                if action.startswith("sync"):
                    work.files[rule.inside(path)] = path
                work.rebuild |= action == "rebuild"
                work.restart |= action.endswith("restart")
                if action == "sync+exec" and rule.rule.exec is not None and rule.rule.exec not in work.hooks:
                    work.hooks.append(rule.rule.exec)
        return list(works.values())

    def _do(self, works: Sequence[_Work]) -> None:
        """A failure is said, and what comes next is done all the same."""
        anew = [work.service for work in works if work.rebuild]
        if anew:
            self._report(f"Rebuilding service(s) {', '.join(one.name for one in anew)} after changes were detected")
            with self._saying():
                self._rebuild(anew)
                self._report(f"service(s) {', '.join(one.name for one in anew)} successfully built")
        for work in works:
            if not work.rebuild:
                with self._saying():
                    self._change(work)

    def _change(self, work: _Work) -> None:
        name = work.service.name
        containers = [one for one in containers_of(self._engine, self._project.name, [name]) if one.state().active]
        if work.files:
            self._report(f'Syncing service "{name}" after {len(work.files)} changes were detected')
            there = {inside: path for inside, path in work.files.items() if os.path.lexists(path)}
            gone = [inside for inside in work.files if inside not in there]
            archive = _archive(there)
            for container in containers:
                _sync(container, archive, gone)
        for hook in work.hooks:
            for container in containers:
                run_hook(container, hook)
        if work.restart:
            self._report(f'Restarting service "{name}"')
            for container in containers:
                container.restart()

    def _saying(self) -> _Saying:
        return _Saying(self._report)


class _Saying:
    """Says what fails in its block."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: object, _traceback: object) -> bool:
        if isinstance(error, (BulleError, OSError)):
            self._report(f"Error: {error}")
            return True
        return False


def _rules(project: Project, service: Service) -> Iterator[_Rule]:
    assert service.develop is not None
    build = service.build
    context = build.context if build is not None and os.path.isdir(build.context) else ""
    context_ignored = None
    if context:
        descriptor = os.open(context, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            context_ignored = ignore_rules(descriptor)
        finally:
            os.close(descriptor)
    for number, rule in enumerate(service.develop.watch):
        place = project.place("services", service.name, "develop", "watch", number, "path")
        if not os.path.exists(rule.path):
            raise NotFound(f"{place}: {rule.path} cannot be watched", "it is not there", "make it first")
        if rule.action == "rebuild" and build is None:
            raise InvalidInput(f"{place}: service {service.name} cannot be rebuilt", "it has no build section", "use sync or restart")
        if rule.action.startswith("sync") and not rule.target:
            raise InvalidInput(f"{place}: {rule.action} needs a target", "", "say where in the container the files go")
        if rule.action == "sync+exec" and rule.exec is None:
            raise InvalidInput(f"{place}: sync+exec needs exec", "", "say the command: exec: {command: …}")
        yield _Rule(service, rule, IgnoreRules(rule.ignore), IgnoreRules(rule.include), context, context_ignored)


def _with_what_is_in(path: str) -> Iterator[str]:
    """A path that changed; of a directory its files, since those that came with it may not have been told of."""
    if not os.path.isdir(path) or os.path.islink(path):
        yield path
        return
    for directory, _, names in os.walk(path):
        yield from (os.path.join(directory, name) for name in names)


def _archive(files: dict[str, str]) -> bytes:
    """The files (container path: host path) as a tar for the root directory; what they are is theirs, whom they belong to is not."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for inside, path in files.items():
            with suppress(FileNotFoundError):  # gone since
                member = archive.gettarinfo(path, arcname=inside.lstrip("/"))
                if member is None:  # a socket
                    continue
                member.uid = member.gid = 0
                member.uname = member.gname = ""
                if member.isreg():
                    with open(path, "rb") as content:
                        archive.addfile(member, content)
                else:
                    archive.addfile(member)
    return out.getvalue()


def _sync(container: Container, archive: bytes, gone: Sequence[str]) -> None:
    container.files.write_archive(io.BytesIO(archive), "/", archive=False)
    if gone:
        run_hook(container, Hook(command=("rm", "-rf", *gone)))
