"""A container's writable layer that can hold so much and no more: a file system of its own, in a file beside where the layer would have been.

How such a file system is made and mounted is :mod:`bulle.isolation.sized_file_system`'s business; the container's overlay alone keeps it. Whoever
looks at the layer meanwhile gets the same file system once more, so both see the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bulle.isolation import sized_file_system
from bulle.isolation.sized_file_system import SMALLEST_BYTES, available
from bulle.linux import mount
from bulle.model.run_plan import RunPlan

_RESERVE = "reserve"
_RESERVE_BYTES = 64 << 10
_ONLY_LOOK = mount.MOUNT_ATTR_RDONLY | mount.MOUNT_ATTR_NODEV | mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NOEXEC


def disk(plan: RunPlan) -> str:
    """The host path of the file."""
    return f"{plan.root.writable_host_path}/disk"


def make(plan: RunPlan) -> None:
    """Make the file and the file system in it, and mount it once, so that what is missing here is known now. Raises Unavailable, StorageFull."""
    sized_file_system.make(disk(plan), plan.root.size_bytes, "the writable layer", "leave out --storage-opt")
    layer = detached(plan)
    _keep_room(layer)
    os.close(layer)


def detached(plan: RunPlan, attributes: int = 0) -> int:
    """A detached mount of the file system, with ``upper`` and ``work`` in it; the descriptor is the caller's."""
    mend = "leave out --storage-opt, or give the machine loop devices and ext4 (modprobe loop ext4)"
    descriptor = sized_file_system.detached(disk(plan), "the container's writable layer", mend, volatile=plan.root.volatile)
    try:
        for name in ("upper", "work"):
            with suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=descriptor)
        if attributes:
            mount.mount_setattr(descriptor, "", mount.AT_EMPTY_PATH, attributes)
        return descriptor
    except BaseException:
        os.close(descriptor)
        raise


@contextmanager
def room_for_work(layer: int) -> Iterator[None]:
    """While the block lasts, overlay finds room to make its own directory in the layer (a descriptor), which is full.

    Some is kept from the beginning, out of the container's reach, and kept again afterwards. Newer kernels manage without.
    """
    with suppress(FileNotFoundError):
        os.unlink(_RESERVE, dir_fd=layer)
    try:
        yield
    finally:
        _keep_room(layer)


def _keep_room(layer: int) -> None:
    with suppress(OSError), open(os.open(_RESERVE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=layer), "wb") as file:
        os.posix_fallocate(file.fileno(), 0, _RESERVE_BYTES)


@contextmanager
def upper(plan: RunPlan) -> Iterator[Path]:
    """The host path of the directory that overlay fills, to be looked at while the block lasts, by this process and its children."""
    if not plan.root.size_bytes:
        yield Path(plan.root.writable_host_path) / "upper"
        return
    descriptor = detached(plan, _ONLY_LOOK)
    try:
        yield Path(f"/proc/{os.getpid()}/fd/{descriptor}/upper")
    finally:
        os.close(descriptor)


def attach(plan: RunPlan) -> None:
    """Show it where the layer would have been without a limit, in this process's own mount namespace."""
    descriptor = detached(plan, _ONLY_LOOK)
    try:
        mount.attach_mount(descriptor, plan.root.writable_host_path)
    finally:
        os.close(descriptor)


__all__ = ["SMALLEST_BYTES", "attach", "available", "detached", "disk", "make", "room_for_work", "upper"]
