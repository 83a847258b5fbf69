"""Indexes made here: pushed to docker-registry, read by skopeo and podman, pulled again for each platform; and what keeps their images."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bulle.model.digest import Digest
from bulle_testing import places, tiers
from bulle_testing.peers import Registry
from bulle_testing.registry_server import registry_server


@pytest.fixture
def images(bulle: Any, tmp_path: Path) -> list[str]:
    """Two images that were made here, with plain layers."""
    names = []
    for word in ("one", "two"):
        (tmp_path / word).mkdir()
        (tmp_path / word / "file").write_text(word * 500_000)
        names.append(bulle("pull", "-q", f"dir:{tmp_path / word}", check=True).stdout.strip())
    return names


def skopeo(*arguments: str) -> str:
    tiers.need("skopeo")
    done = subprocess.run([str(tiers.program("skopeo")), "--insecure-policy", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_made_pushed_and_pulled(bulle: Any, registry: Registry, images: list[str], tmp_path: Path) -> None:
    name = f"{registry.address}/multi/list:1"
    made = bulle("manifest", "create", "--annotation", "org.example.made=here", name, images[0], check=True)
    assert made.stdout == f"Created manifest list {name}\n"
    bulle("manifest", "add", "--arch", "arm64", "--variant", "v8", "--annotation", "a=b", name, images[1], check=True)
    bulle("manifest", "annotate", "--os-version", "12", "--os-features", "x", name, images[1], check=True)
    platform = json.loads(bulle("manifest", "ls", "--format", "json", check=True).stdout)["Platforms"]
    assert platform.endswith(", linux/arm64/v8")
    assert bulle("manifest", "ls", "-q", check=True).stdout == f"{name}\n"
    here = json.loads(bulle("manifest", "inspect", name, check=True).stdout)
    assert here["annotations"] == {"org.example.made": "here"}
    assert here["manifests"][1]["platform"] == {"os": "linux", "architecture": "arm64", "variant": "v8", "os.version": "12", "os.features": ["x"]}
    assert here["manifests"][1]["annotations"] == {"a": "b"}
    digest = bulle("manifest", "push", "--all", name, check=True).stdout.strip()
    raw = skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{name}")
    assert Digest.of(raw.encode()) == digest
    # The push compressed the layers; what the index here says of them followed.
    pushed = json.loads(raw)
    assert [one["digest"] for one in pushed["manifests"]] != [one["digest"] for one in here["manifests"]]
    assert json.loads(bulle("manifest", "inspect", name, check=True).stdout) == pushed
    assert json.loads(bulle("manifest", "inspect", f"docker://{name}", check=True).stdout) == pushed
    assert bulle("manifest", "push", name, check=True).stdout.strip() == digest
    skopeo("copy", "--all", "--src-tls-verify=false", f"docker://{name}", f"oci:{tmp_path}/copied:1")
    for architecture, entry in (("arm64", pushed["manifests"][1]), ("amd64", pushed["manifests"][0])):
        if architecture != "arm64":
            architecture = entry["platform"]["architecture"]
        second = ["--home", str(tmp_path / architecture)]
        bulle(*second, "pull", "-q", "--platform", f"linux/{architecture}", name, environment={"BULLE_NO_SPAWNER": "1"}, check=True)
        found = bulle(*second, "inspect", "-f", "{{.Descriptor.digest}}", name, environment={"BULLE_NO_SPAWNER": "1"}, check=True)
        assert found.stdout.strip() == entry["digest"]


def test_an_index_of_an_index(bulle: Any, registry: Registry, images: list[str], tmp_path: Path) -> None:
    """Everything that a registry's index names, for other machines too, pushed elsewhere: the images keep their digests."""
    first, second = f"{registry.address}/multi/first:1", f"{registry.address}/multi/second:1"
    bulle("manifest", "create", first, images[0], check=True)
    bulle("manifest", "add", "--os", "linux", "--arch", "s390x", "--annotation", "a=b", first, images[1], check=True)
    bulle("manifest", "push", "--purge", first, check=True)
    assert bulle("manifest", "ls", "-q").stdout == ""
    other = {"BULLE_HOME": str(tmp_path / "other"), "BULLE_NO_SPAWNER": "1"}
    bulle("manifest", "create", second, environment=other, check=True)
    bulle("manifest", "add", "--all", second, f"docker://{first}", environment=other, check=True)
    assert bulle("manifest", "add", "--all", second, f"{registry.address}/multi/none:1", environment=other).returncode == 1
    bulle("manifest", "push", second, environment=other, check=True)
    there, here = (json.loads(skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{name}")) for name in (first, second))
    assert [entry["platform"]["architecture"] for entry in there["manifests"]][1] == "s390x"
    assert here["manifests"] == there["manifests"]


@pytest.mark.programs("podman")
@pytest.mark.root
def test_podman_reads_it(bulle: Any, registry: Registry, images: list[str], run_directory: Path) -> None:
    name = f"{registry.address}/multi/podman:1"
    bulle("manifest", "create", name, *images, check=True)
    bulle("manifest", "push", name, check=True)
    place = run_directory / "podman"
    command = ["podman", "--root", f"{place}/root", "--runroot", f"{place}/run", "--tmpdir", f"{place}/tmp", "--storage-driver", "vfs"]
    try:
        done = subprocess.run([*command, "pull", "-q", "--tls-verify=false", name], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert f"sha256:{done.stdout.strip()}" in {json.loads(bulle("inspect", image).stdout)[0]["Id"] for image in images}
    finally:
        places.remove_tree(place)


def test_an_index_keeps_its_images(bulle: Any, images: list[str]) -> None:
    bulle("manifest", "create", "kept:1", *images, check=True)
    for force in ([], ["-f"]):
        refused = bulle("rmi", *force, images[0])
        assert refused.returncode == 1
        assert "the index kept:1 has it" in refused.stderr
        assert "bulle manifest rm" in refused.stderr
    assert bulle("manifest", "remove", "kept:1", images[0], check=True).stdout == "docker.io/library/kept:1\n"
    bulle("rmi", images[0], check=True)
    assert len(json.loads(bulle("manifest", "inspect", "kept:1", check=True).stdout)["manifests"]) == 1
    assert bulle("manifest", "rm", "kept:1", check=True).stdout == "Deleted: kept:1\n"
    bulle("rmi", images[1], check=True)
    assert bulle("images", "-q").stdout == ""


def test_what_is_refused(bulle: Any, images: list[str]) -> None:
    bulle("manifest", "create", "there:1", check=True)
    for arguments, words in (
        (("create", "there:1"), "already"),
        (("create", images[0]), "an image has it"),
        (("create", f"x@sha256:{'0' * 64}"), "digest"),
        (("add", "not-there:1", images[0]), "no such index"),
        (("remove", "there:1", images[0]), "not in the index"),
        (("annotate", "there:1", images[0], "--arch", "x"), "not in the index"),
        (("add", "there:1", images[0], "--annotation", "x"), "expected KEY=VALUE"),
        (("rm", "not-there:1"), "no such index"),
        (("push", "not-there:1"), "no such index"),
    ):
        done = bulle("manifest", *arguments)
        assert done.returncode == 1, arguments
        assert words in done.stderr
    assert "bulle manifest push there:1" in bulle("push", "there:1").stderr
    assert json.loads(bulle("manifest", "inspect", "there:1").stdout)["manifests"] == []
    bulle("manifest", "create", "--amend", "there:1", *images, check=True)
    assert len(json.loads(bulle("manifest", "inspect", "there:1").stdout)["manifests"]) == 2


def test_an_image_that_is_not_here_is_pulled(bulle: Any, registry: Registry, busybox_layout: Path) -> None:
    registry.push(f"oci:{busybox_layout}:v1", "members/one:1")
    bulle("manifest", "create", "mixed:1", f"{registry.address}/members/one:1", check=True)
    raw = skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{registry.address}/members/one:1")
    assert json.loads(bulle("manifest", "inspect", "mixed:1").stdout)["manifests"][0]["digest"] == Digest.of(raw.encode())


def test_a_remote_manifest_is_looked_at_without_its_layers(bulle: Any) -> None:
    with registry_server() as server:
        manifest = server.add_image(b"layer")
        found = bulle("manifest", "inspect", f"{server.address}/image:latest", check=True)
        assert json.loads(found.stdout) == manifest
        assert not [path for path, _ in server.requests if "/blobs/" in path]
        assert bulle("images", "-q").stdout == ""
