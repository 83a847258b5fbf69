"""The containers of one app: made, started, ended and taken the place of, each by itself. What is to be done with which is decided elsewhere."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bulle.compose import balance, labels
from bulle.compose.actual import number_of, service_of
from bulle.compose.foundations import Report
from bulle.compose.hashing import service_hash
from bulle.compose.kept_files import files_at_hand, kept_files
from bulle.compose.model import Project, Service
from bulle.compose.mounts import make_bound_directories
from bulle.compose.options import container_options, replica_name
from bulle.compose.service_parts import Hook
from bulle.engine.container import Container
from bulle.errors import BulleError, Conflict, InvalidInput, NotFound
from bulle.model.container import ContainerOptions, ExecOptions
from bulle.model.volume import MountOption

if TYPE_CHECKING:
    from bulle.engine import Engine

_ANONYMOUS_LENGTH = 64
_OTHERS_S, _PAUSE_S = 10.0, 0.01


@dataclass
class Replicas:
    """What is needed to change an app's containers. ``images`` are the ids of the services' images, ``containers`` the present ones by service.

    ``timeout_s`` is how long containers are given to end instead of their own time. ``keep_volumes`` has anonymous volumes handed on.
    """

    engine: Engine
    project: Project
    report: Report
    images: Mapping[str, str]
    containers: dict[str, list[Container]]
    timeout_s: int | None = None
    keep_volumes: bool = True
    from_record: bool = False
    """The project is the one that is kept: secrets and configs are as they were kept."""
    given_up: threading.Event = field(default_factory=threading.Event)
    _files: dict[str, tuple[MountOption, ...]] = field(default_factory=dict)
    _digests: dict[str, tuple[Service, str]] = field(default_factory=dict)

    def of(self, service: str) -> list[Container]:
        """The containers of a service."""
        return self.containers.get(service, [])

    def container_of(self, service: str) -> str:
        """The id of the container of a service whose network or volumes are shared: its newest. Raises NotFound."""
        found = self.of(service)
        if not found:
            raise NotFound(f"service {service} has no container", "another shares its network or volumes", f"start {service} first")
        return max(found, key=lambda one: one.created_at_ns).id

    def digest(self, service: Service) -> str:
        """What tells whether a container was made from this service; worked out once."""
        known = self._digests.get(service.name)
        if known is None or known[0] is not service:
            known = self._digests[service.name] = (service, service_hash(service))
        return known[1]

    def files(self, service: Service) -> tuple[MountOption, ...]:
        """The service's secrets and configs, kept."""
        if service.name not in self._files:
            keep = files_at_hand if self.from_record else kept_files
            self._files[service.name] = keep(self.engine.home, self.project, service)
        return self._files[service.name]

    def options(self, service: Service, number: int, predecessor: Container | None = None) -> ContainerOptions:
        """What a replica is made from."""
        inherited = _anonymous_volumes(predecessor) if predecessor is not None and self.keep_volumes else {}
        return container_options(
            self.project, service, number, image_id=self.images.get(service.name, ""), files=self.files(service), inherited=inherited,
            container_of=self.container_of,
        )  # fmt: skip

    def make(self, service: Service, number: int, *, predecessor: Container | None = None, aside: bool = False) -> Container:
        """Make a replica; ``aside`` gives it a name that it keeps until it takes the place of the one before it."""
        make_bound_directories(service)
        options = self.options(service, number, predecessor)
        if aside:
            from msgspec.structs import replace

            options = replace(options, name=f"{os.urandom(6).hex()}_{options.name}")
        try:
            container = self.engine.containers.create(options)
        except InvalidInput as error:
            place = self.project.place("services", service.name)
            raise InvalidInput(f"{place}: {error.brief}", error.details, error.resolution) from None
        self.containers.setdefault(service.name, []).append(container)
        if not aside:
            self.report("Container", container.name, "Created")
        return container

    def start(self, service: Service, container: Container, *, tell: bool = True) -> None:
        """Start it, and run what is to be run after its start."""
        try:
            container.start()
        except Conflict:
            if not _is_started_by_another(container):
                raise
        for hook in service.post_start:
            run_hook(container, hook)
        if tell:
            self.report("Container", container.name, "Started")

    def end(self, service: Service | None, container: Container, *, remove: bool = True, tell: bool = True, verb: str = "stop") -> None:
        """Take it out of the balance, stop it, and remove it; its anonymous volumes stay where they are handed on."""
        if container.state().active:
            if service is not None:
                balance.withdraw(service, container)
                for hook in service.pre_stop:
                    with suppress(BulleError):
                        run_hook(container, hook)
            container.stop(self.timeout_s, verb=verb)
            if tell:
                self.report("Container", container.name, "Stopped")
        if remove:
            self.remove(container, tell=tell)

    def remove(self, container: Container, *, volumes: bool = False, tell: bool = True) -> None:
        """Remove it, whatever it does."""
        with suppress(NotFound):
            container.remove(force=True, volumes=volumes)
        known = self.of(service_of(container))
        if container in known:
            known.remove(container)
        if tell:
            self.report("Container", container.name, "Removed")

    def succeed(self, service: Service, container: Container) -> None:
        """Give a container that was made aside the name that its predecessor had."""
        name = replica_name(self.project, service, number_of(container))
        if container.name != name:
            container.rename(name)

    def replace_here(self, service: Service, old: Container, new: Container | None) -> Container:
        """Let a container take the place of another, which is stopped first; one that is not made yet is made in between."""
        number = number_of(old)
        if new is None:
            self.end(service, old, remove=False, tell=False)
            left = self.engine.containers.get(old.id)
            for attachment in left.plan.network.attachments:  # its addresses are free for the next
                self.engine.networks.disconnect(attachment.network_id, left)
            new = self.make(service, number, predecessor=old, aside=True)
        self.end(service, old, remove=False, tell=False)
        self.remove(old, volumes=not self.keep_volumes, tell=False)
        self.succeed(service, new)
        self.report("Container", new.name, "Recreated")
        return new


def _is_started_by_another(container: Container) -> bool:
    """Whether it runs soon because of somebody else: what a command has ordered that was killed is done all the same."""
    deadline = time.monotonic() + _OTHERS_S
    while not container.state().active:
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE_S)
    return True


def run_hook(container: Container, hook: Hook) -> None:
    """Run a command in a container and wait for it. Raises Conflict where it fails."""
    environment = tuple(f"{name}={value}" for name, value in hook.environment.items() if value is not None)
    options = ExecOptions(
        command=hook.command, environment=environment, working_directory=hook.working_dir, user=hook.user, privileged=hook.privileged
    )
    attachment = container.execute(options)
    assert attachment is not None
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        code = attachment.pump(-1, nowhere, nowhere).exit_code
    finally:
        attachment.close()
        os.close(nowhere)
    if code:
        raise Conflict(f"`{' '.join(hook.command)}` failed in container {container.name}", f"exit code {code}", "")


def _anonymous_volumes(container: Container) -> dict[str, str]:
    """The anonymous volumes of a container, by the paths at which it has them."""
    return {
        mount.container_path: mount.volume
        for mount in container.plan.mounts
        if len(mount.volume) == _ANONYMOUS_LENGTH and not set(mount.volume) - set("0123456789abcdef")
    }


def is_aside(container: Container, project: Project, service: Service) -> bool:
    """Whether it has a name for the time in between, also because whoever made it was killed."""
    return container.name != replica_name(project, service, number_of(container))


def by_service(containers: Sequence[Container]) -> dict[str, list[Container]]:
    """Containers by the service that their labels name."""
    found: dict[str, list[Container]] = {}
    for container in containers:
        found.setdefault(container.options.labels.get(labels.SERVICE, ""), []).append(container)
    return found
