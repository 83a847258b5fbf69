"""The agent of virtual machines without one: in namespaces and a root of its own on this machine, spoken to over a socketpair.

The agent is process 1 of its pid namespace, as in a guest, so closing the line ends all that it started. Its root is a tmpfs with busybox in the
container's root, ``/root``. With an emulated processor the agent runs under qemu-user, what it executes does not.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import select
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bulle.errors import BulleError, Unavailable
from bulle.isolation.microvm.agent import Agent
from bulle.isolation.microvm.agent_program import agent_program
from bulle.isolation.microvm.agent_protocol import Execution
from bulle.isolation.microvm.agent_session import Session
from bulle_testing import peers, tiers

NATIVE = platform.machine()
EMULATED = tuple(machine for machine in ("aarch64", "riscv64") if machine != NATIVE)
TIME_S = 30.0
PATH = "PATH=/bin"
APPLETS = "cat chmod dd echo env false grep hostname kill ln ls mkdir mknod mv ps readlink rm sh sleep stat stty touch true tty yes"
OWN_CAPABILITIES = int(re.findall(r"CapPrm:\s*(\w+)", Path("/proc/self/status").read_text())[0], 16)
"""What a command gets unless a test says otherwise: nobody here can have more."""

SANDBOX = """
set -e
base=$1 agent=$2 busybox=$3 emulator=$4 descriptor=$5 devices=$6; shift 6
mount -t tmpfs -o mode=755 tmpfs "$base"
cd "$base"
mkdir proc dev root old tmp
[ -z "$devices" ] || ip link add eth0 type veth peer name eth1
cp "$agent" init
mount -t proc proc proc
for name in null zero full random urandom tty; do
    : > dev/$name
    [ -z "$devices" ] || mount --bind /dev/$name dev/$name
done
mount -t tmpfs -o mode=755 tmpfs root
mkdir root/bin root/proc root/dev root/dev/pts root/etc root/tmp
cp "$busybox" root/bin/busybox
for name in $APPLETS; do ln -s busybox root/bin/$name; done
if [ -n "$emulator" ]; then cp "$emulator" emulator; set -- /emulator /init; else set -- /init; fi
pivot_root . old
/root/bin/busybox umount -l /old
exec "$@" --descriptor "$descriptor" --root /root
"""


def run_until(agent: Agent, condition: Callable[[], bool], timeout_s: float = TIME_S) -> None:
    """Do nothing but this conversation until something is so. Raises BulleError at its end."""
    deadline = time.monotonic() + timeout_s
    poll = select.poll()
    agent.flush()
    while not condition():
        poll.register(agent, select.POLLIN | (select.POLLOUT if agent.wants_to_write else 0))
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise BulleError("the virtual machine's agent did not answer in time", f"{timeout_s:g} s have passed")
        poll.poll(left_s * 1000)
        if not agent.receive():
            raise BulleError("the virtual machine's agent has hung up", "the machine may have crashed, or was ended", "see its console")
        agent.flush()


@dataclass(frozen=True)
class Done:
    """What became of a command or a request."""

    status: int
    stdout: bytes
    stderr: bytes
    error: int
    text: str

    @property
    def exit_code(self) -> int:
        """As a shell says it."""
        return os.waitstatus_to_exitcode(self.status)


class Guest:
    """One agent and what tests say to it."""

    def __init__(self, line: socket.socket, *, emulated: bool = False) -> None:
        self.emulated = emulated
        self.agent = Agent(line)
        self.wait(lambda: self.agent.hello is not None)

    def wait(self, condition: Any, timeout_s: float = TIME_S) -> None:
        """Until something is so."""
        run_until(self.agent, condition, timeout_s)

    def finish(self, session: Session) -> Done:
        """Take all that comes, to the end."""
        stdout, stderr = bytearray(session.content), bytearray()

        def over() -> bool:
            if session.kind not in (10, 11):
                stdout.extend(session.output.take())
                stderr.extend(session.errors.take())
            return session.final

        self.wait(over)
        return Done(session.status, bytes(session.content) + bytes(stdout), bytes(stderr), session.error, session.text)

    def step(self, *words: str) -> tuple[int, str]:
        """A step's errno and what failed."""
        done = self.finish(self.agent.step(*words))
        return done.error, done.text

    def first(self, *arguments: str, **options: Any) -> Session:
        """The container's first process, started: an idle init, or a command."""
        steps = (("mount", "proc", "proc", "proc", "14", ""), ("mount", "devpts", "dev/pts", "devpts", "10", "newinstance,ptmxmode=0666,mode=0620"))
        # qemu-user has no open_tree(2), which bind mounts are made with.
        devices = () if self.emulated else ((f"/dev/{name}", f"dev/{name}") for name in ("null", "zero"))
        steps += tuple(step for source, name in devices for step in (("file", name, "666"), ("mount", source, name, "", "4096", "")))
        wanted = {
            "arguments": arguments,
            "idle": not arguments,
            "first": True,
            "steps": steps,
            "environment": (PATH,),
            "capabilities": OWN_CAPABILITIES,
        }
        session = self.agent.execute(Execution(**wanted | options))
        self.wait(lambda: session.started or session.final)
        return session

    def start(self, *arguments: str, **options: Any) -> Session:
        """A command, asked for."""
        wanted = {"arguments": arguments, "environment": (PATH,), "capabilities": OWN_CAPABILITIES}
        return self.agent.execute(Execution(**wanted | options))

    def run(self, *arguments: str, stdin: bytes | None = None, **options: Any) -> Done:
        """A command, to its end."""
        session = self.start(*arguments, stdin=stdin is not None, **options)
        rest = memoryview(stdin or b"")
        while stdin is not None and rest and not session.final:
            self.wait(lambda: bool(session.room) or session.final)
            rest = rest[session.send(rest) :]
        session.end_input()
        return self.finish(session)

    def send_all(self, session: Session, data: bytes) -> Done:
        """A tar that goes in."""
        rest = memoryview(data)
        while rest and not session.final:
            self.wait(lambda: bool(session.room) or session.final)
            rest = rest[session.send(rest) :]
        session.end_input()
        return self.finish(session)


@contextmanager
def agent_line(directory: Path, machine: str = NATIVE, *, confined: bool = False) -> Iterator[tuple[socket.socket, subprocess.Popen[bytes]]]:
    """A running agent and the line to it; ``confined`` to a user namespace of nobody's, where nothing that is said to it can harm this machine."""
    busybox = peers.static_busybox()
    emulator, top = "", None
    if machine != NATIVE:
        tiers.need(f"qemu-{machine}-static")
        emulator = str(tiers.program(f"qemu-{machine}-static"))
    try:
        program = agent_program(machine)
    except Unavailable as error:  # an installation that was built without zig
        tiers.give_up("programs", str(error))
    base = directory / f"guest-{machine}-{len(os.listdir(directory))}"
    base.mkdir()
    enter = ["unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup", "--fork", "--kill-child"]
    if confined or os.geteuid():
        enter[1:1] = ["--user", "--map-root-user"]
    if confined and not os.geteuid():
        base.rmdir()
        top = Path(tempfile.mkdtemp(prefix="bulle-guest-"))  # pytest's are closed to others
        top.chmod(0o755)
        program = Path(shutil.copy(program, top / "agent"))
        base = top / "root"
        base.mkdir()
        os.chown(base, 65534, 65534)
        enter = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", *enter]
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            script = SANDBOX.replace("$APPLETS", APPLETS)
            arguments = [str(base), str(program), busybox, emulator, str(theirs.fileno()), "" if confined else "yes"]
            process = subprocess.Popen([*enter, "sh", "-c", script, "sh", *arguments], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        try:
            yield ours, process
        finally:
            with contextlib.suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)
            try:
                process.wait(20)
            finally:
                process.kill()
                process.wait()
                if top:
                    shutil.rmtree(top)


@contextmanager
def guest(directory: Path, machine: str = NATIVE) -> Iterator[Guest]:
    """A guest that greeted."""
    with agent_line(directory, machine) as (line, _process):
        yield Guest(line, emulated=machine != NATIVE)


@pytest.fixture(params=[NATIVE, *EMULATED])
def any_guest(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Guest]:
    """An agent for each processor."""
    with guest(tmp_path, request.param) as made:
        yield made


@pytest.fixture
def native_guest(tmp_path: Path) -> Iterator[Guest]:
    """The agent for this machine's processor."""
    with guest(tmp_path) as made:
        yield made
