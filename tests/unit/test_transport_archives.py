"""Archives from outside: every kind that ``load`` takes, and every way in which one can be wrong. Nothing is ever unpacked to look at it."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import random
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bulle.errors import BulleError, CorruptImage, InvalidInput, NotFound, StorageFull
from bulle.model.digest import Digest
from bulle.model.image import Platform
from bulle.registry import archive as archive_module
from bulle.registry.sources import open_source, sniff, source_reference
from bulle.registry.transport import RemoteImage, SourceConfiguration
from bulle_testing.registry_server import CONFIG, INDEX, LAYER, MANIFEST, descriptor, digest_of

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

AMD64 = Platform("linux", "amd64")


def tar_of(files: dict[str, bytes] | list[tuple[str, bytes]], extra: Callable[[tarfile.TarFile], None] | None = None) -> bytes:
    """A tar with these members, in this order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files.items() if isinstance(files, dict) else files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        if extra:
            extra(tar)
    return out.getvalue()


LAYERS = [tar_of({"etc/passwd": b"root:x:0:0::/:/bin/sh\n"}), tar_of({"bin/sh": b"\x7fELF" + bytes(200_000)})]


def config_of(layers: list[bytes], **more: Any) -> bytes:
    rootfs = {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]}
    return json.dumps({"architecture": "amd64", "os": "linux", "rootfs": rootfs, **more}).encode()


def docker_files(layers: list[bytes] = LAYERS, tags: Any = ("app:1",), stored: list[bytes] | None = None, **changes: Any) -> dict[str, bytes]:
    """What docker save wrote before it wrote layouts; ``stored`` lie in the archive instead of the plain layers."""
    config = config_of(layers)
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    config_name = f"{digest_of(config).partition(':')[2]}.json"
    entry = {"Config": config_name, "RepoTags": list(tags) if tags is not None else None, "Layers": names, **changes}
    return {config_name: config, **dict(zip(names, stored or layers, strict=True)), "manifest.json": json.dumps([entry]).encode()}


def layout_files(
    layers: list[bytes] = LAYERS, name: str | None = "1", media_type: str = LAYER, stored: list[bytes] | None = None
) -> dict[str, bytes]:
    """An OCI layout with one image."""
    stored = stored or layers
    config = config_of(layers)
    manifest = {"schemaVersion": 2, "config": descriptor(config, CONFIG), "layers": [descriptor(blob, media_type) for blob in stored]}
    raw = json.dumps(manifest).encode()
    annotations = {"annotations": {"org.opencontainers.image.ref.name": name}} if name else {}
    index = {"schemaVersion": 2, "manifests": [descriptor(raw, MANIFEST, **annotations)]}
    blobs = {f"blobs/sha256/{digest_of(blob).partition(':')[2]}": blob for blob in (*stored, config, raw)}
    return {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": json.dumps(index).encode(), **blobs}


def write_layout(target: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(data)
    return target


def load(source: Any, **more: Any) -> list[tuple[RemoteImage, list[bytes]]]:
    with sniff(source, platform=AMD64, **more) as opened:
        return [(image, [b"".join(layer.open()) for layer in image.layers]) for image in opened.images()]


def refused(data: bytes | dict[str, bytes], *words: str, kind: type[BulleError] = CorruptImage, tmp_path: Path) -> None:
    """Loading fails with one sentence that has these words, from a file and from a stream alike, and writes nothing."""
    raw = tar_of(data) if isinstance(data, dict) else data
    file = tmp_path / "given.tar"
    file.write_bytes(raw)
    temporary = tmp_path / "temporary"
    for source in (file, io.BytesIO(raw)):
        with pytest.raises(kind) as caught:
            load(source, configuration=SourceConfiguration(temporary=temporary))
        sentence = str(caught.value)
        assert "\n" not in sentence
        for word in words:
            assert word in sentence
    assert not temporary.exists() or not list(temporary.iterdir())


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "gzip": lambda data: gzip.compress(data, 1),
    "gzip in members": lambda data: gzip.compress(data[:1000]) + gzip.compress(data[1000:]) + bytes(4),
    "zstd": zstd.compress,
    "zstd in frames": lambda data: b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip" + zstd.compress(data[:1000]) + zstd.compress(data[1000:]),
    "xz": lambda data: lzma.compress(data, preset=0),
    "bzip2": bz2.compress,
}


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("files", [docker_files, layout_files])
@pytest.mark.parametrize("way", ["file", "stream", "pipe", "fifo"])
def test_every_kind_of_archive(tmp_path: Path, compression: str, files: Callable[[], dict[str, bytes]], way: str) -> None:
    raw = COMPRESSIONS[compression](tar_of(files()))
    if way == "pipe":
        reading, writing = os.pipe()

        def feed() -> None:
            with open(writing, "wb") as out:
                out.write(raw)

        thread = threading.Thread(target=feed)
        thread.start()
        with open(reading, "rb") as stream:
            loaded = load(stream)
        thread.join()
    elif way == "fifo":
        os.mkfifo(tmp_path / "app.tar")
        thread = threading.Thread(target=(tmp_path / "app.tar").write_bytes, args=[raw])
        thread.start()
        loaded = load(tmp_path / "app.tar")
        thread.join()
    elif way == "stream":
        loaded = load(io.BytesIO(raw))
    else:
        (tmp_path / "app.tar").write_bytes(raw)
        loaded = load(tmp_path / "app.tar")
    [(image, layers)] = loaded
    assert layers == LAYERS
    assert image.id == digest_of(config_of(LAYERS))
    assert [layer.diff_id for layer in image.layers] == [digest_of(layer) for layer in LAYERS]
    if files is docker_files:
        assert [str(name) for name in image.references] == ["app:1"]
    else:
        # A tag alone is completed by the file's own name; a stream has none.
        assert [str(name) for name in image.references] == (["app:1"] if way in ("file", "fifo") else [])


@pytest.mark.parametrize("compression", ["gzip", "zstd", "xz", "bzip2"])
def test_compressed_layers_in_a_docker_archive(tmp_path: Path, compression: str) -> None:
    stored = [COMPRESSIONS[compression](layer) for layer in LAYERS]
    [(image, layers)] = load(io.BytesIO(tar_of(docker_files(stored=stored))))
    if compression in ("gzip", "zstd"):
        assert layers == stored
        assert [layer.descriptor.media_type for layer in image.layers] == [f"{LAYER}+{compression}"] * 2
    else:
        assert layers == LAYERS
    assert [layer.descriptor.digest for layer in image.layers] == [digest_of(layer) for layer in layers]


def test_links_between_repeated_layers() -> None:
    """docker save used to write a repeated layer as a link to the first."""
    files = docker_files(layers=[LAYERS[0], LAYERS[0]])
    del files["1/layer.tar"]

    def link(tar: tarfile.TarFile) -> None:
        member = tarfile.TarInfo("1/layer.tar")
        member.type, member.linkname = tarfile.SYMTYPE, "../0/layer.tar"
        tar.addfile(member)

    [(_, layers)] = load(io.BytesIO(tar_of(files, link)))
    assert layers == [LAYERS[0], LAYERS[0]]


@pytest.mark.parametrize("target", ["../../etc/passwd", "/etc/passwd", "1/layer.tar", "../1/layer.tar", "../nowhere"])
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_that_lead_elsewhere(tmp_path: Path, target: str, kind: bytes) -> None:
    files = docker_files()
    del files["1/layer.tar"]

    def link(tar: tarfile.TarFile) -> None:
        member = tarfile.TarInfo("1/layer.tar")
        member.type, member.linkname = kind, target
        tar.addfile(member)

    out = target.startswith("/") or (kind == tarfile.SYMTYPE and target.startswith("../../")) or (kind == tarfile.LNKTYPE and ".." in target)
    refused(tar_of(files, link), "link out of the archive" if out else "", tmp_path=tmp_path)


@pytest.mark.parametrize("name", ["../escape", "/absolute", "a/../../b", "a/.."])
def test_names_that_climb(tmp_path: Path, name: str) -> None:
    """Attack 4, for the archive itself."""
    refused({**docker_files(), name: b"x"}, "not safe", repr(name), tmp_path=tmp_path)
    assert not (tmp_path.parent / "escape").exists()


def test_two_members_of_one_name(tmp_path: Path) -> None:
    files = list(docker_files().items())
    refused(tar_of([*files, ("./0/layer.tar", LAYERS[1])]), "two members", tmp_path=tmp_path)


def test_special_members(tmp_path: Path) -> None:
    files = docker_files()
    del files["1/layer.tar"]

    def fifo(tar: tarfile.TarFile) -> None:
        member = tarfile.TarInfo("1/layer.tar")
        member.type = tarfile.FIFOTYPE
        tar.addfile(member)

    refused(tar_of(files, fifo), "not a regular file", tmp_path=tmp_path)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_truncated_anywhere(tmp_path: Path, compression: str) -> None:
    """Half an archive is refused, wherever it was cut: by whoever reads it first."""
    raw = COMPRESSIONS[compression](tar_of(docker_files()))
    for part in (0.02, 0.3, 0.6, 0.9):
        refused(raw[: int(len(raw) * part)], tmp_path=tmp_path)


@pytest.mark.parametrize("compression", ["gzip", "zstd", "xz", "bzip2"])
def test_truncated_at_the_very_end(tmp_path: Path, compression: str) -> None:
    """All the content is there, its checksum is not."""
    refused(COMPRESSIONS[compression](tar_of(docker_files()))[:-2], "truncated", tmp_path=tmp_path)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_damaged(tmp_path: Path, compression: str) -> None:
    raw = bytearray(COMPRESSIONS[compression](tar_of(docker_files(layers=[os.urandom(50_000)]))))
    raw[260:320] = os.urandom(60)
    refused(bytes(raw), tmp_path=tmp_path)


@pytest.mark.parametrize(
    "raw", [b"", b"x", b"hello world" * 1000, bytes(10_240), gzip.compress(b"", mtime=0), gzip.compress(b"hello", mtime=0), os.urandom(5000)]
)
def test_what_is_no_archive(tmp_path: Path, raw: bytes) -> None:
    refused(raw, tmp_path=tmp_path)


def test_archives_of_something_else(tmp_path: Path) -> None:
    refused({"etc/passwd": b"root"}, "neither", tmp_path=tmp_path)
    with pytest.raises(NotFound, match="no such file"):
        load(tmp_path / "absent")
    with pytest.raises(CorruptImage, match="is a directory"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"Config": "../x.json"}, "not safe"),
        ({"Config": "absent.json"}, "absent.json"),
        ({"Layers": ["0/layer.tar"]}, "1 layer"),
        ({"Layers": []}, "no layers"),
        ({"Layers": None}, "no layers"),
        ({"Layers": ["0/layer.tar", "absent"]}, "absent"),
        ({"Layers": ["0/layer.tar", "/etc/passwd"]}, "not safe"),
        ({"RepoTags": ["UPPER CASE"]}, "not a valid name"),
        ({"RepoTags": ["a@sha256:" + "0" * 64]}, "digest"),
        ({"RepoTags": [5]}, "manifest.json"),
    ],
)
def test_manifests_that_lie(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    refused(docker_files(**changes), word, tmp_path=tmp_path)


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b"null", b"[{}]", b"\xff", b"[" * 50_000, b'[{"Config":' + b"9" * 1000])
def test_manifest_json_of_nonsense(tmp_path: Path, raw: bytes) -> None:
    refused({**docker_files(), "manifest.json": raw}, tmp_path=tmp_path)


def test_documents_are_bounded(tmp_path: Path) -> None:
    refused({**docker_files(), "manifest.json": b" " * (9 << 20)}, "at most", tmp_path=tmp_path)
    files = layout_files()
    refused({**files, "index.json": b" " * (9 << 20)}, "at most", tmp_path=tmp_path)


def test_a_config_that_is_not_what_its_name_says(tmp_path: Path) -> None:
    files = docker_files()
    name = next(name for name in files if len(name) > 64)
    refused({**files, name: config_of(LAYERS, author="somebody else")}, "digest", tmp_path=tmp_path)


def test_an_endless_header(tmp_path: Path) -> None:
    """A pax header that claims gigabytes is not read."""
    header = bytearray(tarfile.TarInfo("x").tobuf())
    header[156:157] = b"x"
    header[124:136] = b"77777777777\0"
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    refused(bytes(header) + bytes(2048), "extended header claims", tmp_path=tmp_path)


def test_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack 19, for the archive itself."""
    monkeypatch.setattr(archive_module, "MEMBERS_LIMIT", 50)
    refused({**docker_files(), **{f"file{number}": b"" for number in range(60)}}, "more than 50 members", tmp_path=tmp_path)


def test_a_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack 19: a small file that becomes huge ends early, and what it wrote is gone."""
    monkeypatch.setattr(archive_module, "_GROWTH_ALLOWANCE_BYTES", 1 << 20)
    bomb = gzip.compress(tar_of({"manifest.json": bytes(30 << 20)}))
    refused(bomb, "refused", "200 times", tmp_path=tmp_path)


def test_a_sparse_archive(tmp_path: Path) -> None:
    header = bytearray(tarfile.TarInfo("manifest.json").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    refused(bytes(header) + bytes(1024), "sparse", tmp_path=tmp_path)


def test_no_space_for_the_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.access("/dev/full", os.W_OK):
        pytest.skip("no /dev/full")
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: open("/dev/full", "wb", buffering=0))  # noqa: SIM115
    with pytest.raises(StorageFull, match="no space left"):
        load(io.BytesIO(tar_of(docker_files())))


@pytest.mark.parametrize(("name", "expected"), [("1", "app:1"), ("docker.io/library/web:2", "web:2"), ("web:2", "web:2"), (None, None)])
def test_names_in_layouts(tmp_path: Path, name: str | None, expected: str | None) -> None:
    write_layout(tmp_path / "app", layout_files(name=name))
    with open_source(f"oci:{tmp_path}/app", platform=AMD64) as source:
        [image] = source.images()
    assert [str(reference) for reference in image.references] == ([expected] if expected else [])


def test_a_layout_chooses_by_tag_and_platform(tmp_path: Path) -> None:
    files: dict[str, bytes] = {}
    entries = []
    for tag, architecture in (("1", "amd64"), ("1", "arm64"), ("2", "amd64")):
        one = layout_files(layers=[tar_of({f"{tag}-{architecture}": b""})], name=tag)
        files |= one
        entry = json.loads(one["index.json"])["manifests"][0]
        entries.append({**entry, "platform": {"os": "linux", "architecture": architecture}})
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    layout = write_layout(tmp_path / "app", files)
    file = tmp_path / "app.oci.tar"
    file.write_bytes(tar_of(files))
    for text in (f"oci:{layout}", f"oci-archive:{file}"):
        arm64 = Platform("linux", "arm64")
        for tag, platform, expected in (("", AMD64, ["1-amd64", "2-amd64"]), (":1", arm64, ["1-arm64"]), (":2", AMD64, ["2-amd64"])):
            with open_source(text + tag, platform=platform) as source:
                assert [b"".join(image.layers[0].open())[:7].decode() for image in source.images()] == [name[:7] for name in expected]
        with pytest.raises(NotFound, match="'3'"), open_source(f"{text}:3", platform=AMD64) as source:
            list(source.images())


def test_wrong_blobs_in_a_layout(tmp_path: Path) -> None:
    """Attack 20: what a layout holds under a digest must have it (layers are checked where they are written)."""
    files = layout_files()
    manifest = next(name for name, data in files.items() if b'"layers"' in data)
    config = next(name for name, data in files.items() if b'"rootfs"' in data)
    for name, data in ((manifest, files[manifest] + b" "), (manifest, files[manifest].replace(b"2", b"3", 1)), (config, bytes(len(files[config])))):
        refused({**files, name: data}, "corrupt", tmp_path=tmp_path)
    index = json.loads(files["index.json"])
    index["manifests"][0]["size"] += 1
    refused({**files, "index.json": json.dumps(index).encode()}, "bytes instead of", tmp_path=tmp_path)
    for name in files:
        if name != "oci-layout":
            refused({key: data for key, data in files.items() if key != name}, tmp_path=tmp_path)


@pytest.mark.parametrize("digest", ["sha256:../../../../etc/passwd", "sha256:" + "A" * 64, "md5:" + "0" * 32, "sha256:" + "0" * 63, ""])
def test_digests_that_are_paths(tmp_path: Path, digest: str) -> None:
    files = layout_files()
    index = json.loads(files["index.json"])
    index["manifests"][0]["digest"] = digest
    refused({**files, "index.json": json.dumps(index).encode()}, tmp_path=tmp_path)


def test_a_layout_with_a_fifo_does_not_hang(tmp_path: Path) -> None:
    files = layout_files()
    layout = write_layout(tmp_path / "app", files)
    blob = next(name for name, data in files.items() if data == LAYERS[0])
    (layout / blob).unlink()
    os.mkfifo(layout / blob)
    with open_source(f"oci:{layout}", platform=AMD64) as source:
        image = next(source.images())
        with pytest.raises(CorruptImage, match="not a regular file"):
            list(image.layers[0].open())


def test_an_archive_that_is_both_keeps_its_manifest() -> None:
    """Docker's archives since version 25: the raw manifest, and with it the image's digest, survives."""
    stored = [gzip.compress(layer) for layer in LAYERS]
    files = layout_files(media_type=f"{LAYER}+gzip", stored=stored)
    config = digest_of(config_of(LAYERS)).partition(":")[2]
    names = [f"blobs/sha256/{digest_of(blob).partition(':')[2]}" for blob in stored]
    entry = {"Config": f"blobs/sha256/{config}", "RepoTags": ["app:1"], "Layers": names}
    [(image, layers)] = load(io.BytesIO(tar_of({**files, "manifest.json": json.dumps([entry]).encode()})))
    assert Digest.of(image.manifest) == json.loads(files["index.json"])["manifests"][0]["digest"]
    assert layers == stored
    broken = {**files, "index.json": json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": "no"}).encode()}
    [(image, layers)] = load(io.BytesIO(tar_of({**broken, "manifest.json": json.dumps([entry]).encode()})))
    assert layers == stored


def test_layers_are_read_by_several_threads() -> None:
    big = [tar_of({"a": os.urandom(3 << 20)}), tar_of({"b": os.urandom(3 << 20)})]
    with sniff(io.BytesIO(tar_of(docker_files(layers=big))), platform=AMD64) as source:
        [image] = source.images()
        streams = [layer.open() for layer in image.layers]
        found = [b"", b""]
        for _ in range(4):
            for number, stream in enumerate(streams):
                found[number] += next(stream, b"")
    assert found == big


@pytest.mark.parametrize(
    "text", ["oci:", "docker-archive:", "dir:", "deb:", "deb:UPPER", "deb:-x", "deb:bookworm+", "deb:bookworm+--purge", "deb:a b"]
)
def test_sources_that_name_nothing(text: str) -> None:
    with pytest.raises(InvalidInput):
        open_source(text)


def test_names_of_sources() -> None:
    names = {
        "host": "host:latest",
        "debian:12": "debian:12",
        "docker://quay.io/a/b": "quay.io/a/b:latest",
        "deb:bookworm": "deb:bookworm",
        "deb:bookworm+vim,curl,vim": "deb:bookworm_curl_vim",
        "dir:/srv/My.Root": "my.root:latest",
        "dir:/": None,
        "oci:/x": None,
    }
    for text, expected in names.items():
        reference = source_reference(text)
        assert (str(reference) if reference else None) == expected
    assert source_reference("deb:bookworm+g++") != source_reference("deb:bookworm+g--")


@pytest.mark.parametrize("seed", range(8))
def test_random_damage_is_an_error_like_any_other(seed: int) -> None:
    """Whatever bytes arrive, the answer is an image or a sentence."""
    chance = random.Random(seed)
    wholes = [tar_of(docker_files()), tar_of(layout_files()), gzip.compress(tar_of(docker_files()))]
    for _ in range(60):
        raw = bytearray(chance.choice(wholes))
        for _ in range(chance.randrange(1, 6)):
            start = chance.randrange(min(len(raw), 4000) if chance.random() < 0.8 else len(raw))
            raw[start : start + chance.randrange(1, 12)] = chance.randbytes(chance.randrange(0, 12))
        if chance.random() < 0.7 and raw[:2] != b"\x1f\x8b":
            # With checksums mended, so that damage gets further than the first check.
            for offset in range(0, len(raw) - 512, 512):
                if raw[offset + 257 : offset + 262] == b"ustar":
                    raw[offset + 148 : offset + 156] = b"        "
                    raw[offset + 148 : offset + 156] = b"%06o\0 " % sum(raw[offset : offset + 512])
        try:
            load(io.BytesIO(bytes(raw)))
        except BulleError as error:
            assert "\n" not in str(error)
