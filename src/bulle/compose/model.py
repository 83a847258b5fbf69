"""An app as its Compose files describe it, when they have been merged, interpolated and checked: pure data, strict.

The fields are the keys of the Compose specification, in the form that ``docker compose config --format json`` prints them (the long one), with
lengths of time and sizes as numbers. :mod:`bulle.compose.loading` makes a :class:`Project`; everything else of this room only reads it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from bulle.compose.service_parts import (
    Autoscale,
    Build,
    Bytes,
    Dependency,
    Deploy,
    Develop,
    FileReference,
    Healthcheck,
    Hook,
    Logging,
    Nanoseconds,
    Port,
    ServiceNetwork,
    ServiceVolume,
    Strict,
    Ulimit,
)


class Place(msgspec.Struct, frozen=True):
    """Where in which file (host path) something was said; lines begin with 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Note(msgspec.Struct, frozen=True):
    """A key that is done in another way than said, or means nothing here: one sentence for the user."""

    place: Place
    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.key}: {self.text}"


class Service(Strict, frozen=True, kw_only=True):
    """One service. ``command`` and ``entrypoint`` are None where the image's hold; ``environment`` has env files merged in."""

    name: str
    image: str = ""
    build: Build | None = None
    pull_policy: str = ""
    platform: str = ""
    isolation: str = ""
    command: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    environment: dict[str, str | None] = {}
    working_dir: str = ""
    user: str = ""
    group_add: tuple[str, ...] = ()
    hostname: str = ""
    domainname: str = ""
    container_name: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    attach: bool = True
    profiles: tuple[str, ...] = ()
    depends_on: dict[str, Dependency] = {}
    links: tuple[str, ...] = ()
    external_links: tuple[str, ...] = ()
    networks: dict[str, ServiceNetwork] = {}
    network_mode: str = ""
    mac_address: str = ""
    ports: tuple[Port, ...] = ()
    expose: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_opt: tuple[str, ...] = ()
    extra_hosts: tuple[str, ...] = ()
    """``NAME=ADDRESS`` each."""
    volumes: tuple[ServiceVolume, ...] = ()
    volumes_from: tuple[str, ...] = ()
    tmpfs: tuple[str, ...] = ()
    configs: tuple[FileReference, ...] = ()
    secrets: tuple[FileReference, ...] = ()
    devices: tuple[dict[str, Any], ...] = ()
    device_cgroup_rules: tuple[str, ...] = ()
    gpus: tuple[dict[str, Any], ...] = ()
    healthcheck: Healthcheck | None = None
    deploy: Deploy | None = None
    develop: Develop | None = None
    scale: int | None = None
    restart: str = ""
    init: bool | None = None
    tty: bool = False
    stdin_open: bool = False
    read_only: bool = False
    privileged: bool = False
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    security_opt: tuple[str, ...] = ()
    cgroup: str = ""
    cgroup_parent: str = ""
    ipc: str = ""
    pid: str = ""
    uts: str = ""
    userns_mode: str = ""
    runtime: str = ""
    sysctls: dict[str, str] = {}
    ulimits: dict[str, Ulimit] = {}
    stop_signal: str = ""
    stop_grace_period: Nanoseconds | None = None
    post_start: tuple[Hook, ...] = ()
    pre_stop: tuple[Hook, ...] = ()
    logging: Logging | None = None
    log_driver: str = ""
    log_opt: dict[str, str] = {}
    shm_size: Bytes = Bytes(0)
    storage_opt: dict[str, str] = {}
    cpus: float = 0.0
    cpu_count: int = 0
    cpu_percent: float = 0.0
    cpu_shares: int = 0
    cpu_quota: int = 0
    cpu_period: int = 0
    cpu_rt_period: int = 0
    cpu_rt_runtime: int = 0
    cpuset: str = ""
    mem_limit: Bytes = Bytes(0)
    mem_reservation: Bytes = Bytes(0)
    memswap_limit: Bytes = Bytes(0)
    mem_swappiness: int | None = None
    oom_kill_disable: bool = False
    oom_score_adj: int = 0
    pids_limit: int = 0
    blkio_config: dict[str, Any] = {}
    credential_spec: dict[str, Any] = {}
    provider: dict[str, Any] = {}
    models: dict[str, Any] = {}
    volume_driver: str = ""
    autoscale: Autoscale | None = None
    """``x-bulle-autoscale``."""
    balance: Literal["random", "sticky"] = "random"
    """``x-bulle-balance``: which replica a connection to a published port gets; ``sticky`` is always the same for one client address."""
    drain: Nanoseconds = Nanoseconds(0)
    """``x-bulle-drain``: how long a replica that is out of the balance is left to finish before it is stopped; 0 for a default."""
    extensions: dict[str, Any] = {}
    """Other ``x-…`` keys."""

    @property
    def replicas(self) -> int:
        """How many containers the file wants of it."""
        if self.deploy is not None and self.deploy.replicas is not None:
            return self.deploy.replicas
        return self.scale if self.scale is not None else 1


class Ipam(Strict, frozen=True, kw_only=True):
    """How addresses of a network are given."""

    driver: str = ""
    config: tuple[dict[str, Any], ...] = ()
    options: dict[str, str] = {}


class Network(Strict, frozen=True, kw_only=True):
    """A network; ``name`` is its full name in the engine."""

    name: str
    driver: str = ""
    driver_opts: dict[str, str] = {}
    ipam: Ipam = Ipam()
    external: bool = False
    internal: bool = False
    attachable: bool = False
    enable_ipv4: bool | None = None
    enable_ipv6: bool | None = None
    labels: dict[str, str] = {}
    extensions: dict[str, Any] = {}


class Volume(Strict, frozen=True, kw_only=True):
    """A volume; ``name`` is its full name in the engine."""

    name: str
    driver: str = ""
    driver_opts: dict[str, str] = {}
    external: bool = False
    labels: dict[str, str] = {}
    extensions: dict[str, Any] = {}


class FileObject(Strict, frozen=True, kw_only=True):
    """A secret or a config: the content of the host path ``file``, of a variable, or (configs) ``content`` itself."""

    name: str = ""
    file: str = ""
    environment: str = ""
    content: str | None = None
    external: bool = False
    driver: str = ""
    driver_opts: dict[str, str] = {}
    template_driver: str = ""
    labels: dict[str, str] = {}
    extensions: dict[str, Any] = {}


class Project(msgspec.Struct, frozen=True, kw_only=True):
    """One app.

    ``services`` has those that are enabled by the profiles, ``disabled`` the others. ``working_directory`` and ``files`` are absolute host paths.
    ``environment`` is what interpolation used (the caller's and .env): secrets from variables are read there. ``document`` is the canonical form that
    ``config`` prints. ``places`` says where each path of keys (``services``, NAME, KEY…) was written, for messages.
    """

    name: str
    working_directory: str
    files: tuple[str, ...] = ()
    environment: dict[str, str] = {}
    services: dict[str, Service] = {}
    disabled: dict[str, Service] = {}
    networks: dict[str, Network] = {}
    volumes: dict[str, Volume] = {}
    secrets: dict[str, FileObject] = {}
    configs: dict[str, FileObject] = {}
    document: dict[str, Any] = {}
    notes: tuple[Note, ...] = ()
    places: dict[tuple[str | int, ...], Place] = {}

    def place(self, *path: str | int) -> Place:
        """Where the key was written, or the nearest one above it that is known."""
        for length in range(len(path), 0, -1):
            if (found := self.places.get(path[:length])) is not None:
                return found
        return Place(self.files[0] if self.files else self.working_directory, 1)

    def all_services(self) -> Iterable[Service]:
        """Also the disabled ones."""
        yield from self.services.values()
        yield from self.disabled.values()
