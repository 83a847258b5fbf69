"""Values that were read become the structures of :mod:`bulle.compose.model`, and the extensions that are ours become its fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from bulle.compose.document import refusal
from bulle.compose.model import FileObject, Ipam, Network, Place, Service, Volume
from bulle.compose.quantities import bytes_of, nanoseconds_of
from bulle.compose.service_parts import (
    Autoscale,
    BindOptions,
    Build,
    BuildSecret,
    Bytes,
    Dependency,
    Deploy,
    DeployRestartPolicy,
    Develop,
    FileReference,
    Healthcheck,
    Hook,
    ImageOptions,
    Logging,
    Nanoseconds,
    Placement,
    Port,
    ResourceAmounts,
    Resources,
    ServiceNetwork,
    ServiceVolume,
    TmpfsOptions,
    Ulimit,
    UpdateConfig,
    VolumeOptions,
    WatchRule,
)

_Made = TypeVar("_Made")
_Binder = Callable[[Any], Any]
_NOTHING: Mapping[str, Any] = {}


def _as(structure: Callable[..., _Made], least: Mapping[str, Any] = _NOTHING, **inner: _Binder) -> Callable[[Any], _Made]:
    """Makes a structure of a mapping: lists become tuples, extensions are left out, ``inner`` says how to make what is a structure itself.

    ``least`` is what stands for fields that have to be there and were left out as empty.
    """

    def bind(found: Mapping[str, Any]) -> _Made:
        fields: dict[str, Any] = {**least}
        for key, value in found.items():
            if key in inner:
                fields[key] = inner[key](value)
            elif not key.startswith("x-"):
                fields[key] = tuple(value) if isinstance(value, list) else value
        return structure(**fields)

    return bind


def _many(bind: _Binder) -> _Binder:
    return lambda values: tuple(bind(value) for value in values)


def _each(bind: _Binder) -> _Binder:
    return lambda values: {key: bind(value or {}) for key, value in values.items()}


def _ulimit(value: Any) -> Ulimit:
    return Ulimit(soft=value, hard=value) if isinstance(value, int) else Ulimit(soft=value["soft"], hard=value["hard"])


def _hook(value: Mapping[str, Any]) -> Hook:
    return _as(Hook, {"command": ()})(value)


def _ssh(values: list[str]) -> tuple[str, ...]:
    return tuple(value.replace(": ", "=", 1) for value in values)


_BUILD = _as(Build, secrets=_many(_as(BuildSecret, {"source": ""})), ulimits=_each(_ulimit), ssh=_ssh)
_HEALTHCHECK = _as(Healthcheck)
_VOLUME = _as(
    ServiceVolume, {"type": ""}, bind=_as(BindOptions), volume=_as(VolumeOptions), tmpfs=_as(TmpfsOptions), image=_as(ImageOptions)
)
_DEPLOY = _as(
    Deploy,
    update_config=_as(UpdateConfig), rollback_config=_as(UpdateConfig), restart_policy=_as(DeployRestartPolicy), placement=_as(Placement),
    resources=_as(Resources, limits=_as(ResourceAmounts), reservations=_as(ResourceAmounts)),
)  # fmt: skip
_PARTS: dict[str, _Binder] = {
    "build": _BUILD,
    "depends_on": _each(_as(Dependency)),
    "networks": _each(_as(ServiceNetwork)),
    "ports": _many(_as(Port, {"target": 0})),
    "volumes": _many(_VOLUME),
    "configs": _many(_as(FileReference, {"source": ""})),
    "secrets": _many(_as(FileReference, {"source": ""})),
    "healthcheck": _HEALTHCHECK,
    "deploy": _DEPLOY,
    "develop": _as(Develop, watch=_many(_as(WatchRule, exec=_hook))),
    "ulimits": _each(_ulimit),
    "post_start": _many(_hook),
    "pre_stop": _many(_hook),
    "logging": _as(Logging),
}
_NOT_KEPT = frozenset({"env_file", "label_file"})
PlaceOf = Callable[[str], Place]


def service(name: str, found: Mapping[str, Any], place: PlaceOf) -> Service:
    """A service; ``place`` says where a key of it stands. Raises InvalidFile for an extension of ours that is wrong."""
    fields: dict[str, Any] = {"name": name}
    extensions: dict[str, Any] = {}
    for key, value in found.items():
        if key in _PARTS:
            fields[key] = _PARTS[key](value)
        elif key.startswith("x-"):
            if key.startswith("x-bulle-"):
                fields.update(_ours(key, value, place(key)))
            else:
                extensions[key] = value
        elif key == "models":
            fields[key] = dict.fromkeys(value) if isinstance(value, list) else value
        elif key not in _NOT_KEPT:
            fields[key] = tuple(value) if isinstance(value, list) else value
    return Service(**fields, extensions=extensions)


def _ours(key: str, value: Any, place: Place) -> dict[str, Any]:
    try:
        match key:
            case "x-bulle-autoscale":
                return {"autoscale": _autoscale(value)}
            case "x-bulle-balance" if value in ("random", "sticky"):
                return {"balance": value}
            case "x-bulle-balance":
                raise ValueError(f"{value!r} is neither random nor sticky")
            case "x-bulle-drain":
                if not isinstance(value, str) or (drain := nanoseconds_of(value)) < 0:
                    raise ValueError(f"{value!r} is not a length of time such as 30s")
                return {"drain": Nanoseconds(drain)}
    except ValueError as error:
        raise refusal(place, f"{key}: {error}") from None
    raise refusal(place, f"{key} is not known", "", "the extensions are x-bulle-autoscale, x-bulle-balance and x-bulle-drain")


def _autoscale(value: Any) -> Autoscale:
    if not isinstance(value, dict) or not value.keys() <= {"min", "max", "cpu", "memory"}:
        raise ValueError("a mapping with min, max, and cpu or memory")
    least, most, cpu, memory = value.get("min", 1), value.get("max"), value.get("cpu", 0), value.get("memory", 0)
    if type(least) is not int or type(most) is not int or not 1 <= least <= most:
        raise ValueError("min and max are whole numbers from 1 on, min not above max")
    if isinstance(cpu, str) and cpu.endswith("%"):
        cpu = float(cpu.removesuffix("%"))
    if isinstance(cpu, bool) or not isinstance(cpu, (int, float)) or cpu < 0:
        raise ValueError("cpu is a number of percent")
    if not isinstance(memory, (str, int)) or isinstance(memory, bool) or (amount := bytes_of(str(memory))) < 0:
        raise ValueError("memory is a size")
    if not cpu and not amount:
        raise ValueError("neither cpu nor memory is said")
    return Autoscale(min=least, max=most, cpu=float(cpu), memory=Bytes(amount))


def _resource(structure: Callable[..., _Made], found: Mapping[str, Any], **inner: _Binder) -> _Made:
    extensions = {key: value for key, value in found.items() if key.startswith("x-")}
    return _as(lambda **fields: structure(**fields, extensions=extensions), **inner)(found)


def network(name: str, found: Mapping[str, Any]) -> Network:
    """A network; ``name`` is its key, for one without a name."""
    return _resource(Network, {"name": name, **found}, ipam=_as(Ipam))


def volume(name: str, found: Mapping[str, Any]) -> Volume:
    """A volume; ``name`` is its key, for one without a name."""
    return _resource(Volume, {"name": name, **found})


def file_object(found: Mapping[str, Any]) -> FileObject:
    """A secret or a config."""
    return _resource(FileObject, found)
