"""``/containers``: made, started, ended, removed, listed and shown. Their streams are :mod:`bulle.api.container_streams`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, cast

import msgspec

from bulle.api import documents
from bulle.api.call import Call
from bulle.api.carrying import Carrier
from bulle.api.container_requests import CreateRequest, HostConfig, RestartRequest, alone, limits_of, options_of
from bulle.api.failures import ApiError, not_modified
from bulle.api.routing import Route
from bulle.api.service import Service
from bulle.engine import filters
from bulle.engine.listing import container_summary
from bulle.errors import Conflict, NotFound
from bulle.model.container import LimitChanges

if TYPE_CHECKING:
    from bulle.engine import Container
    from bulle.monitor import Attachment

_CONTAINER_KEYS = (*filters.CONTAINER_KEYS, "expose", "publish", "is-task")
_PRUNE_KEYS = ("label", "label!", "until")


class ListQuery(msgspec.Struct):
    """How much of which containers."""

    all: bool = False
    limit: int = 0
    size: bool = False


async def list_containers(service: Service, call: Call) -> None:
    """List containers."""
    query, chosen = call.parameters(ListQuery), call.filters()
    filters.check_keys(chosen, _CONTAINER_KEYS)
    for key in ("expose", "publish", "is-task"):
        if chosen.pop(key, None) is not None and key != "is-task":
            raise ApiError(501, f"filter '{key}' is not supported")

    def find() -> list[dict[str, object]]:
        engine = service.engine
        tests = filters.containers(engine, chosen)
        found = engine.containers.list(all=query.all or query.limit > 0 or filters.shows_stopped(chosen))
        found = [one for one in sorted(found, key=lambda one: one.created_at_ns, reverse=True) if one.image_id and all(test(one) for test in tests)]
        summaries = []
        for one in found[: query.limit] if query.limit > 0 else found:
            try:
                summaries.append(documents.summary(container_summary(one, sizes=query.size)))
            except (NotFound, FileNotFoundError):
                continue  # it was removed meanwhile
        return summaries

    await call.answer(await service.run(find))


class CreateQuery(msgspec.Struct):
    """What stands beside the body."""

    name: str = ""
    platform: str = ""


async def create(service: Service, call: Call) -> None:
    """Create a container."""
    query = call.parameters(CreateQuery)
    request = await call.document(CreateRequest)
    if not request.image:
        raise ApiError(400, "no image specified")
    options = options_of(request, name=query.name, platform=query.platform, publish_addresses=service.publish_addresses, bridges=service.bridges)

    def make() -> Container:
        engine = service.engine
        try:
            return engine.containers.create(options)
        except NotFound:
            try:
                engine.images.get(options.image, options.platform)
            except NotFound:
                raise ApiError(404, f"No such image: {options.image}") from None
            raise

    made = await service.run(make)
    warnings = [*made.notes]
    if made.plan.network.mode == "none" and not alone(request):
        warnings.append("bridges need root: the container has no network")
    await call.answer({"Id": made.id, "Warnings": warnings}, 201)


class InspectQuery(msgspec.Struct):
    """How much of it."""

    size: bool = False


async def inspect(service: Service, call: Call, name: str) -> None:
    """Show a container."""
    sizes = call.parameters(InspectQuery).size

    def look() -> dict[str, object]:
        container = service.engine.containers.get(name)
        return documents.container(container.inspect(sizes=sizes)) | {"ExecIDs": service.execs.of(container.id) or None}

    await call.answer(await service.run(look))


async def start(service: Service, call: Call, name: str) -> None:
    """Start a container."""
    container = await service.container(name)
    viewers = service.waiting.take(container.id)

    def begin() -> Attachment | None:
        if container.state().status == "running" and not container.is_paused():
            raise not_modified()
        return container.start(attach=bool(viewers), stdin=any(one.stdin for one in viewers))

    # Not bound to this request: who waits for the start must get it, also where its client is gone.
    starting = asyncio.ensure_future(service.run(begin))
    starting.add_done_callback(lambda done: _carry(service, container.id, viewers, done))
    await asyncio.shield(starting)
    await call.answer(None)


def _carry(service: Service, container_id: str, viewers: list[Any], done: asyncio.Future[Attachment | None]) -> None:
    attachment = None if done.cancelled() or done.exception() is not None else done.result()
    if attachment is not None:
        service.keep(Carrier(attachment, viewers).run())
    else:
        for viewer in viewers:
            service.waiting.add(container_id, viewer)


class EndQuery(msgspec.Struct):
    """How it is ended; seconds."""

    t: Annotated[int, msgspec.Meta(ge=-1, le=2**31)] | None = None
    signal: str = ""


async def stop(service: Service, call: Call, name: str) -> None:
    """Stop a container."""
    query = call.parameters(EndQuery)

    def end() -> None:
        container = service.engine.containers.get(name)
        if not container.state().active:
            raise not_modified()
        container.stop(query.t, query.signal)

    await service.run(end)
    await call.answer(None)


async def restart(service: Service, call: Call, name: str) -> None:
    """Stop a container, if it runs, and start it."""
    query = call.parameters(EndQuery)
    await service.run(lambda: service.engine.containers.get(name).restart(query.t, query.signal))
    await call.answer(None)


class KillQuery(msgspec.Struct):
    """The signal."""

    signal: str = "KILL"


async def kill(service: Service, call: Call, name: str) -> None:
    """Send a signal to a container."""
    signal = call.parameters(KillQuery).signal or "KILL"

    def send() -> None:
        try:
            service.engine.containers.get(name).kill(signal)
        except Conflict as error:
            raise Conflict(f"cannot kill container: {name}", str(error)) from error

    await service.run(send)
    await call.answer(None)


async def pause(service: Service, call: Call, name: str) -> None:
    """Pause a container."""
    await service.run(lambda: service.engine.containers.get(name).pause())
    await call.answer(None)


async def unpause(service: Service, call: Call, name: str) -> None:
    """Let a paused container go on."""
    await service.run(lambda: service.engine.containers.get(name).unpause())
    await call.answer(None)


class RenameQuery(msgspec.Struct):
    """The other name."""

    name: str = ""


async def rename(service: Service, call: Call, name: str) -> None:
    """Give a container another name."""
    wanted = call.parameters(RenameQuery).name.removeprefix("/")
    if not wanted:
        raise ApiError(400, "Neither old nor new names may be empty")
    await service.run(lambda: service.engine.containers.get(name).rename(wanted))
    await call.answer(None)


class UpdateRequest(HostConfig):
    """What may be changed; what is 0 or empty stays."""

    restart_policy: RestartRequest | None = None


async def update(service: Service, call: Call, name: str) -> None:
    """Change limits and restart policy of a container."""
    request = await call.document(UpdateRequest)
    given = {key: value for key, value in limits_of(request).items() if value and key in LimitChanges.__struct_fields__}
    if request.restart_policy is not None and request.restart_policy.name:
        policy = request.restart_policy
        given["restart_policy"] = f"{policy.name}:{policy.maximum_retry_count}" if policy.maximum_retry_count else policy.name

    def change() -> list[str]:
        container = service.engine.containers.get(name)
        container.update(LimitChanges(**given))
        return list(container.notes)

    await call.answer({"Warnings": await service.run(change)})


class RemoveQuery(msgspec.Struct):
    """What goes with it."""

    v: bool = False
    force: bool = False
    link: bool = False


async def remove(service: Service, call: Call, name: str) -> None:
    """Remove a container."""
    query = call.parameters(RemoveQuery)
    if query.link:
        raise ApiError(501, "links between containers are not supported")
    container = await service.container(name)
    for viewer in service.waiting.take(container.id):
        viewer.end()
    if service.forks:
        async with service.job("remove_container", name=container.id, force=query.force, volumes=query.v) as job:
            await job.done()
    else:
        await service.run(lambda: container.remove(force=query.force, volumes=query.v))
    await call.answer(None)


class TopQuery(msgspec.Struct):
    """Words for ps(1)."""

    ps_args: str = "-ef"


async def top(service: Service, call: Call, name: str) -> None:
    """List the processes of a container."""
    arguments = call.parameters(TopQuery).ps_args.split()
    titles, rows = await service.run(lambda: service.engine.containers.get(name).top(arguments))
    await call.answer({"Titles": titles, "Processes": rows})


async def changes(service: Service, call: Call, name: str) -> None:
    """List what a container changed in its files."""
    container = await service.container(name)
    async with service.job("changes", name=container.id) as job:
        found = cast("list[tuple[str, str]]", await job.done())
    await call.answer([{"Kind": "CAD".index(kind), "Path": path} for kind, path in found])


async def prune(service: Service, call: Call) -> None:
    """Remove all containers that do not run."""
    chosen = call.filters()
    filters.check_keys(chosen, _PRUNE_KEYS)
    async with service.job("prune_containers", filters=chosen) as job:
        removed, reclaimed = await job.done()
    await call.answer({"ContainersDeleted": removed or None, "SpaceReclaimed": reclaimed})


ROUTES = (
    Route("GET", "/containers/json", list_containers, ListQuery, filters=True),
    Route("POST", "/containers/create", create, CreateQuery, CreateRequest),
    Route("POST", "/containers/prune", prune, filters=True),
    Route("GET", "/containers/{name}/json", inspect, InspectQuery),
    Route("POST", "/containers/{name}/start", start),
    Route("POST", "/containers/{name}/stop", stop, EndQuery),
    Route("POST", "/containers/{name}/restart", restart, EndQuery),
    Route("POST", "/containers/{name}/kill", kill, KillQuery),
    Route("POST", "/containers/{name}/pause", pause),
    Route("POST", "/containers/{name}/unpause", unpause),
    Route("POST", "/containers/{name}/rename", rename, RenameQuery),
    Route("POST", "/containers/{name}/update", update, None, UpdateRequest),
    Route("DELETE", "/containers/{name}", remove, RemoveQuery),
    Route("GET", "/containers/{name}/top", top, TopQuery),
    Route("GET", "/containers/{name}/changes", changes),
)
