"""The part of the benchmark about apps: one Compose file of ten services, by ``bulle compose`` and by Debian's docker-compose with a dockerd that has
its own bridge, in a network namespace.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from contestants import Bulle, docker_command
from figures import IMAGE, Field, Rows, compare
from measuring import SETTLE_S, Failed, Result, interleaved, timer

from bulle_testing import peers, places
from bulle_testing.compose_peer import fetched

SERVICES = 10
PARTS = {"up": ("up -d of ten services from a local image", 0.2), "again": ("up -d again, nothing to do", 0.1), "down": ("down of ten services", 0.3)}
RECOVERY_MS = 500
"""What a killed replica may take to be back, beyond its own start."""

# Ends at once when it is told to, as programs should.
_SLEEP = "trap exit TERM; sleep 100000 & wait"


@dataclass
class Composer:
    """A program that reads Compose files, what it needs to be told, and its engine's command."""

    command: list[str]
    engine: list[str]
    environment: dict[str, str]
    directory: Path

    def __call__(self, *arguments: str) -> str:
        """Run it on the files of its directory, unmeasured."""
        return self.said([*self.command, *arguments])

    def said(self, command: list[str]) -> str:
        """What a command prints."""
        done = subprocess.run(command, env={**os.environ, **places.QUIET_NETWORK, **self.environment}, capture_output=True, text=True)
        if done.returncode:
            raise Failed(f"`{' '.join(command)}` ended with {done.returncode}: {done.stderr.strip()[-500:]}")
        return done.stdout


def _files(directory: Path) -> None:
    """An app of ten services, and one of one service that says when it starts."""
    (directory / "beats").mkdir(parents=True)
    (directory / "beats").chmod(0o777)
    service = f"    image: {IMAGE}\n    command: [sh, -c, '{_SLEEP}']\n"
    ten = "".join(f"  s{number}:\n{service}" for number in range(SERVICES))
    (directory / "compose.yaml").write_text(f"name: bench\nservices:\n{ten}")
    command = f"cat /proc/sys/kernel/random/uuid | (read name; echo > /beats/$$name); {_SLEEP}"
    heart = f"    image: {IMAGE}\n    restart: always\n    command: [sh, -c, '{command}']\n    volumes: ['./beats:/beats']\n"
    (directory / "heart.yaml").write_text(f"name: heart\nservices:\n  heart:\n{heart}")


@contextmanager
def _composers(field: Field) -> Iterator[dict[str, Composer]]:
    """Both, each with files of its own."""
    program = fetched()
    if field.docker is None:
        raise Failed("dockerd is not installed")
    for name in ("bulle", "docker"):
        _files(field.directory / f"apps-{name}")
    directory = field.directory / "apps-bulle"
    bulle: Bulle = field.bulle
    ours = Composer(bulle.command("compose"), bulle.command(), bulle.environment, directory)
    enter = ("unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh")
    with peers.private_docker(field.directory / "apps-docker-engine", enter) as docker:
        docker("load", "-i", str(field.directory / "busybox.tar"))
        theirs = Composer(
            [str(program)], docker_command(docker), {"DOCKER_HOST": f"unix://{docker.socket_path}"}, field.directory / "apps-docker"
        )
        yield {"bulle": ours, "docker": theirs}


def apps(field: Field, options: argparse.Namespace) -> tuple[Rows, list[str]]:
    """All of it."""
    rows: Rows = []
    details: list[str] = []
    with _composers(field) as composers:
        for part in (_lives, _recovery):
            found, said = part(composers, options)
            rows += found
            details += said
    return rows, details


def _lives(composers: dict[str, Composer], options: argparse.Namespace) -> tuple[Rows, list[str]]:
    """up, up again, down."""
    took: dict[str, dict[str, list[float]]] = {name: {part: [] for part in PARTS} for name in composers}
    with timer() as clock:

        def live(name: str) -> float:
            one = composers[name]
            file = ("-f", str(one.directory / "compose.yaml"))
            for part, words in (("up", ("up", "-d")), ("again", ("up", "-d")), ("down", ("down",))):
                time.sleep(SETTLE_S)
                took[name][part].append(clock.run([*one.command, *file, *words], one.environment))
            return sum(spans[-1] for spans in took[name].values())

        results = interleaved({name: lambda name=name: live(name) for name in composers}, options.rounds)
    rows: Rows = []
    details: list[str] = []
    for part, (figure, at_most) in PARTS.items():
        found = {name: Result(took[name][part][2:], results[name].failure) for name in composers}
        rows.append(compare(f"`compose` {figure}", found, "docker", at_most))
        details += [f"{figure}, {name}: {result}" for name, result in found.items()]
    return rows, details


def _beats(one: Composer) -> int:
    return len(os.listdir(one.directory / "beats"))


def _until_beat(one: Composer, before: int, began: float) -> float:
    """Milliseconds since ``began`` when the service has started once more."""
    while _beats(one) == before:
        if time.perf_counter() - began > 60:
            raise Failed("the killed replica did not come back")
        time.sleep(0.001)
    return (time.perf_counter() - began) * 1000


def _recovery(composers: dict[str, Composer], options: argparse.Namespace) -> tuple[Rows, list[str]]:
    """From the kill of a replica's process to the first word of the next one, and what its start takes by itself."""
    starts: dict[str, list[float]] = {name: [] for name in composers}

    def recover(name: str) -> float:
        one = composers[name]
        file = ("-f", str(one.directory / "heart.yaml"))
        one(*file, "create")
        before, began = _beats(one), time.perf_counter()
        one(*file, "start")
        starts[name].append(_until_beat(one, before, began))
        time.sleep(11)  # what has run for ten seconds is started again without a pause
        pid = int(one.said([*one.engine, "inspect", "-f", "{{.State.Pid}}", "heart-heart-1"]))
        before, began = _beats(one), time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        took = _until_beat(one, before, began)
        one(*file, "down")
        return took

    results = interleaved({name: lambda name=name: recover(name) for name in composers}, max(3, options.rounds // 2), warm_up=1)
    figure = "a killed replica is back"
    rows = [compare(figure, results, "docker", None)]
    details = [f"{figure}, {name}: {result}" for name, result in results.items()]
    details += [f"its own start, {name}: {Result(found[1:])}" for name, found in starts.items()]
    if (median := results["bulle"].median) is not None:
        beyond = median - statistics.median(starts["bulle"][1:])
        rows.append((f"{figure}, beyond its own start", f"{beyond:.2f} ms", f"{RECOVERY_MS} ms", beyond / RECOVERY_MS, 1.0))
    return rows, details
