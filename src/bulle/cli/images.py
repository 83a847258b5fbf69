"""``bulle images``, ``tag`` and ``rmi``: which images there are, and what they are called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from bulle.cli import human
from bulle.cli.filters import parse
from bulle.cli.option_types import Suggestion, complete_images
from bulle.cli.processes import FORMAT_HELP, SHORT_ID
from bulle.cli.session import Session, complain, note, write
from bulle.cli.table import Listing, render
from bulle.cli.verb import verb
from bulle.engine import filters
from bulle.engine.listing import created_ns
from bulle.errors import InvalidInput, NotFound
from bulle.model.reference import Reference

if TYPE_CHECKING:
    from bulle.engine import Image

_NONE = "<none>"


@dataclass(frozen=True)
class NamedImage:
    """One line of the listing: an image under one of its names (``reference`` is None where it has none)."""

    image: Image
    reference: Reference | None


def _repository(one: NamedImage) -> str:
    return one.reference.familiar_name if one.reference else _NONE


def _tag(one: NamedImage) -> str:
    return (one.reference.tag if one.reference else "") or _NONE


def listing(*, truncate: bool) -> Listing[NamedImage]:
    """The fields of ``images``."""

    def identity(one: NamedImage) -> str:
        return one.image.id.rpartition(":")[2][:SHORT_ID] if truncate else one.image.id

    return Listing(
        fields={
            "Repository": ("REPOSITORY", _repository),
            "Tag": ("TAG", _tag),
            "Digest": ("DIGEST", lambda one: one.image.manifest_digest or _NONE),
            "ID": ("IMAGE ID", identity),
            "CreatedSince": ("CREATED", lambda one: human.ago(created_ns(one.image))),
            "CreatedAt": ("CREATED AT", lambda one: human.timestamp(created_ns(one.image))),
            "Size": ("SIZE", lambda one: human.size(one.image.size_bytes)),
            "VirtualSize": ("SIZE", lambda one: human.size(one.image.size_bytes)),
            "SharedSize": ("SHARED SIZE", lambda one: "N/A"),
            "UniqueSize": ("UNIQUE SIZE", lambda one: "N/A"),
            "Containers": ("CONTAINERS", lambda one: "N/A"),
        },
        columns=("Repository", "Tag", "ID", "CreatedSince", "Size"),
        methods={},
    )


def _named(image: Image) -> list[NamedImage]:
    return [NamedImage(image, Reference.parse(one)) for one in image.references] or [NamedImage(image, None)]


@verb("images", "[REPOSITORY[:TAG]]")
@click.argument("pattern", required=False, shell_complete=complete_images)
@click.option("-a", "--all", "every", is_flag=True, help="Show all images (there are no intermediate ones to hide)")
@click.option("-q", "--quiet", is_flag=True, help="Only show image IDs")
@click.option("--digests", is_flag=True, help="Show digests")
@click.option("--no-trunc", is_flag=True, help="Don't truncate output")
@click.option("--tree", is_flag=True, help="Show which image stands on the layers of which")
@click.option("-f", "--filter", "wanted", multiple=True, type=Suggestion("filter", *(f"{key}=" for key in filters.IMAGE_KEYS)), help="Filter output")
@click.option("--format", "form", type=Suggestion("string", "table", "json"), default="", help=FORMAT_HELP)
@click.pass_obj
def images(
    session: Session, pattern: str | None, every: bool, quiet: bool, digests: bool, no_trunc: bool, tree: bool, wanted: Sequence[str], form: str
) -> int:
    """List images."""
    if tree and (quiet or digests or form):
        raise InvalidInput("--tree cannot be combined with --quiet, --digests and --format")
    chosen = parse(wanted, filters.IMAGE_KEYS)
    patterns = [filters.glob(one) for one in (*chosen.get("reference", ()), *([pattern] if pattern else ()))]
    tests = filters.images(session.engine, chosen) if chosen else []
    found = sorted((one for one in session.engine.images.list() if all(test(one) for test in tests)), key=created_ns, reverse=True)
    named = [one for image in found for one in _named(image)]
    if patterns:
        named = [one for one in named if one.reference and filters.reference_matches(one.reference, patterns)]
    if tree:
        from bulle.cli.image_tree import show_tree  # rarely asked for

        write(show_tree(dict.fromkeys(one.image.id for one in named), session.engine.images.list(), truncate=not no_trunc))
        return 0
    form_columns = ("Repository", "Tag", "Digest", "ID", "CreatedSince", "Size") if digests else ()
    shown = listing(truncate=not no_trunc)
    if quiet:
        if form:
            note("WARNING: Ignoring custom format, because both --format and --quiet are set.")
        write("".join(f"{shown.fields['ID'][1](one)}\n" for one in named))
    else:
        write(render(shown, named, form, form_columns))
    return 0


@verb("tag", "SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]")
@click.argument("source", shell_complete=complete_images)
@click.argument("target", shell_complete=complete_images)
@click.pass_obj
def tag(session: Session, source: str, target: str) -> int:
    """Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE."""
    session.engine.images.tag(source, target)
    return 0


@verb("rmi", "IMAGE [IMAGE...]")
@click.argument("names", nargs=-1, required=True, shell_complete=complete_images)
@click.option("-f", "--force", is_flag=True, help="Force removal of the image")
@click.option("--no-prune", is_flag=True, help="Do not delete untagged parents (there are none)")
@click.pass_obj
def remove(session: Session, names: Sequence[str], force: bool, no_prune: bool) -> int:
    """Remove one or more images."""

    def act(name: str) -> str | None:
        try:
            return "\n".join(session.engine.images.remove(name, force=force))
        except NotFound as error:
            if not force:
                raise
            complain(str(error))
            return None  # as in Docker: said, but with `rmi -f` no failure

    return session.for_each(names, act)
