"""The three streams of a workload as FIFOs or pipes that belong to the container's root.

A container's own outputs are FIFOs in its host directory: opened read-write on its side, so that a killed monitor breaks no pipe, and opened again
by name by the monitor that replaces it. Its input is a pipe, whose other end the spawner keeps too. All are owned by the container's root, so that
programs may reopen /dev/stdout. fifo(7)
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from bulle.isolation.driver import Stdio

_NAMES = ("stdout", "stderr")


@dataclass
class Streams:
    """The monitor's ends: what it reads output from and writes input to (-1 where there is none)."""

    stdin: int = -1
    stdout: int = -1
    stderr: int = -1


def make_fifos(directory: str, owner: int, interactive: bool) -> tuple[Streams, Stdio]:
    """New FIFOs in the container's host directory: our ends, and the ends that the workload gets (for the caller to close)."""
    for name in _NAMES:
        path = f"{directory}/{name}"
        try:
            os.mkfifo(path, 0o600)
        except FileExistsError:  # of an earlier run, perhaps with unread bytes
            os.unlink(path)
            os.mkfifo(path, 0o600)
        if owner:
            os.chown(path, owner, owner)
    stdin_theirs, stdin_ours = _input_pipe(owner, interactive)
    theirs = Stdio(
        stdin_theirs,
        os.open(f"{directory}/stdout", os.O_RDWR | os.O_CLOEXEC),
        os.open(f"{directory}/stderr", os.O_RDWR | os.O_CLOEXEC),
    )
    return open_fifos(directory, stdin_ours), theirs


def open_fifos(directory: str, stdin: int) -> Streams:
    """The monitor's ends of FIFOs that exist; ``stdin`` is its end of the input, or -1."""
    return Streams(
        stdin,
        os.open(f"{directory}/stdout", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC),
        os.open(f"{directory}/stderr", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC),
    )


def _input_pipe(owner: int, interactive: bool) -> tuple[int, int]:
    """The workload's and the monitor's end of its input; /dev/null and -1 where there is none.

    A pipe without a name: one with a name would block who opens /dev/stdin once its writer is gone. Its end lasts as long as somebody keeps it.
    """
    if not interactive:
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), -1
    theirs, ours = os.pipe()
    os.set_blocking(ours, False)
    if owner:
        os.fchown(theirs, owner, owner)
    return theirs, ours


def make_pipes(owner: int, interactive: bool) -> tuple[Streams, Stdio]:
    """Anonymous pipes, for exec: they need not outlive their monitor."""
    stdin_theirs, stdin_ours = _input_pipe(owner, interactive)
    stdout_ours, stdout_theirs = os.pipe()
    stderr_ours, stderr_theirs = os.pipe()
    for descriptor in (stdout_ours, stderr_ours):
        os.set_blocking(descriptor, False)
    if owner:
        for descriptor in (stdout_theirs, stderr_theirs):
            os.fchown(descriptor, owner, owner)
    return Streams(stdin_ours, stdout_ours, stderr_ours), Stdio(stdin_theirs, stdout_theirs, stderr_theirs)


def close_stdio(stdio: Stdio) -> None:
    """Close the workload's ends in this process."""
    for descriptor in (stdio.stdin, stdio.stdout, stdio.stderr):
        os.close(descriptor)
