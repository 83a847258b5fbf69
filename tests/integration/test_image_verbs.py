"""Looking after what is kept: ``images --tree``, ``search``, ``prune``, ``system df``, ``image verify`` and ``image mount``."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import bulle
from bulle.engine.planning import Base
from bulle.errors import Conflict, Unavailable
from bulle.model.digest import Digest
from bulle_testing import places
from bulle_testing.layers import LayerTar
from bulle_testing.peers import Docker, docker_archive, pack
from bulle_testing.running import LEVELS, Machine, machine, wait_for

LEVEL = LEVELS[0]


@pytest.fixture
def place(run_directory: Path, busybox_image: Path, nothing_left_behind: None) -> Iterator[Machine]:
    """A home for one test: what is counted here is all that there is."""
    with machine(run_directory, f"image-verbs-{time.monotonic_ns()}") as made:
        made.engine.images.load(busybox_image)
        try:
            yield made
        finally:
            for mounted in made.engine.images.mounts.list():
                made.engine.images.mounts.unmount(made.engine.images.get(mounted.image_id))


@pytest.fixture
def load(place: Machine, busybox_rootfs: Path, tmp_path: Path) -> Callable[..., str]:
    """``load("name:tag", extra layers...)``: an image on busybox's layer; returns its id."""
    base = pack(busybox_rootfs)

    def make(name: str, *contents: str, labels: dict[str, str] | None = None) -> str:
        layers = [bytes(LayerTar().add(f"layer-{content}", content=content.encode() * 100)) for content in contents]
        return docker_archive_into(place, tmp_path, name, [base, *layers], labels)

    return make


def docker_archive_into(place: Machine, directory: Path, name: str, layers: list[bytes], labels: dict[str, str] | None) -> str:
    archive = directory / f"{name.replace(':', '-').replace('/', '-')}.tar"
    identifier = docker_archive(archive, layers, tags=[name], config={"Labels": labels} if labels else None)
    place.engine.images.load(archive)
    return identifier


def say(place: Machine, *arguments: str | Path, code: int = 0, input: str | None = None) -> str:
    done = place.command(*arguments, input=input)
    assert done.returncode == code, done
    return done.stdout if not code else done.stderr


def rows(text: str) -> list[list[str]]:
    return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]


def bytes_of(place: Machine) -> int:
    """What layers and blobs take on the disk, counted by du(1)."""
    done = subprocess.run(["du", "-s", "-B1", str(place.home / "layers"), str(place.home / "blobs")], capture_output=True, text=True, check=True)
    return sum(int(line.split()[0]) for line in done.stdout.splitlines())


# Looking


def test_tree(place: Machine, load: Callable[..., str]) -> None:
    load("first:1", "a")
    load("second:1", "a", "b")
    load("third:1", "a", "c")
    load("other:1", "x")
    lines = say(place, "image", "ls", "--tree").splitlines()
    shown = [re.split(r"\s{3,}", line.replace("│  ", "│··"))[0].rstrip() for line in lines]
    assert shown == ["IMAGE", "busybox:latest", "├─ first:1", "│··├─ second:1", "│··└─ third:1", "└─ other:1"]
    only = say(place, "images", "--tree", "second")
    assert "first:1" in only and "busybox" in only and "third" not in only and "other" not in only
    assert place.engine.images.parent(place.engine.images.get("second:1")).references == ("docker.io/library/first:1",)
    say(place, "images", "--tree", "-q", code=1)


def test_search(place: Machine, load: Callable[..., str]) -> None:
    load("web/server:1", "a", labels={"org.opencontainers.image.description": "Serves\npages  quickly, " + "and more " * 10})
    load("tool:1", "b", labels={"description": "a server too"})
    found = rows(say(place, "search", "server"))
    assert [row[0] for row in found] == ["NAME", "web/server:1", "tool:1"]
    assert found[1][1].startswith("Serves pages quickly") and found[1][1].endswith("…") and len(found[1][1]) == 45
    assert say(place, "search", "--limit", "1", "--format", "{{.Name}}", "server") == "web/server:1\n"
    assert rows(say(place, "search", "nothing-like-it")) == [["NAME", "DESCRIPTION"]]


def test_inspect_size(place: Machine) -> None:
    container = place.create(LEVEL, "sh", "-c", "head -c 5000 /dev/zero > /file")
    try:
        container.start()
        container.wait()
        assert say(place, "inspect", "-s", "--format", "{{.SizeRw}}", container.name) == "5000\n"
        [document] = json.loads(say(place, "container", "inspect", "-s", container.name))
        assert document["SizeRootFs"] == 5000 + place.engine.images.get("busybox").size_bytes
        assert "SizeRw" not in say(place, "inspect", container.name)
    finally:
        container.remove()


# Pruning


def test_container_prune(place: Machine) -> None:
    running = place.create(LEVEL, "sleep", "1000", labels={"keep": "no"})
    ended = place.create(LEVEL, "head", "-c", "100000", "/dev/zero", labels={"keep": "no"})
    kept = place.create(LEVEL, "true", labels={"keep": "yes"})
    try:
        running.start()
        ended.start()
        ended.wait()
        assert say(place, "container", "prune", input="n\n").endswith("[y/N] ")
        assert say(place, "container", "prune", "-f", "--filter", "until=1h").startswith("Total reclaimed space: 0B")
        printed = say(place, "container", "prune", "-f", "--filter", "label!=keep=yes")
        assert re.fullmatch(rf"Deleted Containers:\n{ended.id}\n\nTotal reclaimed space: [\d.]+[kM]?B\n", printed)
        printed = say(place, "container", "prune", input="y\n")
        assert printed.startswith("WARNING! This will remove all stopped containers.\nAre you sure you want to continue? [y/N] Deleted Containers:")
        assert kept.id in printed
        assert [one.name for one in place.engine.containers.list(all=True)] == [running.name]
        say(place, "container", "prune", "-f", "--filter", "status=exited", code=1)
    finally:
        running.remove(force=True)


def test_container_prune_leaves_builds_alone(place: Machine) -> None:
    layers = place.engine.images.get("busybox").layers
    options = bulle.ContainerOptions(image="build step", command=("true",))
    step = place.engine.containers.create(options, Base(layers))
    try:
        assert say(place, "container", "prune", "-f") == "Total reclaimed space: 0B\n"
        assert place.engine.containers.get(step.name).id == step.id
    finally:
        step.remove()


def test_prune_asks_on_a_terminal(place: Machine) -> None:
    container = place.create(LEVEL, "true")
    for answer, left in ((b"n\n", 1), (b"\n", 1), (b"Y\n", 0)):
        ours, theirs = pty.openpty()
        try:
            command = place.start_command("container", "prune", stdin=theirs, stdout=theirs, stderr=subprocess.PIPE)
            os.write(ours, answer)
            assert (command.communicate(timeout=240)[1], command.returncode) == (b"", 0)
        finally:
            os.close(ours)
            os.close(theirs)
        assert len(place.engine.containers.list(all=True)) == left
    assert container.id


def test_image_prune(place: Machine, load: Callable[..., str]) -> None:
    load("used:1", "a")
    load("labelled:1", "b", labels={"keep": "yes"})
    first = load("moving:1", "c")
    load("moving:1", "d")
    container = place.create(LEVEL, "true", image="used:1")
    try:
        before = bytes_of(place)
        assert say(place, "image", "prune", "-f", "--filter", "label=keep=yes") == "Total reclaimed space: 0B\n"
        printed = say(place, "image", "prune", "-f")
        assert re.fullmatch(rf"Deleted Images:\ndeleted: {first}\ndeleted: sha256:[0-9a-f]{{64}}\n\nTotal reclaimed space: [\d.]+kB\n", printed)
        assert bytes_of(place) < before
        assert say(place, "image", "prune", "-a", input="").endswith("[y/N] ")
        printed = say(place, "image", "prune", "-a", "-f", "--filter", "label!=keep")
        assert "untagged: moving:1\n" in printed and "labelled" not in printed
        assert {name for image in place.engine.images.list() for name in image.references} == {
            "docker.io/library/used:1", "docker.io/library/labelled:1",
        }  # fmt: skip
        assert place.engine.images.get("used:1").layers  # busybox's layer went on, since this one stands on it
        container.start()
        assert container.wait() == 0
    finally:
        container.remove(force=True)


def test_image_prune_leaves_what_an_index_has(place: Machine, load: Callable[..., str]) -> None:
    load("one:1", "a")
    say(place, "tag", "one:1", "one:2")
    say(place, "manifest", "create", "several:1", "one:1")
    assert "one:" not in say(place, "image", "prune", "-af")
    assert place.engine.images.get("one:1").id == place.engine.images.get("one:2").id
    say(place, "manifest", "rm", "several:1")
    assert "untagged: one:2" in say(place, "image", "prune", "-af")


def test_builder_prune(place: Machine) -> None:
    old, new = (Digest.of(text.encode()) for text in ("old", "new"))
    cache = place.engine.store.build_cache
    with place.engine.store.receiving():
        layer = place.engine.store.layers.add([bytes(LayerTar().add("built", content=os.urandom(50_000)))])
        cache.put(str(old), "", "RUN make", layer.diff_id, b"{}")
    moment = time.time()
    cache.put(str(new), "", "COPY . .", None, b"{}")
    df = {row[0]: row for row in rows(say(place, "system", "df"))}
    assert df["Build Cache"][1:3] == ["2", "0"]
    assert "RUN make" in say(place, "system", "df", "-v")
    assert say(place, "builder", "prune", input="no\n").endswith("[y/N] ")
    printed = say(place, "builder", "prune", "-af", "--filter", f"until={moment:.6f}")
    assert printed.startswith(f"Deleted build cache objects:\n{old}\n\nTotal reclaimed space: ")
    assert not place.engine.store.layers.has(layer.diff_id)
    assert say(place, "builder", "prune", "-f") == f"Deleted build cache objects:\n{new}\n\nTotal reclaimed space: 0B\n"
    assert cache.list() == []


def test_system_prune(place: Machine, load: Callable[..., str]) -> None:
    load("idle:1", "a")
    container = place.create(LEVEL, "true")
    place.engine.store.build_cache.put(str(Digest.of(b"step")), "", "RUN x", None, b"{}")
    assert say(place, "system", "prune", input="n\n").endswith("[y/N] ")
    printed = say(place, "system", "prune", "-f")
    assert f"Deleted Containers:\n{container.id}\n" in printed and "Deleted build cache objects:" in printed and "Deleted Images" not in printed
    printed = say(place, "system", "prune", "-a", "--volumes", input="y\n")
    assert "  - all images without at least one container associated to them\n" in printed
    assert "untagged: idle:1\n" in printed and re.search(r"Total reclaimed space: [\d.]+MB\n$", printed)
    assert place.engine.images.list() == []
    assert bytes_of(place) < 100_000


# df


def test_df_is_what_the_disk_says(place: Machine, load: Callable[..., str]) -> None:
    load("one:1", "a")
    load("two:1", "a", "b")
    container = place.create(LEVEL, "true", image="one:1")
    try:
        usage = place.engine.usage()
        images, containers, volumes, cache = usage.kinds
        # du counts the directories above the layers too.
        assert 0 <= bytes_of(place) - images.size_bytes <= 6 * 4096
        assert (images.total, images.active, containers.total, containers.active) == (3, 1, 1, 0)
        assert (volumes.total, cache.total) == (0, 0)
        own = {one.image.references[0].rpartition("/")[2]: one.own_bytes for one in usage.images}
        assert own["two:1"] > 0 and own["one:1"] == own["busybox:latest"] == 0
        assert images.reclaimable_bytes == own["two:1"]
        assert containers.reclaimable_bytes == containers.size_bytes > 0
        table = rows(say(place, "system", "df"))
        assert table[0] == ["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"]
        assert table[1][:3] == ["Images", "3", "1"] and re.fullmatch(r"[\d.]+kB \(\d+%\)", table[1][4])
        assert say(place, "system", "df", "--format", "{{.Type}} {{.TotalCount}}").splitlines()[0] == "Images 3"
        assert len(say(place, "system", "df", "--format", "json").splitlines()) == 4
        verbose = say(place, "system", "df", "-v")
        assert "Containers space usage:" in verbose and container.name in verbose
        say(place, "system", "df", "-v", "--format", "json", code=1)
    finally:
        container.remove()


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.programs("dockerd", "docker", "containerd", "runc")
def test_titles_are_docker_s(place: Machine, dockerd: Docker) -> None:
    for arguments in (("system", "df"),):
        assert rows(say(place, *arguments))[0] == rows(dockerd(*arguments).stdout)[0]
    ours = [line for line in say(place, "system", "df", "-v").splitlines() if line.endswith("usage:") or line.isupper()]
    theirs = [line for line in dockerd("system", "df", "-v").stdout.splitlines() if line.endswith("usage:") or line.isupper()]
    assert [rows(line) for line in ours[:6]] == [rows(line) for line in theirs[:6]]
    for kind in ("container", "image"):
        dockerd(kind, "prune", "-f")  # what other tests left there
        assert say(place, kind, "prune", "-f") == dockerd(kind, "prune", "-f").stdout
        assert say(place, kind, "prune") == dockerd(kind, "prune").stdout


# verify


def files_of(place: Machine, name: str) -> list[tuple[Path, Path]]:
    return [(files.tar, files.index) for files in place.engine.store.layers.files(place.engine.images.get(name).layers)]


def damage(path: Path) -> None:
    """One other byte in the middle, in a file of its own."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)


def test_verify(place: Machine, load: Callable[..., str]) -> None:
    load("one:1", "a")
    assert sorted(say(place, "image", "verify").splitlines()) == ["busybox:latest: ok", "one:1: ok"]
    assert say(place, "image", "verify", "one:1") == "one:1: ok\n"
    say(place, "image", "verify", "missing:1", code=1)
    (_, _), (tar, index) = files_of(place, "one:1")
    whole = tar.read_bytes()

    damage(index)
    done = place.command("image", "verify")
    assert done.returncode == 1
    assert "one:1: damaged: index of layer " in done.stdout and "busybox:latest: ok\n" in done.stdout
    assert "--repair" in done.stderr
    assert place.command("image", "verify", "--repair").stdout.count(": ok\n") == 2
    assert place.command("image", "verify").returncode == 0

    blob = place.engine.store.blobs.path(place.engine.images.get("one:1").blob_digests[1])
    damage(blob)
    assert "one:1: damaged: blob " in place.command("image", "verify").stdout
    assert place.command("image", "verify", "--repair").returncode == 0
    assert not blob.exists() and tar.read_bytes() == whole

    damage(tar)
    said = place.command("image", "verify").stdout
    assert "one:1: damaged: layer " in said and "its digest is sha256:" in said
    done = place.command("image", "verify", "--repair")
    assert done.returncode == 1 and "removed" in done.stderr
    assert [image.references for image in place.engine.images.list()] == [("docker.io/library/busybox:latest",)]
    assert not tar.exists()
    load("one:1", "a")
    assert place.command("image", "verify").returncode == 0


def test_verify_of_documents(place: Machine) -> None:
    with place.engine.database.transaction() as connection:
        connection.execute("UPDATE image SET config = CAST(replace(CAST(config AS TEXT), 'linux', 'linus') AS BLOB)")
    assert "busybox:latest: damaged: config: its digest is sha256:" in place.command("image", "verify").stdout


def test_repair_spares_what_containers_stand_on(place: Machine) -> None:
    container = place.create(LEVEL, "true")
    try:
        [(tar, _index)] = files_of(place, "busybox")
        damage(tar)
        assert container.name in say(place, "image", "verify", "--repair", code=1)
        assert place.engine.images.get("busybox")
    finally:
        container.remove()


# mount


@pytest.mark.root
def test_mount(place: Machine, load: Callable[..., str]) -> None:
    load("one:1", "a", "b")
    path = Path(say(place, "image", "mount", "one:1").strip())
    assert (path / "layer-a").read_text() == "a" * 100 and (path / "bin/busybox").exists()
    assert say(place, "image", "mount", "one:1").strip() == str(path)
    assert say(place, "image", "mount") == f"one:1 {path}\n"
    with pytest.raises(OSError, match="Read-only"):
        (path / "new").touch()
    # It is not removed, and nor are its layers, whatever is asked.
    for arguments in (("rmi", "one:1"), ("rmi", "-f", "one:1")):
        assert "it is mounted at" in say(place, *arguments, code=1)
    assert "one:1" not in say(place, "image", "prune", "-af")
    with pytest.raises(Conflict):
        place.engine.images.remove("one:1", force=True)
    say(place, "tag", "one:1", "two:1")
    say(place, "rmi", "one:1")
    assert (path / "layer-b").read_text() == "b" * 100
    assert say(place, "image", "unmount", "two:1") == place.engine.images.get("two:1").id + "\n"
    assert not path.exists() and say(place, "image", "mount") == ""
    assert "is not mounted" in say(place, "image", "unmount", "two:1", code=1)
    say(place, "rmi", "two:1")


@pytest.mark.root
def test_mount_of_one_layer_and_unmount_of_all(place: Machine, load: Callable[..., str]) -> None:
    load("one:1", "a")
    printed = say(place, "image", "mount", "busybox", "one:1").splitlines()
    assert [line.split()[0] for line in printed] == ["busybox", "one:1"]
    paths = [Path(line.split()[1]) for line in printed]
    busy = os.open(paths[0] / "bin", os.O_RDONLY)
    try:
        assert "could not be unmounted" in say(place, "image", "unmount", "busybox", code=1)
    finally:
        os.close(busy)
    assert len(say(place, "image", "unmount", "-a").splitlines()) == 2
    assert places.mounts_below(place.home) == []
    say(place, "image", "unmount", code=1)


@pytest.mark.root
def test_unmount_while_the_spawner_has_a_copy(place: Machine, tmp_path: Path) -> None:
    """The spawner's mount namespace is made anew when the host's mounts change, with a copy of what was mounted then."""
    path = Path(say(place, "image", "mount", "busybox").strip())
    (tmp_path / "other").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(tmp_path / "other")], check=True)
    try:
        say(place, "run", "--rm", "busybox", "true")
        mounts = Path(f"/proc/{places.spawner_pid(place.home)}/mountinfo")
        wait_for(lambda: str(tmp_path / "other") in mounts.read_text(), "the spawner has followed")
        assert say(place, "image", "unmount", "busybox")
        assert not path.exists() and str(path) not in mounts.read_text()
    finally:
        subprocess.run(["umount", str(tmp_path / "other")], check=True)


@pytest.mark.root
def test_mount_without_a_spawner_and_after_a_restart(place: Machine) -> None:
    place.environment["BULLE_NO_SPAWNER"] = "1"
    path = Path(say(place, "image", "mount", "busybox").strip())
    assert (path / "bin/busybox").exists()
    assert places.mounts_below(place.home) == [str(path)]
    # After a restart of the machine the record is of another boot, and nothing is mounted: it counts for nothing, and goes.
    record = path.with_name(path.name + ".json")
    kept = record.read_bytes()
    say(place, "image", "unmount", "busybox")
    path.mkdir()
    for content in (kept, kept.replace(json.loads(kept)["boot_id"].encode(), b"another-boot"), b"junk"):
        record.write_bytes(content)
        assert say(place, "image", "mount") == ""
    path = Path(say(place, "image", "mount", "busybox").strip())
    assert (path / "bin/busybox").exists()
    say(place, "image", "unmount", "busybox")
    say(place, "rmi", "busybox")


def test_an_ordinary_user_cannot_mount(place: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(Unavailable, match="root only"):
        place.engine.images.mounts.mount(place.engine.images.get("busybox"))
