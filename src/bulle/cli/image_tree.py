"""``bulle images --tree``: images below the one whose layers they stand on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from bulle.cli import human
from bulle.cli.processes import SHORT_ID
from bulle.cli.session import printable
from bulle.cli.table import align
from bulle.engine.history import parent_of
from bulle.model.reference import Reference

if TYPE_CHECKING:
    from bulle.engine import Image


def show_tree(wanted: Collection[str], images: Sequence[Image], *, truncate: bool) -> str:
    """The wanted images (ids) with all that they stand on and that stands on them, as a table."""
    parents = {image.id: parent_of(image, images) for image in images}
    children: dict[str, list[Image]] = {}
    for image in sorted(images, key=_names):
        parent = parents[image.id]
        children.setdefault(parent.id if parent else "", []).append(image)
    related = {image.id for image in images if _line(image, parents) & set(wanted)}
    for one in wanted:
        related |= _line(next(image for image in images if image.id == one), parents)
    lines = [["IMAGE", "ID", "PLATFORM", "SIZE", "OWN SIZE"]]

    def add(image: Image, lead: str, below: str) -> None:
        parent = parents[image.id]
        own = image.size_bytes - (parent.size_bytes if parent else 0)
        identity = image.id.rpartition(":")[2][:SHORT_ID] if truncate else image.id
        platform = printable(str(image.config.platform)) or "-"
        lines.append([lead + printable(_names(image)), identity, platform, human.size(image.size_bytes), human.size(own)])
        inside = [one for one in children.get(image.id, []) if one.id in related]
        for number, child in enumerate(inside, 1):
            last = number == len(inside)
            add(child, below + ("└─ " if last else "├─ "), below + ("   " if last else "│  "))

    for root in children.get("", []):
        if root.id in related:
            add(root, "", "")
    return align(lines)


def _names(image: Image) -> str:
    return ", ".join(Reference.parse(name).familiar for name in image.references) or "<none>"


def _line(image: Image, parents: dict[str, Image | None]) -> set[str]:
    """An image and everything below it."""
    found = {image.id}
    parent = parents[image.id]
    while parent is not None:
        found.add(parent.id)
        parent = parents[parent.id]
    return found
