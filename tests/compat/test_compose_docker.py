"""``bulle compose`` beside docker compose on a dockerd: the same file, the same questions, the same form of answer and the same exit codes. And
docker compose on ``bulle serve``: it sees the app that ``bulle compose`` made, and uses it.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bulle_testing import leaks, tiers
from bulle_testing.apps import App, an_app
from bulle_testing.compose_peer import DockerCompose
from bulle_testing.peers import private_docker
from bulle_testing.running import Machine, wait_for
from bulle_testing.socket_clients import serving

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.programs("nft", "dockerd", "docker", "containerd", "runc", "iptables", "unshare")]

FILE = """
name: shop
services:
  web:
    image: busybox
    command: [sh, -c, "mkdir /www; echo page >/www/index.html; echo serving; exec httpd -f -p 80 -h /www"]
    ports: ["127.0.0.1::80", "127.0.0.1::53/udp"]
    depends_on: [db]
    stop_grace_period: 0s
  db:
    image: busybox
    command: [sh, -c, "echo hello; echo error >&2; trap 'exit 3' TERM; while :; do sleep 0.1; done"]
    volumes: ["data:/data"]
    scale: 2
    healthcheck: {test: [CMD, "true"], interval: 1s}
  once:
    image: busybox
    command: [sh, -c, "echo out; echo err >&2; exit 3"]
    profiles: [extra]
volumes:
  data:
"""

Compose = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def app(box: Machine, tmp_path: Path) -> Iterator[App]:
    with an_app(box, tmp_path / "shop", FILE) as made:
        yield made


def _docker(program: Path, directory: Path, socket: str, enter: Sequence[str] = ()) -> Compose:
    """Docker's program in a directory, with a daemon."""
    environment = {"DOCKER_HOST": socket, "HOME": str(directory), "PATH": tiers.SEARCH_PATH, "LC_ALL": "C.UTF-8", "COMPOSE_ANSI": "never"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        line = [*enter, str(program), *words]
        return subprocess.run(line, cwd=directory, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)

    return run


@pytest.fixture
def theirs(run_directory: Path, tmp_path: Path, docker_compose: DockerCompose, busybox_image: Path) -> Iterator[Compose]:
    """Docker compose on a dockerd with networks of its own."""
    directory = run_directory / "docker-verbs"
    leaks.session_places.add(str(directory))
    place = tmp_path / "theirs"
    place.mkdir()
    (place / "compose.yaml").write_text(FILE)
    enter = ("unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh")
    with private_docker(directory, enter, networks=True) as docker:
        docker("load", "-i", str(busybox_image))
        run = _docker(docker_compose.program, place, f"unix://{docker.socket_path}")
        yield run
        run("down", "-v", "-t", "0")


def shape(text: str) -> list[str]:
    """Lines without what differs from one daemon or moment to another: ids, times, sizes, ports, process ids, and how wide that makes a column."""
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)  # docker compose clears lines also where there is no terminal
    for pattern, shown in ((r"\b[0-9a-f]{64}\b|\b[0-9a-f]{12}\b", "ID"), (r"127\.0\.0\.1:\d+", "PLACE"), (r"[\d.]+(k|M)B\b", "SIZE")):
        text = re.sub(pattern, shown, text)
    text = re.sub(r"(Less than a|an?|About a|\d+) (second|minute)s?( ago)?", "TIME", text)
    text = re.sub(r"\d{4}-\d\d-\d\d[T ][\d:.]+Z?", "MOMENT", text)
    return [re.sub(r" {2,}", "  ", line).rstrip() for line in text.splitlines() if line.strip()]


def keys(line: str) -> set[str]:
    """Of a JSON object, or of the first of an array."""
    found = json.loads(line)
    return {*(found[0] if isinstance(found, list) else found)}


def answers(run: Compose) -> dict[str, Any]:
    """What a Compose says of the running app, comparable."""
    found: dict[str, Any] = {}

    def ask(*words: str, of: Callable[[str], Any] = shape) -> None:
        done = run(*words)
        found[" ".join(words)] = (done.returncode, of(done.stdout) if done.returncode == 0 else "")

    assert run("up", "-d", "--wait").returncode == 0
    wait_for(lambda: len(run("logs").stdout.splitlines()) == 5, "all have said something")
    ask("ps")
    ask("ps", "--format", "json", of=lambda text: keys(text.splitlines()[0]) - {"Isolation"})
    for words in (
        ("--services",), ("-q",), ("--format", "{{.Name}} {{.Service}} {{.State}} {{.Health}} {{.ExitCode}} {{.Image}}"), ("--status", "paused"),
        ("--filter", "status=running", "-q"), ("--format", "table {{.Name}}\t{{.Service}}"), ("web", "--no-trunc", "--format", "{{.Command}}"),
    ):  # fmt: skip
        ask("ps", *words)
    ask("images")
    ask("images", "--format", "json", of=keys)
    ask("ls", of=lambda text: [line.split()[:2] for line in text.splitlines()])
    ask("ls", "--format", "json", of=keys)
    ask("port", "web", "80")
    ask("port", "--protocol", "udp", "web", "53")
    ask("top", "web", of=lambda text: text.split()[:9])
    ask("logs", of=lambda text: sorted(shape(text)))
    ask("logs", "-t", "--tail", "1", "--index", "1", "web")
    ask("logs", "--no-log-prefix", "web")
    ask("exec", "-T", "--index", "2", "db", "echo", "hello")
    ask("exec", "-T", "db", "sh", "-c", "exit 7")
    ask("run", "--rm", "-T", "once")
    ask("run", "--rm", "-T", "--no-deps", "web", "echo", "hello")
    ask("version", "--format", "json", of=keys)
    ask("stats", "--no-stream", "--format", "json", "web", of=keys)
    for words in (
        ("ps", "none"), ("logs", "none"), ("exec", "-T", "none", "true"), ("port", "web", "81"), ("port", "--index", "9", "web", "80"),
        ("wait", "once"), ("cp", "a", "b"), ("cp", "none:/a", "b"), ("run", "-T", "none"), ("build", "none"), ("watch",), ("ps", "--none"), ("none",),
        ("-f", "none.yaml", "ps"), ("run", "-P", "-p", "80:80", "web"), ("exec", "web"), ("attach", "none"), ("ls", "--filter", "none=a"),
    ):  # fmt: skip
        ask(*words)
    run("stop", "-t", "1", "db")
    ask("ps", "-a", "--format", "{{.Name}} {{.State}} {{.ExitCode}}")
    ask("ls", "-a", of=lambda text: re.sub(r" {2,}.*", "", re.sub(r"^\S+ +", "", text.splitlines()[1])))
    ask("wait", "db")
    return found


def test_the_same_answers(app: App, theirs: Compose) -> None:
    ours, wanted = answers(app.run), answers(theirs)
    different = {question: (ours[question], answer) for question, answer in wanted.items() if ours[question] != answer}
    assert not different, "\n".join(f"{question}\n  ours {own}\n  docker {other}" for question, (own, other) in different.items())


def test_docker_compose_sees_the_same_app(app: App, docker_compose: DockerCompose) -> None:
    app("up", "-d", "--wait")
    with serving(app.net.home, BULLE_NETWORK="bridge") as served:
        run = _docker(docker_compose.program, app.directory, served.address)
        assert run("ps", "-q").stdout.split() == app("ps", "-q").split()
        for form in ("{{.Name}} {{.Service}} {{.State}} {{.Health}}", "{{.ID}} {{.Image}} {{.Ports}}"):
            assert sorted(run("ps", "--format", form).stdout.splitlines()) == sorted(app("ps", "--format", form).splitlines())
        assert json.loads(run("ls", "--format", "json").stdout) == json.loads(app("ls", "--format", "json"))
        assert run("port", "web", "80").stdout.strip() == app("port", "web", "80")
        assert run("exec", "-T", "--index", "2", "db", "hostname").stdout.strip() == app("exec", "--index", "2", "db", "hostname")
        assert run("stop", "-t", "1", "db").returncode == 0
        assert [one["State"] for one in app.rows("-a", "db")] == ["exited", "exited"]
        assert run("down", "-v").returncode == 0
    assert app("ps", "-aq") == "" and app("volumes", "-q") == ""
