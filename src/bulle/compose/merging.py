"""One file's tree over another's, as compose-go merges them: mappings by key, lists one behind the other and then without what was said again.

What is said twice is found by the container path of a volume, the name of a variable, the target and published port of a port. Trees are changed
in place; a key's place is where it was said last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bulle.compose.document import Tree, refusal
from bulle.compose.model import Place
from bulle.compose.quantities import sprint
from bulle.compose.short_forms import volume_from

Path = tuple[str, ...]
_Merger = Callable[[Any, Any, Path], Any]


class _CannotMerge(Exception):
    pass


def merge(base: Tree, over: Tree, path: Path = ()) -> Tree:
    """``over`` laid over ``base``, which is changed and returned. Raises InvalidFile."""
    for key, value in over.items():
        if key not in base or key.startswith("x-"):
            base.take(key, value, over)
            continue
        below = (*path, key)
        try:
            base.take(key, _merged(base[key], value, below), over)
        except _CannotMerge:
            place = over.places.get(key) or base.places.get(key) or Place("", 0)
            raise refusal(place, f"{key}: cannot be merged", "an earlier file, or the service that it extends, says it in another form") from None
    return base


def _merged(base: Any, over: Any, path: Path) -> Any:
    special = _special(path)
    if special is not None:
        return special(base, over, path)
    if over is None:
        return base
    if isinstance(base, Tree):
        return merge(base, _mapping_of(over), path)
    if isinstance(base, list):
        if not isinstance(over, list):
            raise _CannotMerge
        return base + over
    return over


def _mapping_of(value: Any) -> Tree:
    if not isinstance(value, Tree):
        raise _CannotMerge
    return value


def _replaced(_base: Any, over: Any, _path: Path) -> Any:
    return over


def _logging(base: Any, over: Any, path: Path) -> Any:
    one, other = _mapping_of(base), _mapping_of(over)
    if "driver" in one and "driver" in other and one["driver"] != other["driver"]:
        return other
    return merge(one, other, path)


def _build(base: Any, over: Any, path: Path) -> Any:
    one, other = (Tree({"context": value}) if isinstance(value, str) else value for value in (base, over))
    return merge(_or_empty(one), _or_empty(other), path)


def _depends_on(base: Any, over: Any, path: Path) -> Any:
    return merge(_keyed(base, required=True), _keyed(over, required=True), path)


def _networks(base: Any, over: Any, path: Path) -> Any:
    return merge(_keyed(base), _keyed(over), path)


def _or_empty(value: Any) -> Tree:
    return value if isinstance(value, Tree) else Tree()


def _keyed(value: Any, *, required: bool = False) -> Tree:
    if isinstance(value, list):
        if not all(isinstance(name, str) for name in value):
            raise _CannotMerge
        return Tree({name: Tree({"condition": "service_started", "required": True}) if required else None for name in value})
    return _or_empty(value)


def _listed(value: Any) -> list[Any]:
    if isinstance(value, dict):
        found = []
        for key, one in value.items():
            if isinstance(one, list):
                found += [f"{key}={sprint(item)}" for item in one]
            else:
                found.append(key if one is None else f"{key}={sprint(one)}")
        return sorted(found)
    if isinstance(value, list):
        return value
    return [value] if isinstance(value, str) else []


def _appended(base: Any, over: Any, _path: Path) -> Any:
    return _listed(base) + _listed(over)


def _hosts(base: Any, over: Any, _path: Path) -> Any:
    known = _listed(base)
    return known + [one for one in _listed(over) if one not in known]


def _pools(base: Any, over: Any, path: Path) -> Any:
    """Address pools of a network: one for each subnet."""
    if not isinstance(base, list) or not isinstance(over, list):
        raise _CannotMerge
    found: list[Tree] = []
    for one in base:
        for other in over:
            left, right = _mapping_of(other), _mapping_of(one)
            subnet = left.get("subnet")
            if subnet != right.get("subnet") and all(pool.get("subnet") != subnet for pool in found):
                found.append(left)
                continue
            merged = merge(right, left, path)
            for index, pool in enumerate(found):
                if pool.get("subnet") == merged.get("subnet"):
                    found[index] = merged
                    break
            else:
                found.append(merged)
    return found


_SERVICE_SPECIALS: dict[str, _Merger] = {
    "annotations": _appended, "build": _build, "command": _replaced, "depends_on": _depends_on, "dns": _appended, "dns_opt": _appended,
    "dns_search": _appended, "entrypoint": _replaced, "env_file": _appended, "label_file": _appended, "environment": _appended,
    "extra_hosts": _hosts, "labels": _appended, "logging": _logging, "networks": _networks, "sysctls": _appended, "tmpfs": _appended,
}  # fmt: skip
_NESTED_SPECIALS: dict[tuple[str, str], _Merger] = {
    ("build", "args"): _appended, ("build", "additional_contexts"): _appended, ("build", "extra_hosts"): _hosts, ("build", "labels"): _appended,
    ("deploy", "labels"): _appended, ("healthcheck", "test"): _replaced,
}  # fmt: skip


def _special(path: Path) -> _Merger | None:
    length = len(path)
    if length == 3 and path[2] == "labels" and path[0] in ("networks", "volumes"):
        return _appended
    if length == 4 and path[0] == "networks" and path[2:] == ("ipam", "config"):
        return _pools
    if path[0] != "services" or length < 3:
        return None
    if length == 3:
        return _SERVICE_SPECIALS.get(path[2])
    if length == 4:
        return _replaced if path[2] == "ulimits" else _NESTED_SPECIALS.get((path[2], path[3]))
    return None


_Index = Callable[[Any], "str | None"]
"""What an element is known by; None where it has the wrong form, of which the check that comes later will tell."""


def _by_name(value: Any) -> str | None:
    return value.partition("=")[0] if isinstance(value, str) else None


def _by_target(value: Any) -> str | None:
    if isinstance(value, dict):
        target = value.get("target")
        if not isinstance(target, str):
            raise ValueError("a volume without a target")
        return target
    return volume_from(value)["target"] if isinstance(value, str) else ""


def _by_device(value: Any) -> str | None:
    if isinstance(value, dict):
        if not isinstance(value.get("target"), str):
            raise ValueError("a device without a target")
        return str(value["target"])
    parts = value.split(":") if isinstance(value, str) else [""]
    return str(parts[0] if len(parts) == 1 else parts[1])


def _by_number(value: Any) -> str | None:
    return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else None


def _by_mount(directory: str) -> _Index:
    def index(value: Any) -> str | None:
        if isinstance(value, str):
            return f"{directory}/{value}"
        if not isinstance(value, dict):
            return None
        target = value.get("target", f"{directory}/{sprint(value.get('source'))}")
        return target if isinstance(target, str) else None

    return index


def _by_port(value: Any) -> str | None:
    if isinstance(value, dict):
        if "target" not in value:
            raise ValueError("a port without a target")
        host, protocol = value.get("host_ip", "0.0.0.0"), value.get("protocol", "tcp")
        # 80 and "80" are not the same port to docker compose either
        return f"{host}:{value.get('published')!r}:{value['target']}/{protocol}"
    return value if isinstance(value, str) else str(value) if type(value) is int else ""


def _by_path(value: Any) -> str | None:
    if isinstance(value, dict):
        if "path" not in value:
            raise ValueError("an env file without a path")
        return value["path"] if isinstance(value["path"], str) else None
    return value if isinstance(value, str) else ""


_SERVICE_INDEXES: dict[str, _Index] = {
    **dict.fromkeys(
        ("annotations", "cap_add", "cap_drop", "dns", "dns_opt", "dns_search", "environment", "labels", "links", "profiles", "sysctls", "tmpfs"),
        _by_name,
    ),
    "configs": _by_mount(""), "devices": _by_device, "env_file": _by_path, "expose": _by_number, "ports": _by_port,
    "secrets": _by_mount("/run/secrets"), "volumes": _by_target,
}  # fmt: skip
_BUILD_INDEXES = frozenset({"args", "additional_contexts", "platform", "tags", "labels"})


def without_repeats(tree: Tree) -> None:
    """Take out of the lists of services what a later element says anew, in place. Raises InvalidFile."""
    for service in _trees(tree.get("services")):
        for key, value in service.items():
            if value.__class__ is list and (index := _SERVICE_INDEXES.get(key)) is not None:
                service[key] = _unique(value, index, service, key)
        if isinstance(build := service.get("build"), Tree):
            _unique_in(build, _BUILD_INDEXES)
        if isinstance(deploy := service.get("deploy"), Tree):
            _unique_in(deploy, ("labels",))
        for network in _trees(service.get("networks")):
            _unique_in(network, ("aliases", "link_local_ips"))
    for network in _trees(tree.get("networks")):
        _unique_in(network, ("labels",))


def _trees(value: Any) -> Sequence[Tree]:
    return [one for one in value.values() if isinstance(one, Tree)] if isinstance(value, dict) else ()


def _unique_in(tree: Tree, keys: Any) -> None:
    for key in keys:
        if isinstance(value := tree.get(key), list):
            tree[key] = _unique(value, _by_name, tree, key)


def _unique(values: list[Any], index: _Index, tree: Tree, key: str) -> list[Any]:
    found: dict[str, Any] = {}
    for value in values:
        try:
            name = index(value)
        except ValueError as error:
            raise refusal(tree.places.get(key, Place("", 0)), f"{key}: {error}") from None
        if name is None:
            raise refusal(tree.places.get(key, Place("", 0)), f"{key}: {sprint(value)!r} cannot stand in this list")
        found[name] = value
    return list(found.values())
