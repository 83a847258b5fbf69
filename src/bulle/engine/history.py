"""``history``: how the layers of an image came about, the topmost first; and which image stands on which.

From the image's config alone, with the sizes of the layers in the store. Image specification, config.md, "history".
"""

from __future__ import annotations

import calendar
import re
import time
from collections.abc import Sequence

import msgspec

from bulle.model.image import History
from bulle.store import Image, Store

MISSING = "<missing>"


class HistoryEntry(msgspec.Struct, frozen=True):
    """One step: ``id`` is the image's for the topmost and ``<missing>`` for all others, ``size_bytes`` that of the layer's tar."""

    id: str
    created_at_s: int
    created_by: str
    size_bytes: int
    comment: str
    tags: tuple[str, ...] = ()


def history_of(store: Store, image: Image) -> list[HistoryEntry]:
    """Every step of an image, the last first. Layers that its history does not mention come first, without words."""
    steps: Sequence[History] = image.config.history or ()
    layers = list(image.layers)
    unmentioned = len(layers) - sum(1 for step in steps if not step.empty_layer)
    steps = (*(History() for _ in range(unmentioned)), *steps)
    entries = []
    for number, step in enumerate(steps, 1):
        size = 0 if step.empty_layer or not layers else store.layers.size(layers.pop(0))
        identity, tags = (image.id, image.references) if number == len(steps) else (MISSING, ())
        entries.append(HistoryEntry(identity, seconds(step.created), step.created_by or "", size, step.comment or "", tags))
    return entries[::-1]


def parent_of(image: Image, images: Sequence[Image]) -> Image | None:
    """Of these images the one on which it stands: whose layers are the largest part of its own, from the lowest up."""
    below = [one for one in images if len(one.layers) < len(image.layers) and one.layers == image.layers[: len(one.layers)] and one.layers]
    return max(below, key=lambda one: (len(one.layers), one.created_at_ns), default=None)


def seconds(moment: str | None) -> int:
    """A time of a config (RFC 3339) in seconds since the epoch; 0 for none."""
    match = re.match(r"(\d{4}-\d{2}-\d{2})[Tt ](\d{2}:\d{2}:\d{2})(?:\.\d+)?([Zz]|[+-]\d{2}:\d{2})?", moment or "")
    if match is None:
        return 0
    try:
        found = calendar.timegm(time.strptime(f"{match[1]} {match[2]}", "%Y-%m-%d %H:%M:%S"))
    except ValueError:
        return 0
    zone = match[3] or "Z"
    if zone not in "Zz":
        sign = 1 if zone[0] == "+" else -1
        found -= sign * (int(zone[1:3]) * 3600 + int(zone[4:6]) * 60)
    return max(found, 0)
