"""Services whose images are built here: what each key of ``build`` comes to, which is built before which, and the building itself.

``compose build`` calls it, and ``up`` for images that are missing or with ``--build``. A service whose build copies from another's image
(``additional_contexts: {name: service:OTHER}``) is built after that.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace as with_fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from bulle.build.options import BuildEvent, BuildOptions, Report, Secret, silent
from bulle.compose.app_images import image_name
from bulle.compose.model import Note, Project, Service
from bulle.compose.service_parts import Build, Ulimit
from bulle.compose.verdicts import refused
from bulle.errors import BulleError, InvalidInput
from bulle.model.run_plan import ResourceLimit

if TYPE_CHECKING:
    from bulle.build.builder import Built
    from bulle.engine import Engine

_SERVICE = "service:"
_OFF = frozenset({"", "false", "0"})
_NOTES = {
    "cache_from": "what was built here before is known already",
    "cache_to": "what is built is kept here for the next build",
    "provenance": "builds attest nothing",
}


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a command line asks of all builds, beside what the file says. ``arguments`` are ``NAME=VALUE`` or ``NAME``."""

    no_cache: bool = False
    pull: bool = False
    arguments: tuple[str, ...] = ()
    ssh: tuple[str, ...] = ()
    memory_bytes: int = 0
    sbom: str = ""
    one_platform: bool = False
    """Only for the platform that the service runs on: for ``up``."""


AS_SAID = Asked()


def build_services(
    engine: Engine, project: Project, services: Iterable[Service], asked: Asked = AS_SAID, report: Report = silent
) -> dict[str, list[Built]]:
    """Build the images of those of these services that are built, one after the other; what each came to, one image for each platform.

    Raises BulleError: with file and line for a key that cannot be done, before anything is built, or that of the build.
    """
    from bulle.build.platforms import build_all  # a builder is only needed now

    wanted = {service.name: (service, build_options(project, service, asked)) for service in in_order(project, services)}
    built = {}
    for name, (service, options) in wanted.items():
        assert service.build is not None
        inline = io.BytesIO(service.build.dockerfile_inline.encode()) if service.build.dockerfile_inline else None
        try:
            built[name] = build_all(engine, options, report=_of_service(name, report), stdin=inline)
        except BulleError as error:
            error.args = (f"service {name} cannot be built: {error.brief}", error.details, error.resolution)
            error.brief = error.args[0]
            raise
    return built


def in_order(project: Project, services: Iterable[Service]) -> list[Service]:
    """Those that are built, each after those whose images it copies from, which are added where they are built too."""
    ordered: dict[str, Service] = {}

    def visit(service: Service, chain: tuple[str, ...]) -> None:
        if service.build is None or service.name in ordered:
            return
        for key, place in service.build.additional_contexts.items():
            if place.startswith(_SERVICE):
                where = project.place("services", service.name, "build", "additional_contexts", key)
                other = _service(project, place.removeprefix(_SERVICE))
                if other is None or other.name in (*chain, service.name):
                    why = "there is no such service" if other is None else "they are built from one another"
                    raise InvalidInput(f"{where}: service {service.name} cannot be built from {place}", why)
                visit(other, (*chain, service.name))
        ordered[service.name] = service

    for one in services:
        visit(one, ())
    return list(ordered.values())


def with_dependencies(project: Project, services: Iterable[Service]) -> list[Service]:
    """These services and those that they depend on."""
    found: dict[str, Service] = {}
    waiting = list(services)
    while waiting:
        service = waiting.pop(0)
        if service.name not in found:
            found[service.name] = service
            waiting += [project.services[name] for name in service.depends_on if name in project.services]
    return list(found.values())


def build_notes(project: Project, services: Iterable[Service]) -> Iterator[Note]:
    """Keys of ``build`` that are done in another way than said, or mean nothing here."""
    for service in services:
        for key, text in _NOTES.items():
            if service.build is not None and (getattr(service.build, key) or "") not in _OFF:
                yield Note(project.place("services", service.name, "build", key), key, text)


def build_options(project: Project, service: Service, asked: Asked = AS_SAID) -> BuildOptions:
    """The options of the build of a service. Raises InvalidInput with file and line for what cannot be done."""
    build = service.build
    assert build is not None
    path = ("services", service.name, "build")
    context = build.context or "."
    platforms = build.platforms or ((service.platform,) if service.platform else ())
    if asked.one_platform and len(platforms) > 1:
        platforms = (service.platform,) if service.platform else _here(platforms)
    return BuildOptions(
        context=context,
        file=_containerfile(build, context),
        tags=tuple(dict.fromkeys((image_name(project, service), *build.tags))),
        target=build.target,
        arguments=(*(name if value is None else f"{name}={value}" for name, value in build.args.items()), *asked.arguments),
        contexts=tuple((name, _other_context(project, place)) for name, place in build.additional_contexts.items()),
        secrets=tuple(_secrets(project, build, path)),
        ssh=(*build.ssh, *asked.ssh),
        platforms=platforms,
        labels=tuple(f"{name}={value}" for name, value in build.labels.items()),
        allowed=(*build.entitlements, *(("security.insecure",) if build.privileged else ())),
        no_cache=build.no_cache or asked.no_cache,
        pull=build.pull or asked.pull,
        network=_network(project, build, path),
        isolation="" if build.isolation == "default" else build.isolation,
        memory_bytes=asked.memory_bytes,
        shm_bytes=int(build.shm_size),
        extra_hosts=tuple(_pair(text) for text in build.extra_hosts),
        limits=tuple(_limits(project, build, path)),
        sbom="" if (asked.sbom or build.sbom) in _OFF else "spdx",
        environment={**project.environment, **_contents(project, build)},
    )


def document(project: Project, services: Iterable[Service], asked: Asked = AS_SAID) -> dict[str, Any]:
    """What would be built, in the form of a file for ``docker buildx bake``."""
    targets = {}
    for service in in_order(project, services):
        options = build_options(project, service, asked)
        assert service.build is not None
        pairs = (text.partition("=") for text in options.arguments)
        target = {
            "context": options.context,
            "contexts": dict(options.contexts),
            "dockerfile": "" if options.file == "-" else options.file,
            "dockerfile-inline": service.build.dockerfile_inline,
            "args": {name: value if equals else options.environment.get(name) for name, equals, value in pairs},
            "labels": service.build.labels,
            "tags": options.tags,
            "target": options.target,
            "platforms": options.platforms,
            "no-cache": options.no_cache,
            "pull": options.pull,
            "network": options.network,
            "entitlements": options.allowed,
            "output": ["type=docker"],
        }
        targets[service.name] = {name: value for name, value in target.items() if value}
    return {"group": {"default": {"targets": list(targets)}}, "target": targets}


def _of_service(name: str, report: Report) -> Report:
    """Progress that says which service a step is of."""

    def named(event: BuildEvent) -> None:
        step = event.step
        report(event if step is None else with_fields(event, step=with_fields(step, stage=f"{name} {step.stage}")))

    return named


def _service(project: Project, name: str) -> Service | None:
    return project.services.get(name) or project.disabled.get(name)


def _here(platforms: tuple[str, ...]) -> tuple[str, ...]:
    from bulle.model.platform import parse_platform, this_platform

    own = [one for one in platforms if parse_platform(one) == this_platform()]
    return tuple(own or platforms)[:1]


def _containerfile(build: Build, context: str) -> str:
    """Where it is: on standard input where it stands in the file itself, as a host path where the context is one."""
    if build.dockerfile_inline:
        return "-"
    if not build.dockerfile or not os.path.isdir(context):
        return build.dockerfile
    path = Path(context, build.dockerfile)
    return "" if build.dockerfile == "Dockerfile" and not path.exists() else str(path)


def _other_context(project: Project, place: str) -> str:
    if place.startswith(_SERVICE):
        other = _service(project, place.removeprefix(_SERVICE))
        return f"docker-image://{image_name(project, other)}" if other is not None else place
    return place if "://" in place else os.path.join(project.working_directory, place)


_CONTENT = "content of "


def _secrets(project: Project, build: Build, path: tuple[str | int, ...]) -> Iterator[Secret]:
    for number, one in enumerate(build.secrets):
        secret, name = project.secrets.get(one.source), one.target or one.source
        if secret is None:
            raise InvalidInput(f"{project.place(*path, 'secrets', number)}: there is no secret {one.source}", "", "say it under secrets, at the top")
        if secret.external:
            raise refused(project, ("secrets", one.source, "external"), True, "say file, environment or content")
        if secret.file:
            yield Secret(name, source=os.path.join(project.working_directory, secret.file))
        else:
            yield Secret(name, variable=secret.environment or _CONTENT + one.source)


def _contents(project: Project, build: Build) -> Mapping[str, str]:
    """The content of secrets that stand in the file, by a name that no variable has."""
    found = {one.source: project.secrets[one.source].content for one in build.secrets if one.source in project.secrets}
    return {_CONTENT + source: content for source, content in found.items() if content is not None}


def _network(project: Project, build: Build, path: tuple[str | int, ...]) -> str:
    name = build.network
    if name in ("", "default", "host", "none", "bridge"):
        return "" if name == "default" else name
    if name.startswith(("service:", "container:")):
        raise refused(project, (*path, "network"), name, "a build shares no container's network; use host, none or the name of a network")
    return project.networks[name].name if name in project.networks else name


def _pair(text: str) -> tuple[str, str]:
    name, _, address = text.partition("=") if "=" in text else text.partition(":")
    return name, address.removeprefix("[").removesuffix("]")


def _limits(project: Project, build: Build, path: tuple[str | int, ...]) -> Iterator[ResourceLimit]:
    for name, value in build.ulimits.items():
        try:
            soft, hard = (value.soft, value.hard) if isinstance(value, Ulimit) else (value, value)
            yield ResourceLimit(name, int(soft), int(hard))
        except (TypeError, ValueError):
            where = project.place(*path, "ulimits", name)
            raise InvalidInput(f"{where}: build.ulimits.{name} is neither a number nor soft and hard", "", "write {soft: 1024, hard: 2048}") from None
