"""What jobs do: each function is one work, by its name, in a process of its own (:mod:`bulle.api.job_process`). Their arguments came as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from bulle.api import image_works
from bulle.engine import filters as chosen
from bulle.errors import Conflict

if TYPE_CHECKING:
    from bulle.api.job_process import Desk
    from bulle.engine import Engine

Filters = Mapping[str, Sequence[str]]


def _file_status(engine: Engine, _desk: Desk, name: str, path: str) -> Any:
    return msgspec.to_builtins(engine.containers.get(name).files.stat(path))


def _read_archive(engine: Engine, desk: Desk, name: str, path: str) -> None:
    files = engine.containers.get(name).files
    desk.say(msgspec.to_builtins(files.stat(path)))
    files.read_archive(path, desk.writing)
    desk.end_data()


def _write_archive(engine: Engine, desk: Desk, name: str, path: str, owners: bool) -> None:
    files = engine.containers.get(name).files
    try:
        files.write_archive(desk.reading, path, archive=owners)
    except Conflict:
        files.stat(path)  # of a path that is not there Docker says so
        raise


def _export(engine: Engine, desk: Desk, name: str) -> None:
    files = engine.containers.get(name).files
    desk.say(None)
    files.export(desk.writing)
    desk.end_data()


def _changes(engine: Engine, _desk: Desk, name: str) -> list[tuple[str, str]]:
    return [(one.kind, one.path.encode("utf-8", "surrogateescape").decode(errors="replace")) for one in engine.containers.get(name).files.changes()]


def _remove_container(engine: Engine, _desk: Desk, name: str, force: bool, volumes: bool) -> None:
    engine.containers.get(name).remove(force=force, volumes=volumes)


def _prune_containers(engine: Engine, _desk: Desk, filters: Filters) -> tuple[list[str], int]:
    pruned = engine.containers.prune(chosen.prune_filter(filters))
    return pruned.removed, pruned.reclaimed_bytes


WORKS: Mapping[str, Callable[..., Any]] = {
    "build": image_works.build,
    "changes": _changes,
    "commit": image_works.commit,
    "create_volume": image_works.create_volume,
    "distribution": image_works.distribution,
    "export": _export,
    "file_status": _file_status,
    "import_tar": image_works.import_tar,
    "load": image_works.load,
    "prune_builds": image_works.prune_builds,
    "prune_containers": _prune_containers,
    "prune_images": image_works.prune_images,
    "prune_volumes": image_works.prune_volumes,
    "pull": image_works.pull,
    "push": image_works.push,
    "read_archive": _read_archive,
    "remove_container": _remove_container,
    "remove_image": image_works.remove_image,
    "remove_volume": image_works.remove_volume,
    "save": image_works.save,
    "write_archive": _write_archive,
}
