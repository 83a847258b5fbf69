"""``bulle compose run``: one more container of a service for one command, beside its replicas and without their ports."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from bulle.cli.composing import App, complete_services, pass_app
from bulle.cli.composing_images import build_images
from bulle.cli.container_flags import environment
from bulle.cli.network_flags import port_mappings
from bulle.cli.option_types import HostPath, Text
from bulle.cli.running import removed_on_failure, start_and_follow
from bulle.cli.session import printable, warn_of, write
from bulle.cli.verb import verb
from bulle.cli.volume_flags import volume_mount
from bulle.compose.building import Asked
from bulle.compose.containers import check_services
from bulle.errors import InvalidInput

if TYPE_CHECKING:
    from bulle.compose.model import Service


@verb("run", "SERVICE [COMMAND] [ARGS...]", interspersed=False)
@click.argument("service", shell_complete=complete_services)
@click.argument("command", nargs=-1)
@click.option("--build", is_flag=True, help="Build image before starting container")
@click.option("--cap-add", multiple=True, type=Text("list"), help="Add Linux capabilities")
@click.option("--cap-drop", multiple=True, type=Text("list"), help="Drop Linux capabilities")
@click.option("-d", "--detach", is_flag=True, help="Run container in background and print container ID")
@click.option("--entrypoint", type=Text(), help="Override the entrypoint of the image")
@click.option("-e", "--env", multiple=True, type=Text("stringArray"), help="Set environment variables")
@click.option("--env-from-file", multiple=True, type=HostPath(), help="Set environment variables from file")
@click.option("-i", "--interactive", is_flag=True, default=True, help="Keep STDIN open even if not attached (default true)")
@click.option("-l", "--label", multiple=True, type=Text("stringArray"), help="Add or override a label")
@click.option("--name", type=Text(), default="", help="Assign a name to the container")
@click.option("-T", "--no-TTY", "--no-tty", "no_tty", is_flag=True, help="Allocate no pseudo-TTY (by default one where the caller has a terminal)")
@click.option("-t", "--tty", is_flag=True, help="Allocate a pseudo-TTY")
@click.option("--no-deps", is_flag=True, help="Don't start linked services")
@click.option("-p", "--publish", multiple=True, type=Text("stringArray"), help="Publish a container's port(s) to the host")
@click.option("--pull", type=Text(), default="", help="Pull image before running (always, missing, never)")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing of what is started")
@click.option("--quiet-build", is_flag=True, help="Suppress progress output from the build process")
@click.option("--quiet-pull", is_flag=True, help="Pull without printing progress information")
@click.option("--remove-orphans", is_flag=True, help="Remove containers for services not defined in the Compose file")
@click.option("--rm", "remove", is_flag=True, help="Automatically remove the container when it exits")
@click.option("-P", "--service-ports", is_flag=True, help="Run command with all service's ports enabled and mapped to the host")
@click.option("--use-aliases", is_flag=True, help="Use the service's network aliases in the network(s) the container connects to")
@click.option("-u", "--user", type=Text(), default="", help="Run as specified username or uid")
@click.option("-v", "--volume", multiple=True, type=Text("stringArray"), help="Bind mount a volume")
@click.option("-w", "--workdir", type=Text(), default="", help="Working directory inside the container")
@pass_app
def run(app: App, /, service: str, command: Sequence[str], **flags: Any) -> int:
    """Run a one-off command on a service."""
    from bulle.compose import one_off

    app.services = (service,)
    project = app.project
    check_services(project, [service])
    found = project.services.get(service) or project.disabled[service]
    if flags["service_ports"] and flags["publish"]:
        raise InvalidInput("--service-ports and --publish are incompatible", "", "choose one")
    wanted = _wanted(command, flags)

    if app.flags.dry_run:
        app.report("Service", service, f"Run {printable(' '.join(command))}")
        return 0
    if flags["quiet"]:
        app = replace(app, flags=replace(app.flags, progress="quiet"))
    _prepare(app, found, flags)
    container = one_off.make(app.engine, project, found, wanted, app.report)
    if flags["detach"]:
        with removed_on_failure(container, container.options):
            container.start()
        warn_of(container.notes)
        write(container.id + "\n")
        return 0
    return start_and_follow(container, stdin=flags["interactive"])


def _wanted(command: Sequence[str], flags: dict[str, Any]) -> Any:
    from bulle.compose.one_off import Wanted

    terminal = not flags["no_tty"] and (flags["tty"] or (os.isatty(0) and os.isatty(1))) and not flags["detach"]
    if terminal and flags["interactive"] and not os.isatty(0):
        raise InvalidInput("the input device is not a TTY", "", "leave out -t, or add -T")
    pairs = (text.partition("=") for text in flags["label"])
    return Wanted(
        command=tuple(command),
        entrypoint=None if flags["entrypoint"] is None else tuple(shlex.split(flags["entrypoint"])),
        environment=environment(flags["env_from_file"], flags["env"]),
        labels={name: value for name, _, value in pairs},
        name=flags["name"],
        user=flags["user"],
        working_directory=flags["workdir"],
        mounts=tuple(volume_mount(text) for text in flags["volume"]),
        ports=tuple(mapping for text in flags["publish"] for mapping in port_mappings(text)),
        service_ports=flags["service_ports"],
        use_aliases=flags["use_aliases"],
        remove=flags["remove"],
        terminal=terminal,
        interactive=flags["interactive"],
        cap_add=tuple(flags["cap_add"]),
        cap_drop=tuple(flags["cap_drop"]),
    )


def _prepare(app: App, service: Service, flags: dict[str, Any]) -> None:
    """Have what it depends on run, and its image here."""
    from bulle.cli.composing_up import convergence_of
    from bulle.compose.app_images import ensure_images
    from bulle.compose.converging import Orders
    from bulle.compose.one_off import remove_orphans
    from bulle.compose.ordering import dependencies_of
    from bulle.compose.verdicts import judge

    def build(services: Collection[Service]) -> None:
        build_images(app, tuple(services), Asked(one_platform=True), progress="quiet" if flags["quiet_build"] else "")

    project = app.project
    notes = judge(project, {service.name: service})
    needed = () if flags["no_deps"] else tuple(sorted(dependencies_of(service) & project.services.keys()))
    with app.locked():
        if needed:
            convergence = convergence_of(app, Orders(services=needed, remove_orphans=flags["remove_orphans"], quiet_pull=flags["quiet_pull"]))
            convergence.apply()
            convergence.await_dependencies(service)
        elif flags["remove_orphans"]:
            remove_orphans(app.engine, project, app.report)
    app.say_notes(notes)
    ensure_images(
        app.engine,
        project,
        [service],
        app.report,
        builder=build,
        build=True if flags["build"] else None,
        pull=flags["pull"],
        quiet=flags["quiet_pull"],
    )
