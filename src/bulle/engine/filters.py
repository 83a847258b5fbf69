"""Which containers, images, networks and volumes a listing or a prune keeps, with Docker's keys and rules.

Values of one key are alternatives, different keys must all hold; labels must all hold. An unknown key is an error, never ignored. The command line
and the socket read what was asked in their own form; what it means stands here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from bulle.errors import InvalidInput, NotFound
from bulle.model.moments import parse_time_ns
from bulle.model.reference import Reference
from bulle.model.volume import DRIVER, Volume

if TYPE_CHECKING:
    from bulle.engine.container import Container
    from bulle.engine.engine import Engine
    from bulle.engine.pruning import PruneFilter
    from bulle.model.run_plan import Network
    from bulle.records.networks import NetworkRecord
    from bulle.store import Image

CONTAINER_KEYS = ("ancestor", "before", "exited", "health", "id", "isolation", "label", "name", "network", "since", "status", "volume")
IMAGE_KEYS = ("before", "dangling", "label", "reference", "since", "until")
NETWORK_KEYS = ("dangling", "driver", "id", "label", "name", "scope", "type")
VOLUME_KEYS = ("dangling", "driver", "label", "name")
PREDEFINED_NETWORKS = ("bridge", "host", "none")
_STATUSES = ("created", "restarting", "running", "removing", "paused", "exited", "dead")
_HEALTH = ("starting", "healthy", "unhealthy", "none")
_TRUE, _BOOLEANS = frozenset({"true", "1"}), frozenset({"true", "false", "1", "0"})


def check_keys(filters: Iterable[str], keys: Sequence[str]) -> None:
    """Raise InvalidInput for a key that is not known."""
    for key in filters:
        if key not in keys:
            raise InvalidInput(f"invalid filter '{key}'", "", f"it is one of {', '.join(keys)}")


def has_labels(labels: Mapping[str, str], wanted: Sequence[str]) -> bool:
    """Whether every ``key`` or ``key=value`` is there."""
    pairs = (one.partition("=") for one in wanted)
    return all(key in labels and (not equals or labels[key] == value) for key, equals, value in pairs)


def shows_stopped(filters: Mapping[str, Sequence[str]]) -> bool:
    """Whether the filters themselves ask for containers that do not run."""
    return "exited" in filters or any(one != "running" for one in filters.get("status", ()))


def shown_status(container: Container) -> str:
    """Its state in one word of Docker's."""
    status = container.state().status
    return "paused" if status == "running" and container.is_paused() else status


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise InvalidInput(f"invalid filter value '{text}'", str(error)) from None


def containers(engine: Engine, filters: Mapping[str, Sequence[str]]) -> list[Callable[[Container], bool]]:
    """One test per key of ``ps --filter``; the values are checked before the first container is looked at."""
    tests: list[Callable[[Container], bool]] = []
    for key, values in filters.items():
        if key in {"before", "since"}:
            moments = [engine.containers.get(one).created_at_ns for one in values]
            tests.append(_older(moments) if key == "before" else _newer(moments))
        elif key == "ancestor":
            tests.append(_has_ancestor(engine, values))
        else:
            tests.append(_simple_test(key, values))
    return tests


def _older(moments: Sequence[int]) -> Callable[[Container | Image], bool]:
    return lambda thing: thing.created_at_ns < min(moments)


def _newer(moments: Sequence[int]) -> Callable[[Container | Image], bool]:
    return lambda thing: thing.created_at_ns > max(moments)


def _has_ancestor(engine: Engine, names: Sequence[str]) -> Callable[[Container], bool]:
    ids = set()
    for name in names:
        try:
            ids.add(engine.images.get(name).id)
        except NotFound:
            continue  # as in Docker an image that is not there has no descendants
    return lambda container: container.image_id in ids or container.image in names


def _simple_test(key: str, values: Sequence[str]) -> Callable[[Container], bool]:
    if key == "health":
        _check_words(key, values, _HEALTH)
        return lambda container: _health(container) in values
    if key == "status":
        _check_words(key, values, _STATUSES)
        return lambda container: shown_status(container) in values
    if key == "exited":
        try:
            codes = {int(one) for one in values}
        except ValueError:
            raise InvalidInput(f"invalid filter 'exited={values[0]}'", "an exit code is a number") from None
        return lambda container: container.state().status == "exited" and container.state().exit_code in codes
    if key == "name":
        patterns = [_pattern(one) for one in values]
        # Docker's names begin with a slash that nobody writes; patterns that anchor it still hold.
        return lambda container: any(one.search(container.name) or one.search("/" + container.name) for one in patterns)
    if key == "id":
        return lambda container: any(container.id.startswith(one) for one in values)
    if key == "label":
        return lambda container: has_labels(container.options.labels, values)
    if key == "network":
        return lambda container: any(_is_on(container.plan.network, value) for value in values)
    if key == "isolation":
        return lambda container: container.plan.isolation in values
    return lambda container: any({one.volume, one.host_path, one.container_path} & {*values} for one in container.plan.mounts)


def _is_on(network: Network, wanted: str) -> bool:
    """Whether it is on the network of that name or id, or shares the ``host``'s, or has ``none``."""
    if network.mode != "own":
        return network.mode == wanted
    return any(one.network == wanted or one.network_id.startswith(wanted) for one in network.attachments)


def _check_words(key: str, values: Sequence[str], words: Sequence[str]) -> None:
    if unknown := [one for one in values if one not in words]:
        raise InvalidInput(f"invalid filter '{key}={unknown[0]}'", "", f"it is one of {', '.join(words)}")


def _health(container: Container) -> str:
    """Of one that does not run the last that was known."""
    health = container.state().health
    return health.status if health is not None else "none"


def glob(pattern: str) -> re.Pattern[str]:
    """A pattern of Go's ``path.Match``: ``*`` and ``?`` do not cross a slash."""
    text, position = "", 0
    while position < len(pattern):
        letter = pattern[position]
        position += 1
        if letter == "*":
            text += "[^/]*"
        elif letter == "?":
            text += "[^/]"
        elif letter == "[" and (end := pattern.find("]", position + 1)) > 0:
            text += "[" + pattern[position:end].replace("\\", "\\\\") + "]"
            position = end + 1
        elif letter == "\\" and position < len(pattern):
            text += re.escape(pattern[position])
            position += 1
        else:
            text += re.escape(letter)
    return _pattern(rf"\A{text}\Z")


def reference_matches(reference: Reference, patterns: Sequence[re.Pattern[str]]) -> bool:
    """Whether a name, with or without its tag, is one of the patterns."""
    return any(one.match(reference.familiar) or one.match(reference.familiar_name) for one in patterns)


def images(engine: Engine, filters: Mapping[str, Sequence[str]]) -> list[Callable[[Image], bool]]:
    """One test per key of ``images --filter`` that concerns whole images; ``reference`` concerns single names and is the listing's."""
    tests: list[Callable[[Image], bool]] = []
    for key, values in filters.items():
        if key in {"before", "since"}:
            moments = [engine.images.get(one).created_at_ns for one in values]
            tests.append(_older(moments) if key == "before" else _newer(moments))
        elif key == "until":
            tests.append(_older([parse_time_ns(one) for one in values]))
        elif key == "label":
            tests.append(lambda image, values=values: has_labels((image.config.config and image.config.config.labels) or {}, values))  # type: ignore[misc]
        elif key == "dangling":
            tests.append(_dangling(values))
    return tests


def _dangling(values: Sequence[str]) -> Callable[[Image], bool]:
    wanted = _boolean("dangling", values)
    return lambda image: (not image.references) == wanted


def _boolean(key: str, values: Sequence[str]) -> bool:
    if values[-1].lower() not in _BOOLEANS:
        raise InvalidInput(f"invalid filter '{key}={values[-1]}'", "", "it is true or false")
    return values[-1].lower() in _TRUE


def shown_driver(network: NetworkRecord) -> str:
    """A network's driver in Docker's words."""
    return "null" if network.config.driver == "none" else network.config.driver


def networks(engine: Engine, filters: Mapping[str, Sequence[str]]) -> list[Callable[[NetworkRecord], bool]]:
    """One test per key of ``network ls --filter``."""
    ways: dict[str, Callable[[Sequence[str]], Callable[[NetworkRecord], bool]]] = {
        "driver": lambda values: lambda one: shown_driver(one) in values,
        "id": lambda values: lambda one: any(one.id.startswith(value) for value in values),
        "name": lambda values: lambda one: any(value in one.name for value in values),
        "label": lambda values: lambda one: has_labels(one.config.labels, values),
        "scope": lambda values: lambda _one: "local" in values,
        "type": lambda values: lambda one: ("builtin" if one.name in PREDEFINED_NETWORKS else "custom") in values,
        "dangling": lambda values: lambda one: (
            (one.name not in PREDEFINED_NETWORKS and not engine.networks.endpoints(one)) == (values[-1] in ("true", "1"))
        ),
    }
    return [ways[key](values) for key, values in filters.items()]


def volumes(filters: Mapping[str, Sequence[str]]) -> list[Callable[[Volume], bool]]:
    """One test per key of ``volume ls --filter``."""
    return [_volume_test(key, values) for key, values in filters.items()]


def _volume_test(key: str, values: Sequence[str]) -> Callable[[Volume], bool]:
    if key == "dangling":
        wanted = _boolean(key, values)
        return lambda volume: (not volume.users) == wanted
    if key == "driver":
        return lambda volume: DRIVER in values
    if key == "label":
        return lambda volume: has_labels(volume.labels, values)
    return lambda volume: any(one in volume.name for one in values)


def prune_filter(filters: Mapping[str, Sequence[str]]) -> PruneFilter:
    """What ``label``, ``label!`` and ``until`` let a prune take."""
    from bulle.engine.pruning import PruneFilter

    with_labels, without = filters.get("label", ()), filters.get("label!", ())

    def accepts(labels: Mapping[str, str]) -> bool:
        return has_labels(labels, with_labels) and not any(has_labels(labels, [one]) for one in without)

    return PruneFilter(min((parse_time_ns(one) for one in filters.get("until", ())), default=0), accepts)
