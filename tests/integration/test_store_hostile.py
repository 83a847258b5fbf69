"""Hostile images: nothing of the host is touched, every bound holds, and the store is afterwards as it was before."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bulle.errors import BulleError, CorruptImage
from bulle.model.digest import Digest
from bulle.model.image import OCI_LAYER, OCI_MANIFEST
from bulle.model.reference import Reference
from bulle.store import Limits, Store
from bulle.store.backends import BACKENDS
from bulle_testing.layers import LayerTar, census, documents, in_mount_namespace, open_store, pieces, put_image, show_merged

SMALL = Limits(layer_bytes=8 << 20, ratio=50, ratio_free_bytes=1 << 20, entries=500, header_bytes=4096, sparse_bytes=1 << 30, sparse_segments=50)


@pytest.fixture
def store(home: Path) -> Iterator[Store]:
    """A store with low bounds."""
    with open_store(home, SMALL) as store:
        yield store


def ingest(store: Store, tar: bytes) -> None:
    """Bring one uncompressed layer in."""
    digest = Digest.of(tar)
    with store.receiving():
        store.layers.ingest(pieces(tar), OCI_LAYER, digest, len(tar), digest)


def files(home: Path) -> set[str]:
    """Every file of the store but the database and what belongs to this process."""
    return {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file() and "bulle.db" not in path.name}


HIDDEN_NAMES = [
    LayerTar().add("../escape"),
    LayerTar().add("a/../../escape"),
    LayerTar().add("/etc/escape"),
    LayerTar().add("a/.."),
    LayerTar().directory(".."),
    LayerTar().directory("/"),
    LayerTar().add("a").hardlink("b", "../../../etc/passwd"),
    LayerTar().add("a").hardlink("b", "/etc/passwd"),
    LayerTar().symlink("s", "/etc").hardlink("b", "s/passwd"),
    LayerTar().hardlink("b", "etc/passwd"),
    LayerTar().hardlink("b", "b"),
    LayerTar().hardlink("b", "c").hardlink("c", "b"),
    LayerTar().directory("d").hardlink("b", "d"),
    LayerTar().add(".wh.x").hardlink("b", "x"),
    LayerTar().add("a/.wh..."),
    LayerTar().add("a/.wh.."),
    LayerTar().add("a/.wh."),
    LayerTar(tarfile.GNU_FORMAT).add("x/" * 60 + "../" * 100 + "escape"),
    LayerTar(tarfile.GNU_FORMAT).hardlink("b", "../" * 60 + "etc/passwd"),
]


@pytest.mark.parametrize("tar", HIDDEN_NAMES, ids=range(len(HIDDEN_NAMES)))
def test_names_that_leave_the_layer_are_refused(store: Store, home: Path, tar: LayerTar) -> None:
    """Climbing, absolute and impossible names, in entries, links and whiteouts."""
    ingest(store, bytes(LayerTar().add("good")))
    before = files(home)
    with pytest.raises(CorruptImage):
        ingest(store, bytes(tar))
    assert files(home) == before


def attacks(victim: Path) -> dict[str, list[bytes]]:
    """Images that try to write, link or delete in a directory of the host."""
    outside, up = str(victim), "../" * 40 + str(victim)[1:]
    return {
        "symlink, then a file through it, one layer": [bytes(LayerTar().symlink("etc", outside).add("etc/planted", content=b"x"))],
        "the same in two layers": [bytes(LayerTar().symlink("etc", outside)), bytes(LayerTar().add("etc/planted", content=b"x"))],
        "a climbing symlink": [bytes(LayerTar().symlink("etc", up)), bytes(LayerTar().add("etc/planted", content=b"x"))],
        "a chain of symlinks": [bytes(LayerTar().symlink("a", "b").symlink("b", "/c").symlink("c", up)), bytes(LayerTar().add("a/planted"))],
        "a file over a symlink": [bytes(LayerTar().symlink("f", f"{outside}/kept").add("f", content=b"overwritten"))],
        "a hard link to a symlink, then a write": [
            bytes(LayerTar().symlink("s", f"{outside}/kept").hardlink("h", "s").add("h", content=b"overwritten"))
        ],
        "a whiteout through a symlink": [bytes(LayerTar().symlink("etc", outside)), bytes(LayerTar().add("etc/.wh.kept"))],
        "an opaque mark through a symlink": [bytes(LayerTar().symlink("etc", outside)), bytes(LayerTar().add("etc/.wh..wh..opq"))],
        "a directory's mode through a symlink": [bytes(LayerTar().symlink("etc", outside).directory("etc", mode=0o777))],
        "overlay's own attributes": [
            bytes(LayerTar().directory("etc").add("etc/inner")),
            bytes(LayerTar().directory("etc", xattrs={"trusted.overlay.redirect": outside.encode(), "trusted.overlay.opaque": b"y"})),
        ],
    }


@pytest.mark.root
@pytest.mark.parametrize("kind", ["erofs", "directory"])
@pytest.mark.parametrize("attack", attacks(Path("/nowhere")))
def test_no_layer_reaches_the_host(home: Path, run_directory: Path, kind: str, attack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Symlinks, hard links and whiteouts across layers: the victim directory stays as it was, whatever comes of the image."""
    victim = home / "victim"
    victim.mkdir(mode=0o755)
    (victim / "kept").write_bytes(b"original")
    before = census(victim), victim.stat().st_mode
    monkeypatch.setattr("bulle.store.layers.choose_backend", lambda home, workspace: BACKENDS[kind])
    with open_store(home) as store:
        image = put_image(store, attacks(victim)[attack], "attack")

        def look() -> set[bytes]:
            show_merged(store, image, home / "merged")
            return set(census(home / "merged"))

        seen = in_mount_namespace(look)
    assert (census(victim), victim.stat().st_mode) == before
    if attack == "overlay's own attributes":
        assert b"etc/inner" in seen, "an archive must not make directories opaque by overlayfs's own attributes"


def bombs() -> dict[str, Callable[[], bytes]]:
    """Layers that are small to send and large to keep."""

    def sparse(name: bytes, size: int) -> bytes:
        member = tarfile.TarInfo("bomb")
        member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "bomb", "GNU.sparse.realsize": str(size)}
        member.size = 512
        return member.tobuf(tarfile.PAX_FORMAT) + b"1\n0\n0\n".ljust(512, b"\0") + bytes(1024)

    def segments() -> bytes:
        member = tarfile.TarInfo("bomb")
        text = b"60\n" + b"".join(b"%d\n0\n" % number for number in range(60))
        member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "bomb", "GNU.sparse.realsize": "100"}
        member.size = 512
        return member.tobuf(tarfile.PAX_FORMAT) + text.ljust(512, b"\0") + bytes(1024)

    def large_header() -> bytes:
        member = tarfile.TarInfo("x")
        member.type, member.size = b"L", 8192
        return member.tobuf() + bytes(8192) + tarfile.TarInfo("y").tobuf() + bytes(1024)

    return {
        "zeros": lambda: bytes(LayerTar().add("zeros", content=bytes(4 << 20))),
        "too large": lambda: bytes(LayerTar().add("noise", content=os.urandom(9 << 20))),
        "entries": lambda: b"".join(tarfile.TarInfo(f"{number}").tobuf() for number in range(501)),
        "sparse": lambda: sparse(b"bomb", 1 << 40),
        "sparse beyond numbers": lambda: sparse(b"bomb", 1 << 64),
        "sparse segments": segments,
        "extended header": large_header,
        "long link chain": lambda: bytes(LayerTar().symlink("a", "a").add("a/b")),
    }


@pytest.mark.parametrize("bomb", bombs())
def test_bombs_are_bounded(store: Store, home: Path, bomb: str) -> None:
    """Decompression, entries, sparse sizes and extended headers: refused with the store as before."""
    tar = bombs()[bomb]()
    blob = gzip.compress(tar, 9)
    before = files(home)
    with store.receiving(), pytest.raises(CorruptImage):
        store.layers.ingest(pieces(blob), OCI_LAYER + "+gzip", Digest.of(blob), len(blob), Digest.of(tar))
    assert files(home) == before
    assert not store.layers.has(Digest.of(tar))


def test_a_bomb_is_stopped_while_it_grows(store: Store) -> None:
    """Not more is read than the bound allows: a stream that would go on for ever ends."""
    read = 0

    def endless() -> Iterator[bytes]:
        nonlocal read
        while True:
            read += 65536
            yield bytes(65536)

    with pytest.raises(CorruptImage):
        store.layers.ingest(endless(), OCI_LAYER, None, None, Digest.of(b""))
    assert read < 10 << 20
    read = 0
    with pytest.raises(CorruptImage, match="announced"):
        store.layers.ingest(endless(), OCI_LAYER, None, 1 << 20, Digest.of(b""))
    assert read < 2 << 20


def wrong(tar: bytes) -> dict[str, tuple[bytes, str, Digest, int, Digest]]:
    """What a registry could send instead of the layer."""
    blob = gzip.compress(tar)
    good, other = (Digest.of(blob), Digest.of(tar)), Digest.of(b"other")
    return {
        "digest of the blob": (blob, "+gzip", other, len(blob), good[1]),
        "digest of the tar": (blob, "+gzip", good[0], len(blob), other),
        "shorter": (blob, "+gzip", good[0], len(blob) + 1, good[1]),
        "longer": (blob, "+gzip", good[0], len(blob) - 1, good[1]),
        "media type": (blob, "+brotli", good[0], len(blob), good[1]),
        "gzip as tar": (blob, "", good[0], len(blob), good[1]),
        "tar as gzip": (tar, "+gzip", good[1], len(tar), good[1]),
        "tar as zstd": (tar, "+zstd", good[1], len(tar), good[1]),
        "truncated gzip": (blob[:-9], "+gzip", Digest.of(blob[:-9]), len(blob) - 9, good[1]),
        "no bytes": (b"", "+gzip", Digest.of(b""), 0, good[1]),
        "garbage behind gzip": (blob + b"garbage", "+gzip", Digest.of(blob + b"garbage"), len(blob) + 7, good[1]),
        "truncated tar": (tar[:700], "", Digest.of(tar[:700]), 700, Digest.of(tar[:700])),
        "not a tar": (b"x" * 4096, "", Digest.of(b"x" * 4096), 4096, Digest.of(b"x" * 4096)),
    }


TAR = bytes(LayerTar().add("file", content=b"content" * 300))


@pytest.mark.parametrize("case", wrong(TAR))
def test_wrong_digests_sizes_and_media_types_are_refused(store: Store, home: Path, case: str) -> None:
    """Nothing becomes visible, nothing is left; the right layer is accepted afterwards."""
    content, suffix, blob_digest, size, diff_id = wrong(TAR)[case]
    before = files(home)
    with store.receiving(), pytest.raises(CorruptImage):
        store.layers.ingest(pieces(content, 100), OCI_LAYER + suffix, blob_digest, size, diff_id)
    assert files(home) == before
    ingest(store, TAR)
    assert store.layers.has(Digest.of(TAR))


def commits() -> dict[str, Callable[[bytes, bytes], tuple[bytes, str, bytes]]]:
    """Ways in which manifest and config can be wrong."""
    return {
        "media type": lambda manifest, config: (manifest, "application/json", config),
        "config": lambda manifest, config: (manifest, OCI_MANIFEST, config + b" "),
        "no json": lambda manifest, config: (manifest[:-5], OCI_MANIFEST, config),
        "layers": lambda manifest, config: (manifest.replace(Digest.of(TAR).encode(), Digest.of(b"").encode()), OCI_MANIFEST, config),
        "schema": lambda manifest, config: (manifest.replace(b'"schemaVersion": 2', b'"schemaVersion": 1'), OCI_MANIFEST, config),
        "digest": lambda manifest, config: (manifest.replace(b"sha256:", b"sha256;"), OCI_MANIFEST, config),
    }


@pytest.mark.parametrize("case", commits())
def test_documents_that_do_not_belong_together_are_refused(store: Store, case: str) -> None:
    """No image, no name appears."""
    manifest, config, _ = documents([TAR])
    ingest(store, TAR)
    with pytest.raises(CorruptImage):
        wrong_manifest, media_type, wrong_config = commits()[case](manifest, config)
        store.images.commit(wrong_manifest, media_type, wrong_config, [(Digest.of(TAR), Digest.of(TAR))], [Reference.parse("x")])
    assert store.images.list() == []


def test_an_image_whose_layers_never_came_is_refused(store: Store) -> None:
    """The transaction needs every layer."""
    manifest, config, _ = documents([TAR])
    with pytest.raises(BulleError, match="no such layer"):
        store.images.commit(manifest, OCI_MANIFEST, config, [(Digest.of(TAR), Digest.of(TAR))], [Reference.parse("x")])
    assert store.images.list() == []


@pytest.mark.parametrize("owner", [2**32 - 1, 2**32, 2**40])
def test_impossible_owners_are_refused(store: Store, owner: int) -> None:
    """An id that would wrap around to root, or that means none."""
    with pytest.raises(CorruptImage, match="impossible user"):
        ingest(store, bytes(LayerTar().add("file", uid=owner)))


def test_flipped_bits_never_crash_the_reader(store: Store) -> None:
    """Every damaged archive is either a CorruptImage or a layer."""
    tar = LayerTar(tarfile.GNU_FORMAT).add("n" * 150, content=b"x").hardlink("l", "n" * 150).symlink("s", "t" * 150)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("pax" * 50)
        member.mtime, member.pax_headers = 1.5, {"SCHILY.xattr.user.a": "b", "GNU.sparse.map": "0,1", "GNU.sparse.size": "5"}
        archive.addfile(member)
    content = bytes(tar)[:-1024] + out.getvalue()
    for position in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= 0x15
        block = position // 512 * 512
        # Headers get a right checksum again, or nothing behind it would be tried.
        if position % 2:
            header = damaged[block : block + 512]
            header[148:156] = b" " * 8
            damaged[block + 148 : block + 156] = b"%06o\0 " % sum(header)
        try:
            ingest(store, bytes(damaged))
        except CorruptImage:
            continue
