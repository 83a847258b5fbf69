"""``/build``: images from a Containerfile, by the classic protocol: a tar goes in, what is done comes out as text. BuildKit's is not served."""

from __future__ import annotations

from typing import Any

import msgspec

from bulle.api.call import Call
from bulle.api.failures import ApiError
from bulle.api.job_streams import show_words
from bulle.api.logins import logins_of
from bulle.api.routing import Route
from bulle.api.service import Service
from bulle.engine import filters

_NO_BUILDKIT = "BuildKit is not served here: build with DOCKER_BUILDKIT=0, or with `bulle build`"


class BuildQuery(msgspec.Struct):
    """What is built; ``buildargs`` and ``labels`` are JSON."""

    dockerfile: str = ""
    t: list[str] = []
    remote: str = ""
    q: bool = False
    nocache: bool = False
    pull: str = ""
    memory: int = 0
    buildargs: str = ""
    labels: str = ""
    target: str = ""
    networkmode: str = ""
    platform: str = ""
    shmsize: int = 0
    squash: bool = False
    version: str = "1"


async def build(service: Service, call: Call) -> None:
    """Build an image."""
    query = call.parameters(BuildQuery)
    if query.version == "2":
        raise ApiError(501, _NO_BUILDKIT)
    if query.squash:
        raise ApiError(501, "squashing is not supported: build in several stages")
    arguments = _pairs(query.buildargs, "buildargs")
    options: dict[str, Any] = {
        "context": query.remote or "-",
        "file": query.dockerfile,
        "tags": query.t,
        "no_cache": query.nocache,
        "pull": query.pull.lower() in ("1", "true"),
        "memory_bytes": query.memory,
        "shm_bytes": query.shmsize,
        "arguments": [name if value is None else f"{name}={value}" for name, value in arguments.items()],
        "labels": [f"{name}={value or ''}" for name, value in _pairs(query.labels, "labels").items()],
        "target": query.target,
        "network": "" if query.networkmode == "default" else query.networkmode,
        "platforms": [query.platform] if query.platform else [],
    }
    async with service.job("build", options=options, quiet=query.q, logins=logins_of(call)) as job:
        await show_words(call, job, fed=not query.remote)


def _pairs(text: str, name: str) -> dict[str, str | None]:
    try:
        return msgspec.json.decode(text, type=dict[str, str | None]) if text else {}
    except msgspec.MsgspecError as error:
        raise ApiError(400, f"error reading {name}: {error}") from None


class PruneQuery(msgspec.Struct):
    """Whether also what images still need."""

    all: bool = False


async def prune(service: Service, call: Call) -> None:
    """Forget steps of builds."""
    every, chosen = call.parameters(PruneQuery).all, call.filters()
    until_ns = filters.prune_filter({key: values for key, values in chosen.items() if key == "until"}).until_ns
    async with service.job("prune_builds", every=every, until_ns=until_ns) as job:
        removed, reclaimed = await job.done()
    await call.answer({"CachesDeleted": removed or None, "SpaceReclaimed": reclaimed})


async def no_buildkit(service: Service, call: Call) -> None:
    """Say that BuildKit is not served."""
    raise ApiError(501, _NO_BUILDKIT)


ROUTES = (
    Route("POST", "/build", build, BuildQuery),
    Route("POST", "/build/prune", prune, PruneQuery, filters=True),
    Route("POST", "/session", no_buildkit),
    Route("POST", "/grpc", no_buildkit),
)
