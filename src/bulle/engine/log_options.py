"""``--log-driver`` and ``--log-opt``: from Docker's words to the settings that a plan carries.

Everything is judged when the container is created: a wrong word is never found out by a container that cannot start. ``local`` is a name for the
files of ``json-file`` with the limits that Docker gives it, so that one reader reads both.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping

import msgspec
from msgspec.structs import replace

from bulle.errors import InvalidInput
from bulle.model.container import ContainerOptions
from bulle.model.run_plan import LogSettings, RunPlan

DRIVERS = ("json-file", "local", "journald", "none")
JOURNAL_SETTING = "BULLE_JOURNAL"
_DEFAULT_BUFFER_BYTES = 1 << 20
_MOST_SETTINGS = 32 << 10
_FILE_OPTIONS = frozenset({"max-size", "max-file", "compress"})
_ATTRIBUTE_OPTIONS = frozenset({"labels", "labels-regex", "env", "env-regex", "tag"})
_MODE_OPTIONS = frozenset({"mode", "max-buffer-size"})
_KNOWN = {
    "json-file": _FILE_OPTIONS | _ATTRIBUTE_OPTIONS | _MODE_OPTIONS,
    "local": _FILE_OPTIONS | _MODE_OPTIONS,
    "journald": _ATTRIBUTE_OPTIONS | _MODE_OPTIONS,
    "none": frozenset(),
}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(?:i?b)?", re.I)
_TAG = re.compile(r"\{\{\s*\.?(\w*)\s*\}\}")


def with_log(plan: RunPlan, options: ContainerOptions, name: str, image_id: str) -> RunPlan:
    """The plan of the container called ``name`` with its output kept as the options say. Raises InvalidInput."""
    environment = dict(item.partition("=")[::2] for item in plan.process.environment)
    settings = log_settings(options, plan.container_id, name, image_id, environment)
    if len(msgspec.json.encode(settings)) > _MOST_SETTINGS:
        raise InvalidInput("what is to stand beside each message of the log is too long", "", f"keep it below {_MOST_SETTINGS} bytes")
    return replace(plan, log=settings)


def log_settings(options: ContainerOptions, container_id: str, name: str, image_id: str, environment: Mapping[str, str]) -> LogSettings:
    """How the output of this container is kept; ``environment`` is what its command sees. Raises InvalidInput."""
    driver = options.log_driver or "json-file"
    if driver not in DRIVERS:
        raise InvalidInput(f"there is no log driver {driver!r}", "", f"use one of {', '.join(DRIVERS)}")
    chosen = dict(options.log_options)
    if unknown := sorted(chosen.keys() - _KNOWN[driver]):
        known = ", ".join(sorted(_KNOWN[driver])) or "none"
        raise InvalidInput(f"unknown log opt '{unknown[0]}' for {driver} log driver", "", f"it knows these: {known}")
    if driver == "none":
        return LogSettings("none")
    buffer_bytes = _buffer_bytes(chosen)
    tag = chosen.get("tag", "{{.ID}}" if driver == "journald" else "")
    tag = _TAG.sub(lambda match: _tag_word(match[1], container_id, name, options.image, image_id), tag)
    attributes = _attributes(chosen, options.labels, environment)
    if driver == "journald":
        fields = _journal_fields(attributes, container_id, name, options.image, tag)
        return LogSettings("journald", buffer_bytes=buffer_bytes, fields=fields, socket_host_path=os.environ.get(JOURNAL_SETTING, ""))
    if tag:
        attributes = {**attributes, "tag": tag}
    return _file_settings(chosen, driver, buffer_bytes, attributes)


def _file_settings(chosen: Mapping[str, str], driver: str, buffer_bytes: int, attributes: dict[str, str]) -> LogSettings:
    default = LogSettings(compress=driver == "local")
    file_bytes, files, compress = default.file_bytes, default.files, default.compress
    if "max-size" in chosen:
        file_bytes = 0 if chosen["max-size"] == "-1" else size_bytes("max-size", chosen["max-size"], 1000)
    if "max-file" in chosen:
        text = chosen["max-file"]
        files = int(text) if text.isdecimal() and len(text) < 7 else 0
        if files < 1:
            raise InvalidInput(f"invalid log opt max-file={text}", "it is a number of files", "use 1 or more")
    if "compress" in chosen:
        compress = _boolean("compress", chosen["compress"])
    if compress and (files < 2 or not file_bytes):
        if "compress" in chosen:
            raise InvalidInput("compress cannot be true when max-file is less than 2 or max-size is not set", "", "use max-size=10m and max-file=3")
        compress = False
    return LogSettings(file_bytes=file_bytes, files=files, compress=compress, buffer_bytes=buffer_bytes, attributes=attributes)


def size_bytes(name: str, text: str, multiple: int) -> int:
    """Bytes of the option ``name``, by multiples of 1000 or 1024. Raises InvalidInput."""
    match = _SIZE.fullmatch(text.strip())
    value = int(float(match[1]) * multiple ** " kmgt".index(match[2].lower() or " ")) if match else 0
    if value < 1:
        raise InvalidInput(f"invalid log opt {name}={text}", "it must be a positive size", f"write it as {name}=10m")
    return value


def _buffer_bytes(chosen: Mapping[str, str]) -> int:
    mode = chosen.get("mode", "blocking")
    if mode not in ("blocking", "non-blocking"):
        raise InvalidInput(f"invalid log opt mode={mode}", "", "use blocking or non-blocking")
    if mode == "blocking":
        if "max-buffer-size" in chosen:
            raise InvalidInput("the log opt max-buffer-size is only for mode=non-blocking", "", "add --log-opt mode=non-blocking")
        return 0
    return size_bytes("max-buffer-size", chosen["max-buffer-size"], 1024) if "max-buffer-size" in chosen else _DEFAULT_BUFFER_BYTES


def _boolean(name: str, text: str) -> bool:
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise InvalidInput(f"invalid log opt {name}={text}", "", "use true or false")


def _tag_word(word: str, container_id: str, name: str, image: str, image_id: str) -> str:
    words = {
        "ID": container_id[:12],
        "FullID": container_id,
        "Name": name,
        "ImageID": image_id.removeprefix("sha256:")[:12],
        "ImageFullID": image_id,
        "ImageName": image,
        "DaemonName": "bulle",
    }
    if word not in words:
        raise InvalidInput(f"invalid log opt tag: there is no '.{word}'", "", f"it is one of {', '.join(f'{{{{.{known}}}}}' for known in words)}")
    return words[word]


def _attributes(chosen: Mapping[str, str], labels: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """What labels and variables stand beside each message: those that are named, and those that a pattern finds."""
    found: dict[str, str] = {}
    for option, values in (("labels", labels), ("env", environment)):
        named = chosen.get(option, "").split(",")
        pattern = chosen.get(f"{option}-regex", "")
        finds = _search(f"{option}-regex", pattern) if pattern else lambda _name: False
        found |= {name: value for name, value in values.items() if name in named or finds(name)}
    return found


def _search(option: str, pattern: str) -> Callable[[str], bool]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InvalidInput(f"invalid log opt {option}={pattern}", str(error), "write a regular expression") from None
    return lambda name: compiled.search(name) is not None


def _journal_fields(attributes: Mapping[str, str], container_id: str, name: str, image: str, tag: str) -> dict[str, str]:
    own = {
        "CONTAINER_ID": container_id[:12],
        "CONTAINER_ID_FULL": container_id,
        "CONTAINER_NAME": name,
        "CONTAINER_TAG": tag,
        "IMAGE_NAME": image,
        "SYSLOG_IDENTIFIER": tag,
    }
    # The journal's names are capitals, digits and underscores, and an underscore first is its own.
    return {re.sub(r"[^A-Z0-9]", "_", key.upper()).lstrip("_")[:64] or "X": value for key, value in attributes.items()} | own
