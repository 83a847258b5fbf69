"""What comes from outside, however it is made: layers, archives, documents, names. The answer is a value or a BulleError."""

from __future__ import annotations

import contextlib
import io
import json
import stat
import string
import tarfile
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bulle.errors import BulleError, CorruptImage, InvalidInput, InvalidReference
from bulle.model.digest import Digest
from bulle.model.image import DOCKER_INDEX, DOCKER_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, ImageConfig, Index, Manifest, Platform
from bulle.model.platform import parse_platform
from bulle.model.reference import Reference
from bulle.registry import documents
from bulle.registry.archive import open_archive
from bulle.registry.docker_archive import DockerArchive
from bulle.store.limits import Limits
from bulle.store.tree import Node, build_tree

QUICK = settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
SMALL = Limits(layer_bytes=1 << 20, entries=50, header_bytes=2048, sparse_bytes=1 << 30, sparse_segments=20)

NAME_PARTS = st.sampled_from(
    [b"a", b"b", b"..", b".", b"/", b"/", b"//", b".wh.", b".wh..wh..opq", b".wh.a", b"etc", b"\xff", b"\n", b"x" * 101, b"y" * 256, b"\0"]
)
NAMES = st.lists(NAME_PARTS, max_size=6).map(b"".join)
NUMBERS = st.one_of(
    st.integers(0, 2**33 - 1).map(lambda number: b"%011o\0" % number),
    st.sampled_from([b"", b" ", b"7" * 12, b"-1", b"8", b"\x80" + b"\0" * 10 + b"\x05", b"\xff" * 12, b"\x80" + b"\xff" * 11, b"0x10", b"10 \0"]),
    st.binary(max_size=12),
)
RECORDS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *(b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime", b"SCHILY.xattr.user.a", b"SCHILY.xattr.trusted.overlay.opaque"),
                *(b"GNU.sparse.major", b"GNU.sparse.minor", b"GNU.sparse.realsize", b"GNU.sparse.map", b"GNU.sparse.name", b"x"),
            ]
        ),
        st.one_of(NAMES, st.sampled_from([b"0", b"1", b"-1", b"1.5", b"9" * 30, b"0,5,10,5", b"1e9", b"nan", b""])),
    ),
    max_size=4,
)


def header(name: bytes, kind: bytes, link: bytes, numbers: list[bytes], magic: bytes, prefix: bytes) -> bytes:
    """A header whose checksum is right, whatever its fields hold."""
    mode, uid, gid, size, mtime, major, minor = numbers
    fields = ((name, 100), (mode, 8), (uid, 8), (gid, 8), (size, 12), (mtime, 12), (b" " * 8, 8), (kind, 1), (link, 100), (magic, 8))
    fields += ((b"", 64), (major, 8), (minor, 8), (prefix, 155), (b"", 12))
    block = b"".join(content[:width].ljust(width, b"\0") for content, width in fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def extended(records: list[tuple[bytes, bytes]]) -> bytes:
    """The data of a pax header."""
    text = b""
    for key, value in records:
        rest = b" " + key + b"=" + value + b"\n"
        length = len(rest) + 1
        while len(str(length)) + len(rest) != length:
            length = len(str(length)) + len(rest)
        text += str(length).encode() + rest
    return text


@st.composite
def entries(draw: st.DrawFn) -> bytes:
    """One entry, perhaps with an extended header before it."""
    plain = [b"0000644\0", b"0\0", b"0\0", b"0\0", b"0\0", b"0\0", b"0\0"]
    numbers = [draw(st.one_of(st.just(number), NUMBERS)) for number in plain] if draw(st.booleans()) else plain
    magic, prefix = draw(st.sampled_from([b"ustar\x0000", b"ustar  \0", b"", b"xxxxx"])), draw(st.one_of(st.just(b""), NAMES))
    kind = draw(st.sampled_from([b"0", b"\0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"S", b"Z"]))
    entry = header(draw(NAMES), kind, draw(NAMES), numbers, magic, prefix)
    before = draw(st.sampled_from([b"", b"", b"x", b"g", b"L", b"K", b"V"]))
    if before:
        data = extended(draw(RECORDS)) if before in b"xg" else draw(NAMES)
        data = draw(st.sampled_from([data, data, data[:-1], data + b"\0", data.replace(b"=", b"")]))
        size = [b"0000644\0", b"0\0", b"0\0", b"%o\0" % len(data), b"0\0", b"0\0", b"0\0"]
        entry = header(b"extension", before, b"", size, magic, b"") + data.ljust(len(data) + 511 & ~511, b"\0") + entry
    return entry


def nodes(root: Node) -> Iterator[tuple[bytes, Node]]:
    """Every name of a tree with its node."""
    waiting = [root]
    while waiting:
        for name, node in (waiting.pop().children or {}).items():
            yield name, node
            if node.children is not None:
                waiting.append(node)


def check_tree(data: bytes) -> None:
    """A tree can be built and holds nothing but plain names and places within the archive, or the layer is refused."""
    try:
        tree = build_tree(data, SMALL)
    except CorruptImage:
        return
    for name, node in nodes(tree.root):
        assert name not in (b"", b".", b"..") and b"/" not in name and b"\0" not in name and len(name) <= 255
        assert 0 <= node.uid < 2**32 - 1 and 0 <= node.gid < 2**32 - 1
        assert not any(key.startswith((b"trusted.overlay.", b"user.overlay.")) for key in node.xattrs or {})
        if stat.S_ISREG(node.mode):
            assert node.size >= 0 and node.data_offset <= len(data)
            assert node.segments is not None or node.data_offset + node.size <= len(data)


@QUICK
@given(parts=st.lists(entries(), max_size=6), rest=st.one_of(st.just(b"\0" * 1024), st.binary(max_size=600)))
def test_layers_of_odd_headers(parts: list[bytes], rest: bytes) -> None:
    check_tree(b"".join(parts) + rest)


@pytest.mark.parametrize("body", [b"path=a\n", b"\n", b"20\n", b"a" * 30 + b"\n", b"8 path=\n\n", b"0 \n", b"1 \n", b"3 \n", b"9" * 30 + b" a=b\n"])
def test_extended_headers_without_an_end(body: bytes) -> None:
    """Records whose length leads nowhere, or back to where they begin."""
    size = [b"0000644\0", b"0\0", b"0\0", b"%o\0" % len(body), b"0\0", b"0\0", b"0\0"]
    data = header(b"extension", b"x", b"", size, b"ustar\x0000", b"") + body.ljust(512, b"\0")
    with pytest.raises(CorruptImage, match="a pax header is malformed"):
        build_tree(data + header(b"a", b"0", b"", [b"0\0"] * 7, b"ustar\x0000", b""), SMALL)


def plain_layer() -> bytes:
    """A layer with every kind of entry, as Python writes it."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, link in [
            *(("d", tarfile.DIRTYPE, ""), ("d/f", tarfile.REGTYPE, ""), ("d/s", tarfile.SYMTYPE, "../../etc"), ("h", tarfile.LNKTYPE, "d/f")),
            *(("n" * 150, tarfile.REGTYPE, ""), ("c", tarfile.CHRTYPE, ""), ("p", tarfile.FIFOTYPE, ""), ("d/.wh.x", tarfile.REGTYPE, "")),
        ]:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, link
            member.size = 5 if name.endswith("f") else 0
            member.pax_headers = {"SCHILY.xattr.user.x": "y"}
            tar.addfile(member, io.BytesIO(b"12345"))
    return output.getvalue()


LAYER = plain_layer()


@QUICK
@given(changes=st.lists(st.tuples(st.integers(0, len(LAYER) - 1), st.binary(min_size=1, max_size=8)), max_size=4), end=st.integers(0, len(LAYER)))
def test_damaged_layers(changes: list[tuple[int, bytes]], end: int) -> None:
    data = bytearray(LAYER)
    for place, instead in changes:
        data[place : place + len(instead)] = instead
    # Half of the time with the checksums made right again, so that what is behind them is reached.
    for repaired in (False, True):
        for begin in range(0, len(data) - 511, 512) if repaired else ():
            block = bytes(data[begin : begin + 512])
            if block[257:262] == b"ustar":
                data[begin + 148 : begin + 156] = b"%06o\0 " % sum(block[:148] + b" " * 8 + block[156:])
        check_tree(bytes(data))
        check_tree(bytes(data[:end]))


GOOD = "sha256:" + "ab" * 32
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([GOOD, "sha512:" + "0" * 128, "sha256:x", "md5:" + "0" * 32, "../../etc/passwd", "layers", "linux", "amd64", "", "v8"]),
    st.sampled_from([OCI_MANIFEST, OCI_INDEX, OCI_CONFIG, OCI_LAYER, DOCKER_MANIFEST, DOCKER_INDEX, "text/plain"]),
    st.text(max_size=5),
)
KEYS = st.sampled_from(
    [
        *("schemaVersion", "mediaType", "config", "layers", "manifests", "digest", "size", "annotations", "platform", "os", "architecture"),
        *("variant", "rootfs", "diff_ids", "type", "history", "Env", "Cmd", "Entrypoint", "Healthcheck", "Test", "created", "urls", "x"),
    ]
)
VALUES = st.recursive(LEAVES, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=5)), max_leaves=12)
TYPES = st.sampled_from([OCI_LAYER, OCI_CONFIG, OCI_MANIFEST, f"{OCI_LAYER}+gzip"])
DESCRIPTOR = st.fixed_dictionaries(
    {"mediaType": TYPES, "digest": st.sampled_from([GOOD, "bad"]), "size": LEAVES},
    optional={"platform": VALUES, "annotations": VALUES, "urls": VALUES},
)
DOCUMENT = st.one_of(
    VALUES,
    st.fixed_dictionaries(
        {"schemaVersion": st.just(2), "config": DESCRIPTOR, "layers": st.lists(DESCRIPTOR, max_size=3)}, optional={"mediaType": LEAVES}
    ),
    st.fixed_dictionaries({"manifests": st.lists(DESCRIPTOR, max_size=3)}, optional={"mediaType": LEAVES, "schemaVersion": LEAVES}),
    st.fixed_dictionaries(
        {"rootfs": st.fixed_dictionaries({"diff_ids": st.lists(st.sampled_from([GOOD, "x"]), max_size=3), "type": LEAVES})},
        optional={"config": VALUES, "os": LEAVES, "architecture": LEAVES, "history": VALUES},
    ),
)
RAW = st.one_of(DOCUMENT.map(lambda document: json.dumps(document).encode()), st.binary(max_size=60), st.just(b"[" * 100_000))


@QUICK
@given(raw=RAW, other=RAW, claimed=st.sampled_from(["", OCI_MANIFEST, DOCKER_INDEX, "text/html; charset=utf-8"]))
def test_documents(raw: bytes, other: bytes, claimed: str) -> None:
    with contextlib.suppress(CorruptImage):
        assert documents.kind_of(raw, claimed, "x") in (OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX)
    with contextlib.suppress(BulleError):
        index = Index.parse(raw)
        for descriptor in index.manifests:
            assert str(descriptor.parsed_digest) == GOOD and 0 <= descriptor.size <= 2**62
        assert documents.choose(index, Platform("linux", "amd64", ""), "x") in index.manifests
    with contextlib.suppress(CorruptImage):
        config = ImageConfig.parse(raw)
        with contextlib.suppress(CorruptImage):
            manifest = Manifest.parse(other)
            assert len(documents.layers_of(manifest, config, "x")) == len(config.diff_ids)


@QUICK
@given(manifest=RAW, config=RAW, extra=NAMES)
def test_archives_of_docker(manifest: bytes, config: bytes, extra: bytes) -> None:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.GNU_FORMAT) as tar:
        odd = extra.decode("latin-1").replace("\0", "") or "empty"
        for name, content in (("manifest.json", manifest), ("config.json", config), ("repositories", b"{}"), (odd, b"x")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    read_archive(output.getvalue())


@QUICK
@given(entry=DOCUMENT, parts=st.lists(entries(), max_size=4))
def test_archives_of_odd_headers(entry: object, parts: list[bytes]) -> None:
    content = json.dumps([{"Config": "a", "Layers": ["b", "etc/../b", "/a"], "RepoTags": ["x:y", "../z"]}, entry]).encode()
    size = [b"0000644\0", b"0\0", b"0\0", b"%o\0" % len(content), b"0\0", b"0\0", b"0\0"]
    first = header(b"manifest.json", b"0", b"", size, b"ustar\x0000", b"") + content.ljust(len(content) + 511 & ~511, b"\0")
    read_archive(first + b"".join(parts) + b"\0" * 1024)


def read_archive(content: bytes) -> None:
    """All that is read of an archive, or its refusal."""
    with contextlib.suppress(BulleError):
        archive = open_archive(io.BytesIO(content), None)
        with contextlib.closing(archive), contextlib.closing(DockerArchive(archive, Platform("linux", "amd64"))) as source:
            for image in source.images():
                assert image.config and image.manifest


WORDS = ["docker.io", "library", "a", "B", "/", "/", ":", "@", GOOD, "latest", "localhost", ":5000", "..", "[::1]", "é", " ", "\n"]
REFERENCES = st.one_of(
    st.text(string.ascii_letters + string.digits + "./:@-_[]", max_size=40),
    st.lists(st.sampled_from(WORDS), max_size=6).map("".join),
    st.text(max_size=20),
    st.sampled_from(["a" * 5000, "a/" * 5000, "a-" * 5000 + "!", "a." * 5000 + "/!", "a:" * 5000]),
)


@QUICK
@given(text=REFERENCES)
def test_references(text: str) -> None:
    with contextlib.suppress(InvalidReference):
        found = Reference.parse(text)
        assert Reference.parse(found.canonical).canonical == found.canonical
        assert Reference.parse(found.familiar).canonical == found.canonical
        assert not {"..", "."} & set(found.path.split("/")) and found.path == found.path.lower()
    with contextlib.suppress(CorruptImage):
        assert Digest.parse(text) == text
    with contextlib.suppress(InvalidInput):
        assert parse_platform(text).os
