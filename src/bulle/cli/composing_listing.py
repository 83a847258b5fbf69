"""``bulle compose ps``, ``images``, ``volumes``, ``port``, ``top``, ``stats``, ``ls`` and ``version``: what there is of an app, and of all apps."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import click
import msgspec

from bulle.cli import human
from bulle.cli.composing import App, complete_services, pass_app
from bulle.cli.filters import parse
from bulle.cli.option_types import Choice, Suggestion, Text, Whole
from bulle.cli.processes import FORMAT_HELP, SHORT_ID, listing
from bulle.cli.session import printable, write
from bulle.cli.table import Listing, align, render
from bulle.cli.verb import WrongValue, verb
from bulle.compose import labels
from bulle.compose.actual import service_of
from bulle.compose.containers import by_project, check_services, pick
from bulle.engine.filters import shown_status
from bulle.errors import InvalidInput, NotFound
from bulle.model.reference import Reference
from bulle.version import VERSION

if TYPE_CHECKING:
    from bulle.engine import Container
    from bulle.model.volume import Volume

STATUSES = ("paused", "restarting", "removing", "running", "dead", "created", "exited")
_WIDE, _NARROW = 20, 5
_SHOWN = ("Name", "Image", "Command", "Service", "RunningFor", "Status", "Ports")

services_argument = click.argument("services", nargs=-1, shell_complete=complete_services)
index_option = click.option("--index", type=Whole(0), default=0, help="Index of the container if service has multiple replicas")


def _health(container: Container) -> str:
    state = container.state()
    return state.health.status if state.health is not None and state.status == "running" else ""


def _publishers(container: Container) -> list[dict[str, object]]:
    return [
        {"URL": one.host_address, "TargetPort": one.container_port, "PublishedPort": one.host_port, "Protocol": one.protocol}
        for one in container.published_ports()
    ]


def _listing(*, truncate: bool) -> Listing[Container]:
    usual = listing(truncate=truncate)
    return Listing(
        fields={
            **usual.fields,
            "Name": ("NAME", lambda one: one.name),
            "Project": ("PROJECT", lambda one: one.options.labels.get(labels.PROJECT, "")),
            "Service": ("SERVICE", service_of),
            "Health": ("HEALTH", _health),
            "ExitCode": ("EXIT CODE", lambda one: one.state().exit_code if one.state().status == "exited" else 0),
            "Publishers": ("PUBLISHERS", _publishers),
        },
        columns=_SHOWN,
        methods=usual.methods,
    )


@verb("ps", "[SERVICE...]")
@services_argument
@click.option("-a", "--all", "every", is_flag=True, help="Show all stopped containers (including those created by the run command)")
@click.option("--filter", "wanted", multiple=True, type=Suggestion("filter", "status="), help="Filter services by a property (status)")
@click.option("--format", "form", type=Suggestion("string", "table", "json"), default="", help=FORMAT_HELP)
@click.option("--no-trunc", is_flag=True, help="Don't truncate output")
@click.option("--orphans", is_flag=True, default=True, help="Include orphaned services (not declared by project) (default true)")
@click.option("-q", "--quiet", is_flag=True, help="Only display IDs")
@click.option("--services", "only_services", is_flag=True, help="Display services")
@click.option("--status", multiple=True, type=Choice(*STATUSES), help="Filter services by status")
@pass_app
def ps(
    app: App,
    services: Sequence[str],
    every: bool,
    wanted: Sequence[str],
    form: str,
    no_trunc: bool,
    orphans: bool,
    quiet: bool,
    only_services: bool,
    status: Sequence[str],
) -> int:
    """List containers."""
    project = app.project_if_any()
    check_services(project, services)
    statuses = {*status, *parse(wanted, ("status",)).get("status", ())}
    if unknown := statuses - {*STATUSES}:
        raise WrongValue(f"invalid status {min(unknown)!r}", "", f"it is one of {', '.join(STATUSES)}")
    found = app.containers(services, one_off=every)
    if not orphans and project is not None:
        found = [one for one in found if service_of(one) in project.services or service_of(one) in project.disabled]
    if statuses:
        found = [one for one in found if shown_status(one) in statuses]
    elif not every:
        found = [one for one in found if one.state().active]
    found.sort(key=lambda one: one.name)
    if quiet:
        write("".join(f"{one.id}\n" for one in found))
    elif only_services:
        write("".join(f"{name}\n" for name in dict.fromkeys(map(service_of, found))))
    else:
        write(render(_listing(truncate=not no_trunc), found, form))
    return 0


def _array(rows: Sequence[Mapping[str, object]]) -> str:
    return msgspec.json.encode(rows).decode() + "\n"


_FORMAT = click.option("--format", "form", type=Choice("table", "json"), default="table", help="Format the output (table, json) (default table)")


@verb("images", "[SERVICE...]")
@services_argument
@_FORMAT
@click.option("-q", "--quiet", is_flag=True, help="Only display IDs")
@pass_app
def images(app: App, services: Sequence[str], form: str, quiet: bool) -> int:
    """List images used by the created containers."""
    check_services(app.project_if_any(), services)
    found = sorted(app.containers(services), key=lambda one: one.name)
    if quiet:
        write("".join(f"{one}\n" for one in sorted({one.image_id.rpartition(":")[2] for one in found})))
        return 0
    sizes = _image_sizes(app, found)
    rows = []
    for one in found:
        repository, tag = _name_and_tag(one.image)
        row = {"ID": one.image_id, "ContainerName": one.name, "Repository": repository, "Tag": tag, "Size": sizes.get(one.image_id, 0)}
        rows.append(row)
    if form == "json":
        write(_array(rows))
        return 0
    lines = [("CONTAINER", "REPOSITORY", "TAG", "IMAGE ID", "SIZE")]
    for row in rows:
        short = str(row["ID"]).rpartition(":")[2][:SHORT_ID]
        lines.append((str(row["ContainerName"]), str(row["Repository"]), str(row["Tag"]), short, human.size(sizes.get(str(row["ID"]), 0))))
    write(align(lines, _WIDE))
    return 0


def _image_sizes(app: App, containers: Sequence[Container]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for identifier in {one.image_id for one in containers}:
        try:
            sizes[identifier] = app.engine.images.get(identifier).size_bytes
        except NotFound:
            continue  # removed since
    return sizes


def _name_and_tag(image: str) -> tuple[str, str]:
    try:
        reference = Reference.parse(image)
    except InvalidInput:
        return image, "<none>"
    return reference.familiar_name, reference.tag or "<none>"


@verb("volumes", "[SERVICE...]")
@services_argument
@click.option("--format", "form", type=Suggestion("string", "table", "json"), default="", help=FORMAT_HELP)
@click.option("-q", "--quiet", is_flag=True, help="Only display volume names")
@pass_app
def volumes(app: App, services: Sequence[str], form: str, quiet: bool) -> int:
    """List volumes."""
    from bulle.cli.volumes import LISTING

    check_services(app.project_if_any(), services)
    used = {one.volume for container in app.containers(services, one_off=True) for one in container.plan.mounts if one.volume}

    def belongs(one: Volume) -> bool:
        return one.name in used or (not services and one.labels.get(labels.PROJECT) == app.name)

    found = [one for one in app.engine.volumes.list() if belongs(one)]
    write("".join(f"{one.name}\n" for one in found) if quiet else render(LISTING, found, form))
    return 0


@verb("port", "SERVICE PRIVATE_PORT")
@click.argument("service", shell_complete=complete_services)
@click.argument("private_port", type=Text())
@index_option
@click.option("--protocol", type=Choice("tcp", "udp", "sctp"), default="tcp", help="tcp, udp or sctp (default tcp)")
@pass_app
def port(app: App, service: str, private_port: str, index: int, protocol: str) -> int:
    """Print the public port for a port binding."""
    if not (private_port.isascii() and private_port.isdigit() and 0 < int(private_port) < 65536):
        raise InvalidInput(f"invalid port '{private_port}'", "", "write a number such as 80")
    check_services(app.project_if_any(), [service])
    container = pick(app.containers([service], one_off=True), service, index)
    published = container.published_ports()
    for one in published:
        if one.container_port == int(private_port) and one.protocol == protocol:
            address = f"[{one.host_address}]" if ":" in one.host_address else one.host_address
            write(f"{address}:{one.host_port}\n")
            return 0
    there = ", ".join(dict.fromkeys(f"{one.container_port}/{one.protocol}" for one in published))
    raise NotFound(f"no port {private_port}/{protocol} for container {container.name}", f"it publishes {there}" if there else "it publishes none")


@verb("top", "[SERVICE...]")
@services_argument
@pass_app
def top(app: App, services: Sequence[str]) -> int:
    """Display the running processes."""
    check_services(app.project_if_any(), services)
    for container in sorted(app.containers(services), key=lambda one: one.name):
        if container.state().status == "running":
            titles, rows = container.top()
            write(f"{container.name}\n" + align([[printable(cell) for cell in line] for line in (titles, *rows)], _NARROW) + "\n")
    return 0


@verb("stats", "[SERVICE...]")
@services_argument
@click.option("-a", "--all", "every", is_flag=True, help="Show all containers (default shows just running)")
@click.option("--format", "form", type=Suggestion("string", "table", "json"), default="", help=FORMAT_HELP)
@click.option("--no-stream", is_flag=True, help="Disable streaming stats and only pull the first result")
@click.option("--no-trunc", is_flag=True, help="Do not truncate output")
@pass_app
def stats(app: App, services: Sequence[str], every: bool, form: str, no_stream: bool, no_trunc: bool) -> int:
    """Display a live stream of container(s) resource usage statistics."""
    from bulle.cli.statistics import show_usage

    check_services(app.project_if_any(), services)

    def look() -> list[Container]:
        found = sorted(app.containers(services), key=lambda one: one.name)
        return [one for one in found if every or one.state().active]

    return show_usage(app.engine, look, {}, form, stream=not no_stream, truncate=not no_trunc, endless=True)


def _status(containers: Sequence[Container]) -> str:
    """``exited(1), running(2)``."""
    return ", ".join(f"{state}({number})" for state, number in sorted(Counter(map(shown_status, containers)).items()))


@verb("ls")
@click.option("-a", "--all", "every", is_flag=True, help="Show all stopped Compose projects")
@click.option("--filter", "wanted", multiple=True, type=Suggestion("filter", "name="), help="Filter output based on conditions provided")
@_FORMAT
@click.option("-q", "--quiet", is_flag=True, help="Only display project names")
@pass_app
def ls(app: App, every: bool, wanted: Sequence[str], form: str, quiet: bool) -> int:
    """List running apps."""
    names = _name_test(parse(wanted, ("name",)).get("name", ()))
    rows = []
    for name, containers in by_project(app.engine).items():
        shown = [one for one in containers if every or one.state().active]
        if shown and names(name):
            files = dict.fromkeys(one.options.labels.get(labels.CONFIG_FILES, "") for one in shown)
            rows.append({"Name": name, "Status": _status(shown), "ConfigFiles": ",".join(filter(None, files))})
    if quiet:
        write("".join(f"{row['Name']}\n" for row in rows))
    elif form == "json":
        write(_array(rows))
    else:
        write(align([("NAME", "STATUS", "CONFIG FILES"), *((row["Name"], row["Status"], row["ConfigFiles"]) for row in rows)], _WIDE))
    return 0


def _name_test(patterns: Sequence[str]) -> Callable[[str], bool]:
    try:
        compiled = [re.compile(one) for one in patterns]
    except re.error as error:
        raise InvalidInput("invalid filter 'name'", str(error)) from None
    return lambda name: not compiled or any(one.search(name) for one in compiled)


@verb("version")
@click.option("-f", "--format", "form", type=Choice("pretty", "json"), default="pretty", help="Format the output (pretty, json) (default pretty)")
@click.option("--short", is_flag=True, help="Show only the version number")
@pass_app
def version(_app: App, form: str, short: bool) -> int:
    """Show the version information."""
    if form == "json" and not short:
        write(msgspec.json.encode({"version": VERSION}).decode() + "\n")
    else:
        write(f"{VERSION}\n" if short else f"Bulle Compose version {VERSION}\n")
    return 0
