"""A :class:`~bulle.isolation.microvm.machine.Machine` in QEMU's words: its argument vector and the command line of the guest's kernel.

Called by whoever starts QEMU, with the descriptors of the machine inherited. Nothing is left to QEMU's defaults or configuration files. qemu(1)
"""

from __future__ import annotations

import json

from bulle.isolation.microvm.machine import Disk, Forward, Machine, SharedDirectory, TapNetwork, UserNetwork

AGENT_PORT = "bulle.agent"
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
# The baseline of today's images (x86-64-v2), with a source of random numbers; every further feature costs an emulated processor at each start.
_EMULATED_PROCESSOR = {
    "x86_64": "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+rdrand",
    "aarch64": "cortex-a53",
    "riscv64": "rv64",
}
_SKIPPED = ("jent_mod_init", "load_system_certificate_list", "trace_eval_init", "ftrace_check_for_weak_functions")
"""Initial calls of the kernel that a guest does without: a source of randomness where there is a better one, certificates for signed modules, and
names in formats of tracing. On an emulated processor they are a tenth of the boot; a kernel that has none of that name passes over it."""
_SECURITY_MODULES = "landlock,yama"
"""Those that programs use by themselves; the others wait for a policy that nobody gives a guest, and ask for it at each system call."""
TRANSLATED_MIB = 64
"""How much translated code QEMU keeps at once. By itself it would be an eighth of the host's memory, and no limit on the machine's would hold.
A boot fills 50 MiB. With 32 MiB an idle machine has 20 MiB less and boots as fast, with 8 MiB each exec costs seven times as much: the rest is room
for programs."""
_CONSOLES = {"x86_64": "ttyS0", "aarch64": "ttyAMA0", "riscv64": "ttyS0"}


def arguments(machine: Machine, program: str) -> list[str]:
    """The whole vector; ``program`` is QEMU's for the machine's architecture."""
    line = [program, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-sandbox", SANDBOX, "-name", "bulle"]
    if machine.bus == "device":
        line += ["-global", "virtio-mmio.force-legacy=false"]  # shared directories exist in the modern form only
    line += [*_board(machine), "-accel", _accelerator(machine), "-cpu", _processor(machine), "-smp", str(machine.processors)]
    line += ["-kernel", f"/proc/self/fd/{machine.kernel}", "-initrd", f"/proc/self/fd/{machine.initial_ramdisk}"]
    line += ["-append", " ".join(kernel_command_line(machine))]
    if machine.control >= 0:
        line += ["-chardev", f"socket,id=control,fd={machine.control}", "-mon", "chardev=control,mode=control"]
    if machine.console >= 0:
        console = f"file,id=console,append=on,path=/dev/fdset/{machine.console}"
        line += [*_file_set(machine.console), "-chardev", console, "-serial", "chardev:console"]
    if machine.log >= 0:
        line += ["-D", f"/proc/self/fd/{machine.log}", "-d", machine.log_items]
    line += ["-chardev", f"socket,id=agent,fd={machine.agent}", "-device", _device(machine, "virtio-serial", id="ports", max_ports=2)]
    line += ["-device", f"virtserialport,bus=ports.0,nr=1,chardev=agent,name={AGENT_PORT}"]
    line += ["-device", _device(machine, "virtio-rng")]
    line += _disks(machine)
    for number, network in enumerate(machine.networks):
        line += _network(machine, number, network)
    for share in machine.shares:
        line += _share(machine, share)
    if machine.incoming:
        line += ["-incoming", "defer"]
    return line


def kernel_command_line(machine: Machine) -> list[str]:
    """The words for the guest's kernel: what makes it quick and quiet, and ends it when it panics; the machine's own last."""
    # Each command of the container is put into its control group: without the first word that waits for the kernel's timer several times.
    words = ["cgroup_favordynmods=1", "panic=-1", "cryptomgr.notests", "rdinit=/init"]
    words += [f"initcall_blacklist={','.join(_SKIPPED)}", f"lsm={_SECURITY_MODULES}"]
    if machine.console >= 0:
        words.append(f"console={_CONSOLES[machine.architecture]}")
    if not machine.verbose:
        words += ["quiet"]
    if machine.architecture == "x86_64":
        words += ["i8042.noaux", "i8042.nokbd"] if machine.board == "q35" else []
        if machine.accelerator == "tcg":
            # QEMU 7.2 now and then returns from CMPXCHG16B with broken flags: the kernel's allocator does without (programs still see it).
            words.append("clearcpuid=cx16")
        if machine.accelerator == "tcg" and machine.host_tsc_khz:
            # An emulated counter is the host's own. Measuring it against an emulated timer fails, or never ends, where the host is busy.
            words += [f"tsc_early_khz={machine.host_tsc_khz}", "tsc=reliable", "no_timer_check"]
    return [*words, *machine.command_line]


def _board(machine: Machine) -> list[str]:
    options: list[str] = [machine.board]
    if machine.board == "microvm":
        options += ["x-option-roms=off", "isa-serial=on" if machine.console >= 0 else "isa-serial=off", "rtc=on", "auto-kernel-cmdline=off"]
    elif machine.board == "q35":
        options += ["vmport=off", "smbus=off", "sata=off", "i8042=off", "usb=off"]
    elif machine.architecture == "aarch64":
        options += ["gic-version=max"] if machine.accelerator == "kvm" else []
    size = f"{machine.memory_bytes}B"
    # Always an object of that name: what is kept of a machine names its memory by it.
    memory = f"memory-backend-ram,id=memory,size={machine.memory_bytes}"
    if machine.shares:
        memory = f"memory-backend-memfd,id=memory,size={machine.memory_bytes},share=on"
    elif machine.memory >= 0:
        shared = "on" if machine.memory_shared else "off"
        memory = f"memory-backend-file,id=memory,size={machine.memory_bytes},mem-path=/proc/self/fd/{machine.memory},share={shared}"
    return ["-machine", ",".join([*options, "memory-backend=memory"]), "-object", memory, "-m", size]


def _accelerator(machine: Machine) -> str:
    return "kvm" if machine.accelerator == "kvm" else f"tcg,tb-size={TRANSLATED_MIB}"


def _processor(machine: Machine) -> str:
    return "host" if machine.accelerator == "kvm" else _EMULATED_PROCESSOR[machine.architecture]


def _device(machine: Machine, model: str, **properties: str | int) -> str:
    """A virtio device on the machine's bus, without what only firmware and old guests need."""
    options = {name: str(value) for name, value in properties.items()}
    if machine.bus == "pci":
        if model != "vhost-user-fs":  # which has never been anything but modern
            options["disable-legacy"] = "on"
        if model == "virtio-net":
            options["romfile"] = ""
    return ",".join([f"{model}-{machine.bus}", *(f"{name}={value}" for name, value in options.items())])


def _file_set(descriptor: int) -> list[str]:
    return ["-add-fd", f"fd={descriptor},set={descriptor}"]


def _disks(machine: Machine) -> list[str]:
    line: list[str] = []
    for disk in {disk.descriptor: disk for disk in machine.disks}.values():
        line += _file_set(disk.descriptor)
    if machine.disks and machine.disks_on_scsi:
        line += ["-device", _device(machine, "virtio-scsi", id="disks")]
    for number, disk in enumerate(machine.disks):
        line += ["-blockdev", json.dumps(_block_node(f"disk{number}", disk))]
        # Where the host has no space left, the guest is told: QEMU's own way is to stop it without a word.
        properties: dict[str, str | int] = {"drive": f"disk{number}", "serial": disk.serial, "werror": "report", "rerror": "report"}
        if machine.disks_on_scsi:
            given = [f"{name}={value}" for name, value in {"bus": "disks.0", "scsi-id": 0, "lun": number, **properties}.items()]
            line += ["-device", ",".join(["scsi-hd", *given])]
        else:
            line += ["-device", _device(machine, "virtio-blk", **properties)]
    return line


def _block_node(name: str, disk: Disk) -> dict[str, object]:
    """Whoever hands the file over answers for who else has it, so QEMU locks nothing; the host's page cache is shared by all guests."""
    file = {"driver": "file", "filename": f"/dev/fdset/{disk.descriptor}", "locking": "off", "read-only": disk.read_only}
    node: dict[str, object] = {"driver": "raw", "node-name": name, "read-only": disk.read_only, "file": file}
    if not disk.read_only:
        file["discard"] = node["discard"] = "unmap"
    if disk.volatile:
        file["cache"] = node["cache"] = {"direct": False, "no-flush": True}
    return node


def _network(machine: Machine, number: int, network: TapNetwork | UserNetwork) -> list[str]:
    if isinstance(network, TapNetwork):
        backend = f"tap,id=network{number},fd={network.descriptor}"
    else:
        options = ["user", f"id=network{number}", f"restrict={'on' if network.restricted else 'off'}", *map(_forward, network.forwards)]
        backend = ",".join(options)
    # Told to announce itself when it goes on somewhere, a guest's kernel 6.12 waits for ever if its interface is taken down at that moment.
    device = _device(machine, "virtio-net", netdev=f"network{number}", mac=network.mac, guest_announce="off")
    return ["-netdev", backend, "-device", device]


def _forward(forward: Forward) -> str:
    address = f"[{forward.host_address}]" if ":" in forward.host_address else forward.host_address
    return f"hostfwd={forward.protocol}:{address}:{forward.host_port}-:{forward.guest_port}"


def _share(machine: Machine, share: SharedDirectory) -> list[str]:
    name = f"share{share.descriptor}"
    device = _device(machine, "vhost-user-fs", chardev=name, tag=share.tag)
    return ["-chardev", f"socket,id={name},fd={share.descriptor}", "-device", device]
