"""``bulle run`` and ``bulle create``: from flags to a container, and from a container to the exit code of its command."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bulle.cli.container_flags import container_flags, detach_keys, options_from
from bulle.cli.option_types import Choice, Text, complete_images
from bulle.cli.session import Session, complain, note, warn_of, write
from bulle.cli.terminal import follow, proxy, window_size
from bulle.cli.verb import verb
from bulle.errors import BulleError, Conflict, InvalidInput, NotFound
from bulle.model.container import ContainerOptions

if TYPE_CHECKING:
    from bulle.engine import Container
    from bulle.monitor import Attached

UNKNOWN_EXIT_CODE = -1
MADE_HERE = frozenset({"host"})  # images that come from nowhere else


def shown_exit_code(code: int) -> int:
    """An exit code as listings and ``wait`` print it: 255, as in Docker's own documents, where nobody could learn it."""
    return 255 if code == UNKNOWN_EXIT_CODE else code


def exit_code_of(code: int | None) -> int:
    """What the command line returns for a workload's exit code; nobody could learn -1, which is said, never guessed."""
    if code is None or code == UNKNOWN_EXIT_CODE:
        complain("the exit code is unknown: the command ended while nothing watched it")
        return 125
    return code


def follow_container(
    container: Container, attachment: Attached, *, stdin: bool, stdout: bool = True, stderr: bool = True, keys: bytes = b""
) -> int:
    """Follow a container to its end; returns what the command line returns. 0 where the user detached.

    A connection that ends without an exit code is a monitor that was killed: the container goes on under another one, and so does this.
    """
    while True:
        outcome = follow(attachment, terminal=container.options.terminal, stdin=stdin, stdout=stdout, stderr=stderr, keys=keys)
        if outcome.detached:
            return 0
        if outcome.exit_code is not None:
            return exit_code_of(outcome.exit_code)
        try:
            attachment = container.attach(stdin=stdin)
        except Conflict:
            return exit_code_of(container.wait())


def start_and_follow(
    container: Container, *, stdin: bool, sig_proxy: bool = True, keys: bytes = b"", stdout: bool = True, stderr: bool = True
) -> int:
    """Start a container that was just made, with the caller's streams, and follow it to its end; returns what the command line returns."""
    options = container.options
    with proxy(container, sig_proxy and not (options.terminal and stdin)) as signals:
        with removed_on_failure(container, options):
            rows, columns = window_size() if options.terminal else (0, 0)
            attachment = container.start_here(stdin=stdin, rows=rows, columns=columns)
        warn_of(container.notes)
        signals.open()
        return follow_container(container, attachment, stdin=stdin, stdout=stdout, stderr=stderr, keys=keys)


@verb("run", "IMAGE [COMMAND] [ARG...]", interspersed=False)
@click.argument("image", shell_complete=complete_images)
@click.argument("command", nargs=-1)
@click.option("-d", "--detach", is_flag=True, help="Run container in background and print container ID")
@click.option("-a", "--attach", multiple=True, type=Choice("stdin", "stdout", "stderr"), help="Attach to STDIN, STDOUT or STDERR")
@click.option("--detach-keys", type=Text(), help="Override the key sequence for detaching a container")
@click.option("--sig-proxy", is_flag=True, default=True, help="Proxy received signals to the process (default true)")
@container_flags
@click.pass_obj
def run(session: Session, /, image: str, command: Sequence[str], detach: bool, attach: Sequence[str], sig_proxy: bool, **flags: Any) -> int:
    """Create and run a new container from an image."""
    keys = detach_keys(flags["detach_keys"])
    if detach and attach:
        raise InvalidInput("conflicting options: -a and -d")
    stdin = "stdin" in attach or (flags["interactive"] and not attach)
    if flags["tty"] and stdin and not detach and not flags["dry_run"] and not os.isatty(0):
        raise InvalidInput("cannot attach stdin to a TTY-enabled container because stdin is not a terminal", "", "leave out -t or -i")
    options = options_from(flags, image, command)
    if flags["dry_run"]:
        return _show_plan(session, options)
    container = _create(session, options, flags["cidfile"], quiet=flags["quiet"])
    if detach:
        with removed_on_failure(container, options):
            container.start()
        warn_of(container.notes)
        write(container.id + "\n")
        return 0
    output = {"stdout": not attach or "stdout" in attach, "stderr": not attach or "stderr" in attach}
    return start_and_follow(container, stdin=stdin, sig_proxy=sig_proxy, keys=keys, **output)


@verb("create", "IMAGE [COMMAND] [ARG...]", interspersed=False)
@click.argument("image", shell_complete=complete_images)
@click.argument("command", nargs=-1)
@container_flags
@click.pass_obj
def create(session: Session, /, image: str, command: Sequence[str], **flags: Any) -> int:
    """Create a new container."""
    options = options_from(flags, image, command)
    if flags["dry_run"]:
        return _show_plan(session, options)
    write(_create(session, options, flags["cidfile"], quiet=flags["quiet"]).id + "\n")
    return 0


def _show_plan(session: Session, options: ContainerOptions) -> int:
    write(session.engine.containers.plan(options).describe() + "\n")
    return 0


def _create(session: Session, options: ContainerOptions, cidfile: str | None, *, quiet: bool) -> Container:
    with _container_id_file(cidfile) as descriptor:
        container = _create_with_image(session, options, quiet=quiet)
        if descriptor >= 0:
            os.write(descriptor, container.id.encode())
    if container.plan.platform and not options.platform:
        _warn_of_platform(container.plan.platform)
    if container.plan.guest is not None and not quiet and (wanted := container.to_fetch()):
        note(f"{wanted} is fetched first, once")
    return container


def _warn_of_platform(found: str) -> None:
    from bulle.model.platform import this_platform

    note(f"WARNING: the image is for {found}, this machine is {this_platform()}, and no --platform was given: its programs are emulated")


def _create_with_image(session: Session, options: ContainerOptions, *, quiet: bool) -> Container:
    """The container, its image pulled where the options want it. The common case (the image is there) costs no question of its own."""
    if options.pull == "always":
        _pull(session, options, quiet=quiet)
    try:
        return session.engine.containers.create(_without_pull(options))
    except NotFound:
        if options.pull != "missing" or _has_image(session, options):
            raise
    if options.image not in MADE_HERE:
        note(f"Unable to find image '{options.image}' locally")
    _pull(session, options, quiet=quiet)
    return session.engine.containers.create(_without_pull(options))


def _without_pull(options: ContainerOptions) -> ContainerOptions:
    from msgspec.structs import replace

    return replace(options, pull="never")


def _has_image(session: Session, options: ContainerOptions) -> bool:
    try:
        session.engine.images.get(options.image, options.platform)
    except NotFound:
        return False
    return True


def _pull(session: Session, options: ContainerOptions, *, quiet: bool) -> None:
    from bulle.cli.progress import progress_on_terminal

    with progress_on_terminal(enabled=not quiet) as report:
        session.engine.images.pull(options.image, platform=options.platform, progress=report)


@contextmanager
def _container_id_file(path: str | None) -> Iterator[int]:
    """A descriptor of a new file for the id, or -1; the file does not stay when no container came to be."""
    if path is None:
        yield -1
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        raise Conflict("container ID file found", f"{path} exists", "make sure the other container isn't running, or delete the file") from None
    except OSError as error:
        raise InvalidInput("failed to create the container ID file", f"{error.strerror} ({path})") from None
    try:
        yield descriptor
    except BaseException:
        Path(path).unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


@contextmanager
def removed_on_failure(container: Container, options: ContainerOptions) -> Iterator[None]:
    """With ``--rm``, a container that could not be started does not stay behind."""
    try:
        yield
    except BaseException:
        if options.auto_remove:
            with suppress(BulleError, OSError):
                container.remove(force=True)
        raise
