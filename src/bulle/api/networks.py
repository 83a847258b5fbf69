"""``/networks``: networks listed, shown, made, removed, and containers put on them."""

from __future__ import annotations

from typing import Any

import msgspec

from bulle.api import documents
from bulle.api.call import Call
from bulle.api.failures import ApiError, sentence
from bulle.api.network_requests import EndpointRequest
from bulle.api.routing import Route
from bulle.api.service import Service
from bulle.engine import filters
from bulle.engine.network_inspection import network_document
from bulle.engine.network_options import network_config
from bulle.errors import Conflict, NotFound, Unsupported

_PRUNE_KEYS = ("label", "label!", "until")


async def list_networks(service: Service, call: Call) -> None:
    """List networks."""
    chosen = call.filters()
    filters.check_keys(chosen, filters.NETWORK_KEYS)

    def find() -> list[dict[str, object]]:
        engine = service.engine
        tests = filters.networks(engine, chosen)
        found = [one for one in engine.networks.list() if all(test(one) for test in tests)]
        # As in Docker a listing says nothing of who is on a network.
        return [documents.network(network_document(engine.networks, one.id)) | {"Containers": {}} for one in found]

    await call.answer(await service.run(find))


async def inspect(service: Service, call: Call, name: str) -> None:
    """Show a network."""
    await call.answer(await service.run(lambda: _document(service, name)))


def _document(service: Service, name: str) -> dict[str, object]:
    """As Docker has it: who is on the network and runs."""
    engine = service.engine
    document = network_document(engine.networks, name)
    members: Any = document["Containers"]
    running = {one.id for one in engine.containers.list()} if members else set()
    return documents.network(document) | {"Containers": {key: member for key, member in members.items() if key in running}}


class _Document(msgspec.Struct, rename="pascal"):
    pass


class PoolRequest(_Document):
    """One of ``IPAM.Config``."""

    subnet: str = ""
    ip_range: str = msgspec.field(default="", name="IPRange")
    gateway: str = ""
    auxiliary_addresses: dict[str, str] | None = None


class AddressingRequest(_Document):
    """``IPAM``."""

    driver: str = "default"
    config: list[PoolRequest] | None = None
    options: dict[str, str] | None = None


class CreateRequest(_Document):
    """A network to make."""

    name: str
    driver: str = "bridge"
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    config_only: bool = False
    enable_ipv6: bool | None = msgspec.field(default=None, name="EnableIPv6")
    ipam: AddressingRequest | None = msgspec.field(default=None, name="IPAM")
    options: dict[str, str] | None = None
    labels: dict[str, str] | None = None


async def create(service: Service, call: Call) -> None:
    """Make a network."""
    request = await call.document(CreateRequest)
    pools = (request.ipam.config if request.ipam else None) or []
    if request.ingress or request.config_only or (request.ipam and request.ipam.driver not in ("", "default")):
        raise Unsupported("network of a swarm, and no other address management than the default", "container", "leave it out")
    if any(pool.auxiliary_addresses for pool in pools):
        raise Unsupported("--aux-address", "container", "leave it out, and give containers --ip")
    options = {key: value for key, value in (request.options or {}).items() if key != "com.docker.network.enable_ipv6"}
    config = network_config(
        request.name,
        request.driver or "bridge",
        subnets=[pool.subnet for pool in pools if pool.subnet],
        gateways=[pool.gateway for pool in pools if pool.gateway],
        ip_ranges=[pool.ip_range for pool in pools if pool.ip_range],
        internal=request.internal,
        ipv6=bool(request.enable_ipv6),
        labels=request.labels or {},
        options=options,
    )
    try:
        made = await service.run(lambda: service.engine.networks.create(config))
    except Conflict as error:
        raise ApiError(403 if request.name in filters.PREDEFINED_NETWORKS else 409, sentence(error)) from error
    await call.answer({"Id": made.id, "Warning": ""}, 201)


async def remove(service: Service, call: Call, name: str) -> None:
    """Remove a network."""
    try:
        await service.run(lambda: service.engine.networks.remove(name))
    except Conflict as error:  # in use, or one of those that are always there
        raise ApiError(403, sentence(error)) from error
    await call.answer(None)


class ConnectRequest(_Document):
    """Which container, and where on the network."""

    container: str
    endpoint_config: EndpointRequest | None = None
    force: bool = False


async def connect(service: Service, call: Call, name: str) -> None:
    """Put a container on a network."""
    request = await call.document(ConnectRequest)
    option = (request.endpoint_config or EndpointRequest()).option(name)

    def join() -> None:
        engine = service.engine
        container = engine.containers.get(request.container)
        try:
            engine.networks.connect(name, container, option)
        except Conflict as error:  # it is there already, or has the network of another
            raise ApiError(403, sentence(error)) from error

    await service.run(join)
    await call.answer_text("")


async def disconnect(service: Service, call: Call, name: str) -> None:
    """Take a container off a network."""
    request = await call.document(ConnectRequest)

    def leave() -> None:
        engine = service.engine
        try:
            engine.networks.disconnect(name, engine.containers.get(request.container))
        except NotFound:
            if not request.force:
                raise

    await service.run(leave)
    await call.answer_text("")


async def prune(service: Service, call: Call) -> None:
    """Remove networks that no container is on."""
    chosen = call.filters()
    filters.check_keys(chosen, _PRUNE_KEYS)
    pruned = await service.run(lambda: service.engine.networks.prune(filters.prune_filter(chosen)))
    await call.answer({"NetworksDeleted": pruned.removed or None})


ROUTES = (
    Route("GET", "/networks", list_networks, filters=True),
    Route("POST", "/networks/create", create, None, CreateRequest),
    Route("POST", "/networks/prune", prune, filters=True),
    Route("GET", "/networks/{name}", inspect),
    Route("DELETE", "/networks/{name}", remove),
    Route("POST", "/networks/{name}/connect", connect, None, ConnectRequest),
    Route("POST", "/networks/{name}/disconnect", disconnect, None, ConnectRequest),
)
