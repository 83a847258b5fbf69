"""The short forms of Compose files turned into the long ones: ``8080:80``, ``./data:/data:ro``, ``depends_on: [db]`` and the like.

What has no short form, and what is in the wrong form, is left as it stands.
"""

from __future__ import annotations

import ipaddress
import posixpath
import re
from typing import Any

from bulle.compose.document import Tree, refusal
from bulle.compose.model import Place


class _WrongForm(ValueError):
    """What cannot be right, whatever its variables stand for."""


_PROPAGATIONS = frozenset({"rprivate", "private", "rshared", "shared", "rslave", "slave"})
_PROTOCOLS = frozenset({"tcp", "udp", "sctp"})


def lengthen(tree: Tree, *, lenient: bool) -> None:
    """Turn the short forms of a file's tree into the long ones, in place; ``lenient`` leaves what cannot be read, where there are still variables.

    Raises InvalidFile.
    """
    for name, service in _items(tree.get("services")):
        if isinstance(service, Tree):
            _service(service, lenient)
            tree["services"][name] = service
    for section in ("volumes", "networks", "secrets", "configs"):
        for _name, one in _items(tree.get(section)):
            if isinstance(one, Tree):
                _external(one)


def _items(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


def _service(service: Tree, lenient: bool) -> None:
    for key, value in list(service.items()):
        change = _CHANGES.get(key)
        if change is None:
            continue
        try:
            service[key] = change(value)
        except ValueError as error:
            if not lenient or isinstance(error, _WrongForm):
                raise refusal(service.places.get(key, Place("", 0)), f"{key}: {error}") from None
    if isinstance(dns := service.get("dns"), list):
        service["dns"] = [one for one in dns if one not in (None, "")]


def _build(value: Any) -> Any:
    if isinstance(value, str):
        return Tree({"context": value})
    if not isinstance(value, Tree):
        raise ValueError("neither a path nor a mapping")
    for key, change in (("additional_contexts", _pairs), ("ssh", _ssh), ("secrets", _files)):
        if key in value:
            value[key] = change(value[key])
    return value


def _pairs(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    found = Tree()
    for one in value:
        key, equals, rest = str(one).partition("=")
        if not equals:
            raise ValueError(f"{one!r} is not of the form KEY=VALUE")
        found[key] = rest
    return found


def _ssh(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    found = Tree()
    for one in value:
        key, equals, rest = str(one).partition("=")
        if not equals and key != "default":
            raise _WrongForm(f"the ssh key {one!r} is neither default nor ID=PATH")
        found[key] = rest if equals else None
    return found


def _files(value: Any) -> Any:
    return [Tree({"source": one}) if isinstance(one, str) else one for one in value] if isinstance(value, list) else value


def _depends_on(value: Any) -> Any:
    if isinstance(value, list):
        return Tree({name: Tree({"condition": "service_started", "required": True}) for name in value})
    if not isinstance(value, Tree):
        raise ValueError("neither a list nor a mapping")
    for one in value.values():
        if not isinstance(one, Tree):
            raise ValueError("its conditions are not mappings")
        one.setdefault("condition", "service_started")
        one.setdefault("required", True)
    return value


def _env_file(value: Any) -> Any:
    if isinstance(value, str):
        return [Tree({"path": value, "required": True})]
    if not isinstance(value, list):
        raise ValueError("neither a path nor a list")
    found = [Tree({"path": one, "required": True}) if isinstance(one, str) else one for one in value]
    for one in found:
        if isinstance(one, Tree):
            one.setdefault("required", True)
    return found


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _extends(value: Any) -> Any:
    return Tree({"service": value}) if isinstance(value, str) else value


def _gpus(value: Any) -> Any:
    return [Tree({"count": "all"})] if isinstance(value, str) else value


def _networks(value: Any) -> Any:
    return Tree(dict.fromkeys(value)) if isinstance(value, list) else value


def _volumes(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    found = []
    for one in value:
        if isinstance(one, str):
            one = volume_from(one)
            one["target"] = posixpath.normpath(one["target"]) if one["target"] else ""
        elif not isinstance(one, Tree):
            raise ValueError("a volume is a string or a mapping")
        found.append(one)
    return found


def _devices(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    found = []
    for one in value:
        if isinstance(one, str):
            parts = one.split(":")
            if len(parts) > 3:
                raise ValueError(f"the device {one!r} has too many colons; use the long form")
            target = parts[1] if len(parts) > 1 else ""
            one = Tree({"source": parts[0], "target": target or parts[0], "permissions": parts[2] if len(parts) > 2 else "rwm"})
        found.append(one)
    return found


def volume_from(text: str) -> Tree:
    """The long form of ``[SOURCE:]TARGET[:OPTIONS]``. Raises ValueError."""
    if not text:
        raise ValueError("an empty volume")
    volume = Tree()
    if len(text) <= 2:
        return Tree({"type": "volume", "target": text})
    parts = _colons(text)
    if not all(parts):
        raise ValueError(f"the volume {text!r} has an empty part between colons")
    if len(parts) > 3:
        raise ValueError(f"the volume {text!r} has too many colons")
    source, target = (parts[0], parts[1]) if len(parts) > 1 else ("", parts[0])
    bind = _is_path(source)
    volume["type"] = "bind" if bind else "volume"
    if source:
        volume["source"] = source
    volume["target"] = target
    inner: dict[str, Tree] = {}
    for option in parts[2].split(",") if len(parts) > 2 else ():
        if option in ("ro", "rw"):
            volume["read_only"] = option == "ro"
        elif option == "nocopy":
            inner["volume"] = Tree({"nocopy": True})
        elif option in _PROPAGATIONS:
            inner.setdefault("bind", Tree())["propagation"] = option
        elif option in ("z", "Z"):
            inner.setdefault("bind", Tree())["selinux"] = option
    if not volume.get("read_only", True):
        del volume["read_only"]
    if bind:
        inner.setdefault("bind", Tree())["create_host_path"] = True
    else:
        inner.setdefault("volume", Tree())
    volume.update(inner)
    return volume


def _colons(text: str) -> list[str]:
    """Split at colons, but not behind the letter of a Windows drive."""
    parts = [""]
    for character in text:
        if character == ":" and not (len(parts[-1]) == 1 and parts[-1].isalpha()):
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _is_path(source: str) -> bool:
    if not source:
        return False
    return source[0] in "./~" or source.startswith("\\\\") or (len(source) > 1 and source[0].isalpha() and source[1] == ":")


def _ports(value: Any) -> Any:
    if not isinstance(value, list):
        raise ValueError("not a list")
    found: list[Any] = []
    for one in value:
        if isinstance(one, Tree):
            found.append(one)
        elif isinstance(one, bool) or not isinstance(one, (str, int)):
            raise _WrongForm(f"{one!r} is not a port")
        else:
            found += ports_from(str(one))
    return found


def ports_from(text: str) -> list[Tree]:
    """The long forms of ``[[ADDRESS:][PUBLISHED]:]TARGET[/PROTOCOL]``, where ports may be ranges. Raises ValueError."""
    *before, target = text.split(":")
    published = before.pop() if before else ""
    address = _address(":".join(before), text)
    target, *words = target.split("/")
    protocol = (words[0] if words and words[0] else "tcp").lower()
    if not target:
        raise ValueError(f"the port {text!r} has no container port")
    if protocol not in _PROTOCOLS:
        raise ValueError(f"the port {text!r} has an unknown protocol")
    first, last = _range(target, text)
    if first == 0:
        raise _WrongForm(f"the port {text!r} is none of a container")
    start, end = _range(published, text) if published else (0, 0)
    if published and end - start != last - first and first != last:
        raise ValueError(f"the ranges of the port {text!r} are of different lengths")
    found = []
    for number in range(first, last + 1):
        port = Tree({"mode": "ingress"})
        if address:
            port["host_ip"] = address
        port["target"] = number
        if published:
            port["published"] = str(start + number - first) if last > first or start == end else f"{start}-{end}"
        port["protocol"] = protocol
        found.append(port)
    return sorted(found, key=lambda port: str(port["target"]))


def _address(address: str, text: str) -> str:
    bare = address[1:-1] if address.startswith("[") and address.endswith("]") else address
    try:
        if address and ((ipaddress.ip_address(bare).version == 6 and bare == address) or "%" in bare):
            raise ValueError
    except ValueError:
        raise ValueError(f"the port {text!r} has an invalid address {address!r}") from None
    return bare


def _range(text: str, whole: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]+)(?:-([0-9]+)(?:-.*)?)?", text, re.ASCII | re.DOTALL)
    first = int(match[1]) if match else -1
    last = int(match[2] or match[1]) if match else -1
    if not 0 <= first <= last <= 65535:
        raise ValueError(f"the port {whole!r} has {text!r} where a port or a range of them should be")
    return first, last


def _external(one: Tree) -> None:
    if isinstance(external := one.get("external"), Tree):
        one["external"] = True
        if "name" in external:
            if one.get("name", external["name"]) != external["name"]:
                raise refusal(one.places.get("external", Place("", 0)), "name and external.name differ", "", "say name only")
            one.take("name", external["name"], external)


_CHANGES = {
    "build": _build, "depends_on": _depends_on, "env_file": _env_file, "label_file": _listed, "extends": _extends, "gpus": _gpus,
    "networks": _networks, "volumes": _volumes, "dns": _listed, "devices": _devices, "secrets": _files, "configs": _files, "ports": _ports,
}  # fmt: skip
