"""The part of the benchmark about the Docker Engine API: requests to ``bulle serve`` and to dockerd over their unix sockets, docker-py's lives of
containers, and what a server takes that has nothing to do.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import docker
from docker.client import DockerClient
from figures import IMAGE, Field, Rows, compare
from measuring import Failed, Result, interleaved, unique_kib

from bulle_testing import places
from bulle_testing.socket_clients import UnixConnection, serving

CONTAINERS = 100
REQUESTS = {"/_ping": 1000, "/containers/json?all=1": 60}
"""How many requests of each kind one client makes in a round, one after the other on one connection."""
PARTS = ("create", "start", "wait", "remove")


@contextmanager
def _sockets(field: Field) -> Iterator[dict[str, Path]]:
    """The sockets of both servers."""
    if field.docker is None:
        raise Failed("dockerd is not installed")
    with serving(field.bulle.home, path=field.directory / "bulle.sock") as served:
        yield {"bulle": served.path, "docker": field.docker.socket_path}


@contextmanager
def _clients(paths: dict[str, Path]) -> Iterator[dict[str, DockerClient]]:
    """docker-py for each."""
    found = {name: docker.DockerClient(base_url=f"unix://{path}", timeout=120) for name, path in paths.items()}
    try:
        yield found
    finally:
        for client in found.values():
            client.close()


def sockets(field: Field, options: argparse.Namespace) -> tuple[Rows, list[str]]:
    """All of it."""
    rows: Rows = []
    details: list[str] = []
    with _sockets(field) as paths, _clients(paths) as clients:
        rows.append(_memory(field, paths))
        for part in (_lives, _requests):
            found, said = part(paths, clients, options)
            rows += found
            details += said
    return rows, details


def _lives(_paths: dict[str, Path], clients: dict[str, DockerClient], options: argparse.Namespace) -> tuple[Rows, list[str]]:
    """create, start, wait and remove of a container that runs ``true``, by docker-py; all of them and each."""
    took: dict[str, dict[str, list[float]]] = {name: {part: [] for part in PARTS} for name in clients}

    def live(name: str) -> float:
        api, moments = clients[name].api, [time.perf_counter()]
        settings = api.create_host_config(network_mode="none")
        made = api.create_container(IMAGE, ["true"], host_config=settings)["Id"]
        for act in (lambda: api.start(made), lambda: api.wait(made), lambda: api.remove_container(made)):
            moments.append(time.perf_counter())
            act()
        moments.append(time.perf_counter())
        for part, begin, end in zip(PARTS, moments, moments[1:], strict=False):
            took[name][part].append((end - begin) * 1000)
        return (moments[-1] - moments[0]) * 1000

    results = interleaved({name: lambda name=name: live(name) for name in clients}, options.rounds)
    rows = [compare("create, start, wait and remove by docker-py", results, "docker", 1 / 5)]
    rows += [compare(f"of it {part}", {name: Result(took[name][part][2:]) for name in took}, "docker", None) for part in PARTS]
    return rows, [f"create to remove by docker-py, {name}: {result}" for name, result in results.items()]


def _requests(paths: dict[str, Path], clients: dict[str, DockerClient], options: argparse.Namespace) -> tuple[Rows, list[str]]:
    """Requests of one client, with a hundred containers there; how many a second, and what one in a hundred takes at least."""
    rows: Rows = []
    details: list[str] = []
    made = {name: [_created(client, number) for number in range(CONTAINERS)] for name, client in clients.items()}
    try:
        for path, count in REQUESTS.items():
            spans: dict[str, list[float]] = {name: [] for name in paths}

            def ask(name: str, path: str = path, count: int = count, spans: dict[str, list[float]] = spans) -> float:
                connection = UnixConnection(paths[name], 60)
                try:
                    found = [_asked(connection, path) for _ in range(count)]
                finally:
                    connection.close()
                spans[name] += found
                return statistics.mean(found)

            interleaved({name: lambda name=name, ask=ask: ask(name) for name in paths}, max(3, options.rounds // 5))
            own, other = (spans[name][count * 2 :] for name in ("bulle", "docker"))
            a_second = [1000 / statistics.mean(found) for found in (own, other)]
            last = [statistics.quantiles(found, n=100)[98] for found in (own, other)]
            figure = f"`GET {path}`" + ("" if path == "/_ping" else f" with {CONTAINERS} containers")
            at_most = None if path == "/_ping" else 1.0
            rows.append(
                (f"{figure}, requests of one client", f"{a_second[0]:,.0f} /s", f"docker: {a_second[1]:,.0f} /s", a_second[1] / a_second[0], at_most)
            )
            rows.append((f"{figure}, 99th of a hundred", f"{last[0]:.2f} ms", f"docker: {last[1]:.2f} ms", last[0] / last[1], at_most))
            details.append(f"{figure}: medians {statistics.median(own):.2f} and {statistics.median(other):.2f} ms")
    finally:
        for name, client in clients.items():
            for identifier in made[name]:
                client.api.remove_container(identifier, force=True)
    return rows, details


def _created(client: DockerClient, number: int) -> str:
    """Every tenth runs."""
    settings = client.api.create_host_config(network_mode="none")
    made: str = client.api.create_container(IMAGE, ["sleep", "100000"], name=f"one-of-many-{number}", host_config=settings)["Id"]
    if number % 10 == 0:
        client.api.start(made)
    return made


def _asked(connection: http.client.HTTPConnection, path: str) -> float:
    began = time.perf_counter()
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    took = (time.perf_counter() - began) * 1000
    if answer.status != 200 or (path != "/_ping" and len(json.loads(body)) != CONTAINERS):
        raise Failed(f"GET {path}: {answer.status} {body[:200]!r}")
    return took


def _memory(field: Field, paths: dict[str, Path]) -> tuple[str, str, str, float | None, float | None]:
    """What would come back if the server and what belongs to it ended, while nothing runs."""
    own = unique_kib(_listener(paths["bulle"])) + unique_kib(places.spawner_pid(field.bulle.home))
    daemon = _listener(paths["docker"])
    children = Path(f"/proc/{daemon}/task/{daemon}/children").read_text().split()
    threads = [word for task in Path(f"/proc/{daemon}/task").iterdir() for word in (task / "children").read_text().split()]
    other = unique_kib(daemon) + sum(unique_kib(int(pid)) for pid in {*children, *threads})
    figure = "memory of its own, nothing running: server and spawner against dockerd and containerd"
    return figure, f"{own / 1024:.1f} MiB", f"docker: {other / 1024:.1f} MiB", own / other, 0.6


def _listener(path: Path) -> int:
    """Who listens there, told by the kernel."""
    with socket.socket(socket.AF_UNIX) as connection:
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            connection.connect(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)
        pid: int = int.from_bytes(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], "little")
        return pid
