"""Compose and testcontainers on networks of their own, through ``bulle serve``: each case is asked of a dockerd with its own bridge too, in a network
namespace, and both must come out the same. The first Compose is Docker's plugin, the second Debian's docker-compose, which is docker-py.
"""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import DockerException

from bulle_testing import leaks, tiers
from bulle_testing.compose_peer import DockerCompose
from bulle_testing.networking import networked
from bulle_testing.peers import private_docker
from bulle_testing.running import Machine, wait_for
from bulle_testing.socket_clients import Served, serving

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.programs("dockerd", "docker", "containerd", "runc", "iptables", "unshare", "nsenter"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),  # of docker-py
]

FILE = """
services:
  web:
    build: {context: app, args: {WORD: built}}
    networks: {front: {}, back: {aliases: [www]}}
    depends_on: {db: {condition: service_healthy}}
    environment: {FROM_SHELL: "${SHELL_WORD:-nothing}", FIXED: one}
    ports: ["127.0.0.1::80"]
  db:
    image: busybox
    command: [sh, -c, "touch /data/ready; exec sleep 1000"]
    networks: {back: {aliases: [database]}}
    volumes: ["data:/data", "./given:/given:ro"]
    tmpfs: [/scratch]
    healthcheck: {test: [CMD, test, -f, /data/ready], interval: 1s}
    labels: {kind: database}
    read_only: true
    stop_grace_period: 0s
    stop_signal: SIGKILL
  once:
    image: busybox
    command: [sh, -c, "echo out; echo err >&2; exit 3"]
    networks: [back]
    profiles: [extra]
networks:
  front: {}
  back: {internal: true, labels: {a: b}, ipam: {config: [{subnet: 10.117.5.0/24}]}}
volumes:
  data: {labels: {c: d}}
"""
CONTAINERFILE = """FROM busybox
ARG WORD=none
RUN mkdir /www && echo $WORD >/www/index.html
STOPSIGNAL SIGKILL
CMD ["sh", "-c", "echo serving; exec httpd -f -p 80 -h /www"]
"""
FETCH = "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 3 www 80 | tail -n 1 | grep ."  # the static wget cannot resolve names
PROJECT = "com.docker.compose.project"


@dataclass
class Side:
    """One daemon. ``enter`` is what a command begins with that stands in the network of its published ports."""

    served: Served
    client: docker.DockerClient
    place: Path
    enter: Sequence[str]

    def __call__(self, *command: str, check: bool = True, timeout_s: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
        """A program that uses this daemon, in the directory of this side's files."""
        chosen = {"DOCKER_HOST": self.served.address, "DOCKER_BUILDKIT": "0", "COMPOSE_DOCKER_CLI_BUILD": "0", "COMPOSE_PROJECT_NAME": "shop"}
        settings = {"DOCKER_CONFIG": f"{self.place}/settings", "HOME": str(self.place), "PATH": tiers.SEARCH_PATH, "LC_ALL": "C.UTF-8"}
        line = [*self.enter, *command]
        done = subprocess.run(
            line, cwd=self.place, env=chosen | settings | environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=timeout_s
        )
        assert not check or done.returncode == 0, f"{line} ended with {done.returncode}: {done.stdout} {done.stderr}"
        return done

    def fetched(self, address: str) -> str:
        """What a published port answers, once it does."""
        script = f"import urllib.request; print(urllib.request.urlopen('http://{address}/', timeout=5).read().decode().strip())"
        wait_for(lambda: self(sys.executable, "-c", script, check=False).returncode == 0, f"{address} answers")
        return self(sys.executable, "-c", script).stdout

    def clear(self) -> None:
        """Remove everything but the image that all begin with."""
        for container in self.client.containers.list(all=True):
            with suppress(DockerException):
                container.remove(force=True, v=True)
        self.client.networks.prune()
        for volume in self.client.volumes.list():
            volume.remove()
        for image in self.client.images.list():
            for tag in image.tags or [image.id]:
                if tag != "busybox:latest":
                    self.client.images.remove(tag, force=True)


Entered = tuple[Served, Sequence[str]]


@pytest.fixture(scope="module")
def sockets(module_machine: Machine, run_directory: Path, busybox_image: Path) -> Iterator[tuple[Entered, Entered]]:
    """A dockerd with networks, and ours, with the same image."""
    directory = run_directory / "docker-compose"
    leaks.session_places.add(str(directory))
    enter = ("unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh")
    with private_docker(directory, enter, networks=True) as command, serving(module_machine.home, BULLE_NETWORK="bridge") as ours:
        command("load", "-i", str(busybox_image))
        inside = ("nsenter", f"--net=/proc/{(directory / 'pid').read_text().strip()}/ns/net")
        yield (Served(command.socket_path), inside), (ours, ())


@pytest.fixture
def both(sockets: Any, box: Machine, tmp_path: Path, docker_compose: DockerCompose) -> Iterator[tuple[Side, Side]]:
    """Both sides, each with files of its own; what a test leaves is removed."""
    sides = []
    for name, (served, enter) in zip(("docker", "bulle"), sockets, strict=True):
        place = tmp_path / name
        (place / "settings/cli-plugins").mkdir(parents=True)
        (place / "settings/cli-plugins/docker-compose").symlink_to(docker_compose.program)
        (place / "app").mkdir()
        (place / "app/Dockerfile").write_text(CONTAINERFILE)
        (place / "given").mkdir()
        (place / "given/file").write_text("of the host\n")
        (place / "compose.yaml").write_text(FILE)
        sides.append(Side(served, docker.DockerClient(base_url=served.address, timeout=240), place, enter))
    with networked(box):
        try:
            yield sides[0], sides[1]
        finally:
            for side in sides:
                side.clear()
                side.client.close()
            gc.collect()


Compose = Callable[..., subprocess.CompletedProcess[str]]
PLUGIN, PYTHON = ("docker", "compose"), ("docker-compose",)


@pytest.fixture(params=[PLUGIN, PYTHON], ids=["plugin", "docker-compose"])
def program(request: pytest.FixtureRequest) -> Sequence[str]:
    """Either Compose."""
    tiers.need("docker-compose")
    return tuple(str(tiers.program(request.param[0])) if number == 0 else word for number, word in enumerate(request.param))


def compose(side: Side, program: Sequence[str]) -> Compose:
    """Compose on one side's file."""
    return lambda *arguments, **options: side(*program, *arguments, **options)


def members(side: Side) -> list[tuple[str, str, str]]:
    """The containers of the project: service and number, status, health of what runs."""
    found = []
    for one in side.client.containers.list(all=True, filters={"label": f"{PROJECT}=shop"}):
        labels = one.labels
        health = one.attrs["State"].get("Health", {}).get("Status", "") if one.status == "running" else ""
        found.append((f"{labels['com.docker.compose.service']} {labels['com.docker.compose.container-number']}", one.status, health))
    return sorted(found)


def up_and_down(side: Side, run: Compose) -> Any:
    run("up", "-d", SHELL_WORD="said")
    states = members(side)
    port = run("port", "web", "80").stdout.strip()
    said = [
        run("exec", "-T", "web", "sh", "-c", "echo $FROM_SHELL $FIXED").stdout,
        run("exec", "-T", "web", "sh", "-c", "ping -c1 -w5 database >/dev/null && ping -c1 -w5 db >/dev/null && echo both names").stdout,
        run("exec", "-T", "db", "sh", "-c", FETCH + "; cat /given/file; touch /x 2>/dev/null || touch /scratch/x && echo both").stdout,
        run("exec", "-T", "db", "sh", "-c", "exit 7", check=False).returncode,
        "serving" in run("logs", "web").stdout,
        run("ps", "-q", "web").stdout.strip() == side.client.containers.list(filters={"label": "com.docker.compose.service=web"})[0].id,
        port.startswith("127.0.0.1:"),
        side.fetched(port),
    ]
    networks = sorted((one.name, one.attrs["Internal"], one.attrs["Labels"].get("a")) for one in side.client.networks.list(names=["shop_"]))
    back = side.client.networks.get("shop_back").attrs["IPAM"]["Config"][0]["Subnet"]
    volumes = [(one.name, one.attrs["Labels"].get("c")) for one in side.client.volumes.list()]
    run("down", "-v", "--rmi", "local")
    tags = [one.tags for one in side.client.images.list() if one.tags]
    return states, said, networks, back, volumes, tags, members(side), side.client.networks.list(names=["shop_"]), side.client.volumes.list()


def lives(side: Side, run: Compose) -> Any:
    run("up", "-d", "db")
    states = [[one[:2] for one in members(side)]]
    for words in (("pause",), ("unpause",), ("restart", "-t", "0"), ("kill",), ("start",), ("stop", "-t", "0")):
        run(*words)
        states.append([one[:2] for one in members(side)])  # dockerd takes a pause for bad health
    run("rm", "-f")
    return states, members(side)


def once(side: Side, run: Compose) -> Any:
    done = run("run", "--rm", "-T", "once", check=False)
    other = run("run", "--rm", "-T", "-e", "A=b", "--entrypoint", "sh", "once", "-c", "echo $A; exit 4", check=False)
    forward = run("--profile", "extra", "up", "--exit-code-from", "once", "once", check=False)
    return done.returncode, done.stdout, "err" in done.stderr, other.returncode, other.stdout, forward.returncode, members(side)


def scaled(side: Side, run: Compose) -> Any:
    text = (side.place / "compose.yaml").read_text()
    run("up", "-d", "--scale", "db=3")
    three = members(side)
    run("up", "-d", "--scale", "db=1")
    before = {one.id for one in side.client.containers.list()}
    (side.place / "compose.yaml").write_text(text.replace("FIXED: one", "FIXED: two"))
    run("up", "-d")
    after = {one.id for one in side.client.containers.list()}
    fixed = run("exec", "-T", "web", "sh", "-c", "echo $FIXED").stdout
    (side.place / "compose.yaml").write_text(re.sub(r"  web:.*?  db:", "  db:", text, flags=re.DOTALL))
    run("up", "-d", "--remove-orphans")
    return three, len(before), len(before & after), fixed, members(side)


CASES = (up_and_down, lives, once, scaled)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_compose_does_the_same(both: tuple[Side, Side], program: Sequence[str], case: Callable[[Side, Compose], Any]) -> None:
    theirs, ours = (case(side, compose(side, program)) for side in both)
    assert ours == theirs
    assert case is not up_and_down or ours[1] == ["said one\n", "both names\n", "built\nof the host\nboth\n", 7, True, True, True, "built\n"]


def test_what_the_plugin_alone_knows(both: tuple[Side, Side]) -> None:
    def use(side: Side) -> Any:
        run = compose(side, PLUGIN)
        run("up", "-d", "--wait", "db")
        (side.place / "file").write_text("copied\n")
        run("cp", "file", "db:/data/file")
        listed = json.loads(run("ls", "--format", "json").stdout)
        shown = json.loads(run("ps", "--format", "json").stdout)
        top = run("top", "db").stdout.split()
        found = [run("exec", "-T", "db", "cat", "/data/file").stdout, run("images", "-q").stdout.count("\n"), "sleep" in top]
        side.client.containers.get("shop-db-1").kill()
        ended = run("wait", "db", check=False).returncode
        return found, listed[0]["Name"], listed[0]["Status"], [shown[key] for key in ("Name", "Service", "State", "Health", "Image")], ended

    theirs, ours = both
    assert use(ours) == use(theirs)


def failure(act: Callable[[], object]) -> int:
    """The status of what a call raises."""
    with pytest.raises(docker.errors.APIError) as raised:
        act()
    return int(raised.value.response.status_code)


def test_docker_py_on_networks(both: tuple[Side, Side]) -> None:
    def use(side: Side) -> Any:
        addresses = docker.types.IPAMConfig(pool_configs=[docker.types.IPAMPool("10.117.6.0/24")])
        network = side.client.networks.create("shop", labels={"a": "b"}, ipam=addresses)
        command = ["sh", "-c", "mkdir /www; echo hello >/www/index.html; exec httpd -f -p 80 -h /www"]
        web = side.client.containers.run("busybox", command, detach=True, name="web", network="shop", ports={"80/tcp": ("127.0.0.1", None)})
        other = side.client.containers.run("busybox", ["sleep", "1000"], detach=True, name="other")
        fetch = ["sh", "-c", FETCH]
        apart = other.exec_run(fetch).exit_code != 0
        network.disconnect(web)
        network.connect(web, aliases=["www"], ipv4_address="10.117.6.77")
        network.connect(other)
        wait_for(lambda: other.exec_run(fetch).exit_code == 0, "the name is known")
        together = other.exec_run(fetch).output
        web.reload()
        network.reload()
        address = web.attrs["NetworkSettings"]["Networks"]["shop"]["IPAddress"]
        names = sorted(one["Name"] for one in network.attrs["Containers"].values())
        refused = [
            failure(network.remove), failure(side.client.networks.get("bridge").remove), failure(lambda: network.connect(other)),
            failure(lambda: side.client.networks.create("host")), failure(lambda: side.client.networks.create("shop", check_duplicate=True)),
        ]  # fmt: skip
        bound = web.attrs["NetworkSettings"]["Ports"]["80/tcp"][0]
        return apart, together, address, names, refused, bound["HostIp"], side.fetched(f"127.0.0.1:{bound['HostPort']}")

    theirs, ours = both
    assert use(ours) == use(theirs)


TESTCONTAINERS = (
    f"FETCH = {FETCH!r}\n"
    + """
import urllib.request
from testcontainers.compose import DockerCompose
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network
from testcontainers.core.waiting_utils import wait_container_is_ready

COMMAND = ["sh", "-c", "mkdir /www; echo hello >/www/index.html; exec httpd -f -p 80 -h /www"]
with Network() as network:
    made = DockerContainer("busybox:latest").with_command(COMMAND).with_exposed_ports(80).with_network(network).with_network_aliases("www")
    with made as web, DockerContainer("busybox:latest").with_command(["sleep", "1000"]).with_network(network) as other:
        @wait_container_is_ready()
        def fetch():
            return urllib.request.urlopen(f"http://127.0.0.1:{web.get_exposed_port(80)}/", timeout=5).read()
        print(fetch(), other.exec(["sh", "-c", FETCH]))
with DockerCompose(".", services=["db"], wait=True) as compose:
    print(compose.exec_in_container(["cat", "/given/file"], "db"), [one.Service for one in compose.get_containers()])
"""
)


def test_testcontainers_on_networks(both: tuple[Side, Side]) -> None:
    def use(side: Side) -> Any:
        done = side(sys.executable, "-W", "ignore", "-c", TESTCONTAINERS, TESTCONTAINERS_RYUK_DISABLED="true")
        return done.stdout, side.client.containers.list(all=True), side.client.networks.list(names=["shop"])

    theirs, ours = both
    found = use(ours)
    assert found == use(theirs)
    assert found[0].splitlines()[0] == "b'hello\\n' BytesExecResult(exit_code=0, output=b'hello\\n')"
