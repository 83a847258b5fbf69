"""``bulle image verify``: whether images are still what their digests say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from bulle.cli.option_types import complete_images
from bulle.cli.session import Session, complain, printable, write
from bulle.cli.verb import verb
from bulle.model.reference import Reference

if TYPE_CHECKING:
    from bulle.engine import Image


def _name(image: Image) -> str:
    return ", ".join(Reference.parse(one).familiar for one in image.references) or image.id.rpartition(":")[2][:12]


@verb("verify", "[IMAGE...]")
@click.argument("names", nargs=-1, shell_complete=complete_images)
@click.option("--repair", is_flag=True, help="Mend what can be mended, and remove what a pull must bring anew")
@click.pass_obj
def verify(session: Session, names: Sequence[str], repair: bool) -> int:
    """Check images against their digests, all by default.

    Manifests, configs, layers and blobs are hashed again, and the index of every layer is made again and compared.
    """
    damaged = 0
    for verdict in session.engine.images.verify(names, repair=repair):
        name = printable(_name(verdict.image))
        for fault in verdict.faults:
            write(f"{name}: damaged: {fault.subject}: {printable(fault.why)}\n")
        damaged += bool(verdict.faults)
        if not verdict.faults:
            write(f"{name}: ok\n")
    if not damaged:
        return 0
    what = "1 image is damaged" if damaged == 1 else f"{damaged} images are damaged"
    complain(f"{what} and removed; pull again what you need" if repair else f"{what}; `bulle image verify --repair` mends what can be mended")
    return 1
