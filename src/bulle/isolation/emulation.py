"""Programs of another processor in a container: its user namespace gets a table of binary formats of its own, which names the emulator.

The machine's table is not touched, and the image needs no emulator. The driver's process looks for the emulator (:func:`emulator_for`), the child
registers it below the container's own /proc before it leaves the host's tree (:func:`register`). The table is mounted read-only from then on, and
the emulator's file is opened through a read-only mount, so that no process inside can write to it through /proc/PID/exe. A private root enters a user
namespace for it in which every user is the host's (:func:`enter_users`); a container that asked for the host's users has the machine's table alone.
docs/platforms.md
"""

from __future__ import annotations

import errno
import os

import msgspec
from msgspec.structs import replace

from bulle.errors import Unavailable
from bulle.linux import binary_formats, mount, namespaces, process, subordinate_ids, user_namespace
from bulle.linux.binary_formats import Entry
from bulle.linux.emulators import Emulator, find
from bulle.model.run_plan import RunPlan

_FOR_EVERYONE = "register it for the whole machine: install qemu-user-static and binfmt-support, or restart systemd-binfmt"


def emulator_for(plan: RunPlan) -> Emulator | None:
    """What must be registered for a plan of another platform; None where the machine's table does. Raises Unavailable where neither can be."""
    emulator = find(plan.platform)
    if (plan.security.user_namespace == "own" or plan.isolation == "chroot") and emulator.entry.interpreter:
        return emulator
    if emulator.registered:
        return None
    raise Unavailable(
        f"programs for {plan.platform} cannot be run so",
        "the container has the machine's users, and so the machine's table of binary formats, which names no emulator with the flag F",
        f"run it with a user namespace of its own, as containers have by default, or {_FOR_EVERYONE}",
    )


def decoded(document: bytes) -> Emulator:
    """An emulator that another process of ours encoded as JSON."""
    return msgspec.json.decode(document, type=Emulator)


def register(proc: int, emulator: Emulator) -> None:
    """Give this user namespace its table, shown below the new ``proc``. Raises Unavailable, unless the machine's table serves as well."""
    try:
        table = binary_formats.new_table()
    except OSError as error:
        if emulator.registered:
            return
        raise _no_table(emulator, error) from error
    path = emulator.entry.interpreter
    try:
        protected = open_interpreter(emulator)
        mount.attach_mount(protected, path)
        os.close(protected)
        _fill(table, emulator.entry, proc)
    except OSError as error:
        raise _not_registered(emulator, error) from error
    finally:
        os.close(table)


def open_interpreter(emulator: Emulator) -> int:
    """A detached read-only mount of the emulator's file: what is opened through it can never be written to."""
    descriptor = mount.open_tree(mount.AT_FDCWD, emulator.entry.interpreter)
    mount.mount_setattr(descriptor, "", mount.AT_EMPTY_PATH, mount.MOUNT_ATTR_RDONLY)
    return descriptor


def enter_users(emulator: Emulator, interpreter: int) -> None:
    """Put this process, already in its private root, into a user namespace in which every id is what it was, and register the emulator there.

    ``interpreter`` is what :func:`open_interpreter` gave before. Descriptors of mounts are of no use any more: the mount namespace is a new one too.
    """
    if emulator.registered:
        return
    _unshare_users()
    table = -1
    try:
        table = binary_formats.new_table()
        proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        _fill(table, replace(emulator.entry, interpreter=f"/proc/self/fd/{interpreter}"), proc)
        os.close(proc)
    except OSError as error:
        raise (_no_table if table < 0 else _not_registered)(emulator, error) from error


def _unshare_users() -> None:
    """A user namespace with the ids of this one, whose maps only a process outside of it may write: a child that stays there for a moment."""
    maps = subordinate_ids.identity_mappings()
    parent = os.getpid()
    waiting, going = os.pipe()
    writer = os.fork()
    if writer == 0:
        try:
            os.close(going)
            if os.read(waiting, 1):
                user_namespace.write_maps(parent, *maps)
                os._exit(0)
        finally:
            os._exit(1)
    os.close(waiting)
    namespaces.unshare(namespaces.CLONE_NEWUSER | namespaces.CLONE_NEWNS)
    os.write(going, b"!")
    os.close(going)
    if os.waitpid(writer, 0)[1]:
        why = "the user namespace that holds its emulator got no ids"
        raise Unavailable("a private root of another platform cannot be entered", why, "run it with --isolation container")


def _fill(table: int, entry: Entry, proc: int) -> None:
    """Register the entry, show the table in ``proc``, and let nobody write to it any more."""
    binary_formats.register(table, entry)
    flags = process.RESOLVE_BENEATH | process.RESOLVE_NO_SYMLINKS
    target = process.openat2(proc, "sys/fs/binfmt_misc", os.O_PATH | os.O_DIRECTORY, flags)
    try:
        mount.attach_mount(table, "", target)
    finally:
        os.close(target)
    mount.mount_setattr(table, "", mount.AT_EMPTY_PATH, mount.MOUNT_ATTR_RDONLY)


def _not_registered(emulator: Emulator, error: OSError) -> Unavailable:
    why = f"{emulator.entry.interpreter}: {os.strerror(error.errno or 0)}"
    return Unavailable(f"the emulator for {emulator.platform} cannot be registered", why, "see that everybody may execute it")


def _no_table(emulator: Emulator, error: OSError) -> Unavailable:
    if error.errno == errno.ENODEV:
        why, mend = "this kernel has no binfmt_misc", "load it: modprobe binfmt_misc"
    else:
        why = f"this kernel gives a user namespace no table of binary formats of its own ({os.strerror(error.errno or 0)}), as Linux does since 6.7"
        mend = f"use a newer kernel, or {_FOR_EVERYONE}"
    return Unavailable(f"programs for {emulator.platform} cannot be run here", why, mend)
