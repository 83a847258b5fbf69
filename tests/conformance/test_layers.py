"""The three ways to show layers, held to one suite: what stands at the path is, stat by stat, what umoci unpacks from the same image."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import struct
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bulle.errors import BulleError
from bulle.model.image import OCI_MANIFEST, ImageConfig
from bulle.store import Store, layers
from bulle.store.backend import LayerBackend
from bulle.store.backends import BACKENDS, _make_trial
from bulle_testing import places, tiers
from bulle_testing.layers import LayerTar, census, differences, documents, in_mount_namespace, open_store, put_image, show_merged, write_layout

pytestmark = [pytest.mark.root, pytest.mark.programs("umoci")]

CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
NOBODY = 2**32 - 1
ACL_ENTRIES = ((1, 6, NOBODY), (2, 4, 33), (4, 4, NOBODY), (16, 4, NOBODY), (32, 4, NOBODY))
ACL = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in ACL_ENTRIES)


@pytest.fixture(params=["erofs", "loop", "directory"])
def store(request: pytest.FixtureRequest, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store that shows layers in one of the three ways."""
    backend = BACKENDS[request.param]
    monkeypatch.setattr(layers, "choose_backend", lambda home, workspace: backend)
    with open_store(home) as store:
        if reason := why_not(home, backend):
            tiers.give_up(backend.kind, reason)
        yield store


def why_not(home: Path, backend: LayerBackend) -> str:
    """Why this kernel cannot show layers in that way; empty where it can."""
    trial = home / "trial"
    trial.mkdir()
    try:
        probe = backend.probe(_make_trial(trial))
    finally:
        shutil.rmtree(trial)
    return "" if probe.usable else probe.reason


def everything() -> list[bytes]:
    """One layer with a file of every kind."""
    tar = LayerTar()
    tar.directory("d", mode=0o751, uid=33, gid=44)
    tar.add("d/file", content=b"x" * 5000, mode=0o640, uid=1000, gid=1001, mtime=1_234_567_890.987654321)
    tar.add("d/empty").add("d/one", content=b"1").add("d/block", content=b"b" * 512).add("d/blocks", content=os.urandom(70_000))
    tar.add("d/setuid", content=b"s", mode=0o4755).add("d/setgid", content=b"s", mode=0o2755).directory("d/sticky", mode=0o1777)
    tar.add("d/nothing-allowed", content=b"n", mode=0o000, uid=65534, gid=65534).directory("d/closed", mode=0o000)
    tar.add("d/closed/inside", content=b"i").add("d/big-ids", content=b"", uid=4_000_000_000, gid=300_000)
    tar.add("d/old", mtime=0).add("d/before-the-epoch", mtime=-86_400.5).add("d/2100", mtime=4_102_444_800)
    tar.hardlink("d/link1", "d/file").hardlink("d/link2", "d/link1")
    tar.symlink("d/relative", "file", uid=7).symlink("d/absolute", "/d/file").symlink("d/dangling", "nowhere").symlink("d/long", "t/" * 300 + "e")
    tar.symlink("d/longer", "u/" * 1000 + "e").hardlink("d/linked-symlink", "d/relative")
    tar.add("d/null", tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666).add("d/disk", tarfile.BLKTYPE, devmajor=259, devminor=70_000)
    tar.add("d/fifo", tarfile.FIFOTYPE, mode=0o600)
    tar.add("d/capable", content=b"c", xattrs={"security.capability": CAPABILITY})
    tar.add("d/attributes", content=b"a", xattrs={"user.one": b"1", "user.two": b"\xff" * 200, "trusted.three": b"3"})
    tar.directory("d/acl", xattrs={"user.dir": b"d"}).add("d/acl/file", content=b"a", mode=0o644, xattrs={"system.posix_acl_access": ACL})
    tar.add("d/" + "n" * 255, content=b"long").add("/".join(["deep" * 10] * 40), content=b"deep").add("d/caf\udce9 \n", content=b"bytes")
    tar.directory("many").add("d/twice", content=b"first").add("d/twice", content=b"second", mode=0o600)
    for number in range(300):
        tar.add(f"many/a file with a longer name {number}", content=str(number).encode())
    tar.add("d/replaced", content=b"file").directory("d/replaced", mode=0o700).directory("d/emptied").add("d/emptied", content=b"now a file")
    return [bytes(tar)]


def other_formats() -> list[bytes]:
    """Long names as GNU tar writes them, prefixes as ustar does, and the oldest form of a directory."""
    gnu = LayerTar(tarfile.GNU_FORMAT).add("a" * 120, content=b"1").add("b/" * 70 + "c", content=b"2").symlink("l", "t" * 200)
    gnu.add("huge-id", uid=3_000_000, gid=2**31).hardlink("h", "b/" * 70 + "c")
    ustar = LayerTar(tarfile.USTAR_FORMAT).add("p" * 90 + "/" + "q" * 90, content=b"3").add("old/", tarfile.AREGTYPE)
    return [bytes(gnu), bytes(ustar)]


def forms_unknown_to_umoci() -> list[bytes]:
    """Sparse files in all the forms that GNU tar can write, and its contiguous files."""
    tars = [bytes(LayerTar().add("contiguous", tarfile.CONTTYPE, b"4"))]
    directory = Path(f"/var/tmp/bulle-sparse-{os.getpid()}")
    try:
        directory.mkdir()
        for number, options in enumerate(("--format=gnu", "--format=pax --sparse-version=0.0", "--format=pax --sparse-version=0.1", "--format=pax")):
            path = directory / f"sparse{number}"
            with path.open("wb") as file:
                for position in range(0, 4_000_000, 150_000):  # more segments than fit into one header
                    file.seek(position)
                    file.write(b"%d" % position)
                file.truncate(5_000_001)
            os.utime(path, (1_600_000_000, 1_600_000_000))
            (directory / "plain").write_bytes(b"after")
            done = subprocess.run(["tar", "-C", directory, "--sparse", *options.split(), "-c", path.name, "plain"], capture_output=True, check=True)
            tars.append(done.stdout)
        return tars
    finally:
        shutil.rmtree(directory)


def whiteouts() -> list[bytes]:
    """Deleted files and directories, opaque directories, and names that one layer deletes and makes."""
    lower = LayerTar()
    for name in ("gone", "back", "opaque", "file-to-dir", "kept", "deep"):
        lower.directory(name, uid=5).add(f"{name}/old", content=b"old").directory(f"{name}/sub").add(f"{name}/sub/old", content=b"old")
    lower.add("file", content=b"f").symlink("link", "kept").add("dir-to-file/x", content=b"x")
    upper = LayerTar().add(".wh.gone").add(".wh.file").add(".wh.link").add(".wh.never-was")
    upper.add("kept/.wh.old").directory("kept", mode=0o700, uid=6).add("kept/.wh.nothing").directory("kept/new").add("kept/new/.wh.nothing-either")
    upper.directory("only-here").add("only-here/.wh.nothing").add("only-here/file")
    upper.add(".wh.back").directory("back", mode=0o711).add("back/new", content=b"new")
    upper.directory("opaque", mode=0o755).add("opaque/.wh..wh..opq").add("opaque/new", content=b"new")
    upper.add("deep/sub/.wh.old").add("deep/sub/new", content=b"new").add("dir-to-file", content=b"now a file")
    top = LayerTar().add("kept/new/file", content=b"top").directory("gone", mode=0o700).add("gone/again", content=b"again").add(".wh..wh.aufs")
    return [bytes(lower), bytes(upper), bytes(top)]


def implicit_parents() -> list[bytes]:
    """Layers that do not describe the directories that they change."""
    base = LayerTar().directory("tmp", mode=0o1777)
    base.directory("srv", mode=0o2750, uid=10, gid=11, mtime=1_111_111_111, xattrs={"user.kept": b"yes"}).directory("srv/data", mode=0o700, uid=12)
    base.directory("usr").directory("usr/lib", mode=0o711).symlink("lib", "usr/lib").symlink("abs", "/srv/data")
    middle = LayerTar().add("tmp/x", content=b"x").add("srv/data/y", content=b"y").add("lib/z", content=b"z").add("fresh/dir/file", content=b"f")
    top = LayerTar().add("tmp/w", content=b"w").add("srv/data/v", content=b"v").add("lib/y", content=b"y").add("abs/through", content=b"t")
    top.add("srv/.wh.nothing").add("usr/lib/.wh.z")
    return [bytes(base), bytes(middle), bytes(top)]


def symlinks_in_one_layer() -> list[bytes]:
    """Entries whose directories are symlinks, made by the same layer or the one below."""
    first = LayerTar().directory("real", mode=0o750).symlink("alias", "real").add("alias/one", content=b"1").symlink("up", "../../real")
    first.add("up/two", content=b"2").symlink("chain", "alias").hardlink("chain/three", "alias/one").symlink("a", "b").symlink("b", "real")
    second = LayerTar().add("a/four", content=b"4").add("alias/.wh.one").directory("real", mode=0o700)
    return [bytes(first), bytes(second)]


def attributes_of_the_root() -> list[bytes]:
    """A root directory of its own mode, then a layer that says nothing about it."""
    return [bytes(LayerTar().directory(".", mode=0o711, uid=1).add("a")), bytes(LayerTar().directory("b")), bytes(LayerTar())]


IMAGES: list[Callable[[], list[bytes]]] = [
    everything, other_formats, whiteouts, implicit_parents, symlinks_in_one_layer, attributes_of_the_root,
]  # fmt: skip


@functools.cache
def made(image: Callable[[], list[bytes]]) -> list[bytes]:
    """The same bytes for every way."""
    return image()


def unpacked_by_umoci(directory: Path, tars: list[bytes]) -> Path:
    """The root that umoci makes of an image with these layers."""
    write_layout(directory / "layout", tars)
    command = [str(tiers.program("umoci")), "unpack", "--image", f"{directory / 'layout'}:image", str(directory / "bundle")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return directory / "bundle" / "rootfs"


def shown(store: Store, tars: list[bytes], directory: Path) -> dict[bytes, tuple[object, ...]]:
    """What stands where the image is mounted, its root directory under an empty name."""
    image = put_image(store, tars, "image")

    def look() -> dict[bytes, tuple[object, ...]]:
        target = directory / "merged"
        show_merged(store, image, target)
        status = target.stat()
        return {b"": (oct(status.st_mode), status.st_uid, status.st_gid), **census(target)}

    found: dict[bytes, tuple[object, ...]] = in_mount_namespace(look)
    return found


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.__name__)
def test_layers_show_what_umoci_unpacks(store: Store, home: Path, image: Callable[[], list[bytes]]) -> None:
    """Type, mode, owner, size, time, device, target, extended attributes, content and hard links of everything are the same."""
    tars = made(image)
    ours = shown(store, tars, home)
    root = unpacked_by_umoci(home, tars)
    theirs = {b"": (oct(root.stat().st_mode), root.stat().st_uid, root.stat().st_gid), **census(root)}
    assert differences(ours, theirs) == []


def test_sparse_files_are_what_gnu_tar_extracts(store: Store, home: Path) -> None:
    """umoci knows no sparse files, so GNU tar is asked."""
    tars = made(forms_unknown_to_umoci)
    (home / "extracted").mkdir()
    for tar in tars:
        subprocess.run(["tar", "-C", home / "extracted", "-x"], input=tar, check=True)
    ours = shown(store, tars, home)
    ours.pop(b"")
    assert differences(ours, census(home / "extracted")) == []
    index = store.layers.index(store.images.get("image").layers)[1]
    assert index.stat().st_blocks * 512 < 1_000_000, "the holes of a sparse file must not fill the disk"


@pytest.fixture(scope="module")
def debian_by_umoci(run_directory: Path, debian_tar: Path) -> dict[bytes, tuple[object, ...]]:
    """What umoci unpacks of a real Debian image."""
    directory = run_directory / "debian-by-umoci"
    directory.mkdir()
    found: dict[bytes, tuple[object, ...]] = census(unpacked_by_umoci(directory, [debian_tar.read_bytes()]))
    places.remove_tree(directory)
    return found


def test_a_real_debian_image_shows_what_umoci_unpacks(
    store: Store, home: Path, debian_tar: Path, debian_by_umoci: dict[bytes, tuple[object, ...]]
) -> None:
    """Thousands of files as mmdebstrap packs them."""
    ours = shown(store, [debian_tar.read_bytes()], home)
    ours.pop(b"")
    assert len(ours) > 5000
    assert differences(ours, debian_by_umoci) == []


def test_130_layers(store: Store, home: Path) -> None:
    """Each adds a file, replaces one, and every other deletes what the layer before added."""
    tars = []
    for number in range(130):
        tar = LayerTar().add(f"data/{number}", content=b"%d" % number).add("same", content=b"%d" % number)
        if number % 2:
            tar.add(f"data/.wh.{number - 1}")
        tars.append(bytes(tar))
    ours = shown(store, tars, home)
    assert {name for name in ours if name.startswith(b"data/")} == {b"data/%d" % number for number in range(1, 130, 2)}
    assert ours[b"same"][3] == len("129")


def test_more_layers_than_overlayfs_stacks_are_refused_clearly(store: Store) -> None:
    """501 layers: said before anything else, and no image appears."""
    manifest, config, _ = documents([bytes(LayerTar().add(f"{number}")) for number in range(501)])
    layers_of_it = [(digest, digest) for digest in ImageConfig.parse(config).diff_ids]
    with pytest.raises(BulleError, match="at most 500"):
        store.images.commit(manifest, OCI_MANIFEST, config, layers_of_it)
    assert store.images.list() == []


def test_mounting_again_changes_nothing(store: Store, home: Path) -> None:
    """However many monitors mount one plan, at once or later: one mount a layer."""
    image = put_image(store, [bytes(LayerTar().add("a")), bytes(LayerTar().add("b"))], "image")
    plan = store.layers.plan(image.layers)

    def points() -> list[str]:
        return sorted(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(home) in line)

    def mount_twice() -> tuple[list[str], list[str]]:
        children = []
        for _ in range(8):
            children.append(os.fork())
            if not children[-1]:
                store.layers.mount(plan)
                os._exit(0)
        for child in children:
            os.waitpid(child, 0)
        first = points()
        store.layers.mount(plan)
        return first, points()

    first, second = in_mount_namespace(mount_twice)
    assert first == second == ([] if plan[0].kind == "directory" else sorted(layer.host_path for layer in plan))
    assert [Path(layer.host_path).name for layer in plan] == (["tree"] * 2 if plan[0].kind == "directory" else ["root"] * 2)


def test_a_device_that_is_a_whiteout_in_the_tar_hides_what_lies_below(store: Store, home: Path) -> None:
    """Some tools pack an overlay's upper directory as it is."""
    upper = LayerTar().add("gone", tarfile.CHRTYPE, devmajor=0, devminor=0, mode=0)
    ours = shown(store, [bytes(LayerTar().add("gone").add("kept")), bytes(upper)], home)
    assert set(ours) == {b"", b"kept"}


def test_archives_that_end_early_but_whole(store: Store, home: Path) -> None:
    """No byte at all, no end mark, and a last file that is not padded to a block."""
    unpadded = tarfile.TarInfo("last")
    unpadded.size = 700
    without_end = [bytes(LayerTar().add(name, content=content))[:-1024] for name, content in (("file", b"f" * 512), ("first", b"1"))]
    ours = shown(store, [b"", without_end[0], without_end[1] + unpadded.tobuf() + b"l" * 700], home)
    assert {name: entry[8] for name, entry in ours.items() if name} == {
        name: hashlib.sha256(content).hexdigest() for name, content in ((b"file", b"f" * 512), (b"first", b"1"), (b"last", b"l" * 700))
    }
