"""``bulle search``: images of this machine whose name or description has a word in it."""

from __future__ import annotations

from collections.abc import Sequence

import click

from bulle.cli import human
from bulle.cli.images import NamedImage
from bulle.cli.option_types import Suggestion, Text, Whole
from bulle.cli.processes import FORMAT_HELP
from bulle.cli.session import Session, write
from bulle.cli.table import Listing, render
from bulle.cli.verb import verb
from bulle.model.reference import Reference

_DESCRIPTIONS = ("org.opencontainers.image.description", "org.label-schema.description", "description", "org.opencontainers.image.title")
_WIDTH = 45


def description_of(one: NamedImage) -> str:
    """What an image says of itself, in its labels."""
    labels = (one.image.config.config and one.image.config.config.labels) or {}
    return " ".join(next((labels[key] for key in _DESCRIPTIONS if labels.get(key)), "").split())


@verb("search", "TERM")
@click.argument("term", type=Text())
@click.option("--limit", type=Whole(1), default=25, help="Max number of search results (default 25)")
@click.option("--no-trunc", is_flag=True, help="Don't truncate output")
@click.option("--format", "form", type=Suggestion("string", "table", "json"), default="", help=FORMAT_HELP)
@click.pass_obj
def search(session: Session, term: str, limit: int, no_trunc: bool, form: str) -> int:
    """Search the images of this machine by name and description."""
    named = [NamedImage(image, Reference.parse(name)) for image in session.engine.images.list() for name in image.references]
    found = [one for one in named if _matches(one, term.lower().split())]
    found.sort(key=lambda one: (term.lower() not in str(one.reference), str(one.reference)))

    def description(one: NamedImage) -> str:
        return description_of(one) if no_trunc else human.ellipsis(description_of(one), _WIDTH)

    shown: Listing[NamedImage] = Listing(
        fields={"Name": ("NAME", lambda one: str(one.reference)), "Description": ("DESCRIPTION", description)},
        columns=("Name", "Description"),
        methods={},
    )
    write(render(shown, found[:limit], form))
    return 0


def _matches(one: NamedImage, words: Sequence[str]) -> bool:
    text = f"{one.reference} {description_of(one)}".lower()
    return all(word in text for word in words)
