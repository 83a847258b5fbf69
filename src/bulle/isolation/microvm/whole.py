"""What a machine with a system of its own is made of, opened on the host before it runs, and how QEMU is told: firmware, disks, cables, console,
screen.

Called by the driver and by the shepherd of such machines. Everything but the firmware's program is an open descriptor by then. Nothing is left
to QEMU's defaults. qemu(1); UEFI Platform Initialization Specification, for the two flash chips
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bulle.errors import InvalidInput, NotFound, Unavailable
from bulle.isolation.microvm import disk_formats, emulator, seed, sessions
from bulle.isolation.microvm.accelerator import choose
from bulle.isolation.microvm.cable import Cable
from bulle.isolation.microvm.qemu import SANDBOX, TRANSLATED_MIB
from bulle.isolation.microvm.record import RECORD_NAME, usable_memory_bytes
from bulle.model.run_plan import Guest, RunPlan, WholeMachine

VNC_SOCKET = "vnc.sock"
_DISK, _SEED, _VARIABLES = "disk", "seed.iso", "uefi-variables"
_FIRMWARE = {
    # The firmware and the state that a machine of it begins with, in Debian's packages ovmf and qemu-efi-aarch64, then in other distributions.
    "x86_64": (
        ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"), ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
        ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ),
    "aarch64": (("/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd"),),
}  # fmt: skip
_PACKAGES = {"x86_64": "ovmf", "aarch64": "qemu-efi-aarch64"}
_PROCESSOR = {
    # Without CMPXCHG16B: QEMU 7.2 now and then returns from it with broken flags, and ordinary kernels use what the processor says it has.
    "x86_64": "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+rdrand,-cx16",
    "aarch64": "cortex-a57",
}
_BOARD = {"x86_64": "q35,smm=off,vmport=off", "aarch64": "virt"}
_MAC = "52:54:00:12:34:56"


@dataclass(frozen=True)
class WholeSetup:
    """See the module. Descriptors are those of the process that called :func:`prepare`, and of its children."""

    program: str
    version: str
    architecture: str
    accelerator: Literal["kvm", "tcg"]
    hypervisor: str
    memory_bytes: int
    processors: int
    files: Mapping[str, int]
    """``disk``, ``image``, ``seed``, ``cdrom``, ``firmware``, ``variables``: those that it has."""
    listener: socket.socket
    screens: socket.socket | None
    record_fd: int
    output_fd: int
    notes: tuple[str, ...] = ()

    @property
    def devices(self) -> tuple[str, ...]:
        """What the hypervisor needs of the host's /dev."""
        return ("kvm",) if self.accelerator == "kvm" else ()

    @property
    def descriptors(self) -> tuple[int, ...]:
        """All that the shepherd must keep open."""
        return (self.listener.fileno(), *([self.screens.fileno()] if self.screens else ()), self.record_fd, self.output_fd, *self.files.values())


def make_files(plan: RunPlan) -> None:
    """In the container's new host directory: its disk, its seed, its firmware's variables. Raises Unavailable."""
    guest = plan.guest
    assert guest is not None and guest.whole is not None
    place = plan.root.writable_host_path
    with open(f"{place}/{_DISK}", "xb") as file:
        disk_formats.new_qcow2(file.fileno(), guest.disk_bytes)
    if guest.whole.seed:
        Path(place, _SEED).write_bytes(seed.image(guest.whole.seed))
    if guest.whole.firmware == "uefi":
        shutil.copyfile(firmware(guest.architecture or platform.machine())[1], f"{place}/{_VARIABLES}")
    for name in os.listdir(place):
        os.chmod(f"{place}/{name}", 0o600)


def grow_disk(plan: RunPlan, disk_bytes: int) -> None:
    """Make the disk of a machine that does not run larger. Raises InvalidInput."""
    descriptor = os.open(f"{plan.root.writable_host_path}/{_DISK}", os.O_RDWR | os.O_CLOEXEC)
    try:
        disk_formats.grow_qcow2(descriptor, disk_bytes)
    finally:
        os.close(descriptor)


def firmware(architecture: str) -> tuple[str, str]:
    """The host paths of UEFI for machines of an architecture: its program, and what its variables begin as. Raises Unavailable."""
    for pair in _FIRMWARE.get(architecture, ()):
        if all(os.path.exists(path) for path in pair):
            return pair
    package = _PACKAGES.get(architecture)
    mend = f"install Debian's package {package}" if package else "use another platform"
    raise Unavailable(f"there is no UEFI for machines of {architecture}", "its file is not installed", mend)


def prepare(plan: RunPlan, cache: Path | None, opened: ExitStack) -> WholeSetup:
    """Open everything; ``opened`` closes it in this process. Raises Unavailable, NotFound, InvalidInput."""
    guest = plan.guest
    assert guest is not None and guest.whole is not None and cache is not None
    architecture = guest.architecture or platform.machine()
    if architecture not in _BOARD:
        raise Unavailable(f"there are no whole machines of {architecture}", "", f"these can be had: {', '.join(_BOARD)}")
    program = emulator.find(architecture, cache, user_network=plan.network.mode == "user")
    accelerator = choose(architecture, guest.accelerator, cache)

    def keep(descriptor: int) -> int:
        opened.callback(os.close, descriptor)
        return descriptor

    directory = plan.state_host_path
    listener = sessions.listen(directory)
    opened.callback(listener.close)
    screens = None
    if guest.whole.vnc:
        screens = sessions.listen(directory, VNC_SOCKET, socket.SOCK_STREAM)
        opened.callback(screens.close)
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    return WholeSetup(
        program=program.program,
        version=program.version,
        architecture=architecture,
        accelerator=accelerator.name,
        hypervisor=accelerator.hypervisor,
        memory_bytes=usable_memory_bytes(plan),
        processors=max(-(-plan.resources.nano_cpus // 10**9), 1),
        files={name: keep(_opened(path, writable)) for name, path, writable in _paths(plan, guest, guest.whole, architecture)},
        listener=listener,
        screens=screens,
        record_fd=keep(os.open(f"{directory}/{RECORD_NAME}", flags, 0o600)),
        output_fd=keep(os.open(f"{directory}/machine.log", flags | os.O_APPEND, 0o600)),
    )


def _paths(plan: RunPlan, guest: Guest, whole: WholeMachine, architecture: str) -> list[tuple[str, str, bool]]:
    place = plan.root.writable_host_path
    found = [("disk", f"{place}/{_DISK}", True)]
    if whole.image is not None:
        found.append(("image", whole.image.tar_path, False))
    if whole.seed:
        found.append(("seed", f"{place}/{_SEED}", False))
    if whole.cdrom:
        found.append(("cdrom", whole.cdrom, False))
    if whole.firmware == "uefi":
        found += [("firmware", firmware(architecture)[0], False), ("variables", f"{place}/{_VARIABLES}", True)]
    return found


def _opened(path: str, writable: bool) -> int:
    try:
        return os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound(f"{path} is gone", "the machine needs it", "put it back, or make the machine anew") from error
    except OSError as error:
        raise InvalidInput(f"{path} cannot be opened", os.strerror(error.errno or 0), "see its permissions") from error


def arguments(plan: RunPlan, setup: WholeSetup, cables: Sequence[Cable], control: int, console: int) -> list[str]:
    """QEMU's words, without its name; ``control`` and ``console`` are ends of sockets."""
    assert plan.guest is not None and plan.guest.whole is not None
    whole = plan.guest.whole
    graphics = "" if setup.architecture != "x86_64" else f",graphics={'on' if whole.vnc else 'off'}"  # off: the firmware speaks to the serial port
    flash = ",pflash0=firmware,pflash1=variables" if "firmware" in setup.files else ""
    line = ["-nodefaults", "-no-user-config", "-display", "none", "-sandbox", SANDBOX, "-name", "bulle"]
    line += ["-uuid", str(uuid.UUID(plan.container_id[:32]))]
    for descriptor in setup.files.values():
        line += ["-add-fd", f"fd={descriptor},set={descriptor}"]
    line += _blocks(plan, setup)
    kvm = setup.accelerator == "kvm"
    line += ["-machine", _BOARD[setup.architecture] + graphics + flash, "-accel", "kvm" if kvm else f"tcg,tb-size={TRANSLATED_MIB}"]
    line += ["-cpu", "host" if kvm else _PROCESSOR[setup.architecture], "-smp", str(setup.processors), "-m", f"size={setup.memory_bytes >> 20}M"]
    line += ["-chardev", f"socket,id=control,fd={control}", "-mon", "chardev=control,mode=control"]
    line += ["-chardev", f"socket,id=console,fd={console}", "-serial", "chardev:console", "-rtc", "base=utc", "-device", "virtio-rng-pci"]
    line += ["-device", "pvpanic" if setup.architecture == "x86_64" else "pvpanic-pci"]
    places: dict[str, int] = {kind: 10 * place for place, kind in enumerate(whole.boot, 1)}  # there may be several networks
    line += _disks(setup, places)
    line += _networks(plan, cables, places.get("network", 0))
    if whole.vnc:
        line += ["-vnc", "none", "-device", "VGA" if setup.architecture == "x86_64" else "virtio-gpu-pci"]
        line += ["-device", "qemu-xhci", "-device", "usb-tablet", "-device", "usb-kbd"]
    return line


def _blocks(plan: RunPlan, setup: WholeSetup) -> list[str]:
    """The files, each with its format said, and nothing that one of them names is opened."""
    assert plan.guest is not None and plan.guest.whole is not None
    nodes: list[dict[str, Any]] = []
    image = plan.guest.whole.image
    if image is not None:
        part = {"driver": "raw", "offset": image.offset, "size": image.file_bytes, "read-only": True, "file": _file(setup, "image")}
        below = {"backing": None} if image.format == "qcow2" else {}
        inner = part if image.format == "qcow2" else _file(setup, "image")
        outer = {} if image.format == "qcow2" else {"offset": image.offset, "size": image.file_bytes}
        nodes.append({"driver": image.format, "node-name": "image", "read-only": True, "file": inner, **below, **outer})
    written = {**_file(setup, "disk", writable=True), "discard": "unmap"}
    if plan.root.volatile:
        written["cache"] = {"direct": False, "no-flush": True}
    disk = {"driver": "qcow2", "node-name": "disk", "discard": "unmap", "file": written, "backing": "image" if image is not None else None}
    nodes.append(disk)
    for name in ("seed", "cdrom", "firmware"):
        if name in setup.files:
            nodes.append({"driver": "raw", "node-name": name, "read-only": True, "file": _file(setup, name)})
    if "variables" in setup.files:
        nodes.append({"driver": "raw", "node-name": "variables", "file": _file(setup, "variables", writable=True)})
    return [word for node in nodes for word in ("-blockdev", json.dumps(node))]


def _file(setup: WholeSetup, name: str, *, writable: bool = False) -> dict[str, Any]:
    return {"driver": "file", "filename": f"/dev/fdset/{setup.files[name]}", "locking": "off", "read-only": not writable}


def _disks(setup: WholeSetup, places: Mapping[str, int]) -> list[str]:
    def boot(kind: str) -> str:
        return f",bootindex={places[kind]}" if kind in places else ""

    line = ["-device", f"virtio-blk-pci,drive=disk,serial=disk,werror=report,rerror=report{boot('disk')}"]
    if "cdrom" in setup.files:
        if setup.architecture == "x86_64":
            line += ["-device", f"ide-cd,bus=ide.0,drive=cdrom{boot('cdrom')}"]
        else:
            line += ["-device", "virtio-scsi-pci,id=scsi", "-device", f"scsi-cd,bus=scsi.0,drive=cdrom{boot('cdrom')}"]
    if "seed" in setup.files:
        line += ["-device", "virtio-blk-pci,drive=seed,serial=seed"]
    return line


def _networks(plan: RunPlan, cables: Sequence[Cable], place: int) -> list[str]:
    backends: list[tuple[str, str]] = [(f"tap,fd={one.tap_fd}", one.mac) for one in cables]
    if plan.network.mode == "user":
        forwards = [
            f"hostfwd={port.protocol}:{address}:{port.host_port}-:{port.container_port}"
            for port in plan.network.ports for address in port.host_addresses if ":" not in address
        ]  # fmt: skip
        assert plan.guest is not None and plan.guest.whole is not None
        url = plan.guest.whole.boot_url.replace(",", ",,")
        backends = [(",".join(["user", *forwards, *([f"bootfile={url}"] if url else [])]), _MAC)]
    line: list[str] = []
    for number, (backend, mac) in enumerate(backends):
        kind, _comma, options = backend.partition(",")
        start = f",bootindex={place + number}" if place else ",romfile="
        line += ["-netdev", ",".join(filter(None, (kind, f"id=network{number}", options)))]
        line += ["-device", f"virtio-net-pci,netdev=network{number},mac={mac}{start}"]
    return line


