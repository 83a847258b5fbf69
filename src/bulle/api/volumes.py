"""``/volumes``, and what everything takes on the disk."""

from __future__ import annotations

import msgspec

from bulle.api.call import Call
from bulle.api.failures import ApiError
from bulle.api.routing import Route
from bulle.api.service import Service
from bulle.engine import filters
from bulle.engine.inspection import volume_document
from bulle.engine.listing import container_summary, image_summary
from bulle.engine.usage import Usage
from bulle.errors import NotFound
from bulle.model.volume import DRIVER
from bulle.monitor.logs import timestamp

_PRUNE_KEYS = ("all", "label", "label!")


async def list_volumes(service: Service, call: Call) -> None:
    """List volumes."""
    chosen = call.filters()
    filters.check_keys(chosen, filters.VOLUME_KEYS)
    tests = filters.volumes(chosen)
    found = await service.run(service.engine.volumes.list)
    await call.answer({"Volumes": [volume_document(one) for one in found if all(test(one) for test in tests)], "Warnings": None})


class CreateRequest(msgspec.Struct, rename="pascal"):
    """A volume to make."""

    name: str = ""
    driver: str = DRIVER
    driver_opts: dict[str, str] | None = None
    labels: dict[str, str] | None = None


async def create(service: Service, call: Call) -> None:
    """Make a volume."""
    request = await call.document(CreateRequest)
    if request.driver not in ("", DRIVER):
        raise NotFound(f'plugin "{request.driver}" not found', f"the driver is {DRIVER}")
    if service.forks:
        async with service.job("create_volume", name=request.name, labels=request.labels or {}, options=request.driver_opts or {}) as job:
            name = await job.done()
    else:
        made = await service.run(lambda: service.engine.volumes.create(request.name, labels=request.labels or {}, options=request.driver_opts or {}))
        name = made.name
    await call.answer(await service.run(lambda: volume_document(service.engine.volumes.get(name))), 201)


async def inspect(service: Service, call: Call, name: str) -> None:
    """Show a volume."""
    await call.answer(await service.run(lambda: volume_document(service.engine.volumes.get(name))))


class RemoveQuery(msgspec.Struct):
    """Whether it is no failure that it is not there."""

    force: bool = False


async def remove(service: Service, call: Call, name: str) -> None:
    """Remove a volume, with all that is in it."""
    force = call.parameters(RemoveQuery).force
    async with service.job("remove_volume", name=name, force=force) as job:
        await job.done()
    await call.answer(None)


async def prune(service: Service, call: Call) -> None:
    """Remove volumes that no container has."""
    chosen = call.filters()
    filters.check_keys(chosen, _PRUNE_KEYS)
    # Before 1.42 those with a name went too.
    every = chosen.pop("all", ["true" if call.version < (1, 42) else "false"])[-1].lower() in ("1", "true")
    async with service.job("prune_volumes", filters=chosen, every=every) as job:
        removed, reclaimed = await job.done()
    await call.answer({"VolumesDeleted": removed or None, "SpaceReclaimed": reclaimed})


async def no_cluster(service: Service, call: Call, name: str) -> None:
    """Say that there are no volumes of a cluster to change."""
    raise ApiError(503, "This node is not part of a swarm.")


class UsageQuery(msgspec.Struct):
    """Which kinds; none for all."""

    type: list[str] = []


async def usage(service: Service, call: Call) -> None:
    """Show what everything takes on the disk."""
    wanted = call.parameters(UsageQuery).type
    if unknown := [one for one in wanted if one not in ("container", "image", "volume", "build-cache")]:
        raise ApiError(400, f"unknown object type: {unknown[0]}")
    await call.answer(await service.run(lambda: _usage(service, wanted)))


def _usage(service: Service, wanted: list[str]) -> dict[str, object]:
    found: Usage = service.engine.usage()
    sizes = {one.name: one.size_bytes for one in found.kinds}
    parts: dict[str, dict[str, object]] = {
        "image": {
            "LayersSize": sizes["Images"],
            "Images": [image_summary(one.image, containers=one.containers, shared_bytes=one.shared_bytes) for one in found.images],
        },
        "container": {"Containers": [container_summary(one.container, sizes=True) for one in found.containers if one.container.image_id]},
        "volume": {"Volumes": _volumes(service, found)},
        "build-cache": {"BuildCache": _steps(found), "BuilderSize": sizes["Build Cache"]},
    }
    return {key: value for kind, part in parts.items() for key, value in part.items() if not wanted or kind in wanted}


def _volumes(service: Service, found: Usage) -> list[dict[str, object]]:
    known = {one.name: one for one in service.engine.volumes.list()}
    used = [one for one in found.volumes if one.name in known]
    return [volume_document(known[one.name]) | {"UsageData": {"Size": one.size_bytes, "RefCount": one.links}} for one in used]


def _steps(found: Usage) -> list[dict[str, object]]:
    return [
        {
            "ID": one.key,
            "Type": "regular",
            "Description": one.instruction,
            "InUse": False,
            "Shared": one.shared,
            "Size": one.own_bytes,
            "CreatedAt": timestamp(one.created_at_ns),
            "LastUsedAt": timestamp(one.used_at_ns),
            "UsageCount": 1,
        }
        for one in found.steps
    ]


ROUTES = (
    Route("GET", "/volumes", list_volumes, filters=True),
    Route("POST", "/volumes/create", create, None, CreateRequest),
    Route("POST", "/volumes/prune", prune, filters=True),
    Route("GET", "/volumes/{name}", inspect),
    Route("PUT", "/volumes/{name}", no_cluster),
    Route("DELETE", "/volumes/{name}", remove, RemoveQuery),
    Route("GET", "/system/df", usage, UsageQuery),
)
