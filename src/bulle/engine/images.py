"""Images as a program sees them: bring in, look up, name, hand out, remove.

The only place where the registry's sources and the store meet: a source hands out verified documents and layers' bytes, the store verifies and
keeps them, and an image becomes visible once all of it is there.
"""

from __future__ import annotations

import shutil
from builtins import list as list_
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

from bulle.engine.inspection import image_document
from bulle.errors import BulleError, Conflict, InvalidReference, NotFound
from bulle.model.reference import Reference
from bulle.monitor import current_state
from bulle.records.containers import ContainerRecords
from bulle.records.database import Database
from bulle.store import Image, Store

if TYPE_CHECKING:
    from bulle.engine.containers import Container
    from bulle.engine.history import HistoryEntry
    from bulle.engine.image_mounts import ImageMounts
    from bulle.engine.pruning import Pruned, PruneFilter
    from bulle.registry.progress import ProgressCallback
    from bulle.registry.transport import RemoteImage, Source, SourceConfiguration
    from bulle.store.verification import Verdict

_PARALLEL_LAYERS = 2  # as many as the smallest machines have processors; more only waits for the disk


class Images:
    """The images of a home."""

    def __init__(self, database: Database, store: Store) -> None:
        self._database = database
        self._containers = ContainerRecords(database)
        self._store = store

    def pull(self, reference: str, *, platform: str = "", progress: ProgressCallback | None = None) -> Image:
        """Bring one image in: from a registry, or from ``docker-archive:FILE``, ``oci:DIR[:TAG]``, ``oci-archive:FILE``, ``dir:DIR``, ``host``,
        ``deb:SUITE[+pkg]``.

        ``platform`` is ``os/architecture[/variant]``, this machine's by default. ``progress`` may be called from several threads.
        """
        from bulle.registry.documents import parse_platform  # a network client, which most commands do without
        from bulle.registry.sources import open_source

        with (
            self._configured(progress) as configuration,
            open_source(reference, platform=parse_platform(platform), configuration=configuration) as source,
        ):
            images = self._receive(source)
        if not images:
            raise NotFound(f"{reference} holds no image", "", "check the name")
        return images[0]

    def load(self, source: Path | BinaryIO, progress: ProgressCallback | None = None) -> list[Image]:
        """Bring in every image of an archive (of docker save, or an OCI archive; compressed or not): a host path or a stream."""
        from bulle.registry.sources import sniff

        with self._configured(progress) as configuration, sniff(source, configuration=configuration) as opened:
            return self._receive(opened)

    def save(self, names: Sequence[str], out: BinaryIO, format: Literal["docker-archive", "oci-archive"] = "docker-archive") -> None:
        """Write images as one archive to a stream."""
        from bulle.engine.saving import save_images

        save_images(self._store, [self._named(name) for name in names], out, format)

    def history(self, name: str) -> list_[HistoryEntry]:
        """How an image came about, its last step first."""
        from bulle.engine.history import history_of  # rarely needed

        return history_of(self._store, self.get(name))

    def commit(
        self, container: Container, name: str = "", *, author: str = "", message: str = "", changes: Sequence[str] = (), pause: bool = True
    ) -> tuple[Image, tuple[str, ...]]:
        """Make an image of what a container is now; ``changes`` are instructions of a Containerfile. Returns also what was weaker than asked."""
        from bulle.engine.committing import commit_container, parse_target

        reference = parse_target(name)
        image = None
        with suppress(NotFound):
            image = self._store.images.get(container.image_id)
        return commit_container(self._store, image, container, reference, author=author, message=message, changes=changes, pause=pause)

    def import_tar(
        self, stream: BinaryIO, source: str, name: str = "", *, message: str = "", changes: Sequence[str] = (), platform: str = ""
    ) -> Image:
        """Make an image of one layer of a tar of a root filesystem, compressed or not; ``source`` says where it comes from."""
        from bulle.engine.committing import import_tar, parse_target

        reference = parse_target(name)
        return import_tar(self._store, stream, source, reference, message=message, changes=changes, platform=platform)

    def list(self) -> list_[Image]:
        """Every image, newest first."""
        return self._store.images.list()

    def get(self, name: str) -> Image:
        """By name, id or unambiguous beginning of an id; also by the text that it was pulled by (``deb:bookworm+vim``). Raises NotFound."""
        return self._find(name)[0]

    def _find(self, name: str) -> tuple[Image, str]:
        """The image, and the name under which the store knows it."""
        try:
            return self._store.images.get(name), name
        except (NotFound, InvalidReference):
            if ":" not in name:
                raise
            from bulle.registry.sources import source_reference  # rarely needed

            reference = source_reference(name)
            if reference is None:
                raise
            with suppress(NotFound):
                return self._store.images.get(reference.canonical), reference.canonical
            raise  # it names what was asked for

    def tag(self, source: str, target: str) -> None:
        """Give an image one more name."""
        self._store.images.tag(self.get(source), Reference.parse(target))

    def verify(self, names: Sequence[str] = (), *, repair: bool = False) -> Iterator[Verdict]:
        """Look whether images (by default all) are still what their digests say, one verdict each.

        With ``repair`` a damaged index is written anew, a damaged blob removed, and an image whose layers or documents are damaged removed, so that a
        pull brings it anew; raises Conflict where a container stands on it.
        """
        from bulle.engine.verifying import repaired
        from bulle.store.verification import verify

        images = [self.get(name) for name in names] if names else self.list()
        for verdict in verify(self._store, images):
            yield repaired(self, self._store, verdict, images) if repair and verdict.faults else verdict

    @property
    def mounts(self) -> ImageMounts:
        """Which of them are mounted at a path of the host."""
        from bulle.engine.image_mounts import ImageMounts  # few commands touch images at all

        return ImageMounts(self._store)

    def users(self, image: Image) -> list_[str]:
        """The names of the containers that were made from an image."""
        return [container.name for container in self._containers.of_image(image.id)]

    def prune(self, chosen: PruneFilter | None = None, *, every: bool = False) -> Pruned:
        """Remove images without a name, or with ``every`` all, that nothing uses."""
        from bulle.engine.pruning import PruneFilter, prune_images

        return prune_images(self, self._store, chosen or PruneFilter(), every=every)

    def parent(self, image: Image) -> Image | None:
        """The image on whose layers it stands, where that is here too."""
        from bulle.engine.history import parent_of

        return parent_of(image, self.list())

    def remove(self, name: str, *, force: bool = False) -> list_[str]:
        """Remove a name, and the image with its layers when it was the last one; returns Docker's lines (Untagged, Deleted).

        Raises Conflict when a container was made from it; ``force`` does it all the same unless that container runs.
        """
        image, known_as = self._find(name)
        for container in self._containers.of_image(image.id) if force else ():
            if current_state(container.plan.state_host_path).status == "running":
                raise Conflict(
                    f"image {name} cannot be removed", f"container {container.name} runs on it", f"stop it with `bulle stop {container.name}`"
                )
        with self.mounts.keeping_away(image) as mounted:
            lines = self._store.images.remove(known_as, force, in_use=f"it is mounted at {mounted}" if mounted else "")
        self._store.gc()
        return lines

    def inspect(self, name: str) -> dict[str, object]:
        """Everything that is known, in the form of ``docker image inspect``."""
        return image_document(self.get(name))

    def for_run(self, name: str, pull: str, platform: str) -> Image:
        """The image that a container stands on, pulled when it must be: it is not here, or for another platform than was asked for."""
        if pull == "always":
            return self.pull(name, platform=platform)
        try:
            image = self.get(name)
        except NotFound:
            if pull == "never":
                raise
            return self.pull(name, platform=platform)
        if platform:
            from bulle.registry.documents import parse_platform  # rarely asked for

            wanted = parse_platform(platform)
            found = (image.config.os, image.config.architecture)
            if found != (wanted.os, wanted.architecture) or (wanted.variant and image.config.variant not in ("", wanted.variant)):
                if pull == "never":
                    raise NotFound(f"image {name} is not here for {wanted}", f"it is for {'/'.join(found)}", "pull it with --platform")
                return self.pull(name, platform=platform)
        return image

    def _named(self, name: str) -> tuple[Image, tuple[Reference, ...]]:
        """An image and the names under which it is saved: the one that was asked for, or none when it was asked for by id."""
        image = self.get(name)
        try:
            reference = Reference.parse(name)
        except BulleError:
            return image, ()
        return image, (reference,) if reference.canonical in image.references else ()

    @contextmanager
    def _configured(self, progress: ProgressCallback | None) -> Iterator[SourceConfiguration]:
        """How sources are opened, and where they may put large files meanwhile; what they bring is kept at least that long."""
        from bulle.registry.progress import silent
        from bulle.registry.transport import SourceConfiguration

        with self._store.receiving():
            temporary = self._store.temporary_directory()
            try:
                yield SourceConfiguration(temporary=temporary, progress=progress or silent)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def _receive(self, source: Source) -> list_[Image]:
        """All images of a source or none: they become visible once every layer of every one is there."""
        try:
            images = list_(source.images())
            for image in images:
                self._ingest(image)
            return [
                self._store.images.commit(
                    image.manifest,
                    image.media_type,
                    image.config,
                    [(layer.descriptor.parsed_digest, layer.diff_id) for layer in image.layers],
                    image.references,
                    host_binds=image.host_binds,
                )
                for image in images
            ]
        except BaseException:
            self._store.gc()  # layers of an image that did not come whole
            raise

    def _ingest(self, image: RemoteImage) -> None:
        parents = [layer.diff_id for layer in image.layers]

        def ingest(position: int) -> None:
            layer = image.layers[position]
            blob = layer.descriptor.parsed_digest
            self._store.layers.ingest(
                _lazily(layer.open), layer.descriptor.media_type, blob, layer.descriptor.size, layer.diff_id, parents[:position]
            )

        _each(ingest, len(image.layers), self._database.close)


def _lazily(open_layer: Callable[[], Iterator[bytes]]) -> Iterator[bytes]:
    """The layer's bytes, asked for only when the store wants them (a layer that is there is not fetched)."""
    yield from open_layer()


def _each(work: Callable[[int], object], count: int, leave: Callable[[], object]) -> None:
    """Do the work for every number below ``count``, some at once, each followed by ``leave`` in a thread of its own; the first error ends it."""
    if count <= 1:
        for number in range(count):
            work(number)
        return
    import concurrent.futures  # a moment that only pull and load need

    def do(number: int) -> None:
        try:
            work(number)
        finally:
            leave()  # else the thread's connection to the database would last until garbage is collected

    with concurrent.futures.ThreadPoolExecutor(_PARALLEL_LAYERS) as pool:
        futures = [pool.submit(do, number) for number in range(count)]
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            raise
