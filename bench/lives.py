"""The parts of the benchmark about containers that live: their end, another start, commands in them, their output, and what many of them take."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from contestants import docker_command
from figures import IMAGE, Field, Rows, compare, shim_pids
from measuring import Contestant, Failed, Result, interleaved, timer

AT_MOST = 0.3
LINES = 1_000_000
ENDS_AT_ONCE = 'trap "exit 0" TERM; sleep 100000 & wait'
WRITES = f"seq 1 {LINES} | sed 's/$/ of a million lines, as long as lines of logs usually are, or so/'"


def _engines(field: Field) -> dict[str, tuple[Callable[..., object], Callable[..., list[str]], dict[str, str] | None]]:
    """Each engine: a call that is not measured, the whole command of one that is, and its environment."""
    found: dict[str, tuple[Callable[..., object], Callable[..., list[str]], dict[str, str] | None]] = {
        "bulle": (field.bulle, field.bulle.command, field.bulle.environment)
    }
    if docker := field.docker:
        found["docker"] = (docker, lambda *arguments: docker_command(docker, *arguments), None)
    return found


@contextmanager
def _containers(field: Field, *arguments: str) -> Iterator[None]:
    """One container named ``life`` with every engine, for as long as the block lasts."""
    engines = _engines(field)
    try:
        for call, _command, _environment in engines.values():
            call("run", "-d", "--name", "life", "--network", "none", *arguments)
        yield
    finally:
        for call, _command, _environment in engines.values():
            call("rm", "-f", "life")


def _race(field: Field, rounds: int, *arguments: str, before: tuple[str, ...] = ()) -> dict[str, Result]:
    """The same verb with every engine; ``before`` is done unmeasured first."""
    with timer() as plain:

        def contestant(call: Callable[..., object], command: list[str], environment: dict[str, str] | None) -> Contestant:
            def once() -> float:
                if before:
                    call(*before)
                return plain.run(command, environment)

            return once

        engines = _engines(field).items()
        return interleaved({name: contestant(call, command(*arguments), surroundings) for name, (call, command, surroundings) in engines}, rounds)


def lives(field: Field, options: argparse.Namespace) -> tuple[Rows, list[str]]:
    """Stop, restart, exec and logs of one container."""
    found: dict[str, dict[str, Result]] = {}
    with _containers(field, IMAGE, "sh", "-c", ENDS_AT_ONCE):
        found["`exec` of `true`"] = _race(field, options.rounds, "exec", "life", "true")
        found["`stop` of what ends at once"] = _race(field, options.rounds, "stop", "life", before=("start", "life"))
        found["`restart` of what ends at once"] = _race(field, options.rounds, "restart", "life", before=("start", "life"))
    with _containers(field, IMAGE, "sh", "-c", WRITES):
        for call, _command, _environment in _engines(field).values():
            call("wait", "life")
        found[f"`logs` of {LINES:,} lines"] = _race(field, max(3, options.rounds // 6), "logs", "life")
        found[f"`logs -n 100` of {LINES:,} lines"] = _race(field, options.rounds, "logs", "-n", "100", "life")
    rows: Rows = [compare(figure, results, "docker", AT_MOST) for figure, results in found.items()]
    return rows, [f"{figure}, {name}: {result}" for figure, results in found.items() for name, result in results.items()]


def stats(field: Field, options: argparse.Namespace) -> tuple[Rows, list[str]]:
    """One look at what many containers use."""
    for call, _command, _environment in _engines(field).values():
        for _ in range(options.containers):
            call("run", "-d", "--network", "none", IMAGE, "sleep", "100000")
    try:
        results = _race(field, max(3, options.rounds // 6), "stats", "--no-stream")
    finally:
        _remove_all(field)
    figure = f"`stats --no-stream` of {options.containers} containers"
    return [compare(figure, results, "docker", AT_MOST)], [f"{figure}, {name}: {result}" for name, result in results.items()]


def idle(field: Field, options: argparse.Namespace) -> tuple[Rows, list[str]]:
    """All the memory that an engine takes for many idle containers: its daemons, and what watches over each."""
    count = options.idle_containers
    try:
        for _ in range(count):
            field.bulle("run", "-d", "--network", "none", IMAGE, "sleep", "100000")
        home = str(field.bulle.home)  # monitors are forks of the spawner, and are called as it is
        own = sum(map(_proportional_kib, _processes(lambda words: "--spawner" in words and home in words)))
        field.bulle("rm", "-f", *field.bulle("ps", "-aq").split())
        if field.docker is None:
            raise Failed("docker is not installed")
        for _ in range(count):
            field.docker("run", "-d", "--network", "none", IMAGE, "sleep", "100000")
        other = sum(map(_proportional_kib, [*shim_pids(field.directory), *_docker_daemons(field.directory)]))
    finally:
        _remove_all(field)
    figure = f"memory of the engine with {count} idle containers"
    return [(figure, f"{own / 1024:.0f} MiB", f"docker: {other / 1024:.0f} MiB", own / other, 0.25)], []


def _remove_all(field: Field) -> None:
    if names := field.bulle("ps", "-aq").split():
        field.bulle("rm", "-f", *names)
    if field.docker and (names := field.docker("ps", "-aq").stdout.split()):
        field.docker("rm", "-f", *names)


def _docker_daemons(directory: Path) -> list[int]:
    return _processes(lambda words: words[0].rpartition("/")[2] in ("dockerd", "containerd") and any(str(directory) in word for word in words))


def _processes(chosen: Callable[[list[str]], bool]) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").rstrip("\0").split("\0")
        except OSError:
            continue
        if words[0] and chosen(words):
            found.append(int(path.parent.name))
    return found


def _proportional_kib(pid: int) -> int:
    """A process's memory, of shared pages its part. proc_pid_smaps(5)"""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
