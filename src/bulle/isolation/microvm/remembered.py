"""What was found out about this machine at some cost, kept in a file until it may have changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T", bound=msgspec.Struct)


def remembered(cache: Path | None, name: str, kind: type[T], find: Callable[[], T], outdated: str = "") -> T:
    """What ``find`` says, or said: ``name`` is a file of ``cache`` (a directory, host path) and changes with what the answer depends on.

    ``outdated`` is a pattern of files that a new answer removes. Not being able to keep it only costs the next one its time.
    """
    if cache is None:
        return find()
    record = cache / name
    try:
        return msgspec.json.decode(record.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError):
        found = find()
    temporary = record.with_name(f"{name}.{os.getpid()}")
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in cache.glob(outdated) if outdated else ():
            old.unlink(missing_ok=True)
        temporary.write_bytes(msgspec.json.encode(found))
        temporary.rename(record)
    except OSError:
        temporary.unlink(missing_ok=True)
    return found
