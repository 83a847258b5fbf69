"""Logs beside Docker's: its reader reads our files, ours says what its says, and files are cut at the same sizes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from bulle_testing.peers import Docker
from conftest import BulleCommand

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.programs("dockerd", "docker", "containerd", "runc")]

SCRIPT = """i=0; while [ $i -lt 40 ]; do i=$((i+1)); echo line $i; echo problem $i >&2; done
    printf 'a\"\\\\b\\t<é>\\n'; head -c 20000 /dev/zero | tr '\\0' x"""
FLAGS = ("--network", "none", "-l", "tier=web", "-e", "MODE=a b", "--log-opt", "labels=tier", "--log-opt", "env=MODE", "--log-opt", "tag={{.Name}}")


@pytest.fixture
def both(dockerd: Docker, bulle: BulleCommand, busybox_image: Path) -> Iterator[tuple[Docker, BulleCommand]]:
    """Docker and Bulle with one ended container each of the same name."""
    for engine in (dockerd, bulle):
        engine("load", "-q", "-i", str(busybox_image), check=True)
        engine("run", "--name", "said", *FLAGS, "--log-opt", "max-size=1k", "--log-opt", "max-file=100", "busybox", "sh", "-c", SCRIPT, check=True)
    try:
        yield dockerd, bulle
    finally:
        for engine in (dockerd, bulle):
            with suppress(AssertionError):
                engine("rm", "-f", "said")


@pytest.mark.parametrize("arguments", ["", "--details", "-n 0", "-n 1", "-n -1", "-n much", "--since 1h", "--until 1h"])
def test_output_is_docker_s(both: tuple[Docker, BulleCommand], arguments: str) -> None:
    docker, bulle = both
    said, expected = (engine("logs", *arguments.split(), "said", check=False) for engine in (bulle, docker))
    assert (said.returncode, said.stdout, said.stderr) == (expected.returncode, expected.stdout, expected.stderr)


def test_docker_reads_our_files(both: tuple[Docker, BulleCommand]) -> None:
    docker, bulle = both
    theirs = Path(docker("inspect", "-f", "{{.LogPath}}", "said").stdout.strip())
    ours = Path(bulle("inspect", "-f", "{{.LogPath}}", "said", check=True).stdout.strip())
    for path in theirs.parent.glob(f"{theirs.name}*"):
        path.unlink()
    for path in ours.parent.glob("container.log*"):
        (theirs.parent / (theirs.name + path.name.removeprefix("container.log"))).write_bytes(path.read_bytes())
    for arguments in ((), ("-t",), ("--details", "-t"), ("-n", "17", "-t")):
        read, said = docker("logs", *arguments, "said"), bulle("logs", *arguments, "said")
        assert (read.stdout, read.stderr) == (said.stdout, said.stderr), arguments
        assert "xxxx" in read.stdout


@pytest.mark.parametrize(
    "flags",
    [
        ("max-size=0",), ("max-size=much",), ("max-file=0",), ("compress=maybe",), ("nosuch=1",), ("mode=sometimes",), ("max-size",),
        ("max-size=1m", "compress=true", "max-file=1"),
    ],
)  # fmt: skip
def test_docker_refuses_the_same(both: tuple[Docker, BulleCommand], flags: tuple[str, ...]) -> None:
    for engine in both:
        options = [f"--log-opt={flag}" for flag in flags]
        refused = engine("run", "--rm", "--network", "none", *options, "busybox", "true", check=False)
        assert refused.returncode == 125, (engine, refused)


def test_inspect_shows_the_same(both: tuple[Docker, BulleCommand]) -> None:
    docker, bulle = both
    form = "{{json .HostConfig.LogConfig}}"
    assert bulle("inspect", "-f", form, "said").stdout == docker("inspect", "-f", form, "said").stdout
    assert re.fullmatch(r"/.*\n", bulle("inspect", "-f", "{{.LogPath}}", "said").stdout)
