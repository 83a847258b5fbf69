"""``doctor``: what this machine offers to this user, found by trying, and the command that would mend the rest."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from bulle.engine.drivers import LEVELS, driver_for
from bulle.errors import BulleError
from bulle.isolation.control_group import available
from bulle.isolation.microvm.accelerator import probe_kvm
from bulle.linux import nftables, seccomp, subordinate_ids
from bulle.network.firewalls import Firewalls
from bulle.network.naming import table_name
from bulle.records.database import Database
from bulle.store import Store

_INIT = Path(__file__).parent.parent / "_bin" / "bulle-init"


@dataclass(frozen=True)
class Finding:
    """One thing that was examined: whether it is there, what was found, and the command or setting that would mend it."""

    subject: str
    ok: bool
    found: str
    mend: str = ""


def examine(home: Path) -> list[Finding]:
    """Everything that a user may want to know before blaming an image."""
    findings = [Finding("kernel", True, f"Linux {platform.release()} on {platform.machine()}")]
    for level in LEVELS:
        probe = driver_for(level, home).probe()
        findings.append(
            Finding(f"isolation {level}", probe.usable, "; ".join(probe.notes) or ("usable" if probe.usable else probe.reason), probe.mend)
        )
    findings += [*_layers(home), _limits(), _seccomp(), _emulators(), _identities(), _networks(home)]
    return [*findings, _init(), *_programs(), _memory(), _space(home), _kvm(home)]


def _layers(home: Path) -> list[Finding]:
    meaning = {
        "erofs": "layers mounted from their tar, without extraction",
        "loop": "layers mounted through loop devices",
        "directory": "layers extracted",
    }
    findings = []
    for kind, probe in Store(home, Database(home)).probe().items():
        mend = "" if probe.usable else "a kernel of 6.12 or newer with EROFS, BULLE_HOME on ext4, xfs or btrfs, and root" if kind == "erofs" else ""
        findings.append(Finding(f"images by {kind}", probe.usable, meaning[kind] if probe.usable else probe.reason, mend))
    return findings


def _limits() -> Finding:
    controllers, why = available()
    found = f"limits on {', '.join(sorted(controllers & {'memory', 'cpu', 'cpuset', 'pids'}))}" if controllers else why
    if controllers and why:
        found += f" ({why})"
    mend = "" if controllers else "run as root, or have systemd delegate: loginctl enable-linger $USER"
    return Finding("control groups", bool(controllers), found, mend)


def _seccomp() -> Finding:
    known = bool(seccomp.machine_abis())
    found = "system calls are filtered, also those of 32-bit programs" if known else "system calls cannot be filtered on this processor"
    return Finding("seccomp", known, found, "" if known else "run with --security-opt seccomp=unconfined")


def _emulators() -> Finding:
    """Which processors can be emulated for a container, and by whose table."""
    from bulle.linux import binary_formats, emulators
    from bulle.model.image import Platform
    from bulle.model.platform import is_native

    found, missing = [], []
    for architecture in emulators.architectures():
        platform = Platform("linux", architecture)
        if is_native(platform):
            continue
        try:
            found.append((architecture, emulators.find(str(platform)).registered))
        except BulleError:
            missing.append(architecture)
    if not found:
        return Finding("emulation", False, f"programs of no other processor can be run ({', '.join(missing)})", emulators.INSTALL)
    error = binary_formats.own_table_error()
    names = ", ".join(name for name, registered in found if registered or error is None)
    if error is not None:
        why = f"a container has no table of binary formats of its own: {os.strerror(error.errno or 0)}"
        mend = "a kernel of 6.7 or newer with binfmt_misc, or emulators registered for the whole machine (binfmt-support)"
        return Finding("emulation", bool(names), f"{names or 'none'} ({why})", mend)
    return Finding("emulation", True, f"containers can run programs for {names} (--platform)")


def _identities() -> Finding:
    if os.geteuid() == 0:
        return Finding("user ids", True, "an own range of 65536 ids for each container")
    users, _groups = subordinate_ids.rootless_mappings()
    ranges = [*subordinate_ids.subordinate_ranges("/etc/subuid"), *subordinate_ids.subordinate_ranges("/etc/subgid")]
    first = max((start + size for _, start, size in ranges), default=100000)
    last = first + subordinate_ids.RANGE_SIZE - 1
    mend = f"sudo usermod --add-subuids {first}-{last} --add-subgids {first}-{last} {os.environ.get('USER', '$USER')}"
    if len(users) == 1 and shutil.which("newuidmap") is not None:
        return Finding("user ids", False, "one id only: you have no range in /etc/subuid and /etc/subgid", mend)
    if shutil.which("newuidmap") is None:
        return Finding("user ids", False, "one id only: newuidmap is missing", "sudo apt-get install uidmap")
    return Finding("user ids", True, f"your own and {users[1].size} subordinate ids")


def _networks(home: Path) -> Finding:
    if os.geteuid() != 0:
        return Finding("networks", False, "none and host: bridges need root", "run as root")
    try:
        nftables.run("list tables\n")
        obstacles = Firewalls(table_name(home)).obstacles()
    except BulleError as error:
        return Finding("networks", False, str(error), "apt-get install nftables")
    if obstacles:
        return Finding("networks", False, "; ".join(obstacles), "tell that firewall to forward what goes over bulle*")
    return Finding("networks", True, "bridges, published ports and names")


def _init() -> Finding:
    there = _INIT.exists()
    return Finding(
        "--init", there, "the small init is there" if there else "built without compiled programs", "" if there else "install Bulle from its wheel"
    )


def _programs() -> list[Finding]:
    wanted = {"mmdebstrap": "images from deb:SUITE"}
    return [
        Finding(name, shutil.which(name) is not None, use if shutil.which(name) else f"missing: {use}", f"apt-get install {name}")
        for name, use in wanted.items()
    ]


def _memory() -> Finding:
    """Whether snapshots of containers have their memory."""
    from bulle.isolation import checkpointing

    found = checkpointing.probe()
    if found.reason:
        return Finding("criu", False, f"{found.reason}; snapshots of containers have the files alone", found.mend)
    return Finding("criu", True, f"CRIU {found.version} works: snapshots of containers have their memory too")


def _space(home: Path) -> Finding:
    free = shutil.disk_usage(home).free
    return Finding("space", free > 1 << 30, f"{free / (1 << 30):.1f} GiB free under {home}", "bulle rmi images that are not needed")


def _kvm(home: Path) -> Finding:
    """What executes guests: this machine's kernel as a hypervisor, or QEMU in its place."""
    found = probe_kvm(platform.machine(), home / "cache")
    if found.reason:
        return Finding("kvm", False, f"{found.reason}; virtual machines are emulated", found.mend)
    return Finding("kvm", True, "virtual machines run on the processor itself: this machine's kernel is their hypervisor")
