"""What a verb's words name on the machine that they are typed on, and how another machine comes to it.

An archive that is read or written streams through standard input or output; a file that the verb reads is carried there and named by its place
there; a file that it writes is brought back. Binds, kernels and devices mean the other machine's, as in Docker. What can be none of that is refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from bulle.cli.journey import Journey, path_and_tag
from bulle.cli.option_types import HostPath
from bulle.cli.remote_build import BUILD_OPTIONS, build
from bulle.cli.verb import Verb
from bulle.errors import Conflict, InvalidInput, NotFound

_ARCHIVES = ("docker-archive:", "oci-archive:", "oci:", "dir:")
_REFUSED = {
    "serving:serve": "start it there, and forward its socket by ssh -L",
    "comparing:compare": "run it there: it writes where it runs",
    "composing_watch:watch": "run it where the files are that it watches",
}


def read(words: Sequence[str]) -> Journey:
    """Read a command line. Raises click's errors as the verb would, BulleError for what cannot be done from here."""
    if words[0] in ("compose", "up", "down"):
        from bulle.cli.remote_compose import read_compose

        return read_compose(words)
    journey = Journey()
    command, context, rest = found(words)
    if not isinstance(command, Verb) or isinstance(command, click.Group):
        journey.words, journey.reads = list(words), True  # help, or a word that is no verb: it is answered there
        return journey
    journey.words = list(words[: len(words) - len(rest)])
    read_verb(journey, command, context, rest)
    return journey


def read_verb(journey: Journey, command: Verb, context: click.Context, rest: Sequence[str]) -> None:
    """Take what follows a verb into a journey whose words are those before it."""
    assert command.callback is not None
    place = f"{command.callback.__module__.rpartition('.')[2]}:{command.callback.__name__}"
    if place in _REFUSED:
        raise InvalidInput(f"`bulle {' '.join(journey.words)}` cannot be run on another machine from here", "", _REFUSED[place])
    _Reading(journey, place, command, context).read(rest)


def found(words: Sequence[str]) -> tuple[click.Command | None, click.Context, list[str]]:
    """The verb of a command line, and what follows it."""
    from bulle.cli.main import PROGRAM, ROOT
    from bulle.cli.session import Session

    command: click.Command | None = ROOT
    context = click.Context(ROOT, info_name=PROGRAM, obj=Session())
    rest = list(words)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        command = command.get_command(context, name)
        if command is not None:
            context = click.Context(command, info_name=name, parent=context)
    return command, context, rest


@dataclass
class _Reading:
    """One verb's words on their way into a journey."""

    journey: Journey
    place: str
    command: Verb
    context: click.Context

    def read(self, rest: Sequence[str]) -> None:
        """Take every flag and argument over, replaced where it names a file."""
        line, positional = self.command.read(self.context, rest)
        if any(not option.expose_value for option, _ in line):
            self.journey.words += rest  # help
            return
        given = {option.name or "": value for option, value in line}
        self.journey.reads = bool(given.get("interactive")) or self.place in _READERS or "-" in positional
        _VERBS.get(self.place, _nothing)(self.journey, given, positional)
        variables: list[tuple[str, str]] = []
        for option, value in line:
            if option.name in ("env", "env_file") and isinstance(value, str):
                variables.append((option.name, value))
            elif isinstance(value, bool):
                self.journey.words.append(_name(option) if value else f"{_name(option)}=false")
            else:
                self._option(option, value)
        self.journey.words += _environment(self.journey, variables, in_a_file="--env-file" in self.command.flags(self.context).by_name)
        self.journey.words += ["--", *positional] if positional else []

    def _option(self, option: click.Option, value: str) -> None:
        act = _OPTIONS.get((self.place, option.name or "")) or _OPTIONS.get(("", option.name or ""))
        if act is not None:
            replaced = act(self.journey, value)
            if replaced is None:
                return
            value = replaced
        elif isinstance(option.type, HostPath):
            raise InvalidInput(f"{_name(option)} names a file of this machine", "it cannot be carried to another one", "run the verb there")
        name = _name(option)
        self.journey.words += [f"{name}={value}"] if name.startswith("--") else [name, value]


def _name(option: click.Option) -> str:
    return max(option.opts, key=len)


def _environment(journey: Journey, given: Sequence[tuple[str, str]], *, in_a_file: bool) -> list[str]:
    """The variables of ``-e`` and ``--env-file``, read here: files and bare names are this machine's. Where the verb has files they travel in one."""
    from bulle.cli.container_flags import environment

    files = [value for name, value in given if name == "env_file"]
    named = [value for name, value in given if name == "env"]
    if not files and all("=" in one for one in named):
        return [f"--env={one}" for one in named]
    entries = environment(files, named)
    if not in_a_file:
        return [f"--env={one}" for one in entries]
    lines = [one for one in entries if "\n" not in one]
    return [f"--env-file={journey.upload_text(lines)}", *(f"--env={one}" for one in entries if "\n" in one)]


# Verbs of which more than a flag is replaced


def _nothing(journey: Journey, given: dict[str, Any], positional: list[str]) -> None:
    pass


def _copy(journey: Journey, given: dict[str, Any], positional: list[str]) -> None:
    if len(positional) != 2:
        return
    source, target = positional
    if target == "-" or source == "-":
        return
    if not _is_inside(source):
        ending = "/." if source.endswith("/.") or source in (".", "..") else "/" if source.endswith("/") else ""
        path = os.path.realpath(source) if ending or given.get("follow") else source
        positional[0] = journey.upload(path, os.path.basename(os.path.abspath(source))) + ending
    elif not _is_inside(target):
        # Docker's table of destinations, by what is here: into a directory under its own name, else under the name that was given.
        if target.endswith("/") and not os.path.isdir(target):
            raise NotFound(f"the destination directory {target} must exist", "", "create it first, or leave the slash out")
        positional[1] = journey.bring(target, directory=os.path.isdir(target))


def _is_inside(argument: str) -> bool:
    return ":" in argument and not argument.startswith(("/", "."))


def _copy_quietly(journey: Journey, given: dict[str, Any], positional: list[str]) -> None:
    journey.words.append("--quiet")  # it would name the place there
    _copy(journey, given, positional)


def _import(journey: Journey, given: dict[str, Any], positional: list[str]) -> None:
    if positional and positional[0] != "-" and "://" not in positional[0]:
        journey.input_path, positional[0] = _file(positional[0]), "-"


def _import_volume(journey: Journey, given: dict[str, Any], positional: list[str]) -> None:
    journey.reads = True
    if len(positional) == 2 and positional[1] != "-":
        journey.input_path, positional[1] = _file(positional[1]), "-"


def _pull(journey: Journey, given: dict[str, Any], positional: list[str]) -> None:
    for prefix in _ARCHIVES:
        if positional and positional[0].startswith(prefix):
            path, colon, tag = path_and_tag(positional[0].removeprefix(prefix))
            positional[0] = f"{prefix}{journey.upload(path)}{colon}{tag}"


def _push(journey: Journey, given: dict[str, Any], positional: list[str]) -> None:
    if len(positional) == 2 and positional[1].startswith(_ARCHIVES):
        raise InvalidInput("an image of another machine cannot be pushed to a place on this one", "", "use `save -o FILE`")


def _run(journey: Journey, given: dict[str, Any], positional: list[str]) -> None:
    if positional and positional[0].startswith(_ARCHIVES):
        raise InvalidInput(f"{positional[0]} is a place on this machine", "", "pull it there first: bulle -H HOST pull " + positional[0])
    if given.get("cidfile") and not given.get("detach"):
        raise InvalidInput("--cidfile has no file to write to while a container runs elsewhere", "", "give the container a --name, or use -d")


def _file(path: str) -> str:
    if not os.path.exists(path):
        raise NotFound(f"open {path}: no such file or directory")
    if os.path.isdir(path):
        raise InvalidInput(f"{path} is a directory")
    return path


# Flags that name files


def _as_input(journey: Journey, path: str) -> None:
    if os.path.isdir(path):
        raise InvalidInput(f"{path} is a directory", "only an archive is loaded on another machine", "pull it there: bulle -H HOST pull oci:" + path)
    journey.input_path = _file(path)


def _as_output(journey: Journey, path: str) -> None:
    if path != "-":
        journey.output_path = path


def _state_input(journey: Journey, path: str) -> str:
    if path != "-":
        journey.input_path = _file(path)
    return "-"


def _state_output(journey: Journey, path: str) -> str:
    _as_output(journey, path)
    return "-"


def _variables_of(journey: Journey, path: str) -> str:
    from bulle.cli.container_flags import environment

    return journey.upload_text(environment([path], []))


def _new_file(journey: Journey, path: str) -> str:
    if os.path.exists(path):
        raise Conflict("container ID file found", f"{path} exists", "make sure the other container isn't running, or delete the file")
    return journey.bring(path)


def _security(journey: Journey, text: str) -> str:
    name, _, value = text.partition("=") if "=" in text else text.partition(":")
    if name != "seccomp" or value in ("unconfined", "default", "builtin") or value.lstrip().startswith("{"):
        return text
    return f"seccomp={journey.upload(value)}"


def _volume(journey: Journey, text: str) -> str:
    source, colon, rest = text.partition(":")
    return f"{Path(source).absolute()}:{rest}" if colon and source.startswith(".") else text


def _mount(journey: Journey, text: str) -> str:
    fields = [field.partition("=") for field in text.split(",")]
    return ",".join(
        f"{key}={Path(value).absolute()}" if key.strip().lower() in ("source", "src") and value.startswith(".") else f"{key}{equals}{value}"
        for key, equals, value in fields
    )


def _kernel(journey: Journey, value: str) -> str:
    if value.startswith("."):
        raise InvalidInput(f"{value} is relative to a directory of this machine", "a kernel is the other machine's", "name it by its root")
    return value


_READERS = frozenset(
    {"attaching:attach", "composing_inside:attach", "composing_inside:execute", "composing_run:run", "image_transfer:load", "login:login"}
)
_VERBS: dict[str, Callable[[Journey, dict[str, Any], list[str]], None]] = {
    "building:build": build,
    "composing_inside:copy": _copy,
    "copying:copy": _copy_quietly,
    "image_making:import_image": _import,
    "image_transfer:pull": _pull,
    "image_transfer:push": _push,
    "running:create": lambda journey, given, positional: _run(journey, {**given, "detach": True}, positional),
    "running:run": _run,
    "volumes:import_volume": _import_volume,
}
_OPTIONS: dict[tuple[str, str], Callable[[Journey, str], str | None]] = {
    ("composing_images:build", "build_arg"): BUILD_OPTIONS["build_arg"],
    ("composing_images:build", "ssh"): BUILD_OPTIONS["ssh"],
    ("composing_inside:export", "output"): _as_output,
    ("composing_run:run", "env_from_file"): _variables_of,
    ("image_transfer:load", "state"): _state_input,
    ("image_transfer:save", "state"): _state_output,
    ("copying:export", "output"): _as_output,
    ("image_transfer:load", "source"): _as_input,
    ("image_transfer:save", "output"): _as_output,
    ("volumes:export", "output"): _as_output,
    ("", "cidfile"): _new_file,
    ("", "kernel"): _kernel,
    ("", "label_file"): lambda journey, path: journey.upload(path),
    ("", "mount"): _mount,
    ("", "security_opt"): _security,
    ("", "volume"): _volume,
    **{("building:build", name): act for name, act in BUILD_OPTIONS.items()},
}
