"""Functions that look into files of a guest without waiting: they are called again when it has been fetched. Called by the shepherd."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TypeVar

from bulle.isolation.microvm.agent import Agent
from bulle.isolation.microvm.sessions import Condition
from bulle.model.run_plan import RunPlan

_MOST_BYTES = 4 << 20

Result = TypeVar("Result")


class _WantedError(Exception):
    """A file of the guest that was not read yet."""


def with_files(
    agent: Agent,
    plan: RunPlan,
    function: Callable[[Callable[[str], bytes | None]], Result],
    ahead: Sequence[str] = (),
    known_before: Mapping[str, bytes | None] | None = None,
) -> Generator[Condition, None, Result]:
    """The result of a function that looks into files of the container, which are fetched when it asks for them; those ``ahead`` all at once."""
    known = dict(known_before or {})
    asked = {path: agent.read(path, _MOST_BYTES) for path in ahead if path not in known}

    def look(path: str) -> bytes | None:
        if path not in known:
            raise _WantedError(path)
        return known[path]

    while True:
        try:
            return function(look)
        except _WantedError as wanted:
            path = wanted.args[0]
        session = asked.pop(path, None) or agent.read(path, _MOST_BYTES)
        yield lambda session=session: session.final  # type: ignore[misc]
        for number, mount in enumerate(plan.mounts if session.error else ()):
            # Before the first command runs, volumes are not in the container's root yet.
            if mount.kind != "tmpfs" and f"{path}/".startswith(f"{mount.container_path}/"):
                inside = f"/volumes/{number}/shown{path.removeprefix(mount.container_path)}"
                session = agent.read(inside, _MOST_BYTES, own_root=True)
                yield lambda session=session: session.final  # type: ignore[misc]
        known[path] = None if session.error else bytes(session.content)
