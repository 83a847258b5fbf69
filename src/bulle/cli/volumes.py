"""``bulle volume``: volumes made, listed, removed; their content carried out, in, and into others."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import click

from bulle.cli.cleaning import FORCE, chosen_by, confirmed, filter_option, show_removed, show_total
from bulle.cli.filters import parse
from bulle.cli.inspection import inspect_all
from bulle.cli.option_types import HostPath, Suggestion, Text, complete_volumes
from bulle.cli.processes import FORMAT_HELP
from bulle.cli.session import Session, note, write
from bulle.cli.table import Listing, render
from bulle.cli.verb import WrongValue, verb
from bulle.engine import filters
from bulle.errors import InvalidInput, NotFound
from bulle.model.volume import DRIVER, Volume

_SEVERAL = "VOLUME [VOLUME...]"

LISTING: Listing[Volume] = Listing(
    fields={
        "Name": ("VOLUME NAME", lambda one: one.name),
        "Driver": ("DRIVER", lambda one: DRIVER),
        "Scope": ("SCOPE", lambda one: "local"),
        "Mountpoint": ("MOUNTPOINT", lambda one: one.mountpoint),
        "Labels": ("LABELS", lambda one: ",".join(f"{name}={value}" for name, value in sorted(one.labels.items()))),
        "Links": ("LINKS", lambda one: str(len(one.users))),
        "Size": ("SIZE", lambda one: "N/A"),
    },
    columns=("Driver", "Name"),
    methods={"Label": ("LABEL", lambda one: lambda name: one.labels.get(name, ""))},
)


@verb("create", "[VOLUME]")
@click.argument("name", required=False)
@click.option("-d", "--driver", type=Suggestion("string", DRIVER), default=DRIVER, help="Specify volume driver name (default local)")
@click.option("--label", "labels", multiple=True, type=Text("list"), help="Set metadata for a volume")
@click.option("-o", "--opt", "options", multiple=True, type=Text("map"), help="Set driver specific options (type=, device=, o=, size=)")
@click.pass_obj
def create(session: Session, name: str | None, driver: str, labels: Sequence[str], options: Sequence[str]) -> int:
    """Create a volume, with a name of its own if none is given, and print the name."""
    if driver != DRIVER:
        raise NotFound(f'plugin "{driver}" not found', "there is one driver", f"use -d {DRIVER}, or leave it out")
    pairs = [one.partition("=") for one in options]
    if wrong := next((one for one, (_, equals, _) in zip(options, pairs, strict=True) if not equals), None):
        raise WrongValue(f"invalid argument '{wrong}' for --opt", "", "write it as key=value")
    named = {key: value for key, _, value in (one.partition("=") for one in labels)}
    made = session.engine.volumes.create(name or "", labels=named, options={key: value for key, _, value in pairs})
    write(made.name + "\n")
    return 0


@verb("ls")
@click.option("-q", "--quiet", is_flag=True, help="Only display volume names")
@click.option(
    "-f", "--filter", "wanted", multiple=True, type=Suggestion("filter", *(f"{key}=" for key in filters.VOLUME_KEYS)), help="Provide filter values"
)
@click.option("--format", "form", type=Suggestion("string", "table", "json"), default="", help=FORMAT_HELP)
@click.pass_obj
def ls(session: Session, quiet: bool, wanted: Sequence[str], form: str) -> int:
    """List volumes."""
    tests = filters.volumes(parse(wanted, filters.VOLUME_KEYS))
    found = [one for one in session.engine.volumes.list() if all(test(one) for test in tests)]
    if quiet and form:
        note("WARNING: Ignoring custom format, because both --format and --quiet are set.")
    write("".join(f"{one.name}\n" for one in found) if quiet else render(LISTING, found, form))
    return 0


@verb("inspect", _SEVERAL)
@click.argument("names", nargs=-1, required=True, shell_complete=complete_volumes)
@click.option("-f", "--format", "form", type=Suggestion("string", "json"), default="", help="Format output: 'json', or a Go TEMPLATE")
@click.pass_obj
def inspect(session: Session, names: Sequence[str], form: str) -> int:
    """Display detailed information on one or more volumes."""
    return inspect_all(names, form, lambda name: document(session, name))


def document(session: Session, name: str) -> Mapping[str, object]:
    """Docker's document of a volume."""
    from bulle.engine.inspection import volume_document

    return volume_document(session.engine.volumes.get(name))


@verb("rm", _SEVERAL)
@click.argument("names", nargs=-1, required=True, shell_complete=complete_volumes)
@click.option("-f", "--force", is_flag=True, help="Do not complain about volumes that are not there")
@click.pass_obj
def remove(session: Session, names: Sequence[str], force: bool) -> int:
    """Remove one or more volumes, with all that is in them."""

    def act(name: str) -> str:
        session.engine.volumes.remove(name, force=force)
        return name

    return session.for_each(names, act)


@verb("prune")
@click.option("-a", "--all", "every", is_flag=True, help="Remove all unused volumes, not just anonymous ones")
@filter_option("all", "label", "label!")
@FORCE
@click.pass_obj
def prune(session: Session, every: bool, wanted: Sequence[str], force: bool) -> int:
    """Remove unused volumes."""
    values = parse(wanted, ("all", "label", "label!"))
    every = every or values.get("all", ["false"])[-1].lower() in {"1", "true"}
    chosen = chosen_by([one for one in wanted if not one.startswith("all")], ("label", "label!"))
    warning = f"This will remove {'all' if every else 'anonymous'} local volumes not used by at least one container."
    if not confirmed(force, warning):
        return 0
    pruned = session.engine.volumes.prune(chosen, every=every)
    show_removed("Volumes", pruned)
    return show_total(pruned.reclaimed_bytes)


@verb("export", "VOLUME")
@click.argument("name", shell_complete=complete_volumes)
@click.option("-o", "--output", type=HostPath(), help="Write to a file, instead of STDOUT")
@click.pass_obj
def export(session: Session, name: str, output: str | None) -> int:
    """Write the content of a volume as a tar archive (streamed to STDOUT by default)."""
    from bulle.engine.output_file import output_file

    session.engine.volumes.get(name)
    with output_file(None if output == "-" else output) as out:
        session.engine.volumes.export(name, out)
    return 0


@verb("import", "VOLUME [FILE|-]")
@click.argument("name", shell_complete=complete_volumes)
@click.argument("source", required=False)
@click.pass_obj
def import_volume(session: Session, name: str, source: str | None) -> int:
    """Unpack a tar archive, compressed or not, in a volume; it is made if it is not there.

    What is in the volume already stays, except what the archive has too. Without a file the archive is read from STDIN.
    """
    if source in (None, "-") and os.isatty(0):
        raise InvalidInput("requested import from stdin, but stdin is a terminal", "", "name a file, or redirect one")
    with ExitStack() as stack:
        try:
            stream = stack.enter_context(open(0 if source in (None, "-") else str(source), "rb", closefd=source not in (None, "-")))
        except FileNotFoundError:
            raise NotFound(f"open {source}: no such file or directory") from None
        session.engine.volumes.import_archive(name, stream)
    write(name + "\n")
    return 0


@verb("clone", "VOLUME NEW")
@click.argument("source", shell_complete=complete_volumes)
@click.argument("target")
@click.pass_obj
def clone(session: Session, source: str, target: str) -> int:
    """Make a new volume with the options and the content of another, and print its name.

    Files share their blocks with the original where the file system can do that.
    """
    write(session.engine.volumes.clone(source, target).name + "\n")
    return 0
