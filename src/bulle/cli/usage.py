"""``bulle system df``: what takes how much of the disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bulle.cli import human
from bulle.cli.images import NamedImage
from bulle.cli.images import listing as image_listing
from bulle.cli.option_types import Suggestion
from bulle.cli.processes import FORMAT_HELP
from bulle.cli.processes import listing as container_listing
from bulle.cli.session import Session, write
from bulle.cli.table import Listing, render
from bulle.cli.verb import verb
from bulle.engine.listing import created_ns
from bulle.errors import InvalidInput
from bulle.model.reference import Reference

if TYPE_CHECKING:
    from bulle.engine.usage import ContainerUsage, ImageUsage, Kind, StepUsage, Usage, VolumeUsage

_SHORT = 12


def _reclaimable(one: Kind) -> str:
    share = f" ({one.reclaimable_bytes * 100 // one.size_bytes}%)" if one.size_bytes else ""
    return human.size(one.reclaimable_bytes, 4) + share


_KINDS: Listing[Kind] = Listing(
    fields={
        "Type": ("TYPE", lambda one: one.name),
        "TotalCount": ("TOTAL", lambda one: str(one.total)),
        "Active": ("ACTIVE", lambda one: str(one.active)),
        "Size": ("SIZE", lambda one: human.size(one.size_bytes, 4)),
        "Reclaimable": ("RECLAIMABLE", _reclaimable),
    },
    columns=("Type", "TotalCount", "Active", "Size", "Reclaimable"),
    methods={},
)


def _named(one: ImageUsage) -> NamedImage:
    return NamedImage(one.image, Reference.parse(one.image.references[0]) if one.image.references else None)


def _images() -> Listing[ImageUsage]:
    shown = image_listing(truncate=True).fields
    return Listing(
        fields={
            **{name: (shown[name][0], lambda one, name=name: shown[name][1](_named(one))) for name in ("Repository", "Tag", "ID")},  # type: ignore[misc]
            "CreatedSince": ("CREATED", lambda one: human.ago(created_ns(one.image))),
            "Size": ("SIZE", lambda one: human.size(one.own_bytes + one.shared_bytes)),
            "SharedSize": ("SHARED SIZE", lambda one: human.size(one.shared_bytes)),
            "UniqueSize": ("UNIQUE SIZE", lambda one: human.size(one.own_bytes)),
            "Containers": ("CONTAINERS", lambda one: str(one.containers)),
        },
        columns=("Repository", "Tag", "ID", "CreatedSince", "Size", "SharedSize", "UniqueSize", "Containers"),
        methods={},
    )


def _containers() -> Listing[ContainerUsage]:
    shown = container_listing(truncate=True).fields
    names = ("ID", "Image", "Command", "LocalVolumes", "Size", "RunningFor", "Status", "Names")
    fields = {name: (shown[name][0], lambda one, name=name: shown[name][1](one.container)) for name in names}
    return Listing(
        fields={**fields, "Size": ("SIZE", lambda one: human.size(one.size_bytes))},
        columns=names,
        methods={},
    )


_VOLUMES: Listing[VolumeUsage] = Listing(
    fields={
        "Name": ("VOLUME NAME", lambda one: one.name),
        "Links": ("LINKS", lambda one: str(one.links)),
        "Size": ("SIZE", lambda one: human.size(one.size_bytes)),
    },
    columns=("Name", "Links", "Size"),
    methods={},
)
_STEPS: Listing[StepUsage] = Listing(
    fields={
        "ID": ("CACHE ID", lambda one: one.key.rpartition(":")[2][:_SHORT]),
        "Type": ("CACHE TYPE", lambda one: human.ellipsis(one.instruction, 30)),
        "Size": ("SIZE", lambda one: human.size(one.own_bytes)),
        "Created": ("CREATED", lambda one: human.ago(one.created_at_ns)),
        "LastUsed": ("LAST USED", lambda one: human.ago(one.used_at_ns)),
        "Shared": ("SHARED", lambda one: str(one.shared).lower()),
    },
    columns=("ID", "Type", "Size", "Created", "LastUsed", "Shared"),
    methods={},
)


@verb("df")
@click.option("-v", "--verbose", is_flag=True, help="Show detailed information on space usage")
@click.option("--format", "form", type=Suggestion("string", "table", "json"), default="", help=FORMAT_HELP)
@click.pass_obj
def disk_usage(session: Session, verbose: bool, form: str) -> int:
    """Show disk usage."""
    if verbose and form:
        raise InvalidInput("the verbose and the format options conflict", "", "use one of them")
    usage = session.engine.usage()
    write(_verbose(usage) if verbose else render(_KINDS, usage.kinds, form))
    return 0


def _verbose(usage: Usage) -> str:
    cache = next(one for one in usage.kinds if one.name == "Build Cache")
    parts = (
        "Images space usage:\n",
        render(_images(), usage.images),
        "Containers space usage:\n",
        render(_containers(), usage.containers),
        "Local Volumes space usage:\n",
        render(_VOLUMES, usage.volumes),
        f"Build cache usage: {human.size(cache.size_bytes)}\n",
        render(_STEPS, usage.steps),
    )
    return "\n".join(parts)
