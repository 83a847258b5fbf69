"""``system df``: what images, containers, volumes and the build cache take on the disk, and how much of it could be had back."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bulle.model.digest import Digest
from bulle.model.run_plan import RunPlan
from bulle.records.database import Database
from bulle.store import Image, Store
from bulle.store.usage import LayerUsage, disk_bytes

if TYPE_CHECKING:
    from bulle.engine.container import Container
    from bulle.engine.engine import Engine
    from bulle.records.build_steps import BuildStepRow


@dataclass(frozen=True)
class Kind:
    """One kind of thing: how many there are, how many are in use, bytes on the disk, and bytes that nothing in use needs."""

    name: str
    total: int
    active: int
    size_bytes: int
    reclaimable_bytes: int


@dataclass(frozen=True)
class ImageUsage:
    """One image: what it shares with others and what is its own, in bytes on the disk."""

    image: Image
    shared_bytes: int
    own_bytes: int
    containers: int


@dataclass(frozen=True)
class ContainerUsage:
    """One container: its writable layer, log and files for /etc, in bytes on the disk."""

    container: Container
    size_bytes: int


@dataclass(frozen=True)
class VolumeUsage:
    """One volume: how many containers have it, and its bytes on the disk."""

    name: str
    links: int
    size_bytes: int


@dataclass(frozen=True)
class StepUsage:
    """One row of the build cache; ``own_bytes`` is what would be had back with it alone."""

    key: str
    instruction: str
    created_at_ns: int
    used_at_ns: int
    own_bytes: int
    shared: bool


@dataclass(frozen=True)
class Usage:
    """Everything that a home keeps."""

    kinds: tuple[Kind, ...] = ()
    images: tuple[ImageUsage, ...] = ()
    containers: tuple[ContainerUsage, ...] = ()
    steps: tuple[StepUsage, ...] = field(default=())
    volumes: tuple[VolumeUsage, ...] = ()


def usage_of(engine: Engine) -> Usage:
    """Look at the disk now."""
    store = engine.store
    layers = store.layer_usage()
    containers = tuple(ContainerUsage(one, disk_bytes(Path(one.directory))) for one in engine.containers.list(all=True))
    images = tuple(_image_usage(image, layers, containers) for image in engine.images.list())
    steps = tuple(_step_usage(row, layers) for row in store.build_cache.list())
    volumes = tuple(VolumeUsage(one.name, len(one.users), engine.volumes.size(one.name)) for one in engine.volumes.list())
    in_use = {one.image.id for one in images if one.containers}
    # What nobody stands on is no layer: it speaks of images.
    of_images = [layer for layer in layers.values() if layer.images or not (layer.containers or layer.steps)]
    idle = [layer for layer in of_images if layer.images and not layer.images & in_use and not layer.containers and not layer.steps]
    stopped = [one for one in containers if not one.container.state().active]
    cached = [layer for layer in layers.values() if layer.steps and not layer.images and not layer.containers]
    mounts = [disk_bytes(path) for path in store.build_mounts.all()]
    written, left = (sum(one.size_bytes for one in some) for some in (containers, stopped))
    kinds = (
        Kind("Images", len(images), len(in_use), _sum(of_images), _sum(idle)),
        Kind("Containers", len(containers), len(containers) - len(stopped), written, left),
        Kind(
            "Local Volumes",
            len(volumes),
            sum(1 for one in volumes if one.links),
            sum(one.size_bytes for one in volumes),
            sum(one.size_bytes for one in volumes if not one.links),
        ),
        Kind("Build Cache", len(steps) + len(mounts), 0, _sum(cached) + sum(mounts), _sum(cached) + sum(mounts)),
    )
    return Usage(kinds, images, containers, steps, volumes)


def container_sizes(home: Path, database: Database, plan: RunPlan) -> tuple[int, int]:
    """Docker's ``SizeRw`` and ``SizeRootFs``: bytes of the files in the writable layer, and of those with the layers below.

    Of a virtual machine what its disk takes of this machine's, whose files are its own kernel's.
    """
    from bulle.isolation import sized_layer

    writable = 0
    if plan.guest is not None:
        with suppress(FileNotFoundError):
            writable = os.stat(f"{plan.root.writable_host_path}/disk").st_blocks * 512
        return writable, writable + sum(Store(home, database).layers.size(Digest(layer.diff_id)) for layer in plan.root.layers)
    with sized_layer.upper(plan) as upper:
        for parent, name in ((parent, name) for parent, _, names in os.walk(upper) for name in names):
            with suppress(FileNotFoundError):  # the container goes on, and removes files
                status = os.lstat(f"{parent}/{name}")
                writable += status.st_size if stat.S_ISREG(status.st_mode) else 0
    layers = Store(home, database).layers
    return writable, writable + sum(layers.size(Digest(layer.diff_id)) for layer in plan.root.layers)


def _sum(layers: list[LayerUsage]) -> int:
    return sum(layer.disk_bytes for layer in layers)


def _image_usage(image: Image, layers: dict[str, LayerUsage], containers: tuple[ContainerUsage, ...]) -> ImageUsage:
    own = shared = 0
    for diff_id in dict.fromkeys(image.layers):
        layer = layers.get(str(diff_id), LayerUsage())
        if layer.images <= {image.id}:
            own += layer.disk_bytes
        else:
            shared += layer.disk_bytes
    return ImageUsage(image, shared, own, sum(1 for one in containers if one.container.image_id == image.id))


def _step_usage(row: BuildStepRow, layers: dict[str, LayerUsage]) -> StepUsage:
    layer = layers.get(row.diff_id or "", LayerUsage())
    shared = bool(layer.images or layer.containers or len(layer.steps) > 1)
    return StepUsage(row.key, row.instruction, row.created_at_ns, row.used_at_ns, 0 if shared else layer.disk_bytes, shared)
