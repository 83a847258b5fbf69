"""Virtual machines for tests: guest kernels that are fetched once for all runs, and machines that run a shell script as their first process.

The script runs in busybox, as the init of an initial ramdisk made by :mod:`bulle.isolation.microvm.initial_ramdisk`; what it prints comes over the
machine's serial port, the one that the agent has in earnest.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bulle.isolation.microvm import qemu
from bulle.isolation.microvm.initial_ramdisk import initial_ramdisk
from bulle.isolation.microvm.kernel import GuestKernel, GuestKernels
from bulle.isolation.microvm.machine import Machine
from bulle_testing import peers, places, tiers

PATIENCE_S = 240
_PROLOGUE = """#!/bin/busybox sh
export PATH=/bin
busybox mount -t proc proc /proc; busybox --install -s /bin
mount -t sysfs sysfs /sys; mount -t devtmpfs devtmpfs /dev
while read module; do insmod $module; done </modules
port=
while [ -z "$port" ]; do for one in /sys/class/virtio-ports/*; do
    [ "$(cat $one/name 2>/dev/null)" = bulle.agent ] && [ -c /dev/${one##*/} ] && port=${one##*/}
done; done
exec >/dev/$port 2>&1
"""


def kernels() -> GuestKernels:
    """The kernels of all runs, below the cache of the tests."""
    return GuestKernels(places.cache_directory() / "kernels")


def debian_kernel(architecture: str, suite: str = "") -> GuestKernel:
    """Debian's kernel; a test that needs it does not run where it is not there yet and cannot be fetched."""
    if not (places.cache_directory() / f"kernels/debian-{suite or 'trixie'}-{architecture}").exists() and (cause := tiers.debian_mirror_missing()):
        tiers.give_up("debian_mirror", cause)
    return kernels().find(architecture, f"debian:{suite}" if suite else "debian")


def lend_kernel(architecture: str, home: Path) -> None:
    """Let a home have Debian's kernel for a processor as if it had fetched it."""
    debian_kernel(architecture)
    name = f"kernels/debian-trixie-{architecture}"
    place = home / "cache" / name
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(places.cache_directory() / name)


def boot(
    machine: Machine,
    kernel: GuestKernel,
    script: str,
    cache: Path,
    modules: Sequence[str] = (),
    program: str = "",
) -> str:
    """Boot the machine (its kernel, ramdisk and agent are filled in here) with a script as its init; returns what that printed.

    ``modules`` are wanted beside those of the machine's devices. The guest is rebooted at the end, which ends QEMU; that must succeed.
    """
    program = program or f"qemu-system-{machine.architecture}"
    tiers.need(program)
    busybox = Path(peers.static_busybox()).read_bytes()
    init = f"{_PROLOGUE}{script}\nreboot -f\n".encode()
    ramdisk = initial_ramdisk(kernel, init, (*machine.modules, *modules), cache, [("bin/busybox", 0o755, busybox)])
    with ExitStack() as undo:
        ours, theirs = socket.socketpair()
        undo.enter_context(ours)
        files = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in (kernel.image, ramdisk)]
        for fd in files:
            undo.callback(os.close, fd)
        with theirs:
            whole = dataclasses.replace(machine, kernel=files[0], initial_ramdisk=files[1], agent=theirs.fileno())
            line = qemu.arguments(whole, program)
            guest = subprocess.Popen(line, pass_fds=whole.descriptors, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        undo.callback(_end, guest)
        ours.settimeout(PATIENCE_S)
        said = b""
        while chunk := ours.recv(65536):
            said += chunk
        printed = guest.communicate(timeout=PATIENCE_S)[0].decode(errors="replace")
        assert guest.returncode == 0, printed
        return said.decode(errors="replace").replace("\r\n", "\n")


def _end(guest: subprocess.Popen[bytes]) -> None:
    if guest.poll() is None:
        guest.kill()
        guest.communicate()
