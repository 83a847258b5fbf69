"""Several files become one tree: each is read, interpolated, freed of ``extends``, ``!reset`` and ``include``, laid over those before it and checked.

:mod:`bulle.compose.loading` calls it with the files of a command line; it calls itself for files that are included. What comes out is in long forms,
its paths still relative.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bulle.compose import keys
from bulle.compose.defaults import fill_in, resolve_environment
from bulle.compose.document import Document, InvalidFile, Tree, read_documents, refusal
from bulle.compose.env_file import read_env_files
from bulle.compose.interpolation import interpolate
from bulle.compose.merging import merge, without_repeats
from bulle.compose.model import Note, Place
from bulle.compose.relative_paths import joined, plain, resolve
from bulle.compose.resources import check_resources
from bulle.compose.short_forms import lengthen
from bulle.errors import Unsupported

_REMOTE = ("oci://", "https://", "http://", "git://", "ssh://", "github.com/", "git@")
_SECTIONS = ("services", "volumes", "networks", "secrets", "configs")
MOST_FILES = 500
"""How many files an app may be made of."""


@dataclass
class Warnings:
    """What is said to the user beside the project: variables that are not set, keys that mean nothing any more."""

    missing: dict[str, None] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)


@dataclass(frozen=True)
class Joiner:
    """How files are joined.

    ``directory`` is the host path that names of further files are relative to, ``shown_directory`` the one (perhaps relative) that paths in
    services are joined with; ``chain`` are the files that include this one.
    """

    environment: Mapping[str, str]
    directory: str
    shown_directory: str
    warnings: Warnings
    opened: list[str]
    interpolating: bool = True
    absolute: bool = True
    chain: tuple[str, ...] = ()

    def join(self, files: Sequence[tuple[str, bytes | None]]) -> Tree:
        """One tree of several files (host paths, with their content where it is known). Raises InvalidFile, NotFound."""
        tree = Tree()
        for file, content in files:
            tree = self._add(tree, file, content)
        fill_in(tree)
        check_resources(tree)
        if self.absolute:
            resolve(tree, self.shown_directory)
        resolve_environment(tree, self.environment)
        return tree

    def _add(self, tree: Tree, file: str, content: bytes | None) -> Tree:
        chain = (*self.chain, file)
        for document in self._documents(file, content):
            _Extender(self, file, document.resets).apply(document.tree)
            _forget(tree, document.resets)
            self._include(document.tree, chain)
            merge(tree, document.tree)
            without_repeats(tree)
            _check(tree, file)
            if "version" in tree:
                self.warnings.notes.append(Note(tree.places.get("version", Place(file, 1)), "version", "means nothing any more; take it out"))
                del tree["version"]
            lengthen(tree, lenient=not self.interpolating)
            without_repeats(tree)
        return tree

    def _documents(self, file: str, content: bytes | None) -> list[Document]:
        if content is None:
            content = self._read(file)
        documents = []
        for document in read_documents(content, file):
            if not isinstance(document.tree, Tree):
                raise refusal(Place(file, 1), "not a mapping", "a Compose file is one, with services in it")
            if self.interpolating:
                interpolate(document.tree, self.environment, lambda name: self.warnings.missing.setdefault(name))
            documents.append(document)
        return documents

    def _read(self, file: str) -> bytes:
        self.opened.append(file)
        if len(self.opened) > MOST_FILES:
            raise InvalidFile(f"{file} is one file too many", f"an app is made of at most {MOST_FILES}")
        return read_file(file)

    def services_of(self, file: str) -> tuple[dict[str, Any], list[tuple[str, ...]]]:
        """The services of a file that others extend, in long forms and with paths relative to this one, and what it resets."""
        tree = Tree()
        resets: list[tuple[str, ...]] = []
        for document in self._documents(file, None):
            resets = document.resets
            _forget(tree, resets)
            merge(tree, document.tree)
            without_repeats(tree)
            services = tree.get("services")
            if isinstance(services, Tree):
                for name, service in services.items():
                    if (wrong := keys.SERVICE_CHECK(service, ("services", name))) is not None and isinstance(service, Tree):
                        raise _wrong(tree, wrong.path, wrong.words, file)
            lengthen(tree, lenient=not self.interpolating)
            without_repeats(tree)
        services = tree.get("services")
        if not isinstance(services, Tree):
            raise refusal(Place(file, 1), "no services", "another file extends one of them")
        resolve(tree, _relative(os.path.dirname(file), self.directory))
        return services, resets

    def _include(self, tree: Tree, chain: tuple[str, ...]) -> None:
        if (said := tree.pop("include", None)) is None:
            return
        place = tree.places["include"]
        if (wrong := keys.INCLUDE_CHECK(said, ("include",))) is not None:
            raise refusal(place, f"{_dotted(wrong.path)} {wrong.words}")
        for one in said:
            for key in one.keys() - keys.INCLUDE_KEYS if isinstance(one, Tree) else ():
                self.warnings.notes.append(Note(one.places.get(key, place), f"include.{key}", "is not known; it is left out"))
            included = self._included(Tree({"path": one}) if isinstance(one, str) else one, place, chain)
            for section in _SECTIONS:
                _import(included, tree, section, place)

    def _included(self, said: Tree, place: Place, chain: tuple[str, ...]) -> Tree:
        paths, env_files = ([value] if isinstance(value, str) else list(value) for value in (said.get("path", ()), said.get("env_file", ())))
        if not paths:
            return Tree()
        for path in paths:
            _local(path, place, "include")
        files = [joined(self.directory, path) for path in paths]
        if files[0] in chain:
            raise refusal(place, f"include: {files[0]} includes itself", " -> ".join((*chain[chain.index(files[0]) :], files[0])))
        directory = joined(self.directory, said.get("project_directory") or "") or os.path.dirname(files[0])
        if env_files:
            env_files = [joined(self.directory, one) for one in env_files]
        elif os.path.isfile(default := f"{directory}/.env"):
            env_files = [default]
        environment = {**read_env_files(env_files, self.environment), **self.environment}
        inner = replace(
            self, environment=environment, directory=directory, shown_directory=_relative(directory, self.directory), absolute=True, chain=chain,
        )  # fmt: skip
        return inner.join([(file, None) for file in files])


def read_file(file: str) -> bytes:
    """The content of a file (host path). Raises InvalidFile."""
    try:
        with open(file, "rb") as opened:
            return opened.read()
    except OSError as error:
        raise InvalidFile(f"cannot read {file}", error.strerror or "") from None


def _relative(path: str, start: str) -> str:
    return os.path.relpath(path, start) if start.startswith("/") else plain(path)


def _local(path: str, place: Place, key: str) -> None:
    if path.startswith(_REMOTE):
        raise Unsupported(f"{place}: {key}: {path} is on another machine", "only files of this one are read", "fetch it, and name the file")


def _import(source: Tree, target: Tree, section: str, place: Place) -> None:
    if not isinstance(found := source.get(section), Tree):
        return
    known = target.setdefault(section, Tree())
    if not isinstance(known, Tree):
        return
    for name, value in found.items():
        if name in known and known[name] != value:
            there = known.places.get(name, place)
            raise refusal(place, f"include: {section}.{name} is said by {found.places.get(name, place)} and by {there}", "", "give one another name")
        if name not in known:
            known.take(name, value, found)


def _forget(tree: Tree, paths: Sequence[tuple[str, ...]]) -> None:
    """Take away what ``!reset`` and ``!override`` name."""
    for path in paths:
        node: Any = tree
        for key in path[:-1]:
            node = node.get(key) if isinstance(node, dict) else None
        if isinstance(node, dict) and path:
            node.pop(path[-1], None)


def _check(tree: Tree, file: str) -> None:
    if (wrong := keys.FILE(tree, ())) is not None:
        raise _wrong(tree, wrong.path, wrong.words, file)


def _dotted(path: Sequence[str | int]) -> str:
    return ".".join(f"{part}" for part in path)


def place_in(tree: Any, path: Sequence[str | int], otherwise: Place) -> Place:
    """Where a path of keys stands, or the nearest above it."""
    for part in path:
        if isinstance(tree, Tree):
            otherwise = tree.places.get(str(part), otherwise)
        try:
            tree = tree[part]
        except (KeyError, IndexError, TypeError):
            break
    return otherwise


def _wrong(tree: Tree, path: Sequence[str | int], words: str, file: str) -> InvalidFile:
    return refusal(place_in(tree, path, Place(file, 1)), f"{_dotted(path)} {words}" if path else f"the file {words}")


@dataclass(frozen=True)
class _Extender:
    """``extends`` of the services of one file."""

    joiner: Joiner
    file: str
    resets: list[tuple[str, ...]]

    def apply(self, tree: Tree) -> None:
        services = tree.get("services")
        if services is None:
            return
        if not isinstance(services, Tree):
            raise refusal(tree.places["services"], "services must be a mapping")
        for name in list(services):
            services[name] = self.extended(name, services, self.file, (), [self.resets])

    def extended(self, name: str, services: Any, file: str, chain: tuple[tuple[str, str], ...], resets: list[list[tuple[str, ...]]]) -> Any:
        service = services[name]
        if service is None:
            return None
        place = services.places.get(name, Place(file, 1))
        if not isinstance(service, Tree):
            raise refusal(place, f"services.{name} must be a mapping")
        if "extends" not in service:
            return service
        place = service.places.get("extends", place)
        reference, other = self.reference(service["extends"], place)
        if (file, name) in chain:
            raise refusal(place, f"services.{name}.extends itself", " -> ".join(one for _, one in (*chain, (file, name))))
        chain = (*chain, (file, name))
        if other:
            file = joined(self.joiner.directory, other)
            services, its_resets = self.joiner.services_of(file)
            resets = [*resets, its_resets]
        if reference not in services:
            raise refusal(place, f"services.{name}.extends {reference}", f"there is no such service in {file}")
        base = self.extended(reference, services, file, chain, resets)
        if base is None:
            return service
        source = copied(base)
        for paths in resets:
            _forget(Tree({"services": Tree({name: source})}), paths)
        merged = merge(source, service, ("services", name))
        merged.pop("extends", None)
        return merged

    def reference(self, said: Any, place: Place) -> tuple[str, str]:
        if isinstance(said, str):
            return said, ""
        reference, other = (said.get("service"), said.get("file")) if isinstance(said, Tree) else (None, None)
        if not isinstance(reference, str) or not isinstance(other, (str, type(None))):
            raise refusal(place, "extends must be the name of a service, or a mapping with service and file")
        if other:
            _local(other, place, "extends")
        return reference, other or ""


def copied(value: Any) -> Any:
    """A tree that shares nothing with this one."""
    if isinstance(value, Tree):
        return Tree({key: copied(one) for key, one in value.items()}, dict(value.places))
    return [copied(one) for one in value] if isinstance(value, list) else value



def places_of(tree: Tree, path: tuple[str | int, ...] = ()) -> dict[tuple[str | int, ...], Place]:
    """The place of every key of a tree, by its path."""
    found: dict[tuple[str | int, ...], Place] = {}
    _collect(tree, path, found)
    return found


def _collect(tree: Tree, path: tuple[str | int, ...], found: dict[tuple[str | int, ...], Place]) -> None:
    places = tree.places
    for key, value in tree.items():
        below = (*path, key)
        if key in places:
            found[below] = places[key]
        if isinstance(value, Tree):
            _collect(value, below, found)
        elif isinstance(value, list):
            for number, one in enumerate(value):
                if isinstance(one, Tree) and one.places:
                    _collect(one, (*below, number), found)


