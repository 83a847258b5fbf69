"""From what was asked of a container's mounts to the mounts of its plan, and the volumes made ready that they need.

:class:`Mounting` resolves options once, before the container has a row: sources are checked, volumes are looked up or get a name, what other
containers have is taken over, the image's ``VOLUME`` is obeyed. :meth:`Mounting.prepared` then makes the volumes that are missing, aside, and fills
those that are empty from the image; they get their rows in the transaction that makes the container's. Rules and messages are Docker's.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from bulle.engine import volume_files
from bulle.engine.volume_options import VolumeShape
from bulle.engine.volumes import Volumes, new_row
from bulle.errors import Conflict, InvalidInput, NotFound
from bulle.isolation.host_mounts import DATA
from bulle.model.container import ContainerOptions
from bulle.model.run_plan import LayerMount, Mount
from bulle.model.volume import MountOption
from bulle.records.containers import ContainerRecord, ContainerRecords
from bulle.records.volumes import VolumeRecords, VolumeRow
from bulle.store.failures import storage_errors

if TYPE_CHECKING:
    from bulle.engine.images import Images
    from bulle.engine.planning import Base
    from bulle.records.database import Database
    from bulle.store import Store
    from bulle.store.merged_view import MergedView

Adopt = Callable[[sqlite3.Connection, ContainerRecord], None]


class VolumesChanged(Exception):
    """A volume was removed or made by others between its preparation and its use: everything is done once more."""


@dataclass
class _Needed:
    """A volume that a container needs: its row if it must be made, and the container path of the image that it is filled from ("" for none)."""

    row: VolumeRow
    fill_from: str = ""


@dataclass
class Mounting:
    """What becomes of one container's mounts. ``mounts`` and ``layers`` go into the plan."""

    database: Database
    store: Store
    images: Images
    volumes: Volumes
    mounts: list[Mount] = field(default_factory=list)
    layers: list[LayerMount] = field(default_factory=list)
    _needed: dict[str, _Needed] = field(default_factory=dict)
    _given: dict[str, Mount] = field(default_factory=dict)
    """What the container's user gets, by container path."""

    def resolve(self, options: ContainerOptions, base: Base, *, image_volumes: bool) -> Base:
        """The base with the mounts of the options, and with anonymous volumes where its image wants some and ``image_volumes`` says so.

        Raises InvalidInput, NotFound, Conflict.
        """
        own = [self._mount(wanted) for wanted in _asked_for(options)]
        self.mounts = [*base.mounts, *own]
        self._refuse_duplicates()
        taken = {mount.container_path for mount in self.mounts}
        self.mounts += [mount for mount in self._of_others(options.volumes_from) if mount.container_path not in taken]
        taken = {mount.container_path for mount in self.mounts}
        for path in sorted(base.config.volumes or ()) if image_volumes else ():
            place = os.path.normpath("/" + path.lstrip("/"))
            if place not in taken and place != "/":
                self.mounts.append(self._volume(MountOption(kind="volume", target=place), place))
        return replace(base, mounts=tuple(self.mounts), volume_layers=(*base.volume_layers, *self.layers))

    @contextmanager
    def prepared(self, base: Base, user: str) -> Iterator[Adopt]:
        """Everything that the container's volumes need, but their rows: those are made by what this gives, in the container's own transaction.

        ``user`` is the container's, for sources that are to be given to it. Raises VolumesChanged there, or here what making and filling raises.
        """
        with ExitStack() as stack:
            view = stack.enter_context(self.store.layers.view(base.layers)) if self._looks_into_image() else None
            staged = {name: path for name, one in self._needed.items() if (path := self._made_ready(stack, one, view)) is not None}
            for wanted in self._given.values():
                assert view is not None
                self._give(wanted, staged.get(wanted.volume), *owner(user, view))

            def adopt(connection: sqlite3.Connection, record: ContainerRecord) -> None:
                for name, one in self._needed.items():
                    exists = VolumeRecords.exists(connection, name)
                    if not exists and name not in staged:
                        raise VolumesChanged
                    if exists and name in staged and one.fill_from:
                        raise VolumesChanged  # whoever made it may have wanted it empty
                    if not exists:
                        self.volumes.adopt(connection, one.row, staged[name])
                VolumeRecords.use(connection, record.id, self._needed)

            yield adopt

    def _looks_into_image(self) -> bool:
        return bool(self._given) or any(one.fill_from for one in self._needed.values())

    def _made_ready(self, stack: ExitStack, one: _Needed, view: MergedView | None) -> Path | None:
        """The directory of a volume that is not there yet; None for one that is, filled if it was empty."""
        name, shape = one.row.name, VolumeShape.of(one.row.options)
        fill = view is not None and bool(one.fill_from) and shape.is_kept_here
        if VolumeRecords(self.database).find(name) is not None:
            if fill and view is not None:
                try:
                    self.volumes.fill(name, view, one.fill_from)
                except NotFound:
                    raise VolumesChanged from None
            return None
        staged = stack.enter_context(self.volumes.staged(one.row))
        if fill and view is not None:
            with volume_files.opened(staged) as base, storage_errors(f"volume {name} could not be filled"):
                volume_files.as_container_root(lambda: volume_files.fill(base, view, one.fill_from))
        return staged

    def _give(self, wanted: Mount, staged: Path | None, user_id: int, group_id: int) -> None:
        """Give what a mount shows to the container's user."""
        if wanted.volume and wanted.host_path.startswith(str(self.volumes.directory(wanted.volume))):
            place = staged or self.volumes.directory(wanted.volume)
            with volume_files.opened(place) as base:
                volume_files.change_owner(base, DATA, user_id, group_id)
            return
        volume_files.change_owner(None, os.path.realpath(wanted.host_path), user_id, group_id)

    def _refuse_duplicates(self) -> None:
        places = [mount.container_path for mount in self.mounts]
        for path in places:
            if path in ("/", "//"):
                raise InvalidInput("nothing can be mounted over the container's /", "", "mount it at a directory below /")
            if places.count(path) > 1:
                raise InvalidInput(f"duplicate mount point: {path}", "", "mount it once")

    def _mount(self, wanted: MountOption) -> Mount:
        if not wanted.target.startswith("/"):
            raise InvalidInput(f"the mount's path {wanted.target!r} in the container is not absolute", "", "begin it with /")
        place = os.path.normpath(wanted.target)
        if wanted.kind == "tmpfs":
            return Mount("tmpfs", place, read_only=wanted.read_only, options=wanted.tmpfs_options)
        made = {"bind": self._bind, "volume": self._volume, "image": self._image}[wanted.kind](wanted, place)
        if wanted.change_owner:
            if made.kind != "bind":
                raise InvalidInput(f"what is mounted at {place} cannot change its owner", "it is memory or an image", "leave out U")
            self._given[place] = made
        return made

    def _bind(self, wanted: MountOption, place: str) -> Mount:
        if not wanted.source.startswith("/"):
            raise InvalidInput(f"the mount's path {wanted.source!r} on the host is not absolute", "", "begin it with /")
        if "shared" in wanted.propagation:
            why = "what a container mounts never reaches the host"
            raise InvalidInput(f"propagation {wanted.propagation} is not possible", why, "use rslave to have the host's mounts in the container")
        return Mount("bind", place, wanted.source, wanted.read_only, propagation=wanted.propagation or "rprivate", recursive=wanted.recursive)

    def _volume(self, wanted: MountOption, place: str) -> Mount:
        row = VolumeRecords(self.database).find(wanted.source) if wanted.source else None
        if row is None:
            row = new_row(wanted.source, wanted.labels, wanted.driver_options)
        needed = self._needed.setdefault(row.name, _Needed(row))
        if wanted.driver_options and wanted.driver_options != needed.row.options:
            raise Conflict(f"a volume named {row.name} exists with other options", "", "choose another name, or remove it first")
        if wanted.copy and not wanted.subpath and not needed.fill_from:
            needed.fill_from = place
        shape = VolumeShape.of(needed.row.options)
        directory = str(self.volumes.directory(row.name))
        return shape.mount(row.name, directory, place, read_only=wanted.read_only, subpath=wanted.subpath)

    def _image(self, wanted: MountOption, place: str) -> Mount:
        if not wanted.source:
            raise InvalidInput(f"the mount at {place} names no image", "", "add source=IMAGE")
        image = self.images.get(wanted.source)
        if image.host_binds:
            raise InvalidInput(f"image {wanted.source} cannot be mounted", "its files are the host's", "bind those")
        layers = self.store.layers.plan(image.layers)
        self.layers += [layer for layer in layers if layer not in self.layers]
        paths = tuple(layer.host_path for layer in layers)
        return Mount("image", place, read_only=True, subpath=wanted.subpath, image=wanted.source, layer_host_paths=paths)

    def _of_others(self, names: Sequence[str]) -> list[Mount]:
        """The binds and volumes of other containers."""
        found: dict[str, Mount] = {}
        for text in names:
            name, _, mode = text.partition(":")
            if mode not in ("", "ro", "rw", "z", "Z"):
                raise InvalidInput(f"invalid mode: {mode}", f"in --volumes-from {text}", "use ro or rw")
            plan = ContainerRecords(self.database).find(name).plan
            for mount in plan.mounts:
                if mount.kind == "tmpfs" and not mount.volume:
                    continue
                found[mount.container_path] = replace(mount, read_only=mount.read_only or mode == "ro")
                if mount.volume:
                    row = VolumeRecords(self.database).find(mount.volume)
                    if row is None:
                        raise NotFound(f"volume {mount.volume} of container {name} is gone", "", "leave out --volumes-from")
                    self._needed.setdefault(mount.volume, _Needed(row))
                shown = [layer for layer in plan.volume_layers if layer.host_path in mount.layer_host_paths]
                self.layers += [layer for layer in shown if layer not in self.layers]
        return list(found.values())


def _asked_for(options: ContainerOptions) -> Iterator[MountOption]:
    """All that the options say, as one kind of option."""
    for volume in options.volumes:
        kind = "bind" if volume.host_path.startswith("/") else "volume"
        yield MountOption(kind=kind, source=volume.host_path, target=volume.container_path, read_only=volume.read_only)  # type: ignore[arg-type]
    yield from options.mounts
    for path, text in options.tmpfs:
        yield MountOption(kind="tmpfs", target=path, tmpfs_options=tuple(part for part in text.split(",") if part))


def owner(user: str, view: MergedView) -> tuple[int, int]:
    """The ids of Docker's ``name|uid[:group|gid]`` by the image's own files. Raises InvalidInput."""
    name, _, group = (user or "0").partition(":")
    account = _entry(view, "/etc/passwd", name)
    entry = _entry(view, "/etc/group", group) if group else None
    return _number(account[2] if account else name, name), _number(entry[2] if entry else group or (account[3] if account else "0"), group)


def _entry(view: MergedView, path: str, name: str) -> list[str] | None:
    for line in (view.text(path) or b"").decode(errors="surrogateescape").splitlines():
        fields = [*line.split(":"), "", "", "", ""]
        if fields[0] == name or (name.isdecimal() and fields[2] == name):
            return fields
    return None


def _number(text: str, name: str) -> int:
    if not text.isdecimal() or len(text) > 10 or int(text) > 2**31 - 1:
        raise InvalidInput(f"unable to find user or group {name or text!r}", "the image's /etc/passwd and /etc/group do not name it", "use a number")
    return int(text)
