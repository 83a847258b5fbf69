"""``bulle compose up`` and ``create``: from flags to :mod:`bulle.compose.converging`, and the foreground, where the app ends with the command."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from bulle.cli.composing import App, complete_services, for_root, pass_app
from bulle.cli.composing_images import build_images
from bulle.cli.composing_logs import Following, LogView, is_coloured
from bulle.cli.option_types import Choice, Text, Whole
from bulle.cli.session import note
from bulle.cli.verb import verb
from bulle.compose.actual import containers_of, is_one_off, service_of
from bulle.compose.building import Asked
from bulle.compose.converging import AT_ONCE, Convergence, Orders
from bulle.compose.halting import Halt
from bulle.errors import InvalidInput

if TYPE_CHECKING:
    from bulle.engine import Container

SERVICES = click.argument("services", nargs=-1, shell_complete=complete_services)
_SCALE = click.option(
    "--scale", multiple=True, type=Text("scale"), help="Scale SERVICE to NUM instances. Overrides the scale setting in the Compose file if present"
)
_INTERRUPTED = 130

_MAKING: Sequence[Callable[[Any], Any]] = (
    click.option("--build", is_flag=True, help="Build images before starting containers"),
    click.option("--no-build", is_flag=True, help="Don't build an image, even if it's policy"),
    click.option("--pull", type=Choice("always", "missing", "never", "build", "policy"), default="policy", help="Pull image before running"),
    click.option("--quiet-pull", is_flag=True, help="Pull without printing progress information"),
    click.option("--force-recreate", is_flag=True, help="Recreate containers even if their configuration and image haven't changed"),
    click.option("--no-recreate", is_flag=True, help="If containers already exist, don't recreate them. Incompatible with --force-recreate"),
    click.option("--remove-orphans", is_flag=True, help="Remove containers for services not defined in the Compose file"),
    _SCALE,
    click.option("-y", "--yes", is_flag=True, help="Accepted: nothing is asked"),
)
_UP: Sequence[Callable[[Any], Any]] = (
    click.option("-d", "--detach", is_flag=True, help="Detached mode: Run containers in the background"),
    click.option("--abort-on-container-exit", is_flag=True, help="Stops all containers if any container was stopped. Incompatible with -d"),
    click.option("--abort-on-container-failure", is_flag=True, help="Stops all containers if any exited with failure. Incompatible with -d"),
    click.option("--always-recreate-deps", is_flag=True, help="Recreate dependent containers. Incompatible with --no-recreate"),
    click.option("--attach", multiple=True, type=Text("stringArray"), help="Restrict attaching to the specified services"),
    click.option("--attach-dependencies", is_flag=True, help="Automatically attach to log output of dependent services"),
    click.option("--no-attach", multiple=True, type=Text("stringArray"), help="Do not attach (stream logs) to the specified services"),
    click.option("--exit-code-from", type=Text(), help="Return the exit code of the selected service. Implies --abort-on-container-exit"),
    click.option("--no-color", is_flag=True, help="Produce monochrome output"),
    click.option("--no-log-prefix", is_flag=True, help="Don't print prefix in logs"),
    click.option("--timestamps", is_flag=True, help="Show timestamps"),
    click.option("--no-deps", is_flag=True, help="Don't start linked services"),
    click.option("--no-start", is_flag=True, help="Don't start the services after creating them"),
    click.option("-V", "--renew-anon-volumes", is_flag=True, help="Recreate anonymous volumes instead of those of the previous containers"),
    click.option("-t", "--timeout", type=Whole(-1), help="Seconds for containers to end in when they are stopped"),
    click.option("-w", "--watch", is_flag=True, help="Watch source code and rebuild/refresh containers when files are updated"),
    click.option("--wait", "await_ready", is_flag=True, help="Wait for services to be running|healthy. Implies detached mode"),
    click.option("--wait-timeout", type=Whole(0), default=0, help="Maximum duration in seconds to wait for the project to be running|healthy"),
)


def _options(flags: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        for one in reversed(flags):
            function = one(function)
        return function

    return decorate


def scales(given: Sequence[str]) -> dict[str, int]:
    """``SERVICE=NUM`` each. Raises InvalidInput."""
    found = {}
    for text in given:
        name, equals, number = text.partition("=")
        if not equals or not number.isdecimal() or not name:
            raise InvalidInput(f"invalid scale: {text!r}", "", "write it as SERVICE=NUM")
        found[name] = int(number)
    return found


def orders_of(app: App, services: Sequence[str], flags: dict[str, Any]) -> Orders:
    """The flags of ``up`` or ``create`` as orders. Raises InvalidInput for those that contradict each other."""
    for one, other in (("force_recreate", "no_recreate"), ("always_recreate_deps", "no_recreate"), ("build", "no_build")):
        if flags.get(one) and flags.get(other):
            raise InvalidInput(f"--{one.replace('_', '-')} and --{other.replace('_', '-')} are incompatible")
    return Orders(
        services=tuple(services),
        scales=scales(flags["scale"]),
        start=not flags.get("no_start"),
        kept=not any(flags.get(name) for name in ("abort_on_container_exit", "abort_on_container_failure", "exit_code_from")),
        with_dependencies=not flags.get("no_deps"),
        force_recreate=flags["force_recreate"],
        recreate=not flags["no_recreate"],
        recreate_dependencies=bool(flags.get("always_recreate_deps")),
        renew_volumes=bool(flags.get("renew_anon_volumes")),
        remove_orphans=flags["remove_orphans"],
        build=True if flags["build"] else False if flags["no_build"] else None,
        pull="" if flags["pull"] == "policy" else flags["pull"],
        quiet_pull=flags["quiet_pull"],
        timeout_s=flags.get("timeout"),
        every_resource=app.flags.all_resources,
        at_once=app.flags.parallel if app.flags.parallel > 0 else AT_ONCE,
        dry=app.flags.dry_run,
    )


def convergence_of(app: App, orders: Orders) -> Convergence:
    """An ``up`` that is checked and ready to be applied; the app has to be locked."""
    made = Convergence(app.engine, app.project, orders, app.report, lambda found: build_images(app, list(found), Asked(one_platform=True)))
    made.prepare()
    app.say_notes(made.notes)
    if made.orphans and not orders.remove_orphans:
        names = ", ".join(one.name for one in made.orphans)
        note(f"WARNING: there are containers of services that the file does not have: {names}; --remove-orphans removes them")
    return made


def converge(app: App, orders: Orders, timeout_s: int | None = None, *, wait: bool = False) -> Convergence:
    """Make the app what its files say; with ``wait`` also wait until it is ready."""
    with app.locked():
        made = convergence_of(app, orders)
        if orders.dry:
            made.tell()
            return made
        made.apply()
    if wait:
        made.await_ready(timeout_s or None)
    return made


@verb("up", "[SERVICE...]")
@SERVICES
@_options(_UP)
@_options(_MAKING)
@pass_app
def up(app: App, services: Sequence[str], **flags: Any) -> int:
    """Create and start containers."""
    app.services = tuple(services)
    aborts = flags["abort_on_container_exit"] or flags["abort_on_container_failure"] or flags["exit_code_from"]
    if flags["watch"] and flags["detach"]:
        raise InvalidInput("--watch and --detach are incompatible", "", "choose one")
    detached = flags["detach"] or flags["await_ready"] or flags["no_start"] or app.flags.dry_run
    if aborts and detached:
        raise InvalidInput("--abort-on-container-exit, --abort-on-container-failure and --exit-code-from cannot be used with -d or --wait")
    if flags["attach_dependencies"] and flags["attach"]:
        raise InvalidInput("cannot combine --attach and --attach-dependencies")
    if flags["exit_code_from"] and flags["exit_code_from"] not in app.project.services:
        raise InvalidInput(f"no such service: {flags['exit_code_from']}")
    orders = orders_of(app, services, flags)
    if detached:
        converge(app, orders, flags["wait_timeout"], wait=flags["await_ready"])
        return 0
    return Foreground(app, orders, flags).run()


root_up = for_root(up, "Create and start the containers of an app (bulle compose up).")


@verb("create", "[SERVICE...]")
@SERVICES
@_options(_MAKING)
@pass_app
def create(app: App, services: Sequence[str], **flags: Any) -> int:
    """Creates containers for a service."""
    app.services = tuple(services)
    converge(app, orders_of(app, services, {**flags, "no_start": True}))
    return 0


class Foreground:
    """An ``up`` that shows what its containers write, and stops them when it is interrupted or one of them ends, as it was told."""

    def __init__(self, app: App, orders: Orders, flags: dict[str, Any]) -> None:
        self._app = app
        self._orders = orders
        self._flags = flags
        self._code = 0
        self._aborts = bool(flags["abort_on_container_exit"] or flags["exit_code_from"])

    def run(self) -> int:
        """To the end; returns what the command returns."""
        from bulle.cli.composing_watch import watch_beside, watcher_of

        app, flags = self._app, self._flags
        view = LogView(coloured=is_coloured(app, no_color=flags["no_color"]), prefixed=not flags["no_log_prefix"], timestamps=flags["timestamps"])
        shown = self._shown()
        following = Following(app.engine, app.name, view, wanted=lambda one: not is_one_off(one) and service_of(one) in shown, on_exit=self._ended)
        try:
            with _terminated():
                made = converge(app, self._orders)
                if flags["watch"]:
                    watch_beside(watcher_of(app, self._orders.services))
                following.add([one for name in made.services if name in shown for one in made.replicas.of(name) if one.state().active])
                following.wait()
        except KeyboardInterrupt:
            self._code = _INTERRUPTED
            note("Gracefully stopping... (press Ctrl+C again to force)")
            self._stop()
        else:
            if self._aborted:
                note("Aborting on container exit...")
                self._stop()
        return self._code

    _aborted = False

    def _shown(self) -> set[str]:
        """The services whose output is shown."""
        from bulle.compose.ordering import chosen

        flags, project = self._flags, self._app.project
        with_others = flags["attach_dependencies"] or not self._orders.services
        names = set(flags["attach"]) or chosen(project.services, self._orders.services, with_dependencies=with_others).keys()
        return {name for name in names if name not in flags["no_attach"] and (project.services[name].attach or name in flags["attach"])}

    def _ended(self, container: Container, code: int) -> bool:
        """Whether the end of a container is the end of all."""
        if not (self._aborts or (self._flags["abort_on_container_failure"] and code)):
            return False
        wanted = self._flags["exit_code_from"]
        if not wanted or service_of(container) == wanted:
            self._code = code
        self._aborted = True
        return True

    def _stop(self) -> None:
        app = self._app
        try:
            with app.locked():
                Halt(app.engine, app.name, app.report, project=app.project, timeout_s=self._orders.timeout_s).stop()
        except KeyboardInterrupt:
            for one in containers_of(app.engine, app.name):
                if one.state().active:
                    one.kill()
        if self._aborted and (wanted := self._flags["exit_code_from"]):
            self._code = max((one.state().exit_code for one in containers_of(app.engine, app.name, [wanted])), default=self._code)


@contextmanager
def _terminated() -> Iterator[None]:
    """A request to end is taken as Ctrl-C is."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
