"""What a user asks of a container, and what is known of one: pure data.

:class:`ContainerOptions` is the typed form of ``bulle run``'s flags and of the library's keywords; it is kept in the database as it was asked.
:class:`ContainerState` is what the monitor writes to ``state.json`` in the container's directory.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from bulle.model.lifecycle import Health
from bulle.model.network import NetworkOption, PortMapping
from bulle.model.run_plan import DeviceLimit, ResourceLimit
from bulle.model.volume import MountOption

Status = Literal["created", "running", "restarting", "exited", "dead", "removing"]


class VolumeOption(msgspec.Struct, frozen=True):
    """``-v host_path:container_path[:ro]``: a bind of an absolute host path, or the volume of that name."""

    host_path: str
    container_path: str
    read_only: bool = False


def mount_fields(wanted: Iterable[MountOption], tmpfs: Iterable[tuple[str, str]] = ()) -> dict[str, Any]:
    """The fields of :class:`ContainerOptions` that hold these mounts: a plain bind stays a :class:`VolumeOption`, a tmpfs a path and options."""
    volumes: list[VolumeOption] = []
    mounts: list[MountOption] = []
    memory = list(tmpfs)
    for one in wanted:
        plain = MountOption(kind=one.kind, source=one.source, target=one.target, read_only=one.read_only)
        if one.kind == "bind" and one == plain:
            volumes.append(VolumeOption(one.source, one.target, one.read_only))
        elif one.kind == "tmpfs" and not one.read_only:
            memory.append((one.target, ",".join(one.tmpfs_options)))
        else:
            mounts.append(one)
    return {"volumes": tuple(volumes), "mounts": tuple(mounts), "tmpfs": tuple(memory)}


class WholeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of a machine with a system of its own (``bulle vm create``), beside what is asked of every container.

    ``disk_bytes`` is the size of its disk (0: as the image's), ``cdrom`` a host path, ``boot`` of disk, cdrom, network and the URL of what is
    fetched over the network (none: what it has, the disk first). ``user``, ``ssh_keys``, ``password_hash`` (crypt(5)) and ``run`` (shell lines)
    are cloud-init's to do, or all of ``user_data``.
    """

    disk_bytes: int = 0
    cdrom: str = ""
    firmware: Literal["bios", "uefi", ""] = ""
    boot: tuple[str, ...] = ()
    vnc: bool = False
    user: str = ""
    ssh_keys: tuple[str, ...] = ()
    password_hash: str = ""
    run: tuple[str, ...] = ()
    user_data: str = ""


class ContainerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be asked of ``create`` and ``run``; names and meanings are Docker's, units are in the names."""

    image: str
    command: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    name: str = ""
    environment: tuple[str, ...] = ()
    working_directory: str = ""
    user: str = ""
    volumes: tuple[VolumeOption, ...] = ()
    tmpfs: tuple[tuple[str, str], ...] = ()
    read_only: bool = False
    hostname: str = ""
    isolation: str = ""
    accelerator: Literal["", "kvm", "tcg"] = ""
    kernel: str = ""
    trace: Literal["", "instructions"] = ""
    start: Literal["", "cold", "template"] = ""
    """How a virtual machine begins; empty for cold."""
    network: str = ""
    user_namespace: str = ""
    privileged: bool = False
    hardened: bool = False
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    security_options: tuple[str, ...] = ()
    limits: tuple[ResourceLimit, ...] = ()
    memory_bytes: int = 0
    memory_swap_bytes: int = 0
    nano_cpus: int = 0
    cpu_shares: int = 0
    cpuset_cpus: str = ""
    pids_limit: int = 0
    shm_bytes: int = 0
    init: bool = False
    terminal: bool = False
    interactive: bool = False
    auto_remove: bool = False
    stop_signal: str = ""
    stop_timeout_s: int | None = None
    labels: dict[str, str] = {}
    pull: Literal["missing", "always", "never"] = "missing"
    platform: str = ""
    restart_policy: str = ""
    """``no``, ``on-failure[:n]``, ``always`` or ``unless-stopped``; empty for no."""
    timeout_s: float = 0
    idle_timeout_s: float = 0
    health_command: str = ""
    health_test: tuple[str, ...] = ()
    """The check in an image's form (``CMD`` and arguments, or ``CMD-SHELL`` and a line), in place of ``health_command``."""
    health_interval_ns: int = 0
    health_timeout_ns: int = 0
    health_retries: int = 0
    health_start_period_ns: int = 0
    health_start_interval_ns: int = 0
    health_on_failure: Literal["none", "restart", "stop", "kill"] = "none"
    no_healthcheck: bool = False
    log_driver: str = ""
    log_options: tuple[tuple[str, str], ...] = ()
    idle: bool = False
    systemd: Literal["true", "false", "always"] = "true"
    memory_reservation_bytes: int = 0
    memory_swappiness: int | None = None
    oom_kill_disable: bool = False
    cpu_quota_us: int = 0
    cpu_period_us: int = 0
    cpuset_mems: str = ""
    blkio_weight: int = 0
    device_limits: tuple[DeviceLimit, ...] = ()
    storage_bytes: int = 0
    """How large the writable layer may become; 0 for no limit."""
    oom_score_adj: int | None = None
    networks: tuple[NetworkOption, ...] = ()
    """The networks that it is on, where more is to be said of them than the name in ``network``, or there are several."""
    ports: tuple[PortMapping, ...] = ()
    publish_all: bool = False
    publish_addresses: tuple[str, ...] = ()
    """Where ports are published that name no address of the host; none: where the configuration says."""
    expose: tuple[str, ...] = ()
    """Ports such as ``80/tcp`` that are published by ``publish_all``, beside the image's."""
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    extra_hosts: tuple[tuple[str, str], ...] = ()
    """Names and addresses for /etc/hosts; the address ``host-gateway`` is the host's on the container's first network."""
    egress: str = ""
    """``none``, ``internet``, ``allow:LIST`` or ``all``; empty for what the network says."""
    mounts: tuple[MountOption, ...] = ()
    volumes_from: tuple[str, ...] = ()
    """Names of containers, each perhaps with ``:ro``, whose binds and volumes this one has as well."""
    whole: WholeOptions | None = None
    """A machine with a system of its own; ``image`` is then one that holds a disk, or empty."""


class LimitChanges(msgspec.Struct, frozen=True, kw_only=True):
    """What ``update`` changes: fields of :class:`ContainerOptions`; None leaves one as it is, 0 (or "") takes the limit away."""

    memory_bytes: int | None = None
    memory_swap_bytes: int | None = None
    memory_reservation_bytes: int | None = None
    nano_cpus: int | None = None
    cpu_shares: int | None = None
    cpu_quota_us: int | None = None
    cpu_period_us: int | None = None
    cpuset_cpus: str | None = None
    cpuset_mems: str | None = None
    pids_limit: int | None = None
    blkio_weight: int | None = None
    restart_policy: str | None = None


class ContainerState(msgspec.Struct, frozen=True, kw_only=True):
    """One moment of a container's life, as its monitor wrote it.

    ``pid`` and ``pid_start_ticks`` name the workload's first process on the host (a pid without its start time proves nothing), ``boot_id`` the
    boot in which they mean anything. Times are nanoseconds since the epoch. ``exit_code`` is 0-255 (128+n for signal n), or -1 where nobody could
    learn it. ``restarting`` is one whose monitor waits before it starts it again, ``restart_delay_s`` how long.
    """

    status: Status = "created"
    pid: int = 0
    pid_start_ticks: int = 0
    boot_id: str = ""
    monitor_pid: int = 0
    monitor_start_ticks: int = 0
    started_at_ns: int = 0
    finished_at_ns: int = 0
    exit_code: int = 0
    out_of_memory: bool = False
    error: str = ""
    isolation_obtained: str = ""
    restart_count: int = 0
    restart_delay_s: float = 0
    health: Health | None = None

    @property
    def active(self) -> bool:
        """Whether it runs, or will again by itself: what may not be removed or pruned, and can be stopped."""
        return self.status in ("running", "restarting")


class ExecOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be asked of ``exec``; ``rows`` and ``columns`` are the size that its terminal begins with (0: unknown)."""

    command: tuple[str, ...]
    environment: tuple[str, ...] = ()
    working_directory: str = ""
    user: str = ""
    terminal: bool = False
    interactive: bool = False
    privileged: bool = False
    rows: int = 0
    columns: int = 0
