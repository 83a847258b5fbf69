"""``prune``: containers, images, the build cache, or all of them; after a question, unless ``-f`` answers it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from bulle.cli import human
from bulle.cli.filters import parse
from bulle.cli.option_types import Suggestion
from bulle.cli.session import Session, write
from bulle.cli.verb import verb
from bulle.engine import filters
from bulle.errors import InvalidInput

if TYPE_CHECKING:
    from bulle.engine.pruning import Pruned, PruneFilter

_KEYS = ("label", "label!", "until")
FORCE = click.option("-f", "--force", is_flag=True, help="Do not prompt for confirmation")


def filter_option(*keys: str) -> Callable[[Any], Any]:
    """The flag ``--filter`` with these keys."""
    kinds = Suggestion("filter", *(f"{key}=" for key in keys))
    return click.option("--filter", "wanted", multiple=True, type=kinds, help=f"Provide filter values ({', '.join(keys)})")


def chosen_by(wanted: Sequence[str], keys: Sequence[str] = _KEYS) -> PruneFilter:
    """What the filters let a prune take."""
    return filters.prune_filter(parse(wanted, keys))


def confirmed(force: bool, warning: str) -> bool:
    """Docker's question; who says no, or nothing, gets what was asked for, which is no failure."""
    if force:
        return True
    write(f"WARNING! {warning}\nAre you sure you want to continue? [y/N] ")
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def show_removed(title: str, pruned: Pruned) -> None:
    """The list of what is gone, as Docker titles it."""
    if pruned.removed:
        write(f"Deleted {title}:\n" + "".join(f"{one}\n" for one in pruned.removed) + "\n")


def show_total(size_bytes: int) -> int:
    """The last line of a prune; returns its exit code."""
    write(f"Total reclaimed space: {human.size(size_bytes, 4)}\n")
    return 0


def _lines_of_images(pruned: Pruned) -> Pruned:
    """Docker writes these words small here, and large in ``rmi``."""
    pruned.removed = [line[0].lower() + line[1:] for line in pruned.removed]
    return pruned


@verb("prune")
@filter_option("label", "until")
@FORCE
@click.pass_obj
def prune_containers(session: Session, wanted: Sequence[str], force: bool) -> int:
    """Remove all stopped containers."""
    chosen = chosen_by(wanted)
    if not confirmed(force, "This will remove all stopped containers."):
        return 0
    pruned = session.engine.containers.prune(chosen)
    show_removed("Containers", pruned)
    return show_total(pruned.reclaimed_bytes)


@verb("prune")
@click.option("-a", "--all", "every", is_flag=True, help="Remove all unused images, not just dangling ones")
@filter_option("label", "until")
@FORCE
@click.pass_obj
def prune_images(session: Session, every: bool, wanted: Sequence[str], force: bool) -> int:
    """Remove unused images."""
    chosen = chosen_by(wanted)
    warning = "This will remove all images without at least one container associated to them." if every else "This will remove all dangling images."
    if not confirmed(force, warning):
        return 0
    pruned = _lines_of_images(session.engine.images.prune(chosen, every=every))
    show_removed("Images", pruned)
    return show_total(pruned.reclaimed_bytes)


@verb("prune")
@click.option("-a", "--all", "every", is_flag=True, help="Remove all unused build cache, not just dangling ones")
@filter_option("until")
@FORCE
@click.pass_obj
def prune_builder(session: Session, every: bool, wanted: Sequence[str], force: bool) -> int:
    """Remove build cache."""
    chosen = chosen_by(wanted, ("until",))
    warning = "This will remove all build cache." if every else "This will remove all dangling build cache."
    if not confirmed(force, warning):
        return 0
    pruned = session.engine.prune_build_cache(every=every, until_ns=chosen.until_ns)
    show_removed("build cache objects", pruned)
    return show_total(pruned.reclaimed_bytes)


@verb("prune")
@click.option("-a", "--all", "every", is_flag=True, help="Remove all unused images not just dangling ones")
@click.option("--volumes", is_flag=True, help="Prune anonymous volumes")
@filter_option("label", "until")
@FORCE
@click.pass_obj
def prune_system(session: Session, every: bool, volumes: bool, wanted: Sequence[str], force: bool) -> int:
    """Remove unused data: stopped containers, networks and images that none uses, and build cache."""
    chosen = chosen_by(wanted)
    if volumes and any(one.startswith("until") for one in wanted):
        raise InvalidInput('The "until" filter is not supported with "--volumes"', "", "leave out one of them")
    kinds = ["all stopped containers", "all networks not used by at least one container"]
    kinds += ["all anonymous volumes not used by at least one container"] if volumes else []
    kinds += ["all images without at least one container associated to them" if every else "all dangling images"]
    kinds += ["all build cache" if every else "unused build cache"]
    if not confirmed(force, "This will remove:\n" + "".join(f"  - {one}\n" for one in kinds)):
        return 0
    containers = session.engine.containers.prune(chosen)
    show_removed("Containers", containers)
    show_removed("Networks", session.engine.networks.prune(chosen))
    pruned_volumes = session.engine.volumes.prune(chosen) if volumes else None
    if pruned_volumes is not None:
        show_removed("Volumes", pruned_volumes)
    images = _lines_of_images(session.engine.images.prune(chosen, every=every))
    show_removed("Images", images)
    # Steps of builds have no labels: a filter that asks for some is not for them.
    labelled = any(one.startswith("label") for one in wanted)
    cache = session.engine.prune_build_cache(every=every, until_ns=chosen.until_ns) if not labelled else None
    if cache is not None:
        show_removed("build cache objects", cache)
    return show_total(sum(one.reclaimed_bytes for one in (containers, pruned_volumes, images, cache) if one is not None))
