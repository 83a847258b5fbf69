"""``--change``: instructions of a Containerfile that only change how an image is run, applied to the ``config`` of its configuration.

For ``commit`` and ``import``. The words are those of Docker's manual for ``commit --change``; variables are not expanded. The config is the JSON
object as it stands, so that what is not known here stays.
"""

from __future__ import annotations

import re
import shlex
from typing import Any

import msgspec

from bulle.errors import InvalidInput
from bulle.model.quantities import duration_ns

Config = dict[str, Any]
WORDS = ("CMD", "ENTRYPOINT", "ENV", "EXPOSE", "HEALTHCHECK", "LABEL", "ONBUILD", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR")
_SHELL = ["/bin/sh", "-c"]
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?")
_HEALTH_FLAGS = {"interval": "Interval", "timeout": "Timeout", "start-period": "StartPeriod", "start-interval": "StartInterval"}


def apply_changes(config: Config, changes: tuple[str, ...] | list[str]) -> None:
    """Apply every instruction in its order. Raises InvalidInput for one that is none, and then has changed nothing that is kept."""
    for text in changes:
        word, _, rest = text.strip().partition(" ")
        rest = rest.strip()
        if word.upper() not in WORDS:
            raise InvalidInput(f"{word} is not a valid change command", "", f"use one of {', '.join(WORDS)}")
        if not rest:
            raise InvalidInput(f"{word.upper()} needs an argument", f"in --change {text!r}")
        _APPLY[word.upper()](config, rest)


def _command(rest: str, config: Config) -> list[str]:
    """The JSON form as it is, everything else as a command of the shell."""
    if rest.startswith("["):
        try:
            return msgspec.json.decode(rest, type=list[str])
        except msgspec.DecodeError:
            pass
    return [*(config.get("Shell") or _SHELL), rest]


def _cmd(config: Config, rest: str) -> None:
    config["Cmd"] = _command(rest, config)


def _entrypoint(config: Config, rest: str) -> None:
    config["Entrypoint"] = _command(rest, config)


def _pairs(rest: str, word: str) -> list[tuple[str, str]]:
    """``a=b "c d"=e``, or the old form ``a rest of the line``."""
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise InvalidInput(f"{word} {rest} cannot be read", str(error)) from None
    if "=" not in words[0]:
        name, _, value = rest.partition(" ")
        if not value:
            raise InvalidInput(f"{word} must have two arguments", f"{rest!r} has one", f"write {word} NAME=VALUE")
        return [(name, value.strip())]
    pairs = [one.partition("=") for one in words]
    if wrong := next((name for name, equals, _ in pairs if not equals or not name), None):
        raise InvalidInput(f"{word} {rest} cannot be read", f"{wrong!r} has no '='", f"write {word} NAME=VALUE")
    return [(name, value) for name, _, value in pairs]


def _env(config: Config, rest: str) -> None:
    entries = {one.partition("=")[0]: one for one in config.get("Env") or []}
    entries.update({name: f"{name}={value}" for name, value in _pairs(rest, "ENV")})
    config["Env"] = list(entries.values())


def _label(config: Config, rest: str) -> None:
    config["Labels"] = {**(config.get("Labels") or {}), **dict(_pairs(rest, "LABEL"))}


def _expose(config: Config, rest: str) -> None:
    ports = dict(config.get("ExposedPorts") or {})
    for word in rest.split():
        match = _PORT.fullmatch(word.lower())
        first = int(match[1]) if match else 0
        last = int(match[2] or first) if match else 0
        if match is None or not 0 < first <= last <= 65535:
            raise InvalidInput(f"invalid port: {word}", "", "write it as 80, 80/udp or 8000-8010/tcp")
        ports.update({f"{port}/{match[3] or 'tcp'}": {} for port in range(first, last + 1)})
    config["ExposedPorts"] = ports


def _volume(config: Config, rest: str) -> None:
    paths = _command(rest, config) if rest.startswith("[") else rest.split()
    config["Volumes"] = {**(config.get("Volumes") or {}), **{path: {} for path in paths}}


def _user(config: Config, rest: str) -> None:
    config["User"] = rest


def _working_directory(config: Config, rest: str) -> None:
    current = config.get("WorkingDir") or "/"
    config["WorkingDir"] = rest if rest.startswith("/") else f"{current.rstrip('/')}/{rest}"


def _stop_signal(config: Config, rest: str) -> None:
    config["StopSignal"] = rest


def _on_build(config: Config, rest: str) -> None:
    if rest.split()[0].upper() in ("ONBUILD", "FROM", "MAINTAINER"):
        raise InvalidInput(f"{rest.split()[0].upper()} isn't allowed as an ONBUILD trigger")
    config["OnBuild"] = [*(config.get("OnBuild") or []), rest]


def _health_check(config: Config, rest: str) -> None:
    check: Config = {}
    while rest.startswith("--"):
        flag, _, rest = rest.partition(" ")
        name, _, value = flag[2:].partition("=")
        if name == "retries" and value.isdecimal():
            check["Retries"] = int(value)
        elif name in _HEALTH_FLAGS and value:
            check[_HEALTH_FLAGS[name]] = _nanoseconds(value)
        else:
            raise InvalidInput(f"HEALTHCHECK has no flag {flag}", "", "use --interval, --timeout, --start-period, --start-interval or --retries")
        rest = rest.strip()
    word, _, command = rest.partition(" ")
    command = command.strip()
    if word.upper() == "NONE":
        config["Healthcheck"] = {"Test": ["NONE"]}
    elif word.upper() == "CMD" and command:
        parts = _command(command, {"Shell": []}) if command.startswith("[") else []
        config["Healthcheck"] = {"Test": ["CMD", *parts] if parts and parts != [command] else ["CMD-SHELL", command], **check}
    else:
        raise InvalidInput(f"HEALTHCHECK {rest} cannot be read", "", "write HEALTHCHECK [FLAGS] CMD COMMAND, or HEALTHCHECK NONE")


def _nanoseconds(text: str) -> int:
    try:
        return duration_ns(text)
    except ValueError as error:
        raise InvalidInput(f"invalid duration '{text}'", str(error), "write it as 10s, 42m or 1h30m") from None


_APPLY = {
    "CMD": _cmd, "ENTRYPOINT": _entrypoint, "ENV": _env, "EXPOSE": _expose, "HEALTHCHECK": _health_check, "LABEL": _label, "ONBUILD": _on_build,
    "STOPSIGNAL": _stop_signal, "USER": _user, "VOLUME": _volume, "WORKDIR": _working_directory,
}  # fmt: skip
