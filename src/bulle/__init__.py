"""Bulle: the same image as a private root or a container, as a library.

``bulle.run("deb:bookworm", ["cat", "/etc/debian_version"])`` runs one command and returns what it said; :class:`Engine` is everything else::

    import bulle

    done = bulle.run("host", ["uname", "-r"], memory_bytes=64 << 20)
    print(done.exit_code, done.stdout.decode())

    with bulle.Engine() as engine:
        container = engine.containers.create(bulle.ContainerOptions(image="host", command=("sleep", "60"), name="nap"))
        container.start()
        container.stop()

Names are loaded when they are first used, so that ``import bulle`` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bulle.engine import Container, Engine, Image
    from bulle.engine.measuring import ContainerStatistics
    from bulle.engine.running import CompletedRun, run
    from bulle.engine.sandbox import Sandbox, SandboxRun, sandbox
    from bulle.engine.sandbox_pool import SandboxPool
    from bulle.errors import BulleError
    from bulle.model.comparison import Comparison
    from bulle.model.container import ContainerOptions, ContainerState, ExecOptions, LimitChanges, VolumeOption
    from bulle.model.network import Egress, NetworkConfig, NetworkOption, PortMapping, PublishedPort
    from bulle.model.run_plan import DeviceLimit, ResourceLimit, RunPlan
    from bulle.model.volume import MountOption, Volume
    from bulle.monitor import Attachment, LogEntry, Outcome

_HOMES = {
    "Attachment": "bulle.monitor",
    "BulleError": "bulle.errors",
    "Comparison": "bulle.model.comparison",
    "CompletedRun": "bulle.engine.running",
    "Container": "bulle.engine",
    "ContainerOptions": "bulle.model.container",
    "ContainerState": "bulle.model.container",
    "ContainerStatistics": "bulle.engine.measuring",
    "DeviceLimit": "bulle.model.run_plan",
    "Egress": "bulle.model.network",
    "Engine": "bulle.engine",
    "ExecOptions": "bulle.model.container",
    "Image": "bulle.engine",
    "LimitChanges": "bulle.model.container",
    "LogEntry": "bulle.monitor",
    "MountOption": "bulle.model.volume",
    "NetworkConfig": "bulle.model.network",
    "NetworkOption": "bulle.model.network",
    "Outcome": "bulle.monitor",
    "PortMapping": "bulle.model.network",
    "PublishedPort": "bulle.model.network",
    "ResourceLimit": "bulle.model.run_plan",
    "RunPlan": "bulle.model.run_plan",
    "Sandbox": "bulle.engine.sandbox",
    "SandboxPool": "bulle.engine.sandbox_pool",
    "SandboxRun": "bulle.engine.sandbox",
    "Volume": "bulle.model.volume",
    "VolumeOption": "bulle.model.container",
    "run": "bulle.engine.running",
    "sandbox": "bulle.engine.sandbox",
}

__all__ = [
    "Attachment",
    "BulleError",
    "Comparison",
    "CompletedRun",
    "Container",
    "ContainerOptions",
    "ContainerState",
    "ContainerStatistics",
    "DeviceLimit",
    "Egress",
    "Engine",
    "ExecOptions",
    "Image",
    "LimitChanges",
    "LogEntry",
    "MountOption",
    "NetworkConfig",
    "NetworkOption",
    "Outcome",
    "PortMapping",
    "PublishedPort",
    "ResourceLimit",
    "RunPlan",
    "Sandbox",
    "SandboxPool",
    "SandboxRun",
    "Volume",
    "VolumeOption",
    "run",
    "sandbox",
]


def __getattr__(name: str) -> object:
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'bulle' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
