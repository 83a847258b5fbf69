"""Which files an app is made of, which directory and name it has, which variables and profiles hold: from a command line and its environment."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence

import msgspec

from bulle.compose.env_file import read_env_files
from bulle.compose.joining import read_file
from bulle.errors import InvalidInput, NotFound

DEFAULT_FILES = ("compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")
OVERRIDE_FILES = ("compose.override.yml", "compose.override.yaml", "docker-compose.override.yml", "docker-compose.override.yaml")
_TRUE, _FALSE = frozenset({"1", "t", "T", "TRUE", "true", "True"}), frozenset({"0", "f", "F", "FALSE", "false", "False"})


class LoadRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for; everything may be left out.

    ``files`` are host paths, ``-`` is standard input; without any they are looked for. ``environment`` is this process's unless another is given.
    ``services`` are named on the command line: they, and what they need, are enabled whatever their profiles.
    """

    files: tuple[str, ...] = ()
    project_directory: str = ""
    project_name: str = ""
    profiles: tuple[str, ...] = ()
    env_files: tuple[str, ...] = ()
    environment: Mapping[str, str] | None = None
    services: tuple[str, ...] = ()
    no_interpolate: bool = False
    no_normalize: bool = False
    no_path_resolution: bool = False
    no_env_resolution: bool = False
    no_consistency: bool = False


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What a request comes to: host paths, absolute. ``name`` is the one that is asked for, or empty; ``environment`` has the env files in it."""

    files: tuple[tuple[str, bytes], ...]
    directory: str
    environment: dict[str, str]
    profiles: tuple[str, ...]
    name: str


def find_files(project_directory: str = "", environment: Mapping[str, str] | None = None) -> list[str]:
    """The host paths of the files that are meant where none is named: ``COMPOSE_FILE``, else by their usual names here or in a directory above."""
    environment = os.environ if environment is None else environment
    if (said := environment.get("COMPOSE_FILE")) is not None:
        separator = environment.get("COMPOSE_PATH_SEPARATOR") or os.pathsep
        return [_there(path) for path in said.split(separator)]
    directory = os.path.abspath(project_directory or os.getcwd())
    while True:
        for names in (DEFAULT_FILES,):
            if (first := _first(directory, names)) is not None:
                second = _first(directory, OVERRIDE_FILES)
                return [first] if second is None else [first, second]
        if directory == (above := os.path.dirname(directory)):
            return []
        directory = above


def _first(directory: str, names: Sequence[str]) -> str | None:
    return next((path for name in names if os.path.exists(path := f"{directory.rstrip('/')}/{name}")), None)


def _there(path: str) -> str:
    if path == "-":
        return path
    path = os.path.abspath(path)
    if not os.path.exists(path):
        raise NotFound(f"no file {path}", "", "name the app's files with -f, or in COMPOSE_FILE")
    return path


def find(request: LoadRequest) -> Found:
    """What a request comes to. Raises NotFound, InvalidInput."""
    environment = dict(os.environ if request.environment is None else request.environment)
    env_files = _env_files(request, environment)
    if request.project_directory or not request.files:
        # .env here may say COMPOSE_FILE and COMPOSE_PROJECT_NAME
        _read_env(environment, env_files, os.path.abspath(request.project_directory or os.getcwd()))
    files = [_there(file) for file in request.files] or find_files(request.project_directory, environment)
    if not files:
        raise NotFound("no Compose file", f"none of {', '.join(DEFAULT_FILES)} in this directory or one above", "name one with -f")
    real = next((file for file in files if file != "-"), None)
    directory = os.path.abspath(request.project_directory) if request.project_directory else os.path.dirname(real) if real else os.getcwd()
    _read_env(environment, env_files, directory)
    profiles = request.profiles or tuple(name.strip() for name in environment.get("COMPOSE_PROFILES", "").split(","))
    if request.project_name and normalized_name(request.project_name) != request.project_name:
        raise _bad_name(request.project_name)
    return Found(
        files=tuple((file, _content(file)) for file in files), directory=directory, environment=environment, profiles=profiles,
        name=request.project_name or environment.get("COMPOSE_PROJECT_NAME", ""),
    )  # fmt: skip


def _content(file: str) -> bytes:
    return sys.stdin.buffer.read() if file == "-" else read_file(file)


def _env_files(request: LoadRequest, environment: Mapping[str, str]) -> list[str] | None:
    """The env files that are named; None where ``.env`` is meant, nothing where none is wanted."""
    named = list(request.env_files) or [one for one in environment.get("COMPOSE_ENV_FILES", "").split(",") if one]
    if named:
        return [os.path.abspath(one) for one in named]
    disabled = environment.get("COMPOSE_DISABLE_ENV_FILE")
    if disabled is not None and disabled not in _FALSE:
        if disabled not in _TRUE:
            raise InvalidInput(f"COMPOSE_DISABLE_ENV_FILE is {disabled!r}", "", "it is true or false")
        return []
    return None


def _read_env(environment: dict[str, str], named: list[str] | None, directory: str) -> None:
    files = named if named is not None else [default] if os.path.isfile(default := f"{directory.rstrip('/')}/.env") else []
    for key, value in read_env_files(files, environment).items():
        environment.setdefault(key, value)


def normalized_name(name: str) -> str:
    """The name of a project as it can stand in the names of its containers: lower case, digits, ``_`` and ``-``."""
    return re.sub(r"[^a-z0-9_-]", "", name.lower()).lstrip("_-")


def _bad_name(name: str) -> InvalidInput:
    return InvalidInput(f"{name!r} cannot be the name of a project", "", "use lower case letters, digits, - and _, a letter or digit first")


def project_name(found: Found, said: str | None) -> str:
    """The name of a project: as asked for, else what its files say, else that of its directory. Raises InvalidInput."""
    if found.name:
        if normalized_name(found.name) != found.name:
            raise _bad_name(found.name)
        return found.name
    name = normalized_name(os.path.basename(found.directory) if said is None else said)
    if not name:
        raise InvalidInput("the project has no name", f"nothing of {said or found.directory!r} can be one", "give one with -p")
    return name
