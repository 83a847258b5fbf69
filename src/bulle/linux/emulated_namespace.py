"""A user namespace in which programs of another processor run, kept by a child of ours for as long as a caller needs it.

For tools of the host that work in a root of another architecture, such as mmdebstrap: they join it (:func:`join`) and find there all ids that they
may use, and the emulator registered in the namespace's own table. Containers have such a table in their own namespace and do not come here.
user_namespaces(7), binfmt_misc
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from bulle.errors import Unavailable
from bulle.linux import binary_formats, mount, namespaces, subordinate_ids, user_namespace
from bulle.linux.emulators import Emulator

_FLAGS = namespaces.CLONE_NEWUSER | namespaces.CLONE_NEWNS


@contextmanager
def emulating(emulator: Emulator) -> Iterator[int]:
    """Gives the pidfd of a process in a new user and mount namespace in which the emulator is registered. Raises Unavailable.

    Ids are there what they are here; for an ordinary user, who is root there, they are her own and her subordinate ones.
    """
    ready_reading, ready_writing = os.pipe()
    go_reading, go_writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(ready_reading)
            os.close(go_writing)
            _keep(emulator, ready_writing, go_reading)
        finally:
            os._exit(0)
    os.close(ready_writing)
    os.close(go_reading)
    try:
        answer = os.read(ready_reading, 4096)
        if answer == b"!":
            maps = subordinate_ids.identity_mappings() if os.geteuid() == 0 else subordinate_ids.rootless_mappings()
            user_namespace.write_maps(pid, *maps)
            os.write(go_writing, b"!")
            answer = os.read(ready_reading, 4096)
        if answer != b"!":
            why = answer.decode(errors="replace") or "the process that keeps the namespace was killed"
            raise Unavailable(f"programs for {emulator.platform} cannot be run here", why, "see `bulle doctor`")
        pidfd = os.pidfd_open(pid)
        try:
            yield pidfd
        finally:
            os.close(pidfd)
    finally:
        os.close(go_writing)
        os.close(ready_reading)
        os.waitpid(pid, 0)


def join(pidfd: int) -> None:
    """Enter the namespaces and be their root; for a child that is about to execute something."""
    namespaces.setns(pidfd, _FLAGS)
    user_namespace.become_root()


def _keep(emulator: Emulator, ready: int, go: int) -> None:
    """The child's life: it registers the emulator, says so, and waits until the caller has closed its end."""
    try:
        namespaces.unshare(_FLAGS)
        os.write(ready, b"!")
        if not os.read(go, 1):
            return
        user_namespace.become_root()
        mount.mount(None, "/", flags=mount.MS_REC | mount.MS_SLAVE)
        table = binary_formats.new_table()  # it lives as long as this descriptor
        binary_formats.register(table, emulator.entry)
        os.write(ready, b"!")
        with suppress(OSError):
            os.read(go, 1)
    except OSError as error:
        os.write(ready, str(error).encode())
