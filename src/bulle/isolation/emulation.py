"""Programs of another processor in a container: its user namespace gets a table of binary formats of its own, which names the emulator.

The machine's table is not touched, and the image needs no emulator. The driver's process looks for the emulator (:func:`emulator_for`), the child
registers it below the container's own /proc before it leaves the host's tree (:func:`register`). The table is mounted read-only from then on, and
the emulator's file is opened through a read-only mount, so that no process inside can write to it through /proc/PID/exe. What has the host's users
has the machine's table alone. docs/platforms.md
"""

from __future__ import annotations

import errno
import os

from bulle.errors import Unavailable
from bulle.linux import binary_formats, mount, process
from bulle.linux.emulators import Emulator, find
from bulle.model.run_plan import RunPlan

_FOR_EVERYONE = "register it for the whole machine: install qemu-user-static and binfmt-support, or restart systemd-binfmt"


def emulator_for(plan: RunPlan) -> Emulator | None:
    """What must be registered for a plan of another platform; None where the machine's table does. Raises Unavailable where neither can be."""
    emulator = find(plan.platform)
    if plan.security.user_namespace == "own" and emulator.entry.interpreter:
        return emulator
    if emulator.registered:
        return None
    raise Unavailable(
        f"programs for {plan.platform} cannot be run so",
        "the container has the machine's users, and so the machine's table of binary formats, which names no emulator with the flag F",
        f"run it with a user namespace of its own, as containers have by default, or {_FOR_EVERYONE}",
    )


def register(proc: int, emulator: Emulator) -> None:
    """Give this user namespace its table, shown below the new ``proc``. Raises Unavailable, unless the machine's table serves as well."""
    try:
        table = binary_formats.new_table()
    except OSError as error:
        if emulator.registered:
            return
        raise _no_table(emulator, error) from error
    try:
        _protect(emulator.entry.interpreter)
        binary_formats.register(table, emulator.entry)
        target = process.openat2(proc, "sys/fs/binfmt_misc", os.O_PATH | os.O_DIRECTORY, process.RESOLVE_BENEATH | process.RESOLVE_NO_SYMLINKS)
        try:
            mount.attach_mount(table, "", target)
        finally:
            os.close(target)
        mount.mount_setattr(table, "", mount.AT_EMPTY_PATH, mount.MOUNT_ATTR_RDONLY)
    except OSError as error:
        why = f"{emulator.entry.interpreter}: {os.strerror(error.errno or 0)}"
        raise Unavailable(f"the emulator for {emulator.platform} cannot be registered", why, "see that everybody may execute it") from error
    finally:
        os.close(table)


def _protect(path: str) -> None:
    """Cover a file with a read-only mount of itself, in this mount namespace: what is opened through it can never be written to."""
    copy = mount.open_tree(mount.AT_FDCWD, path)
    try:
        mount.mount_setattr(copy, "", mount.AT_EMPTY_PATH, mount.MOUNT_ATTR_RDONLY)
        mount.attach_mount(copy, path)
    finally:
        os.close(copy)


def _no_table(emulator: Emulator, error: OSError) -> Unavailable:
    if error.errno == errno.ENODEV:
        why, mend = "this kernel has no binfmt_misc", "load it: modprobe binfmt_misc"
    else:
        why = f"this kernel gives a user namespace no table of binary formats of its own ({os.strerror(error.errno or 0)}), as Linux does since 6.7"
        mend = f"use a newer kernel, or {_FOR_EVERYONE}"
    return Unavailable(f"programs for {emulator.platform} cannot be run here", why, mend)
