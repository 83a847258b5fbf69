"""The parts of a service, as Compose files say them: pure data, strict. :mod:`bulle.compose.model` joins them and says in which form they are."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class Nanoseconds(int):
    """A length of time; in files ``1m30s``."""


class Bytes(int):
    """A size; in files ``64m``. -1 is no limit, where that can be asked for."""


class Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A mapping of the file: a key that is not a field is a mistake."""


class Port(Strict, frozen=True, kw_only=True):
    """``published`` is a port or a range of the host such as ``8000-8010`` (empty: any free one), ``host_ip`` an address of the host."""

    target: int
    published: str = ""
    host_ip: str = ""
    protocol: str = "tcp"
    mode: str = "ingress"
    name: str = ""
    app_protocol: str = ""


class ServiceNetwork(Strict, frozen=True, kw_only=True):
    """How a service is on one network."""

    aliases: tuple[str, ...] = ()
    ipv4_address: str = ""
    ipv6_address: str = ""
    link_local_ips: tuple[str, ...] = ()
    mac_address: str = ""
    driver_opts: dict[str, str] = {}
    interface_name: str = ""
    priority: int = 0
    gw_priority: int = 0


class BindOptions(Strict, frozen=True, kw_only=True):
    """What is said of a bind; ``create_host_path`` makes a missing directory of the host."""

    propagation: str = ""
    create_host_path: bool = False
    recursive: str = ""
    selinux: str = ""


class VolumeOptions(Strict, frozen=True, kw_only=True):
    """What is said of a volume's mount; ``subpath`` is a path in the volume."""

    nocopy: bool = False
    subpath: str = ""
    labels: dict[str, str] = {}


class TmpfsOptions(Strict, frozen=True, kw_only=True):
    """What is said of a tmpfs; ``mode`` are permission bits."""

    size: Bytes = Bytes(0)
    mode: int = 0


class ImageOptions(Strict, frozen=True, kw_only=True):
    """What is said of an image's mount."""

    subpath: str = ""


class ServiceVolume(Strict, frozen=True, kw_only=True):
    """One mount at the container path ``target``; ``source`` is an absolute host path, the key of a volume of this project, or an image."""

    type: Literal["bind", "volume", "tmpfs", "image", "npipe", "cluster"]
    target: str = ""
    source: str = ""
    read_only: bool = False
    consistency: str = ""
    bind: BindOptions | None = None
    volume: VolumeOptions | None = None
    tmpfs: TmpfsOptions | None = None
    image: ImageOptions | None = None


class FileReference(Strict, frozen=True, kw_only=True):
    """A secret or config in a service; ``source`` is its key in the project, ``target`` a container path (relative: below /run/secrets or /)."""

    source: str
    target: str = ""
    uid: str = ""
    gid: str = ""
    mode: int | None = None


class Healthcheck(Strict, frozen=True, kw_only=True):
    """As an image's HEALTHCHECK; 0 and None are the defaults."""

    test: tuple[str, ...] = ()
    disable: bool = False
    interval: Nanoseconds = Nanoseconds(0)
    timeout: Nanoseconds = Nanoseconds(0)
    retries: int | None = None
    start_period: Nanoseconds = Nanoseconds(0)
    start_interval: Nanoseconds = Nanoseconds(0)


class Dependency(Strict, frozen=True, kw_only=True):
    """What has to be before a service starts."""

    condition: Literal["service_started", "service_healthy", "service_completed_successfully"] = "service_started"
    restart: bool = False
    required: bool = True


class UpdateConfig(Strict, frozen=True, kw_only=True):
    """How replicas are replaced; ``parallelism`` 0 is all at once."""

    parallelism: int = 1
    delay: Nanoseconds = Nanoseconds(0)
    failure_action: Literal["pause", "continue", "rollback"] = "pause"
    monitor: Nanoseconds = Nanoseconds(5_000_000_000)
    max_failure_ratio: float = 0.0
    order: Literal["stop-first", "start-first"] = "stop-first"


class DeployRestartPolicy(Strict, frozen=True, kw_only=True):
    """When a replica that ended is started again; ``max_attempts`` None is for ever."""

    condition: Literal["none", "on-failure", "any"] = "any"
    delay: Nanoseconds = Nanoseconds(0)
    max_attempts: int | None = None
    window: Nanoseconds = Nanoseconds(0)


class ResourceAmounts(Strict, frozen=True, kw_only=True):
    """``cpus`` is a number of processors."""

    cpus: float = 0.0
    memory: Bytes = Bytes(0)
    pids: int = 0
    devices: tuple[dict[str, Any], ...] = ()
    generic_resources: tuple[dict[str, Any], ...] = ()


class Resources(Strict, frozen=True, kw_only=True):
    """What a replica may take, and what is held back for it."""

    limits: ResourceAmounts = ResourceAmounts()
    reservations: ResourceAmounts = ResourceAmounts()


class Placement(Strict, frozen=True, kw_only=True):
    """Where replicas run; there is one machine here."""

    constraints: tuple[str, ...] = ()
    preferences: tuple[dict[str, str], ...] = ()
    max_replicas_per_node: int = 0


class Deploy(Strict, frozen=True, kw_only=True):
    """How a service is run many times; ``replicas`` None where the file does not say."""

    mode: str = "replicated"
    replicas: int | None = None
    endpoint_mode: str = ""
    labels: dict[str, str] = {}
    update_config: UpdateConfig | None = None
    rollback_config: UpdateConfig | None = None
    resources: Resources = Resources()
    restart_policy: DeployRestartPolicy | None = None
    placement: Placement = Placement()


class Autoscale(Strict, frozen=True, kw_only=True):
    """``x-bulle-autoscale``: between ``min`` and ``max`` replicas, so that each uses about ``cpu`` percent of its processors (of one where it has
    no limit) or ``memory`` bytes; 0: not looked at."""

    min: int = 1
    max: int
    cpu: float = 0.0
    memory: Bytes = Bytes(0)


class BuildSecret(FileReference, frozen=True, kw_only=True):
    """A secret that a build may read."""


class Build(Strict, frozen=True, kw_only=True):
    """How a service's image is built; ``context`` is an absolute host path or an address, ``dockerfile`` a path in it or an absolute one."""

    context: str = ""
    dockerfile: str = ""
    dockerfile_inline: str = ""
    args: dict[str, str | None] = {}
    additional_contexts: dict[str, str] = {}
    target: str = ""
    tags: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    network: str = ""
    platforms: tuple[str, ...] = ()
    cache_from: tuple[str, ...] = ()
    cache_to: tuple[str, ...] = ()
    no_cache: bool = False
    pull: bool = False
    privileged: bool = False
    secrets: tuple[BuildSecret, ...] = ()
    ssh: tuple[str, ...] = ()
    extra_hosts: tuple[str, ...] = ()
    shm_size: Bytes = Bytes(0)
    ulimits: dict[str, Any] = {}
    isolation: str = ""
    entitlements: tuple[str, ...] = ()
    provenance: str = ""
    sbom: str = ""


class WatchRule(Strict, frozen=True, kw_only=True):
    """One rule of ``develop.watch``; ``path`` is an absolute host path, ``target`` a container path."""

    path: str
    action: Literal["rebuild", "sync", "restart", "sync+restart", "sync+exec"]
    target: str = ""
    ignore: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    initial_sync: bool = False
    exec: Hook | None = None


class Develop(Strict, frozen=True, kw_only=True):
    """What ``compose watch`` does."""

    watch: tuple[WatchRule, ...] = ()


class Hook(Strict, frozen=True, kw_only=True):
    """A command that is run in a container after its start or before its stop."""

    command: tuple[str, ...]
    user: str = ""
    privileged: bool = False
    working_dir: str = ""
    environment: dict[str, str | None] = {}


class Ulimit(Strict, frozen=True, kw_only=True):
    """A soft and a hard limit, or the same for both; -1 is none."""

    soft: int
    hard: int


class Logging(Strict, frozen=True, kw_only=True):
    """Where the output goes."""

    driver: str = ""
    options: dict[str, str] = {}
