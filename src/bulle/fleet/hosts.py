"""Which machine a command line is for: ``-H``, ``--context``, ``BULLE_HOST``, ``BULLE_CONTEXT``, or the context in use; and the contexts' names.

Contexts stand in ``contexts.json`` of the home, the name of the one in use in ``context`` beside it: the stub looks whether that is there, so this
home costs one look when it has none. Asked by ``bulle.__main__`` before anything else is imported, hence nearly without imports.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bulle.errors import BulleError, Conflict, InvalidInput, NotFound
from bulle.spawner.launch import default_home

HERE = "default"
"""The context that is this machine."""
_ALWAYS_HERE = frozenset({"context", "completion"})
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
_HOST_CHARACTERS = _NAME_CHARACTERS | frozenset(":%")


@dataclass(frozen=True)
class Host:
    """Another machine, as ssh is told of it; no user and port 0 mean what ``~/.ssh/config`` says."""

    name: str
    user: str = ""
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Host:
        """From ``ssh://[user@]host[:port]``. Raises InvalidInput."""
        wrong = InvalidInput(f"invalid host {text!r}", "it is not ssh://[user@]host[:port]", "write it as ssh://root@example.org or ssh://example.org:2222")
        scheme, separator, rest = text.partition("://")
        if scheme != "ssh" or not separator:
            raise wrong
        user, at, place = rest.rstrip("/").rpartition("@")
        name, port = place, ""
        if place.startswith("["):
            name, bracket, port = place[1:].partition("]")
            if not bracket or (port and not port.startswith(":")):
                raise wrong
            port = port[1:]
        elif place.count(":") == 1:
            name, _, port = place.partition(":")
        # What begins with a dash would be an option to ssh.
        if not name or name[0] == "-" or not set(name) <= _HOST_CHARACTERS:
            raise wrong
        if at and (not user or user[0] == "-" or not set(user) <= _NAME_CHARACTERS):
            raise wrong
        if port and not (port.isdecimal() and 0 < int(port) < 65536):
            raise wrong
        return cls(name, user, int(port or 0))

    def __str__(self) -> str:
        name = f"[{self.name}]" if ":" in self.name else self.name
        return f"ssh://{f'{self.user}@' if self.user else ''}{name}{f':{self.port}' if self.port else ''}"


@dataclass(frozen=True)
class Context:
    """A name for a machine; without a host it is this one."""

    name: str
    host: str = ""
    description: str = ""


def contexts() -> list[Context]:
    """All of them, this machine first, the others by name. Raises BulleError where the file is damaged."""
    path = default_home() / "contexts.json"
    try:
        kept = json.loads(path.read_bytes())
        found = [Context(name, str(one["host"]), str(one.get("description", ""))) for name, one in sorted(kept.items())]
    except FileNotFoundError:
        found = []
    except (ValueError, TypeError, KeyError, AttributeError):
        raise BulleError(f"{path} is damaged", "it is no list of contexts", "remove it, and create the contexts again") from None
    return [Context(HERE, "", "This machine"), *found]


def find(name: str) -> Context:
    """One context. Raises NotFound."""
    for one in contexts():
        if one.name == name:
            return one
    raise NotFound(f'context "{name}" does not exist', "", "`bulle context ls` lists them")


def create(name: str, host: str, description: str) -> None:
    """Keep a new context. Raises Conflict, InvalidInput."""
    if not name or not set(name) <= _NAME_CHARACTERS or name[0] in ".-":
        raise InvalidInput(f"invalid context name {name!r}", "", "use letters, digits, '_', '.' and '-'")
    kept = contexts()
    if any(one.name == name for one in kept):
        raise Conflict(f'context "{name}" already exists')
    _write([*kept, Context(name, str(Host.parse(host)), description)])


def remove(name: str, *, force: bool) -> None:
    """Forget a context. Raises NotFound, Conflict where it is in use and not forced."""
    find(name)
    if name == HERE:
        raise Conflict(f'context "{HERE}" cannot be removed', "it is this machine")
    if name == in_use():
        if not force:
            raise Conflict(f'context "{name}" is in use', "", "use another one first, or give --force")
        use(HERE)
    _write([one for one in contexts() if one.name != name])


def use(name: str) -> None:
    """Make a context the one that commands are for when they name none. Raises NotFound."""
    find(name)
    path = default_home() / "context"
    if name == HERE:
        path.unlink(missing_ok=True)
    else:
        _replace(str(path), f"{name}\n")


def in_use() -> str:
    """The name of the context that was chosen by ``use``."""
    try:
        return (default_home() / "context").read_text().strip() or HERE
    except OSError:
        return HERE


def _write(kept: Sequence[Context]) -> None:
    content = {one.name: {"host": one.host, "description": one.description} for one in kept if one.name != HERE}
    _replace(str(default_home() / "contexts.json"), json.dumps(content, indent=1) + "\n")


def _replace(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    partial = f"{path}.{os.getpid()}"
    with open(partial, "w") as file:
        file.write(text)
    os.replace(partial, path)


@dataclass
class Chosen:
    """A command line for another machine: what root flags go with it (``--debug``, ``--home``), and the verb with its words."""

    host: Host
    flags: list[str]
    words: list[str]


def chosen(arguments: Sequence[str], environment: Mapping[str, str]) -> Chosen | None:
    """The other machine that a command line is for; None for this one. Raises InvalidInput, NotFound."""
    rest = list(arguments)
    host = context = None
    flags: list[str] = []
    while rest and rest[0].startswith("-"):
        flag = rest.pop(0)
        name, value = _split(flag, rest)
        if name in ("-H", "--host"):
            host = value
        elif name in ("-c", "--context"):
            context = value
        elif name == "--home":
            flags += ["--home", value]
        elif flag == "--debug":
            flags.append(flag)
        else:
            return None  # --help, --version, or what does not exist
    if not rest or rest[0] in _ALWAYS_HERE or environment.get("_BULLE_COMPLETE"):
        return None
    if host is not None and context is not None:
        raise InvalidInput("conflicting options: either specify --host or --context, not both")
    if host is None and context is None:
        host = environment.get("BULLE_HOST") or None
        context = environment.get("BULLE_CONTEXT") or in_use()
    if host is None:
        host = find(context or HERE).host
    return Chosen(Host.parse(host), flags, rest) if host else None


def _split(flag: str, rest: list[str]) -> tuple[str, str]:
    """Name and value of a root flag; the value is taken from ``rest`` where it stands apart."""
    if flag.startswith("--"):
        name, equals, value = flag.partition("=")
    else:
        name, value = flag[:2], flag[2:]
        equals, value = value, value.removeprefix("=")
    if name not in ("-H", "--host", "-c", "--context", "--home") or equals:
        return name, value
    if not rest:
        raise InvalidInput(f"flag needs an argument: {name}")
    return name, rest.pop(0)
