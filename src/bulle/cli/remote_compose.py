"""``bulle compose`` for another machine. See ``remote_files``.

The files of an app are read here: its variables, ``.env`` and env files are this machine's. There goes what they come to, as one file, with the
contexts of builds where something may be built, and the files of secrets and configs. Binds are paths there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from bulle.cli.journey import Journey
from bulle.cli.remote_build import kept
from bulle.cli.remote_files import found, read_verb
from bulle.cli.verb import Verb
from bulle.errors import InvalidInput, NotFound
from bulle.fleet.carrying import Upload

if TYPE_CHECKING:
    from bulle.compose.model import Project

_READ_HERE = frozenset({"config", "convert"})
_BUILDING = frozenset({"build", "create", "run", "scale", "up", "update"})
_BUILT_IN = ("unconfined", "default", "builtin")


def read_compose(words: Sequence[str]) -> Journey:
    """Read a command line of Compose's, or of ``up`` and ``down``. Raises click's errors, BulleError."""
    from bulle.cli.composing import compose

    name = words[0]
    _, root, _ = found(["compose"])
    if name != "compose":
        said, rest, before = _root_flags(words, root)
    else:
        line, positional = compose.read(root, words[1:])
        said, before = _said(line), _other_flags(line)
        if not positional or any(not option.expose_value for option, _ in line) or "version" in before:
            return Journey(words=list(words))
        name, rest = positional[0], positional[1:]
    command = compose.get_command(root, name)
    if not isinstance(command, Verb) or name in _READ_HERE:
        return Journey(is_here=True)
    if name == "up" and any(word in ("-w", "--watch") for word in rest):
        raise InvalidInput("files of this machine cannot be watched for another one", "", "leave --watch out, and run up again after changes")
    journey = Journey()
    before += _carry(journey, said, building=name in _BUILDING)
    journey.words = ["compose", *before, name]
    read_verb(journey, command, click.Context(command, info_name=name, parent=root), rest)
    return journey


def _root_flags(words: Sequence[str], root: click.Context) -> tuple[dict[str, list[str]], list[str], list[str]]:
    """``bulle up`` has the flags of ``compose`` among its own."""
    from bulle.cli.composing import PROJECT_FLAGS

    command, context, rest = found(words)
    assert isinstance(command, Verb)
    line, positional = command.read(context, rest)
    names = {one.name for one in PROJECT_FLAGS}
    own: list[str] = []
    for option, value in line:
        if option.name not in names:
            flag = max(option.opts, key=len)
            own += [flag if value is True else f"{flag}={'false' if value is False else value}"]
    return _said([(option, value) for option, value in line if option.name in names]), [*own, *(["--", *positional] if positional else [])], []


def _said(line: Sequence[tuple[click.Option, str | bool]]) -> dict[str, list[str]]:
    result: dict[str, list[str]] = {}
    for option, value in line:
        if isinstance(value, str):
            result.setdefault(option.name or "", []).append(value)
    return result


def _other_flags(line: Sequence[tuple[click.Option, str | bool]]) -> list[str]:
    """Flags of ``compose`` that are about how, not which app."""
    names = {"ansi", "progress", "parallel", "dry_run", "compatibility", "all_resources"}
    found = ((max(option.opts, key=len), str(value).lower() if isinstance(value, bool) else value) for option, value in line if option.name in names)
    return [f"{flag}={value}" for flag, value in found]


def _carry(journey: Journey, said: dict[str, list[str]], *, building: bool) -> list[str]:
    """Carry the app; returns the flags that name it there. Without files it is only named."""
    from bulle.cli.composing import NoFile
    from bulle.compose.loading import LoadRequest, find_files, load

    name = said.get("project_name", [""])[-1]
    directory = said.get("project_directory", [""])[-1]
    request = LoadRequest(
        files=tuple(said.get("file", ())), project_name=name, project_directory=directory, profiles=("*",), env_files=tuple(said.get("env_file", ()))
    )
    if not request.files and not find_files(directory):
        return [f"--project-name={name}"] if name else []
    try:
        project = load(request)
    except NotFound as error:
        raise NoFile(*error.args) from None
    document = _document(journey, project, building=building)
    profiles = said.get("profile") or [one.strip() for one in project.environment.get("COMPOSE_PROFILES", "").split(",") if one.strip()]
    return [
        f"--project-name={project.name}", f"--file={_json(journey, document)}", f"--project-directory={project.working_directory}",
        f"--env-file={journey.upload_text([])}", *(f"--profile={one}" for one in profiles),
    ]  # fmt: skip


def _json(journey: Journey, document: dict[str, Any]) -> str:
    import msgspec

    name = f"in/{len(journey.uploads)}/compose.json"
    # The directory there is not known yet: it is a variable until the file arrives.
    journey.uploads.append(Upload(name, content=msgspec.json.encode(document, enc_hook=str), names_directory=True))
    return f"\0/{name}"


def _document(journey: Journey, project: Project, *, building: bool) -> dict[str, Any]:
    """What the files come to, with the paths of what is carried; a dollar that is meant is doubled."""
    document: dict[str, Any] = _doubled({**project.document, "name": project.name})
    for name, service in document.get("services", {}).items():
        if isinstance(service.get("build"), dict):
            _build(journey, project, service["build"], building=building)
        if "security_opt" in service:
            service["security_opt"] = [_profile(project, text) for text in project.document["services"][name]["security_opt"]]
    for section in ("secrets", "configs"):
        for name, one in document.get(section, {}).items():
            said = project.document[section][name]
            if said.get("file"):
                one["file"] = journey.upload(os.path.join(project.working_directory, said["file"]))
            elif said.get("environment"):
                _of_a_variable(journey, project, one, said["environment"])
    return document


def _of_a_variable(journey: Journey, project: Project, one: dict[str, Any], variable: str) -> None:
    if variable in project.environment:
        path = f"in/{len(journey.uploads)}/content"
        journey.uploads.append(Upload(path, content=os.fsencode(project.environment[variable])))
        del one["environment"]
        one["file"] = f"\0/{path}"


def _build(journey: Journey, project: Project, build: dict[str, Any], *, building: bool) -> None:
    context = os.path.join(project.working_directory, str(build.get("context", "")).replace("$$", "$"))
    if not building or not os.path.isdir(context):
        return
    file = str(build.get("dockerfile", "")).replace("$$", "$")
    path = os.path.join(context, file) if file else ""
    build["context"] = journey.upload(context, "context", kept(context, path))
    if path and os.path.relpath(path, context).startswith("..") and os.path.exists(path):
        build["dockerfile"] = journey.upload(path)
    others = build.get("additional_contexts") or {}
    for key, value in others.items():
        place = os.path.join(project.working_directory, str(value).replace("$$", "$"))
        if "://" not in str(value) and not str(value).startswith("service:") and os.path.isdir(place):
            others[key] = journey.upload(place)


def _profile(project: Project, text: str) -> str:
    """A filter for system calls goes as its text: where its file was makes no other container."""
    key, _, value = text.partition("=") if "=" in text else text.partition(":")
    if key != "seccomp" or value in _BUILT_IN or value.lstrip().startswith("{"):
        return str(_doubled(text))
    try:
        with open(os.path.join(project.working_directory, value), encoding="utf-8") as file:
            return str(_doubled(f"seccomp={file.read()}"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"opening seccomp profile ({value}) failed", getattr(error, "strerror", None) or str(error)) from None


def _doubled(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("$", "$$")
    if isinstance(value, dict):
        return {key: _doubled(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_doubled(one) for one in value]
    return value
