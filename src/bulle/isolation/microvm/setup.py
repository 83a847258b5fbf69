"""What a machine is made of, opened on the host before anything of it runs: kernel, ramdisk, disks, programs, and the files that say how it fares.

Everything is a descriptor by then: the shepherd and the hypervisor never see a path of the host.
"""

from __future__ import annotations

import hashlib
import math
import os
import platform
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
from msgspec.structs import replace

from bulle.errors import BulleError, InvalidInput
from bulle.isolation.microvm import checkpoint, disks, emulator, sandbox, template
from bulle.isolation.microvm.accelerator import Accelerator, choose
from bulle.isolation.microvm.agent_program import agent_program
from bulle.isolation.microvm.checkpoint import Beginning
from bulle.isolation.microvm.guest import Files, common_steps
from bulle.isolation.microvm.initial_ramdisk import initial_ramdisk
from bulle.isolation.microvm.kernel import GuestKernel, GuestKernels
from bulle.isolation.microvm.machine import Disk, Machine
from bulle.isolation.microvm.modules import ModuleTree
from bulle.isolation.microvm.record import RECORD_NAME, usable_memory_bytes
from bulle.isolation.microvm.remembered import remembered
from bulle.isolation.microvm.sessions import listen
from bulle.isolation.microvm.template import Template, identity
from bulle.isolation.root_filesystem import identity_files
from bulle.model.run_plan import RunPlan
from bulle.version import VERSION

_MOST_UNASKED = 4  # processors of a guest for which nothing was said
_DISKS = "virtio_blk"
_FILE_SYSTEMS = ("erofs", "overlay", "ext4")
_OF_A_PROCESSOR = ("vendor_id", "cpu family", "model", "stepping", "flags", "vmx flags", "Features", "CPU ", "isa", "mvendorid", "marchid")
_KERNEL_BYTES = 96 << 20
_OWN_BYTES = 192 << 20
"""What the control group allows beside the guest's memory: the hypervisor's own, the shepherd, the file server."""


@dataclass(frozen=True)
class Setup:
    """See the module. Descriptors are those of the process that called :func:`prepare`, and of its children."""

    program: str
    architecture: str
    accelerator: Literal["kvm", "tcg"]
    hypervisor: str
    kernel_release: str
    kernel_fd: int
    initial_ramdisk_fd: int
    memory_bytes: int
    processors: int
    disks: tuple[Disk, ...]
    layer_count: int
    files: Files
    listener: socket.socket
    record_fd: int
    output_fd: int
    host_tsc_khz: int
    small: bool
    traced: bool
    file_server: str
    kind: dict[str, str]
    template: Template | None = None
    generic: Template | None = None
    disks_later: bool = False
    beginning: Beginning | None = None
    notes: tuple[str, ...] = ()

    @property
    def start(self) -> str:
        """How the machine begins."""
        if self.beginning is not None:
            return "kept"
        if self.template is not None and self.template.known is not None:
            return "template"
        return "generic" if self.generic is not None and self.generic.known is not None else "cold"

    @property
    def begun_with(self) -> Template | None:
        """The template that the machine begins with."""
        return next((one for one in (self.template, self.generic) if one is not None and one.known is not None), None)

    @property
    def scratch(self) -> int:
        """The disk that is written to."""
        return self.disks[-1].descriptor

    @property
    def devices(self) -> tuple[str, ...]:
        """What the hypervisor needs of the host's /dev."""
        return ("kvm",) if self.accelerator == "kvm" else ()

    @property
    def descriptors(self) -> tuple[int, ...]:
        """All that the shepherd must keep open."""
        own = (self.kernel_fd, self.initial_ramdisk_fd, self.listener.fileno(), self.record_fd, self.output_fd)
        begun = self.template.descriptors if self.template is not None else (self.beginning.state,) if self.beginning is not None else ()
        generic = self.generic.descriptors if self.generic is not None else ()
        return (*own, *(disk.descriptor for disk in self.disks), *begun, *generic)

    def file_server_arguments(self, listener: int, directory: str) -> list[str]:
        """virtiofsd's: it is in a sandbox already."""
        if "/qemu/" in self.file_server:  # the one in C, which came with QEMU
            options = (f"source={directory}", "sandbox=namespace", "xattr", "posix_acl", "cache=auto", "timeout=0")
            return [f"--fd={listener}", *(word for option in options for word in ("-o", option))]
        return [f"--fd={listener}", f"--shared-dir={directory}", "--sandbox=none", "--xattr", "--posix-acl", "--cache=auto", "--announce-submounts"]


def why_unusable(cache: Path | None) -> tuple[str, str]:
    """Why no guest of the host's own architecture can run here, and what would mend it; two empty texts where one can."""
    try:
        emulator.find(platform.machine(), cache)
        agent_program(platform.machine())
    except BulleError as error:
        return f"{error.brief}: {error.details}" if error.details else error.brief, error.resolution
    return "", ""


def file_server() -> str:
    """The host path of virtiofsd. Raises Unavailable."""
    return sandbox.program(["virtiofsd"], "install it: apt install virtiofsd (qemu-system-common before Debian 13), or dnf install virtiofsd")


def guest_memory_bytes(plan: RunPlan) -> int:
    """The guest's memory. A limit is what the container may use of it; its kernel and agent come on top."""
    limit = plan.resources.memory_bytes
    return limit + -limit % 4096 + _KERNEL_BYTES if limit else usable_memory_bytes(plan)


def host_memory_bytes(plan: RunPlan) -> int:
    """The limit of the control group, where the user limits memory; 0 for none."""
    return plan.resources.memory_bytes and guest_memory_bytes(plan) + _OWN_BYTES


def prepare(plan: RunPlan, cache: Path | None, opened: ExitStack) -> Setup:
    """Open everything; ``opened`` closes it in this process. Raises Unavailable, NotFound, StorageFull, InvalidInput."""
    wanted = plan.guest
    assert wanted is not None and cache is not None

    def keep(descriptor: int) -> int:
        opened.callback(os.close, descriptor)
        return descriptor

    parts = _parts(plan, cache, keep)
    shape, kind, directory = parts.shape, parts.kind, plan.state_host_path
    files = Files({os.path.basename(path): Path(path).read_text() for path in identity_files(plan)})
    beginning = checkpoint.take(plan.root.writable_host_path, kind, len(shape.networks), opened)
    kept, notes = _template(plan, cache, shape, kind, files, opened) if wanted.start == "template" and beginning is None else (None, ())
    generic = _generic(plan, cache, kind, opened) if parts.disks_later and kept is not None and kept.known is None else None
    listener = listen(directory)
    opened.callback(listener.close)
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    return Setup(
        program=parts.program.program,
        architecture=shape.architecture,
        accelerator=parts.accelerator.name,
        hypervisor=parts.accelerator.hypervisor,
        kernel_release=parts.kernel.release,
        kernel_fd=keep(os.open(parts.kernel.image, os.O_RDONLY | os.O_CLOEXEC)),
        initial_ramdisk_fd=keep(os.open(parts.ramdisk, os.O_RDONLY | os.O_CLOEXEC)),
        memory_bytes=guest_memory_bytes(plan),
        processors=_processors(plan, shape.accelerator),
        disks=shape.disks,
        layer_count=len(plan.root.layers),
        files=files,
        listener=listener,
        record_fd=keep(os.open(f"{directory}/{RECORD_NAME}", flags, 0o600)),
        output_fd=keep(os.open(f"{directory}/machine.log", flags | os.O_APPEND, 0o600)),
        host_tsc_khz=parts.accelerator.host_tsc_khz,
        small=shape.small,
        traced=bool(wanted.trace),
        file_server=file_server() if shape.shares else "",
        kind=kind,
        template=kept,
        generic=generic,
        disks_later=parts.disks_later,
        beginning=beginning,
        notes=notes,
    )


def require_kept(plan: RunPlan, cache: Path, directory: str) -> None:
    """Raise what a machine of this plan would that begins with the memory and the disk in a host directory: Conflict, Unavailable, BulleError."""
    with ExitStack() as opened:

        def keep(descriptor: int) -> int:
            opened.callback(os.close, descriptor)
            return descriptor

        parts = _parts(replace(plan, root=replace(plan.root, writable_host_path=directory)), cache, keep)
        checkpoint.examine(directory, parts.kind, len(parts.shape.networks))


@dataclass(frozen=True)
class _Parts:
    """What a machine of a plan is made of here; ``shape`` has no descriptors but those of its disks, ``kind`` is that of :mod:`checkpoint`."""

    program: emulator.Emulator
    accelerator: Accelerator
    kernel: GuestKernel
    ramdisk: Path
    disks_later: bool
    shape: Machine
    kind: dict[str, str]


def _parts(plan: RunPlan, cache: Path, keep: Callable[[int], int]) -> _Parts:
    wanted = plan.guest
    assert wanted is not None
    architecture = wanted.architecture or platform.machine()
    program = emulator.find(architecture, cache, user_network=plan.network.mode == "user")
    accelerator = choose(architecture, wanted.accelerator or ("tcg" if wanted.trace else ""), cache)
    if wanted.trace and accelerator.name != "tcg":
        raise InvalidInput("--trace shows an emulated processor", "KVM runs the guest on this machine's own", "leave --accel out, or say tcg")
    kernel = GuestKernels(cache / "kernels").find(architecture, wanted.kernel, wanted.modules)
    shape = Machine(
        architecture, accelerator.name, -1, -1, guest_memory_bytes(plan), -1, disks=_disks(plan, keep),
        networks=(None,) * len(plan.network.attachments) if plan.network.mode == "own" else (None,) * (plan.network.mode == "user"),  # type: ignore[arg-type]
        shares=(None,) * any(mount.kind != "tmpfs" for mount in plan.mounts),  # type: ignore[arg-type]
        small=program.microvm and kernel.plain,
    )  # fmt: skip
    ramdisk, disks_later = _ramdisk(plan, kernel, shape, cache)
    kind = {
        "QEMU": f"{program.version} {program.digest}",
        "the kernel": f"{kernel.release} {kernel.image.name}",
        "the guest's agent": _digest(ramdisk, cache),
        **_kind(plan, shape, accelerator.host_tsc_khz),
    }
    return _Parts(program, accelerator, kernel, ramdisk, disks_later, shape, kind)


class _Digest(msgspec.Struct, frozen=True):
    digest: str


def _digest(path: Path, cache: Path) -> str:
    """Of a file's content, which is read once."""

    def find() -> _Digest:
        with path.open("rb") as file:
            return _Digest(hashlib.file_digest(file, "sha256").hexdigest())

    return remembered(cache, f"digest-{template.key_of(identity(str(path)))}.json", _Digest, find).digest


def _kind(plan: RunPlan, shape: Machine, host_tsc_khz: int) -> dict[str, str]:
    """All that the state of a machine depends on beside its programs, by names that a user knows: one that begins with it must have the same."""
    devices = [(disk.serial, disk.read_only, disk.volatile, os.fstat(disk.descriptor).st_size) for disk in shape.disks]
    return {
        "the processor": f"{shape.architecture} {shape.accelerator} {_host_processor(shape)} {host_tsc_khz}",
        "Bulle": VERSION,
        "memory": str(shape.memory_bytes),
        "processors": str(_processors(plan, shape.accelerator)),
        "the board": shape.board,
        "networks": f"{len(shape.networks)} {plan.network.mode}",
        "directories of the host": "shown" if shape.shares else "none",
        "disks": f"{devices}",
        "layers": " ".join(layer.diff_id for layer in plan.root.layers),
    }


def _template(
    plan: RunPlan, cache: Path, shape: Machine, kind: dict[str, str], files: Files, opened: ExitStack
) -> tuple[Template | None, tuple[str, ...]]:
    """The template that the machine begins with, or is; and a note where it boots without."""
    assert plan.guest is not None
    if shape.shares or plan.guest.trace:
        why = "it shows directories of the host, whose server keeps no state" if shape.shares else "its instructions are shown"
        return None, (f"the machine was booted, not begun from a template: {why}",)
    # What it was started for last time is written down; so nothing was, and its disk is as it was made.
    is_fresh = not os.path.exists(f"{plan.state_host_path}/{RECORD_NAME}")
    disk = shape.disks[-1].descriptor if is_fresh else -1
    common = common_steps(plan, files) if is_fresh else []
    key = template.key_of([kind, is_fresh, plan.root.volatile, plan.security.privileged, common])
    found = template.prepare(cache / "templates", key, shape.memory_bytes, plan.state_host_path, disk, opened)
    return found, () if found is not None else ("the machine was booted: the template that it would begin with is just being made",)


def _generic(plan: RunPlan, cache: Path, kind: dict[str, str], opened: ExitStack) -> Template | None:
    """The one for machines of all images with as many layers."""
    same = {name: value for name, value in kind.items() if name not in ("layers", "disks")}
    key = template.key_of([same, "generic", len(plan.root.layers), plan.security.privileged])
    return template.prepare_generic(cache / "templates", key, opened)


def _ramdisk(plan: RunPlan, kernel: GuestKernel, shape: Machine, cache: Path) -> tuple[Path, bool]:
    """With what the machine's devices need; and whether its disks are found when the agent is told, because a generic template knows none."""
    assert plan.guest is not None
    can = plan.guest.start == "template" and not shape.shares and _DISKS in shape.modules
    later = can and kernel.modules is not None and ModuleTree(kernel.modules).is_file(_DISKS)
    modules = [name for name in (*shape.modules, *_FILE_SYSTEMS) if not later or name != _DISKS]
    agent = agent_program(shape.architecture).read_bytes()
    return initial_ramdisk(kernel, agent, modules, cache, later=[_DISKS] * later), later


def _host_processor(shape: Machine) -> str:
    """Under KVM a guest has this machine's processor, and so has its template. proc_cpuinfo(5), without what changes from one look to the next"""
    if shape.accelerator != "kvm":
        return ""
    lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.startswith(_OF_A_PROCESSOR))


def _processors(plan: RunPlan, accelerator: str) -> int:
    if plan.resources.nano_cpus:
        return math.ceil(plan.resources.nano_cpus / 10**9)
    return 1 if accelerator == "tcg" else min(len(os.sched_getaffinity(0)), _MOST_UNASKED)


def _disks(plan: RunPlan, keep: Callable[[int], int]) -> tuple[Disk, ...]:
    path = f"{plan.root.writable_host_path}/disk"
    attached = (*disks.open_layers(plan.root.layers), disks.open_scratch(path, volatile=plan.root.volatile))
    for disk in attached:
        keep(disk.descriptor)
    return attached
