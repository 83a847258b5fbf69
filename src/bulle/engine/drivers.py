"""Which driver realises which isolation level."""

from __future__ import annotations

from pathlib import Path

from bulle.errors import InvalidInput
from bulle.isolation.driver import Driver

LEVELS = ("vm", "container", "chroot")
"""Strongest first."""


def driver_for(level: str, home: Path) -> Driver:
    """The driver of a level; ``home`` is where it may keep compiled filters. Only that one is imported: most processes want one of them."""
    cache = home / "cache"
    if level == "container":
        from bulle.isolation.namespaces import NamespaceDriver

        return NamespaceDriver(cache)
    if level == "vm":
        from bulle.isolation.microvm.driver import MicroVmDriver

        return MicroVmDriver(cache)
    if level == "chroot":
        from bulle.isolation.chroot import ChrootDriver

        return ChrootDriver(cache)
    raise InvalidInput(f"there is no isolation level {level!r}", "", f"use one of {', '.join(LEVELS)}")
