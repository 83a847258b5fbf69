"""A virtual machine as a frozen value: what it is made of, before anything runs; :mod:`bulle.isolation.microvm.qemu` says it in QEMU's words.

The driver composes it. Everything of the host comes as an open descriptor that QEMU inherits, so that it needs no path and no right of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SERIAL_BYTES = 20
"""The longest serial of a virtio disk, see VIRTIO_BLK_ID_BYTES in linux/virtio_blk.h."""
MMIO_SLOTS = 8
"""Virtio devices that every microvm can have; with ACPI a second interrupt controller makes more, but not on every QEMU."""
PCI_SLOTS = 28
"""Virtio devices on the root bus of a PCI machine, beside its own."""
LUNS = 16384


@dataclass(frozen=True)
class Disk:
    """A file or block device as a disk; ``descriptor`` is open for reading, and for writing unless ``read_only``.

    The guest finds it by its ``serial``: at most 20 letters, digits and `-`. ``volatile``: what the guest flushes need not reach the host's disk.
    """

    serial: str
    descriptor: int
    read_only: bool = True
    volatile: bool = False


@dataclass(frozen=True)
class TapNetwork:
    """A network interface behind an open tap device (``descriptor``, with TUNSETIFF done)."""

    descriptor: int
    mac: str


@dataclass(frozen=True)
class Forward:
    """One port of the host that leads into the guest; an empty ``host_address`` is every address."""

    protocol: Literal["tcp", "udp"]
    host_address: str
    host_port: int
    guest_port: int


@dataclass(frozen=True)
class UserNetwork:
    """A network that QEMU makes in user space (libslirp): the guest is 10.0.2.15/24, its gateway 10.0.2.2, its name server 10.0.2.3.

    ``restricted``: nothing but the forwards. Other hosts see the connections of QEMU's own process.
    """

    mac: str
    forwards: tuple[Forward, ...] = ()
    restricted: bool = False


@dataclass(frozen=True)
class SharedDirectory:
    """A directory that a virtiofsd shows as ``tag``; ``descriptor`` is a connected socket to it (vhost-user)."""

    tag: str
    descriptor: int


@dataclass(frozen=True)
class Machine:
    """One virtual machine.

    ``architecture`` as uname(1) says it. ``kernel`` and ``initial_ramdisk`` are descriptors of regular files that anyone may read. ``agent`` is one
    end of a stream socket, the guest's port ``bulle.agent``; ``control`` such an end for QMP (-1: none). ``console`` is open for writing only, and
    gets what the kernel prints (-1: nobody), all of it if ``verbose``. ``log`` gets QEMU's own log of
    ``log_items``. ``command_line`` are more words for the kernel. ``pluggable``: disks
    and interfaces may come and go while it runs. ``host_tsc_khz`` is the frequency of the host's time stamp counter if known. ``small``: on x86 the
    small machine can be had, because QEMU has it and the kernel is one that it boots (``GuestKernel.plain``).

    ``memory`` is a file of ``memory_bytes`` to be the guest's memory (-1: the hypervisor's own): what the guest writes reaches it where it is
    ``memory_shared``, else the guest has copies of its pages. A machine that is ``incoming`` does not boot: it is told over ``control`` which
    state it begins with.
    """

    architecture: str
    accelerator: Literal["kvm", "tcg"]
    kernel: int
    initial_ramdisk: int
    memory_bytes: int
    agent: int
    processors: int = 1
    disks: tuple[Disk, ...] = ()
    networks: tuple[TapNetwork | UserNetwork, ...] = ()
    shares: tuple[SharedDirectory, ...] = ()
    control: int = -1
    console: int = -1
    verbose: bool = False
    log: int = -1
    log_items: str = "guest_errors,unimp"
    command_line: tuple[str, ...] = ()
    pluggable: bool = False
    host_tsc_khz: int = 0
    small: bool = True
    memory: int = -1
    memory_shared: bool = False
    incoming: bool = False

    @property
    def board(self) -> Literal["microvm", "q35", "virt"]:
        """Which of QEMU's machines: the small one where it can do what is wanted."""
        if self.architecture != "x86_64":
            return "virt"
        return "microvm" if self.small and not self.pluggable else "q35"

    @property
    def bus(self) -> Literal["device", "pci"]:
        """How devices are attached, as QEMU names its models: on x86 the small machine has memory-mapped ones, every other a PCI bus."""
        return "device" if self.board == "microvm" else "pci"

    @property
    def disks_on_scsi(self) -> bool:
        """Whether all disks are units of one controller, because there are too many for one slot each."""
        others = 1 + len(self.networks) + len(self.shares) + 1
        return others + len(self.disks) > (MMIO_SLOTS if self.bus == "device" else PCI_SLOTS)

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that the guest's kernel needs for these devices (names with underscores), in the order in which they should be loaded."""
        transport = {"device": "virtio_mmio", "pci": "virtio_pci"}[self.bus]
        found = [transport, "virtio_console"]
        if self.disks:
            found += ["virtio_scsi", "sd_mod"] if self.disks_on_scsi else ["virtio_blk"]
        if self.networks:
            found += ["virtio_net", "af_packet"]
        if self.shares:
            found.append("virtiofs")
        return tuple(found)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Every descriptor that QEMU must inherit, each once."""
        optional = (self.control, self.console, self.log, self.memory)
        taps = (network.descriptor for network in self.networks if isinstance(network, TapNetwork))
        files = (*(disk.descriptor for disk in self.disks), *taps, *(share.descriptor for share in self.shares))
        return tuple(dict.fromkeys((self.kernel, self.initial_ramdisk, self.agent, *files, *(fd for fd in optional if fd >= 0))))
