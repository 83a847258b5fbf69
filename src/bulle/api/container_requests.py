"""What a client asks of a new container: Docker's documents as structs, and what they come to as :class:`~bulle.model.container.ContainerOptions`.

Nothing that is asked for is dropped in silence: what Bulle has not is refused with a sentence. Docker Engine API, ContainerCreate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from bulle.api.mount_requests import MountRequest, mount_option
from bulle.api.network_requests import EndpointRequest, NetworkingRequest, PortRequest, exposed, extra_host, port_mappings
from bulle.errors import InvalidInput, Unsupported
from bulle.model.container import ContainerOptions, mount_fields
from bulle.model.network import NetworkOption
from bulle.model.quantities import size_bytes
from bulle.model.run_plan import DeviceLimit, ResourceLimit
from bulle.model.volume import MountOption, parse_volume

ISOLATION_LABEL = "bulle.isolation"
_APART = ("none", "host")


class _Document(msgspec.Struct, rename="pascal"):
    pass


class HealthRequest(_Document):
    """``Healthcheck``; durations in nanoseconds."""

    test: list[str] | None = None
    interval: int = 0
    timeout: int = 0
    retries: int = 0
    start_period: int = 0
    start_interval: int = 0


class RestartRequest(_Document):
    """``RestartPolicy``."""

    name: str = ""
    maximum_retry_count: int = 0


class LogRequest(_Document):
    """``LogConfig``."""

    type: str = ""
    config: dict[str, str] | None = None


class LimitRequest(_Document):
    """One of ``Ulimits``."""

    name: str
    soft: int = 0
    hard: int = 0


class WeightRequest(_Document):
    """One of ``BlkioWeightDevice``."""

    path: str
    weight: int = 0


class RateRequest(_Document):
    """One of the rates of devices."""

    path: str
    rate: int = 0


class HostConfig(_Document):
    """``HostConfig``: what of it is known here; what else there is must be empty."""

    binds: list[str] | None = None
    log_config: LogRequest | None = None
    network_mode: str = ""
    port_bindings: dict[str, list[PortRequest] | None] | None = None
    restart_policy: RestartRequest | None = None
    auto_remove: bool = False
    volumes_from: list[str] | None = None
    mounts: list[MountRequest] | None = None
    cap_add: list[str] | None = None
    cap_drop: list[str] | None = None
    cgroupns_mode: str = ""
    dns: list[str] | None = None
    dns_options: list[str] | None = None
    dns_search: list[str] | None = None
    extra_hosts: list[str] | None = None
    ipc_mode: str = ""
    oom_score_adj: int = 0
    pid_mode: str = ""
    privileged: bool = False
    publish_all_ports: bool = False
    readonly_rootfs: bool = False
    security_opt: list[str] | None = None
    storage_opt: dict[str, str] | None = None
    tmpfs: dict[str, str] | None = None
    uts_mode: str = msgspec.field(default="", name="UTSMode")
    userns_mode: str = ""
    shm_size: int = 0
    runtime: str = ""
    isolation: str = ""
    cpu_shares: int = 0
    memory: int = 0
    nano_cpus: int = 0
    cgroup_parent: str = ""
    blkio_weight: int = 0
    blkio_weight_device: list[WeightRequest] | None = None
    blkio_device_read_bps: list[RateRequest] | None = None
    blkio_device_write_bps: list[RateRequest] | None = None
    blkio_device_read_iops: list[RateRequest] | None = msgspec.field(default=None, name="BlkioDeviceReadIOps")
    blkio_device_write_iops: list[RateRequest] | None = msgspec.field(default=None, name="BlkioDeviceWriteIOps")
    cpu_period: int = 0
    cpu_quota: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    devices: list[Any] | None = None
    device_cgroup_rules: list[str] | None = None
    device_requests: list[Any] | None = None
    group_add: list[str] | None = None
    links: list[str] | None = None
    memory_reservation: int = 0
    memory_swap: int = 0
    memory_swappiness: int | None = None
    oom_kill_disable: bool | None = None
    init: bool | None = None
    pids_limit: int | None = None
    sysctls: dict[str, str] | None = None
    ulimits: list[LimitRequest] | None = None
    masked_paths: list[str] | None = None
    readonly_paths: list[str] | None = None


class CreateRequest(_Document):
    """The body of ContainerCreate."""

    image: str = ""
    hostname: str = ""
    user: str = ""
    tty: bool = False
    open_stdin: bool = False
    exposed_ports: dict[str, Any] | None = None
    env: list[str] | None = None
    cmd: list[str] | str | None = None
    healthcheck: HealthRequest | None = None
    volumes: dict[str, Any] | None = None
    working_dir: str = ""
    entrypoint: list[str] | str | None = None
    network_disabled: bool = False
    mac_address: str = ""
    labels: dict[str, str] | None = None
    stop_signal: str = ""
    stop_timeout: int | None = None
    host_config: HostConfig | None = None
    networking_config: NetworkingRequest | None = None


def options_of(request: CreateRequest, *, name: str, platform: str, publish_addresses: tuple[str, ...], bridges: bool = True) -> ContainerOptions:
    """The options that a request comes to. Raises InvalidInput, Unsupported.

    Without ``bridges`` what clients ask for by default, a bridge, is whatever there is.
    """
    host = request.host_config or HostConfig()
    _refuse_unknown(host)
    labels = dict(request.labels or {})
    isolation = host.isolation or labels.get(ISOLATION_LABEL, "")
    return ContainerOptions(
        image=request.image,
        command=_words(request.cmd) or (),
        entrypoint=_words(request.entrypoint),
        name=name.removeprefix("/"),
        environment=tuple(one for one in request.env or () if "=" in one),
        working_directory=request.working_dir,
        user=request.user,
        hostname=request.hostname,
        isolation="" if isolation == "default" else isolation,
        labels=labels,
        terminal=request.tty,
        interactive=request.open_stdin,
        auto_remove=host.auto_remove,
        stop_signal=request.stop_signal,
        stop_timeout_s=request.stop_timeout,
        read_only=host.readonly_rootfs,
        privileged=host.privileged,
        user_namespace=host.userns_mode,
        cap_add=tuple(host.cap_add or ()),
        cap_drop=tuple(host.cap_drop or ()),
        security_options=_security(host),
        volumes_from=tuple(host.volumes_from or ()),
        init=bool(host.init),
        pull="never",
        platform=platform,
        restart_policy=_restart(host.restart_policy),
        shm_bytes=host.shm_size,
        storage_bytes=_storage(host.storage_opt or {}),
        oom_score_adj=host.oom_score_adj or None,
        publish_addresses=publish_addresses,
        log_driver=host.log_config.type if host.log_config else "",
        log_options=tuple((host.log_config.config or {}).items()) if host.log_config else (),
        **_health(request.healthcheck),
        **limits_of(host),
        **_mounts(request, host),
        **_network(request, host, bridges),
    )


def alone(request: CreateRequest) -> bool:
    """Whether it asks for no network."""
    return request.network_disabled or (request.host_config is not None and request.host_config.network_mode == "none")


def _words(given: list[str] | str | None) -> tuple[str, ...] | None:
    """A command as a list or as one word; an empty list says nothing."""
    if isinstance(given, str):
        return (given,)
    return tuple(given) if given else None


_UNKNOWN = {
    "devices": "--device", "device_cgroup_rules": "--device-cgroup-rule", "device_requests": "--gpus", "group_add": "--group-add",
    "links": "--link", "sysctls": "--sysctl", "cgroup_parent": "--cgroup-parent",
}  # fmt: skip
_ONLY = {
    "ipc_mode": ("--ipc", ("", "private", "shareable", "none")),
    "pid_mode": ("--pid", ("", "private")),
    "uts_mode": ("--uts", ("", "private")),
    "cgroupns_mode": ("--cgroupns", ("", "private")),
    "runtime": ("--runtime", ("", "runc", "io.containerd.runc.v2")),
}


def _refuse_unknown(host: HostConfig) -> None:
    for field, flag in _UNKNOWN.items():
        if getattr(host, field):
            raise Unsupported(flag, host.isolation or "container", "leave it out")
    for field, (flag, known) in _ONLY.items():
        if (value := getattr(host, field)) not in known:
            raise Unsupported(f"{flag} {value}", host.isolation or "container", "leave it out")


def _security(host: HostConfig) -> tuple[str, ...]:
    options = tuple(host.security_opt or ())
    if host.masked_paths == [] and host.readonly_paths == [] and not host.privileged:
        return (*options, "systempaths=unconfined")  # the command line of Docker says it so
    if host.masked_paths or host.readonly_paths:
        raise Unsupported("MaskedPaths and ReadonlyPaths of your own", host.isolation or "container", "leave them out, or empty")
    return options


def _restart(policy: RestartRequest | None) -> str:
    if policy is None or not policy.name:
        return ""
    return f"{policy.name}:{policy.maximum_retry_count}" if policy.maximum_retry_count else policy.name


def _storage(options: Mapping[str, str]) -> int:
    for key in options:
        if key != "size":
            raise InvalidInput(f"unknown storage option {key!r}", "", "the only one is size")
    try:
        return size_bytes(options["size"]) if "size" in options else 0
    except ValueError as error:
        raise InvalidInput("invalid storage option", str(error)) from None


def _health(health: HealthRequest | None) -> dict[str, Any]:
    if health is None:
        return {}
    if health.test and health.test[0] == "NONE":
        return {"no_healthcheck": True}
    return {
        "health_test": tuple(health.test or ()),
        "health_interval_ns": health.interval,
        "health_timeout_ns": health.timeout,
        "health_retries": health.retries,
        "health_start_period_ns": health.start_period,
        "health_start_interval_ns": health.start_interval,
    }


def limits_of(host: HostConfig) -> dict[str, Any]:
    """The limits, as fields of the options."""
    return {
        "memory_bytes": host.memory,
        "memory_swap_bytes": host.memory_swap,
        "memory_reservation_bytes": host.memory_reservation,
        "memory_swappiness": None if host.memory_swappiness in (None, -1) else host.memory_swappiness,
        "oom_kill_disable": bool(host.oom_kill_disable),
        "nano_cpus": host.nano_cpus,
        "cpu_shares": host.cpu_shares,
        "cpu_quota_us": host.cpu_quota,
        "cpu_period_us": host.cpu_period,
        "cpuset_cpus": host.cpuset_cpus,
        "cpuset_mems": host.cpuset_mems,
        "pids_limit": max(host.pids_limit or 0, 0),
        "blkio_weight": host.blkio_weight,
        "limits": tuple(ResourceLimit(one.name, one.soft, one.hard) for one in host.ulimits or ()),
        "device_limits": tuple(_device_limits(host)),
    }


def _device_limits(host: HostConfig) -> Iterator[DeviceLimit]:
    for weight in host.blkio_weight_device or ():
        yield DeviceLimit("weight", weight.path, weight.weight)
    for rate in host.blkio_device_read_bps or ():
        yield DeviceLimit("read_bps", rate.path, rate.rate)
    for rate in host.blkio_device_write_bps or ():
        yield DeviceLimit("write_bps", rate.path, rate.rate)
    for rate in host.blkio_device_read_iops or ():
        yield DeviceLimit("read_iops", rate.path, rate.rate)
    for rate in host.blkio_device_write_iops or ():
        yield DeviceLimit("write_iops", rate.path, rate.rate)


def _mounts(request: CreateRequest, host: HostConfig) -> dict[str, Any]:
    wanted = [*map(parse_volume, host.binds or ()), *map(mount_option, host.mounts or ())]
    taken = {one.target for one in wanted}
    wanted += [MountOption(kind="volume", target=path) for path in request.volumes or () if path not in taken]
    return mount_fields(wanted, (host.tmpfs or {}).items())


def _network(request: CreateRequest, host: HostConfig, bridges: bool) -> dict[str, Any]:
    mode = "none" if request.network_disabled else "" if host.network_mode == "default" else host.network_mode
    endpoints = dict((request.networking_config.endpoints_config if request.networking_config else None) or {})
    first = endpoints.pop(host.network_mode, None) or (endpoints.pop("bridge", None) if mode in ("", "bridge") else None)
    apart = mode in _APART or mode.startswith("container:")
    networks: list[NetworkOption] = []
    if not apart:
        asked = [(mode, first)] if mode or first else []
        networks = [(one or EndpointRequest()).option(name or "bridge") for name, one in (*asked, *endpoints.items())]
        if networks and request.mac_address and not networks[0].mac:
            networks[0] = msgspec.structs.replace(networks[0], mac=request.mac_address.lower())
    if not bridges and networks in ([], [NetworkOption("bridge")]):
        networks = []
    names = [one.name for one in networks]
    return {
        "network": mode if apart else (names[0] if names else ""),
        "networks": () if len(networks) == 1 and networks[0] == NetworkOption(names[0]) else tuple(networks),
        "ports": tuple(port_mappings(host.port_bindings or {})),
        "publish_all": host.publish_all_ports,
        "expose": tuple(exposed(request.exposed_ports or {})),
        "dns": tuple(host.dns or ()),
        "dns_search": tuple(one for one in host.dns_search or () if one != "."),
        "dns_options": tuple(host.dns_options or ()),
        "extra_hosts": tuple(map(extra_host, host.extra_hosts or ())),
    }
