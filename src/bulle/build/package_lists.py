"""``--sbom``: the list of an image's packages, found in its layers and attached to it as an artifact that refers to it.

It is pushed and pulled with the image, and removed with it. Distribution specification, "Listing Referrers".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from bulle.build.packages import find_packages
from bulle.build.sbom import Subject, cyclonedx, spdx
from bulle.engine import Engine
from bulle.errors import InvalidInput
from bulle.model.digest import Digest
from bulle.store import Image
from bulle.store.merged_view import MergedView

_MOST_BYTES = 512 << 20

FORMS: dict[str, tuple[Callable[..., bytes], str]] = {
    "spdx": (spdx, "application/spdx+json"),
    "cyclonedx": (cyclonedx, "application/vnd.cyclonedx+json"),
}
"""What writes each form, and its media type."""


def check_form(form: str) -> None:
    """Raise InvalidInput for a form that does not exist: before the build, not after it."""
    if form and form not in FORMS:
        raise InvalidInput(f"there is no list of packages in the form {form!r}", "", f"use {' or '.join(FORMS)}")


def attach_packages(engine: Engine, image: Image, name: str, form: str, created_s: int) -> Digest:
    """List the packages of an image of the store; returns the digest of the artifact. ``created_s``: seconds since the epoch."""
    write, media_type = FORMS[form]
    with engine.store.layers.view(image.layers) as view:
        packages = find_packages(_Files(view))
    content = write(Subject(name or image.id, image.id, created_s), packages)
    return engine.artifacts.attach(image.id, media_type, media_type, content)


class _Files:
    """An image's files, as the search for packages reads them."""

    def __init__(self, view: MergedView) -> None:
        self._view = view

    def read(self, path: str) -> bytes | None:
        return self._view.text(path, _MOST_BYTES)

    def list(self, path: str) -> Iterator[str]:
        try:
            place = self._view.resolve(os.fsencode(path)).place
        except InvalidInput:
            return
        for child in self._view.children(place) if place is not None and place.is_directory else ():
            yield os.fsdecode(child.path[-1]) + ("/" if child.is_directory else "")
