"""What is compared: the bare host and each isolation level, behind one interface that starts the gauge and looks at the cost.

Used by :mod:`bulle.engine.comparing`, which decides what is measured when. A subject keeps nothing running but what it was asked to, and nothing
of it outlives its ``with`` block.
"""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bulle.engine import gauge
from bulle.engine.drivers import driver_for
from bulle.engine.gauge import AttachmentChannel, Gauge, PipeChannel
from bulle.engine.planning import Base
from bulle.errors import BulleError, CommandNotFound
from bulle.isolation.driver import Probe
from bulle.linux import process_usage
from bulle.model.container import ContainerOptions
from bulle.model.image import ExecutionConfig
from bulle.store import Image
from bulle.store.workspace import remove_tree

if TYPE_CHECKING:
    from bulle.engine.container import Container
    from bulle.engine.engine import Engine
    from bulle.model.digest import Digest
    from bulle.model.run_plan import RunPlan
    from bulle.monitor import Attachment

ON_THE_HOST = "127.0.0.1"
_ENDED_WITHIN_S = 60.0
_IDLE = ("--idle", f"{gauge.PATIENCE_S:.0f}")


class Idle(NamedTuple):
    """What one idle copy takes, the median of several: memory of what runs for it, of its monitor, of the kernel for it; bytes on the disk."""

    workload_bytes: float
    monitor_bytes: float
    kernel_bytes: float
    disk_bytes: float


class Conversation(NamedTuple):
    """A gauge at work: ``directory`` is where it may write, ``server`` the host's address as seen by it (empty: there is no network)."""

    gauge: Gauge
    directory: str
    server: str
    network: str


class Subject(ABC):
    """One of those that are compared. Every method may raise BulleError; then it left nothing behind."""

    name: str
    bare = False

    @abstractmethod
    def once(self) -> tuple[float, float]:
        """Start the shortest work that there is: milliseconds to its first byte, and to the end with all that was made removed."""

    @abstractmethod
    def command(self, words: Sequence[str]) -> tuple[float, int]:
        """Run a command to its end: milliseconds with everything removed, and its exit code."""

    @abstractmethod
    def _idle_copy(self, stack: ExitStack) -> Callable[[], tuple[int, int, int]]:
        """A copy that does nothing until ``stack`` ends; returns what looks at it: bytes of the workload, of its monitor, and on the disk."""

    @abstractmethod
    def conversation(self, stack: ExitStack) -> Conversation:
        """A gauge that waits for requests until ``stack`` ends."""

    def idle(self, copies: int, settle_s: float) -> Idle:
        """Start a copy that does nothing and so many more, look at these once they have stood for a while, and end all."""
        with ExitStack() as stack:
            self._idle_copy(stack)  # what is made once, and then shared, is not a copy's
            time.sleep(settle_s)
            before = process_usage.kernel_bytes()
            looks = [self._idle_copy(stack) for _ in range(copies)]
            time.sleep(settle_s)
            kernel = (process_usage.kernel_bytes() - before) / copies
            workload, monitor, disk = (statistics.median(values) for values in zip(*(look() for look in looks), strict=True))
        return Idle(workload, monitor, kernel, disk)

    def kept_bytes(self) -> int:
        """Bytes on the disk that are there once for all copies."""
        return 0


class Host(Subject):
    """The bare host: processes of this machine, without any isolation. ``directory`` (host path) is on the disk of the levels' writable layers."""

    name = "bare host"
    bare = True

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        # Whoever installed the package may have left nothing in it executable.
        self.program = str(shutil.copyfile(gauge.PROGRAM, directory / gauge.PROGRAM.name))
        os.chmod(self.program, 0o755)

    def once(self) -> tuple[float, float]:
        """A process and a pipe."""
        begin = time.perf_counter_ns()
        with _process([self.program, "--once"]) as (_stdin, stdout, _pid):
            os.read(stdout, 64)
            first = time.perf_counter_ns()
            os.read(stdout, 64)  # its end
        return (first - begin) / 1e6, (time.perf_counter_ns() - begin) / 1e6

    def command(self, words: Sequence[str]) -> tuple[float, int]:
        """With the host's own programs, files and rights."""
        program = shutil.which(words[0])
        if program is None:
            raise CommandNotFound(f"the bare host has no command {words[0]!r}")
        begin = time.perf_counter_ns()
        with open(os.devnull, "r+b") as nowhere, subprocess.Popen([program, *words[1:]], stdin=nowhere, stdout=nowhere, stderr=nowhere) as process:
            try:
                code = process.wait()
            except BaseException:
                process.kill()
                raise
        return (time.perf_counter_ns() - begin) / 1e6, code if code >= 0 else 128 - code

    def _idle_copy(self, stack: ExitStack) -> Callable[[], tuple[int, int, int]]:
        pid = stack.enter_context(_process([self.program, *_IDLE]))[2]
        return lambda: (process_usage.usage_of(pid).memory_bytes, 0, 0)

    def conversation(self, stack: ExitStack) -> Conversation:
        """In a directory of its own."""
        stdin, stdout, _pid = stack.enter_context(_process([self.program]))
        opened = Gauge(PipeChannel(stdin, stdout))
        opened.wait_ready()
        return Conversation(opened, str(self._directory), ON_THE_HOST, "host")


class Isolated(Subject):
    """An image at one isolation level, with the gauge as a layer on top of it; see :class:`Subject`.

    ``directory`` (host path, in the store's workspace) holds the writable layers, so that what a killed comparison leaves is collected as what a
    killed build leaves.
    """

    def __init__(self, engine: Engine, level: str, image: Image, layer: Digest, directory: Path, platform: str = "") -> None:
        self.name = level
        self._engine = engine
        self._image = image
        self._layers = (*image.layers, layer)
        self._directory = directory
        self._platform = platform
        self._number = 0
        self._driver = driver_for(level, engine.home)
        self.network = ""
        """As ``--network``; empty for what the level has unless it is told otherwise."""

    def probe(self) -> Probe:
        """What the driver says of this machine."""
        return self._driver.probe()

    def once(self) -> tuple[float, float]:
        """Create, start, wait, remove: through the library, as ``bulle.run`` does."""
        begin = time.perf_counter_ns()
        with self._copy((gauge.CONTAINER_PROGRAM, "--once")) as (_container, attachment):
            AttachmentChannel(attachment).receive(time.monotonic() + gauge.PATIENCE_S)
            first = time.perf_counter_ns()
            _require_end(attachment)
            end = time.perf_counter_ns()
        return (first - begin) / 1e6, (end - begin) / 1e6

    def command(self, words: Sequence[str]) -> tuple[float, int]:
        """As ``bulle run IMAGE WORDS``: with the image's entrypoint, user, environment and directory."""
        begin = time.perf_counter_ns()
        with self._copy(tuple(words), of_image=True) as (_container, attachment):
            code = _require_end(attachment)
            end = time.perf_counter_ns()
        return (end - begin) / 1e6, code

    def _idle_copy(self, stack: ExitStack) -> Callable[[], tuple[int, int, int]]:
        # As `run -d` starts it, and left alone: a monitor that is spoken to is another, larger one.
        container = stack.enter_context(self._created((gauge.CONTAINER_PROGRAM, *_IDLE)))
        container.start()

        def look() -> tuple[int, int, int]:
            state = container.state()
            used = self._used_bytes(container.plan, state.pid)
            disk = _allocated(Path(container.directory)) + _allocated(Path(container.plan.root.writable_host_path).parent)
            return used, process_usage.private_bytes(state.monitor_pid), disk

        return look

    def _used_bytes(self, plan: RunPlan, pid: int) -> int:
        """As statistics tell it; where a hypervisor runs it, they tell what the guest uses, and the machine gives what that has of it."""
        if self.probe().hypervisor:
            return sum(process_usage.usage_of(one).memory_bytes for one in self._driver.processes(plan, pid))
        return self._driver.statistics([(plan, pid)])[0].memory_bytes or 0

    def conversation(self, stack: ExitStack) -> Conversation:
        """In a container that ends with ``stack``, and is not one of ``--rm``: what such a one writes is never brought to the disk."""
        container, attachment = stack.enter_context(self._copy((gauge.CONTAINER_PROGRAM,), interactive=True, kept=True))
        opened = Gauge(AttachmentChannel(attachment))
        opened.wait_ready()
        plan = container.plan.network
        gateways = [address for one in plan.attachments for address in one.gateways if ip_address(address).version == 4]
        server = ON_THE_HOST if plan.mode == "host" else gateways[0] if gateways else ""
        return Conversation(opened, gauge.CONTAINER_DIRECTORY, server, ", ".join(plan.names))

    def kept_bytes(self) -> int:
        """What the driver keeps in the home."""
        return sum(_allocated(Path(path)) for path in self._driver.kept_files())

    @contextmanager
    def _copy(
        self, command: tuple[str, ...], *, interactive: bool = False, of_image: bool = False, kept: bool = False
    ) -> Iterator[tuple[Container, Attachment]]:
        """A running container that dies with us, and the connection to it."""
        with self._created(command, interactive=interactive, of_image=of_image, kept=kept) as container:
            attachment = container.start(attach=True, stdin=interactive, bound=True)
            assert attachment is not None
            try:
                yield container, attachment
            finally:
                attachment.close()

    @contextmanager
    def _created(self, command: tuple[str, ...], *, interactive: bool = False, of_image: bool = False, kept: bool = False) -> Iterator[Container]:
        """A container that is removed afterwards with all that it wrote: one of ``run --rm``, unless it is to be ``kept`` when it ends by itself."""
        self._number += 1
        own = self._directory / f"{self.name}-{self._number}"
        own.mkdir(mode=0o700)
        try:
            config = (self._image.config.config if of_image else None) or ExecutionConfig()
            platform = self._image.config.platform
            base = Base(self._layers, config, host_binds=self._image.host_binds, writable=str(own / "root"), platform=platform)
            container = self._engine.containers.create(self._options(command, interactive, of_image, kept), base)
            try:
                yield container
            finally:
                _remove(container)
        finally:
            remove_tree(own)

    def _options(self, command: tuple[str, ...], interactive: bool, of_image: bool, kept: bool) -> ContainerOptions:
        return ContainerOptions(
            image="bulle compare",
            command=command,
            entrypoint=None if of_image else (),
            user="" if of_image else "0:0",
            isolation=self.name,
            network=self.network,
            platform=self._platform,
            interactive=interactive,
            no_healthcheck=True,
            auto_remove=not kept,
        )


def _remove(container: Container) -> None:
    """Remove what may have removed itself. The end of a kept one takes as long as the disk needs for all that waits to be written to it."""
    deadline = time.monotonic() + _ENDED_WITHIN_S
    while True:
        try:
            with suppress(FileNotFoundError):
                container.remove(force=True)
            return
        except BulleError:
            if time.monotonic() > deadline:
                raise


def _require_end(attachment: Attachment) -> int:
    code = attachment.wait_exit()
    if code is None:
        raise BulleError("the work was lost", "its monitor was killed")
    return code


def _spawn(command: list[str]) -> tuple[int, int, int]:
    """A process with pipes for input and output, which the caller closes, and its pid, for which the caller waits."""
    given, stdin = os.pipe()
    stdout, taken = os.pipe()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        actions = [(os.POSIX_SPAWN_DUP2, given, 0), (os.POSIX_SPAWN_DUP2, taken, 1), (os.POSIX_SPAWN_DUP2, nowhere, 2)]
        return stdin, stdout, os.posix_spawn(command[0], command, os.environ, file_actions=actions)
    except BaseException:
        os.close(stdin)
        os.close(stdout)
        raise
    finally:
        for descriptor in (given, taken, nowhere):
            os.close(descriptor)


@contextmanager
def _process(command: list[str]) -> Iterator[tuple[int, int, int]]:
    """A process of this machine as :func:`_spawn` makes it, killed at the end."""
    stdin, stdout, pid = _spawn(command)
    try:
        yield stdin, stdout, pid
    finally:
        os.close(stdin)
        os.close(stdout)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@contextmanager
def server(program: str, address: str) -> Iterator[int]:
    """The other end of measured connections, on the host at an address of it; gives the port. ``program`` is the host's gauge (host path)."""
    with _process([program, "--serve", address]) as (_stdin, stdout, _pid):
        said = os.read(stdout, 64).decode()  # or nothing, where it ends at once
        if not said.startswith("port "):
            raise BulleError(f"nothing can listen on {address} for measuring the network")
        yield int(said.split()[1])


def _allocated(path: Path) -> int:
    """Bytes that a file, or a directory with all in it, has on the disk, holes not counted; each file once."""
    seen: dict[tuple[int, int], int] = {}
    with suppress(OSError):
        status = os.lstat(path)
        seen[status.st_dev, status.st_ino] = status.st_blocks * 512
    for parent, directories, names in os.walk(path):
        for name in (*directories, *names):
            with suppress(OSError):
                status = os.lstat(f"{parent}/{name}")
                seen[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(seen.values())
