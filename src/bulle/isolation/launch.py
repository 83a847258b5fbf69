"""The driver's side of a start: fork into namespaces and wait until the command has been executed.

Shared by the drivers; what differs between them is data (:class:`Namespaces`). Single-threaded processes only (a container's monitor), since clone3
here runs none of Python's fork hooks. clone(2)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from bulle.isolation.channel import Channel
from bulle.isolation.driver import Workload
from bulle.linux import namespaces


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
