"""An engine in memory: the interface that the command line is written against, without a kernel behind it.

Its "programs" are the few that a test of the command line needs: ``echo``, ``cat`` (copies its input), ``exit N``, ``sleep`` (runs until it is
signalled), ``tty`` (says the size of its terminal), ``detach`` (behaves as if the user had pressed the detach keys), ``orphan`` (loses its
monitor once). Everything else is not found.
"""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bulle.engine.booting import Outcome as Booted
from bulle.errors import CommandNotFound, Conflict, InvalidInput, NotFound
from bulle.model.container import ContainerOptions, ContainerState, ExecOptions, LimitChanges
from bulle.model.network import PublishedPort
from bulle.model.reference import Reference
from bulle.model.run_plan import Mount, Network, Process, RootFilesystem, RunPlan
from bulle.model.volume import Volume
from bulle.monitor.log_reading import Choice
from bulle.monitor.logs import timestamp

SECOND = 1_000_000_000


@dataclass(frozen=True)
class Outcome:
    exit_code: int | None
    detached: bool


@dataclass(frozen=True)
class LogEntry:
    stream: str
    time_ns: int
    data: bytes


@dataclass(frozen=True)
class Finding:
    subject: str
    ok: bool
    found: str
    mend: str = ""


class Attachment:
    """A program of the fake, its streams given to :meth:`pump`."""

    def __init__(self, container: Container, command: tuple[str, ...], log: list[LogEntry] | None = None) -> None:
        self.container = container
        self.command = command
        self.log = log
        self.size = (0, 0)
        self.closed = False
        self.keys: bytes | None = None

    def _out(self, descriptor: int, data: bytes) -> None:
        os.write(descriptor, data)
        if self.log is not None:
            self.log.append(LogEntry("stdout" if descriptor == 1 else "stderr", time.time_ns(), data))

    def pump(self, stdin_fd: int, stdout_fd: int, stderr_fd: int, detach_keys: bytes = b"\x10\x11") -> Outcome:
        self.keys = detach_keys
        program, *arguments = self.command
        code = 0
        if program == "echo":
            self._out(stdout_fd, " ".join(arguments).encode() + b"\n")
        elif program == "warn":
            self._out(stderr_fd, " ".join(arguments).encode() + b"\n")
        elif program == "cat":
            while stdin_fd >= 0 and (data := os.read(stdin_fd, 65536)):
                self._out(stdout_fd, data)
        elif program == "exit":
            code = int(arguments[0])
        elif program == "tty":
            self._out(stdout_fd, "{} {}\n".format(*self.size).encode())
        elif program == "orphan" and not self.container.orphaned:
            self.container.orphaned = True
            self._out(stdout_fd, b"before\n")
            return Outcome(None, False)
        elif program == "orphan":
            self._out(stdout_fd, b"after\n")
        elif program == "detach":
            return Outcome(None, True)
        elif program == "sleep":
            self._out(stdout_fd, b"asleep\n")
            while self.container.signals == []:
                time.sleep(0.01)
            code = 128 + self.container.signals[-1]
        elif program == "fail":
            raise OSError(28, "No space left on device", "/var/lib/bulle")
        elif program == "mistake":
            raise RuntimeError("a mistake")
        self.container.finish(code)
        return Outcome(code, False)

    def resize(self, rows: int, columns: int) -> None:
        self.size = (rows, columns)

    def close(self) -> None:
        self.closed = True


PROGRAMS = {"orphan", "echo", "warn", "cat", "exit", "tty", "detach", "sleep", "fail", "mistake"}


@dataclass
class ContainerLog:
    entries: list[LogEntry]

    def text(self, choice: Choice, *, follow: bool = False, timestamps: bool = False, details: bool = False) -> Iterator[tuple[str, bytes]]:
        since, until, tail = choice.since_ns, choice.until_ns, choice.tail
        chosen = [one for one in self.entries if one.time_ns >= since and (not until or one.time_ns <= until)]
        for one in chosen if tail is None else chosen[len(chosen) - tail :] if tail else []:
            yield one.stream, (timestamp(one.time_ns).encode() + b" " if timestamps else b"") + (b" " if details else b"") + one.data


@dataclass
class Container:
    engine: FakeEngine
    id: str
    name: str
    image: str
    image_id: str
    created_at_ns: int
    options: ContainerOptions
    plan: RunPlan
    now: ContainerState = field(default_factory=ContainerState)
    signals: list[int] = field(default_factory=list)
    entries: list[LogEntry] = field(default_factory=list)
    orphaned: bool = False
    changes: LimitChanges | None = None
    paused: bool = False
    ports: dict[str, list[dict[str, str]] | None] = field(default_factory=dict)
    published: tuple[PublishedPort, ...] = ()
    notes: tuple[str, ...] = ()
    stopped_with: tuple[int | None, str] | None = None

    def state(self) -> ContainerState:
        return self.now

    def start(
        self, *, attach: bool = False, stdin: bool = False, rows: int = 0, columns: int = 0, bound: bool = False, secrets: Sequence[str] = ()
    ) -> Attachment | None:
        command = self.plan.process.arguments
        if command[0] not in PROGRAMS:
            raise CommandNotFound(f"{command[0]}: command not found")
        self.now = ContainerState(status="running", pid=4711, started_at_ns=time.time_ns())
        return Attachment(self, command, self.entries) if attach else None

    def start_here(self, *, stdin: bool = False, rows: int = 0, columns: int = 0) -> Attachment:
        attachment = self.start(attach=True, stdin=stdin, rows=rows, columns=columns)
        assert attachment is not None
        return attachment

    def attach(self, *, output: bool = True, stdin: bool = False) -> Attachment:
        return Attachment(self, self.plan.process.arguments, self.entries)

    def finish(self, code: int) -> None:
        self.now = ContainerState(status="exited", exit_code=code, finished_at_ns=time.time_ns())
        if self.options.auto_remove:
            self.engine.containers.by_id.pop(self.id, None)

    def stop(self, timeout_s: int | None = None, signal: str = "", *, verb: str = "stop") -> None:
        self.stopped_with = (timeout_s, signal)
        self.finish(143)

    def kill(self, signal: str = "KILL") -> None:
        if self.now.status != "running":
            raise Conflict(f"cannot kill container {self.name}", "it is not running")
        self.signals.append(_number(signal))

    def update(self, changes: LimitChanges) -> None:
        self.changes = changes

    def pause(self) -> None:
        self.paused = True

    def unpause(self) -> None:
        if not self.paused:
            raise Conflict(f"container {self.name} is not paused")
        self.paused = False

    def is_paused(self) -> bool:
        return self.paused

    def remove(self, *, force: bool = False, volumes: bool = False) -> None:
        if self.now.status == "running" and not force:
            raise Conflict(f"cannot remove container {self.name}", "it is running", "stop it first, or use -f")
        del self.engine.containers.by_id[self.id]

    def wait(self, condition: str = "not-running") -> int:
        return self.now.exit_code

    @property
    def log(self) -> ContainerLog:
        return ContainerLog(self.entries)

    def execute(self, options: ExecOptions, *, detach: bool = False, exec_id: str = "") -> Attachment | None:
        if self.now.status != "running":
            raise Conflict(f"container {self.name} is not running")
        self.engine.executed.append(options)
        if options.user == "nobody-here":
            raise InvalidInput(f"unable to find user {options.user}")
        if options.command[0] not in PROGRAMS:
            raise CommandNotFound(f"{options.command[0]}: command not found")
        return None if detach else Attachment(SimpleNamespace(signals=self.signals, finish=lambda code: None), options.command)

    def top(self, arguments: Any) -> tuple[list[str], list[list[str]]]:
        return ["PID", "CMD"], [["4711", " ".join(self.plan.process.arguments)]]

    def published_ports(self) -> tuple[PublishedPort, ...]:
        return self.published

    def inspect(self, *, sizes: bool = False) -> dict[str, Any]:
        return {
            "Id": self.id,
            "Name": f"/{self.name}",
            "State": {"Status": self.now.status, "Running": self.now.status == "running", "ExitCode": self.now.exit_code, "Pid": self.now.pid},
            "Config": {"Image": self.image, "Labels": dict(self.options.labels), "Env": list(self.options.environment), "Entrypoint": None},
            "NetworkSettings": {"Ports": self.ports},
            "Mounts": [{"Source": one.host_path, "Destination": one.container_path, "RW": not one.read_only} for one in self.options.volumes],
        }


def _number(name: str) -> int:
    return int(name) if name.isdecimal() else signal.Signals[f"SIG{name}"].value


@dataclass
class Image:
    id: str
    references: tuple[str, ...]
    created_at_ns: int
    size_bytes: int
    manifest_digest: str
    config: Any


class Containers:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.by_id: dict[str, Container] = {}

    def plan(self, options: ContainerOptions) -> RunPlan:
        return RunPlan(
            container_id=f"{len(self.by_id) + 1:064x}",
            isolation=options.isolation or "container",
            hostname="box",
            state_host_path="/none",
            root=RootFilesystem((), "/none"),
            process=Process(arguments=(*(options.entrypoint or ()), *options.command) or ("echo",)),
            network=Network("host" if options.network == "host" else "none"),
            mounts=tuple(Mount("bind", one.container_path, one.host_path, one.read_only) for one in options.volumes),
        )

    def create(self, options: ContainerOptions, base: None = None, *, layers: Any = (), fill: None = None) -> Container:
        image = self.engine.images.get(options.image)
        if any(one.name == options.name for one in self.by_id.values()):
            raise Conflict(f"the container name {options.name!r} is already in use")
        plan = self.plan(options)
        identity = f"{len(self.by_id) + 1:x}".ljust(64, "f")
        now = time.time_ns() - (100 - len(self.by_id)) * 3600 * SECOND
        made = Container(self.engine, identity, options.name or f"name{len(self.by_id)}", options.image, image.id, now, options, plan)
        self.by_id[identity] = made
        return made

    def get(self, name: str) -> Container:
        for one in self.by_id.values():
            if one.name == name or one.id.startswith(name):
                return one
        raise NotFound(f"no such container: {name}")

    def list(self, *, all: bool = False) -> list[Container]:
        return [one for one in self.by_id.values() if all or one.now.status == "running"]


class Images:
    def __init__(self) -> None:
        self.all: list[Image] = []
        self.registry = {"docker.io/library/remote:latest"}
        self.pulled: list[tuple[str, str]] = []

    def add(self, *names: str, created: str = "2026-01-02T03:04:05Z", size: int = 123_456_789, labels: dict[str, str] | None = None) -> Image:
        identity = "sha256:" + f"{len(self.all) + 1:x}".ljust(64, "a")
        config = SimpleNamespace(created=created, config=SimpleNamespace(labels=labels))
        references = tuple(Reference.parse(one).canonical for one in names)
        self.all.append(Image(identity, references, time.time_ns() + len(self.all), size, "sha256:" + "d" * 64, config))
        return self.all[-1]

    def get(self, name: str, platform: str = "") -> Image:
        for one in self.all:
            if one.id.removeprefix("sha256:").startswith(name) or Reference.parse(name).canonical in one.references:
                return one
        raise NotFound(f"no such image: {name}")

    def list(self) -> list[Image]:
        return list(self.all)

    def pull(self, reference: str, *, platform: str = "", progress: Any = None) -> Image:
        self.pulled.append((reference, platform))
        if Reference.parse(reference).canonical not in self.registry:
            raise NotFound(f"no such image: {reference}", "the registry does not know it")
        return self.add(reference)

    def load(self, source: Any, progress: Any = None, choose: Any = None) -> list[Image]:
        data = source.read_bytes() if isinstance(source, Path) else source.read()
        return [self.add(*data.decode().split())]

    def save(self, names: list[str], out: io.BufferedIOBase, format: str = "docker-archive", *, platform: str = "") -> None:
        for name in names:
            out.write(f"{format}:{self.get(name).id}\n".encode())

    def tag(self, source: str, target: str) -> None:
        image = self.get(source)
        image.references = (*image.references, Reference.parse(target).canonical)

    def remove(self, name: str, *, force: bool = False, only: Image | None = None) -> list[str]:
        image = only or self.get(name)
        self.all.remove(image)
        return [f"Untagged: {name}", f"Deleted: {image.id}"]

    def inspect(self, name: str, platform: str = "") -> dict[str, Any]:
        image = self.get(name, platform)
        return {"Id": image.id, "RepoTags": [Reference.parse(one).familiar for one in image.references], "Size": image.size_bytes}


class Volumes:
    def __init__(self) -> None:
        self.by_name: dict[str, Volume] = {}

    def create(self, name: str = "", *, labels: dict[str, str] | None = None, options: dict[str, str] | None = None) -> Volume:
        self.by_name[name] = Volume(name, time.time_ns(), f"/none/{name}", labels or {}, options or {})
        return self.by_name[name]

    def get(self, name: str) -> Volume:
        if name not in self.by_name:
            raise NotFound(f"no such volume: {name}")
        return self.by_name[name]

    def list(self) -> list[Volume]:
        return list(self.by_name.values())


class Networks:
    def get(self, name: str) -> Any:
        raise NotFound(f"network {name} not found")


class FakeEngine:
    """What ``bulle.Engine`` offers to the command line."""

    def __init__(self, home: Path | None = None) -> None:
        self.home = home
        self.images = Images()
        self.containers = Containers(self)
        self.networks = Networks()
        self.volumes = Volumes()
        self.executed: list[ExecOptions] = []
        self.closed = 0

    def info(self) -> dict[str, Any]:
        return {"Containers": len(self.containers.by_id), "Home": str(self.home), "Drivers": {"container": True}, "Warnings": None}

    def version(self) -> dict[str, Any]:
        return {"Version": "0.1.0", "Kernel": "6.18"}

    def boot(self) -> tuple[Booted, ...]:
        return ()

    def shutdown(self, timeout_s: int | None = None) -> tuple[Booted, ...]:
        stopped = self.containers.list()
        for one in stopped:
            one.stop(timeout_s, verb="system shutdown")
        return tuple(Booted(one.name) for one in stopped)

    def doctor(self) -> list[Finding]:
        return [Finding("user namespaces", True, "usable"), Finding("mmdebstrap", False, "not installed", "apt-get install mmdebstrap")]

    def close(self) -> None:
        self.closed += 1
