"""``--filter``: which containers or images a listing keeps, with Docker's keys and rules.

Values of one key are alternatives, different keys must all hold; labels must all hold. An unknown key is an error, never ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from bulle.cli import human
from bulle.cli.verb import WrongValue
from bulle.errors import InvalidInput, NotFound
from bulle.model.reference import Reference

if TYPE_CHECKING:
    from bulle.engine import Container, Engine, Image
    from bulle.model.run_plan import Network

CONTAINER_KEYS = ("ancestor", "before", "exited", "health", "id", "isolation", "label", "name", "network", "since", "status", "volume")
IMAGE_KEYS = ("before", "dangling", "label", "reference", "since", "until")
_STATUSES = ("created", "restarting", "running", "removing", "paused", "exited", "dead")
_HEALTH = ("starting", "healthy", "unhealthy", "none")


def parse(texts: Sequence[str], keys: Sequence[str]) -> dict[str, list[str]]:
    """The values by key; raises WrongValue for what is no filter, InvalidInput for one that is not known."""
    values: dict[str, list[str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip().lower()
        if not equals:
            raise WrongValue(f"invalid argument '{text}' for --filter", "", "write it as name=value")
        if key not in keys:
            raise InvalidInput(f"invalid filter '{key}'", "", f"it is one of {', '.join(keys)}")
        values.setdefault(key, []).append(value.strip())
    return values


def has_labels(labels: Mapping[str, str], wanted: Sequence[str]) -> bool:
    """Whether every ``key`` or ``key=value`` is there."""
    pairs = (one.partition("=") for one in wanted)
    return all(key in labels and (not equals or labels[key] == value) for key, equals, value in pairs)


def shows_stopped(filters: Mapping[str, list[str]]) -> bool:
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


def containers(engine: Engine, filters: Mapping[str, list[str]]) -> list[Callable[[Container], bool]]:
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


def images(engine: Engine, filters: Mapping[str, list[str]]) -> list[Callable[[Image], bool]]:
    """One test per key of ``images --filter`` that concerns whole images; ``reference`` concerns single names and is the listing's."""
    tests: list[Callable[[Image], bool]] = []
    for key, values in filters.items():
        if key in {"before", "since"}:
            moments = [engine.images.get(one).created_at_ns for one in values]
            tests.append(_older(moments) if key == "before" else _newer(moments))
        elif key == "until":
            tests.append(_older([human.parse_time_ns(one) for one in values]))
        elif key == "label":
            tests.append(lambda image, values=values: has_labels((image.config.config and image.config.config.labels) or {}, values))  # type: ignore[misc]
        elif key == "dangling":
            tests.append(_dangling(values))
    return tests


def _dangling(values: Sequence[str]) -> Callable[[Image], bool]:
    if values[-1].lower() not in {"true", "false", "1", "0"}:
        raise InvalidInput(f"invalid filter 'dangling={values[-1]}'", "", "it is true or false")
    wanted = values[-1].lower() in {"true", "1"}
    return lambda image: (not image.references) == wanted
