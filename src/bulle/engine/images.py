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

from bulle.engine.events import publish_image
from bulle.engine.image_names import destination_of, repository_of
from bulle.engine.inspection import image_document
from bulle.engine.parallel import each
from bulle.errors import BulleError, Conflict, CorruptImage, InvalidInput, InvalidReference, NotFound
from bulle.model.platform import parse_platform, same, satisfies
from bulle.model.reference import Reference
from bulle.monitor import current_state
from bulle.records.containers import ContainerRecords
from bulle.records.database import Database
from bulle.records.registries import BlobSources
from bulle.store import Image, ImageIndex, Store

if TYPE_CHECKING:
    from bulle.engine.container import Container
    from bulle.engine.history import HistoryEntry
    from bulle.engine.image_mounts import ImageMounts
    from bulle.engine.pruning import Pruned, PruneFilter
    from bulle.engine.pushing import Compression
    from bulle.engine.registries import FindCredentials
    from bulle.registry.destination import Pushed
    from bulle.registry.progress import ProgressCallback
    from bulle.registry.transport import Choose, RemoteImage, Source, SourceConfiguration
    from bulle.store.verification import Verdict


class Images:
    """The images of a home."""

    def __init__(self, database: Database, store: Store) -> None:
        self._database = database
        self._containers = ContainerRecords(database)
        self._store = store
        self.credentials: FindCredentials | None = None  # of whoever asks, where that is not the user whose logins are kept

    def pull(self, reference: str, *, platform: str = "", progress: ProgressCallback | None = None) -> Image:
        """Bring one image in: from a registry, or from ``docker-archive:FILE``, ``oci:DIR[:TAG]``, ``oci-archive:FILE``, ``dir:DIR``, ``host``,
        ``deb:SUITE[+pkg]``.

        ``platform`` is ``os/architecture[/variant]``, this machine's by default. ``progress`` may be called from several threads.
        """
        from bulle.registry.sources import is_remote, open_source  # a network client, which most commands do without

        with (
            self.configured(progress, network=is_remote(reference)) as configuration,
            open_source(reference, platform=parse_platform(platform), configuration=configuration) as source,
        ):
            images = self._receive(source, "pull")
        if images:
            return images[0]
        raise NotFound(f"{reference} holds no image", "", "check the name")

    def pull_all(self, repository: str, *, platform: str = "", progress: ProgressCallback | None = None) -> list_[Image]:
        """Bring in every tag of a registry's repository that is an image for the platform. Raises what :meth:`pull` does if there is none."""
        from bulle.registry.progress import Progress, silent
        from bulle.registry.remote import list_tags

        parse_platform(platform)
        reference = repository_of(repository)
        with self.configured(progress) as configuration:
            tags = list_tags(reference, configuration)
        images: list_[Image] = []
        failure: BulleError = NotFound(f"{reference.familiar_name} has no tags")
        for tag in tags:
            name = f"{reference.repository}:{tag}"
            try:
                images.append(self.pull(name, platform=platform, progress=progress))
            except (NotFound, CorruptImage) as error:
                # Another platform's image, or what is no image at all (signatures have tags): the others are still wanted.
                failure = error
                (progress or silent)(Progress("step", name, message=f"left out: {error}"))
        if not images:
            raise failure
        return images

    def push(
        self, name: str, destination: str = "", *, compression: Compression = "", platform: str = "", progress: ProgressCallback | None = None
    ) -> Pushed:
        """Send an image to a registry, under its own name or as ``destination`` (``HOST/PATH[:TAG]``), with what speaks of it.

        ``compression`` (``gzip``, ``zstd``, ``none``) is for layers that were made here. Of several with the name it is the one for ``platform``.
        Raises NotFound, Conflict, RegistryFailure, AuthenticationFailed, InvalidInput.
        """
        image, known_as = self._pushed_image(name)
        if platform:
            image = self.get(name, platform)
        reference = destination_of(known_as, destination)
        if not destination and reference.canonical not in image.references:
            raise InvalidInput(f"{name} says not where it is to be pushed", "it is an id", "name the destination too, or push one of its names")
        with self.configured(progress) as configuration:
            return self._push(image, reference, compression, configuration)

    def push_all(
        self, repository: str, destination: str = "", *, compression: Compression = "", progress: ProgressCallback | None = None
    ) -> list_[Pushed]:
        """Send every tag of a repository that is here, to its own registry or to another repository. Raises as :meth:`push` does."""
        wanted = repository_of(repository)
        target = repository_of(destination) if destination else wanted
        references = [Reference.parse(one) for image in self.list() for one in image.references]
        tags = sorted({one.tag for one in references if one.repository == wanted.repository and one.digest is None})
        if not tags:
            raise NotFound(f"no such image: {wanted.familiar_name}", "no tag of that repository is here")
        with self.configured(progress) as configuration:
            return [
                self._push(self.get(f"{wanted.repository}:{tag}"), Reference(target.domain, target.path, tag), compression, configuration)
                for tag in tags
            ]

    def _pushed_image(self, name: str) -> tuple[Image, str]:
        if self._index(name) is not None:
            raise InvalidInput(f"{name} is an index", "it goes out with all its images", f"push it with `bulle manifest push {name}`")
        return self._find(name)

    def _index(self, name: str) -> ImageIndex | None:
        """The index of this name, which several platforms share."""
        with suppress(InvalidReference, NotFound):
            return self._store.indexes.get(Reference.parse(name))
        return None

    def _of_index(self, name: str, platform: str = "") -> Image | None:
        """The image for a platform of an index of this store (by default this machine's, else its first); None where there is no such index."""
        index = self._index(name)
        if index is None:
            return None
        from bulle.model.image import Index
        from bulle.registry.documents import choose

        try:
            digest = choose(Index.parse(index.document), parse_platform(platform), name).digest
        except NotFound:
            if platform or not index.manifests:
                raise
            digest = index.manifests[0].digest
        return next(image for image in map(self._store.images.get, index.image_ids) if image.manifest_digest == digest)

    def _push(self, image: Image, reference: Reference, compression: Compression, configuration: SourceConfiguration) -> Pushed:
        from bulle.engine.pushing import Push
        from bulle.registry.destination import Destination

        with Destination(reference, configuration) as destination:
            image, pushed = Push(self._store, self._database, destination, configuration).image(image, compression, reference.tag)
        publish_image(self._store.home, "push", image, reference.canonical)
        return pushed

    def load(self, source: Path | BinaryIO, progress: ProgressCallback | None = None, choose: Choose = list_) -> list[Image]:
        """Bring in the images of an archive (of docker save, or an OCI archive; compressed or not) that are chosen: a host path or a stream."""
        from bulle.registry.sources import sniff

        with self.configured(progress, network=False) as configuration, sniff(source, configuration=configuration) as opened:
            return self._receive(opened, "load", choose)

    def save(
        self, names: Sequence[str], out: BinaryIO, format: Literal["docker-archive", "oci-archive"] = "docker-archive", *, platform: str = ""
    ) -> None:
        """Write images as one archive to a stream; of several with one name the one for ``platform``."""
        from bulle.engine.saving import save_images

        named = [self._named(name, platform) for name in names]
        save_images(self._store, named, out, format)
        for image, _ in named:
            publish_image(self._store.home, "save", image)

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

    def get(self, name: str, platform: str = "") -> Image:
        """By name, id or unambiguous beginning of an id; also by the text that it was pulled by (``deb:bookworm+vim``). Raises NotFound.

        Of several with one name it is the one for ``platform``, by default this machine's if there is one.
        """
        if not platform:
            return self._find(name)[0]
        wanted = parse_platform(platform)
        if (image := self._of_index(name, platform)) is not None:
            return image
        images = self._store.images.platforms(self._find(name)[1])
        fitting = [image for image in images if satisfies(image.config.platform, wanted)]
        if not fitting:
            found = ", ".join(str(image.config.platform) or "no platform" for image in images)
            raise NotFound(f"image {name} is not here for {wanted}", f"it is for {found}", "pull it with --platform")
        return next((image for image in fitting if same(image.config.platform, wanted)), fitting[0])

    def _find(self, name: str) -> tuple[Image, str]:
        """The image, and the name under which the store knows it."""
        try:
            return self._store.images.get(name), name
        except (NotFound, InvalidReference):
            if (image := self._of_index(name)) is not None:
                return image, image.id
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
        image = self.get(source)
        self._store.images.tag(image, Reference.parse(target))
        publish_image(self._store.home, "tag", image, target)

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

    def remove(self, name: str, *, force: bool = False, only: Image | None = None) -> list_[str]:
        """Remove a name, and the image with its layers when it was the last one; returns Docker's lines (Untagged, Deleted).

        Of several images with the name all lose it, or ``only`` one of them.

        Raises Conflict when a container was made from it; ``force`` does it all the same unless that container runs.
        """
        if self._index(name) is not None:
            raise Conflict(f"{name} is an index", "its images stay when it goes", f"remove it with `bulle manifest rm {name}`")
        known_as, lines = self._find(name)[1], list_[str]()
        images = [only] if only is not None else self._store.images.platforms(known_as)
        for image in sorted(images, key=lambda image: not self.users(image)):  # what is refused is refused before anything is gone
            lines += self._remove(name, image, known_as, force=force)
        return lines

    def _remove(self, name: str, image: Image, known_as: str, *, force: bool) -> list_[str]:
        for container in self._containers.of_image(image.id) if force else ():
            if current_state(container.plan.state_host_path).active:
                raise Conflict(
                    f"image {name} cannot be removed", f"container {container.name} runs on it", f"stop it with `bulle stop {container.name}`"
                )
        with self.mounts.keeping_away(image) as mounted:
            lines = self._store.images.remove(known_as, force, in_use=f"it is mounted at {mounted}" if mounted else "", image_id=image.id)
        self._store.gc()
        for line in lines:
            if line.startswith("Untagged: ") or line == f"Deleted: {image.id}":
                publish_image(self._store.home, "delete" if line.startswith("D") else "untag", image)
        return lines

    def inspect(self, name: str, platform: str = "") -> dict[str, object]:
        """Everything that is known, in the form of ``docker image inspect``."""
        return image_document(self.get(name, platform))

    def for_run(self, name: str, pull: str, platform: str, progress: ProgressCallback | None = None) -> Image:
        """The image that a container stands on, pulled when it must be: it is not here, or for another platform than was asked for."""
        if pull == "always":
            return self.pull(name, platform=platform, progress=progress)
        try:
            return self.get(name, platform)
        except NotFound:
            if pull == "never":
                raise
            return self.pull(name, platform=platform, progress=progress)

    def _named(self, name: str, platform: str) -> tuple[Image, tuple[Reference, ...]]:
        """An image and the names under which it is saved: the one that was asked for, or none when it was asked for by id."""
        image = self.get(name, platform)
        try:
            reference = Reference.parse(name)
        except BulleError:
            return image, ()
        return image, (reference,) if reference.canonical in image.references else ()

    @contextmanager
    def configured(self, progress: ProgressCallback | None, *, network: bool = True) -> Iterator[SourceConfiguration]:
        """How sources and destinations are opened, and where they may put large files meanwhile; what they bring is kept at least that long."""
        from bulle.engine.registries import local_configuration, network_configuration

        with self._store.receiving():
            temporary = self._store.temporary_directory()
            try:
                yield network_configuration(temporary, progress, self.credentials) if network else local_configuration(temporary, progress)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def _receive(self, source: Source, action: str, choose: Choose = list_) -> list_[Image]:
        """All images of a source or none: they become visible once every layer of every one is there."""
        try:
            images = choose(source.images())
            for image in images:
                self._ingest(image, source.stopped.set if source.stopped is not None else lambda: None)
            committed = [self._commit(image, beside=action == "pull") for image in images]
        except BaseException:
            self._store.gc()  # layers of an image that did not come whole
            raise
        if source.repository:
            for image in images:
                self._remember(source, image)
        for image, here in zip(images, committed, strict=True):
            publish_image(self._store.home, action, here, image.references[0].canonical if action == "pull" and image.references else "")
        return committed

    def _commit(self, image: RemoteImage, *, beside: bool) -> Image:
        layers = [(layer.descriptor.parsed_digest, layer.diff_id) for layer in image.layers]
        return self._store.images.commit(
            image.manifest, image.media_type, image.config, layers, image.references, host_binds=image.host_binds, beside=beside
        )

    def _remember(self, source: Source, image: RemoteImage) -> None:
        """What a registry told beside an image: where its blobs are, and what speaks of it. A failure of this is none of the pull."""
        from bulle.registry.progress import Progress

        BlobSources(self._database).add(source.repository, [str(image.id), *(layer.descriptor.digest for layer in image.layers)])
        try:
            for artifact in source.artifacts(image):
                self._store.artifacts.add(artifact.manifest, artifact.open)
        except BulleError as error:
            source.progress(Progress("step", str(image.manifest_digest), message=f"not all that refers to it could be fetched: {error}"))

    def _ingest(self, image: RemoteImage, stop: Callable[[], object]) -> None:
        parents = [layer.diff_id for layer in image.layers]

        def ingest(position: int) -> None:
            layer = image.layers[position]
            blob = layer.descriptor.parsed_digest
            self._store.layers.ingest(
                _lazily(layer.open), layer.descriptor.media_type, blob, layer.descriptor.size, layer.diff_id, parents[:position]
            )

        each(ingest, len(image.layers), self._database.close, stop)


def _lazily(open_layer: Callable[[], Iterator[bytes]]) -> Iterator[bytes]:
    """The layer's bytes, asked for only when the store wants them (a layer that is there is not fetched)."""
    yield from open_layer()
