"""The disks of a guest: an image's layers as they lie in the store, and a file system of its own to write to.

A layer is two read-only disks, its EROFS index and its tar, which all guests share in the host's page cache. The driver opens them, and later learns
from the guest which device each became: disks come up in any order, and only their serials tell them apart. Nothing is mounted on the host.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence

from bulle.errors import BulleError, Unavailable
from bulle.isolation import sized_file_system
from bulle.isolation.microvm.machine import Disk
from bulle.isolation.root_filesystem import require_layers
from bulle.model.run_plan import LayerMount

SCRATCH_SERIAL = "scratch"
SCRATCH_BYTES = 64 << 30
"""The size of a writable layer that nobody limited: it takes of the host's disk what is written."""
SCRATCH_OPTIONS = "noinit_itable,discard"
"""How the guest mounts it: unused tables are holes already, and what is deleted is given back to the host."""
_PATIENCE_S = 30.0


def make_scratch(path: str, size_bytes: int = SCRATCH_BYTES) -> None:
    """Make the file (host path) of a writable disk with an empty ext4 on it; some milliseconds, whatever the size.

    Raises Unavailable, InvalidInput, StorageFull.
    """
    sized_file_system.make(path, size_bytes, "the virtual machine's writable disk", "install e2fsprogs of 1.46 or newer")


def index_serial(number: int) -> str:
    """The serial of the index of the layer with that number, the lowest being 0."""
    return f"index-{number}"


def tar_serial(number: int) -> str:
    """The serial of that layer's tar, the device that its index points into."""
    return f"tar-{number}"


def open_layers(layers: Sequence[LayerMount]) -> list[Disk]:
    """The disks of a stack of layers, lowest first, in that order; the caller closes their descriptors. Raises Unavailable, InvalidInput."""
    require_layers(layers)
    opened: list[Disk] = []
    try:
        for number, layer in enumerate(layers):
            if not layer.index_path:
                raise Unavailable(
                    "a virtual machine cannot show this image", "the store keeps its layers as directories", "use the isolation level container"
                )
            for serial, path in ((index_serial(number), layer.index_path), (tar_serial(number), layer.tar_path)):
                opened.append(Disk(serial, os.open(path, os.O_RDONLY | os.O_CLOEXEC)))
    except BaseException as error:
        for disk in opened:
            os.close(disk.descriptor)
        if isinstance(error, OSError):
            raise Unavailable("a layer of the image cannot be read", f"{error.strerror}: {error.filename}", "pull the image again") from error
        raise
    return opened


def open_scratch(path: str, *, volatile: bool = False) -> Disk:
    """The writable disk in a file (host path); the caller closes its descriptor."""
    return Disk(SCRATCH_SERIAL, os.open(path, os.O_RDWR | os.O_CLOEXEC), read_only=False, volatile=volatile)


def find(wanted: Iterable[str], list_directory: Callable[[str], Sequence[str]], read: Callable[[str], bytes]) -> dict[str, str]:
    """The guest's device (guest path) of each disk, by serial. Waits for those that are not up yet; raises BulleError when that takes too long.

    ``list_directory`` and ``read`` look into the guest; both raise OSError for what is not there.
    """
    missing, found, seen = set(wanted), dict[str, str](), set[str]()
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        for name in list_directory("/sys/block"):
            if name in seen or not name.startswith(("vd", "sd")):
                continue
            serial = _serial(name, read)
            if serial:
                seen.add(name)
                missing.discard(serial)
                found[serial] = f"/dev/{name}"
        if not missing:
            return found
        if time.monotonic() > deadline:
            raise BulleError("the virtual machine's disks did not come up", f"these are missing: {', '.join(sorted(missing))}")
        time.sleep(0.005)


def _serial(name: str, read: Callable[[str], bytes]) -> str:
    """Of a virtio disk, or of a unit of a SCSI controller: there, page 0x80 of its vital product data, behind four bytes. SPC-4, 7.8.15"""
    paths = ((f"/sys/block/{name}/serial", 0),) if name.startswith("vd") else ((f"/sys/block/{name}/device/vpd_pg80", 4),)
    for path, skipped in paths:
        try:
            return read(path)[skipped:].decode("ascii", "replace").strip(" \n\0")
        except OSError:
            continue
    return ""
