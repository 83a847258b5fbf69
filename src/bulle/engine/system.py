"""``version`` and ``info``: this Bulle, this home and this machine, in the form of Docker's documents."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING, Any

from bulle.engine.drivers import LEVELS, driver_for
from bulle.isolation.control_group import available
from bulle.isolation.microvm.record import read_record, usable_memory_bytes
from bulle.model.run_plan import RunPlan
from bulle.version import VERSION

if TYPE_CHECKING:
    from bulle.engine.engine import Engine


def version_document() -> dict[str, Any]:
    """Versions of Bulle, Python and the kernel; also as the two parts that templates written for Docker ask for, though there is one program."""
    from bulle.model.platform import this_platform  # rarely asked for

    here = {"Version": VERSION, "PythonVersion": platform.python_version(), "KernelVersion": platform.release(), "Os": "linux"}
    part = here | {"Arch": this_platform().architecture}
    return here | {"Arch": platform.machine(), "Client": part, "Server": part}


def info_document(engine: Engine) -> dict[str, Any]:
    """Counts of what the home holds, and what the machine is."""
    containers = engine.containers.list(all=True)
    running = sum(1 for container in containers if container.state().status == "running")
    paused = sum(1 for container in containers if container.is_paused())
    guests = [one.plan for one in containers if one.plan.guest is not None and one.state().status == "running"]
    controllers, _reason = available()
    memory_pages = os.sysconf("SC_PHYS_PAGES")
    return {
        "Containers": len(containers),
        "ContainersRunning": running - paused,
        "ContainersPaused": paused,
        "ContainersStopped": len(containers) - running,
        "Images": len(engine.images.list()),
        "Driver": "overlay",
        "LayerBackend": engine.layer_backend(),
        "LoggingDriver": "json-file",
        "CgroupVersion": "2" if os.path.exists("/sys/fs/cgroup/cgroup.controllers") else "1",
        "CgroupControllers": sorted(controllers),
        "KernelVersion": platform.release(),
        "OperatingSystem": operating_system(),
        "OSType": "linux",
        "Architecture": platform.machine(),
        "NCPU": os.cpu_count() or 1,
        "MemTotal": memory_pages * os.sysconf("SC_PAGE_SIZE"),
        "VirtualMachines": _given_to(guests, memory_pages * os.sysconf("SC_PAGE_SIZE")),
        "Name": platform.node(),
        "BulleRootDir": str(engine.home),
        "Rootless": os.geteuid() != 0,
        "IsolationLevels": {level: _level(driver_for(level, engine.home).probe()) for level in LEVELS},
        "ServerVersion": VERSION,
    }


def _given_to(guests: list[RunPlan], memory_bytes: int) -> dict[str, Any]:
    """How this machine is divided among guests; more than the whole of it is overcommitted: it holds as long as they do not all use theirs."""
    records = [read_record(plan.state_host_path) for plan in guests]
    memory, processors = sum(usable_memory_bytes(plan) for plan in guests), sum(record.processors for record in records)
    return {
        "Running": len(guests),
        "Memory": memory,
        "NCPU": processors,
        "MemoryOvercommit": round(memory / memory_bytes, 2),
        "CPUOvercommit": round(processors / (os.cpu_count() or 1), 2),
    }


def _level(probe: Any) -> str:
    return "usable" + (f" ({'; '.join(probe.notes)})" if probe.notes else "") if probe.usable else f"not usable: {probe.reason}"


def operating_system() -> str:
    """The name that this machine's distribution gives itself."""
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return "Linux"
