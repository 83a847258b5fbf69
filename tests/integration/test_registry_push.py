"""Pushing to Debian's docker-registry, read by skopeo and podman; uploads and downloads that break; registries that want a login or TLS."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import random
import select
import signal
import stat
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import bulle as library
from bulle.errors import AuthenticationFailed, RegistryFailure
from bulle.model.digest import Digest
from bulle.registry import destinations
from bulle.registry.destination import Destination
from bulle.registry.destinations import Reach
from bulle.registry.progress import Progress
from bulle.registry.remote import fallback_tag
from bulle_testing import guarded, peers, places, tiers
from bulle_testing.guarded import HTPASSWD, IDENTITY, PASSWORD, USER, breaking_wire, docker_registry, requests_of, token_service
from bulle_testing.peers import Docker, Registry
from bulle_testing.registry_server import CONFIG, LAYER, Answer, descriptor, registry_server

LARGE_BYTES = 32 << 20
MIB = 1 << 20


def skopeo(*arguments: str) -> str:
    tiers.need("skopeo")
    done = subprocess.run([str(tiers.program("skopeo")), "--insecure-policy", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"skopeo {arguments}: {done.stderr}"
    return done.stdout


def raw(registry: Registry, name: str) -> str:
    """A manifest as the registry has it, told by skopeo."""
    return skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{registry.address}/{name}")


@pytest.fixture
def image_directory(tmp_path: Path) -> Path:
    """A small root that no registry has seen: with something random in it."""
    directory = tmp_path / "fresh"
    (directory / "etc").mkdir(parents=True)
    (directory / "etc/word").write_text("text that compresses well\n" * 1000)
    (directory / "etc/random").write_bytes(random.randbytes(2 * MIB))
    return directory


@pytest.mark.parametrize(("form", "compression"), [("oci", "gzip"), ("oci", "zstd"), ("v2s2", "gzip")])
def test_a_pulled_image_keeps_its_digest(bulle: Any, registry: Registry, busybox_layout: Path, tmp_path: Path, form: str, compression: str) -> None:
    source = f"oci:{busybox_layout}:v2"
    options = ["--format", form]
    if compression == "zstd":
        skopeo("copy", "--dest-decompress", source, f"dir:{tmp_path}/plain")
        source = f"dir:{tmp_path}/plain"
        options += ["--dest-compress", "--dest-compress-format", "zstd"]
    name = f"{registry.address}/keeps/{form}-{compression}:v2"
    registry.push(source, f"keeps/{form}-{compression}:v2", *options)
    before = raw(registry, f"keeps/{form}-{compression}:v2")
    bulle("pull", "-q", name, check=True)
    pushed = bulle("push", name, f"{registry.address}/elsewhere/{form}-{compression}:a", check=True).stdout.splitlines()
    assert pushed[0] == f"The push refers to repository [{registry.address}/elsewhere/{form}-{compression}]"
    assert pushed[1] == f"a: digest: {Digest.of(before.encode())} size: {len(before)}"
    assert raw(registry, f"elsewhere/{form}-{compression}:a") == before
    # It came from a repository of the same registry, which gave it on by itself.
    log = requests_of(registry)
    assert any(f"/elsewhere/{form}-{compression}/blobs/uploads/?mount=" in one for one in log)
    assert not [one for one in log if one.startswith("PATCH") and f"/elsewhere/{form}-{compression}/" in one]


@pytest.mark.parametrize("gone", [False, True])
def test_a_layer_that_came_in_another_form_before(bulle: Any, registry: Registry, busybox_layout: Path, tmp_path: Path, gone: bool) -> None:
    """Two images share a layer, one as gzip and one as zstd: the second form is not fetched, until it is needed so that the digest holds.

    Where it is gone, the layer is compressed anew, and the digest is another.
    """
    registry.push(f"oci:{busybox_layout}:v1", "forms/one:1")
    skopeo("copy", "--dest-decompress", f"oci:{busybox_layout}:v2", f"dir:{tmp_path}/plain")
    target = f"forms/two-{gone}:1".lower()
    with contextlib.ExitStack() as running:
        other = running.enter_context(docker_registry(tmp_path / "other"))
        other.push(f"dir:{tmp_path}/plain", "forms/two:1", "--dest-compress", "--dest-compress-format", "zstd", "--format", "oci")
        before = raw(other, "forms/two:1")
        bulle("pull", "-q", f"{registry.address}/forms/one:1", check=True)
        bulle("pull", "-q", f"{other.address}/forms/two:1", check=True)
        identity = bulle("inspect", "-f", "{{.Id}}", f"{other.address}/forms/two:1").stdout
        if gone:
            running.close()
        bulle("push", f"{other.address}/forms/two:1", f"{registry.address}/{target}", check=True)
        after = raw(registry, target)
        assert (after == before) == (not gone)
        assert json.loads(after)["config"] == json.loads(before)["config"]
        assert bulle("inspect", "-f", "{{.Descriptor.digest}}", f"{other.address}/forms/two:1").stdout.strip() == Digest.of(after.encode())
        assert bulle("inspect", "-f", "{{.Id}}", f"{other.address}/forms/two:1").stdout == identity


def test_an_image_made_here_is_compressed_once(bulle: Any, registry: Registry, image_directory: Path, tmp_path: Path) -> None:
    bulle("pull", "-q", f"dir:{image_directory}", check=True)
    name = f"{registry.address}/made/fresh:1"
    bulle("tag", "fresh", name, check=True)
    before = json.loads(bulle("inspect", "fresh", check=True).stdout)[0]
    first = bulle("push", name, check=True).stdout
    manifest = raw(registry, "made/fresh:1")
    assert [layer["mediaType"] for layer in json.loads(manifest)["layers"]] == ["application/vnd.oci.image.layer.v1.tar+gzip"]
    after = json.loads(bulle("inspect", "fresh", check=True).stdout)[0]
    assert after["Id"] == before["Id"] == json.loads(manifest)["config"]["digest"]
    assert f"{registry.address}/made/fresh@{Digest.of(manifest.encode())}" in after["RepoDigests"]
    sent = len([one for one in requests_of(registry) if one.startswith(("POST", "PATCH")) and "/made/fresh/" in one])
    assert sent
    assert bulle("push", name, check=True).stdout == first
    assert len([one for one in requests_of(registry) if one.startswith(("POST", "PATCH")) and "/made/fresh/" in one]) == sent
    assert bulle("push", "-q", name, check=True).stdout == f"{name}\n"
    # Another program reads it, and finds the very tar that is here.
    skopeo("copy", "--src-tls-verify=false", "--dest-decompress", f"docker://{name}", f"dir:{tmp_path}/read")
    diff_id = after["RootFS"]["Layers"][0]
    assert (tmp_path / "read" / diff_id.partition(":")[2]).is_file()
    again = bulle("--home", str(tmp_path / "second"), "pull", "-q", name, environment={"BULLE_NO_SPAWNER": "1"}, check=True)
    assert again.stdout == f"{name}\n"


def test_one_layer_twice(engine: library.Engine, registry: Registry, image_directory: Path, tmp_path: Path) -> None:
    layer = peers.pack(image_directory)
    peers.docker_archive(tmp_path / "twice.tar", [layer, peers.pack(tmp_path), layer], tags=["twice:1"])
    [image] = engine.images.load(tmp_path / "twice.tar")
    engine.images.push("twice:1", f"{registry.address}/twice:1")
    layers = [one["digest"] for one in json.loads(raw(registry, "twice:1"))["layers"]]
    assert layers[0] == layers[2] != layers[1]
    skopeo("copy", "--src-tls-verify=false", f"docker://{registry.address}/twice:1", f"oci:{tmp_path}/copy:1")
    assert engine.images.pull(f"oci:{tmp_path}/copy:1").layers == image.layers


def test_two_homes_compress_alike(bulle: Any, registry: Registry, busybox_image: Path, tmp_path: Path) -> None:
    said = set()
    for home in ("one", "two"):
        environment = {"BULLE_HOME": str(tmp_path / home), "BULLE_NO_SPAWNER": "1"}
        bulle("load", "-q", "-i", busybox_image, environment=environment, check=True)
        said.add(bulle("push", "busybox", f"{registry.address}/alike/{home}:1", environment=environment, check=True).stdout.splitlines()[1])
    assert len(said) == 1


@pytest.mark.parametrize(("compression", "suffix"), [("zstd", "+zstd"), ("none", "")])
def test_other_compressions(bulle: Any, registry: Registry, image_directory: Path, compression: str, suffix: str) -> None:
    bulle("pull", "-q", f"dir:{image_directory}", check=True)
    bulle("push", "--compression", compression, "fresh", f"{registry.address}/compressed/{compression}:1", check=True)
    manifest = raw(registry, f"compressed/{compression}:1")
    assert [layer["mediaType"] for layer in json.loads(manifest)["layers"]] == [f"application/vnd.oci.image.layer.v1.tar{suffix}"]
    # What a registry has is not changed by a later push without the flag.
    bulle("push", "fresh", f"{registry.address}/compressed/{compression}:2", check=True)
    assert raw(registry, f"compressed/{compression}:2") == manifest
    assert bulle("push", "--compression", "lzma", "fresh", f"{registry.address}/x:1").returncode == 125


@pytest.fixture
def podman(run_directory: Path) -> Iterator[Callable[..., str]]:
    """podman with a storage of its own."""
    place = run_directory / "podman"
    places_of_its_own = ["--root", f"{place}/root", "--runroot", f"{place}/run", "--tmpdir", f"{place}/tmp", "--storage-driver", "vfs"]

    def run(*arguments: str) -> str:
        done = subprocess.run(["podman", *places_of_its_own, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, f"podman {arguments}: {done.stderr}"
        return done.stdout

    yield run
    places.remove_tree(place)


@pytest.mark.programs("podman")
@pytest.mark.root
def test_podman_reads_what_was_pushed(bulle: Any, registry: Registry, image_directory: Path, podman: Callable[..., str], tmp_path: Path) -> None:
    bulle("pull", "-q", f"dir:{image_directory}", check=True)
    bulle("push", "-q", "fresh", f"{registry.address}/podman/fresh:1", check=True)
    name = f"{registry.address}/podman/fresh:1"
    assert f"sha256:{podman('pull', '-q', '--tls-verify=false', name).strip()}" == json.loads(bulle("inspect", "fresh").stdout)[0]["Id"]
    # And what podman pushes is read here, with the digest that it says.
    podman("push", "-q", "--tls-verify=false", "--digestfile", f"{tmp_path}/digest", name, f"{registry.address}/podman/back:1")
    bulle("rmi", "-f", json.loads(bulle("inspect", "fresh").stdout)[0]["Id"], check=True)
    bulle("pull", "-q", f"{registry.address}/podman/back:1", check=True)
    digest = (tmp_path / "digest").read_text()
    assert json.loads(bulle("inspect", f"{registry.address}/podman/back:1").stdout)[0]["RepoDigests"] == [f"{registry.address}/podman/back@{digest}"]


@pytest.mark.root
def test_docker_reads_what_was_pushed(bulle: Any, registry: Registry, image_directory: Path, dockerd: Docker) -> None:
    bulle("pull", "-q", f"dir:{image_directory}", check=True)
    name, back = f"{registry.address}/docker/fresh:1", f"{registry.address}/docker/back:1"
    said = bulle("push", "fresh", name, check=True).stdout.splitlines()[1]
    identity = bulle("inspect", "-f", "{{.Id}}", "fresh", check=True).stdout
    try:
        assert f"Digest: {said.split()[2]}" in dockerd("pull", name).stdout
        assert dockerd("image", "inspect", "--format", "{{.Id}}", name).stdout == identity
        dockerd("tag", name, back)
        pushed = dockerd("push", back).stdout.splitlines()[-1]
    finally:
        dockerd("rmi", "-f", name, back, check=False)
    bulle("rmi", "-f", identity.strip(), check=True)
    bulle("pull", "-q", back, check=True)
    assert bulle("inspect", "-f", "{{.Id}}", back, check=True).stdout == identity
    # What Docker pushed goes on as it is: the line is the one that Docker printed.
    assert bulle("push", back, f"{registry.address}/docker/again:1", check=True).stdout.splitlines()[1] == pushed


def test_all_tags_out_and_in(bulle: Any, registry: Registry, image_directory: Path) -> None:
    bulle("pull", "-q", f"dir:{image_directory}", check=True)
    repository = f"{registry.address}/many/tags"
    for tag in ("a", "b", "c"):
        bulle("tag", "fresh", f"{repository}:{tag}", check=True)
    lines = bulle("push", "-a", repository, check=True).stdout.splitlines()
    assert [line.partition(":")[0] for line in lines[1:]] == ["a", "b", "c"]
    assert set(json.loads(skopeo("list-tags", "--tls-verify=false", f"docker://{repository}"))["Tags"]) == {"a", "b", "c"}
    bulle("rmi", "-f", json.loads(bulle("inspect", "fresh").stdout)[0]["Id"], check=True)
    assert bulle("pull", "-aq", repository, check=True).stdout.splitlines() == [f"{repository}:{tag}" for tag in "abc"]
    refused = bulle("pull", "-a", f"{repository}:a")
    assert refused.returncode == 1
    assert "tag can't be used with --all-tags" in refused.stderr


def test_what_cannot_be_pushed(bulle: Any, registry: Registry, image_directory: Path) -> None:
    bulle("pull", "-q", f"dir:{image_directory}", check=True)
    identity = json.loads(bulle("inspect", "fresh").stdout)[0]["Id"]
    for arguments, words in (
        (("nothing/here:1",), "no such image"),
        ((identity,), "not where it is to be pushed"),
        (("fresh", f"{registry.address}/x@sha256:{'0' * 64}"), "a digest is not chosen"),
        (("fresh", "127.0.0.1:1/x:1"), "cannot reach the registry"),
    ):
        done = bulle("push", *arguments)
        assert done.returncode == 1, arguments
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
    assert "dir:" not in bulle("images", "--format", "{{.Repository}}:{{.Tag}}").stdout


@pytest.fixture
def engine(home: Path) -> Iterator[library.Engine]:
    with library.Engine(home) as opened:
        yield opened


def test_an_image_of_host_directories_goes_out_as_a_copy(
    engine: library.Engine, registry: Registry, image_directory: Path, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    (shared / "deep").mkdir(parents=True)
    (shared / "deep/file").write_text("of the host")
    image = engine.images.pull(f"dir:{image_directory}")
    blobs = list(zip(image.blob_digests, image.layers, strict=True))
    engine.store.images.commit(image.manifest, image.manifest_media_type, image.config_raw, blobs, (), [str(shared)])
    for compression in ("gzip", "none"):
        pushed = engine.images.push("fresh", f"{registry.address}/host/{compression}:1", compression=compression)
        skopeo("copy", "--src-tls-verify=false", f"docker://{registry.address}/host/{compression}:1", f"oci:{tmp_path}/{compression}:1")
        read = engine.images.pull(f"oci:{tmp_path}/{compression}:1")
        assert len(read.layers) == len(image.layers) + 1
        assert pushed.digest == Digest.of(raw(registry, f"host/{compression}:1").encode())
    # The image here stays what it was.
    assert engine.images.get("fresh").host_binds == (str(shared),)
    assert engine.images.get("fresh").manifest == image.manifest


@pytest.fixture
def large_image(engine: library.Engine, tmp_path: Path) -> str:
    """An image whose compressed layer has some 32 MiB."""
    directory = tmp_path / "large"
    directory.mkdir()
    (directory / "noise").write_bytes(random.randbytes(LARGE_BYTES))
    return engine.images.pull(f"dir:{directory}").references[0]


class KeepsParts:
    """A registry as the specification has it: what arrived of an upload counts, and it tells how much that is. (docker-registry 2.8 cancels it.)"""

    def __init__(self, server: Any) -> None:
        self.server = server
        self.uploads: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}
        self.manifests: list[bytes] = []

    def __call__(self, request: Any) -> Answer | None:
        path, _, query = request.path.partition("?")
        name = path.rpartition("/")[2]
        body = self.server.received[-1][2] if request.command != "GET" else b""
        if request.command == "HEAD":
            return Answer(status=200 if name in self.blobs else 404)
        if request.command == "POST":
            name = str(len(self.uploads))
            self.uploads[name] = b""
        elif request.command == "PUT" and "/manifests/" in path:
            self.manifests.append(body)
            return Answer(status=201)
        elif request.command == "PATCH":
            first, _, last = request.headers["Content-Range"].partition("-")
            if int(first) != len(self.uploads[name]):
                return Answer(status=416)
            self.uploads[name] += body
            if len(self.uploads[name]) != int(last) + 1:
                return Answer(status=500)  # nobody is there to read it
        elif request.command == "PUT":
            digest = query.rpartition("digest=")[2].replace("%3A", ":")
            data = self.uploads.pop(name) + body
            if Digest.of(data) != digest:
                return Answer(status=400)
            self.blobs[digest] = data
            return Answer(status=201)
        held = len(self.uploads.get(name, b""))
        headers = {"Location": f"/v2/x/blobs/uploads/{name}", "Range": f"0-{max(0, held - 1)}"}
        return Answer(status=204 if request.command == "GET" else 202, headers=headers)


def test_a_broken_upload_goes_on_where_it_broke(engine: library.Engine, large_image: str) -> None:
    retries: list[str] = []
    with registry_server() as server, breaking_wire(server.port, cut_up=10 * MIB, cuts=2) as wire:
        registry = KeepsParts(server)
        server.handler = uploading(registry)
        engine.images.push(
            large_image, f"{wire.address}/x:1", progress=lambda step: retries.append(step.message) if step.kind == "retry" else None
        )
        assert len(retries) == 2
        assert json.loads(registry.manifests[0])["layers"][0]["digest"] in registry.blobs
        # From the start each time it would have been 52 MiB; what was in the air when the wire broke is sent twice.
        assert LARGE_BYTES < wire.up < LARGE_BYTES + 8 * MIB


def test_a_broken_upload_to_a_registry_that_cancels_it(engine: library.Engine, registry: Registry, large_image: str) -> None:
    with breaking_wire(registry.port, cut_up=10 * MIB, cuts=2) as wire:
        pushed = engine.images.push(large_image, f"{wire.address}/broken/up:1")
    assert Digest.of(raw(registry, "broken/up:1").encode()) == pushed.digest
    assert wire.up < LARGE_BYTES + 28 * MIB


def test_a_broken_download_goes_on_where_it_broke(engine: library.Engine, registry: Registry, large_image: str) -> None:
    engine.images.push(large_image, f"{registry.address}/broken/down:1")
    engine.images.remove(large_image)
    with breaking_wire(registry.port, cut_down=10 * MIB, cuts=2) as wire:
        image = engine.images.pull(f"{wire.address}/broken/down:1")
    assert image.size_bytes > LARGE_BYTES
    assert LARGE_BYTES < wire.down < LARGE_BYTES + 8 * MIB


def test_a_wire_that_breaks_under_tls(engine: library.Engine, large_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the break shows as an error of TLS, in both directions."""
    chain, key = guarded.certificate(tmp_path / "tls")
    settings = tmp_path / "registries.toml"
    monkeypatch.setenv("BULLE_REGISTRIES", str(settings))
    with docker_registry(tmp_path / "secure", http=f"  tls:\n    certificate: {chain}\n    key: {key}\n") as secure:
        with breaking_wire(secure.port, cut_up=10 * MIB, cuts=1) as wire:
            settings.write_text(f'[registry."{wire.address}"]\nca = "{chain}"\n')
            engine.images.push(large_image, f"{wire.address}/broken/tls:1")
            assert wire.cuts == 0
        engine.images.remove(large_image)
        with breaking_wire(secure.port, cut_down=10 * MIB, cuts=1) as wire:
            settings.write_text(f'[registry."{wire.address}"]\nca = "{chain}"\n')
            engine.images.pull(f"{wire.address}/broken/tls:1")
            assert wire.cuts == 0
            assert wire.down < LARGE_BYTES + 8 * MIB


def test_a_wire_that_always_breaks_ends_the_push(
    engine: library.Engine, registry: Registry, large_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bulle.registry.client._WAIT_LIMIT_S", 0.01)
    with breaking_wire(registry.port, cut_up=1, cuts=1000) as wire, pytest.raises(RegistryFailure):
        engine.images.push(large_image, f"{wire.address}/broken/always:1")


def login(bulle: Any, registry: Registry, docker_config: Path, password: str = PASSWORD, **more: str) -> subprocess.CompletedProcess[str]:
    done: subprocess.CompletedProcess[str] = bulle(
        "login", "-u", USER, "--password-stdin", registry.address, input=f"{password}\n", environment={"DOCKER_CONFIG": str(docker_config), **more}
    )
    return done


@pytest.fixture
def guarded_registry(run_directory: Path, tmp_path: Path) -> Iterator[Registry]:
    """The real server with a password."""
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    with docker_registry(tmp_path / "guarded", f"auth:\n  htpasswd:\n    realm: test\n    path: {tmp_path}/htpasswd\n") as served:
        yield served


def test_login_push_pull_logout(bulle: Any, guarded_registry: Registry, image_directory: Path, tmp_path: Path) -> None:
    config = tmp_path / "docker"
    config.mkdir()
    (config / "config.json").write_text('{"psFormat": "table {{.ID}}", "auths": {"other.example": {"auth": "YTpi"}}}')
    environment = {"DOCKER_CONFIG": str(config)}
    wrong = login(bulle, guarded_registry, config, "not-this-word")
    assert wrong.returncode == 1
    assert wrong.stderr.startswith(f"bulle: cannot log in to {guarded_registry.address}")
    assert "check user name and password" in wrong.stderr
    assert "not-this-word" not in wrong.stderr
    assert guarded_registry.address not in (config / "config.json").read_text()
    bulle("pull", "-q", f"dir:{image_directory}", check=True)
    name = f"{guarded_registry.address}/private/fresh:1"
    refused = bulle("push", "fresh", name, environment=environment)
    assert refused.returncode == 1
    assert f"bulle login {guarded_registry.address}" in refused.stderr
    done = login(bulle, guarded_registry, config)
    assert (done.returncode, done.stdout) == (0, "Login Succeeded\n")
    assert "unencrypted" in done.stderr
    document = json.loads((config / "config.json").read_text())
    assert document["psFormat"] == "table {{.ID}}"
    assert document["auths"]["other.example"] == {"auth": "YTpi"}
    assert stat.S_IMODE((config / "config.json").stat().st_mode) == 0o600
    assert [path.name for path in config.iterdir()] == ["config.json"]
    bulle("push", "fresh", name, environment=environment, check=True)
    bulle("pull", "-q", name, environment=environment, check=True)
    # Others read the same file.
    skopeo("inspect", "--raw", "--tls-verify=false", "--authfile", str(config / "config.json"), f"docker://{name}")
    out = bulle("logout", guarded_registry.address, environment=environment, check=True).stdout
    assert out == f"Removing login credentials for {guarded_registry.address}\n"
    assert json.loads((config / "config.json").read_text()) == {"psFormat": "table {{.ID}}", "auths": {"other.example": {"auth": "YTpi"}}}
    assert bulle("logout", guarded_registry.address, environment=environment).stdout == f"Not logged in to {guarded_registry.address}\n"
    assert bulle("pull", name, environment=environment).returncode == 1


def test_a_login_that_podman_keeps(bulle: Any, guarded_registry: Registry, busybox_layout: Path, tmp_path: Path) -> None:
    skopeo("login", "--tls-verify=false", "--authfile", f"{tmp_path}/auth.json", "-u", USER, "-p", PASSWORD, guarded_registry.address)
    guarded_registry.push(f"oci:{busybox_layout}:v1", "private:1", "--dest-creds", f"{USER}:{PASSWORD}")
    environment = {"DOCKER_CONFIG": str(tmp_path / "none"), "REGISTRY_AUTH_FILE": str(tmp_path / "auth.json")}
    bulle("pull", "-q", f"{guarded_registry.address}/private:1", environment=environment, check=True)
    environment["REGISTRY_AUTH_FILE"] = str(tmp_path / "no.json")
    assert bulle("pull", "-q", f"{guarded_registry.address}/private:1", environment=environment).returncode == 1


HELPER = """#!/bin/sh
# Keeps secrets in files of its directory; says what it was asked, never what it was told.
echo "$@" >> {directory}/calls
case "$1" in
  store) cat > {directory}/kept ;;
  get) read -r server; if [ -f {directory}/kept ]; then cat {directory}/kept; else echo "credentials not found in native keychain"; exit 1; fi ;;
  erase) rm {directory}/kept ;;
esac
"""


def test_a_credential_helper(bulle: Any, guarded_registry: Registry, busybox_layout: Path, tmp_path: Path) -> None:
    config = tmp_path / "docker"
    config.mkdir()
    (config / "config.json").write_text('{"credsStore": "tests"}')
    helper = tmp_path / "docker-credential-tests"
    helper.write_text(HELPER.format(directory=tmp_path))
    helper.chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = login(bulle, guarded_registry, config, **path)
    assert done.returncode == 0, done.stderr
    assert "unencrypted" not in done.stderr
    assert json.loads((tmp_path / "kept").read_text()) == {"ServerURL": guarded_registry.address, "Username": USER, "Secret": PASSWORD}
    assert PASSWORD not in (config / "config.json").read_text() + (tmp_path / "calls").read_text()
    guarded_registry.push(f"oci:{busybox_layout}:v1", "private:1", "--dest-creds", f"{USER}:{PASSWORD}")
    environment = {"DOCKER_CONFIG": str(config), **path}
    bulle("pull", "-q", f"{guarded_registry.address}/private:1", environment=environment, check=True)
    assert bulle("logout", guarded_registry.address, environment=environment).stdout.startswith("Removing")
    assert not (tmp_path / "kept").exists()
    # A helper that is not there is named; a registry that wants no login does not ask for it.
    (config / "config.json").write_text('{"credsStore": "gone"}')
    missing = bulle("pull", f"{guarded_registry.address}/private:1", environment=environment)
    assert missing.returncode == 1
    assert "docker-credential-gone" in missing.stderr


def test_a_token_service(bulle: Any, registry: Registry, busybox_layout: Path, image_directory: Path, tmp_path: Path) -> None:
    with token_service(tmp_path / "tokens") as service, docker_registry(tmp_path / "tokened", service.settings()) as tokened:
        config = tmp_path / "docker"
        environment = {"DOCKER_CONFIG": str(config)}
        bulle("pull", "-q", f"dir:{image_directory}", check=True)
        name = f"{tokened.address}/team/fresh:1"
        anonymous = bulle("push", "fresh", name, environment=environment)
        assert anonymous.returncode == 1
        assert "bulle login" in anonymous.stderr
        assert login(bulle, tokened, config, "wrong").returncode == 1
        assert login(bulle, tokened, config).returncode == 0
        bulle("push", "fresh", name, environment=environment, check=True)
        # The token for a mount must allow to read where the blob is.
        bulle("push", "fresh", f"{tokened.address}/team/other:1", environment=environment, check=True)
        assert any("repository:team/fresh:pull" in scopes and "repository:team/other:pull,push" in scopes for scopes, _ in service.asked)
        assert not [one for one in requests_of(tokened) if one.startswith("PATCH") and "/team/other/" in one]
        # An identity token in the place of a password.
        document = {"auths": {tokened.address: {"auth": "MDA6", "identitytoken": IDENTITY}}}
        (config / "config.json").write_text(json.dumps(document))
        service.asked.clear()
        bulle("pull", "-q", name, environment=environment, check=True)
        assert {how for _, how in service.asked} == {"identity"}


def test_certificates(bulle: Any, tmp_path: Path, busybox_layout: Path) -> None:
    chain, key = guarded.certificate(tmp_path / "tls")
    with docker_registry(tmp_path / "secure", http=f"  tls:\n    certificate: {chain}\n    key: {key}\n") as secure:
        bulle("pull", "-q", f"oci:{busybox_layout}:v1", check=True)
        name = f"{secure.address}/secure/box:1"
        settings = tmp_path / "registries.toml"
        settings.write_text("")
        environment = {"BULLE_REGISTRIES": str(settings)}
        bulle("tag", f"{busybox_layout.name}:v1", name, check=True)
        doubted = bulle("push", name, environment=environment)
        assert doubted.returncode == 1
        assert "registries.toml" in doubted.stderr
        settings.write_text(f'[registry."{secure.address}"]\nca = "{chain}"\n')
        bulle("push", name, environment=environment, check=True)
        settings.write_text(f'[registry."{secure.address}"]\ninsecure = true\n')
        assert bulle("pull", "-q", name, environment=environment, check=True).stderr == ""
        # A mistake in the file is named, and is none of those who need no registry.
        settings.write_text(f'[registry."{secure.address}"]\ninsecure = 1\n')
        wrong = bulle("pull", name, environment=environment)
        assert wrong.returncode == 1
        assert str(settings) in wrong.stderr
        assert "insecure" in wrong.stderr
        bulle("pull", "-q", f"oci:{busybox_layout}:v1", environment=environment, check=True)
        # Another registry's entry does not help this one.
        settings.write_text(f'[registry."other.example"]\ninsecure = true\nca = "{chain}"\n')
        assert bulle("pull", name, environment=environment).returncode == 1


def test_a_registry_that_wants_our_certificate(bulle: Any, tmp_path: Path, busybox_layout: Path) -> None:
    chain, key = guarded.certificate(tmp_path / "tls")
    http = f"  tls:\n    certificate: {chain}\n    key: {key}\n    clientcas:\n      - {chain}\n"
    with docker_registry(tmp_path / "mutual", http=http) as mutual:
        settings = tmp_path / "registries.toml"
        environment = {"BULLE_REGISTRIES": str(settings)}
        bulle("pull", "-q", f"oci:{busybox_layout}:v1", check=True)
        settings.write_text(f'[registry."{mutual.address}"]\nca = "{chain}"\n')
        assert bulle("push", f"{busybox_layout.name}:v1", f"{mutual.address}/box:1", environment=environment).returncode == 1
        settings.write_text(settings.read_text() + f'client_certificate = "{chain}"\nclient_key = "{key}"\n')
        bulle("push", f"{busybox_layout.name}:v1", f"{mutual.address}/box:1", environment=environment, check=True)


def test_login_elsewhere(bulle: Any, tmp_path: Path) -> None:
    """A server that is no registry, and one that is not there; nothing is kept."""
    environment = {"DOCKER_CONFIG": str(tmp_path / "docker")}
    with registry_server() as server:
        server.handler = lambda _request: Answer(status=404)
        done = bulle("login", "-u", "me", "--password-stdin", server.address, input="word", environment=environment)
        assert done.returncode == 1
        assert "no registry" in done.stderr
    assert bulle("login", "-u", "me", "--password-stdin", "127.0.0.1:1", input="word", environment=environment).returncode == 1
    assert bulle("login", "-u", "me", "--password-stdin", "127.0.0.1:1", input="", environment=environment).returncode == 1
    assert bulle("login", "--password-stdin", "127.0.0.1:1", input="word", environment=environment).returncode == 1
    assert not (tmp_path / "docker").exists()


def test_mirrors_in_their_order(bulle: Any, registry: Registry, busybox_layout: Path, tmp_path: Path) -> None:
    registry.push(f"oci:{busybox_layout}:v1", "library/mirrored:1")
    settings = tmp_path / "registries.toml"
    with registry_server() as empty:
        settings.write_text(f'[registry."docker.io"]\nmirrors = ["127.0.0.1:1", "{empty.address}", "{registry.address}"]\n')
        done = bulle("pull", "-q", "mirrored:1", environment={"BULLE_REGISTRIES": str(settings)}, check=True)
        assert [path for path, _ in empty.requests if "mirrored" in path] == ["/v2/library/mirrored/manifests/1"]
    assert done.stdout == "docker.io/library/mirrored:1\n"


def test_what_speaks_of_an_image_travels_with_it(engine: library.Engine, registry: Registry, image_directory: Path, home: Path) -> None:
    """By the tag that stands in for the referrers API, which docker-registry 2.8 has not."""
    engine.images.pull(f"dir:{image_directory}")
    content = b'{"spdxVersion": "SPDX-2.3"}' * 100
    early = engine.artifacts.attach("fresh", "application/spdx+json", "application/spdx+json", content, {"org.example.made": "early"})
    assert engine.artifacts.attach("fresh", "application/spdx+json", "application/spdx+json", content, {"org.example.made": "early"}) == early
    name = f"{registry.address}/sbom/fresh:1"
    pushed = engine.images.push("fresh", name)
    # The push compressed the layers: what spoke of the plain manifest speaks of the new one now.
    [artifact] = engine.artifacts.list("fresh")
    assert artifact.subject == pushed.digest
    engine.artifacts.attach("fresh", "application/vnd.example.signature", "text/plain", b"signed")
    engine.images.push("fresh", name)
    listed = json.loads(raw(registry, f"sbom/fresh:{fallback_tag(pushed.digest)}"))
    assert [entry["artifactType"] for entry in listed["manifests"]] == ["application/spdx+json", "application/vnd.example.signature"]
    assert listed["manifests"][0]["annotations"] == {"org.example.made": "early"}
    with pytest.raises(library.BulleError, match="not a media type"):
        engine.artifacts.attach("fresh", "no type", "text/plain", b"")
    with library.Engine(home / "second") as second:
        second.images.pull(name)
        assert [one.digest for one in second.artifacts.list(name)] == [entry["digest"] for entry in listed["manifests"]]
        assert second.artifacts.content(second.artifacts.list(name, "application/spdx+json")[0].digest) == content
        second.artifacts.remove(second.artifacts.list(name, "application/spdx+json")[0].digest)
        assert [one.artifact_type for one in second.artifacts.list(name)] == ["application/vnd.example.signature"]
        # It goes with its image, and nothing stays of it.
        second.images.remove(name)
        assert not [path for path in (home / "second/blobs").rglob("*") if path.is_file()]


def uploading(handler: Callable[[Any], Answer | None]) -> Callable[[Any], Answer | None]:
    """The handler for everything but the first question, whether this is a registry."""
    return lambda request: None if request.path == "/v2/" and request.headers.get("Authorization") is None else handler(request)


def hostile_upload(location: str) -> Any:
    """A registry that sends an upload on to some place."""

    def handler(request: Any) -> Answer | None:
        if request.command == "HEAD":
            return Answer(status=404)
        if request.command == "POST":
            return Answer(status=202, headers={"Location": location})
        return None

    return handler


@pytest.mark.parametrize(
    "location",
    ["http://169.254.169.254/latest", "http://user:word@127.0.0.1/x", "file:///etc/passwd", "http://[fd00:ec2::254]/x", "http://0.0.0.0/x", ""],
)
def test_uploads_are_not_led_astray(engine: library.Engine, image_directory: Path, location: str) -> None:
    engine.images.pull(f"dir:{image_directory}")
    with registry_server() as server:
        server.handler = hostile_upload(location)
        with pytest.raises(RegistryFailure):
            engine.images.push("fresh", f"{server.address}/x:1")
        assert {method for method, _, _ in server.received} == {"HEAD", "POST"}


def test_an_upload_elsewhere_carries_no_credentials(
    engine: library.Engine, image_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attack 21 for uploads, by the address of the upload and by a redirect of its body."""
    engine.images.pull(f"dir:{image_directory}")
    with registry_server() as server, registry_server() as other:
        (tmp_path / "config.json").write_text(json.dumps({"auths": {server.address: {"username": USER, "password": PASSWORD}}}))
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))

        def handler(request: Any) -> Answer | None:
            if not request.headers.get("Authorization"):
                return Answer(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
            if request.command == "POST":
                return Answer(status=202, headers={"Location": "/v2/x/upload" if "uploads" in request.path else f"http://{other.address}/direct"})
            if request.command in ("PATCH", "PUT") and "upload" in request.path:
                return Answer(status=307, headers={"Location": f"http://{other.address}/redirected"})
            return Answer(status=404)

        server.handler = uploading(handler)
        other.handler = lambda request: Answer(status=401, headers={"WWW-Authenticate": f'Bearer realm="http://{other.address}/token"'})
        with pytest.raises(AuthenticationFailed):
            engine.images.push("fresh", f"{server.address}/x:1")
        assert any("redirected" in path for path, _ in other.requests)
        assert not [path for path, headers in other.requests if "Authorization" in headers]
        assert not [path for path, _ in other.requests if "token" in path]


def test_an_upload_leads_outwards_only(engine: library.Engine, image_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a private registry not to this machine, and from the world not back into the private network. (The reaches are feigned.)"""
    engine.images.pull(f"dir:{image_directory}")
    reaches = {"127.0.0.1": Reach.PRIVATE, "127.0.0.2": Reach.LOOPBACK, "127.0.0.3": Reach.PUBLIC}
    monkeypatch.setattr(destinations, "reach", lambda address: reaches[address])
    with registry_server() as server, registry_server("127.0.0.2") as inner, registry_server("127.0.0.3") as world:
        for first in (inner, world):
            location = f"http://{'127.0.0.2' if first is inner else '127.0.0.3'}:{first.port}/begin"

            def handler(request: Any, location: str = location) -> Answer | None:
                return Answer(status=404) if request.command == "HEAD" else Answer(status=307, headers={"Location": location})

            server.handler = uploading(handler)
            world.handler = lambda _request: Answer(status=202, headers={"Location": f"http://{server.address}/secret"})
            with pytest.raises(RegistryFailure, match="refusing to follow"):
                engine.images.push("fresh", f"{server.address}/x:1")
        assert inner.requests == []
        assert world.requests
        assert not [path for path, _ in server.requests if "secret" in path]


def test_a_registry_that_knows_referrers(engine: library.Engine, image_directory: Path) -> None:
    """One that takes note of a subject gets no list under a tag; and what it lists is pulled."""
    engine.images.pull(f"dir:{image_directory}")
    with registry_server() as server:
        kept: dict[str, bytes] = {}

        def handler(request: Any) -> Answer | None:
            if request.command == "HEAD":
                return Answer(status=200)
            if request.command == "PUT":
                kept[request.path] = server.received[-1][2]
                return Answer(status=201, headers={"OCI-Subject": "sha256:" + "0" * 64})
            return None

        server.handler = uploading(handler)
        digest = engine.artifacts.attach("fresh", "text/x", "text/x", b"words")
        pushed = engine.images.push("fresh", f"{server.address}/image:1", compression="none")
        assert set(kept) == {"/v2/image/manifests/1", f"/v2/image/manifests/{digest}"}
        server.handler = None
        image = engine.images.get("fresh")
        server.add_manifest(image.manifest, "1")
        with engine.store.layers.export_tar(image.layers[0]) as tar:
            layer = tar.read()
        for blob in (image.config_raw, layer, b"words", b"{}"):
            server.add_blob(blob)
        server.add_manifest(kept[f"/v2/image/manifests/{digest}"], "unused")
        entry = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": str(digest), "size": len(kept[f"/v2/image/manifests/{digest}"])}
        listing = {"schemaVersion": 2, "manifests": [entry, {**entry, "size": 1, "digest": "sha256:" + "1" * 64}]}
        server.answers[f"/v2/image/referrers/{pushed.digest}"] = Answer(json.dumps(listing).encode())
        engine.images.remove("fresh")
        steps: list[Progress] = []
        engine.images.pull(f"{server.address}/image:1", progress=steps.append)
        assert [one.digest for one in engine.artifacts.list(f"{server.address}/image:1")] == [digest]
        assert any("not all that refers to it" in step.message for step in steps)


def test_a_registry_that_takes_no_patch(engine: library.Engine, image_directory: Path) -> None:
    engine.images.pull(f"dir:{image_directory}")
    with registry_server() as server:
        there: set[str] = set()

        def handler(request: Any) -> Answer | None:
            if request.command == "HEAD":
                return Answer(status=200 if request.path.rpartition("/")[2] in there else 404)
            if request.command == "POST":
                return Answer(status=202, headers={"Location": "/v2/x/blobs/uploads/one?state=a"})
            if request.command == "PATCH":
                return Answer(status=405)
            if "/uploads/" in request.path:
                digest = str(Digest.of(server.received[-1][2]))
                assert digest.replace(":", "%3A") in request.path
                assert "state=a&digest=" in request.path
                there.add(digest)
            return Answer(status=201)

        server.handler = uploading(handler)
        engine.images.push("fresh", f"{server.address}/x:1")
        assert len(there) == 2


def test_a_registry_that_takes_small_pieces(engine: library.Engine, large_image: str) -> None:
    with registry_server() as server:
        pieces: list[tuple[str, bytes]] = []

        def handler(request: Any) -> Answer | None:
            if request.command == "HEAD":
                return Answer(status=404)
            if request.command == "PATCH":
                if int(request.headers["Content-Length"]) > 10 * MIB:
                    return Answer(status=413)
                pieces.append((request.headers["Content-Range"], server.received[-1][2]))
            if request.command == "PUT":
                return Answer(status=201)
            return Answer(status=202, headers={"Location": f"/v2/x/blobs/uploads/{len(pieces)}"})

        server.handler = uploading(handler)
        engine.images.push(large_image, f"{server.address}/x:1")
        whole = b"".join(data for _, data in pieces)
        layer = json.loads(engine.images.get(large_image).manifest)["layers"][0]
        assert Digest.of(whole) == layer["digest"]
        ends = [tuple(map(int, one.split("-"))) for one, _ in pieces]
        assert [first for first, _ in ends] == [0, *(last + 1 for _, last in ends[:-1])]


def test_a_registry_that_lies_about_what_it_got(engine: library.Engine, image_directory: Path) -> None:
    engine.images.pull(f"dir:{image_directory}")
    with registry_server() as server:
        lie = {"Docker-Content-Digest": "sha256:" + "5" * 64}
        server.handler = uploading(lambda request: Answer(status=200 if request.command == "HEAD" else 201, headers=lie))
        with pytest.raises(library.BulleError, match="instead of"):
            engine.images.push("fresh", f"{server.address}/x:1")


def test_nothing_is_asked_before_it_is_needed() -> None:
    """Making a destination costs no request, so that a wrong argument fails without one."""
    from bulle.model.reference import Reference
    from bulle.registry.transport import SourceConfiguration

    with Destination(Reference.parse("127.0.0.1:1/x:1"), SourceConfiguration()):
        pass


def test_giving_up_ends_at_once(bulle: Any, tmp_path: Path) -> None:
    """Two layers that come slowly: Ctrl-C does not wait for their ends, and leaves nothing."""
    with registry_server() as server:
        layers = [random.randbytes(MIB), random.randbytes(MIB)]
        config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(layer)) for layer in layers]}}
        encoded = json.dumps(config).encode()
        server.add_image(layers[0], config=descriptor(encoded, CONFIG), layers=[descriptor(layer, LAYER) for layer in layers])
        server.add_blob(encoded)
        slow = {f"/v2/image/blobs/{Digest.of(layer)}" for layer in layers}

        def handler(request: Any) -> Answer | None:
            if request.path not in slow:
                return None
            request.send_response(200)
            request.send_header("Content-Length", str(MIB))
            request.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(1200):
                    request.wfile.write(b"x" * 16)
                    request.wfile.flush()
                    time.sleep(0.05)
            return Answer(b"")

        server.handler = handler
        process = bulle.start("pull", f"{server.address}/image", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 20
        while not slow <= {path for path, _ in server.requests} and time.monotonic() < deadline:
            time.sleep(0.02)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=240)
        assert process.returncode in (130, -signal.SIGINT)
        assert time.monotonic() - began < 20
        assert bulle("images", "-q").stdout == ""


def test_a_login_that_is_typed(bulle: Any, guarded_registry: Registry, tmp_path: Path) -> None:
    """On a terminal: the name is echoed, the password is not, and the terminal is as it was."""
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    process = bulle.start(
        "login",
        guarded_registry.address,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=bulle.environment | {"DOCKER_CONFIG": str(tmp_path / "docker")},
    )
    seen = b""

    def until(words: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + 20
        while words not in seen:
            assert select.select([ours], (), (), max(0, deadline - time.monotonic()))[0], seen
            seen += os.read(ours, 4096)

    try:
        until(b"Username: ")
        os.write(ours, f"{USER}\n".encode())
        until(b"Password: ")
        while termios.tcgetattr(theirs)[3] & termios.ECHO:
            time.sleep(0.01)
        os.write(ours, f"{PASSWORD}\n".encode())
        until(b"Login Succeeded")
        assert process.wait(20) == 0
        assert PASSWORD.encode() not in seen
        assert USER.encode() in seen
        assert termios.tcgetattr(theirs) == before
        assert b"stored unencrypted" in seen
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)
    assert "cannot ask for a login" in bulle("login", guarded_registry.address).stderr


def test_progress_on_a_terminal(bulle: Any, registry: Registry, image_directory: Path) -> None:
    """Bars on standard error, results on standard output; on a pipe only the results."""
    bulle("pull", "-q", f"dir:{image_directory}", check=True)
    ours, theirs = pty.openpty()
    try:
        process = bulle.start("push", "fresh", f"{registry.address}/bars/fresh:1", stdout=subprocess.PIPE, stderr=theirs)
        out, _ = process.communicate(timeout=240)
        assert process.returncode == 0
        assert out.decode().splitlines()[1].startswith("1: digest: sha256:")
        assert select.select([ours], (), (), 5)[0]
        assert b"pushed" in os.read(ours, 1 << 16)
    finally:
        os.close(ours)
        os.close(theirs)
    assert bulle("push", "fresh", f"{registry.address}/bars/fresh:1", check=True).stderr == ""
