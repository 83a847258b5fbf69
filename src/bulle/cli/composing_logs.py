"""``bulle compose logs``: what the containers of an app wrote, each line behind the name of its container; ``up`` in the foreground shows the same.

Without ``--follow`` the lines come in the order of their times. With it each container has a thread that reads its log; the events of the home tell
which containers come, and what ended is said. Nothing here starts or stops anything.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from heapq import merge
from typing import TYPE_CHECKING

import click

from bulle.cli.composing import App, complete_services, pass_app
from bulle.cli.option_types import Text, Time, Whole
from bulle.cli.session import complain, write, write_bytes
from bulle.cli.verb import verb
from bulle.compose import labels
from bulle.compose.actual import is_one_off, service_of
from bulle.compose.containers import check_services, pick, short_name
from bulle.errors import BulleError, NotFound, Unavailable
from bulle.monitor.log_reading import Choice
from bulle.monitor.logs import timestamp

if TYPE_CHECKING:
    from bulle.engine import Container, Engine
    from bulle.monitor import LogEntry
    from bulle.records.events import Event

_COLOURS = (36, 33, 32, 35, 34, "36;1", "33;1", "32;1", "35;1", "34;1")
_RESTARTED_WITHIN_S = 0.5
"""How long a container may stand between the end that ``restart`` gave it and its next start, before its log counts as ended."""


def is_coloured(app: App, *, no_color: bool = False) -> bool:
    """Whether what this command line prints has colours."""
    return not no_color and (app.flags.ansi == "always" or (app.flags.ansi == "auto" and os.isatty(1)))


class LogView:
    """Lines of many containers, one under the other, their names aligned. May be called from many threads.

    With ``joined`` standard error of the containers goes to the caller's standard output as well.
    """

    def __init__(self, *, coloured: bool = False, prefixed: bool = True, timestamps: bool = False, joined: bool = False) -> None:
        self._coloured, self._prefixed, self._timestamps, self._joined = coloured, prefixed, timestamps, joined
        self._lock = threading.Lock()
        self._width = 0
        self._colours: dict[str, object] = {}
        self._begun: dict[tuple[str, str], bytes] = {}

    def expect(self, names: Iterable[str]) -> None:
        """Make room for these names before the first line is shown."""
        with self._lock:
            for name in names:
                self._width = max(self._width, len(name))
                self._colours.setdefault(name, _COLOURS[len(self._colours) % len(_COLOURS)])

    def show(self, name: str, entry: LogEntry) -> None:
        """What a container wrote; the beginning of a line is shown with its end."""
        key = (name, entry.stream)
        with self._lock:
            begun = self._begun.pop(key, None)
            if begun is None:
                begun = f"{timestamp(entry.time_ns)} ".encode() if self._timestamps else b""
            data = begun + entry.data
            if data.endswith(b"\n"):
                self._line(name, entry.stream, data)
            else:
                self._begun[key] = data

    def end(self, name: str, text: str = "") -> None:
        """Nothing more comes of a container: show the line that it began, and say why."""
        with self._lock:
            for stream in ("stdout", "stderr"):
                if (begun := self._begun.pop((name, stream), None)) is not None:
                    self._line(name, stream, begun + b"\n")
            if text:
                write(self._paint(name, text) + "\n")

    def _line(self, name: str, stream: str, data: bytes) -> None:
        prefix = self._paint(name, f"{name:{self._width}}  | ").encode() if self._prefixed else b""
        write_bytes(2 if stream == "stderr" and not self._joined else 1, prefix + data)

    def _paint(self, name: str, text: str) -> str:
        return f"\x1b[{self._colours.get(name, _COLOURS[0])}m{text}\x1b[0m" if self._coloured else text


OnExit = Callable[["Container", int], bool]


class Following:
    """Shows what the containers of an app write, also of those that start later: each has a thread that reads its log from when it began.

    ``wanted`` says of which containers; without it those of all services, without those of ``compose run``. ``choice`` is for those that :meth:`add`
    is given; without it what they write from now on. ``on_exit`` is told who ended with which code, and says whether :meth:`wait` is over.
    The threads end with the process.
    """

    def __init__(
        self,
        engine: Engine,
        project: str,
        view: LogView,
        *,
        choice: Choice | None = None,
        wanted: Callable[[Container], bool] | None = None,
        on_exit: OnExit | None = None,
    ) -> None:
        self._engine = engine
        self._view = view
        self._wanted = wanted or (lambda container: not is_one_off(container))
        self._on_exit = on_exit
        self._made_ns = time.time_ns()
        self._choice = choice or Choice(since_ns=self._made_ns)
        self._lock = threading.Lock()
        self._at_work: set[str] = set()
        self._shown_to_ns: dict[str, int] = {}
        self._ended: queue.SimpleQueue[tuple[Container, int] | None] = queue.SimpleQueue()
        events = engine.events(filters={"type": ["container"], "event": ["start", "die"], "label": [f"{labels.PROJECT}={project}"]})
        threading.Thread(target=self._watch, args=(events,), daemon=True).start()

    def add(self, containers: Collection[Container]) -> None:
        """Show these as well, those that are shown already once."""
        self._view.expect(short_name(one) for one in containers)
        for container in containers:
            self._begin(container, self._choice)

    def wait(self) -> None:
        """Return when none of the containers runs any more, or ``on_exit`` said so."""
        while True:
            try:
                ended = self._ended.get(timeout=None if self._at_work else _RESTARTED_WITHIN_S)
            except queue.Empty:
                if not self._at_work:
                    return
                continue
            if ended is not None and self._on_exit is not None and self._on_exit(*ended):
                return

    def _begin(self, container: Container, choice: Choice) -> None:
        with self._lock:
            if container.id in self._at_work:
                return
            self._at_work.add(container.id)
        threading.Thread(target=self._read, args=(container, choice), daemon=True).start()

    def _watch(self, events: Iterable[Event]) -> None:
        """Who starts, and who ends to be started again: a thread of its own."""
        for event in events:
            try:
                container = self._engine.containers.get(event.actor.identifier)
            except NotFound:
                continue  # it was short-lived
            if event.action == "start" and self._wanted(container):
                self._view.expect([short_name(container)])
                self._begin(container, Choice(since_ns=self._next_ns(container)))
            elif event.action == "die" and container.id in self._at_work and container.state().status == "restarting":
                self._view.end(short_name(container), _ending(container, int(event.actor.attributes.get("exitCode") or 0)))

    def _next_ns(self, container: Container) -> int:
        return self._shown_to_ns.get(container.id, self._made_ns - 1) + 1

    def _read(self, container: Container, choice: Choice) -> None:
        """Show a log until its container is not started again: a thread of its own."""
        code = None
        try:
            while True:
                self._read_once(container, choice)
                state = container.state()
                if not state.active:
                    break
                choice = Choice(since_ns=self._next_ns(container))
            if state.status == "exited" and state.exit_code >= 0 and state.finished_at_ns >= self._made_ns:
                code = state.exit_code
        except (BulleError, OSError):
            pass  # removed meanwhile
        self._view.end(short_name(container), "" if code is None else _ending(container, code))
        with self._lock:
            self._at_work.discard(container.id)
        self._ended.put(None if code is None else (container, code))

    def _read_once(self, container: Container, choice: Choice) -> None:
        name = short_name(container)
        try:
            log = container.log
        except Unavailable as error:
            complain(str(error))
            container.wait()
            return
        for entry in log.entries(choice, follow=True):
            self._view.show(name, entry)
            self._shown_to_ns[container.id] = entry.time_ns


def _ending(container: Container, code: int) -> str:
    return f"{short_name(container)} exited with code {code}"


@verb("logs", "[SERVICE...]")
@click.argument("services", nargs=-1, shell_complete=complete_services)
@click.option("-f", "--follow", is_flag=True, help="Follow log output")
@click.option("--index", type=Whole(0), default=0, help="Index of the container if service has multiple replicas")
@click.option("--no-color", is_flag=True, help="Produce monochrome output")
@click.option("--no-log-prefix", is_flag=True, help="Don't print prefix in logs")
@click.option("--since", type=Time(), help='Show logs since timestamp (e.g. "2026-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)')
@click.option("--until", type=Time(), help='Show logs before a timestamp (e.g. "2026-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)')
@click.option("-n", "--tail", type=Text(), default="all", help='Number of lines to show from the end of the logs for each container (default "all")')
@click.option("-t", "--timestamps", is_flag=True, help="Show timestamps")
@pass_app
def logs(
    app: App,
    services: Sequence[str],
    follow: bool,
    index: int,
    no_color: bool,
    no_log_prefix: bool,
    since: int | None,
    until: int | None,
    tail: str,
    timestamps: bool,
) -> int:
    """View output from containers."""
    check_services(app.project_if_any(), services)
    choice = Choice(int(tail) if tail.isdecimal() else None, since or 0, until or 0)
    view = LogView(coloured=is_coloured(app, no_color=no_color), prefixed=not no_log_prefix, timestamps=timestamps, joined=True)
    following = None
    if follow:

        def wanted(container: Container) -> bool:
            return not is_one_off(container) and (not services or service_of(container) in services) and not index

        following = Following(app.engine, app.name, view, choice=choice, wanted=wanted)
    found = app.containers(services)
    if index:
        found = [pick(found, service, index) for service in services]
    if following is None:
        _show(view, found, choice)
    else:
        following.add(found)
        following.wait()
    return 0


def _show(view: LogView, containers: Sequence[Container], choice: Choice) -> None:
    """What is there, in the order of its times."""
    view.expect(map(short_name, containers))

    def entries(container: Container) -> Iterable[tuple[int, str, LogEntry]]:
        name = short_name(container)
        return ((entry.time_ns, name, entry) for entry in container.log.entries(choice))

    sources = []
    for container in containers:
        try:
            sources.append(entries(container))
        except Unavailable as error:
            complain(str(error))
    for _, name, entry in merge(*sources, key=lambda one: one[0]):
        view.show(name, entry)
    for container in containers:
        view.end(short_name(container))
