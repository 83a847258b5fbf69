"""``prune``: removing what nothing uses: stopped containers, images, the build cache. What is in use stays, whatever is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bulle.engine.history import seconds
from bulle.errors import Conflict, NotFound
from bulle.records.build_steps import BuildStepRow
from bulle.records.events import publish
from bulle.store import Image, Store
from bulle.store.usage import disk_bytes

if TYPE_CHECKING:
    from bulle.engine.containers import Containers
    from bulle.engine.images import Images


@dataclass(frozen=True)
class PruneFilter:
    """What a prune may take: only what was made before ``until_ns`` (0: any time), whose labels it accepts."""

    until_ns: int = 0
    accepts_labels: Callable[[Mapping[str, str]], bool] = lambda _labels: True

    def takes(self, created_at_ns: int, labels: Mapping[str, str]) -> bool:
        """Whether it may be removed."""
        return (not self.until_ns or created_at_ns < self.until_ns) and self.accepts_labels(labels)


@dataclass
class Pruned:
    """What was removed (ids, or Docker's lines), and the bytes that the disk got back."""

    removed: list[str] = field(default_factory=list)
    reclaimed_bytes: int = 0


def prune_containers(containers: Containers, store: Store, chosen: PruneFilter) -> Pruned:
    """Remove every container that does not run. Those of a build (they have no image) are the build's."""
    pruned = Pruned()
    before = store.collected_bytes
    for container in containers.list(all=True):
        if not container.image_id:
            continue
        if container.state().active or not chosen.takes(container.created_at_ns, container.options.labels):
            continue
        size = disk_bytes(Path(container.directory))
        try:
            container.remove()
        except (Conflict, NotFound):
            continue  # it was started, or removed, meanwhile
        pruned.removed.append(container.id)
        pruned.reclaimed_bytes += size
    store.gc()  # layers that only these containers held
    pruned.reclaimed_bytes += store.collected_bytes - before
    return published(store, "container", pruned)


def prune_images(images: Images, store: Store, chosen: PruneFilter, *, every: bool) -> Pruned:
    """Remove images without a name, or with ``every`` all, on which no container stands, that no index has and that are not mounted."""
    pruned = Pruned()
    before = store.collected_bytes
    kept = {one.image_id for one in images.mounts.list()} | {image_id for index in store.indexes.list() for image_id in index.image_ids}
    for image in images.list():
        labels = (image.config.config and image.config.config.labels) or {}
        if (image.references and not every) or not chosen.takes(_made_at_ns(image), labels) or images.users(image):
            continue
        if image.id in kept:
            continue
        try:
            # By its names one after the other: an image with names in several repositories is not removed by its id.
            for name in image.references or (image.id,):
                pruned.removed += images.remove(name, only=image)
        except (Conflict, NotFound):
            continue
    store.gc()
    pruned.reclaimed_bytes = store.collected_bytes - before
    return published(store, "image", pruned)


def prune_build_cache(store: Store, *, every: bool, until_ns: int = 0) -> Pruned:
    """Forget steps of builds: those whose layer no image has, or with ``every`` all and what they kept in cache mounts.

    With ``until_ns`` only those not used since.
    """
    layers = store.layer_usage()

    def chosen(step: BuildStepRow) -> bool:
        in_use = step.diff_id is not None and step.diff_id in layers and bool(layers[step.diff_id].images)
        return (every or not in_use) and (not until_ns or step.used_at_ns < until_ns)

    keys, reclaimed = store.build_cache.prune(chosen)
    if every and not until_ns:
        reclaimed += store.build_mounts.prune()
    return published(store, "builder", Pruned(list(keys), reclaimed))


def published(store: Store, kind: str, pruned: Pruned) -> Pruned:
    """What was removed, once it is an event."""
    publish(store.home, kind, "prune", "", {"reclaimed": str(pruned.reclaimed_bytes)})
    return pruned


def _made_at_ns(image: Image) -> int:
    """When it was made or came here, whichever is later: an image from this morning may stand on layers of last year."""
    return max(seconds(image.config.created) * 1_000_000_000, image.created_at_ns)
