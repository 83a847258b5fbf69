"""Containers in tests: one home for a whole module, the levels as data, and what a test needs to talk to a running container.

A module's home is named in :data:`leaks.session_places`, so that its spawner may live from test to test; that no container, monitor, mount or control
group of a test outlives it is checked by :meth:`Machine.close_test` instead.
"""

from __future__ import annotations

import fcntl
import gc
import os
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

import bulle
from bulle.engine.drivers import driver_for
from bulle.engine.home import default_home
from bulle.engine.running import _engine as engine_of_run
from bulle.isolation.driver import Feature, Probe
from bulle.monitor.frames import Event, Kind
from bulle.network.naming import table_name
from bulle_testing import leaks, places, tiers

PATIENCE_S = 120.0

# Those of whole modules; conftest.py sees that each has its connections before it looks what there is before a test.
open_machines: list[Machine] = []


@dataclass(frozen=True)
class Level:
    """One way to isolate: a driver, and options that change what it does. ``flags`` are the same for the command line."""

    name: str
    driver: str
    options: dict[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()

    def probe(self, home: Path) -> Probe:
        """What the driver says of this machine and user."""
        return driver_for(self.driver, home).probe()


# Machines are booted by the command line, and begun from a template by the library, which takes a third of the time where they are emulated.
LEVELS = (
    Level("container", "container"),
    Level("host-users", "container", {"user_namespace": "host"}, ("--userns=host",)),
    Level("vm", "vm", {"isolation": "vm", "start": "template"}, ("--isolation=vm",)),
    Level("chroot", "chroot", {"isolation": "chroot"}, ("--isolation=chroot",)),
)


def alive(pid: int) -> bool:
    """Whether the process lives; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Machine:
    """A home with images, its engine and its command; shared by the tests of a module."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.engine = bulle.Engine(home)
        self.environment = places.environment(home)

    def command(self, *arguments: str | Path, input: str | None = None, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
        """Run the command in this home to its end."""
        stdin: dict[str, Any] = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        line = [*places.command_line(), *map(str, arguments)]
        return subprocess.run(line, env=self.environment, capture_output=True, text=True, timeout=timeout_s, **stdin)

    def start_command(self, *arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
        """Start the command without waiting; the test ends it."""
        return subprocess.Popen([*places.command_line(), *map(str, arguments)], **{"env": self.environment, **options})

    def run(self, level: Level, *command: str, image: str = "busybox", input: bytes = b"", **options: Any) -> bulle.CompletedRun:
        """One command in one container of that level."""
        return bulle.run(image, command, home=self.home, input=input, **{**level.options, **options})

    def shell(self, level: Level, script: str, **options: Any) -> str:
        """What a shell script wrote to both streams; it must succeed."""
        done = self.run(level, "sh", "-c", script, **options)
        assert done.exit_code == 0, (done.exit_code, done.stdout, done.stderr)
        return (done.stdout + done.stderr).decode()

    def create(self, level: Level, *command: str, image: str = "busybox", **options: Any) -> bulle.Container:
        """A container that was not started."""
        return self.engine.containers.create(bulle.ContainerOptions(image=image, command=command, **{**level.options, **options}))

    @contextmanager
    def running(self, level: Level, *command: str, **options: Any) -> Iterator[bulle.Container]:
        """A container that was started, removed by force at the end."""
        container = self.create(level, *(command or ("sleep", "1000")), **options)
        try:
            container.start()
            yield container
        finally:
            with suppress(bulle.BulleError):
                container.remove(force=True)

    def execute(self, container: bulle.Container, *command: str, input: bytes | None = None, **options: Any) -> bulle.CompletedRun:
        """``exec`` to its end."""
        wanted = bulle.ExecOptions(command=command, interactive=input is not None, **options)
        attachment = container.execute(wanted)
        assert attachment is not None
        if input is not None:
            attachment.send_stdin(input)
            attachment.close_stdin()
        return follow(attachment)

    def close_test(self) -> None:
        """Fail where the test left a container, its directory or a monitor of this home."""
        left = [container.name for container in self.engine.containers.list(all=True)]
        for name in left:
            with suppress(bulle.BulleError):
                self.engine.containers.get(name).remove(force=True)
        assert not left, f"the test left containers: {left}"
        directories = self.home / "containers"
        wait_for(lambda: not directories.exists() or not os.listdir(directories), "the containers' directories are removed")
        self.settle()

    def settle(self) -> None:
        """Close the store's workspace, and close and open the connections to the database: SQLite keeps descriptors of other threads' closed ones as
        long as one is open.
        """
        gc.collect()
        for engine in self._engines():
            engine.close()
        self.connect()

    def connect(self) -> None:
        """Open the connections to the database that are closed: every fork closes those of all homes."""
        for engine in self._engines():
            engine.containers.list(all=True)

    def _engines(self) -> tuple[bulle.Engine, bulle.Engine]:
        return self.engine, engine_of_run(str(self.home), str(default_home()))

    def close(self) -> None:
        """End everything in the home and remove it."""
        self.engine.close()
        engine_of_run(str(self.home), str(default_home())).close()
        assert places.close_home(self.home) == []


@contextmanager
def machine(run_directory: Path, name: str) -> Iterator[Machine]:
    """A home for a whole module."""
    home = run_directory / name
    home.mkdir(mode=0o700)
    leaks.session_places.add(str(home))
    leaks.our_tables.add(table_name(home))
    place = Machine(home)
    place.settle()  # connections to the database stay open from test to test
    open_machines.append(place)
    try:
        yield place
    finally:
        open_machines.remove(place)
        place.close()
        leaks.session_places.discard(str(home))


def usable(level: Level, home: Path) -> frozenset[Feature]:
    """The features of a level on this machine; its tests are counted as not run where the driver cannot be used."""
    probe = level.probe(home)
    if not probe.usable:
        tiers.give_up("root", f"level {level.name}: {probe.reason}")
    if level.options.get("user_namespace") == "host" and os.geteuid() != 0:
        tiers.give_up("root", f"level {level.name}: only root shares the host's user namespace")
    return probe.features


def need_several_ids(place: Machine) -> None:
    """Go on only where containers have more than one user: an ordinary user without a range in /etc/subuid has no such."""
    if os.geteuid() != 0:
        plan = place.engine.containers.plan(bulle.ContainerOptions(image="busybox"))
        if sum(mapping.size for mapping in plan.security.id_mappings) < 2:
            tiers.give_up("root", "this user has a single id, no range in /etc/subuid and /etc/subgid")


def wait_for(condition: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    """Look until it is so."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.01)


def follow(attachment: bulle.Attachment, *, until: bytes | None = None, patience_s: float = PATIENCE_S) -> bulle.CompletedRun:
    """Receive until the end (or until ``until`` was written; then the exit code is -2) and say what came."""
    output = {Kind.STDOUT: bytearray(), Kind.STDERR: bytearray()}
    deadline = time.monotonic() + patience_s
    code = -3
    try:
        while True:
            if not attachment._frames:
                ready = select.select([attachment.fileno()], [], [], max(0.0, deadline - time.monotonic()))[0]
                assert ready, f"nothing more came after {bytes(output[Kind.STDOUT])!r} {bytes(output[Kind.STDERR])!r}"
            received = attachment.receive()
            if received is None:
                break
            kind, payload = received
            if kind in output:
                output[Kind(kind)] += payload
            elif kind == Kind.EVENT and (event := msgspec.json.decode(payload, type=Event)).event == "exited":
                code = event.exit_code
                break
            if until is not None and until in output[Kind.STDOUT]:
                code = -2
                break
    finally:
        if until is None:
            attachment.close()
    return bulle.CompletedRun(code, bytes(output[Kind.STDOUT]), bytes(output[Kind.STDERR]))


class Terminal:
    """A pseudo-terminal with the command on its other side, as a person has it."""

    def __init__(self, place: Machine, *arguments: str, rows: int = 30, columns: int = 100) -> None:
        self.master, slave = os.openpty()
        self.seen = b""
        self.resize(rows, columns)

        def control() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = place.start_command(*arguments, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, preexec_fn=control)
        os.close(slave)

    def resize(self, rows: int, columns: int) -> None:
        """As a window manager does; the kernel sends SIGWINCH."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str | bytes) -> None:
        """Keys."""
        os.write(self.master, text.encode() if isinstance(text, str) else text)

    def expect(self, text: str, patience_s: float = PATIENCE_S) -> None:
        """Read until the text appears; what came before it is dropped."""
        wanted, deadline = text.encode(), time.monotonic() + patience_s
        while wanted not in self.seen:
            ready = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))[0]
            assert ready, f"{text!r} never appeared in {self.seen!r}"
            try:
                data = os.read(self.master, 65536)
            except OSError:
                data = b""
            assert data, f"the terminal ended before {text!r}: {self.seen!r}"
            self.seen += data
        self.seen = self.seen.partition(wanted)[2]

    def wait(self) -> int:
        """The command's exit code; closes the terminal."""
        deadline = time.monotonic() + PATIENCE_S
        while self.process.poll() is None and time.monotonic() < deadline:
            if select.select([self.master], [], [], 0.05)[0]:
                with suppress(OSError):
                    self.seen += os.read(self.master, 65536)
        try:
            return self.process.wait(1)
        finally:
            self.close()

    def close(self) -> None:
        """End the command if it lives."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.master >= 0:
            os.close(self.master)
            self.master = -1
