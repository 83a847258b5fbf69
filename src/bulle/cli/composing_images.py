"""``bulle compose build``, ``pull`` and ``push``: the images of an app."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
import msgspec

from bulle.cli.composing import App, complete_services, pass_app
from bulle.cli.option_types import Choice, Size, Suggestion, Text
from bulle.cli.progress import progress_on_terminal
from bulle.cli.session import note, printable, write
from bulle.cli.verb import verb
from bulle.compose.app_images import image_name
from bulle.compose.building import Asked, build_notes, build_options, build_services, document, in_order, with_dependencies
from bulle.compose.containers import check_services
from bulle.compose.transferring import AT_ONCE, pull_services, push_services

if TYPE_CHECKING:
    from bulle.build.builder import Built
    from bulle.compose.model import Service
    from bulle.errors import BulleError
    from bulle.registry.progress import Progress

_services = click.argument("services", nargs=-1, shell_complete=complete_services)


def _chosen(app: App, names: Sequence[str]) -> list[Service]:
    """The services of these names, or all that are enabled."""
    app.services = tuple(names)
    project = app.project
    check_services(project, names)
    known = {**project.disabled, **project.services}
    return [known[name] for name in names] if names else list(project.services.values())


def _at_once(app: App) -> int:
    return app.flags.parallel if app.flags.parallel > 0 else AT_ONCE


def build_images(app: App, services: Sequence[Service], asked: Asked, *, progress: str = "", explain: bool = False) -> dict[str, list[Built]]:
    """Build the images of those of these services that are built, with progress; ``progress`` is auto, plain, tty or quiet."""
    from bulle.cli.build_progress import build_progress

    for one in build_notes(app.project, services):
        note(f"WARNING: {printable(str(one))}")
    if app.flags.dry_run:
        for service in in_order(app.project, services):
            build_options(app.project, service, asked)
            app.report("Image", image_name(app.project, service), "Built")
        return {}
    with build_progress(progress or _progress(app), explain=explain) as report:
        return build_services(app.engine, app.project, services, asked, report)


def _progress(app: App) -> str:
    return app.flags.progress if app.flags.progress in ("auto", "plain", "tty", "quiet") else "plain"


@verb("build", "[SERVICE...]")
@_services
@click.option("--build-arg", multiple=True, type=Text("stringArray"), help="Set build-time variables for services")
@click.option("--builder", type=Text(), help="Accepted and not needed: builds are made here")
@click.option("-m", "--memory", type=Size(), default=0, help="Memory limit of RUN")
@click.option("--no-cache", is_flag=True, help="Do not use cache when building the image")
@click.option("--print", "only_print", is_flag=True, help="Print what would be built as a file for bake, and build nothing")
@click.option("--progress", type=Suggestion("string", "auto", "tty", "plain", "quiet"), default="", help="How to show progress")
@click.option("--pull", is_flag=True, help="Always attempt to pull a newer version of the image")
@click.option("--push", "then_push", is_flag=True, help="Push service images")
@click.option("-q", "--quiet", is_flag=True, help="Suppress the build output")
@click.option("--sbom", type=Text(), default="", help="Attach a list of the packages in the image")
@click.option("--ssh", multiple=True, type=Text("agent"), help="An ssh agent for RUN --mount=type=ssh (default, or ID=SOCKET)")
@click.option("--with-dependencies", "deps", is_flag=True, help="Also build dependencies (transitively)")
@pass_app
def build(
    app: App,
    services: Sequence[str],
    build_arg: Sequence[str],
    builder: str | None,
    memory: int,
    no_cache: bool,
    only_print: bool,
    progress: str,
    pull: bool,
    then_push: bool,
    quiet: bool,
    sbom: str,
    ssh: Sequence[str],
    deps: bool,
) -> int:
    """Build or rebuild services."""
    chosen = _chosen(app, services)
    if deps:
        chosen = with_dependencies(app.project, chosen)
    asked = Asked(no_cache=no_cache, pull=pull, arguments=tuple(build_arg), ssh=tuple(ssh), memory_bytes=memory, sbom=sbom)
    if only_print:
        write(msgspec.json.format(msgspec.json.encode(document(app.project, chosen, asked)), indent=2).decode() + "\n")
        return 0
    if not in_order(app.project, chosen):
        note("No services to build")
        return 0
    built = build_images(app, chosen, asked, progress="quiet" if quiet else progress)
    if not quiet:
        for name in built:
            note(f" {name}  Built")
    return _push(app, in_order(app.project, chosen), ignore_failures=False, quiet=quiet) if then_push else 0


@verb("pull", "[SERVICE...]")
@_services
@click.option("--ignore-buildable", is_flag=True, help="Ignore images that can be built")
@click.option("--ignore-pull-failures", "ignore", is_flag=True, help="Pull what it can and ignores images with pull failures")
@click.option("--include-deps", "deps", is_flag=True, help="Also pull services declared as dependencies")
@click.option("--policy", type=Choice("missing", "always"), default="", help="Apply pull policy (missing, always)")
@click.option("-q", "--quiet", is_flag=True, help="Pull without printing progress information")
@pass_app
def pull(app: App, services: Sequence[str], ignore_buildable: bool, ignore: bool, deps: bool, policy: str, quiet: bool) -> int:
    """Pull service images."""
    chosen = _chosen(app, services)
    if deps:
        chosen = with_dependencies(app.project, chosen)
    if app.flags.dry_run:
        for service in chosen:
            app.report("Service", service.name, "Pulled" if service.image else "Skipped - No image to be pulled")
        return 0
    with _showing(quiet=quiet) as (say, bars):
        failures = pull_services(
            app.engine, chosen, policy=policy, ignore_buildable=ignore_buildable, at_once=_at_once(app), report=say, showing=bars
        )
    return _settled(failures, ignore)


@verb("push", "[SERVICE...]")
@_services
@click.option("--ignore-push-failures", "ignore", is_flag=True, help="Push what it can and ignores images with push failures")
@click.option("--include-deps", "deps", is_flag=True, help="Also push images of services declared as dependencies")
@click.option("-q", "--quiet", is_flag=True, help="Push without printing progress information")
@pass_app
def push(app: App, services: Sequence[str], ignore: bool, deps: bool, quiet: bool) -> int:
    """Push service images."""
    chosen = _chosen(app, services)
    if deps:
        chosen = with_dependencies(app.project, chosen)
    return _push(app, chosen, ignore_failures=ignore, quiet=quiet)


def _push(app: App, chosen: Sequence[Service], *, ignore_failures: bool, quiet: bool) -> int:
    if app.flags.dry_run:
        for service in chosen:
            app.report("Service", service.name, "Pushed" if service.build and service.image else "Skipped")
        return 0
    with _showing(quiet=quiet) as (say, bars):
        failures = push_services(app.engine, app.project, chosen, at_once=_at_once(app), report=say, showing=bars)
    return _settled(failures, ignore_failures)


@contextmanager
def _showing(*, quiet: bool) -> Iterator[tuple[Callable[[str, str], None], Callable[[Progress], None] | None]]:
    """What says the fate of each service, and what draws bars; where these are drawn the lines come behind them."""
    lines: list[str] = []
    with progress_on_terminal(enabled=not quiet) as bars:

        def say(service: str, text: str) -> None:
            line = f" {service} {printable(text)}"
            if bars is not None:
                lines.append(line)
            elif not quiet:
                note(line)

        yield say, bars
    for line in lines:
        if not line.endswith("ing"):
            note(line)


def _settled(failures: dict[str, BulleError], ignore: bool) -> int:
    if failures and not ignore:
        raise next(iter(failures.values()))
    return 0
