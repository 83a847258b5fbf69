"""Work done as root of a user namespace: what an ordinary user needs to make and remove files of her subordinate ids.

:func:`write_maps` gives a namespace its maps, directly as root, by newuidmap(1) for a range, or one's own id alone; :func:`call` runs a function in
a child that is root there. user_namespaces(7), newuidmap(1)
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from bulle.errors import BulleError, Unavailable, from_parts, to_parts
from bulle.linux.namespaces import CLONE_NEWUSER, unshare, write_file


class Mapping(Protocol):
    """One line of a map: ``size`` ids from ``container_id`` inside are ``host_id`` and up outside."""

    @property
    def container_id(self) -> int: ...
    @property
    def host_id(self) -> int: ...
    @property
    def size(self) -> int: ...


def write_maps(pid: int, users: Sequence[Mapping], groups: Sequence[Mapping]) -> None:
    """Give the new user namespace of process ``pid`` its maps; Unavailable where newuidmap(1) is needed and missing or refuses."""
    if os.geteuid() != 0 and not (len(users) == 1 and users[0].size == 1):
        for tool, mappings in (("newuidmap", users), ("newgidmap", groups)):
            _run_map_tool(tool, pid, mappings)
        return
    if os.geteuid() != 0:
        write_file(f"/proc/{pid}/setgroups", "deny")
    write_file(f"/proc/{pid}/uid_map", _lines(users))
    write_file(f"/proc/{pid}/gid_map", _lines(groups))


def become_root() -> None:
    """In the namespace, once it has its maps: be its root; until then this process's ids are unmapped and it can create nothing (EOVERFLOW)."""
    with suppress(PermissionError):  # denied where a single id is mapped
        os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def call(users: Sequence[Mapping], groups: Sequence[Mapping], function: Callable[[], object]) -> None:
    """Run ``function`` in a forked child that is root of a new user namespace; its BulleError or OSError is raised here. It returns nothing."""
    ready_reading, ready_writing = os.pipe()
    go_reading, go_writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(ready_reading)
            os.close(go_writing)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            unshare(CLONE_NEWUSER)
            os.write(ready_writing, b"!")
            if os.read(go_reading, 1):
                become_root()
                function()
            os._exit(0)
        except BaseException as error:  # noqa: BLE001 -- told to the parent
            kind = error if isinstance(error, BulleError) else BulleError("the work in a user namespace failed", str(error) or type(error).__name__)
            os.write(ready_writing, "\0".join(to_parts(kind)).encode()[:4000])
        finally:
            os._exit(1)
    os.close(ready_writing)
    os.close(go_reading)
    try:
        answer = os.read(ready_reading, 4096)
        if answer == b"!":
            write_maps(pid, users, groups)
            os.write(go_writing, b"!")
            answer = os.read(ready_reading, 4096)
    finally:
        os.close(go_writing)
        os.close(ready_reading)
        status = os.waitpid(pid, 0)[1]
    if answer:
        raise from_parts(answer.decode(errors="replace").split("\0"))
    if status:
        raise BulleError("the work in a user namespace was killed", f"signal {os.WTERMSIG(status)}")


def _run_map_tool(tool: str, pid: int, mappings: Sequence[Mapping]) -> None:
    import shutil  # only ordinary users with a range need these
    import subprocess

    path = shutil.which(tool)
    if path is None:
        raise Unavailable(f"{tool} is missing", "an ordinary user needs it to map a range of ids", "install the package uidmap")
    numbers = [str(number) for item in mappings for number in (item.container_id, item.host_id, item.size)]
    result = subprocess.run([path, str(pid), *numbers], capture_output=True, text=True, check=False)
    if result.returncode:
        raise Unavailable(f"{tool} refused the id range", result.stderr.strip(), "check /etc/subuid and /etc/subgid")


def _lines(mappings: Sequence[Mapping]) -> str:
    return "\n".join(f"{item.container_id} {item.host_id} {item.size}" for item in mappings)
