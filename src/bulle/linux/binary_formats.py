"""The kernel's table of binary formats and their interpreters (binfmt_misc): a user namespace's own, and the machine's.

A table belongs to the user namespace that mounts it (Linux 6.7) and holds for it and those below; whoever has none is served by the nearest above, at
last the machine's. Its entries live as long as it is mounted somewhere. With the flag F the kernel opens the interpreter when it is registered, so
that no other root needs to have it. Documentation/admin-guide/binfmt-misc.rst
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

import msgspec

from bulle.linux import mount, namespaces

MACHINE_TABLE = "/proc/sys/fs/binfmt_misc"
_ENTRY_LIMIT_BYTES = 4096
_NO_ENTRIES = ("register", "status")


class Entry(msgspec.Struct, frozen=True):
    """One format: files whose first bytes are ``magic`` where ``mask`` has ones are given to ``interpreter`` (a path).

    ``flags`` are the kernel's: P keeps the program's name, O hands it over open, F opens the interpreter now, C takes rights from setuid programs.
    """

    name: str
    magic: bytes
    mask: bytes
    interpreter: str
    flags: str

    def matches(self, head: bytes) -> bool:
        """Whether a file that begins so is of this format."""
        if len(head) < len(self.magic):
            return False
        mask = self.mask or b"\xff" * len(self.magic)
        return all(one & bits == wanted & bits for one, wanted, bits in zip(head, self.magic, mask, strict=False))


def new_table() -> int:
    """A detached mount of this user namespace's own table. OSError: EPERM before Linux 6.7, ENODEV where the kernel has no binfmt_misc."""
    context = mount.fsopen("binfmt_misc")
    try:
        mount.fsconfig_create(context)
        return mount.fsmount(context, mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV | mount.MOUNT_ATTR_NOEXEC)
    finally:
        os.close(context)


def register(table: int, entry: Entry) -> None:
    """Add an entry to a table by the descriptor of its mount."""
    line = f":{entry.name}:M:0:{_escaped(entry.magic)}:{_escaped(entry.mask)}:{entry.interpreter}:{entry.flags}"
    descriptor = os.open("register", os.O_WRONLY | os.O_CLOEXEC, dir_fd=table)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def entries(directory: str = MACHINE_TABLE) -> Iterator[Entry]:
    """The entries of a mounted table that are enabled and look at a file's first bytes; none where it is not mounted."""
    with suppress(OSError):
        for name in os.listdir(directory):
            if name in _NO_ENTRIES:
                continue
            with suppress(OSError, ValueError), open(f"{directory}/{name}") as file:
                if (entry := _parsed(name, file.read(_ENTRY_LIMIT_BYTES))) is not None:
                    yield entry


def own_table_error() -> OSError | None:
    """Why a user namespace cannot have a table of its own, found by trying in a child; None where it can."""
    user, group = os.geteuid(), os.getegid()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            namespaces.unshare(namespaces.CLONE_NEWUSER | namespaces.CLONE_NEWNS)
            namespaces.write_file("/proc/self/setgroups", "deny")
            namespaces.write_file("/proc/self/uid_map", f"0 {user} 1")
            namespaces.write_file("/proc/self/gid_map", f"0 {group} 1")
            new_table()
        except OSError as error:
            os.write(writing, str(error.errno or 0).encode())
        finally:
            os._exit(0)
    os.close(writing)
    try:
        answer = os.read(reading, 16)
    finally:
        os.close(reading)
        os.waitpid(pid, 0)
    return OSError(int(answer), os.strerror(int(answer))) if answer else None


def _parsed(name: str, text: str) -> Entry | None:
    """What the kernel says of an entry."""
    lines = text.splitlines()
    fields = dict(line.partition(" ")[::2] for line in lines)
    if "enabled" not in lines or fields.get("offset", "0") != "0" or "magic" not in fields:
        return None
    return Entry(name, bytes.fromhex(fields["magic"]), bytes.fromhex(fields.get("mask", "")), fields.get("interpreter", ""), fields.get("flags:", ""))


def _escaped(data: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in data)
