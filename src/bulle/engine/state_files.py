"""A container as one file: what it is made from, what it wrote, its volumes and its options. ``save --state``, ``load --state`` and ``move``.

The file is a tar with members in one order: ``state.json``, ``image.tar`` (an OCI archive), ``layer-N.tar`` for what stands upon the image, and
``volume-N.tar``; of a virtual machine that runs also ``machine-…``: its memory, what is known of it, and its disk, in place of a layer with what it
wrote last. No member's name becomes a path. What is loaded is checked by the digests in ``state.json``, or as any archive is; a container comes to be
last, so that a file which is damaged leaves nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, cast

import msgspec
from msgspec.structs import replace

from bulle.engine import guests, kept_machines
from bulle.engine.changes import keep_changes
from bulle.engine.inner_worker import require_writable_layer
from bulle.engine.pausing import standing_still
from bulle.engine.planning import Base
from bulle.engine.saving import save_images
from bulle.engine.volume_options import VolumeShape
from bulle.errors import BulleError, Conflict, CorruptImage, NotFound
from bulle.isolation.microvm.checkpoint import DISK_NAME, KEPT_NAME, MOST_KNOWN_BYTES, STATE_NAME
from bulle.isolation.microvm.setup import require_kept
from bulle.model.container import ContainerOptions, VolumeOption
from bulle.model.digest import Digest
from bulle.model.image import ExecutionConfig
from bulle.model.reference import Reference
from bulle.model.volume import MountOption, check_name
from bulle.records.events import describe_container, publish
from bulle.store.failures import storage_errors
from bulle.store.workspace import remove_tree

if TYPE_CHECKING:
    from bulle.engine.container import Container
    from bulle.engine.engine import Engine
    from bulle.model.run_plan import RunPlan
    from bulle.registry.transport import RemoteImage

FORMAT = "bulle container state 1"
_MOST_JSON_BYTES = 8 << 20
_MOST_BESIDE_BYTES = 512 << 20  # of a machine's memory: its kernel's, the devices'
_CHUNK_BYTES = 1 << 20
_NOTHING = Digest.of(bytes(1024))  # the layer that has no member


class _Volume(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    labels: dict[str, str]
    options: dict[str, str]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    size: int
    digest: str


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """``state.json``: ``image`` and ``layers`` are digests, ``references`` the image's names, ``options`` name every volume.

    ``machine`` has the files of one that ran, by their names."""

    format: str
    name: str
    image: str
    references: list[str]
    layers: list[str]
    volumes: list[_Volume]
    options: ContainerOptions
    machine: dict[str, _File] = {}


def save_state(engine: Engine, name: str, out: BinaryIO, *, disk_only: bool = False) -> tuple[str, ...]:
    """Write a container to a stream; returns what was weaker than asked. One that runs stands still while its own layer is read.

    The memory of a virtual machine that runs goes along, where it can be kept and is wanted.

    Raises NotFound, Conflict for one that only lives with another (its network), Unsupported.
    """
    container = engine.containers.get(name)
    if container.plan.network.mode == "container":
        raise Conflict(f"container {container.name} has another container's network", "it cannot be there without it", "give it one of its own")
    image = engine.images.get(container.image_id)
    if image.host_binds:
        raise Conflict(f"container {container.name} is made from this machine's own files", "another one has others", "use an image")
    notes: list[str] = []
    require_writable_layer(container.plan)
    if container.state().active and any(mount.volume for mount in container.plan.mounts):
        notes.append("the container runs: its volumes are read while it writes to them")
    with engine.store.receiving(), ExitStack() as stack:
        own = [Digest(layer.diff_id) for layer in container.plan.root.layers[len(image.layers) :]]
        machine: dict[str, Path] = {}
        if kept_machines.keeps_memory(container, notes, disk_only=disk_only):
            machine = _machine_files(engine, container, stack)
        else:
            with standing_still(engine.home, container, notes) if container.plan.guest is None else nullcontext():
                written = keep_changes(engine.store, container.plan).diff_id
            own += [written] if written != _NOTHING else []
        volumes = [engine.volumes.get(one) for one in dict.fromkeys(mount.volume for mount in container.plan.mounts if mount.volume)]
        state = _State(
            FORMAT, container.name, image.id, list(image.references), list(map(str, own)),
            [_Volume(one.name, dict(one.labels), dict(one.options)) for one in volumes], _with_volumes(container.options, container.plan),
            {name: _File(path.stat().st_size, _digest(path)) for name, path in machine.items()},
        )  # fmt: skip
        archive = stack.enter_context(tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT))
        _add(archive, "state.json", io.BytesIO(msgspec.json.encode(state)))
        with _temporary(engine) as file:
            save_images(engine.store, [(image, ())], file, "oci-archive")
            _add(archive, "image.tar", file)
        for number, layer in enumerate(own):
            with engine.store.layers.export_tar(layer) as file:
                _add(archive, f"layer-{number}.tar", file, engine.store.layers.size(layer))
        for number, volume in enumerate(volumes):
            with _temporary(engine) as file:
                if VolumeShape.of(volume.options).is_kept_here:
                    engine.volumes.export(volume.name, file)
                _add(archive, f"volume-{number}.tar", file)
        for name, path in machine.items():
            with path.open("rb") as file:
                _add(archive, f"machine-{name}", file)
    return tuple(notes)


def _machine_files(engine: Engine, container: Container, stack: ExitStack) -> dict[str, Path]:
    """The files of a machine that runs, by their names, its disk packed; they are there as long as ``stack``."""
    place = engine.store.temporary_directory()
    stack.callback(remove_tree, place)
    kept_machines.keep(container, place)
    disk, packed = place / DISK_NAME, place / "packed"
    with storage_errors("the machine could not be kept"), disk.open("rb") as source, packed.open("xb") as target:
        target.writelines(kept_machines.pack(source.fileno()))
    disk.unlink()
    return {name: packed if name == DISK_NAME else place / name for name in kept_machines.NAMES}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_state(engine: Engine, stream: BinaryIO, *, disk_only: bool = False) -> Container:
    """Make the container that a stream holds, not started, under its own name and with its own volumes; returns it.

    A machine whose memory it holds goes on from it at its first start, unless its disk alone is wanted. Raises CorruptImage for what is no state or
    damaged, Conflict where its name or a volume's is taken, or its memory is for another machine than this; then nothing is left.
    """
    with ExitStack() as undo, engine.store.receiving():
        undo.callback(engine.store.gc)
        try:
            with tarfile.open(fileobj=stream, mode="r|", bufsize=_CHUNK_BYTES) as archive:
                made = _loaded(engine, archive, undo, disk_only)
        except (tarfile.TarError, EOFError, ValueError) as error:
            raise CorruptImage("this is no state of a container, or it is damaged", str(error), "save it again") from None
        undo.pop_all()
    return made


def _loaded(engine: Engine, archive: tarfile.TarFile, undo: ExitStack, disk_only: bool) -> Container:
    state = _read(archive)
    _check_free(engine, state)
    if not _has_image(engine, state.image):
        undo.callback(_forget_image, engine, state.image)
    with _temporary(engine) as file, storage_errors("the image could not be taken in"):
        shutil.copyfileobj(_member(archive, "image.tar"), file, _CHUNK_BYTES)
        file.seek(0)
        engine.images.load(file, choose=lambda found: _the_image(found, state.image))
    image = engine.images.get(state.image)
    own = []
    for number, wanted in enumerate(state.layers):
        layer = engine.store.layers.add(_chunks(_member(archive, f"layer-{number}.tar")))
        if str(layer.diff_id) != wanted:
            raise CorruptImage("the state of the container is damaged", f"a layer is not {wanted}", "save it again")
        own.append(layer.diff_id)
    for number, volume in enumerate(state.volumes):
        undo.callback(engine.volumes.remove, volume.name, force=True)
        engine.volumes.create(volume.name, labels=volume.labels, options=volume.options)
        content = _member(archive, f"volume-{number}.tar")
        if VolumeShape.of(volume.options).is_kept_here:
            engine.volumes.import_archive(volume.name, cast("BinaryIO", content))
    for reference in state.references:
        with suppress(BulleError):
            if not _has_image(engine, reference):  # a name that means another image here goes on meaning it
                engine.images.tag(image.id, Reference.parse(reference).familiar)
    config = image.config
    base = Base((*image.layers, *own), config.config or ExecutionConfig(), image.id, image.host_binds, platform=config.platform)
    options = replace(state.options, name=state.name, pull="never")
    with _machine(engine, archive, state, disk_only) as fill:
        made = engine.containers.create(options, base, fill=fill)
    attributes = {**made.options.labels, "image": options.image, "name": made.name}
    describe_container(made.directory, attributes)
    publish(engine.home, "container", "create", made.id, attributes)
    return made


@contextmanager
def _machine(engine: Engine, archive: tarfile.TarFile, state: _State, disk_only: bool) -> Iterator[Callable[[RunPlan], None] | None]:
    """What puts the machine of a state into its container, where it has one. Its files are compared with their digests before."""
    if not state.machine:
        yield None
        return
    place = engine.store.temporary_directory()
    try:
        for name in kept_machines.NAMES:
            content = _member(archive, f"machine-{name}", state.machine[name].size)
            with storage_errors("the machine could not be taken in"), open(place / name, "xb") as target:
                checked = _Checked(content, state.machine[name])
                if name == DISK_NAME:
                    kept_machines.unpack(cast("BinaryIO", checked), target.fileno())
                else:
                    shutil.copyfileobj(cast("BinaryIO", checked), target, _CHUNK_BYTES)
                checked.finish(name)

        def fill(plan: RunPlan) -> None:
            disk = f"{plan.root.writable_host_path}/{DISK_NAME}"
            if plan.guest is None or plan.guest.whole is not None or os.stat(disk).st_size != os.stat(place / DISK_NAME).st_size:
                raise ValueError("its machine is not what its options say")
            kept_machines.put(place, plan, (DISK_NAME,) if disk_only else kept_machines.NAMES)
            if not disk_only:
                require_kept(plan, engine.home / "cache", plan.root.writable_host_path)

        yield fill
    finally:
        remove_tree(place)


class _Checked:
    """A member that is read once, as it was said to be."""

    def __init__(self, content: IO[bytes], expected: _File) -> None:
        self._content, self._expected = content, expected
        self._found = hashlib.sha256()

    def read(self, size: int) -> bytes:
        chunk = self._content.read(size)
        self._found.update(chunk)
        return chunk

    def finish(self, name: str) -> None:
        """Raise CorruptImage unless all was read and is right."""
        if self._content.read(1) or self._found.hexdigest() != self._expected.digest:
            raise CorruptImage("the state of the container is damaged", f"its {name} is not what was written", "save it again")


def _the_image(found: Iterable[RemoteImage], wanted: str) -> list[RemoteImage]:
    """The one image of the archive, without names: those that it has here stay whose they are."""
    images = list(found)
    if [str(one.id) for one in images] != [wanted]:
        raise CorruptImage("the state of the container is damaged", f"its image is not {wanted}", "save it again")
    return [dataclasses.replace(images[0], references=(), host_binds=())]


def _read(archive: tarfile.TarFile) -> _State:
    content = _member(archive, "state.json")
    text = content.read(_MOST_JSON_BYTES + 1)
    if len(text) > _MOST_JSON_BYTES:
        raise ValueError("its description is too large")
    kind = msgspec.json.decode(text, type=dict[str, msgspec.Raw]).get("format", msgspec.Raw(b'""'))
    if msgspec.json.decode(kind) != FORMAT:
        raise ValueError(f"it is {msgspec.json.decode(kind)!r}, this Bulle reads {FORMAT!r}")
    state = msgspec.json.decode(text, type=_State)
    for digest in (state.image, *state.layers):
        Digest.parse(digest)
    for volume in state.volumes:
        check_name(volume.name)
    if state.machine:
        _check_machine(state)
    return state


def _check_machine(state: _State) -> None:
    """What belongs together is there, and no larger than a machine with these options can be."""
    memory = 2 * (state.options.memory_bytes or guests.MEMORY_BYTES) + _MOST_BESIDE_BYTES
    most = {STATE_NAME: memory, KEPT_NAME: MOST_KNOWN_BYTES, DISK_NAME: 1 << 63}
    if state.machine.keys() != most.keys() or any(not 0 < file.size <= most[name] for name, file in state.machine.items()):
        raise ValueError("its machine is incomplete or too large")


def _member(archive: tarfile.TarFile, name: str, size: int = -1) -> IO[bytes]:
    """The next member, which must have that name; its size (-1: any) is that of the bytes that are there."""
    member = archive.next()
    fits = member is not None and member.isreg() and not member.issparse() and member.name == name and size in (-1, member.size)
    content = archive.extractfile(member) if member is not None and fits else None
    if content is None:
        raise ValueError(f"{name} is missing")
    return content


def _chunks(content: IO[bytes]) -> Iterator[bytes]:
    while chunk := content.read(_CHUNK_BYTES):
        yield chunk


def _check_free(engine: Engine, state: _State) -> None:
    with suppress(NotFound):
        engine.containers.get(state.name)
        raise Conflict(f"the container name {state.name!r} is taken", "", f"remove or rename that one: bulle rename {state.name} NEW")
    for volume in state.volumes:
        with suppress(NotFound):
            engine.volumes.get(volume.name)
            raise Conflict(f"there is a volume {volume.name} already", "the container would have two", "remove that one first")


def _has_image(engine: Engine, name: str) -> bool:
    try:
        engine.images.get(name)
    except NotFound:
        return False
    return True


def _forget_image(engine: Engine, image: str) -> None:
    with suppress(BulleError):
        engine.images.remove(image, force=True)


def _with_volumes(options: ContainerOptions, plan: RunPlan) -> ContainerOptions:
    """The options, in which every volume has its name and what comes from other containers stands for itself."""
    mounts = {one.target: one for one in options.mounts}
    binds = {one.container_path: one for one in options.volumes}
    for mount in plan.mounts:
        path = mount.container_path
        if mount.volume:
            said = mounts.get(path) or MountOption(kind="volume", source=mount.volume, target=path, read_only=mount.read_only)
            mounts[path] = replace(said, source=mount.volume)
        elif options.volumes_from and mount.kind == "bind" and path not in mounts:
            binds.setdefault(path, VolumeOption(mount.host_path, path, mount.read_only))
    return replace(options, mounts=tuple(mounts.values()), volumes=tuple(binds.values()), volumes_from=())


@contextmanager
def _temporary(engine: Engine) -> Iterator[BinaryIO]:
    directory = engine.store.temporary_directory()
    path = directory / "content"
    try:
        with path.open("w+b") as file:
            yield file
    finally:
        path.unlink(missing_ok=True)
        directory.rmdir()


def _add(archive: tarfile.TarFile, name: str, content: IO[bytes], size: int = -1) -> None:
    member = tarfile.TarInfo(name)
    if size < 0:
        size = content.seek(0, os.SEEK_END)
        content.seek(0)
    member.size, member.mode = size, 0o600
    archive.addfile(member, content)
