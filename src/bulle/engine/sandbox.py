"""Sandboxes: a container that waits for a program's commands, for code that the program does not trust.

``bulle.sandbox`` makes one. Its first process is the small init that Bulle brings (native/bulle-init.c), so an image needs no shell; each command is
executed beside it, and what they leave in files, and running, is there for the next. It belongs to the program: however that ends, its monitor ends
the container, which leaves nothing. What it may do by default is in :func:`sandbox`; docs/sandbox.md says what that holds back and what not.
"""

from __future__ import annotations

import math
import os
import select
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, SIGUSR1
from typing import Any

import msgspec

from bulle.engine import planning
from bulle.engine.container import Container, submit
from bulle.engine.drivers import driver_for
from bulle.engine.engine import Engine
from bulle.engine.running import CompletedRun, engine_of
from bulle.engine.sandbox_files import SandboxFiles
from bulle.engine.starting import Order
from bulle.errors import BulleError, Conflict, InvalidInput, Unsupported
from bulle.isolation.control_group import ControlGroup
from bulle.isolation.driver import Feature
from bulle.linux import process
from bulle.model.container import ContainerOptions, ExecOptions
from bulle.model.quantities import size_bytes
from bulle.model.run_plan import ResourceLimit
from bulle.monitor import Attachment
from bulle.monitor.exchange import Exchange

WORK = "/work"
_IDLE = ("bulle-init", "--idle")
_KILLED_AGAIN_S = 0.05
_KILLED_WITHIN_S = 5.0
_MOST_TIMEOUT_S = 10 * 365 * 86400.0


@dataclass(frozen=True)
class SandboxRun(CompletedRun):
    """How a command in a sandbox ended, and what it wrote, each stream up to ``max_output``.

    ``timed_out``: its time was up. ``output_exceeded``: it wrote more than it may. For both, it was killed with all else that ran in the sandbox, and
    its exit code is 137. ``out_of_memory``: the kernel killed a process in the sandbox because the memory limit was reached.
    """

    timed_out: bool = False
    output_exceeded: bool = False
    out_of_memory: bool = False


def sandbox(
    image: str,
    *,
    memory: int | str | None = "256m",
    cpus: float | None = 1.0,
    pids: int | None = 128,
    disk: int | str = "64m",
    timeout: float | None = 60.0,
    max_output: int = 1 << 20,
    writable: bool = False,
    environment: Mapping[str, str] | None = None,
    home: Path | str | None = None,
    **options: Any,
) -> Sandbox:
    """Start a sandbox from an image. Leave it by ``with``, or :meth:`Sandbox.close`.

    By default what runs in it has no network, no capability and no way to gain privileges, a user namespace of its own, a read-only root file system
    with ``/work`` and ``/tmp`` to write to (each of ``disk`` bytes, in memory, and so within ``memory``), ``memory`` bytes without swap, ``cpus``
    processors and ``pids`` processes; None lifts a limit, ``writable`` makes the whole root writable (on the disk, without a bound). A machine that
    cannot set a limit raises Unsupported. ``timeout`` (seconds, None for ever) and ``max_output`` (bytes of each stream) bound each run that does not
    say otherwise. ``options`` are more fields of :class:`bulle.ContainerOptions`, ``home`` is a host path. Raises BulleError.
    """
    engine = engine_of(home)
    wanted = _options(image, environment, {"memory": memory, "cpus": cpus, "pids": pids, "disk": disk, "writable": writable}, options)
    driver = driver_for(wanted.isolation or "container", engine.home)
    if Feature.OWN_PROCESSES not in driver.probe().features:
        raise Unsupported(Feature.OWN_PROCESSES.value, driver.name, "a sandbox needs one: use the level container")
    return Sandbox(engine, wanted, _seconds(timeout), max_output)


class Sandbox:
    """A running sandbox; see :func:`sandbox`. Safe in threads; runs take turns."""

    def __init__(self, engine: Engine, options: ContainerOptions, timeout_s: float, max_output: int) -> None:
        self._turn = threading.Lock()
        self._pidfd = -1
        self._files = SandboxFiles(-1, 0, 0)
        self._attachment: Attachment | None = None
        self._timeout_s = timeout_s
        self._max_output = max_output
        self._home = engine.home
        self._kills = 0
        self._closed = False
        self.retire: Callable[[Sandbox], None] | None = None
        """Who ends it when it was killed by :meth:`close`, which then does not wait."""
        self.container: Container = engine.containers.create(options)
        """The container behind it, for other verbs."""
        try:
            self._attachment = self.container.start(attach=True, bound=True)
            state = self.container.state()
            ended = BulleError("the sandbox ended while it was started", "it was killed, or memory ran out", "give it more memory")
            pidfd = process.open_process(state.pid, state.pid_start_ticks) if state.status == "running" else None
            if pidfd is None:
                raise ended
            self._pidfd, self._pid = pidfd, state.pid
            try:
                root = os.open(f"/proc/{state.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                raise ended from None
            self._files = SandboxFiles(root, *_user_of(state.pid))
            self._require_alive()  # else what was opened may have been another's
        except BaseException:
            self._release()
            with suppress(BulleError, OSError):
                self.container.remove(force=True)
            raise

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_attachment"):
            self._release()  # and its monitor, finding the connection closed, ends it

    @property
    def alive(self) -> bool:
        """Whether commands can still be run in it."""
        return not self._closed and self._pidfd >= 0 and not _is_ready(self._pidfd)  # a pidfd is, once its process has ended

    def run(
        self,
        command: Sequence[str],
        *,
        input: bytes | None = None,
        timeout: float | None = -1.0,
        max_output: int = -1,
        environment: Mapping[str, str] | None = None,
        working_directory: str = "",
        interruption: int = -1,
    ) -> SandboxRun:
        """Run a command to its end, its time's end or that of its output; by default the sandbox's own bounds hold.

        What it left running in the background goes on. ``input`` is its standard input; ``working_directory`` a container path. When the descriptor
        ``interruption`` becomes readable (an eventfd of the caller's), or an exception comes in between (KeyboardInterrupt), everything in the
        sandbox is killed. Raises BulleError: CommandNotFound, Conflict where the sandbox has ended or was interrupted.
        """
        if isinstance(command, str) or not command:
            raise InvalidInput("a sandbox runs a command that is a list of words", f"this is {command!r}", "for a shell's line: ['sh', '-c', line]")
        timeout_s = self._timeout_s if timeout == -1.0 else _seconds(timeout)
        variables = tuple(f"{name}={value}" for name, value in (environment or {}).items())
        asked = ExecOptions(command=tuple(command), environment=variables, working_directory=working_directory, interactive=input is not None)
        with self._turn:
            self._require_alive()
            plan = self.container.plan
            order = Order(str(self._home), plan, True, input is not None, execute=planning.exec_process(plan, asked), pid=self._pid)
            with closing(submit(order)) as attachment:
                exchange = Exchange(attachment, input, most_bytes=self._max_output if max_output < 0 else max_output)
                timed_out = False
                try:
                    if not exchange.run(time.monotonic() + timeout_s, interruption=interruption):
                        timed_out = not exchange.exceeded and not _is_ready(interruption)
                        self._end_all(exchange)
                        if not timed_out and not exchange.exceeded:
                            raise Conflict("the run was interrupted", "by the program that started it")
                except BulleError:
                    raise
                except BaseException:
                    self._end_all(exchange)
                    raise
            return self._completed(exchange, timed_out)

    def write(self, path: str, content: bytes | str, *, mode: int = 0o644) -> None:
        """Make or overwrite a file (text as UTF-8) and the directories that it needs. ``path`` is a container path, or relative to ``/work``.

        Symlinks in the sandbox cannot lead it out. Raises BulleError.
        """
        self._require_alive()
        self._files.write(_absolute(path), content.encode() if isinstance(content, str) else content, mode)

    def read(self, path: str, *, most_bytes: int = 64 << 20) -> bytes:
        """What is in a regular file, of ``most_bytes`` at most: see :meth:`write`. Raises NotFound, InvalidInput, BulleError."""
        self._require_alive()
        return self._files.read(_absolute(path), most_bytes)

    def close(self) -> None:
        """End it with all that runs in it; harmless to repeat, also from another thread."""
        if self._attachment is None:
            return
        self._closed = True
        with suppress(OSError):
            process.pidfd_send_signal(self._pidfd, SIGKILL)
        retire, self.retire = self.retire, None
        if retire is not None:
            retire(self)
            return
        attachment, self._attachment = self._attachment, None
        if attachment is None:
            return
        try:
            attachment.wait_exit(_KILLED_WITHIN_S)
        except TimeoutError:
            raise BulleError("the sandbox could not be ended", "its first process does not end although it was killed", "see dmesg") from None
        finally:
            attachment.close()
            with self._turn:  # a run in another thread has ended with it
                self._release()

    def _require_alive(self) -> None:
        if not self.alive:
            raise Conflict("the sandbox has ended", "it was closed, or something killed it", "make a new one")

    def _end_all(self, exchange: Exchange) -> None:
        """Kill everything but the idle first process, until the command is known to have ended; or the sandbox, where that does not help."""
        deadline = time.monotonic() + _KILLED_WITHIN_S
        while time.monotonic() < deadline:
            with suppress(OSError):
                process.pidfd_send_signal(self._pidfd, SIGUSR1)
            # Again and again: what was just being executed may have come in after the signal.
            again = time.monotonic() + _KILLED_AGAIN_S
            while time.monotonic() < again:
                if exchange.run(again):
                    return
        with suppress(OSError):
            process.pidfd_send_signal(self._pidfd, SIGKILL)
        exchange.exit_code = 128 + SIGKILL

    def _completed(self, exchange: Exchange, timed_out: bool) -> SandboxRun:
        assert exchange.exit_code is not None
        out_of_memory = False
        if exchange.exit_code and self.container.plan.resources.memory_bytes:
            with closing(ControlGroup.open(self.container.id)) as group:
                kills = group.oom_count()
            out_of_memory, self._kills = kills > self._kills, kills
        output = bytes(exchange.stdout), bytes(exchange.stderr)
        return SandboxRun(exchange.exit_code, *output, exchange.notes, timed_out, exchange.exceeded, out_of_memory)

    def _release(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        self._files.close()
        if self._attachment is not None:
            self._attachment.close()
            self._attachment = None


def _options(image: str, environment: Mapping[str, str] | None, words: Mapping[str, Any], more: Mapping[str, Any]) -> ContainerOptions:
    try:
        memory = size_bytes(str(words["memory"])) if words["memory"] is not None else 0
        disk = size_bytes(str(words["disk"]))
    except ValueError as error:
        raise InvalidInput("a sandbox's size cannot be understood", str(error), "give bytes, or a word such as '256m'") from error
    places = dict.fromkeys(("/tmp", WORK), f"size={disk},exec") | dict(more.get("tmpfs", ()))
    wanted: dict[str, Any] = {
        "image": image,
        "entrypoint": _IDLE,
        "idle": True,
        "auto_remove": True,
        "environment": tuple(f"{name}={value}" for name, value in (environment or {}).items()),
        "working_directory": WORK,
        "network": "none",
        "read_only": not words["writable"],
        "cap_drop": ("ALL",),
        "security_options": ("no-new-privileges",),
        "limits": (ResourceLimit("core", 0, 0),),
        "memory_bytes": memory,
        "memory_swap_bytes": memory,
        "nano_cpus": min(round((words["cpus"] or 0) * 10**9), (os.cpu_count() or 1) * 10**9),
        "pids_limit": words["pids"] or 0,
        "shm_bytes": disk,
    }
    try:
        return msgspec.structs.replace(ContainerOptions(**wanted | dict(more)), tmpfs=tuple(places.items()), idle=True, auto_remove=True)
    except TypeError as error:
        raise InvalidInput("bulle.sandbox does not know an option", str(error), "see bulle.sandbox and bulle.ContainerOptions") from error


def _seconds(timeout: float | None) -> float:
    if timeout is None:
        return _MOST_TIMEOUT_S
    if not timeout > 0 or math.isinf(timeout):
        raise InvalidInput(f"a timeout of {timeout} seconds is no time", "", "give more than 0, or None for ever")
    return min(timeout, _MOST_TIMEOUT_S)


def _absolute(path: str) -> str:
    if not path or "\0" in path:
        raise InvalidInput(f"{path!r} is no path in a sandbox", "", "give the path of a file")
    return path if path.startswith("/") else f"{WORK}/{path}"


def _user_of(pid: int) -> tuple[int, int]:
    """The user and group on the host as which a process opens files. proc_pid_status(5)"""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["Uid"].split()[3]), int(fields["Gid"].split()[3])


def _is_ready(descriptor: int) -> bool:
    if descriptor < 0:
        return False
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
