"""From what a service mounts to fields of :class:`~bulle.model.container.ContainerOptions`. Only the last changes the host."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from bulle.compose.model import Project, Service
from bulle.compose.service_parts import ServiceVolume
from bulle.compose.verdicts import refused
from bulle.errors import InvalidInput
from bulle.model.container import mount_fields
from bulle.model.volume import MountOption, Propagation, Recursive


def mount_options(
    project: Project, service: Service, files: Iterable[MountOption] = (), inherited: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The fields. ``files`` are secrets and configs as they are kept; ``inherited`` the anonymous volumes of a predecessor, by container path."""
    old = dict(inherited or {})
    wanted = [_mount(project, one, old) for one in service.volumes]
    known = {os.path.normpath(one.target) for one in wanted}
    wanted += [MountOption(kind="volume", source=name, target=target) for target, name in old.items() if target not in known]
    return mount_fields([*wanted, *files], _tmpfs(service))


def _tmpfs(service: Service) -> Iterator[tuple[str, str]]:
    for text in service.tmpfs:
        target, _, options = text.partition(":")
        yield target, options


def _mount(project: Project, one: ServiceVolume, inherited: Mapping[str, str]) -> MountOption:
    if one.type == "tmpfs":
        options = [f"size={int(one.tmpfs.size)}"] if one.tmpfs and one.tmpfs.size else []
        options += [f"mode={one.tmpfs.mode:o}"] if one.tmpfs and one.tmpfs.mode else []
        return MountOption(kind="tmpfs", target=one.target, read_only=one.read_only, tmpfs_options=tuple(options))
    if one.type == "bind":
        bind = one.bind
        return MountOption(
            kind="bind", source=one.source, target=one.target, read_only=one.read_only,
            propagation=cast("Propagation", bind.propagation if bind else ""), recursive=cast("Recursive", (bind and bind.recursive) or "enabled"),
        )  # fmt: skip
    if one.type == "image":
        return MountOption(kind="image", source=one.source, target=one.target, read_only=True, subpath=one.image.subpath if one.image else "")
    named = project.volumes.get(one.source)
    name = named.name if named else one.source or inherited.get(os.path.normpath(one.target), "")
    volume = one.volume
    return MountOption(
        kind="volume", source=name, target=one.target, read_only=one.read_only, subpath=volume.subpath if volume else "",
        copy=not (volume and volume.nocopy), labels=volume.labels if volume and not named else {},
    )  # fmt: skip


def check_binds(project: Project, service: Service) -> None:
    """Whether what is bound is there, or may be made. Raises InvalidInput with file and line."""
    for number, one in enumerate(service.volumes):
        if one.type == "bind" and not (one.bind and one.bind.create_host_path) and not os.path.exists(one.source):
            path = ("services", service.name, "volumes", number)
            raise InvalidInput(f"{project.place(*path)}: {one.source} cannot be bound", "it is not there", "make it, or say create_host_path: true")
        if one.type == "volume" and one.source and one.source not in project.volumes:
            raise refused(project, ("services", service.name, "volumes", number), one.source, "the file names no such volume below volumes")


def make_bound_directories(service: Service) -> None:
    """Make the directories of the host that are to be bound and may be made, as docker compose does."""
    for one in service.volumes:
        if one.type == "bind" and one.bind and one.bind.create_host_path and not os.path.exists(one.source):
            try:
                os.makedirs(one.source, exist_ok=True)
            except OSError as error:
                raise InvalidInput(f"the directory {one.source} could not be made", error.strerror or str(error), "make it by hand") from None
