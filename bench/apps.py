"""The figures of apps: ``up``, ``up`` with nothing to do and ``down`` of ten services from a local image, beside docker-compose with a dockerd.

``python bench/apps.py [--rounds N] [--services N]``: medians of interleaved rounds on this machine. Needs root, docker, dockerd and the network once,
for Debian's docker-compose. The dockerd is a private one in a network namespace of its own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from bulle_testing import compose_peer, peers, places

TARGETS = {"up": 0.2, "up, nothing to do": 0.1, "down": 0.3}
FILE = """name: bench
services:
"""
SERVICE = """  s{number}:
    image: busybox
    command: [sleep, "1000"]
    stop_grace_period: 0s
"""


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--services", type=int, default=10)
    options = parser.parse_args()
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=os.environ.get("BULLE_TEST_DIRECTORY", "/var/tmp"))))
        rootfs, archive, file = place / "rootfs", place / "busybox.tar", place / "compose.yaml"
        rootfs.mkdir()
        peers.make_busybox_rootfs(rootfs)
        peers.docker_archive(archive, [peers.pack(rootfs)], tags=["busybox:latest"])
        file.write_text(FILE + "".join(SERVICE.format(number=number) for number in range(options.services)))
        home = place / "home"
        home.mkdir(mode=0o700)
        stack.callback(places.close_home, home)
        docker = stack.enter_context(peers.private_docker(place / "docker", enter=("unshare", "--net"), networks=True))
        docker("load", "-i", str(archive))
        bulle = [*places.command_line(), "compose", "-f", str(file)]
        peer = [str(places.cache_directory() / f"docker-compose-{compose_peer._SUITE}"), "-f", str(file)]
        ours = places.environment(home)
        theirs = os.environ | {"DOCKER_HOST": f"unix://{docker.socket_path}"}
        subprocess.run([*places.command_line(), "load", "-i", str(archive)], env=ours, check=True, capture_output=True)
        figures = _rounds(options.rounds, lambda *words: _run([*bulle, *words], ours), lambda *words: _run([*peer, *words], theirs))
    print(f"| {options.services} services | Bulle | docker-compose with dockerd | ratio | target |\n| --- | --- | --- | --- | --- |")
    for name, (mine, other) in figures.items():
        print(f"| {name} | {mine * 1000:.0f} ms | {other * 1000:.0f} ms | {mine / other:.3f} | {TARGETS[name]} |")


def _rounds(count: int, ours: Callable[..., float], theirs: Callable[..., float]) -> dict[str, tuple[float, float]]:
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in TARGETS}
    for _ in range(count):
        for name, words in (("up", ("up", "-d")), ("up, nothing to do", ("up", "-d")), ("down", ("down",))):
            found[name].append((ours(*words), theirs(*words)))
    return {name: (statistics.median(one[0] for one in pairs), statistics.median(one[1] for one in pairs)) for name, pairs in found.items()}


def _run(command: list[str], environment: dict[str, str]) -> float:
    """Seconds that a command takes."""
    begin = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    seconds = time.perf_counter() - begin
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return seconds


if __name__ == "__main__":
    main()
