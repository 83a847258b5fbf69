"""The canonical form of an app as text: what ``compose config`` prints, as YAML or JSON, in docker compose's order and shape."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from bulle.compose import keys
from bulle.compose.document import resolves_to_string
from bulle.compose.model import Project
from bulle.compose.quantities import shown_length
from bulle.compose.service_parts import Bytes, Nanoseconds
from bulle.errors import NotFound

_SECTIONS = ("services", "networks", "volumes", "secrets", "configs")
_OLD_BOOLEANS = frozenset(
    {"y", "Y", "yes", "Yes", "YES", "on", "On", "ON", "n", "N", "no", "No", "NO", "off", "Off", "OFF"}
)  # fmt: skip
_SEXAGESIMAL = re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?")
_NOT_PLAIN = re.compile(r"^[\s&*!|>'\"%@`{}\[\],#]|^[-?:](?:\s|$)|:(?:\s|$)|\s#|\s$|^---|^\.\.\.")
_SPECIAL = re.compile(r"[^\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")


def selected(project: Project, services: Sequence[str] = (), *, all_resources: bool = False) -> dict[str, Any]:
    """The document of a project without the resources that no service uses; with ``services``, only these and what they need. Raises NotFound."""
    document = dict(project.document)
    if not all_resources:
        used = _used(document["services"])
        for section, names in used.items():
            document[section] = {name: value for name, value in document[section].items() if name in names}
    if services:
        wanted = _with_dependencies(document["services"], services)
        document["services"] = {
            name: _without_dependencies(value, wanted) for name, value in document["services"].items() if name in wanted
        }  # fmt: skip
    return {key: value for key, value in document.items() if value or key not in _SECTIONS[1:]}


def _used(services: Mapping[str, Any]) -> dict[str, set[str]]:
    used: dict[str, set[str]] = {section: set() for section in _SECTIONS[1:]}
    for service in services.values():
        used["networks"].update(service.get("networks") or ())
        used["volumes"].update(one.get("source", "") for one in service.get("volumes") or () if one.get("type") == "volume")
        used["secrets"].update(one.get("source", "") for one in service.get("secrets") or ())
        used["secrets"].update(one.get("source", "") for one in (service.get("build") or {}).get("secrets") or ())
        used["configs"].update(one.get("source", "") for one in service.get("configs") or ())
    return used


def _with_dependencies(services: Mapping[str, Any], names: Sequence[str]) -> set[str]:
    found: set[str] = set()
    waiting = [(name, True) for name in names]
    while waiting:
        name, required = waiting.pop()
        if name not in services:
            if required:
                raise NotFound(f"no service {name}", "", "the file has " + (", ".join(services) or "none"))
        elif name not in found:
            found.add(name)
            waiting += [(other, bool(one["required"])) for other, one in services[name].get("depends_on", {}).items()]
    return found


def _without_dependencies(service: dict[str, Any], wanted: set[str]) -> dict[str, Any]:
    depends_on = service.get("depends_on")
    if depends_on is None or depends_on.keys() <= wanted:
        return service
    kept = {name: one for name, one in depends_on.items() if name in wanted}
    return {key: kept if key == "depends_on" else value for key, value in service.items() if key != "depends_on" or kept}


def shown(value: Any) -> Any:
    """A document's values as they are written: sizes as strings of bytes, lengths of time as ``1m30s``."""
    if isinstance(value, dict):
        return {key: shown(one) for key, one in value.items()}
    if isinstance(value, list):
        return [shown(one) for one in value]
    if isinstance(value, Nanoseconds):
        return shown_length(value)
    return str(int(value)) if isinstance(value, Bytes) else value


def as_yaml(document: Mapping[str, Any]) -> str:
    """A document as YAML."""
    lines: list[str] = []
    _write_mapping(document, "", lines)
    return "\n".join([*lines, ""])


def _write_mapping(value: Mapping[str, Any], indent: str, lines: list[str]) -> None:
    for key, one in value.items():
        _write(one, f"{indent}{_scalar(key, indent, key=True)}:", indent, lines)


def _write(value: Any, head: str, indent: str, lines: list[str]) -> None:
    """A value behind ``head``, which is a key with its colon or a dash."""
    if isinstance(value, dict):
        if not value:
            lines.append(f"{head} {{}}")
        elif head.endswith("-"):
            start = len(lines)
            _write_mapping(value, indent + "  ", lines)
            lines[start] = f"{head} {lines[start].lstrip(' ')}"
        else:
            lines.append(head)
            _write_mapping(value, indent + "  ", lines)
    elif isinstance(value, list):
        if not value:
            lines.append(f"{head} []")
        elif head.endswith("-"):
            start = len(lines)
            _write_list(value, indent + "  ", lines)
            lines[start] = f"{head} {lines[start].lstrip(' ')}"
        else:
            lines.append(head)
            _write_list(value, indent + "  ", lines)
    else:
        lines.append(f"{head} {_scalar(value, indent + '  ')}")


def _write_list(values: Sequence[Any], indent: str, lines: list[str]) -> None:
    for one in values:
        _write(one, f"{indent}-", indent, lines)


def _scalar(value: Any, indent: str, *, key: bool = False) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _float(value)
    text = str(value)
    if _SPECIAL.search(text):
        if not key and "\n" in text and not _SPECIAL.search(text.replace("\n", "").replace("\t", "")) and not text.startswith((" ", "\t", "\n")):
            return _block(text, indent)
        return _quoted(text)
    if not resolves_to_string(text) or text in _OLD_BOOLEANS or _SEXAGESIMAL.fullmatch(text):
        return _quoted(text)
    if _NOT_PLAIN.search(text):
        return "'" + text.replace("'", "''") + "'"
    return text


_CONTROLS = {"\a": "\\a", "\v": "\\v", "\x1b": "\\e", "\0": "\\0", "\x85": "\\N", "\ufeff": "\\uFEFF"}
_SHORT = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r", "\b": "\\b", "\f": "\\f", **_CONTROLS}


def _quoted(text: str) -> str:
    """In double quotes, with what cannot be shown as escapes."""
    return '"' + "".join(_SHORT.get(one) or (_escape(ord(one)) if _SPECIAL.match(one) else one) for one in text) + '"'


def _escape(code: int) -> str:
    return f"\\x{code:02X}" if code < 0x100 else f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"


def _float(value: float) -> str:
    if value != value:
        return ".nan"
    if value in (float("inf"), float("-inf")):
        return ".inf" if value > 0 else "-.inf"
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e6 else repr(value)


def _block(text: str, indent: str) -> str:
    """A literal block; how it ends says how many empty lines there are."""
    body = text.rstrip("\n")
    ends = len(text) - len(body)
    if not body or any(line != line.rstrip(" \t") for line in text.split("\n")):
        return _quoted(text)
    sign = "-" if ends == 0 else "" if ends == 1 else "+"
    lines = body.split("\n") + [""] * max(ends - 1, 0)
    return "\n".join([f"|{sign}", *(f"{indent}{line}" if line else "" for line in lines)])


def as_json(document: Mapping[str, Any]) -> str:
    """A document as JSON, with the empty parts that docker compose shows there and without extensions but the file's own."""
    found = {key: document[key] for key in sorted(document)}
    found["services"] = {name: _json_service(service) for name, service in document["services"].items()}
    for section in _SECTIONS[1:]:
        if section in found:
            found[section] = {name: _plain(one) for name, one in found[section].items()}
    for network in found.get("networks", {}).values():
        network.setdefault("ipam", {})
    return tree_as_json(found)


def _plain(value: Any) -> Any:
    """Without extensions."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items() if not key.startswith("x-")}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _named_plain(value: Any) -> Any:
    return {key: _plain(one) for key, one in value.items()} if isinstance(value, dict) else _plain(value)


_ORDER = {key: number for number, key in enumerate(keys.SERVICE)}
_NAMED = ("depends_on", "networks", "environment", "labels", "annotations", "sysctls", "ulimits", "storage_opt")


def _json_service(service: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: _named_plain(value) if key in _NAMED else _plain(value) for key, value in service.items() if not key.startswith("x-")}
    for name, limit in found.get("ulimits", {}).items():
        if isinstance(limit, dict):
            found["ulimits"][name] = {key: value for key, value in limit.items() if value}
    found.setdefault("command", None)
    found.setdefault("entrypoint", None)
    found = {key: found[key] for key in sorted(found, key=lambda key: _ORDER.get(key, len(_ORDER)))}
    deploy = found.get("deploy")
    if deploy is not None:
        deploy.setdefault("resources", {})
        deploy.setdefault("placement", {})
    for hook in (*found.get("post_start", ()), *found.get("pre_stop", ())):
        hook.setdefault("command", None)
    for rule in (found.get("develop") or {}).get("watch", ()):
        rule.setdefault("exec", {}).setdefault("command", None)
    return found


def ordered(value: Any) -> Any:
    """A tree with the keys of its mappings in alphabetical order."""
    if isinstance(value, dict):
        return {key: ordered(value[key]) for key in sorted(value)}
    return [ordered(one) for one in value] if isinstance(value, list) else value


def tree_as_json(value: Any) -> str:
    """A tree as JSON, as it stands."""
    return _escaped(json.dumps(value, indent=2, ensure_ascii=False))


def _escaped(text: str) -> str:
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
