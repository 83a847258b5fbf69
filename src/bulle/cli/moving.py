"""``bulle move``, ``save --state`` and ``load --state``: a container to a file, from a file, to another machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from bulle.cli.option_types import Text, Whole, complete_containers
from bulle.cli.session import Session, note, printable, warn_of, write
from bulle.cli.verb import verb
from bulle.errors import BulleError, Conflict, InvalidInput, NotFound
from bulle.fleet import hosts, transport
from bulle.version import VERSION

if TYPE_CHECKING:
    from bulle.engine import Container


def save_file(session: Session, names: Sequence[str], path: str, *, disk_only: bool) -> int:
    """Write the state of the one container that is named to a file, or to standard output for ``-``."""
    from bulle.engine.output_file import output_file
    from bulle.engine.state_files import save_state

    if len(names) != 1:
        raise InvalidInput("a state is one container's", f"{len(names)} are named", "save each to a file of its own")
    session.engine.containers.get(names[0])
    with output_file(None if path == "-" else path) as out:
        warn_of(save_state(session.engine, names[0], out, disk_only=disk_only))
    return 0


def load_file(session: Session, path: str, *, disk_only: bool) -> int:
    """Make the container whose state is in a file, or on standard input for ``-``; prints its name."""
    from bulle.engine.state_files import load_state

    if path == "-" and os.isatty(0):
        raise InvalidInput("requested load from stdin, but stdin is a terminal", "", "name a file, or redirect one")
    try:
        with open(0 if path == "-" else path, "rb", closefd=path != "-") as stream:
            made = load_state(session.engine, stream, disk_only=disk_only)
    except FileNotFoundError:
        raise NotFound(f"open {path}: no such file or directory") from None
    for bind in made.options.volumes:
        note(f"WARNING: {printable(bind.container_path)} is this machine's {printable(bind.host_path)}, which was not carried")
    write(f"{made.name}\n")
    return 0


@verb("move", "CONTAINER HOST")
@click.argument("container", shell_complete=complete_containers)
@click.argument("host", type=Text())
@click.option("-t", "--timeout", type=Whole(-1), help="Seconds for it to end in")
@click.pass_obj
def move(session: Session, container: str, host: str, timeout: int | None) -> int:
    """Move a container to another machine: ssh://[user@]host[:port], or the name of a context.

    It is stopped, carried with its files, volumes, options and image, started there if it ran here, and then removed here. Where anything fails it
    goes on here. Volumes with a name stay here as well.
    """
    there = hosts.Host.parse(host if "://" in host else hosts.find(host).host)
    found = session.engine.containers.get(container)
    if found.options.auto_remove:
        raise Conflict(f"container {found.name} is removed at its end (--rm)", "it would not be there any more", "make one without --rm")
    was_active = found.state().active
    found.stop(timeout, verb="move")
    try:
        _carry(session, found, there)
        if was_active:
            _start_there(found, there)
    except BaseException:
        if was_active:
            with suppress(BulleError):
                found.start()
        raise
    found.remove(volumes=True)
    write(f"{found.name}\n")
    return 0


def _carry(session: Session, container: Container, host: hosts.Host) -> None:
    from bulle.engine.state_files import save_state

    reading, writing = os.pipe2(os.O_CLOEXEC)
    connection = transport.Connection(host)
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        connection.start([transport.FLAG, VERSION, connection.token, "load", "--state", "-"], stdin=reading, stdout=null)
    finally:
        os.close(null)
        os.close(reading)
    try:
        # Who breaks off here has written no end, so that what came is no state.
        with open(writing, "wb") as out, suppress(BrokenPipeError):
            warn_of(save_state(session.engine, container.id, out))
    except BaseException:
        connection.kill()
        with suppress(BulleError):
            connection.wait()
        raise
    if connection.wait():
        raise BulleError(f"container {container.name} was not taken by {host}", "what it said stands above", "it goes on here")


def _start_there(container: Container, host: hosts.Host) -> None:
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        if transport.run(host, ["start", container.name], stdin=-1, stdout=null):
            with suppress(BulleError):
                transport.run(host, ["rm", "-f", "-v", container.name], stdin=-1, stdout=null)
            raise BulleError(f"container {container.name} did not start on {host}", "what it said stands above", "it goes on here")
    finally:
        os.close(null)
