"""What jobs do to images and volumes: brought in, sent out, built, removed; with progress in Docker's documents."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from bulle.engine import filters as chosen
from bulle.errors import InvalidInput
from bulle.model.reference import Reference

if TYPE_CHECKING:
    from bulle.api.job_process import Desk
    from bulle.build.options import BuildEvent, BuildOptions
    from bulle.engine import Engine, Image
    from bulle.registry.progress import Progress

Filters = Mapping[str, Sequence[str]]
_SAID_EVERY_S = 0.1
_STATUS = {
    "resolve": "Pulling fs layer", "download": "Downloading", "read": "Loading layer", "compress": "Preparing", "upload": "Pushing",
    "retry": "Retrying",
}  # fmt: skip
_DONE = {"download": "Pull complete", "read": "Loading layer", "compress": "Prepared", "upload": "Pushed"}


class _Transfer:
    """Progress as Docker's clients draw it: a line for each layer, not more often than anybody can see."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._lock = threading.Lock()
        self._said = dict[str, float]()

    def __call__(self, step: Progress) -> None:
        done = bool(step.total) and step.current >= step.total
        identifier = step.id.removeprefix("sha256:")[:12] if step.id.startswith("sha256:") else step.id
        with self._lock:
            now = time.monotonic()
            if not done and now - self._said.get(step.id, 0.0) < _SAID_EVERY_S:
                return
            self._said[step.id] = now
        if step.kind == "step":
            self._desk.say({"status": step.message, "id": identifier})
        elif done:
            self._desk.say({"status": _DONE.get(step.kind, _STATUS[step.kind]), "progressDetail": {}, "id": identifier})
        else:
            detail = {"current": step.current, **({"total": step.total} if step.total else {})}
            self._desk.say({"status": _STATUS[step.kind], "progressDetail": detail, "id": identifier})


def _use_login(engine: Engine, name: str, login: Mapping[str, str] | None) -> None:
    if login is not None:
        from bulle.engine.registries import login_for

        engine.images.credentials = login_for(Reference.parse(name).domain, login["username"], login["password"])


def pull(engine: Engine, desk: Desk, name: str, platform: str, every: bool, login: Mapping[str, str] | None) -> None:
    """Bring in an image, or all of a repository."""
    _use_login(engine, name, login)
    shown = Reference.parse(name)
    desk.say({"status": f"Pulling from {shown.familiar_name}", "id": shown.tag or ""})
    before = {image.id for image in engine.images.list()}
    progress = _Transfer(desk)
    source = engine.images
    images = source.pull_all(name, platform=platform, progress=progress) if every else [source.pull(name, platform=platform, progress=progress)]
    for image in images:
        desk.say({"status": f"Digest: {image.manifest_digest}"})
    new = any(image.id not in before for image in images)
    desk.say({"status": f"Status: {'Downloaded newer image' if new else 'Image is up to date'} for {shown.familiar}"})


def push(engine: Engine, desk: Desk, name: str, platform: str, every: bool, login: Mapping[str, str] | None) -> None:
    """Send an image, or all of a repository."""
    _use_login(engine, name, login)
    reference = Reference.parse(name)
    desk.say({"status": f"The push refers to repository [{reference.domain}/{reference.path}]"})
    progress = _Transfer(desk)
    pushed = engine.images.push_all(name, progress=progress) if every else [engine.images.push(name, platform=platform, progress=progress)]
    for one in pushed:
        tag = one.reference.tag or ""
        desk.say({"status": f"{tag}: digest: {one.digest} size: {one.size}"})
        desk.say({"progressDetail": {}, "aux": {"Tag": tag, "Digest": str(one.digest), "Size": one.size}})


def distribution(engine: Engine, _desk: Desk, name: str, login: Mapping[str, str] | None) -> dict[str, object]:
    """Ask a registry what it has under a name."""
    from bulle.engine.distribution import distribution_document

    _use_login(engine, name, login)
    return distribution_document(engine.images, name)


def import_tar(engine: Engine, desk: Desk, source: str, name: str, message: str, changes: Sequence[str], platform: str) -> str:
    """Make an image of a root filesystem: of the request's body, or from an address."""
    if source == "-":
        return engine.images.import_tar(desk.reading, source, name, message=message, changes=changes, platform=platform).id
    if not source.startswith(("http://", "https://")):
        raise InvalidInput(f"cannot import from {source}", "it is no address", "use http:// or https://, or send the archive")
    from typing import BinaryIO, cast

    from bulle.registry.download import download

    with download(source) as response:
        return engine.images.import_tar(cast("BinaryIO", response), source, name, message=message, changes=changes, platform=platform).id


def load(engine: Engine, desk: Desk) -> None:
    """Bring in the images of an archive."""
    for image in engine.images.load(desk.reading, _Transfer(desk)):
        for line in _loaded(image):
            desk.say({"stream": f"{line}\n"})


def _loaded(image: Image) -> list[str]:
    return [f"Loaded image: {Reference.parse(one).familiar}" for one in image.references] or [f"Loaded image ID: {image.id}"]


def save(engine: Engine, desk: Desk, names: Sequence[str]) -> None:
    """Write images as one archive."""
    for name in names:
        engine.images.get(name)
    desk.say(None)
    engine.images.save(names, desk.writing)
    desk.end_data()


def remove_image(engine: Engine, _desk: Desk, name: str, force: bool) -> list[str]:
    """Remove a name, and with the last one the image."""
    return engine.images.remove(name, force=force)


def prune_images(engine: Engine, _desk: Desk, filters: Filters, every: bool) -> tuple[list[str], int]:
    """Remove images that nothing uses."""
    pruned = engine.images.prune(chosen.prune_filter(filters), every=every)
    return pruned.removed, pruned.reclaimed_bytes


def commit(engine: Engine, _desk: Desk, container: str, name: str, author: str, message: str, changes: Sequence[str], pause: bool) -> str:
    """Make an image of a container."""
    found = engine.containers.get(container)
    image, _notes = engine.images.commit(found, name, author=author, message=message, changes=changes, pause=pause)
    return image.id


def create_volume(engine: Engine, _desk: Desk, name: str, labels: Mapping[str, str], options: Mapping[str, str]) -> str:
    """Make a volume."""
    return engine.volumes.create(name, labels=labels, options=options).name


def remove_volume(engine: Engine, _desk: Desk, name: str, force: bool) -> None:
    """Remove a volume."""
    engine.volumes.remove(name, force=force)


def prune_volumes(engine: Engine, _desk: Desk, filters: Filters, every: bool) -> tuple[list[str], int]:
    """Remove volumes that no container has."""
    pruned = engine.volumes.prune(chosen.prune_filter(filters), every=every)
    return pruned.removed, pruned.reclaimed_bytes


def prune_builds(engine: Engine, _desk: Desk, every: bool, until_ns: int) -> tuple[list[str], int]:
    """Forget steps of builds."""
    pruned = engine.prune_build_cache(every=every, until_ns=until_ns)
    return pruned.removed, pruned.reclaimed_bytes


def build(engine: Engine, desk: Desk, options: Mapping[str, Any], quiet: bool, logins: Mapping[str, tuple[str, str]]) -> None:
    """Build an image from the request's body, or from an address."""
    if logins:
        from bulle.engine.registries import logins_for

        engine.images.credentials = logins_for(logins)
    from bulle.build.options import BuildOptions
    from bulle.build.platforms import build_all

    wanted: BuildOptions = msgspec.convert(options, BuildOptions)

    def report(event: BuildEvent) -> None:
        if not quiet and (text := _words(event)):
            desk.say({"stream": text})

    (built, *_others) = build_all(engine, wanted, report=report, stdin=desk.reading)
    for name in built.unused_arguments:
        desk.say({"stream": f"[Warning] One or more build-args {[name]} were not consumed\n"})
    if quiet:
        desk.say({"stream": f"{built.image.id}\n"})
        return
    desk.say({"aux": {"ID": built.image.id}})
    desk.say({"stream": f"Successfully built {built.image.id.rpartition(':')[2][:12]}\n"})
    for tag in wanted.tags:
        desk.say({"stream": f"Successfully tagged {Reference.parse(tag).familiar}\n"})


def _words(event: BuildEvent) -> str:
    """What the classic builder would say."""
    step = event.step
    if event.kind == "output":
        return event.data.decode(errors="replace")
    if event.kind in ("note", "warning"):
        return f"{'[Warning] ' if event.kind == 'warning' else ''}{event.text}\n"
    if step is None:
        return ""
    title = f"Step {step.number}/{step.total} : {step.text}\n"
    if event.kind == "started":
        return title
    return f"{title} ---> Using cache\n" if event.kind == "cached" else ""
