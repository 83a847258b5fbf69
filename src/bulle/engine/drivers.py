"""Which driver realises which isolation level."""

from __future__ import annotations

from pathlib import Path

from bulle.errors import InvalidInput
from bulle.isolation.chroot import ChrootDriver
from bulle.isolation.driver import Driver
from bulle.isolation.microvm.driver import MicroVmDriver
from bulle.isolation.namespaces import NamespaceDriver

LEVELS: tuple[type[MicroVmDriver] | type[NamespaceDriver] | type[ChrootDriver], ...] = (MicroVmDriver, NamespaceDriver, ChrootDriver)
"""Strongest first."""


def driver_for(level: str, home: Path) -> Driver:
    """The driver of a level; ``home`` is where it may keep compiled filters."""
    for kind in LEVELS:
        if kind.name == level:
            return kind(home / "cache")
    raise InvalidInput(f"there is no isolation level {level!r}", "", f"use one of {', '.join(kind.name for kind in LEVELS)}")
