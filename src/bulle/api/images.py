"""``/images``, ``/commit``, ``/auth`` and ``/distribution``: images listed, shown, named, removed, brought in and sent out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from bulle.api import documents
from bulle.api.call import TAR, Call
from bulle.api.failures import ApiError
from bulle.api.job_streams import show_words, stream_out
from bulle.api.logins import login_of
from bulle.api.routing import Route
from bulle.api.service import Service
from bulle.engine import filters
from bulle.engine.listing import image_summary
from bulle.errors import AuthenticationFailed
from bulle.model.reference import Reference

_PRUNE_KEYS = ("dangling", "label", "label!", "until")


class ListQuery(msgspec.Struct, rename="kebab"):
    """How much of which images."""

    all: bool = False
    shared_size: bool = False
    filter: str = ""


async def list_images(service: Service, call: Call) -> None:
    """List images."""
    query, chosen = call.parameters(ListQuery), call.filters()
    filters.check_keys(chosen, filters.IMAGE_KEYS)
    patterns = [filters.glob(one) for one in (*chosen.get("reference", ()), *([query.filter] if query.filter else ()))]

    def find() -> list[dict[str, object]]:
        tests = filters.images(service.engine, {key: values for key, values in chosen.items() if key != "reference"})
        found = [one for one in service.engine.images.list() if all(test(one) for test in tests)]
        if patterns:
            found = [one for one in found if any(filters.reference_matches(Reference.parse(name), patterns) for name in one.references)]
        return sorted((image_summary(one) for one in found), key=lambda one: -int(str(one["Created"])))

    await call.answer(await service.run(find))


async def inspect(service: Service, call: Call, name: str) -> None:
    """Show an image."""
    found = await service.run(lambda: service.engine.images.inspect(name))
    await call.answer(documents.image(found))


async def history(service: Service, call: Call, name: str) -> None:
    """Show how an image came about."""
    entries = await service.run(lambda: service.engine.images.history(name))
    await call.answer(
        [
            {
                "Id": one.id,
                "Created": one.created_at_s,
                "CreatedBy": one.created_by,
                "Tags": [Reference.parse(tag).familiar for tag in one.tags] or None,
                "Size": one.size_bytes,
                "Comment": one.comment,
            }
            for one in entries
        ]
    )


class TagQuery(msgspec.Struct):
    """The new name."""

    repo: str = ""
    tag: str = ""


async def tag(service: Service, call: Call, name: str) -> None:
    """Give an image one more name."""
    query = call.parameters(TagQuery)
    if not query.repo:
        raise ApiError(400, "repository name must have at least one component")
    await service.run(lambda: service.engine.images.tag(name, _joined(query.repo, query.tag)))
    await call.answer_text("", status=201)


def _joined(repository: str, tag: str) -> str:
    """A repository with a tag or digest."""
    if not tag:
        return repository
    return f"{repository}@{tag}" if tag.startswith("sha256:") else f"{repository}:{tag}"


class RemoveQuery(msgspec.Struct):
    """Whether it is removed although a container has it."""

    force: bool = False
    noprune: bool = False


async def remove(service: Service, call: Call, name: str) -> None:
    """Remove a name of an image, and with the last one the image."""
    force = call.parameters(RemoveQuery).force
    async with service.job("remove_image", name=name, force=force) as job:
        lines = await job.done()
    await call.answer(_removed(lines))


def _removed(lines: Sequence[str]) -> list[dict[str, str]]:
    """``Untagged: NAME`` and the like, as documents."""
    pairs = (line.partition(": ") for line in lines)
    return [{kind[0].upper() + kind[1:]: value} for kind, _, value in pairs]


class PullQuery(msgspec.Struct, rename="camel"):
    """What is brought in: an image of a registry, or the root filesystem in the body."""

    from_image: str = ""
    from_src: str = ""
    repo: str = ""
    tag: str = ""
    message: str = ""
    platform: str = ""
    changes: list[str] = []


async def pull(service: Service, call: Call) -> None:
    """Bring in an image from a registry, or make one of a tar."""
    query = call.parameters(PullQuery)
    if query.from_src:
        arguments = {"source": query.from_src, "name": _joined(query.repo, query.tag) if query.repo else "", "message": query.message}
        async with service.job("import_tar", **arguments, changes=query.changes, platform=query.platform) as job:
            await show_words(call, job, fed=query.from_src == "-", at_end=lambda image: [{"status": image}])
        return
    if not query.from_image:
        raise ApiError(400, "fromImage or fromSrc is needed")
    name, every = _joined(query.from_image, query.tag), not query.tag and ":" not in query.from_image.rpartition("/")[2]
    async with service.job("pull", name=name, platform=query.platform, every=every, login=login_of(call)) as job:
        await show_words(call, job)


class PushQuery(msgspec.Struct):
    """The tag, or none for all."""

    tag: str = ""
    platform: str = ""


async def push(service: Service, call: Call, name: str) -> None:
    """Send an image to the registry that its name says."""
    query = call.parameters(PushQuery)
    await service.run(lambda: service.engine.images.get(_joined(name, query.tag)) if query.tag else None)
    platform = ""
    if query.platform:
        document = msgspec.json.decode(query.platform, type=dict[str, str])
        platform = "/".join(document[key] for key in ("os", "architecture", "variant") if document.get(key))
    async with service.job("push", name=_joined(name, query.tag), platform=platform, every=not query.tag, login=login_of(call)) as job:
        await show_words(call, job)


class AuthRequest(msgspec.Struct):
    """A login."""

    username: str = ""
    password: str = ""
    serveraddress: str = ""
    identitytoken: str = ""


async def auth(service: Service, call: Call) -> None:
    """Ask a registry whether it takes a login."""
    request = await call.document(AuthRequest)
    if request.identitytoken:
        raise ApiError(501, "identity tokens are not supported: log in with a password")
    try:
        await service.run(lambda: service.engine.registries.check(request.serveraddress, request.username, request.password))
    except AuthenticationFailed as error:
        raise ApiError(401, str(error)) from error
    await call.answer({"Status": "Login Succeeded", "IdentityToken": ""})


class SaveQuery(msgspec.Struct):
    """Which images."""

    names: list[str] = []


async def save(service: Service, call: Call) -> None:
    """Send images as one archive."""
    names = [one for text in call.parameters(SaveQuery).names for one in text.split(",") if one]
    if not names:
        raise ApiError(400, "no image is named")
    async with service.job("save", names=names) as job:
        await stream_out(call, job, TAR)


async def save_one(service: Service, call: Call, name: str) -> None:
    """Send an image as an archive."""
    async with service.job("save", names=[name]) as job:
        await stream_out(call, job, TAR)


async def load(service: Service, call: Call) -> None:
    """Bring in the images of an archive."""
    async with service.job("load") as job:
        await show_words(call, job, fed=True)


async def prune(service: Service, call: Call) -> None:
    """Remove images that nothing uses."""
    chosen = call.filters()
    filters.check_keys(chosen, _PRUNE_KEYS)
    every = chosen.pop("dangling", ["true"])[-1].lower() in ("false", "0")
    async with service.job("prune_images", filters=chosen, every=every) as job:
        lines, reclaimed = await job.done()
    await call.answer({"ImagesDeleted": _removed(lines) or None, "SpaceReclaimed": reclaimed})


class CommitQuery(msgspec.Struct):
    """Of which container, and how the image is called."""

    container: str = ""
    repo: str = ""
    tag: str = ""
    comment: str = ""
    author: str = ""
    pause: bool = True
    changes: list[str] = []


async def commit(service: Service, call: Call) -> None:
    """Make an image of what a container is now."""
    query = call.parameters(CommitQuery)
    config: Mapping[str, Any] | None = msgspec.json.decode(await call.body(1 << 20) or b"null", type=dict[str, Any] | None)
    if any((config or {}).values()):
        raise ApiError(501, "a configuration in the body is not supported: say it with changes")
    container = await service.container(query.container)
    name = _joined(query.repo, query.tag) if query.repo else ""
    changes = [line for text in query.changes for line in text.split("\n") if line.strip()]
    arguments = {"name": name, "author": query.author, "message": query.comment, "changes": changes, "pause": query.pause}
    async with service.job("commit", container=container.id, **arguments) as job:
        image = await job.done()
    await call.answer({"Id": image}, 201)


async def distribution(service: Service, call: Call, name: str) -> None:
    """Show what a registry has under a name."""
    async with service.job("distribution", name=name, login=login_of(call)) as job:
        await call.answer(await job.done())


class SearchQuery(msgspec.Struct):
    """A word, and how many are wanted."""

    term: str = ""
    limit: int = 25


async def search(service: Service, call: Call) -> None:
    """Search the images of this machine by their names."""
    query = call.parameters(SearchQuery)
    found = await service.run(service.engine.images.list)
    names = [Reference.parse(name).familiar_name for image in found for name in image.references]
    words = query.term.lower()
    chosen = [name for name in dict.fromkeys(names) if words in name.lower()][: query.limit or 25]
    await call.answer([{"name": name, "description": "", "star_count": 0, "is_official": False, "is_automated": False} for name in chosen])


ROUTES = (
    Route("GET", "/images/json", list_images, ListQuery, filters=True),
    Route("GET", "/images/search", search, SearchQuery),
    Route("GET", "/images/get", save, SaveQuery),
    Route("POST", "/images/create", pull, PullQuery),
    Route("POST", "/images/load", load),
    Route("POST", "/images/prune", prune, filters=True),
    Route("GET", "/images/{name...}/json", inspect),
    Route("GET", "/images/{name...}/history", history),
    Route("GET", "/images/{name...}/get", save_one),
    Route("POST", "/images/{name...}/tag", tag, TagQuery),
    Route("POST", "/images/{name...}/push", push, PushQuery),
    Route("DELETE", "/images/{name...}", remove, RemoveQuery),
    Route("GET", "/distribution/{name...}/json", distribution),
    Route("POST", "/commit", commit, CommitQuery),
    Route("POST", "/auth", auth, None, AuthRequest),
)
