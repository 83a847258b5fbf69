"""``bulle compose start``, ``stop``, ``restart``, ``kill``, ``rm``, ``pause`` and ``unpause``: the containers that an app has, by its services."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import click

from bulle.cli.cleaning import confirmed
from bulle.cli.composing import App, complete_services, pass_app
from bulle.cli.option_types import Signal, Whole
from bulle.cli.session import note
from bulle.cli.verb import verb
from bulle.compose.halting import Halt

_services = click.argument("services", nargs=-1, shell_complete=complete_services)
_timeout = click.option("-t", "--timeout", type=Whole(-1), help="Seconds for containers to end in")


def _change(app: App, services: Sequence[str], act: Callable[[Halt], object], told: str, timeout_s: int | None = None) -> int:
    project = app.project_if_any()
    with app.locked():
        halt = Halt(app.engine, app.name, app.report, project=project, services=services, timeout_s=timeout_s)
        if app.flags.dry_run:
            halt.tell(told)
        else:
            act(halt)
    return 0


@verb("start", "[SERVICE...]")
@_services
@click.option("--wait", "await_ready", is_flag=True, help="Wait for services to be running|healthy")
@click.option("--wait-timeout", type=Whole(0), default=0, help="Maximum duration in seconds to wait for the project to be running|healthy")
@pass_app
def start(app: App, services: Sequence[str], await_ready: bool, wait_timeout: int) -> int:
    """Start services."""

    def act(halt: Halt) -> None:
        halt.start()
        if await_ready:
            halt.await_ready(wait_timeout or None)

    return _change(app, services, act, "Started")


@verb("stop", "[SERVICE...]")
@_services
@_timeout
@pass_app
def stop(app: App, services: Sequence[str], timeout: int | None) -> int:
    """Stop services."""
    return _change(app, services, Halt.stop, "Stopped", timeout)


@verb("restart", "[SERVICE...]")
@_services
@click.option("--no-deps", is_flag=True, help="Don't restart dependent services")
@_timeout
@pass_app
def restart(app: App, services: Sequence[str], no_deps: bool, timeout: int | None) -> int:
    """Restart service containers."""
    return _change(app, services, lambda halt: halt.restart(with_dependents=not no_deps), "Restarted", timeout)


@verb("kill", "[SERVICE...]")
@_services
@click.option("--remove-orphans", is_flag=True, help="Remove containers for services not defined in the Compose file")
@click.option("-s", "--signal", type=Signal(), default="KILL", help="SIGNAL to send to the container")
@pass_app
def kill(app: App, services: Sequence[str], remove_orphans: bool, signal: str) -> int:
    """Force stop service containers."""

    def act(halt: Halt) -> None:
        halt.kill(signal)
        if remove_orphans:
            halt.remove(halt.orphans(), volumes=False)

    return _change(app, services, act, "Killed")


@verb("rm", "[SERVICE...]")
@_services
@click.option("-f", "--force", is_flag=True, help="Don't ask to confirm removal")
@click.option("-s", "--stop", "stop_first", is_flag=True, help="Stop the containers, if required, before removing")
@click.option("-v", "--volumes", is_flag=True, help="Remove any anonymous volumes attached to containers")
@pass_app
def remove(app: App, services: Sequence[str], force: bool, stop_first: bool, volumes: bool) -> int:
    """Removes stopped service containers."""

    def act(halt: Halt) -> None:
        if stop_first:
            halt.stop()
        going = [one for one in halt.containers if not one.state().active]
        if not going:
            note("No stopped containers")
        elif confirmed(force, f"Going to remove {', '.join(one.name for one in going)}"):
            halt.remove(going, volumes=volumes)

    return _change(app, services, act, "Removed")


@verb("pause", "[SERVICE...]")
@_services
@pass_app
def pause(app: App, services: Sequence[str]) -> int:
    """Pause services."""
    return _change(app, services, Halt.pause, "Paused")


@verb("unpause", "[SERVICE...]")
@_services
@pass_app
def unpause(app: App, services: Sequence[str]) -> int:
    """Unpause services."""
    return _change(app, services, Halt.unpause, "Unpaused")
