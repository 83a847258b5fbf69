"""Pulling from Debian's docker-registry what skopeo pushed there, and handing archives to and fro with skopeo, umoci and docker."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import socket
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import urllib3

from bulle.errors import AuthenticationFailed, CorruptImage, NotFound
from bulle.model.digest import Digest
from bulle.model.image import DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, Platform
from bulle.model.reference import Reference
from bulle.records.database import Database
from bulle.registry.compression import decompress, detect
from bulle.registry.saved import SavedImage, SavedLayer
from bulle.registry.sources import open_source, sniff
from bulle.registry.transport import Credentials, RemoteImage, SourceConfiguration
from bulle.registry.writers import write_docker_archive, write_oci_archive
from bulle.store import Store
from bulle_testing import leaks, peers, tiers
from bulle_testing.peers import Docker, Registry
from bulle_testing.registry_server import registry_server

AMD64 = Platform("linux", "amd64")
QUICK = SourceConfiguration(retries=1, backoff_s=0.01)


def pull(text: str, platform: Platform = AMD64, configuration: SourceConfiguration = QUICK) -> tuple[RemoteImage, list[bytes]]:
    """One image and the uncompressed tars of its layers, every digest checked here once more."""
    with open_source(text, platform=platform, configuration=configuration) as source:
        [image] = source.images()
        return image, [plain(layer.open(), layer.descriptor.digest, layer.diff_id) for layer in image.layers]


def plain(chunks: Iterator[bytes], digest: str, diff_id: Digest) -> bytes:
    blob = b"".join(chunks)
    assert digest == f"sha256:{hashlib.sha256(blob).hexdigest()}"
    tar = b"".join(decompress([blob], detect(blob), "the layer"))
    assert diff_id == Digest.of(tar)
    return tar


def skopeo(*arguments: str) -> str:
    tiers.need("skopeo")
    command = [str(tiers.program("skopeo")), "--insecure-policy", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def saved(image: RemoteImage, tars: list[bytes], blobs: Callable[[int], bytes] | None = None) -> SavedImage:
    """What the engine would hand to a writer."""
    layers = []
    for number, (layer, tar) in enumerate(zip(image.layers, tars, strict=True)):
        blob = (lambda number=number: io.BytesIO(blobs(number))) if blobs else None
        layers.append(SavedLayer.of_files(layer.descriptor, layer.diff_id, lambda tar=tar: io.BytesIO(tar), blob))
    return SavedImage(image.manifest, image.media_type, image.config, tuple(layers), image.references)


@pytest.mark.parametrize(("form", "compression"), [("oci", "gzip"), ("oci", "zstd"), ("oci", "none"), ("v2s2", "gzip"), ("v2s2", "none")])
def test_pull_what_skopeo_pushed(registry: Registry, busybox_layout: Path, tmp_path: Path, form: str, compression: str) -> None:
    source = f"oci:{busybox_layout}:v2"
    options = ["--format", form]
    if compression == "none":
        source = f"dir:{tmp_path}/plain"
        skopeo("copy", "--dest-decompress", f"oci:{busybox_layout}:v2", source)
    elif compression == "zstd":
        options += ["--dest-compress-format", "zstd", "--dest-compress"]
        skopeo("copy", "--dest-decompress", f"oci:{busybox_layout}:v2", f"dir:{tmp_path}/plain")
        source = f"dir:{tmp_path}/plain"
    registry.push(source, f"{form}/{compression}:v2", *options)
    image, layers = pull(f"docker://{registry.address}/{form}/{compression}:v2")
    _, expected = pull(f"oci:{busybox_layout}:v2")
    assert layers == expected
    assert [str(name) for name in image.references] == [f"{registry.address}/{form}/{compression}:v2"]
    raw = skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{registry.address}/{form}/{compression}:v2")
    assert image.manifest.decode() == raw
    digest = Digest.of(image.manifest)
    by_digest, _ = pull(f"{registry.address}/{form}/{compression}@{digest}")
    assert by_digest.manifest == image.manifest
    assert by_digest.references[0].digest == digest


def push_manifest(registry: Registry, repository: str, tag: str, document: dict[str, object], media_type: str) -> None:
    with urllib3.PoolManager() as pool:
        url = f"http://{registry.address}/v2/{repository}/manifests/{tag}"
        answer = pool.request("PUT", url, body=json.dumps(document), headers={"Content-Type": media_type})
        assert answer.status == 201, answer.data


@pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_INDEX])
def test_an_index_of_several_platforms(registry: Registry, busybox_layout: Path, media_type: str) -> None:
    name = "multi/" + media_type.rpartition(".")[0].rpartition(".")[2]
    entries = []
    for architecture, tag in (("amd64", "v1"), ("arm64", "v2")):
        form = "oci" if media_type == OCI_INDEX else "v2s2"
        registry.push(f"oci:{busybox_layout}:{tag}", f"{name}:{architecture}", "--format", form)
        raw = pull(f"docker://{registry.address}/{name}:{architecture}")[0]
        platform = {"os": "linux", "architecture": architecture}
        entry = {"mediaType": raw.media_type, "digest": Digest.of(raw.manifest) + "", "size": len(raw.manifest), "platform": platform}
        entries.append(entry)
    push_manifest(registry, name, "all", {"schemaVersion": 2, "mediaType": media_type, "manifests": entries}, media_type)
    for platform, count in ((AMD64, 1), (Platform("linux", "arm64", "v8"), 2)):
        image, layers = pull(f"docker://{registry.address}/{name}:all", platform)
        assert len(layers) == count
        assert image.media_type == (DOCKER_MANIFEST if media_type == DOCKER_INDEX else image.media_type)
    with pytest.raises(NotFound, match=r"linux/s390x.*linux/amd64, linux/arm64"):
        pull(f"docker://{registry.address}/{name}:all", Platform("linux", "s390x"))


def test_what_is_not_there(registry: Registry) -> None:
    for name in ("nothing/here:latest", "nothing/here@sha256:" + "0" * 64):
        with pytest.raises(NotFound, match="no such image"):
            pull(f"docker://{registry.address}/{name}")


def test_a_truncated_blob_on_the_registry(registry: Registry, busybox_layout: Path) -> None:
    """The real server with a damaged disk."""
    registry.push(f"oci:{busybox_layout}:v1", "damaged:1")
    manifest = json.loads(pull(f"docker://{registry.address}/damaged:1")[0].manifest)
    hexadecimal = manifest["layers"][0]["digest"].partition(":")[2]
    data = registry.directory / f"data/docker/registry/v2/blobs/sha256/{hexadecimal[:2]}/{hexadecimal}/data"
    whole = data.read_bytes()
    try:
        data.write_bytes(whole[: len(whole) // 2])
        with open_source(f"docker://{registry.address}/damaged:1", platform=AMD64, configuration=QUICK) as source:
            [image] = source.images()
            with pytest.raises(CorruptImage, match="truncated"):
                list(image.layers[0].open())
    finally:
        data.write_bytes(whole)


def test_the_store_refuses_a_layer_of_another_digest(home: Path) -> None:
    """Attack 20, to the end: the client passes the bytes on, the store sees that they are others, nothing stays."""
    tar = gzip.compress(b"x" * 10_240)
    database = Database(home)
    store = Store(home, database)
    try:
        with registry_server() as server:
            manifest = server.add_image(tar)
            path = f"/v2/image/blobs/{manifest['layers'][0]['digest']}"
            server.answers[path].body = tar[:-1] + b"y"
            with open_source(f"docker://{server.address}/image", platform=AMD64, configuration=QUICK) as source:
                layer = next(source.images()).layers[0]
                with pytest.raises(CorruptImage):
                    store.layers.ingest(
                        layer.open(), layer.descriptor.media_type, layer.descriptor.parsed_digest, layer.descriptor.size, layer.diff_id, ()
                    )
        assert not store.layers.has(layer.diff_id)
    finally:
        store.close()
        database.close()


@pytest.fixture
def guarded_registry(run_directory: Path) -> Iterator[Registry]:
    """The real server with a password."""
    tiers.need("docker-registry")
    directory = run_directory / "guarded-registry"
    directory.mkdir()
    leaks.session_places.add(str(directory))
    port = peers.free_port()
    (directory / "htpasswd").write_text("me:$2b$05$qeODQzbuEmpKFxJoRhayqu09OrlMkvY3XzWCetKI3Fd0CIRYgyYJa\n")  # bcrypt of "secret"
    settings = directory / "config.yml"
    settings.write_text(
        peers.REGISTRY_SETTINGS.format(directory=directory, port=port) + f"auth:\n  htpasswd:\n    realm: test\n    path: {directory}/htpasswd\n"
    )
    command = [str(tiers.program("docker-registry")), "serve", str(settings)]
    with peers.service(command, directory / "log", lambda: answers(port)):
        yield Registry(port, directory)


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def test_a_registry_with_a_password(guarded_registry: Registry, busybox_layout: Path) -> None:
    guarded_registry.push(f"oci:{busybox_layout}:v1", "private:1", "--dest-creds", "me:secret")
    text = f"docker://{guarded_registry.address}/private:1"
    with pytest.raises(AuthenticationFailed, match="log in"):
        pull(text)
    with pytest.raises(AuthenticationFailed) as caught:
        pull(text, configuration=SourceConfiguration(credentials=lambda _: Credentials("me", "wrong-word")))
    assert "wrong-word" not in str(caught.value)
    assert len(pull(text, configuration=SourceConfiguration(credentials=lambda _: Credentials("me", "secret")))[1]) == 1


@pytest.mark.parametrize("transport", ["docker-archive", "oci-archive", "oci"])
def test_what_skopeo_wrote(busybox_layout: Path, tmp_path: Path, transport: str) -> None:
    target = tmp_path / "image"
    suffix = ":busybox:v2" if transport == "docker-archive" else ":v2"
    skopeo("copy", f"oci:{busybox_layout}:v2", f"{transport}:{target}{suffix}")
    text = f"{transport}:{target}" if transport == "docker-archive" else f"{transport}:{target}:v2"
    image, layers = pull(text)
    expected, tars = pull(f"oci:{busybox_layout}:v2")
    assert layers == tars
    assert image.id == expected.id
    assert [str(name) for name in image.references] == ["busybox:v2" if transport == "docker-archive" else "image:v2"]


def test_our_archives_in_skopeo(busybox_layout: Path, tmp_path: Path) -> None:
    image, tars = pull(f"oci:{busybox_layout}:v2")
    with open_source(f"oci:{busybox_layout}:v2", platform=AMD64) as source:
        blobs = [b"".join(layer.open()) for layer in next(source.images()).layers]
    named = SavedImage(**{
        **{name: getattr(saved(image, tars, blobs.__getitem__), name) for name in SavedImage.__slots__},
        "references": (Reference.parse("localhost:5000/team/box:v2"),),
    })
    with (tmp_path / "oci.tar").open("wb") as out:
        write_oci_archive([named], out)
    with (tmp_path / "docker.tar").open("wb") as out:
        write_docker_archive([named], out)
    # Every digest survives in an oci-archive; a docker-archive has the same config and plain layers.
    assert skopeo("inspect", "--raw", f"oci-archive:{tmp_path}/oci.tar:v2").encode() == image.manifest
    assert skopeo("inspect", "--raw", "--config", f"docker-archive:{tmp_path}/docker.tar").encode() == image.config
    layers = json.loads(skopeo("inspect", "--raw", f"docker-archive:{tmp_path}/docker.tar:localhost:5000/team/box:v2"))["layers"]
    assert [layer["digest"] for layer in layers] == [str(layer.diff_id) for layer in image.layers]
    skopeo("copy", f"docker-archive:{tmp_path}/docker.tar", f"oci:{tmp_path}/copy:v2")
    skopeo("copy", f"oci-archive:{tmp_path}/oci.tar:v2", f"oci:{tmp_path}/copy:v3")
    for tag in ("v2", "v3"):
        assert pull(f"oci:{tmp_path}/copy:{tag}")[1] == tars
    # And back: both kinds, by sniffing, with the name they were saved under.
    for file in ("oci.tar", "docker.tar"):
        with sniff(tmp_path / file, platform=AMD64) as source:
            [again] = source.images()
            assert [plain(layer.open(), layer.descriptor.digest, layer.diff_id) for layer in again.layers] == tars
            assert [str(name) for name in again.references] == ["localhost:5000/team/box:v2"]
            assert again.id == image.id
            assert (again.manifest == image.manifest) == (file == "oci.tar")


def test_archives_are_reproducible_and_share_layers(busybox_layout: Path) -> None:
    first, tars = pull(f"oci:{busybox_layout}:v1")
    second, more = pull(f"oci:{busybox_layout}:v2")
    for write in (write_docker_archive, write_oci_archive):
        images = [saved(first, tars), saved(second, more), saved(first, tars)]
        one, two = io.BytesIO(), io.BytesIO()
        write(images, one)
        write(images, two)
        assert one.getvalue() == two.getvalue()
        with tarfile.open(fileobj=io.BytesIO(one.getvalue())) as tar:
            names = tar.getnames()
        assert len(names) == len(set(names))
        one.seek(0)
        with sniff(one, platform=AMD64) as source:
            assert [image.id for image in source.images()] == [first.id, second.id]


def test_a_damaged_store_is_noticed_while_saving(busybox_layout: Path) -> None:
    image, tars = pull(f"oci:{busybox_layout}:v1")
    with pytest.raises(CorruptImage, match="damaged in the store"):
        write_docker_archive([saved(image, [tars[0][:-1] + b"x"])], io.BytesIO())


@pytest.mark.root
def test_our_archive_in_docker(busybox_layout: Path, tmp_path: Path, dockerd: Docker) -> None:
    image, tars = pull(f"oci:{busybox_layout}:v2")
    with (tmp_path / "docker.tar").open("wb") as out:
        write_docker_archive([saved(image, tars)], out)
    name = str(image.references[0])
    try:
        assert f"Loaded image: {name}" in dockerd("load", "-i", str(tmp_path / "docker.tar")).stdout
        assert dockerd("image", "inspect", "--format", "{{.Id}}", name).stdout.strip() == image.id
        dockerd("save", "-o", str(tmp_path / "again.tar"), name)
    finally:
        dockerd("rmi", name, check=False)
    again, layers = pull(f"docker-archive:{tmp_path}/again.tar")
    assert again.id == image.id
    assert layers == tars
    assert [str(reference) for reference in again.references] == [name]


@pytest.mark.slow
@pytest.mark.debian_mirror
@pytest.mark.programs("mmdebstrap")
def test_a_debian_image(home: Path) -> None:
    """Made twice, the same both times; nothing of this machine in it; its temporary files are gone."""
    if cause := tiers.id_range_missing():
        tiers.give_up("user_namespaces", cause)
    steps: list[str] = []
    configuration = SourceConfiguration(temporary=home / "tmp", progress=lambda moment: steps.append(moment.message))
    image, [layer] = pull("deb:bookworm+busybox", configuration=configuration)
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        found = {member.name.removeprefix("./"): member for member in tar}
        assert found["etc/hostname"].size == found["etc/resolv.conf"].size == 0
        assert {"bin", "usr/bin/bash", "usr/sbin/policy-rc.d", "var/lib/dpkg/status"} <= found.keys()
        assert any(name in found for name in ("bin/busybox", "usr/bin/busybox"))
    assert [str(name) for name in image.references] == ["deb:bookworm_busybox"]
    assert any("installing" in step for step in steps)
    assert list((home / "tmp").iterdir()) == []
    assert pull("deb:bookworm+busybox", configuration=configuration)[0].id == image.id


@pytest.mark.debian_mirror
@pytest.mark.programs("mmdebstrap")
def test_a_debian_suite_that_does_not_exist(home: Path) -> None:
    with pytest.raises(NotFound, match="no Debian suite named 'nosuchsuite'"):
        pull("deb:nosuchsuite", configuration=SourceConfiguration(temporary=home / "tmp"))
    assert list(home.rglob("*")) == []


@pytest.mark.slow
@pytest.mark.debian_mirror
@pytest.mark.programs("mmdebstrap")
def test_a_debian_package_that_does_not_exist(home: Path) -> None:
    if cause := tiers.id_range_missing():
        tiers.give_up("user_namespaces", cause)
    configuration = SourceConfiguration(temporary=home / "tmp")
    with pytest.raises(NotFound, match="no package no-such-package in Debian bookworm") as caught:
        pull("deb:bookworm+no-such-package", configuration=configuration)
    assert "\n" not in str(caught.value)
    assert list((home / "tmp").iterdir()) == []
