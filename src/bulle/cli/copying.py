"""``bulle cp``, ``diff`` and ``export``: a container's files, seen from outside."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from bulle.cli import human
from bulle.cli.option_types import HostPath, Suggestion, complete_containers
from bulle.cli.session import Session, note, printable, warn_of, write
from bulle.cli.table import FORMAT_HELP, Listing, render
from bulle.cli.verb import verb
from bulle.errors import InvalidInput

if TYPE_CHECKING:
    from bulle.engine import Container
    from bulle.engine.copying import Copied
    from bulle.engine.differences import Change


def split(argument: str) -> tuple[str, str]:
    """Container and path of ``CONTAINER:PATH``; an empty container for a path of the host. Docker's rule: a colon in a path needs ``./`` or ``/``."""
    container, colon, path = argument.partition(":")
    if not colon or argument.startswith(("/", ".")):
        return "", argument
    return container, path


@verb("cp", "CONTAINER:SRC_PATH DEST_PATH|- | SRC_PATH|- CONTAINER:DEST_PATH")
@click.argument("source", type=HostPath())
@click.argument("target", type=HostPath())
@click.option("-a", "--archive", is_flag=True, help="Archive mode (copy all uid/gid information)")
@click.option("-L", "--follow-link", "follow", is_flag=True, help="Always follow symbol link in SRC_PATH")
@click.option("-q", "--quiet", is_flag=True, default=None, help="Suppress the message (it is given on a terminal only)")
@click.pass_obj
def copy(session: Session, source: str, target: str, archive: bool, follow: bool, quiet: bool) -> int:
    """Copy files/folders between a container and the local filesystem.

    Use '-' as the source to read a tar archive from stdin and extract it to a directory destination in a container. Use '-' as the destination to
    stream a tar archive of a container source to stdout.
    """
    (from_container, source_path), (to_container, target_path) = split(source), split(target)
    if from_container and to_container:
        raise InvalidInput("copying between containers is not supported", "", "copy to the host first, or pipe one cp to another")
    if not from_container and not to_container:
        raise InvalidInput("must specify at least one container source", "", "write it as CONTAINER:PATH")
    if not source_path or not target_path:
        raise InvalidInput(f"{'source' if not source_path else 'destination'} can not be empty")
    if from_container:
        return copy_out(session.engine.containers.get(from_container), source_path, target_path, archive=archive, follow=follow, quiet=quiet)
    return copy_in(session.engine.containers.get(to_container), source_path, target_path, archive=archive, follow=follow, quiet=quiet)


def copy_out(found: Container, source: str, target: str, *, archive: bool, follow: bool, quiet: bool) -> int:
    """From a container's path to one of the host, or as an archive to standard output (``-``)."""
    if target == "-":
        if os.isatty(1):
            raise InvalidInput("cowardly refusing to write an archive to a terminal", "", "redirect it")
        with open(1, "wb", closefd=False) as out:
            found.files.read_archive(source, out, follow=follow)
        return 0
    return _said(found.files.copy_out(source, target, archive=archive, follow=follow), target, quiet)


def copy_in(found: Container, source: str, target: str, *, archive: bool, follow: bool, quiet: bool) -> int:
    """From a path of the host, or an archive on standard input (``-``), to a container's path."""
    if source == "-":
        with open(0, "rb", closefd=False) as stream:
            return _said(found.files.write_archive(stream, target, archive=archive), target, quiet=True)
    return _said(found.files.copy_in(source, target, archive=archive, follow=follow), f"{found.name}:{target}", quiet)


@verb("diff", "CONTAINER")
@click.argument("container", shell_complete=complete_containers)
@click.option("--format", "form", type=Suggestion("string", "table", "json"), default="", help=FORMAT_HELP)
@click.pass_obj
def diff(session: Session, container: str, form: str) -> int:
    """Inspect changes to files or directories on a container's filesystem."""
    found = session.engine.containers.get(container).files.changes()
    if form:
        write(render(_CHANGES, found, form))
    else:
        write("".join(f"{one.kind} {printable(one.path)}\n" for one in found))
    return 0


_CHANGES: Listing[Change] = Listing(
    # JSON and templates hold text only, which a name need not be.
    fields={
        "Type": ("CHANGE TYPE", lambda one: one.kind),
        "Path": ("PATH", lambda one: os.fsencode(one.path).decode(errors="replace")),
    },
    columns=("Type", "Path"),
    methods={},
)


@verb("export", "CONTAINER")
@click.argument("container", shell_complete=complete_containers)
@click.option("-o", "--output", type=HostPath(), help="Write to a file, instead of STDOUT")
@click.pass_obj
def export(session: Session, container: str, output: str | None) -> int:
    """Export a container's filesystem as a tar archive."""
    return export_files(lambda: session.engine.containers.get(container), output)


def export_files(find: Callable[[], Container], output: str | None) -> int:
    """Write the files of the container that is found to a host path, or to standard output."""
    if output is None and os.isatty(1):
        raise InvalidInput("cowardly refusing to save to a terminal", "", "use the -o flag or redirect")
    found = find()
    from bulle.engine.output_file import output_file

    with output_file(output) as out:
        found.files.export(out)
    warn_of(f"{path} is the host's own and not in the archive" for path in found.plan.root.host_binds)
    return 0


def _said(copied: Copied, target: str, quiet: bool) -> int:
    warn_of(f"{name} is a device and was left out" for name in copied.left_out)
    if not quiet and os.isatty(1):
        note(f"Successfully copied {human.size(copied.size_bytes, 4)} to {printable(target)}")
    return 0
