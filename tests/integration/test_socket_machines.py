"""Virtual machines through the socket: ``docker run --isolation vm``, Compose's ``isolation``, docker-py, and the label for who has no such word."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from bulle_testing import tiers
from bulle_testing.compose_peer import DockerCompose
from bulle_testing.running import Machine, wait_for
from bulle_testing.socket_clients import Served, serving

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.machines, pytest.mark.programs("docker")]

HERE = os.uname().release


@pytest.fixture(scope="module")
def server(module_machine: Machine, _guest_kernel: None) -> Iterator[Served]:
    """The module's home, served."""
    with serving(module_machine.home) as served:
        yield served


@pytest.fixture
def api(server: Served, box: Machine) -> Served:
    """The server, in a test that leaves no container."""
    return server


def test_docker_run_boots_a_machine(api: Served) -> None:
    flags = ("run", "--rm", "-i", "--network", "none", "--isolation", "vm", "busybox")
    done = api.docker(*flags, "sh", "-c", "uname -r; cat; echo wrong >&2; exit 42", input="typed\n", check=False)
    release, typed = done.stdout.splitlines()
    assert release != HERE
    assert (typed, done.stderr, done.returncode) == ("typed", "wrong\n", 42)
    assert api.docker(*flags, "/nope", check=False).returncode == 127


def test_a_machine_has_dockers_verbs(api: Served, tmp_path: Path) -> None:
    name = api.docker(
        "run", "-d", "--network", "none", "--isolation", "vm", "-m", "256m", "-v", "kept:/kept", "busybox", "sh", "-c", "echo up; sleep 1000"
    ).stdout.strip()
    shown = "{{.HostConfig.Isolation}} {{.State.Status}} {{.HostConfig.Memory}}"
    assert api.docker("inspect", "-f", shown, name).stdout == f"vm running {256 << 20}\n"
    wait_for(lambda: api.docker("logs", name).stdout == "up\n", "it has spoken")
    assert api.docker("exec", name, "uname", "-r").stdout.strip() != HERE
    (tmp_path / "file").write_text("content")
    api.docker("cp", f"{tmp_path}/file", f"{name}:/kept/file")
    api.docker("cp", f"{name}:/kept/file", f"{tmp_path}/back")
    assert (tmp_path / "back").read_text() == "content"
    assert "sleep 1000" in api.docker("top", name).stdout
    assert "256MiB" in api.docker("stats", "--no-stream", name).stdout
    api.docker("restart", "-t", "0", name)
    assert api.docker("exec", name, "cat", "/kept/file").stdout == "content"
    api.docker("rm", "-f", name)
    api.docker("volume", "rm", "kept")


def test_other_clients_ask_for_a_machine(api: Served, docker_compose: DockerCompose, tmp_path: Path) -> None:
    client = docker.DockerClient(base_url=api.address, timeout=240)
    try:
        for asked in ({"isolation": "vm"}, {"labels": {"bulle.isolation": "vm"}}):
            said = client.containers.run("busybox", ["uname", "-r"], remove=True, network_mode="none", **asked)
            assert said.decode().strip() not in ("", HERE)
    finally:
        client.close()
    (tmp_path / "compose.yaml").write_text("services: {one: {image: busybox, command: [uname, -r], isolation: vm, network_mode: none}}\n")
    environment = {"DOCKER_HOST": api.address, "HOME": str(tmp_path), "PATH": tiers.SEARCH_PATH}
    run = [str(docker_compose.program), "run", "--rm", "-T", "one"]
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=100)
    assert (done.returncode, done.stdout.strip() not in ("", HERE)) == (0, True), done.stderr
    subprocess.run([*run[:1], "down"], cwd=tmp_path, env=environment, check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=240)
