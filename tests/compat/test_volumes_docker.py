"""Volumes as Docker has them: what fills one and when, who goes with whom, whose mount wins, what listings and documents say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bulle_testing.layers import LayerTar
from bulle_testing.peers import Docker, docker_archive, pack
from conftest import BulleCommand

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.programs("dockerd", "docker", "containerd", "runc")]

Say = Callable[..., tuple[int, str]]
MOUNT_FIELDS = ("Type", "Name", "Destination", "Driver", "RW", "Propagation")
LISTING = "stat -c '%n %F %u:%g %a' /v /v/* /v/*/* | sort; readlink /v/link"


@pytest.fixture
def both(dockerd: Docker, bulle: BulleCommand, busybox_rootfs: Path, tmp_path: Path) -> Iterator[dict[str, Say]]:
    """Both engines with one image, whose /data is a VOLUME with something in it."""
    layer = LayerTar().directory("data", mode=0o2750, uid=7, gid=8).add("data/file", content=b"of the image", uid=1000, gid=1001, mode=0o640)
    layer.directory("data/sub", mode=0o1777).symlink("data/link", "/etc/passwd").add("data/sub/deep", uid=3).symlink("way", "data")
    archive = tmp_path / "image.tar"
    docker_archive(archive, [pack(busybox_rootfs), bytes(layer)], tags=["filled:1"], config={"Volumes": {"/data": {}}})

    def docker_says(*arguments: str) -> tuple[int, str]:
        done = dockerd(*arguments, check=False)
        return done.returncode, done.stdout

    def bulle_says(*arguments: str) -> tuple[int, str]:
        done = bulle(*arguments)
        return done.returncode, done.stdout

    engines = {"Docker": docker_says, "Bulle": bulle_says}
    for say in engines.values():
        assert say("load", "-i", str(archive))[0] == 0
    try:
        yield engines
    finally:
        for say in engines.values():
            if names := say("ps", "-aq")[1].split():
                say("rm", "-fv", *names)
            if names := say("volume", "ls", "-q")[1].split():
                say("volume", "rm", *names)
        dockerd("rmi", "filled:1", check=False)


def same(engines: dict[str, Say], *arguments: str, change: Callable[[str], Any] = str) -> Any:
    """Both end with the same code and print the same, once ``change`` has taken away what must differ."""
    said = {}
    for name, say in engines.items():
        code, text = say(*arguments)
        said[name] = (code, change(text))
    assert said["Bulle"] == said["Docker"], arguments
    return said["Bulle"]


def run(*arguments: str) -> tuple[str, ...]:
    return ("run", "--rm", "--network", "none", *arguments)


def test_what_fills_a_volume(both: dict[str, Say]) -> None:
    for target in ("/data", "/way", "/nowhere"):
        name = f"at{target.replace('/', '-')}"
        same(both, *run("-v", f"{name}:{target}", "filled:1", "true"))
        same(both, *run("-v", f"{name}:/v", "filled:1", "sh", "-c", LISTING))
    same(both, *run("-v", "bare:/data:nocopy", "filled:1", "ls", "-A", "/data"))
    same(both, *run("-v", "bare:/data", "filled:1", "ls", "-A", "/data"))
    same(both, *run("--mount", "source=mounted,target=/data,readonly", "filled:1", "sh", "-c", "ls /data; touch /data/x 2>&1"))
    same(both, "volume", "create", "made")
    same(both, *run("--mount", "source=made,target=/data,volume-nocopy", "filled:1", "sh", "-c", "ls -A /data; touch /data/x"))
    assert same(both, *run("-v", "made:/data", "filled:1", "ls", "-A", "/data"))[1] == "x\n"


def test_whose_mount_it_is(both: dict[str, Say], tmp_path: Path) -> None:
    (tmp_path / "of-the-host").touch()
    same(both, "create", "--name", "one", "--network", "none", "-v", "shared:/data", "-v", f"{tmp_path}:/host:ro", "filled:1", change=len)
    same(both, *run("--volumes-from", "one", "filled:1", "ls", "/data", "/host"))
    same(both, *run("--volumes-from", "one:ro", "filled:1", "sh", "-c", "touch /data/x 2>&1; touch /host/x 2>&1"))
    same(both, *run("--volumes-from", "one", "-v", f"{tmp_path}:/data", "filled:1", "ls", "/data"))
    same(both, *run("--tmpfs", "/data", "filled:1", "ls", "-A", "/data"))
    assert same(both, "volume", "ls", "-q")[1] == "shared\n", "what a run made without a name is gone"
    assert same(both, "volume", "rm", "shared")[0] == 1
    same(both, "rm", "-v", "one")
    same(both, "volume", "ls", "-q")
    same(both, "volume", "rm", "shared", "nosuch")
    same(both, "volume", "rm", "-f", "nosuch")


def test_documents_and_listings(both: dict[str, Say], tmp_path: Path) -> None:
    same(both, "volume", "create", "--label", "a=b", "--label", "c", "made")
    arguments = ("-v", "made:/one", "-v", f"{tmp_path}:/two:ro", "--mount", "type=tmpfs,target=/three", "-v", "other:/four:ro", "--tmpfs", "/five")
    same(both, "create", "--name", "user", "--network", "none", *arguments, "filled:1", change=len)

    def mounts(text: str) -> list[dict[str, object]]:
        chosen = [{key: one.get(key, "") for key in MOUNT_FIELDS} for one in json.loads(text) if one["Destination"] not in ("/data", "/five")]
        return sorted(chosen, key=lambda one: str(one["Destination"]))

    assert len(same(both, "inspect", "-f", "{{json .Mounts}}", "user", change=mounts)[1]) == 4
    for form in ("{{.Name}} {{.Driver}} {{.Scope}} {{json .Labels}} {{json .Options}}", "{{len .Mountpoint | lt 0}}"):
        same(both, "volume", "inspect", "-f", form, "made")
    same(both, "volume", "inspect", "nosuch")
    same(both, "volume", "ls", "--filter", "name=mad", change=lambda text: text.split())
    for test in ("label=a", "label=a=c", "dangling=true", "dangling=false", "driver=local", "name=oth"):
        same(both, "volume", "ls", "-q", "--filter", test, change=lambda text: [name for name in text.split() if len(name) < 64])
    same(both, "volume", "ls", "--format", '{{.Name}}:{{.Label "a"}}', "--filter", "label=a")
    for volume in ("made", "/two", str(tmp_path), "nosuch"):
        same(both, "ps", "-a", "--filter", f"volume={volume}", "--format", "{{.Names}} {{.LocalVolumes}}")
    same(both, "inspect", "--type", "volume", "-f", "{{.Name}}", "made")


REFUSED = (
    ("-v", ":/y"), ("-v", "a:b:c:d"), ("-v", "name:relative"), ("-v", "name:/y:wrong"), ("-v", "name:/y:ro,rw"), ("-v", "na/me:/y"),
    ("--mount", "target=/"), ("--mount", "type=bind,target=/x"), ("--mount", "type=tmpfs,source=/x,target=/x"), ("--mount", "type=volume"),
    ("--mount", "type=bind,source=/usr,target=/x,volume-nocopy"), ("--mount", "target=/x,bind-propagation=rslave"), ("--mount", "colour=red"),
    ("--mount", "type=magic,target=/x"), ("--mount", "target=/x,readonly=perhaps"), ("-v", "twice:/y", "-v", "other:/y"),
    ("--volumes-from", "nosuch"), ("--volumes-from", "one:wrong"), ("--mount", "type=bind,source=/nosuch-at-all,target=/x"),
)  # fmt: skip


def test_what_is_refused(both: dict[str, Say]) -> None:
    for arguments in REFUSED:
        for name, say in both.items():
            assert say(*run(*arguments, "filled:1", "true"))[0] == 125, (name, arguments)
    assert both["Bulle"]("volume", "ls", "-q")[1] == ""
