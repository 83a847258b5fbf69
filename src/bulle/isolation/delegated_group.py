"""A control group of version 2 that a container manages by itself, which init systems want to: a directory that belongs to the container's root.

On a machine with version 2 alone it is the container's group, whose limits are files that stay the host's. On a hybrid machine it is one more, beside
those of version 1 that carry the limits. Below it the container makes groups as it likes; they are removed with it. cgroups(7), "Delegation";
systemd's CGROUP_DELEGATION.md
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from bulle.linux import control_group as kernel

if TYPE_CHECKING:
    from bulle.isolation.control_group_layout import Layout

# What the container's root may write: /sys/kernel/cgroup/delegate names them.
_FILES = ("cgroup.procs", "cgroup.threads", "cgroup.subtree_control")
_LEAF = "bulle-exec"
_BASE = "bulle"


def directory(container_id: str, machine: Layout | None) -> str:
    """The host path of the directory on a hybrid machine, there or not; empty where the container's group is of version 2 itself, or nothing is."""
    if machine is None or "" in machine.directories(container_id):
        return ""
    root = _root()
    return f"{root}/{_BASE}/{container_id}" if root else ""


def unavailable(machine: Layout | None) -> str:
    """Why no container can have one; empty where it can."""
    if machine is not None and "" in machine.directories(""):
        return machine.available().reason if not machine.available().controllers else ""
    root = _root()
    if not root:
        return "control groups of version 2 are not mounted"
    base = f"{root}/{_BASE}"
    return "" if os.access(base if os.path.isdir(base) else root, os.W_OK) else f"{root} belongs to another user"


def make(path: str, user_id: int, group_id: int) -> int:
    """Make it, or give what is there away; returns what a process enters it by. OSError."""
    if not path:
        raise OSError(2, os.strerror(2), "/sys/fs/cgroup")
    os.makedirs(path, 0o755, exist_ok=True)
    if os.geteuid() == 0:
        os.chown(path, user_id, group_id)
        for name in _FILES:
            with contextlib.suppress(FileNotFoundError):
                os.chown(f"{path}/{name}", user_id, group_id)
    return os.open(f"{path}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)


def open_leaf(path: str) -> int:
    """A group below that holds processes: the container's own may not, once its init hands controllers down from it."""
    leaf = f"{path}/{_LEAF}"
    with contextlib.suppress(FileExistsError):
        os.mkdir(leaf, 0o755)
    return os.open(leaf, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _root() -> str:
    return next((one.mount_path for one in kernel.hierarchies() if one.version == 2 and not one.read_only), "")
