"""Volumes at every level: named and anonymous, filled from the image, shared, of a limited size; binds and images as mounts; tars in and out."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import bulle
from bulle.errors import BulleError, Conflict, CorruptImage, InvalidInput, NotFound
from bulle.isolation.driver import Feature
from bulle.linux import mount
from bulle_testing import peers
from bulle_testing.layers import LayerTar
from bulle_testing.running import Level, Machine, machine, need_several_ids, usable, wait_for

SIZE = 32 << 20


@pytest.fixture(scope="module")
def module_machine(run_directory: Path, busybox_image: Path, busybox_rootfs: Path) -> Iterator[Machine]:
    """A home with busybox, and with an image that has something at ``/data``, which is a VOLUME of it."""
    layer = LayerTar().directory("data", mode=0o2750, uid=7, gid=8).add("data/file", content=b"of the image", uid=1000, gid=1001, mode=0o4711)
    layer.directory("data/sub", mode=0o1777).symlink("data/link", "/etc/passwd", uid=1000).hardlink("data/hard", "data/file")
    layer.add("data/sub/gone", content=b"x").symlink("way", "data/sub/../").symlink("loop", "loop")
    upper = LayerTar().add("data/sub/.wh.gone").add("data/sub/upper", content=b"upper")
    with machine(run_directory, "conformance-volumes") as made:
        made.engine.images.load(busybox_image)
        archive = run_directory / "with-data.tar"
        config = {"Volumes": {"/data": {}}, "Cmd": ["sh"]}
        peers.docker_archive(archive, [peers.pack(busybox_rootfs), bytes(layer), bytes(upper)], tags=["filled:1"], config=config)
        made.engine.images.load(archive)
        made.settle()
        yield made


@pytest.fixture(autouse=True)
def no_volume_stays(module_machine: Machine, request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test begins without volumes, and removes all that it made, from the disk too."""
    yield
    volumes = module_machine.engine.volumes
    if "place" in request.fixturenames or "box" in request.fixturenames:
        for name in [container.name for container in module_machine.engine.containers.list(all=True)]:
            module_machine.engine.containers.get(name).remove(force=True)
        for volume in volumes.list():
            volumes.remove(volume.name)
        directory = module_machine.home / "volumes"
        assert not directory.exists() or os.listdir(directory) == []
        wait_for(lambda: not loops(module_machine), "loop devices are given back")
        module_machine.settle()


def loops(place: Machine) -> list[str]:
    found = []
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            if f"{place.home}/volumes/" in (name := file.read_text().strip()):  # layers may stand behind others
                found.append(name)
    return found


def named(source: str, target: str = "/v", **more: Any) -> dict[str, Any]:
    return {"mounts": (bulle.MountOption(kind="volume", source=source, target=target, **more),)}


def inside(place: Machine, name: str) -> Path:
    return place.home / "volumes" / name / "_data"


def test_a_volume_outlives_its_containers_and_keeps_their_ids(place: Machine, level: Level) -> None:
    need_several_ids(place)
    volume = (bulle.VolumeOption("data", "/v"),)
    place.shell(level, "echo one > /v/one; touch /v/user; chown 1000:1001 /v/user; chmod 700 /v", volumes=volume)
    assert place.shell(level, "cat /v/one; stat -c '%u:%g %a' /v/one /v/user /v", volumes=volume) == "one\n0:0 644\n1000:1001 644\n0:0 700\n"
    if os.geteuid() == 0:
        status = (inside(place, "data") / "user").stat()
        assert (status.st_uid, status.st_gid) == (1000, 1001), "ids on disk are the container's"
        other = place.command("run", "--rm", "-v", "data:/w:ro", "--isolation=chroot", "busybox", "stat", "-c", "%u", "/w/user")
        assert other.stdout == "1000\n", other.stderr
    assert place.engine.volumes.get("data").users == ()


def test_two_containers_see_one_volume(place: Machine, level: Level) -> None:
    volume = (bulle.VolumeOption("shared", "/v"),)
    with place.running(level, volumes=volume) as one, place.running(level, volumes=volume) as other:
        assert place.execute(one, "sh", "-c", "echo hi > /v/from-one").exit_code == 0
        assert place.execute(other, "sh", "-c", "cat /v/from-one; rm /v/from-one").stdout == b"hi\n"
        assert place.execute(one, "ls", "/v").stdout == b""
        assert place.engine.volumes.get("shared").users == tuple(sorted((one.name, other.name)))
        with pytest.raises(Conflict, match=rf"volume shared is in use: containers .*{one.name}"):
            place.engine.volumes.remove("shared")
    place.engine.volumes.remove("shared")
    with pytest.raises(NotFound, match="no such volume: shared"):
        place.engine.volumes.get("shared")


LISTING = "cd /v && stat -c '%n %F %u:%g %a' . file sub sub/upper hard && test file -ef hard && readlink link && cat file && ls sub"
LISTED = """. directory 7:8 2750
file regular file 1000:1001 4711
sub directory 0:0 1777
sub/upper regular file 0:0 644
hard regular file 1000:1001 4711
/etc/passwd
of the imageupper
"""


def test_an_empty_volume_is_filled_from_the_image(place: Machine, level: Level) -> None:
    need_several_ids(place)
    options: dict[str, Any] = {"image": "filled:1", "working_directory": "/"}
    assert place.shell(level, "stat -c '%F' /data; ls -A /data/sub", **options, **named("first", "/data")).startswith("directory\nupper\n")
    assert place.shell(level, LISTING, **named("first")) == LISTED, "as the layers show it, whatever image it is mounted in later"
    place.shell(level, "echo mine > /data/file; rm /data/hard", **options, **named("first", "/data"))
    assert place.shell(level, "cat /data/file; ls /data", **options, **named("first", "/data")) == "mine\nfile\nlink\nsub\n", "only once"
    place.engine.volumes.create("second", labels={"a": "b"})
    assert place.shell(level, LISTING.replace("/v", "/way/."), **options, **named("second", "/way")) == LISTED, "through the image's own links"
    assert place.shell(level, "ls -A /data", **options, **named("third", "/data", copy=False)) == ""
    assert place.shell(level, "ls -A /nowhere", **options, **named("fourth", "/nowhere")) == ""
    assert place.engine.volumes.get("second").labels == {"a": "b"}


def test_a_volume_of_the_image_goes_with_its_container(place: Machine, level: Level) -> None:
    volumes = place.engine.volumes
    assert place.shell(level, "cat /data/file; echo new > /data/new", image="filled:1") == "of the image"
    wait_for(lambda: volumes.list() == [], "--rm removes it")
    container = place.create(level, "sh", "-c", "echo kept > /data/new", image="filled:1")
    container.start()
    container.wait()
    [volume] = volumes.list()
    assert volume.anonymous
    assert volume.users == (container.name,)
    [shown] = container.inspect()["Mounts"]  # type: ignore[misc]
    assert (shown["Type"], shown["Name"], shown["Destination"], shown["Driver"], shown["RW"]) == ("volume", volume.name, "/data", "local", True)
    assert shown["Source"] == volume.mountpoint
    script = "cat /data/new; touch /data/x"
    borrowed = place.command("run", "--rm", *level.flags, "--volumes-from", f"{container.name}:ro", "busybox", "sh", "-c", script)
    assert borrowed.stdout == "kept\n", borrowed
    assert "Read-only file system" in borrowed.stderr
    container.remove()
    assert [one.name for one in volumes.list()] == [volume.name], "rm alone keeps it"
    other = place.create(level, "true", image="filled:1")
    assert place.command("rm", "-v", other.name).returncode == 0
    assert [one.name for one in volumes.list()] == [volume.name]
    assert (place.command("volume", "prune", "-f").stdout or "").startswith(f"Deleted Volumes:\n{volume.name}\n\nTotal reclaimed space: ")


def test_a_given_mount_takes_the_place_of_the_images_volume(place: Machine, level: Level, tmp_path: Path) -> None:
    for options in ({"volumes": (bulle.VolumeOption(str(tmp_path), "/data/"),)}, {"tmpfs": (("/data", ""),)}):
        assert place.shell(level, "ls -A /data", image="filled:1", **options) == ""
    assert place.engine.volumes.list() == []


def test_parts_of_volumes(place: Machine, level: Level) -> None:
    place.shell(level, "mkdir -p /v/a/b; echo deep > /v/a/b/c; ln -s /a /v/inner; ln -s / /v/top", **named("parts"))
    assert place.shell(level, "cat /v/b/c; touch /v/new", **named("parts", subpath="a")) == "deep\n"
    assert place.shell(level, "ls /v", **named("parts", subpath="inner/../a/new")) == "/v\n", "a file"
    assert place.shell(level, "ls /v", **named("parts", subpath="inner")) == "b\nnew\n", "a link is followed inside the volume"
    assert place.shell(level, "ls /v", **named("parts", subpath="top/../../..")) == "a\ninner\ntop\n"
    with pytest.raises(NotFound, match="'b' does not exist in volume parts"):
        place.run(level, "true", **named("parts", subpath="b"))


def test_files_of_an_image_as_a_mount(place: Machine, level: Level) -> None:
    def shown(subpath: str = "") -> dict[str, Any]:
        return {"mounts": (bulle.MountOption(kind="image", source="filled:1", target="/v", subpath=subpath),)}

    need_several_ids(place)
    assert place.shell(level, LISTING, **shown("data")) == LISTED
    assert place.shell(level, "ls /v/data/sub; touch /v/x || touch /v/data/x || echo no", **shown()).splitlines()[0] == "upper"
    assert place.shell(level, "touch /v/x 2>&1 || true", **shown("data")) == "touch: /v/x: Read-only file system\n"
    with pytest.raises(NotFound, match="'nowhere' does not exist in image filled:1"):
        place.run(level, "true", **shown("nowhere"))
    with pytest.raises(NotFound, match="no such image"):
        place.run(level, "true", mounts=(bulle.MountOption(kind="image", source="nosuch", target="/v"),))


def test_files_of_an_image_stay_for_who_mounts_them(place: Machine, level: Level, tmp_path: Path) -> None:
    archive = tmp_path / "other.tar"
    peers.docker_archive(archive, [bytes(LayerTar().add("only", content=b"here"))], tags=["other:1"])
    place.engine.images.load(archive)
    wanted = (bulle.MountOption(kind="image", source="other:1", target="/v"),)
    container = place.create(level, "sleep", "1000", mounts=wanted)
    assert place.command("rmi", "other:1").returncode == 0
    place.engine.gc()
    container.start()
    assert place.execute(container, "cat", "/v/only").stdout == b"here"
    shared = place.command("run", "--rm", *level.flags, "--volumes-from", container.name, "busybox", "cat", "/v/only")
    assert shared.stdout == "here", shared.stderr
    container.remove(force=True)


def test_the_command_line_of_mounts(place: Machine, level: Level, tmp_path: Path) -> None:
    (tmp_path / "host").write_text("host")
    arguments = [
        *("-v", "some:/one:ro,z", "-v", "/two", "-v", f"{tmp_path}:/three:ro", "--mount", f'type=bind,"src={tmp_path}",dst=/four,bind-nonrecursive'),
        *("--mount", "source=other,target=/five,volume-label=x=y,volume-nocopy", "--mount", "type=tmpfs,dst=/six,tmpfs-size=1m,tmpfs-mode=700,ro"),
    ]
    made = place.command("create", "--name", "mounted", *level.flags, *arguments, "busybox", "sh", "-c", "ls /three /four; df -k /six | tail -n1")
    assert made.returncode == 0, made.stderr
    try:
        document = json.loads(place.command("inspect", "mounted").stdout)[0]
        mounts = {one["Destination"]: one for one in document["Mounts"]}
        assert {path: (one["Type"], one.get("Name", ""), one["RW"]) for path, one in mounts.items() if path != "/two"} == {
            "/one": ("volume", "some", False),
            "/three": ("bind", "", False),
            "/four": ("bind", "", True),
            "/five": ("volume", "other", True),
            "/six": ("tmpfs", "", False),
        }
        assert len(mounts["/two"]["Name"]) == 64
        assert document["HostConfig"]["Binds"][1] == "some:/one:ro" or "some:/one:ro" in document["HostConfig"]["Binds"]
        for value in ("some", "/one", str(tmp_path)):
            assert place.command("ps", "-aq", "--filter", f"volume={value}").stdout != "", value
        assert place.command("ps", "-aq", "--filter", "volume=nosuch").stdout == ""
        assert place.command("ps", "-a", "--no-trunc", "--format", "{{.LocalVolumes}} {{.Mounts}}").stdout.startswith("3 ")
        assert json.loads(place.command("volume", "inspect", "other").stdout)[0]["Labels"] == {"x": "y"}
        done = place.command("start", "-a", "mounted")
        assert "host" in done.stdout
        assert done.stdout.splitlines()[-1].split()[1] == "1024"
    finally:
        place.command("rm", "-fv", "mounted")
    assert [one.name for one in place.engine.volumes.list()] == ["other", "some"], "the anonymous one went with it"


def test_wrong_mounts_leave_nothing(place: Machine, level: Level) -> None:
    for options, reason in (
        ({"volumes": (bulle.VolumeOption("", "/v", True), bulle.VolumeOption("a" * 256, "/w"))}, "invalid volume name"),
        ({"volumes": (bulle.VolumeOption("../x", "/v"),)}, "invalid volume name"),
        ({"volumes": (bulle.VolumeOption("ok", "v"),)}, "not absolute"),
        ({"volumes": (bulle.VolumeOption("ok", "/v"), bulle.VolumeOption("ok", "/v/"))}, "duplicate mount point: /v"),
        ({"volumes": (bulle.VolumeOption("ok", "/"),)}, "over the container's /"),
        (named("ok", driver_options={"type": "nfs"}), "not one of those"),
        (named("ok", driver_options={"o": "bind", "type": "none"}), "missing required option"),
        (named("ok", driver_options={"size": "1k"}), "the smallest is"),
        (named("ok", driver_options={"size": "much"}), "size cannot be used"),
        (named("ok", driver_options={"colour": "red"}), "invalid option"),
        ({"mounts": (bulle.MountOption(kind="bind", source="/usr", target="/v", propagation="rshared"),)}, "never reaches the host"),
        ({"volumes_from": ("nosuch",)}, "no such container"),
    ):
        with pytest.raises(BulleError, match=reason):
            place.create(level, "true", **options)
    with pytest.raises(BulleError, match="no such image"):
        place.create(level, "true", image="nosuch", pull="never", **named("ok"))
    with pytest.raises(Conflict):
        place.create(level, "true", name="taken") and place.create(level, "true", name="taken", **named("ok"))
    place.engine.containers.get("taken").remove()
    assert place.engine.volumes.list() == []


def test_binds_belong_to_who_made_them(place: Machine, level: Level, tmp_path: Path) -> None:
    """What the container's root makes is the caller's on the host, and what its other users make is theirs by number, never a mapped one's."""
    need_several_ids(place)
    tmp_path.chmod(0o777)
    (tmp_path / "theirs").touch()
    volume = (bulle.VolumeOption(str(tmp_path), "/v"),)
    place.shell(level, "touch /v/root; stat -c %u /v/theirs", volumes=volume)
    place.shell(level, "touch /v/user", volumes=volume, user="1000:1000")
    assert (tmp_path / "root").stat().st_uid == os.geteuid()
    assert os.geteuid() != 0 or (tmp_path / "user").stat().st_uid == 1000


def test_files_and_directories_do_not_take_each_others_place(place: Machine, level: Level, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for target in ("/etc/passwd", "/etc/passwd/below"):
        with pytest.raises(InvalidInput, match=f"a directory cannot be mounted at {target}: it, or a part of its path, is no directory"):
            place.run(level, "true", **named("directory", target))
    with pytest.raises(InvalidInput, match="a file cannot be mounted at /etc: it is a directory in the container"):
        place.run(level, "true", volumes=(bulle.VolumeOption(f"{tmp_path}/file", "/etc"),))
    files = tuple(bulle.VolumeOption(f"{tmp_path}/file", target) for target in ("/etc/passwd", "/new/file"))
    assert place.shell(level, "cat /etc/passwd /new/file", volumes=files) == "minemine"


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[Path]:
    """A file system whose ids cannot be mapped, with a file, mounted below ``tmp_path``."""
    for name in ("lower", "upper", "work", "there/sub"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "lower/file").write_text("x")
    (tmp_path / "there/plain").write_text("x")
    target = tmp_path / "there/sub"
    directories = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    mount.mount("overlay", target, "overlay", data=directories)
    yield target
    mount.umount(target, mount.MNT_DETACH)


@pytest.mark.root
def test_ids_that_cannot_be_mapped_are_told(place: Machine, level: Level, overlay: Path) -> None:
    script = "stat -c %u /v/* /v/sub/* 2>/dev/null; touch /v/new 2>/dev/null && echo made"
    own = level.name in ("container", "vm")
    for source, owners, told in (
        (overlay, "65534\n" if own else "0\nmade\n", "its file system cannot map ids"),
        (overlay.parent, "0\n65534\n65534\nmade\n" if own else "0\n0\n0\n0\nmade\n", "a file system mounted below it cannot map ids"),
    ):
        done = place.command("run", "--rm", *level.flags, "-v", f"{source}:/v", "busybox", "sh", "-c", script)
        assert done.stdout == owners, (done.stdout, done.stderr)
        assert (told in done.stderr and "nobody (65534)" in done.stderr and "--userns=host" in done.stderr) == own, done.stderr
        for path in (overlay, overlay.parent):
            assert all(entry.stat().st_uid == 0 for entry in path.iterdir())


@pytest.mark.root
def test_what_is_mounted_below_a_bind(place: Machine, level: Level, tmp_path: Path) -> None:
    """Recursion, read-only at all depths, and what the host mounts later."""
    (tmp_path / "outer/sub").mkdir(parents=True)
    outer = tmp_path / "outer"
    mount.mount("outer", outer, "tmpfs")
    try:
        mount.mount(None, outer, flags=mount.MS_SHARED)
        (outer / "sub").mkdir()
        (outer / "sub").chmod(0o777)  # a tmpfs maps no ids before kernel 6.3
        (outer / "later").mkdir()
        mount.mount("inner", outer / "sub", "tmpfs")
        (outer / "sub/inner").touch()

        def bind(**more: Any) -> dict[str, Any]:
            return {"mounts": (bulle.MountOption(kind="bind", source=str(outer), target="/v", **more),)}

        script = "ls /v/sub; for place in /v /v/sub; do touch $place/x 2>/dev/null && rm $place/x && echo $place; done; true"
        assert place.shell(level, script, **bind()) == "inner\n/v\n/v/sub\n"
        assert place.shell(level, script, **bind(read_only=True)) == "inner\n"
        assert place.shell(level, script, **bind(read_only=True, recursive="writable")) == "inner\n/v/sub\n"
        assert place.shell(level, script, **bind(recursive="disabled")) == "/v\n/v/sub\n"
        with place.running(level, **bind(propagation="rslave")) as follower, place.running(level, **bind()) as private:
            mount.mount("later", outer / "later", "tmpfs")
            (outer / "later/arrived").touch()
            try:
                assert place.execute(follower, "ls", "/v/later").stdout == b"arrived\n"
                assert place.execute(private, "ls", "/v/later").stdout == b""
            finally:
                mount.umount(outer / "later", mount.MNT_DETACH)
    finally:
        mount.umount(outer, mount.MNT_DETACH)
    (tmp_path / "outer/private").mkdir()
    with pytest.raises(InvalidInput, match="not a shared or slave mount"):
        mount.mount("private", tmp_path / "outer/private", "tmpfs")
        try:
            mount.mount(None, tmp_path / "outer/private", flags=mount.MS_PRIVATE)
            place.run(level, "true", mounts=(bulle.MountOption(kind="bind", source=f"{tmp_path}/outer/private", target="/v", propagation="slave"),))
        finally:
            mount.umount(tmp_path / "outer/private", mount.MNT_DETACH)


def test_an_owner_that_is_given(place: Machine, level: Level, tmp_path: Path) -> None:
    need_several_ids(place)
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/file").touch()
    (tmp_path / "link").symlink_to("/etc/passwd")
    owner = os.stat("/etc/passwd").st_uid
    options = {"user": "1000:1001", "mounts": (bulle.MountOption(kind="bind", source=str(tmp_path), target="/v", change_owner=True),)}
    assert place.shell(level, "stat -c %u:%g /v /v/dir /v/dir/file /v/link; touch /v/dir/new", **options) == "1000:1001\n" * 4
    assert os.stat("/etc/passwd").st_uid == owner
    place.shell(level, "chown -hR 0:0 /v", volumes=(bulle.VolumeOption(str(tmp_path), "/v"),))
    made = {
        "image": "filled:1",
        "user": "1000:1001",
        "mounts": (bulle.MountOption(kind="volume", source="given", target="/data", change_owner=True),),
    }
    assert place.shell(level, "stat -c %u:%g /data /data/file /data/sub/upper; touch /data/new", **made) == "1000:1001\n" * 3
    with pytest.raises(InvalidInput, match="unable to find user"):
        place.create(level, "true", user="nobody-here", **named("given", change_owner=True))
    with pytest.raises(InvalidInput, match="unable to find user"):
        place.create(level, "true", user="4294967296", **named("given", change_owner=True))


def test_volumes_that_show_something_else(place: Machine, level: Level, tmp_path: Path) -> None:
    volumes = place.engine.volumes
    volumes.create("memory", options={"type": "tmpfs", "device": "tmpfs", "o": "size=1m"})
    volumes.create("bound", options={"type": "none", "device": str(tmp_path), "o": "bind"})
    script = "df -k /v | tail -n1 | awk '{print $2}'; touch /v/x"
    assert place.shell(level, script, **named("memory")) == "1024\n"
    assert place.shell(level, "ls /v", **named("memory")) == ""
    place.shell(level, "touch /v/x", **named("bound"))
    assert os.listdir(tmp_path) == ["x"]
    for act in (lambda: volumes.export("bound", io.BytesIO()), lambda: volumes.clone("memory", "other")):
        with pytest.raises(InvalidInput, match="no files of its own"):
            act()
    assert volumes.create("bound").options["device"] == str(tmp_path), "what is there is returned"
    with pytest.raises(Conflict, match="other options"):
        volumes.create("bound", options={"size": "32m"})
    volumes.remove("bound")
    assert os.listdir(tmp_path) == ["x"]


def test_a_size_holds(place: Machine, level: Level) -> None:
    if Feature.STORAGE_LIMIT not in usable(level, place.home):
        with pytest.raises(BulleError, match="size of a volume cannot be limited"):
            place.engine.volumes.create("sized", options={"size": "32m"})
        return
    place.engine.volumes.create("sized", options={"size": "32m"})
    script = "cat /data/file; df -m /data | tail -n1 | awk '{print $2}'; dd if=/dev/zero of=/data/big bs=1M count=64 2>&1 | grep -o 'No space.*'"
    text = place.shell(level, script, image="filled:1", **named("sized", "/data"))
    assert text.startswith("of the image"), text
    assert 30 <= int(text.removeprefix("of the image").split()[0]) <= 34
    assert "No space left on device" in text
    with place.running(level, **named("sized")) as one, place.running(level, **named("sized", subpath="sub")) as other:
        place.execute(one, "sh", "-c", "rm /v/big; echo seen > /v/sub/seen")
        assert place.execute(other, "cat", "/v/seen").stdout == b"seen\n"
        assert len(loops(place)) == 1, "one device for all"
        [shown] = one.inspect()["Mounts"]  # type: ignore[misc]
        assert shown["Source"] == place.engine.volumes.get("sized").mountpoint == f"{place.home}/volumes/sized/disk"
    clone = place.engine.volumes.clone("sized", "twin")
    assert clone.options == {"size": "32m"}
    assert place.shell(level, "cat /v/seen; rm /v/seen", **named("twin", subpath="sub")) == "seen\n"
    out = io.BytesIO()
    place.engine.volumes.export("sized", out)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as archive:
        assert "sub/seen" in archive.getnames()


def test_cp_reaches_volumes_of_a_stopped_container(place: Machine, level: Level, tmp_path: Path) -> None:
    container = place.create(level, "cat", "/v/new", **named("copied"))
    (tmp_path / "new").write_text("copied in")
    assert place.command("cp", tmp_path / "new", f"{container.name}:/v/new").returncode == 0
    assert (inside(place, "copied") / "new").read_text() == "copied in"
    attached = container.start(attach=True)
    assert attached is not None
    attached.close()
    container.wait()
    container.remove()


# What does not depend on a level


def tar_of(place: Machine, name: str) -> dict[str, tarfile.TarInfo]:
    out = io.BytesIO()
    place.engine.volumes.export(name, out)
    return {member.name: member for member in tarfile.open(fileobj=io.BytesIO(out.getvalue()))}


LEVEL = Level("container", "container")


def test_tars_in_and_out(box: Machine) -> None:
    volumes = box.engine.volumes
    need_several_ids(box)
    box.create(LEVEL, "true", image="filled:1", **named("first", "/data")).remove()
    members = tar_of(box, "first")
    assert {name: (one.uid, one.gid, one.mode & 0o7777) for name, one in members.items()} == {
        ".": (7, 8, 0o2750),
        "file": (1000, 1001, 0o4711),
        "hard": (1000, 1001, 0o4711),
        "link": (1000, 0, 0o777),
        "sub": (0, 0, 0o1777),
        "sub/upper": (0, 0, 0o644),
    }
    out = io.BytesIO()
    volumes.export("first", out)
    volumes.import_archive("second", io.BytesIO(out.getvalue()))
    assert box.shell(LEVEL, LISTING, **named("second")) == LISTED
    piped = box.command("volume", "import", "third", "-", input="no tar at all")
    assert piped.returncode == 1
    assert [one.name for one in volumes.list()] == ["first", "second"]
    more = LayerTar().add("sub/more", content=b"more").add("file", content=b"other")
    volumes.import_archive("second", io.BytesIO(bytes(more)))
    assert box.shell(LEVEL, "cat /v/file /v/hard /v/sub/more; ls /v/sub", **named("second")) == "otherof the imagemoremore\nupper\n", "merged"


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda: bytes(LayerTar().add("ok", content=b"x").add("../out", content=b"x")), InvalidInput),
        (lambda: bytes(LayerTar().add("ok", content=b"x").hardlink("in", "../../out")), InvalidInput),
        (lambda: bytes(LayerTar().symlink("way", "/").add("way/out", content=b"x")), BulleError),
        (lambda: bytes(LayerTar().add("ok", content=b"x" * 5000))[:1000], CorruptImage),
        (lambda: bytes(LayerTar().add("ok", content=b"x").add("user", content=b"x", uid=2**32 - 1, mode=0o4755)), InvalidInput),
        (lambda: bytes(LayerTar().add("ok", content=b"x").add("user", content=b"x", uid=2**32, mode=0o4755)), InvalidInput),
    ],
    ids=["name that climbs", "link that climbs", "through a link", "cut short", "user -1", "user 2^32"],
)
def test_a_hostile_archive_leaves_volumes_as_they_were(box: Machine, damage: Callable[[], bytes], error: type[BulleError]) -> None:
    volumes = box.engine.volumes
    volumes.create("old")
    volumes.import_archive("old", io.BytesIO(bytes(LayerTar().add("kept", content=b"kept"))))
    volumes.create("empty")
    for name in ("old", "empty", "new"):
        with pytest.raises(error):
            volumes.import_archive(name, io.BytesIO(damage()))
    assert [one.name for one in volumes.list()] == ["empty", "old"]
    assert (os.listdir(inside(box, "old")), os.listdir(inside(box, "empty"))) == (["kept"], [])
    assert os.listdir(box.home / "volumes/old") == ["_data"]


def test_clones(box: Machine) -> None:
    volumes = box.engine.volumes
    need_several_ids(box)
    box.create(LEVEL, "true", image="filled:1", **named("first", "/data")).remove()
    box.shell(LEVEL, "truncate -s 64M /v/sub/holes; echo -n middle | dd of=/v/sub/holes bs=1M seek=32 conv=notrunc 2>/dev/null", **named("first"))
    assert volumes.clone("first", "second").options == {}
    assert tar_of(box, "second").keys() == tar_of(box, "first").keys()
    assert box.shell(LEVEL, LISTING, **named("second")) == LISTED.removesuffix("upper\n") + "holes\nupper\n"
    middle = "dd if=/v/sub/holes bs=1M skip=32 count=1 2>/dev/null | head -c 6"
    size, blocks, words = box.shell(LEVEL, f"stat -c '%s\n%b' /v/sub/holes; {middle}", **named("second")).split("\n")
    assert (int(size), words) == (64 << 20, "middle")
    assert int(blocks) < 100, "holes stay holes"
    box.shell(LEVEL, "rm -r /v/*", **named("second"))
    assert box.shell(LEVEL, "ls /v", **named("first")) == "file\nhard\nlink\nsub\n"
    with pytest.raises(Conflict, match="exists already"):
        volumes.clone("first", "second")
    with pytest.raises(NotFound):
        volumes.clone("nosuch", "third")


def test_nobody_waits_for_an_export(box: Machine) -> None:
    box.create(LEVEL, "true", image="filled:1", **named("first", "/data")).remove()
    reading, writing = os.pipe()
    box.shell(LEVEL, "truncate -s 1M /v/holes", **named("first"))
    export = box.start_command("volume", "export", "first", stdout=writing)
    os.close(writing)
    try:
        assert os.read(reading, 1)
        done = box.command("run", "--rm", "-v", "first:/data", "filled:1", "cat", "/data/file", timeout_s=240)
        assert done.stdout == "of the image"
        assert export.poll() is None
    finally:
        os.close(reading)
        export.wait(20)
    assert os.listdir(box.home / "volumes/first") == ["_data"]


def test_the_verbs(box: Machine) -> None:
    def words(*arguments: str) -> list[str]:
        done = box.command("volume", *arguments)
        assert done.returncode == 0, (arguments, done.stderr)
        return done.stdout.splitlines()

    assert words("create", "--label", "a=1", "--label", "b", "data") == ["data"]
    [random] = words("create")
    assert len(random) == 64
    box.command("create", "--name", "user", "-v", "data:/data", "busybox")
    assert words("ls", "-q") == sorted(["data", random])
    assert words("ls", "--filter", "name=dat")[0].split() == ["DRIVER", "VOLUME", "NAME"]
    assert words("ls", "--filter", "label=a=1", "--format", "{{.Name}} {{.Driver}} {{.Links}}") == ["data local 1"]
    assert words("ls", "-qf", "dangling=true") == [random]
    assert words("ls", "-qf", "dangling=false") == ["data"]
    [document] = json.loads("".join(words("inspect", "data")))
    assert set(document) == {"CreatedAt", "Driver", "Labels", "Mountpoint", "Name", "Options", "Scope"}
    assert (document["Labels"], document["Mountpoint"]) == ({"a": "1", "b": ""}, f"{box.home}/volumes/data/_data")
    assert json.loads(box.command("inspect", "--type", "volume", "data").stdout)[0]["Name"] == "data"
    table = box.command("system", "df", "--format", "{{.Type}} {{.TotalCount}} {{.Active}}").stdout.splitlines()
    assert "Local Volumes 2 1" in table
    assert any(line.split()[:2] == ["data", "1"] for line in box.command("system", "df", "-v").stdout.splitlines())
    refused = box.command("volume", "rm", "data", "nosuch")
    assert refused.returncode == 1
    assert "volume data is in use: container user has it" in refused.stderr
    assert "no such volume: nosuch" in refused.stderr
    assert words("rm", "-f", "nosuch") == ["nosuch"]
    pruned = box.command("system", "prune", "--volumes", "-f", "--filter", "label!=none")
    assert f"Deleted Volumes:\n{random}\n" in pruned.stdout, pruned
    assert words("ls", "-q") == ["data"], "only anonymous ones, unless all are asked for"
    assert words("prune", "-af", "--filter", "label=zzz")[-1].startswith("Total reclaimed space")
    assert words("prune", "-f", "--filter", "all=true", "--filter", "label=a")[:2] == ["Deleted Volumes:", "data"]
    for wrong, code in (
        (("create", "-d", "nfs"), 1),
        (("create", "-x"), 125),
        (("create", "x/y"), 1),
        (("ls", "--filter", "colour=red"), 1),
        (("create", "-o", "size"), 125),
    ):
        assert box.command("volume", *wrong).returncode == code, wrong


def test_events(box: Machine) -> None:
    since = str(time.time())
    box.command("run", "--rm", "-v", "told:/v", "busybox", "true")
    box.command("volume", "rm", "told")
    form = ("--format", "{{.Action}} {{.Actor.ID}} {{.Actor.Attributes.driver}}")
    shown = box.command("events", "--since", since, "--until", str(time.time()), "--filter", "volume=told", *form)
    assert shown.stdout.split("\n")[:-1] == [f"{action} told local" for action in ("create", "mount", "unmount", "destroy")], shown.stderr


def test_two_at_once_fill_a_volume_once(box: Machine) -> None:
    for turn in range(3):
        name = f"raced{turn}"
        made: list[bulle.Container] = []
        failed: list[BaseException] = []

        def create(name: str = name, made: list[bulle.Container] = made, failed: list[BaseException] = failed) -> None:
            try:
                with bulle.Engine(box.home) as engine:
                    made.append(engine.containers.create(bulle.ContainerOptions(image="filled:1", command=("true",), **named(name, "/data"))))
            except BaseException as error:  # noqa: BLE001 -- shown below
                failed.append(error)

        threads = [threading.Thread(target=create) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed
        assert len(made) == 3
        assert box.shell(LEVEL, "cd /v && ls && stat -c %h file", **named(name)) == "file\nhard\nlink\nsub\n2\n"
        for container in made:
            container.remove()
        assert os.listdir(box.home / "volumes" / name) == ["_data"]
        box.settle()


CREATING = """
import sys, bulle
volume = bulle.VolumeOption(sys.argv[2], "/many")
bulle.Engine(sys.argv[1]).containers.create(bulle.ContainerOptions(image="many:1", volumes=(volume,), command=("/none",)))
"""


@pytest.mark.parametrize("prepared", ["new", "empty"])
def test_a_killed_command_leaves_nothing_to_see(box: Machine, run_directory: Path, prepared: str, tmp_path: Path) -> None:
    """Killed at any moment while it fills a volume: the volume is not there, empty, or whole; what is left over is collected."""
    archive = run_directory / "many.tar"
    if not archive.exists():
        layer = LayerTar().directory("many")
        for number in range(1000):
            layer.add(f"many/{number}", content=b"x")
        peers.docker_archive(archive, [bytes(layer)], tags=["many:1"], config={"Cmd": ["/none"]})
    box.engine.images.load(archive)
    seen = set()
    try:
        for turn in range(4):
            name = f"killed{turn}"
            if prepared == "empty":
                box.engine.volumes.create(name)
            environment = os.environ | {"PYTHONPATH": str(Path(bulle.__file__).parents[1])}
            process = subprocess.Popen([sys.executable, "-c", CREATING, str(box.home), name], env=environment)
            aside = f"tmp/*/*/{name}/_new/*" if prepared == "new" else f"volumes/{name}/_new/*"
            deadline = time.monotonic() + 20
            while process.poll() is None and time.monotonic() < deadline and len(list(box.home.glob(aside))) <= turn * 150:
                time.sleep(0.0005)
            process.send_signal(signal.SIGKILL)
            process.wait()
            files = len(os.listdir(inside(box, name))) if inside(box, name).exists() else -1
            assert files in (-1, 0, 1000)
            assert (files == -1) == (name not in [one.name for one in box.engine.volumes.list()])
            seen.add(files)
            for container in box.engine.containers.list(all=True):
                container.remove()
            box.create(LEVEL, "true", image="many:1", **named(name, "/many")).remove()
            assert len(os.listdir(inside(box, name))) == 1000, "the next one makes it whole"
            assert os.listdir(inside(box, name).parent) == ["_data"]
            box.engine.volumes.remove(name)
        assert seen & {-1, 0}, "one was killed in the middle"
        box.engine.gc()
        assert os.listdir(box.home / "volumes") == []
        assert not list(box.home.glob("tmp/*/*/killed*"))
    finally:
        box.engine.images.remove("many:1", force=True)
