"""``bulle compose exec``, ``attach``, ``cp``, ``wait``, ``events``, ``export`` and ``commit``: one container of an app, found by its service."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import click
import msgspec

from bulle.cli.composing import App, complete_services, pass_app
from bulle.cli.composing_listing import index_option
from bulle.cli.container_flags import detach_keys, environment
from bulle.cli.image_making import CHANGE
from bulle.cli.option_types import HostPath, Text, Time
from bulle.cli.session import printable, warn_of, write
from bulle.cli.verb import verb
from bulle.compose import labels
from bulle.compose.containers import check_services, pick
from bulle.errors import InvalidInput, NotFound
from bulle.model.container import ExecOptions

if TYPE_CHECKING:
    from bulle.engine import Container
    from bulle.records.events import Event

_OWN = "com.docker.compose."
_service = click.argument("service", shell_complete=complete_services)


def _find(app: App, service: str, index: int, *, running: bool = False) -> Container:
    check_services(app.project_if_any(), [service])
    found = app.containers([service], one_off=True)
    return pick([one for one in found if not running or one.state().active], service, index)


@verb("exec", "SERVICE COMMAND [ARGS...]", interspersed=False)
@_service
@click.argument("command", nargs=-1, required=True)
@click.option("-d", "--detach", is_flag=True, help="Detached mode: run command in the background")
@click.option("-e", "--env", multiple=True, type=Text("list"), help="Set environment variables")
@index_option
@click.option("-T", "--no-TTY", "--no-tty", "no_tty", is_flag=True, help="Allocate no pseudo-TTY (by default one where the caller has a terminal)")
@click.option("-t", "--tty", is_flag=True, help="Allocate a pseudo-TTY")
@click.option("-i", "--interactive", is_flag=True, default=True, help="Keep STDIN open even if not attached (default true)")
@click.option("--privileged", is_flag=True, help="Give extended privileges to the process")
@click.option("-u", "--user", type=Text(), default="", help="Run the command as this user")
@click.option("-w", "--workdir", type=Text(), default="", help="Path to workdir directory for this command")
@pass_app
def execute(
    app: App,
    service: str,
    command: Sequence[str],
    detach: bool,
    env: Sequence[str],
    index: int,
    no_tty: bool,
    tty: bool,
    interactive: bool,
    privileged: bool,
    user: str,
    workdir: str,
) -> int:
    """Execute a command in a running container."""
    from bulle.cli.attaching import execute_in

    terminal = not no_tty and (tty or (os.isatty(0) and os.isatty(1))) and not detach
    if terminal and interactive and not os.isatty(0):
        raise InvalidInput("the input device is not a TTY", "", "leave out -t, or add -T")
    options = ExecOptions(
        command=tuple(command),
        environment=environment((), env),
        working_directory=workdir,
        user=user,
        terminal=terminal,
        interactive=interactive and not detach,
        privileged=privileged,
    )
    container = _find(app, service, index, running=True)
    if app.flags.dry_run:
        app.report("Container", container.name, f"Execute {' '.join(command)}")
        return 0
    return execute_in(container, options, detach=detach)


@verb("attach", "SERVICE")
@_service
@click.option("--detach-keys", "keys", type=Text(), help="Override the key sequence for detaching from a container")
@index_option
@click.option("--no-stdin", is_flag=True, help="Do not attach STDIN")
@click.option("--sig-proxy", is_flag=True, default=True, help="Proxy all received signals to the process (default true)")
@pass_app
def attach(app: App, service: str, keys: str | None, index: int, no_stdin: bool, sig_proxy: bool) -> int:
    """Attach local standard input, output, and error streams to a service's running container."""
    from bulle.cli.attaching import attach_to

    return attach_to(_find(app, service, index, running=True), stdin=not no_stdin, sig_proxy=sig_proxy, keys=detach_keys(keys))


@verb("cp", "SERVICE:SRC_PATH DEST_PATH|- | SRC_PATH|- SERVICE:DEST_PATH")
@click.argument("source", type=HostPath())
@click.argument("target", type=HostPath())
@click.option("--all", "every", is_flag=True, help="Include containers created by the run command")
@click.option("-a", "--archive", is_flag=True, help="Archive mode (copy all uid/gid information)")
@click.option("-L", "--follow-link", "follow", is_flag=True, help="Always follow symbol link in SRC_PATH")
@index_option
@pass_app
def copy(app: App, source: str, target: str, every: bool, archive: bool, follow: bool, index: int) -> int:
    """Copy files/folders between a service container and the local filesystem.

    To a service they are copied to each of its replicas, unless one is chosen.
    """
    from bulle.cli.copying import copy_in, copy_out, split

    (from_service, source_path), (to_service, target_path) = split(source), split(target)
    if bool(from_service) == bool(to_service):
        raise InvalidInput("unknown copy direction", "just one of the two is a path in a service", "write it as SERVICE:PATH")
    if not source_path or not target_path:
        raise InvalidInput(f"{'source' if not source_path else 'destination'} can not be empty")
    service = from_service or to_service
    check_services(app.project_if_any(), [service])
    there = app.containers([service], one_off=every or bool(from_service))
    if not there:
        raise NotFound(f'no container found for service "{service}"', "", "`bulle compose ps -a` shows what there is")
    chosen = [pick(there, service, index)] if index or from_service or source_path == "-" else there
    if app.flags.dry_run:
        for one in chosen:
            paths = f"{one.name}:{source_path} to {target_path}" if from_service else f"{source_path} to {one.name}:{target_path}"
            app.report("Container", one.name, f"Copy {paths}")
        return 0
    for one in chosen:
        if from_service:
            copy_out(one, source_path, target_path, archive=archive, follow=follow, quiet=False)
        else:
            copy_in(one, source_path, target_path, archive=archive, follow=follow, quiet=False)
    return 0


@verb("wait", "SERVICE [SERVICE...]")
@click.argument("services", nargs=-1, required=True, shell_complete=complete_services)
@click.option("--down-project", is_flag=True, help="Drop the project when the containers have stopped")
@pass_app
def wait(app: App, services: Sequence[str], down_project: bool) -> int:
    """Block until the containers of services stop; the exit code is that of the last one."""
    check_services(app.project_if_any(), services)
    found = [one for one in app.containers(services) if one.state().active]
    if not found:
        raise NotFound(f'no containers for project "{app.name}"', f"none of {', '.join(services)} runs", "`bulle compose up -d` starts them")
    ended: queue.SimpleQueue[tuple[Container, int | Exception]] = queue.SimpleQueue()

    def await_one(container: Container) -> None:
        try:
            ended.put((container, container.wait()))
        except Exception as error:  # noqa: BLE001 - raised below, in the thread that was asked
            ended.put((container, error))

    for one in found:
        threading.Thread(target=await_one, args=(one,), daemon=True).start()
    code = 0
    for _ in found:
        container, result = ended.get()
        if isinstance(result, Exception):
            raise result
        code = 255 if result < 0 else result
        write(f'container "{container.id}" exited with status code {code}\n')
    if down_project and not app.flags.dry_run:
        from bulle.cli.composing_down import bring_down

        bring_down(app)
    return code


@verb("events", "[SERVICE...]")
@click.argument("services", nargs=-1, shell_complete=complete_services)
@click.option("--json", "as_json", is_flag=True, help="Output events as a stream of json objects")
@click.option("--since", type=Time(), help="Show all events created since timestamp")
@click.option("--until", type=Time(), help="Stream events until this timestamp")
@pass_app
def events(app: App, services: Sequence[str], as_json: bool, since: int | None, until: int | None) -> int:
    """Receive real time events from containers."""
    check_services(app.project_if_any(), services)
    wanted = {"type": ["container", "service"], "label": [f"{labels.PROJECT}={app.name}"]}
    shown: Callable[[Event, str, Mapping[str, str]], str] = _json if as_json else _line
    with app.engine.events(since_ns=since or 0, until_ns=until or 0, filters=wanted) as found:
        for event in found:
            attributes = event.actor.attributes
            service = attributes.get(labels.SERVICE, "")
            if attributes.get(labels.ONE_OFF, "").lower() != "true" and (not services or service in services):
                write(shown(event, service, {name: value for name, value in attributes.items() if not name.startswith(_OWN)}) + "\n")
    return 0


def _json(event: Event, service: str, attributes: Mapping[str, str]) -> str:
    from bulle.monitor.logs import timestamp

    document = {
        "action": event.action,
        "attributes": attributes,
        "id": event.actor.identifier,
        "service": service,
        "time": timestamp(event.time_ns),
        "type": event.kind,
    }
    return msgspec.json.encode(document).decode()


def _line(event: Event, _service: str, attributes: Mapping[str, str]) -> str:
    moment = datetime.fromtimestamp(event.time_ns // 1_000_000_000)
    pairs = ", ".join(f"{name}={value}" for name, value in sorted(attributes.items()))
    micros = event.time_ns // 1000 % 1_000_000
    return printable(f"{moment:%Y-%m-%d %H:%M:%S}.{micros:06d} {event.kind} {event.action} {event.actor.identifier} ({pairs})")


@verb("export", "SERVICE")
@_service
@index_option
@click.option("-o", "--output", type=HostPath(), help="Write to a file, instead of STDOUT")
@pass_app
def export(app: App, service: str, index: int, output: str | None) -> int:
    """Export a service container's filesystem as a tar archive."""
    from bulle.cli.copying import export_files

    return export_files(lambda: _find(app, service, index), output)


@verb("commit", "SERVICE [REPOSITORY[:TAG]]")
@_service
@click.argument("name", required=False, type=Text())
@click.option("-a", "--author", type=Text(), default="", help='Author (e.g., "Ada Lovelace <ada@example.org>")')
@CHANGE
@index_option
@click.option("-m", "--message", type=Text(), default="", help="Commit message")
@click.option("-p", "--pause", is_flag=True, default=True, help="Pause container during commit (default true)")
@pass_app
def commit(app: App, service: str, name: str | None, author: str, changes: Sequence[str], index: int, message: str, pause: bool) -> int:
    """Create a new image from a service container's changes."""
    found = _find(app, service, index)
    if app.flags.dry_run:
        app.report("Container", found.name, f"Committed as {name}" if name else "Committed")
        return 0
    image, notes = app.engine.images.commit(found, name or "", author=author, message=message, changes=changes, pause=pause)
    warn_of(notes)
    write(image.id + "\n")
    return 0
