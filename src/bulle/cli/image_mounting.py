"""``bulle image mount`` and ``unmount``: an image's files at a path of the host, as podman has it."""

from __future__ import annotations

from collections.abc import Sequence

import click

from bulle.cli.option_types import complete_images
from bulle.cli.session import Session, write
from bulle.cli.verb import verb
from bulle.errors import InvalidInput, NotFound
from bulle.model.reference import Reference


@verb("mount", "[IMAGE...]")
@click.argument("names", nargs=-1, shell_complete=complete_images)
@click.pass_obj
def mount(session: Session, names: Sequence[str]) -> int:
    """Mount images read-only and print where; without arguments list what is mounted.

    A mount lasts until it is undone, or the machine is restarted.
    """
    images = session.engine.images
    if names:
        return session.for_each(names, lambda name: (f"{name} " if len(names) > 1 else "") + images.mounts.mount(images.get(name)))
    for one in images.mounts.list():
        try:
            references = images.get(one.image_id).references
        except NotFound:
            references = ()
        write(f"{Reference.parse(references[0]).familiar if references else one.image_id} {one.path}\n")
    return 0


@verb("unmount", "IMAGE [IMAGE...]")
@click.argument("names", nargs=-1, shell_complete=complete_images)
@click.option("-a", "--all", "every", is_flag=True, help="Unmount all of the currently mounted images")
@click.pass_obj
def unmount(session: Session, names: Sequence[str], every: bool) -> int:
    """Unmount images."""
    if every == bool(names):
        raise InvalidInput("name the images to unmount, or give --all", "" if not names else "both were given")
    images = session.engine.images

    def act(name: str) -> str:
        image = images.get(name)
        images.mounts.unmount(image)
        return image.id

    return session.for_each([one.image_id for one in images.mounts.list()] if every else names, act)
