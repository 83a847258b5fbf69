"""From a method and a path to the handler that answers: the table's form, the API's versions, and what is said of what is not there."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bulle.api.failures import ApiError

if TYPE_CHECKING:
    from bulle.api.call import Call

NEWEST = (1, 51)
OLDEST = (1, 24)

Handler = Callable[..., Awaitable[None]]
_VERSION = re.compile(r"/v([0-9]+)\.([0-9]+)(?=/)")
_PARAMETER = re.compile(r"\{(\w+)(\.\.\.)?\}")


def shown(version: tuple[int, int]) -> str:
    """A version as it stands in paths and documents."""
    return f"{version[0]}.{version[1]}"


@dataclass(frozen=True)
class Route:
    """One path: ``{name}`` stands for a part of it, ``{name...}`` also for several. ``query`` and ``body`` are structs, for the description.

    ``plain`` are paths beside Docker's, which have no version; ``filters`` says that the query may have some.
    """

    method: str
    path: str
    handler: Handler
    query: type[Any] | None = None
    body: type[Any] | None = None
    plain: bool = False
    filters: bool = False

    @property
    def pattern(self) -> str:
        """As a regular expression."""
        return "".join(
            part if number % 3 == 0 else "" if number % 3 == 2 else f"(?P<{part}>PLACE)" for number, part in enumerate(_PARAMETER.split(self.path))
        )

    def compiled(self) -> re.Pattern[str]:
        """What a path is compared with."""
        several = iter([bool(more) for _, more in _PARAMETER.findall(self.path)])
        return re.compile(re.sub("PLACE", lambda _match: ".+?" if next(several) else "[^/]+", self.pattern) + r"\Z")


class Router:
    """The table, ready to be searched."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.routes = tuple(routes)
        self._fixed: dict[tuple[str, str], Route] = {}
        self._patterns: dict[str, list[tuple[re.Pattern[str], Route]]] = {}
        for route in routes:
            if "{" in route.path:
                self._patterns.setdefault(route.method, []).append((route.compiled(), route))
            else:
                self._fixed[route.method, route.path] = route

    def find(self, call: Call) -> tuple[Route, dict[str, str]]:
        """The route of a request, whose version is taken from its path, and what stands for its parameters. Raises ApiError."""
        call.version, versioned = NEWEST, False
        if (match := _VERSION.match(call.path)) is not None:
            call.version, versioned = (int(match[1]), int(match[2])), True
            call.path = call.path[match.end() :]
            _check(call.version)
        route = self._fixed.get((call.method, call.path))
        if route is not None and not (route.plain and versioned):
            return route, {}
        for pattern, route in self._patterns.get(call.method, ()):
            if (found := pattern.match(call.path)) is not None:
                return route, found.groupdict()
        raise ApiError(404, "page not found")


def _check(version: tuple[int, int]) -> None:
    if version < OLDEST:
        words = f"client version {shown(version)} is too old. Minimum supported API version is {shown(OLDEST)}"
        raise ApiError(400, f"{words}, please upgrade your client to a newer version")
    if version > NEWEST:
        raise ApiError(400, f"client version {shown(version)} is too new. Maximum supported API version is {shown(NEWEST)}")
