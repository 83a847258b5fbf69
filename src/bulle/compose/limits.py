"""From what a service says of memory, processors and its other limits to fields of :class:`~bulle.model.container.ContainerOptions`. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, cast

from bulle.compose.model import Project, Service
from bulle.compose.service_parts import ResourceAmounts
from bulle.compose.verdicts import refused
from bulle.model.quantities import size_bytes
from bulle.model.run_plan import DeviceLimit, ResourceLimit

_LIMITS = frozenset(
    "core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack as".split()  # noqa: SIM905 - as the manual's list
)
_RATES = ("read_bps", "write_bps", "read_iops", "write_iops")


def limit_fields(project: Project, service: Service) -> dict[str, Any]:
    """The fields; what ``deploy`` says comes before the older keys, as in docker compose. Raises InvalidInput."""
    deploy = service.deploy
    limits = deploy.resources.limits if deploy else ResourceAmounts()
    reserved = deploy.resources.reservations if deploy else ResourceAmounts()
    weight, devices = _block(project, service)
    return {
        "memory_bytes": int(limits.memory or service.mem_limit),
        "memory_swap_bytes": int(service.memswap_limit),
        "memory_reservation_bytes": int(reserved.memory or service.mem_reservation),
        "memory_swappiness": service.mem_swappiness,
        "oom_kill_disable": service.oom_kill_disable,
        "oom_score_adj": service.oom_score_adj or None,
        "nano_cpus": round((limits.cpus or service.cpus) * 1e9),
        "cpu_shares": service.cpu_shares,
        "cpu_quota_us": service.cpu_quota,
        "cpu_period_us": service.cpu_period,
        "cpuset_cpus": service.cpuset,
        "pids_limit": max(limits.pids or service.pids_limit, 0),
        "shm_bytes": int(service.shm_size),
        "storage_bytes": _storage(project, service),
        "blkio_weight": weight,
        "device_limits": devices,
        "limits": tuple(_ulimits(project, service)),
    }


def _ulimits(project: Project, service: Service) -> Iterator[ResourceLimit]:
    for name, one in service.ulimits.items():
        if name not in _LIMITS:
            raise refused(project, ("services", service.name, "ulimits", name), "", f"it is one of {', '.join(sorted(_LIMITS))}")
        yield ResourceLimit(name, one.soft, one.hard)


def _storage(project: Project, service: Service) -> int:
    for key in service.storage_opt:
        if key != "size":
            raise refused(project, ("services", service.name, "storage_opt", key), "", "the only option is size")
    try:
        return size_bytes(service.storage_opt["size"]) if service.storage_opt else 0
    except ValueError as error:
        raise refused(project, ("services", service.name, "storage_opt", "size"), service.storage_opt["size"], str(error)) from None


def _block(project: Project, service: Service) -> tuple[int, tuple[DeviceLimit, ...]]:
    weight, found = 0, list[DeviceLimit]()
    for key, value in service.blkio_config.items():
        try:
            if key == "weight":
                weight = int(value)
            elif key == "weight_device":
                found += [DeviceLimit("weight", one["path"], int(one["weight"])) for one in value]
            elif (kind := key.removeprefix("device_")) in _RATES:
                rate = cast("Literal['read_bps', 'write_bps', 'read_iops', 'write_iops']", kind)
                found += [DeviceLimit(rate, one["path"], _rate(one["rate"])) for one in value]
            else:
                raise ValueError("there is no such limit")
        except (ValueError, KeyError, TypeError) as error:
            raise refused(project, ("services", service.name, "blkio_config", key), "", str(error)) from None
    return weight, tuple(found)


def _rate(value: object) -> int:
    return value if isinstance(value, int) else size_bytes(str(value))
