"""From a service to the options of one of its containers. What a key comes to is in ``limits``, ``mounts`` and ``attachments``; the rest is here.

:mod:`bulle.compose.verdicts` says of every key what becomes of it, and is asked first. Nothing is made or changed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from bulle.compose import labels
from bulle.compose.attachments import network_fields, networks_of
from bulle.compose.hashing import service_hash
from bulle.compose.limits import limit_fields
from bulle.compose.model import Project, Service
from bulle.compose.mounts import mount_options
from bulle.compose.verdicts import refused
from bulle.model.container import ContainerOptions
from bulle.model.volume import MountOption
from bulle.version import VERSION

_NANOSECONDS = 1_000_000_000
_POLICIES = {"none": "no", "on-failure": "on-failure", "any": "always"}


def container_options(
    project: Project,
    service: Service,
    number: int,
    *,
    image_id: str = "",
    files: Iterable[MountOption] = (),
    inherited: Mapping[str, str] | None = None,
    container_of: Callable[[str], str] = lambda service: service,
) -> ContainerOptions:
    """The options of replica ``number``. Raises InvalidInput with file and line.

    ``files`` are its secrets and configs, ``inherited`` anonymous volumes of the container that it takes the place of; ``container_of`` names the
    container of a service whose network or volumes it shares.
    """
    return ContainerOptions(
        image=service.image or f"{project.name}-{service.name}",
        name=replica_name(project, service, number),
        command=service.command or (),
        entrypoint=service.entrypoint,
        environment=tuple(f"{name}={value}" for name, value in service.environment.items() if value is not None),
        working_directory=service.working_dir,
        user=service.user,
        isolation="" if service.isolation == "default" else service.isolation,
        platform=service.platform,
        labels={**service.annotations, **service.labels, **_own_labels(project, service, number, image_id)},
        pull="never",
        restart_policy=restart_policy(service),
        init=bool(service.init),
        terminal=service.tty,
        interactive=service.stdin_open,
        read_only=service.read_only,
        privileged=service.privileged,
        cap_add=service.cap_add,
        cap_drop=service.cap_drop,
        security_options=tuple(_security(project, service)),
        user_namespace=service.userns_mode,
        stop_signal=service.stop_signal,
        stop_timeout_s=None if service.stop_grace_period is None else -(-service.stop_grace_period // _NANOSECONDS),
        volumes_from=tuple(_volumes_from(service, container_of)),
        **_health(service),
        **_log(service),
        **limit_fields(project, service),
        **mount_options(project, service, files, inherited),
        **network_fields(project, service, container_of),
    )


def replica_name(project: Project, service: Service, number: int) -> str:
    """What a replica is called."""
    return service.container_name or labels.container_name(project.name, service.name, number)


config_hash = service_hash
"""What tells whether a container was made from a service."""


def restart_policy(service: Service) -> str:
    """``restart``, else what ``deploy.restart_policy`` comes to."""
    if service.restart or service.deploy is None or service.deploy.restart_policy is None:
        return service.restart
    policy = service.deploy.restart_policy
    name = _POLICIES[policy.condition]
    return f"{name}:{policy.max_attempts}" if name == "on-failure" and policy.max_attempts else name


def depends_on(service: Service) -> str:
    """The label that says in which order containers are started, also after a reboot: ``SERVICE:CONDITION:RESTART`` each."""
    return ",".join(f"{name}:{one.condition}:{str(one.restart).lower()}" for name, one in sorted(service.depends_on.items()))


def _own_labels(project: Project, service: Service, number: int, image_id: str) -> dict[str, str]:
    return {
        labels.PROJECT: project.name,
        labels.SERVICE: service.name,
        labels.NUMBER: str(number),
        labels.ONE_OFF: "False",
        labels.CONFIG_HASH: service_hash(service),
        labels.CONFIG_FILES: ",".join(project.files),
        labels.WORKING_DIRECTORY: project.working_directory,
        labels.IMAGE: image_id,
        labels.DEPENDS_ON: depends_on(service),
        labels.VERSION: VERSION,
    }


def _health(service: Service) -> dict[str, Any]:
    check = service.healthcheck
    if check is None:
        return {}
    if check.disable or check.test[:1] == ("NONE",):
        return {"no_healthcheck": True}
    return {
        "health_test": check.test,
        "health_interval_ns": int(check.interval),
        "health_timeout_ns": int(check.timeout),
        "health_retries": check.retries or 0,
        "health_start_period_ns": int(check.start_period),
        "health_start_interval_ns": int(check.start_interval),
    }


def _log(service: Service) -> dict[str, Any]:
    driver = (service.logging.driver if service.logging else "") or service.log_driver
    options = {**service.log_opt, **(service.logging.options if service.logging else {})}
    return {"log_driver": driver, "log_options": tuple(options.items())}


def _security(project: Project, service: Service) -> Iterable[str]:
    for number, text in enumerate(service.security_opt):
        key, _, value = text.replace(":", "=", 1).partition("=") if "=" not in text else text.partition("=")
        if key != "seccomp" or value in ("unconfined", "default", "builtin") or value.lstrip().startswith("{"):
            yield text
            continue
        try:
            yield f"seccomp={(Path(project.working_directory) / value).read_text()}"
        except (OSError, UnicodeDecodeError) as error:
            raise refused(project, ("services", service.name, "security_opt", number), value, str(error)) from None


def _volumes_from(service: Service, container_of: Callable[[str], str]) -> Iterable[str]:
    for text in service.volumes_from:
        if text.startswith("container:"):
            yield text.removeprefix("container:")
        else:
            name, colon, mode = text.partition(":")
            yield f"{container_of(name)}{colon}{mode}"


__all__ = ["config_hash", "container_options", "depends_on", "networks_of", "replica_name", "restart_policy"]
