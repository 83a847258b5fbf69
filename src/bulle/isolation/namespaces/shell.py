"""A shell: an empty container ahead of its time, for which the most common start has only little left to do.

A process that waits to be told its command (see ``bulle.spawner.child``) may open one while nobody waits for it: a child in new user, mount, pid,
uts, ipc and network namespaces, its loopback up, that waits for a plan. It has no ids, no root filesystem and no secrets of anybody, and dies with
its maker. What it inherited at birth (limits, processors, OOM score) must still be its maker's when it is taken, else it is thrown away.
namespaces(7)
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec

from bulle.isolation import launch
from bulle.isolation.channel import Channel
from bulle.isolation.driver import Stdio, Workload
from bulle.linux import loopback, mount, namespaces, scheduling
from bulle.model.run_plan import RunPlan

_LONGEST = 128 << 10  # bytes of a plan that goes as one message
_MOST_DESCRIPTORS = 64
_LIMITS = sorted({value for name, value in vars(resource).items() if name.startswith("RLIMIT_")})


class Errand(msgspec.Struct, frozen=True):
    """What a shell is told: the plan and the kit of its start; the descriptors come along (stdio, the program to go through, entrances of groups)."""

    plan: RunPlan
    filter_program: bytes | None
    has_program: bool
    controllers: tuple[str, ...]
    withheld: tuple[str, ...]
    emulator: bytes = b""
    """The emulator to register, as JSON: its type is known to a module that few starts need."""


_errands = msgspec.json.Decoder(Errand)
_open_shell: Shell | None = None


@dataclass
class Shell:
    """One that waits, and under which circumstances it was born."""

    workload: Workload
    channel: Channel
    circumstances: tuple[object, ...]
    emulates: bool
    """Whether it can register an emulator: it can import nothing any more."""


def open_shell(flags: int, run: Callable[[RunPlan, Channel, launch.ChildKit], None]) -> None:
    """Make this process's shell, in the namespaces of ``flags``; ``run`` is what the child goes on with once it has its plan."""
    global _open_shell
    ours, theirs = Channel.pair()
    pid, pidfd = namespaces.clone3(flags & ~namespaces.CLONE_NEWNET)
    if pid == 0:
        with launch.last_act(theirs):
            os.closerange(3, theirs.fileno())
            os.closerange(theirs.fileno() + 1, 1 << 30)
            launch.begin_session()
            if os.sched_getscheduler(0) == os.SCHED_IDLE:
                scheduling.step_back()  # also as the session that this now is
            namespaces.unshare(namespaces.CLONE_NEWNET)
            mount.mount(None, "/", flags=mount.MS_REC | mount.MS_SLAVE)
            loopback.bring_up()
            _wait(theirs, run)
    theirs.close()
    _open_shell = Shell(Workload(pid, pidfd), ours, _circumstances(), "bulle.isolation.emulation" in sys.modules)


def take_shell() -> Shell | None:
    """This process's shell, if it has one that is as good as a new child; it is the caller's from now on."""
    global _open_shell
    shell, _open_shell = _open_shell, None
    if shell is None:
        return None
    if shell.circumstances != _circumstances():
        discard(shell)
        return None
    if os.sched_getscheduler(shell.workload.pid) == os.SCHED_IDLE:
        try:
            scheduling.step_forward(shell.workload.pid)
        except OSError:
            discard(shell)
            return None
    return shell


def discard(shell: Shell) -> None:
    """End a shell that is not to be used."""
    shell.channel.close()
    os.kill(shell.workload.pid, signal.SIGKILL)
    os.waitpid(shell.workload.pid, 0)
    os.close(shell.workload.pidfd)


def send_errand(shell: Shell, plan: RunPlan, kit: launch.Kit) -> bool:
    """Tell the shell its plan; False where it is too long for a message, or the shell is gone (it is then discarded)."""
    emulator = msgspec.json.encode(kit.emulator) if kit.emulator is not None else b""
    errand = Errand(plan, kit.filter_program, kit.program_fd >= 0, kit.group.controllers, tuple(sorted(kit.withheld)), emulator)
    message = msgspec.json.encode(errand)
    stdio = kit.stdio
    passed = [stdio.stdin, stdio.stdout, stdio.stderr, *([kit.program_fd] if kit.program_fd >= 0 else []), *kit.group.descriptors()]
    if len(message) <= _LONGEST and kit.group.clone_into_fd < 0:
        try:
            socket.send_fds(shell.channel.end, [message], passed)
            return True
        except OSError:
            pass
    discard(shell)
    return False


def _wait(channel: Channel, run: Callable[[RunPlan, Channel, launch.ChildKit], None]) -> None:
    """The shell's life: it is told its errand once, or ends with its maker, whose end of the line then closes."""
    message, descriptors, _flags, _address = socket.recv_fds(channel.end, _LONGEST + 1, _MOST_DESCRIPTORS)
    if not message:
        os._exit(0)
    errand = _errands.decode(message)
    stdin, stdout, stderr, *rest = descriptors
    program = rest.pop(0) if errand.has_program else -1
    for entrance in rest:
        os.write(entrance, b"0")
    kit = launch.ChildKit(Stdio(stdin, stdout, stderr), errand.filter_program, program, errand.controllers, frozenset(errand.withheld))
    if errand.emulator:
        from bulle.isolation import emulation  # its maker had imported it

        kit = replace(kit, emulator=emulation.decoded(errand.emulator))
    run(errand.plan, channel, kit)


def _circumstances() -> tuple[object, ...]:
    """What a child inherits that a container keeps: it may have changed since the shell was opened."""
    with open("/proc/self/oom_score_adj") as file:
        score = file.read()
    limits = tuple(resource.getrlimit(number) for number in _LIMITS)
    return limits, frozenset(os.sched_getaffinity(0)), score
