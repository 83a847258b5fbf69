"""What ``image verify --repair`` does about what it finds: mend what can be made anew from the rest, remove what only a pull can bring."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from bulle.errors import Conflict, NotFound
from bulle.store import Image, Store
from bulle.store.verification import Verdict, mend_index

if TYPE_CHECKING:
    from bulle.engine.images import Images


def repaired(images: Images, store: Store, verdict: Verdict, known: Sequence[Image]) -> Verdict:
    """Act on a verdict; returns it with what is still wrong: the faults of an image that was removed stay. Raises Conflict."""
    left = []
    for fault in verdict.faults:
        if fault.kind == "blob" and fault.path is not None:
            fault.path.unlink(missing_ok=True)  # the layer's tar is still there
        elif fault.kind != "index" or not mend_index(store, fault, known):
            left.append(fault)
    if not left:
        return replace(verdict, faults=())
    if users := images.users(verdict.image):
        what = f"image {verdict.image.id[7:19]} is damaged and cannot be removed"
        raise Conflict(what, f"container {users[0]} was made from it", f"remove it with `bulle rm {users[0]}`")
    with suppress(NotFound):  # it went with another of its names
        for name in verdict.image.references or (verdict.image.id,):
            images.remove(name, force=True, only=verdict.image)
    return replace(verdict, faults=tuple(left))
