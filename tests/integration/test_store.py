"""The store as the engine uses it: bring in, find, name, remove, collect; and what is left when processes die or the disk is full."""

from __future__ import annotations

import ast
import concurrent.futures
import gzip
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from backports import zstd

from bulle.errors import Conflict, CorruptImage, InvalidInput, NotFound, StorageFull, Unavailable
from bulle.linux import mount, user_namespace
from bulle.linux.process import PR_SET_DUMPABLE, prctl
from bulle.linux.subordinate_ids import rootless_mappings
from bulle.model.digest import Digest
from bulle.model.image import OCI_LAYER
from bulle.model.reference import Reference
from bulle.records.database import SCHEMAS
from bulle.store import Image, Store
from bulle_testing.layers import LayerTar, census, in_mount_namespace, open_store, pieces, put_image

FIRST = bytes(LayerTar().directory("etc").add("etc/first", content=b"1" * 10_000))
SECOND = bytes(LayerTar().directory("etc").add("etc/second", content=b"2" * 10_000))
THIRD = bytes(LayerTar().add("third", content=b"3" * 10_000))


@pytest.fixture
def store(home: Path) -> Iterator[Store]:
    """A store on a private home."""
    with open_store(home) as store:
        yield store


def add_container(home: Path, image: Image, name: str = "web") -> None:
    """A container's row and leases, as the engine writes them."""
    with sqlite3.connect(home / "bulle.db") as connection:
        sql = "INSERT INTO container (id, name, image_id, created_at_ns, options, plan) VALUES (?, ?, ?, 0, x'', x'')"
        connection.execute(sql, (name * 4, name, image.id))
        connection.executemany("INSERT INTO container_layer VALUES (?, ?)", [(name * 4, str(layer)) for layer in image.layers])
    connection.close()


def stored(home: Path) -> set[str]:
    """Digests of the layers and blobs on the disk, and anything in tmp/ that belongs to no living process of this test."""
    found = {f"{kind} {path.name[:12]}" for kind in ("layers", "blobs") for path in home.glob(f"{kind}/sha256/*")}
    return found | {f"tmp {path}" for path in home.glob("tmp/*/*")}


COMPRESSIONS: list[tuple[str, Callable[[bytes], bytes] | None]] = [
    ("", None),
    ("+gzip", gzip.compress),
    ("+gzip", lambda tar: gzip.compress(tar[:600]) + gzip.compress(tar[600:]) + bytes(512)),
    ("+zstd", zstd.compress),
    ("+zstd", lambda tar: zstd.compress(tar[:600]) + b"\x50\x2a\x4d\x18\x04\0\0\0skip" + zstd.compress(tar[600:])),
]


@pytest.mark.parametrize(("suffix", "compress"), COMPRESSIONS)
@pytest.mark.parametrize("size", [1, 100, 1 << 20])
def test_every_compression_gives_the_same_layer(store: Store, suffix: str, compress: Callable[[bytes], bytes] | None, size: int) -> None:
    """One and several members or frames, whatever the pieces in which they come; the blob is kept as it came."""
    blob = compress(FIRST) if compress else FIRST
    layer = store.layers.ingest(pieces(blob, size), OCI_LAYER + suffix, Digest.of(blob), len(blob), Digest.of(FIRST))
    assert (layer.diff_id, layer.size_bytes) == (Digest.of(FIRST), len(FIRST))
    with store.layers.export_tar(layer.diff_id) as tar, store.blobs.open(Digest.of(blob)) as kept:
        assert tar.read() == FIRST
        assert kept.read() == blob


def test_the_compression_is_found_out_when_nobody_says(store: Store) -> None:
    """An empty media type: archives of docker save do not say."""
    for tar, compress in ((FIRST, bytes), (SECOND, gzip.compress), (THIRD, zstd.compress)):
        layer = store.layers.ingest(pieces(compress(tar)), "", None, None, Digest.of(tar))
        assert layer.blob_digest == Digest.of(compress(tar))


def test_a_layer_that_is_here_is_not_read_again(store: Store) -> None:
    """The chunks are never asked for."""
    put_image(store, [FIRST], "one")

    def never() -> Iterator[bytes]:
        raise AssertionError("read")
        yield b""

    assert store.layers.ingest(never(), OCI_LAYER, None, None, Digest.of(FIRST)).size_bytes == len(FIRST)


def test_images_are_found_by_every_name(store: Store) -> None:
    """Reference, id, prefix of an id, with and without the algorithm; digest of the manifest."""
    image = put_image(store, [FIRST, SECOND], "debian:12", "localhost:5000/debian:12")
    other = put_image(store, [SECOND], "other")
    for name in ("debian:12", "docker.io/library/debian:12", "localhost:5000/debian:12", image.id, image.id[7:], image.id[7:19], image.id[:15]):
        assert store.images.get(name) == image, name
    assert store.images.get(f"debian@{image.manifest_digest}") == image
    assert image.layers == (Digest.of(FIRST), Digest.of(SECOND)) == image.blob_digests
    assert image.references == ("docker.io/library/debian:12", "localhost:5000/debian:12")
    assert image.config.config.cmd == ("sh",)
    assert image.size_bytes == len(FIRST) + len(SECOND)
    assert [listed.id for listed in store.images.list()] == [other.id, image.id]
    for name in ("debian", "deb", f"other@{image.manifest_digest}", "", "sha256:", "//", "f" * 64):
        with pytest.raises(NotFound, match="no such image"):
            store.images.get(name)


def test_an_ambiguous_prefix_is_refused(store: Store) -> None:
    """Seventeen images: two ids begin with the same digit."""
    for number in range(17):
        put_image(store, [bytes(LayerTar().add(f"{number}"))])
    ids = [image.id[7:] for image in store.images.list()]
    digit = next(digit for digit in "0123456789abcdef" if sum(image_id.startswith(digit) for image_id in ids) > 1)
    with pytest.raises(InvalidInput, match="ambiguous"):
        store.images.get(digit)


def test_a_name_moves_to_the_newer_image(store: Store) -> None:
    """The older one stays, without a name."""
    old = put_image(store, [FIRST], "app")
    new = put_image(store, [SECOND], "app")
    assert store.images.get("app").id == new.id
    assert store.images.get(old.id).references == ()
    store.images.tag(store.images.get(old.id), Reference.parse("app:old"))
    assert store.images.get("app:old").id == old.id
    store.images.untag(Reference.parse("app:old"))
    with pytest.raises(NotFound):
        store.images.untag(Reference.parse("app:old"))
    with pytest.raises(InvalidInput):
        store.images.tag(new, Reference.parse(f"app@{new.manifest_digest}"))


def test_removing_takes_names_first_then_image_and_layers(store: Store, home: Path) -> None:
    """Lines as Docker prints them; a layer that another image has stays."""
    image = put_image(store, [FIRST, SECOND], "app:1", "app:2", compress=gzip.compress, suffix="+gzip")
    put_image(store, [FIRST], "base", compress=gzip.compress, suffix="+gzip")
    assert store.images.remove("app:1") == ["Untagged: app:1"]
    assert store.images.remove("app:2") == ["Untagged: app:2", f"Deleted: {image.id}", f"Deleted: {Digest.of(SECOND)}"]
    assert stored(home) == {f"layers {Digest.of(FIRST).short}", f"blobs {store.images.get('base').blob_digests[0].short}"}
    store.images.remove("base")
    assert stored(home) == set()


def test_an_image_with_several_repositories_is_removed_by_id_only_by_force(store: Store) -> None:
    """Docker's rule; several tags of one repository are no hindrance."""
    image = put_image(store, [FIRST], "app:1", "other:1")
    with pytest.raises(Conflict, match="several repositories"):
        store.images.remove(image.id)
    assert store.images.remove(image.id, force=True)[:2] == ["Untagged: app:1", "Untagged: other:1"]


def test_an_image_in_use_is_not_removed_and_by_force_its_layers_stay(store: Store, home: Path) -> None:
    """What a container stands on stays until the container is gone."""
    image = put_image(store, [FIRST], "app")
    add_container(home, image)
    with pytest.raises(Conflict, match="container web"):
        store.images.remove("app")
    assert store.images.get("app") == image
    store.images.remove("app", force=True)
    assert store.layers.has(image.layers[0])
    assert store.gc() == 0
    with store.layers.export_tar(image.layers[0]) as tar:
        assert tar.read() == FIRST
    with sqlite3.connect(home / "bulle.db") as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("DELETE FROM container")
    connection.close()
    assert store.gc() > len(FIRST) - 1
    assert stored(home) == set()


def test_layers_of_an_image_that_did_not_come_whole_are_garbage(store: Store, home: Path) -> None:
    """Kept while they are received, collected afterwards."""
    with store.receiving():
        store.layers.ingest(pieces(FIRST), OCI_LAYER, None, None, Digest.of(FIRST))
        assert store.gc() == 0
        with open_store(home) as other:
            assert other.gc() == 0
        assert store.layers.has(Digest.of(FIRST))
    assert store.gc() > 0
    assert stored(home) == set()


def test_single_blobs(store: Store, home: Path) -> None:
    """Verified before they are visible, kept while something is received."""
    digest = Digest.of(b"content")
    with store.receiving():
        assert store.blobs.add(pieces(b"content"), digest, 7) == digest == store.blobs.add([b"con", b"tent"])
        for expected, size in ((Digest.of(b""), None), (None, 6), (None, 8)):
            with pytest.raises(CorruptImage):
                store.blobs.add(pieces(b"content"), expected, size)
        store.gc()
        assert store.blobs.has(digest)
        with store.blobs.open(digest) as blob:
            assert blob.read() == b"content"
    store.gc()
    assert stored(home) == set()
    with pytest.raises(NotFound):
        store.blobs.open(digest)


def test_the_same_image_again_changes_nothing(store: Store, home: Path) -> None:
    """Also with other names and another compression: the manifest whose blobs are kept stays."""
    image = put_image(store, [FIRST, SECOND], "app", compress=gzip.compress, suffix="+gzip")
    again = put_image(store, [FIRST, SECOND], "more")
    assert again.manifest == image.manifest
    assert again.references == ("docker.io/library/app:latest", "docker.io/library/more:latest")


def test_many_at_once(home: Path) -> None:
    """Threads bring in images that share layers, remove and collect; in the end all is consistent."""
    tars = [bytes(LayerTar().add(f"{number}", content=os.urandom(1000))) for number in range(6)]
    with open_store(home) as store:

        def work(number: int) -> None:
            chosen = [tars[number % 6], tars[(number + 1) % 6], tars[0]]
            put_image(store, chosen, f"image{number}")
            if number % 3 == 0:
                store.images.remove(f"image{number}")
                store.gc()

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(24)))
            list(pool.map(lambda _: store.__dict__["_database"].close(), range(8)))
        images = store.images.list()
        assert len({name for image in images for name in image.references}) == 16
        for image in images:
            for layer in image.layers:
                with store.layers.export_tar(layer) as tar:
                    assert Digest.of(tar.read()) == layer


INGEST = """
import os, sys, time
from pathlib import Path
from bulle.model.digest import Digest
from bulle.model.image import OCI_LAYER, OCI_MANIFEST
from bulle.model.reference import Reference
from bulle.store import Store
sys.path.insert(0, sys.argv[2])
from bulle_testing.layers import documents, pieces, put_image
home = Path(sys.argv[1])
store = Store(home, Database(home))
tars = [Path(name).read_bytes() for name in sys.argv[3:]]
print("go", flush=True)
while True:
    put_image(store, tars, "image")
    store.images.remove("image")
"""


@pytest.mark.slow
def test_killed_at_any_moment_nothing_half_is_visible(home: Path, run_directory: Path) -> None:
    """A process that brings in and removes an image for ever is killed at 40 moments; each time the store is whole and what is left is collected."""
    paths = []
    for number, tar in enumerate((FIRST, SECOND, bytes(LayerTar().add("tmp/noise", content=os.urandom(3_000_000))))):
        paths.append(run_directory / f"layer{number}.tar")
        paths[-1].write_bytes(tar)
    for moment in range(40):
        command = [sys.executable, "-c", INGEST, str(home), str(Path(__file__).parents[1]), *map(str, paths)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.002 * moment)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        with open_store(home) as store:
            for image in store.images.list():
                for layer in image.layers:
                    with store.layers.export_tar(layer) as tar:
                        assert Digest.of(tar.read()) == layer
                assert all(index.stat().st_size for index in store.layers.index(image.layers))
                store.images.remove(image.id)
            store.gc()
            assert stored(home) == set()
            assert len(list(home.glob("tmp/*"))) <= 1


def on_small_disk(home: Path, size: str, function: Callable[[Path], object]) -> object:
    """What a function returns on a home that is a tmpfs of some size."""
    small = home / "small"
    small.mkdir()

    def work() -> object:
        mount.mount("tmpfs", small, "tmpfs", 0, f"size={size},mode=0700")
        return function(small)

    return in_mount_namespace(work)


@pytest.mark.root
@pytest.mark.parametrize("size", ["200k", "400k", "1m", "2m", "3m", "4m", "5m", "6m"])
def test_a_full_disk_is_said_and_leaves_the_store_as_it_was(home: Path, size: str) -> None:
    """Wherever the space ends: StorageFull, and afterwards the same files and images as before."""
    large = bytes(LayerTar().add("noise", content=os.urandom(2_000_000)))
    blob = gzip.compress(large, 1)

    def fill(small: Path) -> str:
        with open_store(small) as store:
            try:
                put_image(store, [FIRST], "first")
            except StorageFull:
                return "full at once"
            before = stored(small)
            try:
                put_image(store, [large], "large", compress=lambda tar: blob, suffix="+gzip")
            except StorageFull as error:
                store.gc()
                assert stored(small) == before
                assert [image.references for image in store.images.list()] == [("docker.io/library/first:latest",)]
                with store.layers.export_tar(Digest.of(FIRST)) as tar:
                    assert tar.read() == FIRST
                return str(error)
            return "fits"

    outcome = on_small_disk(home, size, fill)
    if size in ("200k", "6m"):
        assert outcome == {"200k": "full at once", "6m": "fits"}[size]
    elif size in ("1m", "2m", "3m"):
        assert "space" in str(outcome)


@pytest.mark.root
def test_a_home_on_tmpfs_mounts_through_loop_devices(home: Path) -> None:
    """File-backed mounts are not possible there; the probe finds out and says why."""

    def look(small: Path) -> tuple[str, str, set[bytes]]:
        with open_store(small) as store:
            image = put_image(store, [FIRST], "first")
            plan = store.layers.plan(image.layers)
            store.layers.mount(plan)
            seen = set(census(Path(plan[0].host_path)))
            reason = store.probe()["erofs"].reason
            mount.umount(plan[0].host_path)
            return plan[0].kind, reason, seen

    kind, reason, seen = on_small_disk(home, "20m", look)  # type: ignore[misc]
    assert (kind, seen) == ("loop", {b"etc", b"etc/first"})
    assert reason


@pytest.mark.root
def test_commas_and_spaces_in_the_home_are_only_characters(home: Path) -> None:
    """The mount options carry paths."""
    odd = home / "a,b c:d=e"
    odd.mkdir(mode=0o700)

    def look() -> set[bytes]:
        with open_store(odd) as store:
            image = put_image(store, [FIRST], "first")
            plan = store.layers.plan(image.layers)
            store.layers.mount(plan)
            return set(census(Path(plan[0].host_path)))

    assert in_mount_namespace(look) == {b"etc", b"etc/first"}


@pytest.mark.root
def test_collecting_unmounts_what_it_removes(home: Path) -> None:
    """Also where the layer is still mounted in this very namespace."""

    def look() -> tuple[set[str], str]:
        with open_store(home) as store:
            image = put_image(store, [FIRST], "first")
            store.layers.mount(store.layers.plan(image.layers))
            store.images.remove("first")
            return stored(home), Path("/proc/self/mountinfo").read_text()

    left, mounts = in_mount_namespace(look)
    assert left == set()
    assert str(home) not in mounts


@pytest.mark.root
def test_an_ordinary_user_without_subordinate_ids(home: Path) -> None:
    """Layers are extracted in a user namespace with one id: everything is hers, special files are placeholders, setuid is dropped."""
    user = 12_345
    tar = LayerTar().directory("d", mode=0o555, uid=33).add("d/file", content=b"f", uid=33, gid=44, mode=0o4755).directory("d/opaque")
    tar.add("d/opaque/.wh..wh..opq").add("d/.wh.gone").add("d/own", mode=0o4711)
    private = home / "user"
    private.mkdir(mode=0o700)
    os.chown(private, user, user)
    home.chmod(0o711)

    def look() -> tuple[str, dict[bytes, tuple[object, ...]], set[str]]:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        prctl(PR_SET_DUMPABLE, 1)  # as after an exec: else /proc/self belongs to root
        with open_store(private) as store:
            image = put_image(store, [bytes(tar)], "image")
            plan = store.layers.plan(image.layers)
            found = census(Path(plan[0].host_path))
            store.images.remove("image")
            return plan[0].kind, found, stored(private)

    kind, found, left = in_mount_namespace(look)
    assert kind == "directory"
    assert {entry[1:3] for entry in found.values()} == {(user, user)}
    assert found[b"d"][0] == "0o40555"
    assert found[b"d/file"][0] == "0o100755"
    assert found[b"d/own"][0] == "0o104711"
    assert (b"user.overlay.opaque" in str(found[b"d/opaque"][7]).encode()) and "user.overlay.origin" in str(found[b"d"][7])
    assert str(found[b"d/gone"][0]).startswith("0o20")
    assert left == set()


@pytest.mark.root
@pytest.mark.programs("newuidmap", "newgidmap")
def test_an_ordinary_user_with_subordinate_ids(home: Path) -> None:
    """Owners are kept as the map says (33 becomes 100032); an owner beyond it is refused; what belongs to mapped ids can be removed again."""
    user = 12_345
    tar = LayerTar().directory("d", mode=0o700, uid=33).add("d/file", content=b"f", uid=33, gid=44, mode=0o4755).add("own").hardlink("link", "d/file")
    tar.directory("closed", mode=0o000, uid=65535).add("closed/file")
    beyond = LayerTar().add("file", uid=70_000)
    private = home / "user"
    private.mkdir(mode=0o700)
    os.chown(private, user, user)
    home.chmod(0o711)
    (home / "passwd").write_text(f"someone:x:{user}:{user}::/:/bin/sh\n")
    (home / "subuid").write_text("someone:100000:65536\n")
    (home / "subgid").write_text(f"{user}:100000:65536\n")

    def look() -> tuple[dict[bytes, tuple[object, ...]], str, set[str]]:
        for name in ("passwd", "subuid", "subgid"):
            mount.mount(home / name, f"/etc/{name}", "", mount.MS_BIND)
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        prctl(PR_SET_DUMPABLE, 1)
        with open_store(private) as store:
            image = put_image(store, [bytes(tar)], "image")
            plan = store.layers.plan(image.layers)
            found: dict[bytes, tuple[object, ...]] = {}
            users, groups = rootless_mappings()
            user_namespace.call(users, groups, lambda: (private / "census").write_text(repr(census(Path(plan[0].host_path)))))
            found = ast.literal_eval((private / "census").read_text())
            on_disk = (Path(plan[0].host_path) / "d").stat()
            store.images.remove("image")
            with pytest.raises(Unavailable, match="70000:0"):
                put_image(store, [bytes(beyond)], "beyond")
            store.gc()
            return found, f"{on_disk.st_uid}:{on_disk.st_gid}", stored(private)

    found, on_disk, left = in_mount_namespace(look)
    assert on_disk == f"100032:{user}"
    assert found[b"d/file"][:4] == ("0o104755", 33, 44, 1)
    assert found[b"d/file"][9] == (b"d/file", b"link")
    assert found[b"closed"][:3] == ("0o40000", 65535, 0)
    assert found[b"own"][1:3] == (0, 0)
    assert left == set()


@pytest.mark.root
def test_collecting_is_not_hindered_by_mounts_elsewhere(home: Path) -> None:
    """A spawner's mount namespace still has the layer: it goes from the disk all the same, and an open file is readable to its end."""
    with open_store(home) as store:
        image = put_image(store, [FIRST], "first")
        plan = store.layers.plan(image.layers)
        to_child, from_child = os.pipe(), os.pipe()
        child = os.fork()
        if not child:

            def hold() -> bytes:
                store.layers.mount(plan)
                with (Path(plan[0].host_path) / "etc/first").open("rb") as file:
                    os.write(from_child[1], b"mounted")
                    os.read(to_child[0], 1)
                    return file.read()

            try:
                content = in_mount_namespace(hold)
                os.write(from_child[1], content[:10])
            finally:
                os._exit(0)
        assert os.read(from_child[0], 7) == b"mounted"
        store.images.remove("first")
        assert stored(home) == set()
        os.write(to_child[1], b"!")
        assert os.read(from_child[0], 10) == b"1" * 10
        os.waitpid(child, 0)
        for descriptor in (*to_child, *from_child):
            os.close(descriptor)


def test_a_home_of_the_first_version_is_given_what_it_lacks(home: Path, store: Store) -> None:
    image = put_image(store, [FIRST], "debian:12")
    store.close()
    with sqlite3.connect(home / "bulle.db") as connection:
        for table in reversed(re.findall(r"CREATE TABLE (\w+)", "".join(SCHEMAS[1:]))):
            connection.execute(f"DROP TABLE {table}")
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    with open_store(home) as reopened:
        reopened.gc()
        assert reopened.images.get("debian:12").layers == image.layers
        assert reopened.layers.has(image.layers[0])


def test_a_layer_that_is_made_here_is_named_by_what_it_holds(store: Store) -> None:
    with store.receiving():
        layer = store.layers.add(pieces(FIRST))
        assert layer == store.layers.add(pieces(FIRST))
        assert layer.diff_id == Digest.of(FIRST)
        with store.layers.export_tar(layer.diff_id) as tar:
            assert tar.read() == FIRST
        with pytest.raises(CorruptImage):
            store.layers.add([b"no tar" * 100])
    store.gc()
    assert not store.layers.has(layer.diff_id)
