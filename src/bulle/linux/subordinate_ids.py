"""Which ids an ordinary user may map into a user namespace: her own, and the subordinate ranges that the administrator gave her.

The store (which extracts layers with mapped ids) and the engine (whose containers stand on them) must agree, so both ask here.
subuid(5), newuidmap(1)
"""

from __future__ import annotations

import os
import pwd
import shutil
from pathlib import Path

from bulle.model.run_plan import IdMapping

RANGE_SIZE = 65536


def rootless_mappings() -> tuple[tuple[IdMapping, ...], tuple[IdMapping, ...]]:
    """User and group maps for this user: root inside is that user, the rest her subordinate ids; her own id alone where those cannot be used."""
    user, group = os.geteuid(), os.getegid()
    own_user, own_group = IdMapping(0, user, 1), IdMapping(0, group, 1)
    try:
        name = pwd.getpwuid(user).pw_name
    except KeyError:
        name = str(user)
    users, groups = _range_of("/etc/subuid", name, user), _range_of("/etc/subgid", name, user)
    if users is None or groups is None or not (shutil.which("newuidmap") and shutil.which("newgidmap")):
        return (own_user,), (own_group,)
    return (own_user, IdMapping(1, *users)), (own_group, IdMapping(1, *groups))


def identity_mappings() -> tuple[tuple[IdMapping, ...], tuple[IdMapping, ...]]:
    """User and group maps in which each id that this process's namespace has is itself; only its root may use them."""
    return _as_itself("/proc/self/uid_map"), _as_itself("/proc/self/gid_map")


def _as_itself(file: str) -> tuple[IdMapping, ...]:
    with open(file) as lines:
        return tuple(IdMapping(first, first, size) for first, _outside, size in (map(int, line.split()) for line in lines))


def subordinate_ranges(file: str) -> list[tuple[str, int, int]]:
    """Owner (a name or a number), first id and size of every line of /etc/subuid or /etc/subgid."""
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


def _range_of(file: str, name: str, user: int) -> tuple[int, int] | None:
    return next(((start, min(size, RANGE_SIZE)) for owner, start, size in subordinate_ranges(file) if owner in (name, str(user))), None)
