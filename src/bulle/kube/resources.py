"""What a service may take and what is held back for it, as limits and requests."""

from __future__ import annotations

from typing import Any

from bulle.compose.model import Service
from bulle.compose.service_parts import ResourceAmounts
from bulle.kube.names import Document, memory, processors
from bulle.kube.report import Path
from bulle.kube.storage import size_bytes
from bulle.kube.translation import Translation

_PERIOD = 100_000
_NOTHING = ResourceAmounts()


def processor_limit(service: Service) -> float:
    """How many processors a container may use, 0 for as many as there are."""
    limits = service.deploy.resources.limits if service.deploy is not None else _NOTHING
    quota = service.cpu_quota / (service.cpu_period or _PERIOD) if service.cpu_quota > 0 else 0.0
    return limits.cpus or service.cpus or quota or float(service.cpu_count)


def resources(translation: Translation, service: Service) -> Document:
    """The ``resources`` of a service's container."""
    said = service.deploy.resources if service.deploy is not None else None
    limited, reserved = (said.limits, said.reservations) if said is not None else (_NOTHING, _NOTHING)
    limits: Document = {}
    requests: Document = {}
    cpu_limit, cpu_request = processor_limit(service), reserved.cpus
    if not cpu_request and service.cpu_shares:
        translation.report.note("is held back for the container too", "services", service.name, "cpu_shares")
        cpu_request = service.cpu_shares / 1024
    memory_limit = limited.memory or service.mem_limit
    memory_request = reserved.memory or service.mem_reservation
    for amounts, cpu, size in ((limits, cpu_limit, memory_limit), (requests, cpu_request, memory_request)):
        if cpu > 0:
            amounts["cpu"] = processors(cpu)
        if size > 0:
            amounts["memory"] = memory(size)
    if (cpu_limit and cpu_request > cpu_limit) or (memory_limit > 0 and memory_request > memory_limit):
        translation.report.refuse("more is held back than may be used: a cluster takes no such pod", "services", service.name, "deploy", "resources")
    for key, value in service.storage_opt.items():
        size_said = size_bytes(value) if key == "size" else None
        if size_said is None:
            translation.report.note("not kept", "services", service.name, "storage_opt", key)
        else:
            limits["ephemeral-storage"] = memory(size_said)
    for name, devices in (("limits", limited.devices), ("reservations", reserved.devices)):
        limits |= _processors_for_graphics(translation, devices, ("services", service.name, "deploy", "resources", name, "devices"))
    limits |= _processors_for_graphics(translation, service.gpus, ("services", service.name, "gpus"))
    found = {key: amounts for key, amounts in (("limits", limits), ("requests", requests)) if amounts}
    return {"resources": found} if found else {}


def _processors_for_graphics(translation: Translation, devices: tuple[dict[str, Any], ...], path: Path) -> Document:
    found: Document = {}
    for number, device in enumerate(devices):
        driver = device.get("driver") or "nvidia"
        count = device.get("count", 1)
        capabilities = set(device.get("capabilities") or ("gpu",))
        unknown = set(device) - {"driver", "count", "capabilities"}
        if "gpu" not in capabilities or driver not in ("nvidia", "amd") or unknown or not isinstance(count, int) or count < 1:
            translation.report.refuse("a cluster gives out a number of graphics processors, of nvidia or amd, and nothing else", *path, number)
        else:
            found[f"{driver}.com/gpu"] = str(count)
    return found
