"""Which host ids a container's users become: an own range for each of root's containers, the user's own and subordinate ids for everyone else.

Ranges are 65,536 ids long and lie where systemd reserves ids for containers (524288 to 1878982655); those of /etc/subuid and /etc/subgid are left
out. Each home begins elsewhere in that space, so that two homes rarely meet. user_namespaces(7), subuid(5), systemd's UIDS-GIDS.md
"""

from __future__ import annotations

import os
import pwd
import zlib
from collections.abc import Collection
from pathlib import Path

from bulle.errors import Unavailable
from bulle.model.run_plan import IdMapping

RANGE_SIZE = 65536
_FIRST = 524288
_COUNT = (1878982656 - _FIRST) // RANGE_SIZE


def free_range(home: Path, taken: Collection[int]) -> int:
    """The first host id of a range that no container of this home has; Unavailable when all are taken."""
    reserved = [(start, start + size) for file in ("/etc/subuid", "/etc/subgid") for _, start, size in _subordinate(file)]
    begin = zlib.crc32(os.fsencode(home)) % _COUNT
    used = set(taken)
    for offset in range(_COUNT):
        first = _FIRST + (begin + offset) % _COUNT * RANGE_SIZE
        if first not in used and not any(start < first + RANGE_SIZE and first < end for start, end in reserved):
            return first
    raise Unavailable("no range of user ids is free", f"{len(used)} containers have one", "remove containers that are not needed")


def root_mappings(first: int) -> tuple[IdMapping, ...]:
    """The map of a container that got the range beginning at ``first``."""
    return (IdMapping(0, first, RANGE_SIZE),)


def rootless_mappings() -> tuple[tuple[IdMapping, ...], tuple[IdMapping, ...]]:
    """User and group maps for an ordinary user: container root is that user, the rest her subordinate ids; one id alone where she has none."""
    user, group = os.geteuid(), os.getegid()
    try:
        name = pwd.getpwuid(user).pw_name
    except KeyError:
        name = str(user)
    users, groups = _range_of("/etc/subuid", name, user), _range_of("/etc/subgid", name, user)
    own_user, own_group = IdMapping(0, user, 1), IdMapping(0, group, 1)
    if users is None or groups is None:
        return (own_user,), (own_group,)
    return (own_user, IdMapping(1, *users)), (own_group, IdMapping(1, *groups))


def _range_of(file: str, name: str, user: int) -> tuple[int, int] | None:
    return next(((start, min(size, RANGE_SIZE)) for owner, start, size in _subordinate(file) if owner in (name, str(user))), None)


def _subordinate(file: str) -> list[tuple[str, int, int]]:
    found = []
    try:
        text = Path(file).read_text()
    except OSError:
        return []
    for line in text.splitlines():
        parts = line.split(":")
        if len(parts) == 3 and parts[1].isdigit() and parts[2].isdigit():
            found.append((parts[0], int(parts[1]), int(parts[2])))
    return found
