"""The child's side of a system container: its own control groups to write to, and the identity of its machine.

Called by ``inside`` while the root is put together, as the container's root. systemd's CONTAINER_INTERFACE.md, machine-id(5)
"""

from __future__ import annotations

import os

from bulle.errors import BulleError, Unavailable
from bulle.linux import mount, process
from bulle.model.run_plan import RunPlan

_IN_ROOT = process.RESOLVE_IN_ROOT | process.RESOLVE_NO_MAGICLINKS


def prepare(plan: RunPlan, root: int, sys: int) -> None:
    """Show the container its own group of version 2, writable, in the mount of /sys; and name the machine in /etc."""
    try:
        place = process.openat2(sys, "fs/cgroup", os.O_PATH | os.O_DIRECTORY, process.RESOLVE_BENEATH | process.RESOLVE_NO_SYMLINKS)
        try:
            _mount_groups(place)
        finally:
            os.close(place)
    except OSError as error:
        raise Unavailable("the container's control groups cannot be mounted in it", os.strerror(error.errno or 0), "use --systemd=false") from error
    _name_machine(plan, root)


def _mount_groups(place: int) -> None:
    context = mount.fsopen("cgroup2")
    try:
        mount.fsconfig_set_string(context, "source", "cgroup2")
        mount.fsconfig_create(context)
        attributes = mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV | mount.MOUNT_ATTR_NOEXEC
        made = mount.fsmount(context, attributes)
    finally:
        os.close(context)
    mount.attach_mount(made, "", place)
    os.close(made)


def _name_machine(plan: RunPlan, root: int) -> None:
    """An identity of the container's own, whatever the image says: two containers of one image are two machines."""
    identity = f"{plan.container_id[:32]}\n".encode()
    try:
        descriptor = process.openat2(root, "/etc/machine-id", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK, _IN_ROOT, 0o444)
        try:
            os.write(descriptor, identity)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise BulleError("/etc/machine-id cannot be written in the container", os.strerror(error.errno or 0), "look at the image") from error
