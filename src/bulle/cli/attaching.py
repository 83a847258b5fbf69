"""``bulle exec`` and ``bulle attach``: a second command in a running container, and the streams of its first."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
import msgspec

from bulle.cli.container_flags import detach_keys, environment
from bulle.cli.option_types import Text, complete_containers
from bulle.cli.running import exit_code_of, follow_container
from bulle.cli.session import Session, warn_of
from bulle.cli.terminal import follow, proxy, window_size
from bulle.cli.verb import verb
from bulle.errors import CommandNotExecutable, Conflict, InvalidInput, NotFound
from bulle.model.container import ExecOptions

if TYPE_CHECKING:
    from bulle.engine import Container


@verb("exec", "CONTAINER COMMAND [ARG...]", interspersed=False)
@click.argument("container", shell_complete=complete_containers)
@click.argument("command", nargs=-1, required=True)
@click.option("-i", "--interactive", is_flag=True, help="Keep STDIN open even if not attached")
@click.option("-t", "--tty", is_flag=True, help="Allocate a pseudo-TTY")
@click.option("-d", "--detach", is_flag=True, help="Detached mode: run command in the background")
@click.option("-e", "--env", multiple=True, type=Text("list"), help="Set environment variables")
@click.option("--env-file", multiple=True, type=Text("list"), help="Read in a file of environment variables")
@click.option("-u", "--user", type=Text(), help="Username or UID (format: <name|uid>[:<group|gid>])")
@click.option("-w", "--workdir", type=Text(), help="Working directory inside the container")
@click.option("--privileged", is_flag=True, help="Give extended privileges to the command")
@click.option("--detach-keys", "keys", type=Text(), help="Override the key sequence for detaching a container")
@click.pass_obj
def execute(
    session: Session,
    container: str,
    command: Sequence[str],
    interactive: bool,
    tty: bool,
    detach: bool,
    env: Sequence[str],
    env_file: Sequence[str],
    user: str | None,
    workdir: str | None,
    privileged: bool,
    keys: str | None,
) -> int:
    """Execute a command in a running container."""
    detaching = detach_keys(keys)
    if tty and interactive and not detach and not os.isatty(0):
        raise InvalidInput("cannot attach stdin to a TTY-enabled container because stdin is not a terminal", "", "leave out -t or -i")
    options = ExecOptions(
        command=tuple(command),
        environment=environment(env_file, env),
        working_directory=workdir or "",
        user=user or "",
        terminal=tty,
        interactive=interactive and not detach,
        privileged=privileged,
    )
    return execute_in(session.engine.containers.get(container), options, detach=detach, keys=detaching)


def execute_in(found: Container, options: ExecOptions, *, detach: bool, keys: bytes = b"") -> int:
    """Run a command in a container with the caller's streams; returns what the command line returns. ``keys`` detach from it."""
    if options.terminal:
        rows, columns = window_size()
        options = msgspec.structs.replace(options, rows=rows, columns=columns)
    try:
        attachment = found.execute(options, detach=detach)
    except (InvalidInput, NotFound) as error:
        # The container is there and runs: what is wrong is the command's user or directory, and so it cannot be executed.
        raise CommandNotExecutable(*error.args) from error
    warn_of(found.notes)
    if attachment is None:
        return 0
    outcome = follow(attachment, terminal=options.terminal, stdin=options.interactive, keys=keys)
    return 0 if outcome.detached else exit_code_of(outcome.exit_code)


@verb("attach", "CONTAINER")
@click.argument("container", shell_complete=complete_containers)
@click.option("--no-stdin", is_flag=True, help="Do not attach STDIN")
@click.option("--sig-proxy", is_flag=True, default=True, help="Proxy all received signals to the process (default true)")
@click.option("--detach-keys", "keys", type=Text(), help="Override the key sequence for detaching a container")
@click.pass_obj
def attach(session: Session, container: str, no_stdin: bool, sig_proxy: bool, keys: str | None) -> int:
    """Attach local standard input, output, and error streams to a running container."""
    return attach_to(session.engine.containers.get(container), stdin=not no_stdin, sig_proxy=sig_proxy, keys=detach_keys(keys))


def attach_to(found: Container, *, stdin: bool, sig_proxy: bool, keys: bytes = b"") -> int:
    """Follow a running container with the caller's streams to its end; returns what the command line returns. ``keys`` detach from it."""
    if found.state().status != "running":
        raise Conflict("cannot attach to a stopped container", "", f"start it first: bulle start {found.name}")
    options = found.options
    stdin = stdin and options.interactive
    if options.terminal and stdin and not os.isatty(0):
        raise InvalidInput("cannot attach stdin to a TTY-enabled container because stdin is not a terminal", "", "use --no-stdin")
    with proxy(found, sig_proxy and not (options.terminal and stdin)) as signals:
        attachment = found.attach(stdin=stdin)
        signals.open()
        return follow_container(found, attachment, stdin=stdin, keys=keys)
