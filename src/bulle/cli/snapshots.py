"""``bulle snapshot``: the files and options of a container, kept and given back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from bulle.cli import human
from bulle.cli.option_types import Suggestion, Whole, complete_containers
from bulle.cli.processes import FORMAT_HELP, SHORT_ID
from bulle.cli.session import Session, warn_of, write
from bulle.cli.table import Listing, render
from bulle.cli.verb import verb

if TYPE_CHECKING:
    from bulle.records.snapshots import Snapshot


@verb("create", "CONTAINER [TAG]")
@click.argument("container", shell_complete=complete_containers)
@click.argument("tag", required=False)
@click.option("--disk-only", is_flag=True, help="Leave memory out")
@click.pass_obj
def create(session: Session, container: str, tag: str | None, disk_only: bool) -> int:
    """Keep the files and options of a container as they are, and print the snapshot's tag (the time, if none is given).

    A container that runs stands still meanwhile; its memory is kept too, of a virtual machine or where CRIU works. Volumes are not part of it.
    """
    from bulle.engine.rebasing import create_snapshot

    made, notes = create_snapshot(session.engine, container, tag or "", disk_only=disk_only)
    warn_of(notes)
    write(f"{made.tag}\n")
    return 0


@verb("ls", "[CONTAINER]")
@click.argument("container", required=False, shell_complete=complete_containers)
@click.option("-q", "--quiet", is_flag=True, help="Only display tags")
@click.option("--format", "form", type=Suggestion("string", "table", "json"), default="", help=FORMAT_HELP)
@click.pass_obj
def ls(session: Session, container: str | None, quiet: bool, form: str) -> int:
    """List the snapshots of a container, or of all."""
    from bulle.engine.rebasing import snapshots

    found = snapshots(session.engine, container or "")
    if quiet:
        write("".join(f"{one.tag}\n" for one in found))
        return 0
    names = {one.id: one.name for one in session.engine.containers.list(all=True)}
    listing: Listing[Snapshot] = Listing(
        fields={
            "Container": ("CONTAINER", lambda one: names.get(one.container_id, one.container_id[:SHORT_ID])),
            "Tag": ("TAG", lambda one: one.tag),
            "CreatedSince": ("CREATED", lambda one: human.ago(one.created_at_ns)),
            "Isolation": ("ISOLATION", lambda one: one.options.isolation or "container"),
            "Memory": ("MEMORY", lambda one: "kept" if one.machine is not None else "-"),
            "Size": ("SIZE", lambda one: human.size(one.size_bytes)),
        },
        columns=("Container", "Tag", "CreatedSince", "Isolation", "Memory", "Size"),
        methods={},
    )
    write(render(listing, found, form))
    return 0


@verb("restore", "CONTAINER TAG")
@click.argument("container", shell_complete=complete_containers)
@click.argument("tag")
@click.option("-t", "--timeout", type=Whole(-1), help="Seconds for it to end in")
@click.option("--disk-only", is_flag=True, help="Begin anew with the files, as after a power cut, instead of going on from memory")
@click.pass_obj
def restore(session: Session, container: str, tag: str, timeout: int | None, disk_only: bool) -> int:
    """Give a container the files, options and level that it had; what it wrote since is gone.

    Its name, volumes and address stay. One that runs is restarted; one whose memory was kept goes on from that moment.
    """
    from bulle.engine.rebasing import restore_snapshot

    changed = restore_snapshot(session.engine, container, tag, timeout, disk_only=disk_only)
    warn_of(changed.notes)
    write(f"{container}\n")
    return 0


@verb("rm", "CONTAINER TAG [TAG...]")
@click.argument("container", shell_complete=complete_containers)
@click.argument("tags", nargs=-1, required=True)
@click.pass_obj
def remove(session: Session, container: str, tags: Sequence[str]) -> int:
    """Remove snapshots, and what only they kept."""
    from bulle.engine.rebasing import remove_snapshot

    def act(tag: str) -> str:
        remove_snapshot(session.engine, container, tag)
        return tag

    return session.for_each(tags, act)
