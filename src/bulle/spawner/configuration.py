"""What the composition root hands to the spawner; the spawner itself knows no command, monitor or control group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bulle.spawner.child import Entry
from bulle.spawner.zygote import Watcher

IDLE_S = 300.0


def _nothing() -> None:
    return None


def _entry_itself(entry: str, _argv: Sequence[bytes]) -> str:
    return entry


@dataclass(frozen=True, slots=True)
class Configuration:
    """One spawner's entries and what happens around them. ``home`` is a host path."""

    home: str
    entries: Mapping[str, Entry]
    interpreter: bytes  # directory of the interpreter: names the installation
    package: bytes  # directory of the package
    spare: Mapping[str, int] = field(default_factory=dict)  # children forked ahead, by kind
    kind: Callable[[str, Sequence[bytes]], str] = _entry_itself  # what kind of child suits an entry with this argv best
    watchers: Mapping[str, Watcher] = field(default_factory=dict)  # entries whose children live long, and what those do meanwhile
    rehearsals: Mapping[str, Callable[[], object]] = field(default_factory=dict)  # what a child forked ahead runs before it waits
    enter_scope: Callable[[], object] = _nothing  # once, leaves the control group of whoever started the spawner
    process_to_join: Callable[[], int | None] = _nothing  # once, a living process whose mount namespace a new spawner shares
    prepare: Callable[[], object] = _nothing  # in the spawner's mount namespace, before anybody is served
    on_orphan: Callable[[int, int], object] | None = None  # (pid, wait status) of an adopted process that ended
    idle_s: float = IDLE_S
