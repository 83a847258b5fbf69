"""From what was asked to what will be done: one function composes the :class:`RunPlan` of a container from its options and its image.

Pure but for reading a seccomp profile that an option names. Defaults are Docker's unless docs/differences.md says otherwise.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from bulle.engine import system_containers
from bulle.engine.drivers import LEVELS
from bulle.engine.guests import guest_of
from bulle.engine.lifecycle import lifecycle
from bulle.engine.networking import network_of
from bulle.errors import InvalidInput, NotFound, Unsupported
from bulle.isolation.control_group_settings import check
from bulle.isolation.driver import Feature
from bulle.isolation.sized_layer import SMALLEST_BYTES
from bulle.linux import capabilities
from bulle.model.container import ContainerOptions, ExecOptions
from bulle.model.digest import Digest
from bulle.model.image import ExecutionConfig, Platform
from bulle.model.platform import is_native
from bulle.model.run_plan import (
    IdMapping,
    ImageDisk,
    LayerMount,
    Mount,
    Process,
    Resources,
    RootFilesystem,
    RunPlan,
    Security,
)  # fmt: skip

MASKED_PATHS = (
    "/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
    "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
)  # fmt: skip
READ_ONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SECURITY_OPTIONS = frozenset({"no-new-privileges", "apparmor", "label", "seccomp-log"})


class Base(msgspec.Struct, frozen=True):
    """What a container stands on: an image (``image_id``), or the layers of a build so far.

    ``writable`` is the host directory of its writable layer, by default inside its own. ``mounts`` and the ``volume_layers`` that they show come with
    the base; :mod:`bulle.engine.mounting` adds those of the options. ``disk`` is the one in the image of a whole machine.
    """

    layers: tuple[Digest, ...]
    config: ExecutionConfig = ExecutionConfig()
    image_id: str = ""
    host_binds: tuple[str, ...] = ()
    writable: str = ""
    mounts: tuple[Mount, ...] = ()
    volume_layers: tuple[LayerMount, ...] = ()
    platform: Platform = Platform()
    disk: ImageDisk | None = None


def compose(
    options: ContainerOptions,
    base: Base,
    *,
    container_id: str,
    directory: Path,
    layers: tuple[LayerMount, ...],
    id_mappings: tuple[IdMapping, ...],
    group_mappings: tuple[IdMapping, ...],
) -> RunPlan:
    """The plan of one container on the base's ``layers``. ``directory`` is its host directory.

    The mappings are used where it gets a user namespace of its own.
    """
    config = base.config
    isolation = options.isolation or "container"
    if isolation not in LEVELS:
        raise InvalidInput(f"there is no isolation level {isolation!r}", "", f"use one of {', '.join(LEVELS)}")
    own_users = has_own_users(options)
    root = RootFilesystem(
        layers,
        base.writable or str(directory / "root"),
        read_only=options.read_only or options.hardened,
        volatile=options.auto_remove,
        host_binds=base.host_binds,
        size_bytes=_storage(options) if isolation != "vm" else 0,
    )
    plan = RunPlan(
        container_id=container_id,
        isolation=isolation,
        hostname=hostname(options, container_id),
        state_host_path=str(directory),
        root=root,
        process=_process(options, config, container_id),
        mounts=(*(_of_host(base) if isolation == "vm" else ()), *base.mounts),
        volume_layers=base.volume_layers,
        resources=resources(options),
        security=_security(options, own_users, id_mappings, group_mappings),
        network=network_of(options, config),
        shm_bytes=options.shm_bytes or 64 << 20,
        stop_signal=signal_name(options.stop_signal or config.stop_signal or "SIGTERM"),
        stop_timeout_s=options.stop_timeout_s if options.stop_timeout_s is not None else config.stop_timeout or 10,
        lifecycle=lifecycle(options, config),
        oom_score_adj=_oom_score(options),
        guest=guest_of(options, base.platform, isolation, base.disk, container_id),
        platform="" if is_native(base.platform) else str(base.platform),
    )
    return system_containers.adapted(plan, options, config)


def _of_host(base: Base) -> tuple[Mount, ...]:
    """What the image ``host`` shows of this machine, as volumes: a guest has no other way to see files of it."""
    return tuple(Mount("bind", path, path, read_only=True) for path in base.host_binds)


def hostname(options: ContainerOptions, container_id: str) -> str:
    """What the container is called: as asked, as the host where it shares the host's network (or everything), else by its id."""
    if options.isolation == "chroot":
        if options.hostname:
            raise Unsupported(Feature.OWN_HOSTNAME.value, "chroot", "use --isolation container")
        return socket.gethostname()
    return options.hostname or (socket.gethostname() if options.network == "host" else container_id[:12])


def with_image(options: ContainerOptions, config: ExecutionConfig) -> ContainerOptions:
    """The options as they are kept and shown: with the labels, entrypoint and command of the image where they do not say otherwise."""
    entrypoint, command = options.entrypoint, options.command
    if entrypoint is None:
        entrypoint, command = config.entrypoint, command or config.cmd or ()
    return replace(options, labels={**(config.labels or {}), **options.labels}, entrypoint=entrypoint, command=command)


def has_own_users(options: ContainerOptions) -> bool:
    """Whether the container gets a user namespace of its own: always, except for root's --privileged and --userns=host, and bare private roots."""
    if options.user_namespace not in ("", "own", "host"):
        raise InvalidInput(f"--userns={options.user_namespace} is not known", "", "use host, or leave it out for a user namespace of its own")
    if options.isolation == "chroot":
        if options.user_namespace == "own":
            raise Unsupported(Feature.OWN_USERS.value, "chroot", "use --isolation container")
        return False
    if options.isolation == "vm":
        if options.user_namespace == "host":
            raise Unsupported("--userns=host", "vm", "leave it out: users of a guest are its kernel's own")
        return True  # that of the hypervisor
    if os.geteuid() != 0:
        if options.user_namespace == "host":
            raise Unsupported("--userns=host for an ordinary user", "container", "run it as root")
        return True
    return not (options.privileged or options.user_namespace == "host")


def exec_process(plan: RunPlan, options: ExecOptions) -> Process:
    """The process of an ``exec``: the container's own with what was asked changed."""
    own = plan.process
    return Process(
        arguments=options.command,
        environment=own.environment + options.environment,
        working_directory=options.working_directory or own.working_directory,
        user=options.user or own.user,
        terminal=options.terminal,
        capabilities=capabilities.known() if options.privileged else own.capabilities,
        no_new_privileges=own.no_new_privileges and not options.privileged,
        limits=own.limits,
        log_refusals=own.log_refusals,
        rows=options.rows,
        columns=options.columns,
    )


def with_window(plan: RunPlan, rows: int, columns: int) -> RunPlan:
    """The plan with a terminal that begins with this size: the command's first question is how wide it may write."""
    return replace(plan, process=replace(plan.process, rows=rows, columns=columns))


def with_environment(plan: RunPlan, variables: Sequence[str]) -> RunPlan:
    """The plan with more variables in its command's environment."""
    return replace(plan, process=replace(plan.process, environment=(*plan.process.environment, *variables)))


def signal_name(text: str) -> str:
    """``TERM``, ``SIGTERM`` or ``15`` as ``SIGTERM``."""
    upper = text.upper()
    if len(text) > 20:
        raise InvalidInput(f"invalid signal: {text[:20]}…", "", "see `kill -l` for names")
    try:
        if upper.isdigit():
            return signal.Signals(int(upper)).name
        return signal.Signals[upper if upper.startswith("SIG") else f"SIG{upper}"].name
    except (ValueError, KeyError) as error:
        if (upper.isdigit() and signal.SIGRTMIN <= int(upper) <= signal.SIGRTMAX) or upper.removeprefix("SIG").startswith("RTMIN+"):
            return upper
        raise InvalidInput(f"invalid signal: {text}", "", "see `kill -l` for names") from error


def signal_number(name: str) -> int:
    """The number of a name that :func:`signal_name` gave."""
    if name.isdigit():
        return int(name)
    if "RTMIN+" in name:
        return signal.SIGRTMIN + int(name.rpartition("+")[2])
    return int(signal.Signals[name])


def _process(options: ContainerOptions, config: ExecutionConfig, container_id: str) -> Process:
    entrypoint = config.entrypoint or ()
    command = config.cmd or ()
    if options.entrypoint is not None:
        entrypoint, command = tuple(part for part in options.entrypoint if part), ()
    arguments = system_containers.arguments(options, (*entrypoint, *(options.command or command)))
    if not arguments:
        raise InvalidInput("no command specified", "neither the image nor the command line names one", "add a command after the image")
    environment = dict(item.partition("=")[::2] for item in (DEFAULT_PATH, f"HOSTNAME={hostname(options, container_id)}"))
    for item in (*(config.env or ()), *options.environment):
        key, _, value = item.partition("=")
        if not key or "\0" in item:
            raise InvalidInput(f"invalid environment variable: {item!r}", "", "write NAME=value")
        environment[key] = value
    dropped = ("ALL", *options.cap_drop) if options.hardened else options.cap_drop
    directory = options.working_directory or config.working_dir or "/"
    if not directory.startswith("/"):
        raise InvalidInput(f"the working directory {directory!r} is invalid", "it must be an absolute path", "begin it with /")
    return Process(
        arguments=arguments,
        environment=tuple(f"{key}={value}" for key, value in environment.items()),
        working_directory=directory,
        user=options.user or config.user,
        terminal=options.terminal,
        capabilities=tuple(capabilities.parse_caps(options.cap_add, dropped, options.privileged)),
        no_new_privileges=options.hardened or _no_new_privileges(options),
        limits=options.limits,
        init=options.init,
        log_refusals="seccomp-log" in options.security_options,
        idle=options.idle,
    )


def _storage(options: ContainerOptions) -> int:
    if options.storage_bytes and options.storage_bytes < SMALLEST_BYTES:
        why = f"the smallest is {SMALLEST_BYTES >> 20} MiB"
        raise InvalidInput(f"the writable layer cannot be of {options.storage_bytes} bytes", why, "give --storage-opt size= a larger one")
    return options.storage_bytes


def _oom_score(options: ContainerOptions) -> int | None:
    if options.oom_score_adj is not None and not -1000 <= options.oom_score_adj <= 1000:
        raise InvalidInput(f"invalid value {options.oom_score_adj}, range for oom score adj is [-1000, 1000]")
    return options.oom_score_adj


def _no_new_privileges(options: ContainerOptions) -> bool:
    wanted = False
    for option in options.security_options:
        key, _, value = option.replace("=", ":", 1).partition(":")
        if key == "no-new-privileges":
            if value not in ("", "true", "false"):
                raise InvalidInput(f"invalid --security-opt {option}", "", "use no-new-privileges[:true|false]")
            wanted = value != "false"
    return wanted


def _security(options: ContainerOptions, own_users: bool, id_mappings: tuple[IdMapping, ...], group_mappings: tuple[IdMapping, ...]) -> Security:
    seccomp, hidden = "unconfined" if options.privileged else "default", not options.privileged
    for option in options.security_options:
        key, _, value = option.replace(":", "=", 1).partition("=") if "=" not in option else option.partition("=")
        if key == "seccomp":
            seccomp = _profile(value)
        elif key == "systempaths" and value == "unconfined":
            hidden = False
        elif key not in _SECURITY_OPTIONS or (key in ("apparmor", "label") and value not in ("unconfined", "disable")):
            known = "use no-new-privileges, seccomp=FILE|unconfined, seccomp-log or systempaths=unconfined"
            raise InvalidInput(f"invalid --security-opt {option}", "", known)
    return Security(
        privileged=options.privileged,
        user_namespace="own" if own_users else "host",
        id_mappings=id_mappings if own_users else (),
        group_mappings=group_mappings if own_users and group_mappings != id_mappings else (),
        seccomp=seccomp,
        masked_paths=MASKED_PATHS if hidden else (),
        read_only_paths=READ_ONLY_PATHS if hidden else (),
    )


def _profile(value: str) -> str:
    """``unconfined``, ``default``, JSON, or a host path of JSON."""
    if value in ("unconfined", "default", "default+socketcall") or value.lstrip().startswith("{"):
        return value
    if value == "builtin":
        return "default"
    try:
        return Path(value).read_text()
    except OSError as error:
        raise NotFound(f"the seccomp profile {value} cannot be read", os.strerror(error.errno or 0), "give a file, or unconfined") from error


def resources(options: ContainerOptions) -> Resources:
    """The limits that were asked for. Raises InvalidInput for those that cannot be."""
    if 0 < options.memory_bytes < 6 << 20:
        raise InvalidInput("the memory limit is too small", "the minimum is 6 MiB", "use --memory 6m or more")
    if options.memory_swap_bytes > 0 and options.memory_swap_bytes < options.memory_bytes:
        raise InvalidInput("the limit on memory plus swap is smaller than that on memory", "", "use a larger --memory-swap")
    if options.memory_swap_bytes and not options.memory_bytes:
        raise InvalidInput("--memory-swap needs --memory", "", "set --memory as well")
    if options.nano_cpus > (os.cpu_count() or 1) * 10**9:
        raise InvalidInput(f"--cpus {options.nano_cpus / 1e9:g} is out of range", f"this machine has {os.cpu_count()} processors", "ask for less")
    if options.nano_cpus < 0 or options.cpu_shares < 0 or options.memory_bytes < 0:
        raise InvalidInput("a limit is negative", "", "use a positive number")
    found = Resources(
        memory_bytes=options.memory_bytes,
        memory_swap_bytes=options.memory_swap_bytes,
        nano_cpus=options.nano_cpus,
        cpu_shares=options.cpu_shares,
        cpuset_cpus=options.cpuset_cpus,
        pids_limit=max(options.pids_limit, 0),
        memory_reservation_bytes=options.memory_reservation_bytes,
        memory_swappiness=options.memory_swappiness,
        oom_kill_disable=options.oom_kill_disable,
        cpu_quota_us=max(options.cpu_quota_us, 0),
        cpu_period_us=options.cpu_period_us,
        cpuset_mems=options.cpuset_mems,
        blkio_weight=options.blkio_weight,
        device_limits=options.device_limits,
    )
    check(found)
    return found
