"""The index of a layer, written and read back without mounting: what the tar says is what the reader finds."""

from __future__ import annotations

import stat
import tarfile
from pathlib import Path

import pytest

from bulle.errors import CorruptImage, InvalidInput
from bulle.store.erofs import write_index
from bulle.store.erofs_reader import Index
from bulle.store.limits import Limits
from bulle.store.merged_view import MergedView
from bulle.store.tree import Node, build_tree
from bulle_testing.layers import LayerTar


def indexed(tmp_path: Path, name: str, tar: LayerTar, below: MergedView | None = None) -> Index:
    """The index of one layer."""
    content = bytes(tar)
    with (tmp_path / name).open("xb") as out:
        write_index(build_tree(content, Limits(), below.lookup if below else None), content, out)
    return Index(tmp_path / name)


def walked(index: Index) -> dict[bytes, Node]:
    """Every path of an index."""
    found: dict[bytes, Node] = {}
    pending = [(b"", index.root)]
    while pending:
        path, nid = pending.pop()
        for name, child, kind in index.entries(nid):
            found[path + name] = index.node(child)
            assert index.find(nid, name) == child
            if kind == 2:
                pending.append((path + name + b"/", child))
    return found


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    """Attributes of every kind of file, in directories of one and of many blocks."""
    tar = LayerTar().directory("d", mode=0o2750, uid=1, gid=2, xattrs={"user.a": b"b"})
    tar.add("d/file", content=b"x" * 700, mode=0o4711, uid=70_000, gid=2**32 - 2, mtime=-5.25).hardlink("d/link", "d/file")
    tar.symlink("d/short", "target").symlink("d/long", "t" * 4000).add("d/disk", tarfile.BLKTYPE, devmajor=4095, devminor=2**20 - 1)
    tar.add("d/.wh.gone").add("o/.wh..wh..opq").add("empty")
    for number in range(500):
        tar.add(f"many/{number:03}" + "n" * (number % 200))
    found = walked(indexed(tmp_path, "index", tar))
    assert len([name for name in found if name.startswith(b"many/")]) == 500
    directory, file = found[b"d"], found[b"d/file"]
    assert (directory.mode, directory.uid, directory.gid, directory.links) == (stat.S_IFDIR | 0o2750, 1, 2, 2)
    assert (directory.xattrs, directory.holds_whiteouts, directory.opaque) == ({b"user.a": b"b"}, True, False)
    assert (file.mode, file.uid, file.gid, file.size, file.links) == (stat.S_IFREG | 0o4711, 70_000, 2**32 - 2, 700, 2)
    assert (file.mtime, file.mtime_ns) == (-6, 750_000_000)
    assert bytes(tar)[file.data_offset :][:700] == b"x" * 700
    assert (found[b"d/short"].target, found[b"d/long"].target) == (b"target", b"t" * 4000)
    assert found[b"d/disk"].device == (4095, 2**20 - 1)
    assert found[b"d/gone"].is_whiteout
    assert found[b"o"].opaque


def test_an_empty_layer_has_an_index(tmp_path: Path) -> None:
    """Also where the tar has no byte at all."""
    assert walked(indexed(tmp_path, "index", LayerTar())) == {}
    with (tmp_path / "none").open("xb") as out:
        write_index(build_tree(b"", Limits()), b"", out)
    assert walked(Index(tmp_path / "none")) == {}


def test_the_same_layer_gives_the_same_index(tmp_path: Path) -> None:
    """Byte for byte, so that it can be compared and rebuilt."""
    for name in ("one", "two"):
        indexed(tmp_path, name, LayerTar().directory("d").add("d/file", content=b"1"))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_merged_view_finds_what_overlayfs_would_show(tmp_path: Path) -> None:
    """The topmost wins, whiteouts and opaque directories hide, files hide directories."""
    low = LayerTar().directory("a", mode=0o700).add("a/x", mode=0o600).directory("gone").add("gone/x")
    low.directory("o").add("o/x").directory("f").add("f/x")
    high = LayerTar().directory("a", mode=0o711).add(".wh.gone").directory("o").add("o/.wh..wh..opq").add("f")
    view = MergedView([indexed(tmp_path, "low", low), indexed(tmp_path, "high", high)])

    def mode(*path: bytes) -> int | None:
        node = view.lookup(path)
        return None if node is None else node.mode

    assert mode(b"a") == stat.S_IFDIR | 0o711
    assert mode(b"a", b"x") == stat.S_IFREG | 0o600
    assert mode(b"f") == stat.S_IFREG | 0o644
    for hidden in ((b"gone",), (b"gone", b"x"), (b"o", b"x"), (b"f", b"x"), (b"never",), (b"a", b"x", b"y")):
        assert mode(*hidden) is None, hidden


def test_directories_that_a_layer_does_not_describe_come_from_below(tmp_path: Path) -> None:
    """Unless the layer has removed them first."""
    low = indexed(tmp_path, "low", LayerTar().directory("tmp", mode=0o1777, uid=3).directory("etc", mode=0o700))
    high = indexed(tmp_path, "high", LayerTar().add("tmp/x").add(".wh.etc").add("etc/new").add("new/x"), MergedView([low]))
    found = walked(high)
    assert (found[b"tmp"].mode, found[b"tmp"].uid) == (stat.S_IFDIR | 0o1777, 3)
    assert (found[b"etc"].mode, found[b"etc"].opaque) == (stat.S_IFDIR | 0o755, True)
    assert found[b"new"].mode == stat.S_IFDIR | 0o755


@pytest.mark.parametrize("position", [1024, 1036])
def test_a_damaged_index_is_said(tmp_path: Path, position: int) -> None:
    """Not our magic number, not our block size."""
    indexed(tmp_path, "index", LayerTar().add("x"))
    damaged = bytearray((tmp_path / "index").read_bytes())
    damaged[position] ^= 0xFF
    (tmp_path / "index").write_bytes(damaged)
    with pytest.raises(CorruptImage, match="damaged"):
        Index(tmp_path / "index")


def test_a_merged_view_follows_links_and_reads_files(tmp_path: Path) -> None:
    """Inside itself, whatever the links say; of what is missing the names are taken as they are."""
    low = LayerTar().directory("usr").directory("usr/lib").add("usr/lib/x", content=b"low").symlink("lib", "usr/lib")
    low.symlink("up", "../../../usr/./lib")
    high = LayerTar().directory("usr").directory("usr/lib").add("usr/lib/y", content=b"high" * 1000).symlink("loop", "/loop").add("file")
    for name, tar in (("low", low), ("high", high)):
        (tmp_path / f"{name}.tar").write_bytes(bytes(tar))
    view = MergedView([indexed(tmp_path, "low", low), indexed(tmp_path, "high", high)], [tmp_path / "low.tar", tmp_path / "high.tar"])
    assert (view.text("/lib/x"), view.text("up/y"), view.text("/nothing"), view.text("/usr")) == (b"low", b"high" * 1000, None, None)
    lib = view.resolve(b"/lib").place
    assert lib is not None and [child.path[-1] for child in view.children(lib)] == [b"x", b"y"]
    missing = view.resolve(b"lib/new/../other/file")
    assert (missing.path, missing.place, missing.parent.path) == ((b"usr", b"lib", b"other", b"file"), None, (b"usr", b"lib"))
    for wrong in (b"/loop", b"/loop/x", b"/file/x", b"/file/x/y"):
        with pytest.raises(InvalidInput, match="leads nowhere"):
            view.resolve(wrong)
