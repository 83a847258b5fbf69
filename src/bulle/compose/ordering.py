"""In which order the services of an app are seen to: behind those that they depend on, and otherwise at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait

from bulle.compose.model import Service
from bulle.errors import BulleError, InvalidInput, NotFound

Dependencies = Mapping[str, Collection[str]]


class GivenUp(BulleError):
    """Something else failed meanwhile, or the user wants no more of it."""


def dependencies_of(service: Service) -> set[str]:
    """The services that have to be there before this one: what it says, and those whose network or volumes it shares, or that it links to."""
    found = set(service.depends_on)
    found.update(link.partition(":")[0] for link in service.links)
    found.update(text.partition(":")[0] for text in service.volumes_from if not text.startswith("container:"))
    if service.network_mode.startswith("service:"):
        found.add(service.network_mode.removeprefix("service:"))
    return found


def dependencies(services: Iterable[Service]) -> dict[str, set[str]]:
    """Of each of these services those among them that it depends on."""
    known = {service.name: service for service in services}
    return {name: dependencies_of(service) & known.keys() for name, service in known.items()}


def chosen(services: Mapping[str, Service], names: Collection[str], *, with_dependencies: bool = True) -> dict[str, Service]:
    """The services of these names (none: all), and what they depend on, in their order. Raises NotFound."""
    for name in names:
        if name not in services:
            raise NotFound(f"no such service: {name}", f"the app has {', '.join(sorted(services)) or 'none'}", "")
    wanted, waiting = set[str](), list(names or services)
    while waiting:
        name = waiting.pop()
        if name not in wanted and name in services:
            wanted.add(name)
            waiting += dependencies_of(services[name]) if with_dependencies else ()
    return {name: services[name] for name in in_order(dependencies(services.values())) if name in wanted}


def in_order(graph: Dependencies) -> list[str]:
    """Every service behind those that it depends on. Raises InvalidInput for a circle."""
    ordered: dict[str, None] = {}

    def visit(name: str, chain: tuple[str, ...]) -> None:
        if name in chain:
            raise InvalidInput(f"services depend on each other in a circle: {' -> '.join((*chain, name))}", "", "take one dependency out")
        if name not in ordered:
            for other in sorted(graph.get(name, ())):
                visit(other, (*chain, name))
            ordered[name] = None

    for name in graph:
        visit(name, ())
    return list(ordered)


def in_waves(
    graph: Dependencies, work: Callable[[str], object], *, leave: Callable[[], object], given_up: threading.Event, reverse: bool = False
) -> None:
    """Do the work for every service once it is done for those before it, in threads; each ends with ``leave``.

    The first error, or an interrupt, sets ``given_up``, which the work looks at where it waits; what stands behind it is not begun.
    """
    names = in_order(graph)
    if len(names) <= 1:
        for name in names:
            work(name)
        return
    before = {name: {other for other in names if name in graph[other]} for name in names} if reverse else graph
    done: dict[str, Future[None]] = {}

    def one(name: str) -> None:
        try:
            for other in before[name]:
                done[other].result()
            if not given_up.is_set():
                work(name)
        except BaseException:
            given_up.set()
            raise
        finally:
            leave()

    with ThreadPoolExecutor(len(names)) as pool:
        for name in reversed(names) if reverse else names:
            done[name] = pool.submit(one, name)
        try:
            wait(done.values())
        except BaseException:
            given_up.set()
            raise
    errors = [error for name in names if (error := done[name].exception()) is not None]
    if errors:
        raise next((error for error in errors if not isinstance(error, GivenUp)), errors[0])
