"""What layers take on the disk, and who stands on them: for ``system df`` and for whoever frees space. Sizes are blocks, not lengths."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from bulle.records.database import Database
from bulle.records.layers import LayerRecords

_BLOCK = 512


@dataclass
class LayerUsage:
    """One layer: its tar, its indexes or extracted files, and its blobs; ids of images and containers, keys of build steps."""

    disk_bytes: int = 0
    images: set[str] = field(default_factory=set)
    containers: set[str] = field(default_factory=set)
    steps: set[str] = field(default_factory=set)


def layer_usage(home: Path, database: Database) -> dict[str, LayerUsage]:
    """Every layer by its diff id; a blob that is no layer stands for itself."""
    records = LayerRecords(database)
    found: dict[str, LayerUsage] = {}
    users = records.users()
    for diff_id, kind, user in users:
        layer = found.setdefault(diff_id, LayerUsage())
        {"image": layer.images, "container": layer.containers, "step": layer.steps}[kind].add(user)
    blobs: dict[str, list[str]] = {}
    for blob, diff_id in records.blobs():
        blobs.setdefault(diff_id, []).append(blob)
    for diff_id in {*found, *blobs}:
        places = [_place(home / "layers", diff_id), *(_place(home / "blobs", blob) for blob in blobs.get(diff_id, ()))]
        found.setdefault(diff_id, LayerUsage()).disk_bytes = disk_bytes(*places)
    return found


def disk_bytes(*places: Path) -> int:
    """What files and directories take together on the disk; a file with several names counts once. Mount points are not entered."""
    seen: set[tuple[int, int]] = set()
    total = 0

    def add(path: str) -> None:
        nonlocal total
        try:
            status = os.lstat(path)
        except OSError:
            return
        if (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            total += status.st_blocks * _BLOCK

    for place in places:
        add(str(place))
        try:
            device = os.lstat(place).st_dev
        except OSError:
            continue
        for parent, directories, names in os.walk(place):
            for name in (*directories, *names):
                add(f"{parent}/{name}")
            directories[:] = [name for name in directories if _is_on(f"{parent}/{name}", device)]
    return total


def _is_on(path: str, device: int) -> bool:
    try:
        return os.lstat(path).st_dev == device
    except OSError:
        return False


def _place(root: Path, digest: str) -> Path:
    algorithm, _, encoded = digest.partition(":")
    return root / algorithm / encoded
