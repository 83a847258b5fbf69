"""The plan of one run: a frozen value that says everything that a driver has to do, and nothing about how.

The engine composes it, ``--dry-run`` prints it, a driver realises it, the monitor keeps it beside the container so that a failed step can be
replayed. The runtime specification's ``config.json`` is one serialisation of it. Paths are named by whose they are: ``host_path`` on the host,
``container_path`` inside the container. It holds no open descriptor and does no I/O.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from bulle.model.lifecycle import Lifecycle
from bulle.model.network import Attachment, Egress, PortMapping


class IdMapping(msgspec.Struct, frozen=True):
    """One line of uid_map and gid_map: ``size`` ids from ``container_id`` inside are ``host_id`` and up outside. user_namespaces(7)."""

    container_id: int
    host_id: int
    size: int


class LayerMount(msgspec.Struct, frozen=True):
    """One read-only layer and how it comes to stand at ``host_path``.

    ``kind`` is ``erofs`` (file-backed: index + tar as device), ``loop`` (the same through two loop devices), ``directory`` (already extracted at
    ``host_path``, nothing to mount) or ``disk`` (a guest's kernel mounts index and tar, nothing stands at ``host_path``). ``index_path`` and
    ``tar_path`` are host paths, empty for ``directory``.
    """

    kind: Literal["erofs", "loop", "directory", "disk"]
    diff_id: str
    host_path: str
    index_path: str = ""
    tar_path: str = ""


class RootFilesystem(msgspec.Struct, frozen=True):
    """The container's ``/``: read-only layers (lowest first), and a directory of the host that holds ``upper`` and ``work``.

    ``host_binds`` are directories of the host shown read-only at the same path (the built-in ``host`` image shows ``/usr``). ``volatile`` skips the
    sync at unmount (for containers that are removed when they exit). With ``size_bytes`` the two are in a file system of that size, in a file there.
    """

    layers: tuple[LayerMount, ...]
    writable_host_path: str
    read_only: bool = False
    volatile: bool = False
    host_binds: tuple[str, ...] = ()
    size_bytes: int = 0

    @property
    def memory_host_path(self) -> str:
        """Where the memory of processes lies that the next start goes on from, if there is any."""
        return f"{self.writable_host_path}/memory"

    @property
    def lower_host_paths(self) -> list[str]:
        """The layers as overlayfs wants them, topmost first and each once: it refuses one twice, and the topmost hides all that another shows."""
        return list(dict.fromkeys(layer.host_path for layer in reversed(self.layers)))


class Mount(msgspec.Struct, frozen=True):
    """One mount that the user asked for, at ``container_path``: a bind of ``host_path``, a tmpfs with ``options``, or the files of an image.

    ``volume`` is the name of the volume that it shows. One of a limited size (``size_bytes``) is a file system in the file ``disk`` below
    ``host_path``. ``subpath`` is resolved below what is shown, links and all. ``propagation`` says whether later mounts of the host arrive
    (``rslave``); ``recursive`` is :class:`bulle.model.volume.MountOption`'s. An image is named by ``image``, and shown by ``layer_host_paths``, the
    lowest first.
    """

    kind: Literal["bind", "tmpfs", "image"]
    container_path: str
    host_path: str = ""
    read_only: bool = False
    options: tuple[str, ...] = ()
    volume: str = ""
    subpath: str = ""
    size_bytes: int = 0
    propagation: str = "rprivate"
    recursive: Literal["enabled", "disabled", "writable", "readonly"] = "enabled"
    image: str = ""
    layer_host_paths: tuple[str, ...] = ()


class ResourceLimit(msgspec.Struct, frozen=True):
    """One ``--ulimit``: ``name`` as in setrlimit(2) without ``RLIMIT_``, lower case; -1 is unlimited."""

    name: str
    soft: int
    hard: int


class Process(msgspec.Struct, frozen=True):
    """What is executed, as whom and with which privileges.

    ``arguments[0]`` is looked up in the container's PATH, inside the container's root. ``user`` is Docker's ``name|uid[:group|gid]``, resolved
    inside the container's root. ``working_directory`` is a container path, created when missing. ``idle`` executes nothing but the small init, which
    waits for what is executed beside it.
    """

    arguments: tuple[str, ...]
    environment: tuple[str, ...] = ()
    working_directory: str = "/"
    user: str = ""
    terminal: bool = False
    capabilities: tuple[str, ...] = ()
    no_new_privileges: bool = False
    limits: tuple[ResourceLimit, ...] = ()
    init: bool = False
    rows: int = 0
    columns: int = 0
    log_refusals: bool = False
    """Have the kernel log every system call that the filter refuses."""
    idle: bool = False


class DeviceLimit(msgspec.Struct, frozen=True):
    """A weight (10 to 1000) or a rate a second (bytes, operations) for input and output on one block device, named by its host path."""

    kind: Literal["weight", "read_bps", "write_bps", "read_iops", "write_iops"]
    host_path: str
    value: int


class Resources(msgspec.Struct, frozen=True):
    """Limits that a control group enforces.

    0 means no limit. Sizes in bytes, ``memory_swap_bytes`` is memory plus swap as in Docker (-1 unlimited). ``memory_swappiness`` goes from 0 to 100,
    None is the machine's. A quota is processor time in each period, both in microseconds.
    """

    memory_bytes: int = 0
    memory_swap_bytes: int = 0
    nano_cpus: int = 0
    cpu_shares: int = 0
    cpuset_cpus: str = ""
    pids_limit: int = 0
    memory_reservation_bytes: int = 0
    memory_swappiness: int | None = None
    oom_kill_disable: bool = False
    cpu_quota_us: int = 0
    cpu_period_us: int = 0
    cpuset_mems: str = ""
    blkio_weight: int = 0
    device_limits: tuple[DeviceLimit, ...] = ()


class Security(msgspec.Struct, frozen=True):
    """What the workload may not do.

    ``id_mappings`` hold for groups too unless ``group_mappings`` are given. ``seccomp`` is ``default``, ``unconfined`` or the text of a profile in
    Docker's JSON. ``user_namespace`` is ``own`` or ``host``.
    """

    privileged: bool = False
    user_namespace: Literal["own", "host"] = "own"
    id_mappings: tuple[IdMapping, ...] = ()
    group_mappings: tuple[IdMapping, ...] = ()
    seccomp: str = "default"
    masked_paths: tuple[str, ...] = ()
    read_only_paths: tuple[str, ...] = ()


class Network(msgspec.Struct, frozen=True):
    """How the workload is attached to networks.

    ``none`` is loopback only, ``host`` the host's own, ``own`` a network namespace with one interface for each of ``attachments``, ``container`` that
    of the running container with the id ``container_id``. ``ports`` are what it publishes; ``dns`` servers that are asked for other names instead of
    the host's, ``search`` and ``dns_options`` stand in its resolv.conf; ``extra_hosts`` are lines of its /etc/hosts as ``(name, address)``.
    ``serves_names``: it is a name server itself, and needs port 53 on all its addresses. ``name_server`` is where the keeper answers it (empty: the
    usual loopback address). ``user`` is a guest's network made by its hypervisor, for ordinary users.
    """

    mode: Literal["none", "host", "own", "container", "user"] = "none"
    attachments: tuple[Attachment, ...] = ()
    ports: tuple[PortMapping, ...] = ()
    dns: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    extra_hosts: tuple[tuple[str, str], ...] = ()
    egress: Egress = Egress()
    container_id: str = ""
    serves_names: bool = False
    name_server: str = ""

    @property
    def names(self) -> list[str]:
        """The names of its networks."""
        return [attachment.network for attachment in self.attachments] if self.mode == "own" else [self.mode]


class ImageDisk(msgspec.Struct, frozen=True):
    """The disk that an image holds: a file (``format``) inside the tar of a layer (host path), from ``offset`` on. What is read from it has
    ``disk_bytes``."""

    tar_path: str
    offset: int
    file_bytes: int
    format: Literal["qcow2", "raw"]
    disk_bytes: int


class WholeMachine(msgspec.Struct, frozen=True):
    """A machine whose own firmware, boot loader and kernel start a system of its own; nothing of Bulle's is in it.

    ``boot`` says what is tried, in this order; what the network has for it is at ``boot_url``. Its disk begins as ``image``, or empty; ``cdrom`` is a
    host path. ``seed`` are the files of its NoCloud disk, which cloud-init reads. ``vnc``: its screen can be looked at.
    """

    firmware: Literal["bios", "uefi"] = "bios"
    boot: tuple[Literal["disk", "cdrom", "network"], ...] = ("disk",)
    image: ImageDisk | None = None
    cdrom: str = ""
    seed: dict[str, str] = {}
    vnc: bool = False
    boot_url: str = ""


class Guest(msgspec.Struct, frozen=True):
    """The machine of a guest beside what the limits of the plan say of it: its memory where that is not limited, the size of its disk for what is
    written, and what it is made with.

    ``accelerator`` is ``kvm`` or ``tcg`` (emulated) where one was asked for, else empty: the best there is. ``kernel`` is a host path, ``host``,
    ``debian`` or ``debian:SUITE``, ``modules`` a host path; empty: whatever there is. ``architecture`` as uname(1) says it (empty: the host's).
    ``trace`` is what an emulated processor does, said on the container's standard error. ``start``: booted, or begun from the memory of one like it.
    ``whole`` is one that has a system of its own in place of a container.
    """

    memory_bytes: int
    disk_bytes: int
    accelerator: Literal["", "kvm", "tcg"] = ""
    kernel: str = ""
    modules: str = ""
    architecture: str = ""
    trace: Literal["", "instructions"] = ""
    start: Literal["cold", "template"] = "cold"
    whole: WholeMachine | None = None


class LogSettings(msgspec.Struct, frozen=True):
    """Where the output is kept, and how much of it.

    ``driver`` is ``json-file`` (files in the container's directory), ``journald`` or ``none``. A file that reaches ``file_bytes`` is followed by
    another (0: it grows without an end), of which there are ``files`` at most; with ``compress`` all but the newest are gzip files. With
    ``buffer_bytes`` the container never waits for its log: so much may wait to be written, what comes then is dropped. ``attributes`` stand beside
    each message; ``fields`` are the journal's, whose socket is ``socket_host_path`` (empty: the usual one).
    """

    driver: Literal["json-file", "journald", "none"] = "json-file"
    file_bytes: int = 20_000_000
    files: int = 5
    compress: bool = False
    buffer_bytes: int = 0
    attributes: dict[str, str] = {}
    fields: dict[str, str] = {}
    socket_host_path: str = ""


class RunPlan(msgspec.Struct, frozen=True):
    """One run of one container, ready to be realised by the driver named ``isolation``.

    ``state_host_path`` is the container's own directory on the host (logs, FIFOs, hostname and hosts files). ``volume_layers`` are layers that
    ``mounts`` show or show parts of: they must stand at their ``host_path`` before it starts. ``systemd`` makes it a system container: the
    command is an init, which manages control groups of its own below the container's. ``oom_score_adj`` is how willingly the kernel ends its
    processes when memory runs out (-1000 to 1000; None: as the engine itself). ``platform`` (``linux/arm64``) is what its programs are made for
    where this machine's processor cannot run them by itself, else empty.
    """

    container_id: str
    isolation: str
    hostname: str
    state_host_path: str
    root: RootFilesystem
    process: Process
    mounts: tuple[Mount, ...] = ()
    volume_layers: tuple[LayerMount, ...] = ()
    resources: Resources = Resources()
    security: Security = Security()
    network: Network = Network()
    shm_bytes: int = 64 * 1024 * 1024
    stop_signal: str = "SIGTERM"
    stop_timeout_s: int = 10
    lifecycle: Lifecycle = Lifecycle()
    log: LogSettings = LogSettings()
    systemd: bool = False
    oom_score_adj: int | None = None
    guest: Guest | None = None
    platform: str = ""

    def describe(self) -> str:
        """The plan as indented JSON, the form that ``--dry-run`` prints."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode()
