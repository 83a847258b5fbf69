"""Where and when a comparison was made: what somebody needs to know to believe the figures, or to measure them again."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bulle.engine.system import operating_system
from bulle.isolation.microvm.accelerator import choose
from bulle.linux import process_usage
from bulle.model.comparison import Environment
from bulle.version import VERSION

if TYPE_CHECKING:
    from bulle.engine.engine import Engine


def environment(engine: Engine, begun_s: float, load: tuple[float, float], caches_dropped: bool) -> Environment:
    """This machine as it is now; ``begun_s`` is when the comparison began (seconds since the epoch)."""
    flags = _cpu_field("flags").split()
    return Environment(
        machine=_read("/sys/class/dmi/id/product_name") or _read("/proc/device-tree/model") or platform.node(),
        virtual="hypervisor" in flags,
        operating_system=operating_system(),
        kernel=platform.release(),
        architecture=platform.machine(),
        processor=_cpu_field("model name") or _cpu_field("CPU implementer") or platform.machine(),
        processors=os.cpu_count() or 1,
        memory_bytes=process_usage.machine_memory_bytes(),
        available_bytes=process_usage.available_bytes(),
        accelerator=_accelerator(engine.home / "cache"),
        file_system=_file_system(engine.home),
        layers=engine.layer_backend(),
        root=os.geteuid() == 0,
        versions=_versions(),
        started_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(begun_s)),
        took_s=round(time.time() - begun_s, 1),
        load=(round(load[0], 2), round(load[1], 2)),
        caches_dropped=caches_dropped,
    )


def _versions() -> dict[str, str]:
    found = {"bulle": VERSION, "python": platform.python_version()}
    if program := shutil.which(f"qemu-system-{platform.machine()}"):
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout.split()
        found |= {"qemu": next((word for word in said if word[0].isdigit()), "unknown")}
    return found


def _accelerator(cache: Path) -> str:
    """What a virtual machine gets here, and why it is not KVM."""
    found = choose(platform.machine(), "", cache)
    return f"{found.name}: {found.reason}" if found.reason else found.name


def _file_system(home: Path) -> str:
    """The type of the file system that the home is on: of the deepest mount point above it. proc_pid_mountinfo(5)"""
    above = {str(home.resolve()), *map(str, home.resolve().parents)}
    mounts = [(words[4], words[words.index("-") + 1]) for words in _mounts() if words[4] in above]
    return max(mounts, key=lambda mount: len(mount[0]), default=("", "unknown"))[1]


def _mounts() -> Iterator[list[str]]:
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        yield line.split()


def _cpu_field(name: str) -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""
