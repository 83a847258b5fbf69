"""What has to be true of services together: they name only what there is, say nothing twice, and depend on each other without a cycle."""

from __future__ import annotations

from collections.abc import Iterator

from bulle.compose.document import InvalidFile, refusal
from bulle.compose.model import Project, Service
from bulle.compose.service_parts import ResourceAmounts


def check(project: Project) -> None:
    """Raises InvalidFile for the first thing that is wrong with the services that are enabled."""
    for service in project.services.values():
        for key, what, why in _problems(project, service):
            raise _wrong(project, service, key, what, why)
    for name, secret in project.secrets.items():
        if not secret.external and not secret.file and not secret.environment:
            raise refusal(project.place("secrets", name), f"secrets.{name} says neither file nor environment")
    _check_dependencies(project)


def _wrong(project: Project, service: Service, key: str, what: str, why: str = "") -> InvalidFile:
    place = project.place("services", service.name, *key.split("."))
    return refusal(place, f"services.{service.name}{'.' if key else ''}{key} {what}", why)


_Problem = tuple[str, str, str]


def _problems(project: Project, service: Service) -> Iterator[_Problem]:
    if service.build is None and not service.image and not service.provider:
        yield "", "has neither an image nor a build", ""
    yield from _build_problems(project, service)
    if service.network_mode and service.networks:
        yield "networks", "cannot stand beside network_mode", ""
    for network in service.networks:
        if network not in project.networks:
            yield "networks", f"names {network}", "there is no such network"
    if service.healthcheck and service.healthcheck.test and service.healthcheck.test[0] not in ("CMD", "CMD-SHELL", "NONE"):
        yield "healthcheck.test", "must begin with CMD, CMD-SHELL or NONE", "or be a string"
    for name, dependency in service.depends_on.items():
        if name not in project.services and (dependency.required or name not in project.disabled):
            yield "depends_on", f"names {name}", _absence(project, name)
    if service.network_mode.startswith("service:") and service.network_mode.removeprefix("service:") not in project.services:
        yield "network_mode", f"is {service.network_mode}", "there is no such service"
    yield from _file_problems(project, service)
    yield from _amount_problems(service)
    if service.develop:
        for rule in service.develop.watch:
            if not rule.target and rule.action not in ("rebuild", "restart"):
                yield "develop.watch", f"needs a target for {rule.action}", ""


def _absence(project: Project, name: str) -> str:
    if (other := project.disabled.get(name)) is not None and other.profiles:
        return f"it is disabled; one of its profiles enables it ({', '.join(other.profiles)})"
    return "there is no such service"


def _build_problems(project: Project, service: Service) -> Iterator[_Problem]:
    build = service.build
    if build is None:
        return
    if build.dockerfile and build.dockerfile_inline:
        yield "build", "says dockerfile and dockerfile_inline", ""
    for name, context in build.additional_contexts.items():
        if context.startswith("service:"):
            other = project.services.get(context.removeprefix("service:"))
            if other is None or other.build is None:
                yield "build.additional_contexts", f"names {context} for {name}", "no such service is built"
    if build.platforms and service.platform and service.platform not in build.platforms:
        yield "build.platforms", f"lacks {service.platform}", "which is the service's platform"
    for secret in build.secrets:
        if secret.source not in project.secrets:
            yield "build.secrets", f"names {secret.source}", "there is no such secret"


def _file_problems(project: Project, service: Service) -> Iterator[_Problem]:
    for volume in service.volumes:
        if volume.type == "volume" and volume.source and volume.source not in project.volumes:
            yield "volumes", f"names {volume.source}", "there is no such volume"
    for config in service.configs:
        if config.source not in project.configs:
            yield "configs", f"names {config.source}", "there is no such config"
    for secret in service.secrets:
        if secret.source not in project.secrets:
            yield "secrets", f"names {secret.source}", "there is no such secret"


def _amount_problems(service: Service) -> Iterator[_Problem]:
    deploy = service.deploy
    replicas = deploy.replicas if deploy else None
    if service.scale is not None and replicas is not None and service.scale != replicas:
        yield "scale", f"is {service.scale}", f"and deploy.replicas is {replicas}"
    if deploy is not None:
        limits, reservations = deploy.resources.limits, deploy.resources.reservations
        for key, said, part, other, where in (
            ("cpus", service.cpus, limits, limits.cpus, "limits.cpus"),
            ("mem_limit", service.mem_limit, limits, limits.memory, "limits.memory"),
            ("mem_reservation", service.mem_reservation, reservations, reservations.memory, "reservations.memory"),
            ("pids_limit", service.pids_limit, limits, limits.pids, "limits.pids"),
        ):
            if said and part != ResourceAmounts() and said != other:
                yield key, "differs", f"from deploy.resources.{where}"
    many = service.scale if service.scale is not None else replicas
    if many is not None and many > 1 and service.container_name:
        yield "container_name", "cannot be that of several containers", f"{many} are wanted"


def _check_dependencies(project: Project) -> None:
    done: set[str] = set()
    for first in project.services:
        path: dict[str, None] = {}
        waiting = [(first, False)]
        while waiting:
            name, left = waiting.pop()
            if left:
                del path[name]
                done.add(name)
            elif name in path:
                cycle = list(path)
                shown = " -> ".join([*cycle[cycle.index(name) :], name])
                raise _wrong(project, project.services[cycle[-1]], "depends_on", "leads back to itself", shown)
            elif name not in done:
                path[name] = None
                waiting.append((name, True))
                waiting += [(other, False) for other in project.services[name].depends_on if other in project.services]
