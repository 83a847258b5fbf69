"""What happens in a home, as a program sees it: the events that are kept, those to come, and which of them are wanted.

The journal is :mod:`bulle.records.events`; the engine's verbs write to it, and so do the monitors. Which filters there are and what they accept is
Docker's rule: values of one key are alternatives, different keys must all hold, labels must all hold.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from bulle.errors import InvalidInput
from bulle.model.reference import Reference
from bulle.model.volume import DRIVER
from bulle.records.events import Event, Following, publish, read

if TYPE_CHECKING:
    from bulle.model.run_plan import RunPlan
    from bulle.store import Image

FILTER_KEYS = ("builder", "container", "event", "image", "label", "network", "scope", "type", "volume")
_BY_BEGINNING = frozenset({"exec_create", "exec_start", "health_status"})
"""Actions that are followed by more (``exec_create: sh -c ls``) and are asked for without it."""

Filters = Mapping[str, Sequence[str]]


class Events(Iterator[Event]):
    """Events, oldest first; the ones to come are waited for. To be closed, or used with ``with``, where it is left before its end."""

    def __init__(self, home: Path, *, since_ns: int = 0, until_ns: int = 0, follow: bool = True, filters: Filters | None = None) -> None:
        if since_ns and until_ns and since_ns > until_ns:
            raise InvalidInput("`since` cannot be after `until`", "no moment lies between them", "exchange the two")
        self._test = accepts(filters or {})
        if follow and (not until_ns or until_ns > time.time_ns()):
            # As in Docker what was is told too as soon as one of the times is given.
            self._source: Following | Iterator[Event] = Following(home, since_ns=since_ns or (1 if until_ns else 0), until_ns=until_ns)
        else:
            self._source = read(home, since_ns=since_ns, until_ns=until_ns)

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> Event:
        while True:
            event = next(self._source)
            if self._test(event):
                return event

    def close(self) -> None:
        """Wait for no more; harmless to repeat."""
        close = getattr(self._source, "close", None)
        if close is not None:
            close()


def accepts(filters: Filters) -> Callable[[Event], bool]:
    """Whether an event is wanted, as a function. Raises InvalidInput for a key that is not known."""
    for key in filters:
        if key not in FILTER_KEYS:
            raise InvalidInput(f"invalid filter '{key}'", "", f"it is one of {', '.join(FILTER_KEYS)}")
    tests = [_test(key, tuple(values)) for key, values in filters.items()]
    return lambda event: all(test(event) for test in tests)


def _test(key: str, values: tuple[str, ...]) -> Callable[[Event], bool]:
    if key == "type":
        return lambda event: event.kind in values
    if key == "scope":
        return lambda event: event.scope in values
    if key == "event":
        return lambda event: (
            event.action in values
            or any(one in _BY_BEGINNING and event.action.partition(":")[0] == one for one in (value.rstrip(":") for value in values))
        )
    if key == "label":
        wanted = [one.partition("=") for one in values]
        return lambda event: all(
            name in event.actor.attributes and (not equals or event.actor.attributes[name] == value) for name, equals, value in wanted
        )
    if key == "image":
        return lambda event: any(one in values for one in _images_of(event))
    return lambda event: (
        event.kind == key
        and any(event.actor.identifier.startswith(value) or event.actor.attributes.get("name", "").startswith(value) for value in values)
    )


def _images_of(event: Event) -> Iterator[str]:
    """The names of the image that an event is about, or of the one that its container was made from; with their tags and without."""
    name = event.actor.attributes.get("name" if event.kind == "image" else "image", "")
    for one in (event.actor.identifier, name):
        yield one
        last = one.rfind("/") + 1
        yield one[:last] + one[last:].partition("@")[0].partition(":")[0]


def summary_of(event: Event) -> dict[str, str]:
    """What Docker says once more of containers and images, where programs of its first years look for it."""
    if event.kind not in ("container", "image"):
        return {}
    container = {"from": event.actor.attributes.get("image", "")} if event.kind == "container" else {}
    return {"status": event.action, "id": event.actor.identifier, **container}


def event_document(event: Event) -> dict[str, object]:
    """The event as the API of Docker has it: empty fields are left out."""
    own: dict[str, object] = msgspec.to_builtins(event)
    return {**{name: value for name, value in summary_of(event).items() if value}, **own}


def publish_image(home: Path, action: str, image: Image, name: str = "", **more: str) -> None:
    """Publish what happened to an image: to its name (``name``, pulled and pushed under it), or to itself."""
    labels = (image.config.config and image.config.config.labels) or {}
    reference = Reference.parse(name) if name else None
    by_name = action in ("pull", "push") and reference is not None
    identifier = reference.familiar if by_name and reference is not None else image.id
    called = image.id if reference is None else reference.familiar_name if by_name else reference.familiar
    publish(home, "image", action, identifier, {**labels, "name": called, **more})


def publish_volumes(plan: RunPlan, action: str) -> None:
    """Publish that the volumes of a container are mounted (``mount``) or were (``unmount``)."""
    home = os.path.dirname(os.path.dirname(plan.state_host_path))
    for one in plan.mounts:
        if one.volume:
            more = {"destination": one.container_path, "read/write": str(not one.read_only).lower(), "propagation": ""} if action == "mount" else {}
            publish(home, "volume", action, one.volume, {"driver": DRIVER, "container": plan.container_id, **more})
