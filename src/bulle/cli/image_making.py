"""``bulle history``, ``commit`` and ``import``: how an image came about, and how one is made of a container or a tar."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import click

from bulle.cli import human
from bulle.cli.option_types import PLATFORM, HostPath, Suggestion, Text, complete_containers, complete_images
from bulle.cli.processes import FORMAT_HELP, SHORT_ID
from bulle.cli.session import Session, note, warn_of, write
from bulle.cli.table import Listing, render
from bulle.cli.verb import verb
from bulle.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from bulle.engine.history import HistoryEntry

CHANGE = click.option("-c", "--change", "changes", multiple=True, type=Text("list"), help="Apply a Containerfile instruction to the created image")
_WIDTH = 45
_MISSING = "<missing>"


def _listing(*, truncate: bool, human_readable: bool) -> Listing[HistoryEntry]:
    def identity(one: HistoryEntry) -> str:
        return one.id.rpartition(":")[2][:SHORT_ID] if truncate else one.id

    def created_by(one: HistoryEntry) -> str:
        text = one.created_by.replace("\t", " ")
        return human.ellipsis(text, _WIDTH) if truncate else text

    def created_at(one: HistoryEntry) -> str:
        import datetime  # rarely shown

        return datetime.datetime.fromtimestamp(one.created_at_s).astimezone().isoformat().replace("+00:00", "Z")

    def created_since(one: HistoryEntry) -> str:
        return human.ago(one.created_at_s * human.NANOSECONDS) if human_readable else created_at(one)

    return Listing(
        fields={
            "ID": ("IMAGE", lambda one: one.id if one.id == _MISSING else identity(one)),
            "CreatedSince": ("CREATED", created_since),
            "CreatedAt": ("CREATED AT", created_at),
            "CreatedBy": ("CREATED BY", created_by),
            "Size": ("SIZE", lambda one: human.size(one.size_bytes) if human_readable else str(one.size_bytes)),
            "Comment": ("COMMENT", lambda one: one.comment),
        },
        columns=("ID", "CreatedSince" if human_readable else "CreatedAt", "CreatedBy", "Size", "Comment"),
        methods={},
    )


@verb("history", "IMAGE")
@click.argument("image", shell_complete=complete_images)
@click.option("-H", "--human", "human_readable", is_flag=True, default=True, help="Print sizes and dates in human readable format (default true)")
@click.option("--no-trunc", is_flag=True, help="Don't truncate output")
@click.option("-q", "--quiet", is_flag=True, help="Only show image IDs")
@click.option("--format", "form", type=Suggestion("string", "table", "json"), default="", help=FORMAT_HELP)
@click.pass_obj
def history(session: Session, image: str, human_readable: bool, no_trunc: bool, quiet: bool, form: str) -> int:
    """Show the history of an image."""
    entries = session.engine.images.history(image)
    shown = _listing(truncate=not no_trunc, human_readable=human_readable)
    if quiet:
        if form:
            note("WARNING: Ignoring custom format, because both --format and --quiet are set.")
        write("".join(f"{shown.fields['ID'][1](one)}\n" for one in entries))
    else:
        write(render(shown, entries, form))
    return 0


@verb("commit", "CONTAINER [REPOSITORY[:TAG]]")
@click.argument("container", shell_complete=complete_containers)
@click.argument("name", required=False, type=Text())
@click.option("-a", "--author", type=Text(), default="", help='Author (e.g., "Ada Lovelace <ada@example.org>")')
@CHANGE
@click.option("-m", "--message", type=Text(), default="", help="Commit message")
@click.option("-p", "--pause", is_flag=True, default=True, help="Pause container during commit (default true)")
@click.pass_obj
def commit(session: Session, container: str, name: str | None, author: str, changes: Sequence[str], message: str, pause: bool) -> int:
    """Create a new image from a container's changes."""
    found = session.engine.containers.get(container)
    image, notes = session.engine.images.commit(found, name or "", author=author, message=message, changes=changes, pause=pause)
    warn_of(notes)
    write(image.id + "\n")
    return 0


@verb("import", "FILE|URL|- [REPOSITORY[:TAG]]")
@click.argument("source", type=HostPath())
@click.argument("name", required=False, type=Text())
@CHANGE
@click.option("-m", "--message", type=Text(), default="", help="Set commit message for imported image")
@click.option("--platform", type=PLATFORM, default="", help="Set platform of the image")
@click.pass_obj
def import_image(session: Session, source: str, name: str | None, changes: Sequence[str], message: str, platform: str) -> int:
    """Import the contents from a tarball to create a filesystem image."""
    with _opened(source) as stream:
        shown = source if "://" in source else "-"
        image = session.engine.images.import_tar(stream, shown, name or "", message=message, changes=changes, platform=platform)
    write(image.id + "\n")
    return 0


@contextmanager
def _opened(source: str) -> Iterator[BinaryIO]:
    if source == "-":
        if os.isatty(0):
            raise InvalidInput("requested import from stdin, but stdin is a terminal", "", "name a file, or redirect one")
        with open(0, "rb", closefd=False) as stream:
            yield stream
    elif source.startswith(("http://", "https://")):
        from bulle.registry.download import download

        with download(source) as response:
            yield cast("BinaryIO", response)
    else:
        try:
            with Path(source).open("rb") as stream:
                yield stream
        except FileNotFoundError:
            raise NotFound(f"open {source}: no such file or directory") from None
        except IsADirectoryError:
            raise InvalidInput(f"{source} is a directory", "", f"use `bulle pull dir:{source}`") from None
