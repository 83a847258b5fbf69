"""QEMU's program for an architecture: where it is, and what it was built with. Found by asking it, never from its version.

Called before a machine is composed; the answer is kept until the program's file changes.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

import msgspec

from bulle.errors import Unavailable
from bulle.isolation.microvm.remembered import remembered

_PACKAGES = {"x86_64": "qemu-system-x86", "aarch64": "qemu-system-arm", "riscv64": "qemu-system-misc"}
_OTHER_PLACES = ("/usr/libexec/qemu-kvm",)  # where Red Hat's distributions have the one for their own processor
_PATIENCE_S = 30


class Emulator(msgspec.Struct, frozen=True):
    """QEMU for one architecture: ``program`` (host path), its ``version`` in its own words, the file's ``digest`` (SHA-256), and what it can do.

    ``microvm``: it has the small machine. ``user_network``: it was built with libslirp.
    """

    program: str
    version: str
    digest: str
    microvm: bool
    user_network: bool


def find(architecture: str, cache: Path | None = None, *, user_network: bool = False) -> Emulator:
    """The program for guests of that architecture; ``cache`` (a directory, host path) keeps what it answered.

    Raises Unavailable, also for one that cannot filter its own system calls, or has not the user-mode network that is needed.
    """
    program = shutil.which(f"qemu-system-{architecture}")
    if program is None and architecture == platform.machine():
        program = next((path for path in _OTHER_PLACES if os.access(path, os.X_OK)), None)
    if program is None:
        package = _PACKAGES.get(architecture)
        mend = f"install QEMU (Debian's package {package})" if package else "choose another platform"
        raise Unavailable(f"there can be no virtual machine of {architecture}", f"qemu-system-{architecture} is not installed", mend)
    status = os.stat(program)
    key = hashlib.sha256(f"4 {program} {status.st_ino} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:32]
    found = remembered(cache, f"qemu-{key}.json", Emulator, lambda: _ask(program))
    if user_network and not found.user_network:
        why = f"{program} was built without user-mode networking (libslirp)"
        raise Unavailable("the virtual machine can have no network", why, "say --network none, or install another QEMU")
    return found


def _ask(program: str) -> Emulator:
    version = _run(program, "-version")
    if version.returncode:
        reason = (version.stderr.strip().splitlines() or [f"exit code {version.returncode}"])[-1]
        raise Unavailable("there can be no virtual machine", f"{program} does not run: {reason}", "install QEMU again")
    machines, networks = _run(program, "-machine", "help").stdout, _run(program, "-machine", "none", "-netdev", "help").stdout
    if _run(program, "-sandbox", "on", "-machine", "help").returncode:
        why = f"{program} was built without the filter of its own system calls (seccomp)"
        raise Unavailable("there can be no virtual machine", why, "install another QEMU")
    names = {line.split(" ", 1)[0] for line in machines.splitlines()}
    with open(program, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Emulator(program, version.stdout.splitlines()[0].strip(), digest, "microvm" in names, "user" in networks.split())


def _run(*line: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            line, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=_PATIENCE_S, check=False
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable("there can be no virtual machine", f"{line[0]} does not run: {error}", "install QEMU again") from error
