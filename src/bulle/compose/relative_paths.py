"""Paths of a file's tree made absolute: what is relative is relative to the directory of the project, ``~`` is the home of who asks."""

from __future__ import annotations

import os
import posixpath
import re
from typing import Any

from bulle.compose.document import Tree, refusal
from bulle.compose.model import Place

_REMOTE = ("https://", "http://", "git://", "ssh://", "github.com/", "git@")
_WINDOWS = re.compile(r"[a-zA-Z]:[\\/]|[\\/]{2}[^\\/.][^\\/]*[\\/][^\\/.][^\\/]*[\\/]")


def joined(directory: str, path: str) -> str:
    """A path below a directory, made plain; an absolute one as it stands."""
    path = _at_home(path)
    if not path or path.startswith("/"):
        return path
    return plain(f"{directory}/{path}") if directory else plain(path)


def plain(path: str) -> str:
    """A path without ``.``, ``..`` and doubled slashes."""
    return re.sub(r"^//", "/", posixpath.normpath(path))


def _at_home(path: str) -> str:
    if path.startswith("~") and (home := os.environ.get("HOME")):
        return plain(f"{home}/{path[1:]}")
    return path


def _path(directory: str, value: Any) -> Any:
    return joined(directory, value) if isinstance(value, str) else value


def _file(directory: str, value: Any) -> Any:
    """A path that may be one of Windows."""
    if not isinstance(value, str) or _WINDOWS.match(value):
        return value
    path = _at_home(value)
    return path if path.startswith("/") else plain(f"{directory}/{path}")


def _context(directory: str, value: Any) -> Any:
    if not isinstance(value, str) or "://" in value or value.startswith(("service:", *_REMOTE)):
        return value
    return joined(directory, value)


def resolve(tree: Tree, directory: str) -> None:
    """Make the paths of a tree absolute, in place. Raises InvalidFile."""
    for service in trees(tree.get("services")):
        _service(service, directory)
    for section in ("configs", "secrets"):
        for one in trees(tree.get(section)):
            _change(one, "file", directory, _file)
    for volume in trees(tree.get("volumes")):
        options = volume.get("driver_opts")
        if volume.get("driver") == "local" and isinstance(options, Tree) and options.get("o") == "bind":
            _change(options, "device", directory, _file)


def trees(value: Any) -> list[Tree]:
    """The mappings among the values of a mapping or list."""
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [one for one in values if isinstance(one, Tree)]


def _change(tree: Tree, key: str, directory: str, how: Any) -> None:
    if key in tree:
        tree[key] = how(directory, tree[key])


def _service(service: Tree, directory: str) -> None:
    build = service.get("build")
    if isinstance(build, Tree):
        _change(build, "context", directory, _context)
        for key, how in (("additional_contexts", _context), ("ssh", _file)):
            inner = build.get(key)
            if isinstance(inner, Tree):
                for name in inner:
                    _change(inner, name, directory, how)
    for env_file in trees(service.get("env_file")):
        _change(env_file, "path", directory, _path)
    if isinstance(files := service.get("label_file"), list):
        service["label_file"] = [_path(directory, one) for one in files]
    if isinstance(extends := service.get("extends"), Tree):
        _change(extends, "file", directory, _path)
    develop = service.get("develop")
    for rule in trees(develop.get("watch") if isinstance(develop, Tree) else None):
        if isinstance(path := rule.get("path"), str):
            rule["path"] = os.path.realpath(joined(directory, path)) if path else path
    for volume in trees(service.get("volumes")):
        if volume.get("type") == "bind":
            if "source" not in volume:
                raise refusal(service.places.get("volumes", Place("", 0)), "volumes: a bind without a source")
            _change(volume, "source", directory, _file)
