"""The driver's side of a start: fork into namespaces, map ids, hand mounts down, and wait until the command has been executed.

Shared by the drivers; what differs between them is data (:class:`Namespaces`). Single-threaded processes only (a container's monitor), since clone3 here
runs none of Python's fork hooks. user_namespaces(7)
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress

from bulle.errors import Unavailable
from bulle.isolation.channel import Channel
from bulle.isolation.driver import Workload
from bulle.linux import namespaces
from bulle.model.run_plan import IdMapping, RunPlan


def fork(flags: int, child: Callable[[Channel], None], cgroup_fd: int = -1) -> tuple[Workload, Channel]:
    """Run ``child`` in a new process and new namespaces; the caller follows it with :func:`follow`."""
    ours, theirs = Channel.pair()
    pid, pidfd = namespaces.clone3(flags, cgroup_fd)
    if pid == 0:
        try:
            ours.close()
            child(theirs)
        except BaseException as error:  # noqa: BLE001 -- the channel is the only way to tell
            with suppress(OSError):
                theirs.report_error(error)
        finally:
            os._exit(1)
    theirs.close()
    return Workload(pid, pidfd), ours


def follow(workload: Workload, channel: Channel) -> None:
    """Read the child's reports until the command is executed (the channel closes) or an error is raised."""
    while (received := channel.receive_report()) is not None:
        report, descriptor = received
        if report.kind == "note":
            workload.notes.append(report.parts[0])
        elif report.kind == "terminal":
            workload.terminal = descriptor
        elif report.kind == "process":
            # The joined process replaces the one that was forked first, which has done its work.
            os.close(workload.pidfd)
            os.waitpid(workload.pid, 0)
            workload.pid, workload.pidfd = report.pid, descriptor


def abandon(workload: Workload) -> None:
    """Kill and reap a child whose start failed."""
    with suppress(ProcessLookupError):
        os.kill(workload.pid, 9)
    with suppress(ChildProcessError):
        os.waitpid(workload.pid, 0)
    os.close(workload.pidfd)
    if workload.terminal >= 0:
        os.close(workload.terminal)


def write_id_maps(pid: int, plan: RunPlan) -> None:
    """Give the child's user namespace the plan's maps: directly as root, by newuidmap(1) for ranges of an ordinary user, or one's own id alone."""
    users = plan.security.id_mappings
    groups = plan.security.group_mappings or users
    if os.geteuid() == 0:
        namespaces.write_file(f"/proc/{pid}/uid_map", _lines(users))
        namespaces.write_file(f"/proc/{pid}/gid_map", _lines(groups))
        return
    if len(users) == 1 and users[0].size == 1:
        namespaces.write_file(f"/proc/{pid}/setgroups", "deny")
        namespaces.write_file(f"/proc/{pid}/uid_map", _lines(users))
        namespaces.write_file(f"/proc/{pid}/gid_map", _lines(groups))
        return
    for tool, mappings in (("newuidmap", users), ("newgidmap", groups)):
        _run_map_tool(tool, pid, mappings)


def _run_map_tool(tool: str, pid: int, mappings: Sequence[IdMapping]) -> None:
    path = shutil.which(tool)
    if path is None:
        raise Unavailable(f"{tool} is missing", "an ordinary user needs it to map a range of ids", "install the package uidmap")
    numbers = [str(number) for item in mappings for number in (item.container_id, item.host_id, item.size)]
    result = subprocess.run([path, str(pid), *numbers], capture_output=True, text=True, check=False)
    if result.returncode:
        raise Unavailable(f"{tool} refused the id range", result.stderr.strip(), "check /etc/subuid and /etc/subgid")


def _lines(mappings: Sequence[IdMapping]) -> str:
    return "\n".join(f"{item.container_id} {item.host_id} {item.size}" for item in mappings)
