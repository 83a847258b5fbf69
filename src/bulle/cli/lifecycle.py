"""The verbs that change a container's state: ``start``, ``stop``, ``kill``, ``rm``, ``wait``.

As in Docker each takes several containers, prints every name it has dealt with, says what failed and goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from bulle.cli.container_flags import detach_keys
from bulle.cli.option_types import Choice, Signal, Text, Whole, complete_containers
from bulle.cli.running import UNKNOWN_EXIT_CODE, follow_container, shown_exit_code
from bulle.cli.session import Session, complain, warn_of
from bulle.cli.terminal import proxy, window_size
from bulle.cli.verb import verb
from bulle.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from bulle.engine.waiting import Condition

_SEVERAL = "CONTAINER [CONTAINER...]"


@verb("start", _SEVERAL)
@click.argument("containers", nargs=-1, required=True, shell_complete=complete_containers)
@click.option("-a", "--attach", is_flag=True, help="Attach STDOUT/STDERR and forward signals")
@click.option("-i", "--interactive", is_flag=True, help="Attach container's STDIN")
@click.option("--detach-keys", "keys", type=Text(), help="Override the key sequence for detaching a container")
@click.option("--sig-proxy", is_flag=True, default=True, help="Proxy received signals to the process (default true)")
@click.pass_obj
def start(session: Session, containers: Sequence[str], attach: bool, interactive: bool, keys: str | None, sig_proxy: bool) -> int:
    """Start one or more stopped containers."""
    if attach or interactive:
        if len(containers) > 1:
            raise InvalidInput("you cannot start and attach multiple containers at once")
        return _start_attached(session, containers[0], interactive, detach_keys(keys), sig_proxy)
    return session.for_containers(containers, lambda container: container.start())


def _start_attached(session: Session, name: str, interactive: bool, keys: bytes, sig_proxy: bool) -> int:
    container = session.engine.containers.get(name)
    options = container.options
    stdin = interactive and options.interactive
    with proxy(container, sig_proxy and not (options.terminal and stdin)) as signals:
        # A container that runs already is attached to, as in Docker.
        rows, columns = window_size() if options.terminal else (0, 0)
        attachment = container.start_here(stdin=stdin, rows=rows, columns=columns)
        warn_of(container.notes)
        signals.open()
        return follow_container(container, attachment, stdin=stdin, keys=keys)


@verb("stop", _SEVERAL)
@click.argument("containers", nargs=-1, required=True, shell_complete=complete_containers)
@click.option("-t", "--timeout", "--time", type=Whole(-1), help="Seconds to wait before killing the container (-1: for ever)")
@click.option("-s", "--signal", "signal_name", type=Signal(), help="Signal to send to the container")
@click.pass_obj
def stop(session: Session, containers: Sequence[str], timeout: int | None, signal_name: str | None) -> int:
    """Stop one or more running containers."""
    return session.for_containers(containers, lambda container: container.stop(timeout_s=timeout, signal=signal_name or ""))


@verb("kill", _SEVERAL)
@click.argument("containers", nargs=-1, required=True, shell_complete=complete_containers)
@click.option("-s", "--signal", "signal_name", type=Signal(), default="KILL", help="Signal to send to the container (default KILL)")
@click.pass_obj
def kill(session: Session, containers: Sequence[str], signal_name: str) -> int:
    """Kill one or more running containers."""
    return session.for_containers(containers, lambda container: container.kill(signal_name))


@verb("rm", _SEVERAL)
@click.argument("containers", nargs=-1, required=True, shell_complete=complete_containers)
@click.option("-f", "--force", is_flag=True, help="Force the removal of a running container (uses SIGKILL)")
@click.option("-v", "--volumes", is_flag=True, help="Remove anonymous volumes associated with the container")
@click.pass_obj
def remove(session: Session, containers: Sequence[str], force: bool, volumes: bool) -> int:
    """Remove one or more containers."""

    def act(name: str) -> str | None:
        try:
            session.engine.containers.get(name).remove(force=force, volumes=volumes)
        except NotFound:
            if not force:
                raise
            return None  # `rm -f` of what is not there has nothing to do
        return name

    return session.for_each(containers, act)


@verb("wait", _SEVERAL)
@click.argument("containers", nargs=-1, required=True, shell_complete=complete_containers)
@click.option("--condition", type=Choice("not-running", "next-exit", "removed"), default="not-running", help="What to wait for (default not-running)")
@click.pass_obj
def wait(session: Session, containers: Sequence[str], condition: Condition) -> int:
    """Block until one or more containers stop, then print their exit codes."""

    def act(name: str) -> str:
        code = session.engine.containers.get(name).wait(condition)
        if code == UNKNOWN_EXIT_CODE:
            complain(f"the exit code of {name} is unknown: it ended while nothing watched it")
        return str(shown_exit_code(code))

    return session.for_each(containers, act)
