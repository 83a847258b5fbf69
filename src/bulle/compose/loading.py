"""From the files of an app to its :class:`~bulle.compose.model.Project`: the way in to this room.

Files are found (:mod:`.finding`), read (:mod:`.document`), joined into one tree (:mod:`.joining`), given what follows by itself (:mod:`.defaults`),
read by the tables of :mod:`.keys`, made into structures (:mod:`.binding`) and checked against each other (:mod:`.consistency`). Nothing is ever
written. What it accepts is what docker compose accepts; what this engine cannot do is refused by who applies it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from bulle.compose import binding, keys, shell_words
from bulle.compose.consistency import check
from bulle.compose.defaults import normalize
from bulle.compose.document import Tree, read_documents, refusal
from bulle.compose.env_file import read_env_file
from bulle.compose.finding import Found, LoadRequest, find, find_files, project_name
from bulle.compose.interpolation import interpolate
from bulle.compose.joining import Joiner, Warnings, place_in, places_of
from bulle.compose.model import FileObject, Network, Note, Place, Project, Service, Volume
from bulle.compose.values import Unreadable
from bulle.errors import InvalidInput

__all__ = ["LoadRequest", "find_files", "load", "load_tree"]

_SECTIONS = ("services", "networks", "volumes", "secrets", "configs")


def load(request: LoadRequest = LoadRequest()) -> Project:  # noqa: B008 (frozen)
    """The project that files say. Raises InvalidFile with file and line, NotFound, InvalidInput; nothing was changed then."""
    tree, found, name, warnings = _tree(request)
    places = places_of(tree)
    first = found.files[0][0]
    document: dict[str, Any] = {"name": name, **_read(tree, first)}
    services = {key: value for key, value in document["services"].items() if value is not None}
    profiles = _profiles(request, services, found.profiles)
    enabled = {key: value for key, value in services.items() if _is_enabled(value, profiles)}
    for one in enabled.values():
        _resolve_files(one, found.environment, resolving=not request.no_env_resolution)
    document["services"] = {key: enabled.get(key, value) for key, value in services.items()}
    project = _bind(document, enabled, places, found, warnings)
    if not request.no_consistency:
        check(project)
    return project


def load_tree(request: LoadRequest) -> tuple[str, Tree]:
    """The name of a project and its files joined to one tree, without more: for those who want to see the variables in it."""
    tree, _found, name, _warnings = _tree(request)
    return name, tree


def _tree(request: LoadRequest) -> tuple[Tree, Found, str, Warnings]:
    found = find(request)
    name = project_name(found, _said_name(found, request))
    found.environment["COMPOSE_PROJECT_NAME"] = name
    warnings = Warnings()
    environment = {} if request.no_interpolate else found.environment
    joiner = Joiner(
        environment=environment, directory=found.directory, shown_directory=found.directory, warnings=warnings, opened=[],
        interpolating=not request.no_interpolate, absolute=not request.no_path_resolution,
    )  # fmt: skip
    tree = joiner.join(found.files)
    if not tree:
        raise InvalidInput(f"{found.files[0][0]} is empty", "", "say services: in it")
    _note_cut_commands(tree, found.files[0][0], warnings)
    if not request.no_normalize:
        normalize(tree, name, environment)
    return tree, found, name, warnings


def _note_cut_commands(tree: Tree, file: str, warnings: Warnings) -> None:
    """What a shell would do is no part of a command that is one string, as for Compose: nobody should wonder where it went."""
    services = tree.get("services")
    for name, service in services.items() if isinstance(services, Tree) else ():
        for key in ("command", "entrypoint") if isinstance(service, Tree) else ():
            if isinstance(text := service.get(key), str):
                with suppress(ValueError):
                    if leftover := shell_words.split(text).leftover:
                        place = place_in(tree, ["services", name, key], Place(file, 1))
                        said = f"{leftover!r} is left out, as no shell reads it; say [sh, -c, …] to have one"
                        warnings.notes.append(Note(place, key, said))


def _said_name(found: Found, request: LoadRequest) -> str | None:
    """The last name that the files say, None where none does; nothing else is looked at."""
    said = None
    for file, content in found.files:
        if found.name or b"name" not in content:
            continue
        for document in read_documents(content, file):
            name = document.tree.get("name") if isinstance(document.tree, Tree) else None
            if isinstance(name, str) and name:
                tree = Tree({"name": name}, {"name": document.tree.places["name"]})
                if not request.no_interpolate:
                    interpolate(tree, found.environment)
                said = tree["name"]
    return said


def _read(tree: Tree, file: str) -> dict[str, Any]:
    """The sections of a tree as values, and its extensions."""
    found: dict[str, Any] = {}
    for section in _SECTIONS:
        reader = keys.READERS[section]
        said = tree.get(section)
        found[section] = {
            name: None if (value is None and section == "services") else _value(reader, {} if value is None else value, tree, section, name, file)
            for name, value in sorted(said.items())
        } if isinstance(said, Tree) else {}  # fmt: skip
    for key in sorted(tree):
        if key.startswith("x-"):
            found[key] = tree[key]
    return found


def _value(reader: Callable[[Any], Any], value: Any, tree: Tree, section: str, name: str, file: str) -> Any:
    try:
        return reader(value)
    except Unreadable as error:
        path = [section, name, *error.path]
        raise refusal(place_in(tree, path, Place(file, 1)), f"{'.'.join(path)}: {error}") from None


def _is_enabled(service: Mapping[str, Any], profiles: frozenset[str]) -> bool:
    own = service.get("profiles")
    return not own or "*" in profiles or not profiles.isdisjoint(own)


def _profiles(request: LoadRequest, services: Mapping[str, Any], given: tuple[str, ...]) -> frozenset[str]:
    """The profiles that hold, with those of what is named on the command line and of what that needs."""
    profiles = set(given)
    waiting, seen = list(request.services), set[str]()
    while waiting:
        name = waiting.pop()
        if (service := services.get(name)) is None or name in seen:
            continue
        seen.add(name)
        if not _is_enabled(service, frozenset(profiles)):
            profiles.update(service["profiles"])
        waiting += [other for other, one in (service.get("depends_on") or {}).items() if one and one.get("required", True)]
    return frozenset(profiles)


def _resolve_files(service: dict[str, Any], environment: Mapping[str, str], *, resolving: bool) -> None:
    """``env_file`` and ``label_file`` become part of ``environment`` and ``labels``."""
    if resolving:
        variables: dict[str, str | None] = {}
        for one in service.get("env_file") or ():
            _read_variables(one, variables, environment)
        said = service.get("environment", {})
        for key, value in said.items():
            variables[key] = environment.get(key) if value is None else value
        if variables:
            _put(service, "environment", dict(sorted(variables.items())))
        service.pop("env_file", None)
    if files := service.pop("label_file", None):
        labels: dict[str, str] = {}
        for file in files:
            labels.update(read_env_file(file, labels.get))
        labels.update(service.get("labels", {}))
        _put(service, "labels", dict(sorted(labels.items())))


def _put(service: dict[str, Any], key: str, value: Any) -> None:
    """Set a key where the table of keys has it."""
    if key in service:
        service[key] = value
        return
    order = {name: number for number, name in enumerate(keys.SERVICE)}
    items = [*service.items(), (key, value)]
    service.clear()
    service.update(sorted(items, key=lambda item: order.get(item[0], len(order))))


def _read_variables(said: Mapping[str, Any], variables: dict[str, str | None], environment: Mapping[str, str]) -> None:
    file, how = str(said.get("path", "")), said.get("format", "")
    if how not in ("", "raw"):
        raise InvalidInput(f"the env file {file} has the format {how!r}", "", "leave it out, or say raw")
    if not os.path.exists(file) and said.get("required") in (False, "false"):
        return

    def lookup(name: str) -> str | None:
        value = variables.get(name)
        return environment.get(name) if value is None else value

    variables.update(read_env_file(file, lookup, raw=how == "raw"))


def _bind(
    document: dict[str, Any], enabled: Mapping[str, Any], places: dict[tuple[str | int, ...], Place], found: Found, warnings: Warnings
) -> Project:
    first = found.files[0][0]

    def service(name: str, value: Mapping[str, Any]) -> Service:
        at = places.get(("services", name), Place(first, 1))
        return binding.service(name, value, lambda key: places.get(("services", name, key), at))

    services = {name: service(name, value) for name, value in document["services"].items()}
    networks: dict[str, Network] = {name: binding.network(name, value) for name, value in document["networks"].items()}
    volumes: dict[str, Volume] = {name: binding.volume(name, value) for name, value in document["volumes"].items()}
    secrets: dict[str, FileObject] = {name: binding.file_object(value) for name, value in document["secrets"].items()}
    configs: dict[str, FileObject] = {name: binding.file_object(value) for name, value in document["configs"].items()}
    return Project(
        name=document["name"], working_directory=found.directory, files=tuple(file for file, _ in found.files), environment=found.environment,
        services={name: one for name, one in services.items() if name in enabled},
        disabled={name: one for name, one in services.items() if name not in enabled},
        networks=networks, volumes=volumes, secrets=secrets, configs=configs,
        document={**document, "services": {name: value for name, value in document["services"].items() if name in enabled}},
        notes=_notes(warnings, first), places=places,
    )  # fmt: skip


def _notes(warnings: Warnings, file: str) -> tuple[Note, ...]:
    return (
        *warnings.notes,
        *(Note(Place(file, 1), name, "the variable is not set; it is taken as empty") for name in warnings.missing),
    )
