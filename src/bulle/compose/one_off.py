"""Containers that ``compose run`` makes: as a replica of the service is made, but with another command and without its ports.

Nobody looks after them: no policy starts them again, and no ``up`` counts them.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msgspec.structs import replace

from bulle.compose import labels
from bulle.compose.actual import containers_of
from bulle.compose.app_images import image_name
from bulle.compose.foundations import Foundations, Report
from bulle.compose.kept_files import kept_files
from bulle.compose.model import Project, Service
from bulle.compose.mounts import make_bound_directories
from bulle.compose.options import container_options
from bulle.compose.replicas import Replicas, by_service
from bulle.errors import InvalidInput
from bulle.model.container import mount_fields

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bulle.engine import Container, Engine
    from bulle.model.container import ContainerOptions
    from bulle.model.network import PortMapping
    from bulle.model.volume import MountOption

_SLUG_LENGTH = 12


@dataclass(frozen=True)
class Wanted:
    """What a command line asks of one, in place of what the service says. ``environment`` are ``NAME=VALUE``; ``entrypoint`` None: the service's."""

    command: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    environment: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    name: str = ""
    user: str = ""
    working_directory: str = ""
    mounts: tuple[MountOption, ...] = ()
    ports: tuple[PortMapping, ...] = ()
    service_ports: bool = False
    use_aliases: bool = False
    remove: bool = False
    terminal: bool = False
    interactive: bool = False
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()


def make(engine: Engine, project: Project, service: Service, wanted: Wanted, report: Report) -> Container:
    """Make it, with the networks and volumes that it needs. Its image is here. Raises BulleError."""
    foundations = Foundations(engine, project, [service])
    foundations.check()
    foundations.make(report)
    make_bound_directories(service)
    try:
        return engine.containers.create(options_of(engine, project, service, wanted))
    except InvalidInput as error:
        place = project.place("services", service.name)
        raise InvalidInput(f"{place}: {error.brief}", error.details, error.resolution) from None


def remove_orphans(engine: Engine, project: Project, report: Report) -> None:
    """Remove the containers of services that the project does not have any more."""
    there = by_service(containers_of(engine, project.name))
    known = {one.name for one in project.all_services()}
    replicas = Replicas(engine, project, report, {}, there)
    for name in there.keys() - known:
        for container in list(there[name]):
            replicas.end(None, container)


def options_of(engine: Engine, project: Project, service: Service, wanted: Wanted) -> ContainerOptions:
    """What it is made from."""
    slug = secrets.token_hex(32)
    image = engine.images.get(image_name(project, service), service.platform)
    there = Replicas(engine, project, lambda *_: None, {}, by_service(containers_of(engine, project.name)))
    options = container_options(
        project, _as_asked(service, wanted), 1, image_id=image.id, files=kept_files(engine.home, project, service), container_of=there.container_of
    )
    networks = options.networks
    if not wanted.use_aliases:  # nobody is to find it in place of a replica, whose addresses are taken
        networks = tuple(replace(one, aliases=(), ipv4="", ipv6="", mac="") for one in networks)
    return replace(
        options,
        name=wanted.name or f"{project.name}-{service.name}-run-{slug[:_SLUG_LENGTH]}",
        labels={**options.labels, **wanted.labels, labels.ONE_OFF: "True", labels.SLUG: slug},
        environment=(*options.environment, *wanted.environment),
        networks=networks,
        ports=wanted.ports or (options.ports if wanted.service_ports else ()),
        auto_remove=wanted.remove,
        **_mounts(project, options, wanted),
    )


def _as_asked(service: Service, wanted: Wanted) -> Service:
    command = wanted.command or (service.command if wanted.entrypoint is None else None)
    return replace(
        service,
        command=command,
        entrypoint=service.entrypoint if wanted.entrypoint is None else wanted.entrypoint,
        container_name="",
        user=wanted.user or service.user,
        working_dir=wanted.working_directory or service.working_dir,
        restart="no",
        tty=wanted.terminal,
        stdin_open=wanted.interactive,
        cap_add=(*service.cap_add, *wanted.cap_add),
        cap_drop=(*service.cap_drop, *wanted.cap_drop),
    )


def _mounts(project: Project, options: ContainerOptions, wanted: Wanted) -> dict[str, object]:
    """Its own mounts and those of the command line, which take the place of others at the same path; a key of the project is its volume."""
    if not wanted.mounts:
        return {}
    paths = {os.path.normpath(one.target) for one in wanted.mounts}
    more = [
        replace(one, source=project.volumes[one.source].name) if one.kind == "volume" and one.source in project.volumes else one
        for one in wanted.mounts
    ]
    added = mount_fields(more)
    return {
        "volumes": (*(one for one in options.volumes if os.path.normpath(one.container_path) not in paths), *added["volumes"]),
        "mounts": (*(one for one in options.mounts if os.path.normpath(one.target) not in paths), *added["mounts"]),
        "tmpfs": (*(one for one in options.tmpfs if os.path.normpath(one[0]) not in paths), *added["tmpfs"]),
    }
