"""Which host ids a container's users become: an own range for each of root's containers, the user's own and subordinate ids for everyone else.

Ranges are 65,536 ids long and lie where systemd reserves ids for containers (524288 to 1878982655); those of /etc/subuid and /etc/subgid are left
out. Each home begins elsewhere in that space, so that two homes rarely meet. user_namespaces(7), subuid(5), systemd's UIDS-GIDS.md
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Collection
from pathlib import Path

from bulle.errors import Unavailable
from bulle.linux.subordinate_ids import RANGE_SIZE, subordinate_ranges
from bulle.model.run_plan import IdMapping

_FIRST = 524288
_COUNT = (1878982656 - _FIRST) // RANGE_SIZE


def free_range(home: Path, taken: Collection[int]) -> int:
    """The first host id of a range that no container of this home has; Unavailable when all are taken."""
    reserved = [(start, start + size) for file in ("/etc/subuid", "/etc/subgid") for _, start, size in subordinate_ranges(file)]
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
