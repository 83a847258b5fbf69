"""What was built goes out: for several platforms, with the list of its packages, to a registry and back."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import bulle
from bulle.build.builder import build
from bulle.build.options import BuildEvent, BuildOptions
from bulle.engine.containers import Containers
from bulle_testing import peers, tiers
from bulle_testing.peers import Registry
from bulle_testing.running import machine


@pytest.mark.programs("skopeo")
def test_several_platforms_are_an_index(bulle: Any, registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "Containerfile").write_text("FROM scratch\nARG TARGETARCH\nARG TARGETVARIANT\nCOPY file /file-$TARGETARCH$TARGETVARIANT\n")
    (tmp_path / "file").write_text("content")
    name = f"{registry.address}/built/several:1"
    for _ in range(2):  # the second time, the name is there
        ids = bulle("build", "-q", "--push", "-t", name, "--platform", "linux/amd64,linux/arm/v7", tmp_path, check=True).stdout.split()
    assert len(set(ids)) == 2
    command = [str(tiers.program("skopeo")), "--insecure-policy", "inspect", "--tls-verify=false", "--override-arch", "arm"]
    command += ["--override-variant", "v7"]
    found = json.loads(subprocess.run([*command, "--config", f"docker://{name}"], capture_output=True, check=True).stdout)
    assert (found["architecture"], found["variant"]) == ("arm", "v7")
    bulle("manifest", "rm", name, check=True)
    bulle("image", "prune", "-af", check=True)
    bulle("builder", "prune", "-af", check=True)
    assert bulle("pull", "--platform", "linux/arm/v7", name, check=True).stdout.strip() == name
    tar = tmp_path / "files.tar"
    (tmp_path / "Containerfile").write_text(f"FROM {name}\nLABEL again=1\n")
    bulle("build", "-q", "--platform", "linux/arm/v7", "-o", f"type=tar,dest={tar}", tmp_path, check=True)
    assert subprocess.run(["tar", "-tf", tar], capture_output=True, text=True, check=True).stdout.split() == ["file-armv7"]


@pytest.mark.debian_mirror
@pytest.mark.parametrize(("form", "media_type"), [("spdx", "application/spdx+json"), ("cyclonedx", "application/vnd.cyclonedx+json")])
def test_the_list_of_packages_travels_with_the_image(bulle: Any, registry: Registry, tmp_path: Path, form: str, media_type: str) -> None:
    archive = tmp_path / "debian.tar"
    peers.docker_archive(archive, [peers.debian_root().read_bytes()], tags=["debian:test"])
    bulle("load", "-i", archive, check=True)
    (tmp_path / "Containerfile").write_text("FROM debian:test\nLABEL a=b\n")
    name = f"{registry.address}/built/listed:{form}"
    bulle("build", "-q", "-t", name, "--sbom", form, "-f", tmp_path / "Containerfile", tmp_path, check=True)
    before = json.loads(bulle("image", "referrers", "--format", "json", name, check=True).stdout)
    assert media_type in before.values()
    listed = bulle("image", "referrers", "--content", "--type", media_type, name, check=True).stdout
    assert '"bash"' in listed and "pkg:deb/debian/bash@" in listed
    bulle("push", name, check=True)
    for image in bulle("images", "-q", check=True).stdout.split():
        bulle("rmi", "-f", image)
    bulle("pull", name, check=True)
    assert bulle("image", "referrers", "--content", "--type", media_type, name, check=True).stdout == listed
    refused = bulle("build", "--sbom", "xml", tmp_path)
    assert refused.returncode == 1 and "use spdx or cyclonedx" in refused.stderr


def test_a_stage_that_fails_ends_the_others(bulle: Any, busybox_image: Path, tmp_path: Path) -> None:
    bulle("load", "-i", busybox_image, check=True)
    text = "FROM busybox AS one\nRUN --network=none exit 4\nFROM busybox AS two\nRUN --network=none sleep 1000\n"
    (tmp_path / "Containerfile").write_text(f"{text}FROM busybox\nCOPY --from=two /x /\nCOPY --from=one /x /\n")
    done = bulle("build", tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("bulle: Containerfile:2: RUN ended with exit code 4")
    assert not bulle("ps", "-aq", check=True).stdout


def test_a_stage_that_fails_ends_what_is_just_being_started(
    run_directory: Path, busybox_image: Path, nothing_left_behind: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The step of the other stage had begun and its container was not there yet when the first one failed."""
    (tmp_path / "Containerfile").write_text(
        "FROM busybox AS one\nRUN --network=none exit 4\nFROM busybox AS two\nRUN --network=none sleep 1000\n"
        "FROM busybox\nCOPY --from=two /x /\nCOPY --from=one /x /\n"
    )
    failed = threading.Event()
    create = Containers.create

    def slow(containers: Any, options: Any, base: Any) -> Any:
        if "sleep 1000" in options.command:
            assert failed.wait(20)
            time.sleep(0.2)  # it was told of before the other stages are
        return create(containers, options, base)

    monkeypatch.setattr(Containers, "create", slow)

    def report(happened: BuildEvent) -> None:
        if happened.kind == "failed":
            failed.set()

    with machine(run_directory, "failing") as place:
        place.engine.images.load(busybox_image)
        with pytest.raises(bulle.BulleError, match="exit code 4"):
            build(place.engine, BuildOptions(context=str(tmp_path)), report=report)
        assert not place.engine.containers.list(all=True)


@pytest.mark.root
def test_privileges_are_the_callers_to_give(bulle: Any, busybox_image: Path, tmp_path: Path) -> None:
    bulle("load", "-i", busybox_image, check=True)
    (tmp_path / "Containerfile").write_text("FROM busybox\nRUN --network=none --security=insecure grep CapEff /proc/self/status > /capabilities\n")
    refused = bulle("build", tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("bulle: Containerfile:2: RUN --security=insecure is not allowed")
    image = bulle("build", "-q", "--allow", "security.insecure", tmp_path, check=True).stdout.strip()
    with Path("/proc/1/status").open() as status:
        everything = next(line for line in status if line.startswith("CapBnd")).split()[1]
    assert bulle("run", "--rm", image, "cat", "/capabilities", check=True).stdout.split()[1] == everything
