"""The parts of the benchmark about networks: a start with a published port, many on one network, what passes through a port, names.

Both engines stand on machines of their own, network namespaces with a wire to a third that is the client, so that each has its own rules.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from contestants import Bulle, docker_command
from figures import IMAGE, Field, Rows, compare
from measuring import Failed, Result, Timer, interleaved, program

from bulle_testing import peers, places

SERVERS, SERVERS_NAME = "deb:bookworm+nginx-light,iperf3", "servers:latest"
MANY = 200
NGINX = (
    "daemon off; worker_processes 1; events {} http { access_log off; "
    'server { listen 80; location = /word { return 200 "hello"; } location / { root /var/www/html; index index.nginx-debian.html; } } }'
)
"""Requests for a word measure the way to the server, those for a file also the container's file system."""
CONNECTIONS = 32
SECONDS = 3


@dataclass
class Machine:
    """A network namespace that stands for a machine, and an engine on it: a call that is not measured, a whole command, its environment."""

    name: str
    address: str
    engine: Callable[..., str]
    command: Callable[..., list[str]]
    environment: dict[str, str]

    def inside(self, *words: str) -> list[str]:
        """A command on this machine."""
        return ["nsenter", f"--net=/run/netns/{self.name}", *words]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def _namespace(name: str) -> Iterator[str]:
    _ip("netns", "add", name)
    try:
        _ip("-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        _ip("netns", "delete", name)


def _wire(client: str, machine: str, number: int) -> str:
    """Connect a machine with the client; returns its address."""
    _ip("-n", client, "link", "add", f"wire{number}", "type", "veth", "peer", "name", "uplink", "netns", machine)
    _ip("-n", client, "address", "add", f"10.199.{number}.2/24", "dev", f"wire{number}")
    _ip("-n", machine, "address", "add", f"10.199.{number}.1/24", "dev", "uplink")
    _ip("-n", client, "link", "set", f"wire{number}", "up")
    _ip("-n", machine, "link", "set", "uplink", "up")
    _ip("-n", machine, "route", "add", "default", "via", f"10.199.{number}.2")
    return f"10.199.{number}.1"


@contextmanager
def _machines(field: Field) -> Iterator[tuple[str, dict[str, Machine]]]:
    """The client, and every engine that is installed on a machine of its own with the same images."""
    missing = [name for name in ("ip", "nsenter", "wrk", "iperf3", "dnsperf", "dockerd", "iptables") if not program(name)]
    if missing:
        raise Failed(f"not installed: {', '.join(missing)}")
    mark = os.getpid()
    with ExitStack() as stack:
        client = stack.enter_context(_namespace(f"bulle-c-{mark}"))
        machines: dict[str, Machine] = {}
        name = stack.enter_context(_namespace(f"bulle-b-{mark}"))
        address = _wire(client, name, 1)
        home = field.directory / "doors"
        home.mkdir(mode=0o700)
        stack.callback(places.close_home, home)
        bulle = Bulle(home)

        def call(*arguments: str) -> str:
            command = ["nsenter", f"--net=/run/netns/{name}", *bulle.command(*arguments)]
            environment = {key: value for key, value in places.environment(home).items() if key not in places.QUIET_NETWORK}
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise Failed(f"bulle {' '.join(arguments)}: {done.stderr}")
            return done.stdout

        machines["bulle"] = Machine(name, address, call, bulle.command, bulle.environment)
        archive = field.directory / "servers.tar"
        call("load", "-i", str(field.directory / "busybox.tar"))
        field.bulle("pull", "-q", SERVERS)  # where there is a way to Debian
        field.bulle("tag", SERVERS, SERVERS_NAME)
        field.bulle("save", "-o", str(archive), SERVERS_NAME)
        call("load", "-i", str(archive))
        other = stack.enter_context(_namespace(f"bulle-d-{mark}"))
        address = _wire(client, other, 2)
        enter = ["nsenter", f"--net=/run/netns/{other}"]
        docker = stack.enter_context(peers.private_docker(field.directory / "doors-docker", enter=enter))
        docker("load", "-i", str(field.directory / "busybox.tar"))
        docker("load", "-i", str(archive))
        machines["docker"] = Machine(
            other, address, lambda *arguments: docker(*arguments).stdout, lambda *arguments: docker_command(docker, *arguments), {}
        )
        yield client, machines


def doors(field: Field, options: argparse.Namespace) -> tuple[Rows, list[str]]:
    """All of it."""
    rows: Rows = []
    details: list[str] = []
    with _machines(field) as (client, machines):
        for part in (_starts, _many, _through_ports, _names):
            found, said = part(client, machines, options)
            rows += found
            details += said
    return rows, details


def _starts(_client: str, machines: dict[str, Machine], options: argparse.Namespace) -> tuple[Rows, list[str]]:
    """Whole commands, while another container keeps the network up."""
    with ExitStack() as stack:
        runs = {}
        for name, machine in machines.items():
            machine.engine("run", "-d", "--name", "stays", IMAGE, "sleep", "100000")
            timer = Timer(machine.inside())
            stack.callback(timer.close)
            command = machine.command("run", "--rm", "-p", "127.0.0.1:8080:80", IMAGE, "true")
            runs[name] = lambda timer=timer, command=command, machine=machine: timer.run(command, machine.environment)
        results: dict[str, Result] = interleaved(runs, options.rounds)
        for machine in machines.values():
            machine.engine("rm", "-f", "stays")
    figure = "`run --rm -p 127.0.0.1:8080:80 IMG true` on a bridge"
    return [compare(figure, results, "docker", 1 / 12)], [f"{figure}, {name}: {result}" for name, result in results.items()]


def _many(_client: str, machines: dict[str, Machine], _options: argparse.Namespace) -> tuple[Rows, list[str]]:
    """The start of the last of many containers on one network against that of the second ones."""
    machine = machines["bulle"]
    timer = Timer(machine.inside())
    try:
        commands = [machine.command("run", "-d", "--name", f"n{number}", IMAGE, "sleep", "100000") for number in range(MANY)]
        spans = [timer.run(command, machine.environment) for command in commands]
    finally:
        timer.close()
        machine.engine("rm", "-f", *[f"n{number}" for number in range(MANY)])
    first, last = statistics.median(spans[1:11]), statistics.median(spans[-10:])
    figure = f"start of the {MANY}th container on a network against the 2nd's (medians of ten)"
    return [(figure, f"{last:.1f} ms", f"{first:.1f} ms", last / first, 1.3)], []


def _faster(figure: str, found: dict[str, list[float]], unit: str, at_most: float = 1.0) -> tuple[str, str, str, float | None, float | None]:
    """A row of what is better when it is more: the ratio is the peer's against ours."""
    own, other = statistics.median(found["bulle"]), statistics.median(found["docker"])
    return figure, f"{own:,.0f} {unit}", f"docker: {other:,.0f} {unit}", other / own, at_most


def _through_ports(client: str, machines: dict[str, Machine], options: argparse.Namespace) -> tuple[Rows, list[str]]:
    """Requests of wrk to nginx and bytes of iperf3, from another machine and from this one."""
    rounds = max(3, options.rounds // 10)
    figures: dict[str, dict[str, list[float]]] = {}
    for machine in machines.values():
        start = f"echo '{NGINX}' > /tmp/nginx.conf; exec nginx -c /tmp/nginx.conf"
        machine.engine("run", "-d", "--name", "web", "-p", "0.0.0.0:8080:80", SERVERS_NAME, "sh", "-c", start)
        machine.engine("run", "-d", "--name", "pipe", "-p", "0.0.0.0:5201:5201", SERVERS_NAME, "iperf3", "-s")
    time.sleep(1)
    try:
        for _ in range(rounds):
            for name, machine in machines.items():
                for where, address, enter in (
                    ("from another machine", machine.address, ["nsenter", f"--net=/run/netns/{client}"]),
                    ("by localhost", "127.0.0.1", machine.inside()),
                ):
                    for what, path in (("a word", "/word"), ("a file", "/")):
                        wrk = [*enter, "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", f"http://{address}:8080{path}"]
                        figures.setdefault(f"requests for {what} through a port {where}", {}).setdefault(name, []).append(_requests(wrk))
                    iperf = [*enter, "iperf3", "-c", address, "-t", str(SECONDS), "-J"]
                    figures.setdefault(f"bytes through a port {where}", {}).setdefault(name, []).append(_megabits(iperf))
    finally:
        for machine in machines.values():
            machine.engine("rm", "-f", "web", "pipe")
    return [_faster(figure, found, "/s" if figure.startswith("requests") else "Mbit/s") for figure, found in figures.items()], []


def _requests(command: list[str]) -> float:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"Requests/sec:\s+([0-9.]+)", done.stdout)
    if found is None or "Non-2xx" in done.stdout:
        raise Failed(f"wrk: {done.stdout}")
    return float(found[1])


def _megabits(command: list[str]) -> float:
    done = subprocess.run(command, capture_output=True, text=True)
    document = json.loads(done.stdout)
    if "error" in document:
        raise Failed(f"iperf3: {document['error']}")
    return float(document["end"]["sum_received"]["bits_per_second"]) / 1e6


def _names(_client: str, machines: dict[str, Machine], options: argparse.Namespace) -> tuple[Rows, list[str]]:
    """Answers of the embedded name server to one container that asks for another."""
    questions = Path(os.environ.get("TMPDIR", "/tmp"), f"bulle-questions-{os.getpid()}")
    found: dict[str, list[float]] = {}
    try:
        questions.write_text("other A\n")
        for machine in machines.values():
            machine.engine("network", "create", "names")
            for name in ("asks", "other"):
                machine.engine("run", "-d", "--name", name, "--network", "names", IMAGE, "sleep", "100000")
        for _ in range(max(3, options.rounds // 10)):
            for name, machine in machines.items():
                pid = machine.engine("inspect", "-f", "{{.State.Pid}}", "asks").strip()
                command = ["nsenter", "-t", pid, "-n", "dnsperf", "-s", "127.0.0.11", "-d", str(questions), "-l", str(SECONDS), "-c", "4"]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                answers = re.search(r"Queries per second:\s+([0-9.]+)", done.stdout)
                if answers is None or "NOERROR" not in done.stdout:
                    raise Failed(f"dnsperf: {done.stdout}")
                found.setdefault(name, []).append(float(answers[1]))
    finally:
        questions.unlink(missing_ok=True)
        for machine in machines.values():
            with suppress(Failed, AssertionError):
                machine.engine("rm", "-f", "asks", "other")
                machine.engine("network", "rm", "names")
    return [_faster("answers of the name server", found, "/s")], []
