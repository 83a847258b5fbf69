"""What the guest's agent is told: the plan of a run as steps, and its commands as executions. Pure: nothing here talks to anybody.

Paths that begin with ``/`` are in the agent's own root (the initial ramdisk), others below the container's root, where they are resolved so that
nothing in an image leads out of it. The mounts are those of a container (``isolation/inside.py``), made by the guest's own kernel.
docs/vm-agent.md; runtime specification, config-linux.md "Default Filesystems"
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from bulle.errors import InvalidInput
from bulle.isolation.execution import DEFAULT_PATH
from bulle.isolation.identity import Identity
from bulle.isolation.inside import DEVICE_LINKS, DEVICES
from bulle.isolation.microvm import NAME_SERVER  # noqa: F401
from bulle.isolation.microvm.agent_protocol import Execution
from bulle.isolation.microvm.disks import SCRATCH_OPTIONS
from bulle.linux import capabilities
from bulle.linux.mount import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, MS_REC, MS_REMOUNT
from bulle.model.run_plan import Mount, Process, RunPlan

Step = tuple[str, ...]

OWN_NEXT_TO_IT = "169.254.53.2/30"
"""The guest's address beside :data:`NAME_SERVER`."""
_LOCKED = MS_NOSUID | MS_NODEV | MS_NOEXEC
_TMPFS_FLAGS = {"ro": MS_RDONLY, "nosuid": MS_NOSUID, "nodev": MS_NODEV, "noexec": MS_NOEXEC}
_TMPFS_CLEARS = {"rw": MS_RDONLY, "suid": MS_NOSUID, "dev": MS_NODEV, "exec": MS_NOEXEC}
GROUP = "/groups/container"
JOIN_GROUP: Step = ("?cgroup", GROUP)
_JOINED = f"{GROUP}/bulle-exec"
"""Where commands join a container that may manage its group: once that hands controllers down, it can hold no processes itself. As for containers."""
_RESERVE_BYTES = 32 << 10
_MANAGED = ("cpu", "cpuset", "io", "hugetlb", "misc", "rdma")


@dataclass(frozen=True)
class Disks:
    """Device nodes in the guest: for each layer, the lowest first, its index and its tar; and the one that is written to."""

    layers: tuple[tuple[str, str], ...]
    scratch: str


@dataclass(frozen=True)
class Interface:
    """One network interface of the guest, as its kernel calls it and as it is to be called; addresses have the prefix of their network. ``mac`` is
    given where it must be told."""

    found_as: str
    name: str
    addresses: tuple[str, ...]
    gateways: tuple[str, ...] = ()
    mtu: int = 0
    mac: str = ""


@dataclass(frozen=True)
class Files:
    """What the engine wrote for /etc: contents by name."""

    contents: dict[str, str] = field(default_factory=dict)


def layer_steps(disks: Disks) -> list[Step]:
    """The image's layers at /layers: nothing of this is the container's own."""
    steps: list[Step] = []
    for number, (index, tar) in enumerate(disks.layers):
        steps += [("mkdir", f"/layers/{number}", "755"), ("mount", index, f"/layers/{number}", "erofs", str(MS_RDONLY), f"device={tar}")]
    return steps


def root_steps(plan: RunPlan, disks: Disks) -> list[Step]:
    """The container's root at /root: an overlay of the layers, which are mounted, and the writable disk."""
    lower = ":".join(f"/layers/{number}" for number in reversed(range(len(disks.layers))))
    steps: list[Step] = [
        ("mkdir", "/scratch", "755"),
        ("mount", disks.scratch, "/scratch", "ext4", "0", SCRATCH_OPTIONS),
        ("mkdir", "/scratch/upper", "755"),
        ("mkdir", "/scratch/work", "755"),
        ("mkdir", "/root", "755"),
    ]
    options = f"lowerdir={lower},upperdir=/scratch/upper,workdir=/scratch/work,redirect_dir=off,metacopy=off,index=off"
    return [
        *steps,
        # A full disk has no room for what overlay makes when it is mounted, and would be read-only from then on: some is kept, out of reach.
        ("?write", "/scratch/reserve", "", "create"),
        ("mount", "overlay", "/root", "overlay", str(_attributes(plan)), options + (",volatile" if plan.root.volatile else "")),
        ("?write", "/scratch/reserve", "0" * _RESERVE_BYTES, "create"),
    ]


def _attributes(plan: RunPlan) -> int:
    """Of mounts that show what an image or the host brings: nodes of devices stay closed. mount(2)"""
    return 0 if plan.security.privileged else MS_NODEV


def machine_steps(plan: RunPlan, *, emulated: bool) -> list[Step]:
    """What the guest's kernel is told first, the same for all containers of a kind: groups, settings."""
    steps: list[Step] = [
        ("mkdir", "/groups", "755"),
        ("?mount", "cgroup2", "/groups", "cgroup2", str(_LOCKED), ""),
        ("?mkdir", GROUP, "755"),
        ("?write", "/groups/cgroup.subtree_control", "+pids"),
        ("?write", "/groups/cgroup.subtree_control", "+memory"),
    ]
    if plan.security.privileged:
        steps += [("?write", "/groups/cgroup.subtree_control", f"+{name}") for name in _MANAGED]
    # Notices reach the console: what a filter refused is one.
    steps.append(("?write", "/proc/sys/kernel/printk", "6"))
    if emulated:
        # Compiling a filter of system calls takes longer than it ever saves: what it always allows is not asked for.
        steps.append(("?write", "/proc/sys/net/core/bpf_jit_enable", "0"))
    # In a machine of its own every user may listen on any port and send echo requests, as in a container with a network of its own.
    for name, value in (("ip_unprivileged_port_start", "0"), ("ping_group_range", "0 2147483647")):
        steps.append(("?write", f"/proc/sys/net/ipv4/{name}", value))
    return [*steps, ("mkdir", "/files", "755"), ("link", "lo", "up")]


def own_steps(plan: RunPlan, files: Files, *, volumes: bool, clock_ns: int, entropy: bytes) -> list[Step]:
    """What it is told of this container before anything of the image runs: the time, randomness, limits, files."""
    steps: list[Step] = [("clock", str(clock_ns // 10**9), str(clock_ns % 10**9)), ("entropy", entropy.hex())]
    if plan.resources.memory_bytes:
        steps += [("write", f"{GROUP}/memory.max", str(plan.resources.memory_bytes)), ("?write", f"{GROUP}/memory.swap.max", "0")]
    if plan.resources.memory_reservation_bytes:
        steps.append(("?write", f"{GROUP}/memory.low", str(plan.resources.memory_reservation_bytes)))
    if plan.resources.pids_limit:
        steps.append(("write", f"{GROUP}/pids.max", str(plan.resources.pids_limit)))
    steps += [("write", f"/files/{name}", content, "create") for name, content in files.contents.items()]
    if volumes:
        steps += [("mkdir", "/volumes", "755"), ("mount", "volumes", "/volumes", "virtiofs", str(_attributes(plan)), "")]
    return steps


def network_steps(interfaces: Sequence[Interface], *, asks_host: bool) -> list[Step]:
    """Addresses and routes; the first interface with a gateway of a family leads further. ``asks_host``: names are asked of :data:`NAME_SERVER`."""
    steps: list[Step] = []
    led: set[bool] = set()
    # Two might want each other's names.
    steps += [("link", one.found_as, "name", f"cable{number}") for number, one in enumerate(interfaces) if one.found_as != one.name]
    steps += [("link", f"cable{number}", "name", one.name) for number, one in enumerate(interfaces) if one.found_as != one.name]
    for number, interface in enumerate(interfaces):
        if interface.mac:
            steps.append(("link", interface.name, "mac", interface.mac))
        if interface.mtu:
            steps.append(("link", interface.name, "mtu", str(interface.mtu)))
        steps += [("address", interface.name, address) for address in interface.addresses]
        if asks_host and number == 0:
            steps.append(("address", interface.name, OWN_NEXT_TO_IT))
        steps.append(("link", interface.name, "up"))
        for gateway in interface.gateways:
            if (":" in gateway) not in led:
                led.add(":" in gateway)
                steps.append(("route", interface.name, gateway))
    return steps


def joining_steps(plan: RunPlan) -> list[Step]:
    """What a command that joins the container does first."""
    if plan.security.privileged:
        return [("?mkdir", _JOINED, "755"), ("?cgroup", _JOINED), *_adjusted(plan)]
    return [JOIN_GROUP, *_adjusted(plan)]


def _adjusted(plan: RunPlan) -> list[Step]:
    return [] if plan.oom_score_adj is None else [("write", "/proc/self/oom_score_adj", str(plan.oom_score_adj))]


def common_steps(plan: RunPlan, files: Files) -> list[Step]:
    """In the container's own namespaces, before its root is entered: what containers have that differ in nothing but their own names and command."""
    return [
        JOIN_GROUP,
        *_devices(plan),
        *_kernel_views(plan),
        *([] if plan.security.privileged else _hidden(plan)),
        *_identity(files),
    ]


def warming_steps(plan: RunPlan) -> list[Step]:
    """What the command is in, read once, so that machines that begin later find it in their memory: one of these may be it."""
    environment = dict(item.partition("=")[::2] for item in plan.process.environment)
    name = next(iter(plan.process.arguments), "")
    places = [""] if "/" in name else environment.get("PATH", DEFAULT_PATH).split(":")
    return [("?warm", _relative(f"{place}/{name}")) for place in places if name]


def container_steps(plan: RunPlan) -> list[Step]:
    """After :func:`common_steps`: what the user asked for."""
    return [
        *_adjusted(plan),
        ("hostname", plan.hostname),
        *([("file", "dev/console", "600")] if plan.process.terminal else []),  # the agent shows the terminal there
        *_user_mounts(plan.mounts),
        ("mkdir", _relative(plan.process.working_directory or "/"), "755"),
        *([("mount", "", ".", "", str(MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NODEV), "")] if plan.root.read_only else []),
    ]


def execution(
    wanted: Process, user: Identity, filter_program: bytes, environment: dict[str, str], steps: Sequence[Step], *, first: bool
) -> Execution:
    """A command of the plan for the agent. ``environment`` is complete."""
    mask = sum(1 << capabilities.NUMBER[name] for name in wanted.capabilities)
    return Execution(
        arguments=wanted.arguments,
        environment=tuple(f"{key}={value}" for key, value in environment.items()),
        directory=wanted.working_directory or "/",
        user_id=user.user_id,
        group_id=user.group_id,
        groups=user.groups,
        terminal=wanted.terminal,
        rows=wanted.rows,
        columns=wanted.columns,
        capabilities=mask,
        no_new_privileges=wanted.no_new_privileges,
        limits=tuple((_limit_number(one.name), one.soft, one.hard) for one in wanted.limits),
        seccomp=filter_program,
        stdin=not wanted.terminal,
        first=first,
        init=wanted.init,
        idle=wanted.idle,
        steps=tuple(steps),
        log_refusals=wanted.log_refusals,
    )


def _limit_number(name: str) -> int:
    number: int | None = getattr(resource, f"RLIMIT_{name.upper()}", None)
    if number is None:
        raise InvalidInput(f"no limit is called {name}", "", "see setrlimit(2) for names")
    return number


def _devices(plan: RunPlan) -> list[Step]:
    steps: list[Step] = [("mkdir", "dev", "755", "itself"), ("mount", "tmpfs", "dev", "tmpfs", str(MS_NOSUID), "mode=755,size=65536k")]
    steps += [("mknod", f"dev/{name}", "666", "c", str(major), str(minor)) for name, (major, minor) in DEVICES.items()]
    steps += [("symlink", target, f"dev/{name}") for name, target in DEVICE_LINKS.items()]
    for name, kind, flags, data in (
        ("pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,mode=0620,ptmxmode=0666,gid=5"),
        ("shm", "tmpfs", _LOCKED, f"mode=1777,size={plan.shm_bytes}"),
        ("mqueue", "mqueue", _LOCKED, ""),
    ):
        # Not every kernel has message queues.
        steps += [("mkdir", f"dev/{name}", "755"), ("?mount" if kind == "mqueue" else "mount", kind, f"dev/{name}", kind, str(flags), data)]
    return steps


def _kernel_views(plan: RunPlan) -> list[Step]:
    read_only = 0 if plan.security.privileged else MS_RDONLY
    return [
        ("mkdir", "proc", "755", "itself"),
        ("mount", "proc", "proc", "proc", str(_LOCKED), ""),
        ("mkdir", "sys", "755", "itself"),
        ("mount", "sysfs", "sys", "sysfs", str(_LOCKED | read_only), ""),
        ("?mount", "cgroup2", "sys/fs/cgroup", "cgroup2", str(_LOCKED | read_only), ""),
    ]


def _hidden(plan: RunPlan) -> Iterable[Step]:
    """Files are covered by a device, directories by an empty file system; of the two steps for each path only one can succeed."""
    for path in plan.security.read_only_paths:
        name = _relative(path)
        yield "?mount", name, name, "", str(MS_BIND | MS_REC), ""
        yield "?mount", "", name, "", str(MS_BIND | MS_REMOUNT | MS_RDONLY | _LOCKED), ""
    for path in plan.security.masked_paths:
        yield "?mount", "/dev/null", _relative(path), "", str(MS_BIND), ""
        yield "?mount", "tmpfs", _relative(path), "tmpfs", str(MS_RDONLY | _LOCKED), "size=0k,mode=755"


def _identity(files: Files) -> Iterable[Step]:
    for name in files.contents:
        yield "target", f"/files/{name}", f"etc/{name}"
        yield "mount", f"/files/{name}", f"etc/{name}", "", str(MS_BIND), ""


def _user_mounts(mounts: Sequence[Mount]) -> Iterable[Step]:
    """Parents before children; what is shown of the host stands at /volumes by its place in the plan."""
    numbered = sorted(enumerate(mounts), key=lambda item: item[1].container_path.count("/"))
    for number, wanted in numbered:
        target = _relative(wanted.container_path)
        if target == ".":
            raise InvalidInput("a volume cannot cover the container's /", "", "mount it at a directory below /")
        if target.split("/")[0] == "proc":
            raise InvalidInput(f"nothing can be mounted at {wanted.container_path}", "it is inside /proc", "use another path")
        if wanted.kind == "tmpfs":
            flags, data = _tmpfs(wanted)
            yield "mkdir", target, "755"
            yield "mount", "tmpfs", target, "tmpfs", str(flags), data
            continue
        # The host shows it writable or not, whatever the guest does to its own mount.
        yield "target", f"/volumes/{number}/shown", target
        yield "mount", f"/volumes/{number}/shown", target, "", str(MS_BIND | MS_REC), ""


def _tmpfs(wanted: Mount) -> tuple[int, str]:
    flags, options = _LOCKED | (MS_RDONLY if wanted.read_only else 0), {"mode": "1777"}
    for option in wanted.options:
        key, _, value = option.partition("=")
        if key in _TMPFS_FLAGS and not value:
            flags |= _TMPFS_FLAGS[key]
        elif key in _TMPFS_CLEARS and not value:
            flags &= ~_TMPFS_CLEARS[key]
        else:
            options[key] = value
    return flags, ",".join(f"{key}={value}" if value else key for key, value in options.items())


def _relative(path: str) -> str:
    return os.path.normpath(f"/{path}").lstrip("/") or "."
