"""``cp``, ``diff`` and ``export`` at every level: Docker's table of destinations, owners, read-only places, and attacks on the way (14 and 15)."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import bulle
from bulle.isolation.microvm.files import GuestFiles
from bulle_testing import places, tiers
from bulle_testing.peers import Docker
from bulle_testing.running import Level, Machine, machine, wait_for


@pytest.fixture(params=["running", "created", "stopped"])
def container(request: pytest.FixtureRequest, place: Machine, level: Level) -> Iterator[bulle.Container]:
    """A container in each of the states in which files can be copied."""
    with one(place, level, request.param) as found:
        yield found


@contextmanager
def one(place: Machine, level: Level, state: str, *command: str, **options: object) -> Iterator[bulle.Container]:
    found = place.create(level, *(command or (("true",) if state == "stopped" else ("sleep", "1000"))), **options)
    try:
        if state != "created":
            found.start()
        if state == "stopped":
            found.wait()
        yield found
    finally:
        found.remove(force=True)


def cp(place: Machine, *arguments: str | Path) -> None:
    done = place.command("cp", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def refused(place: Machine, *arguments: str | Path) -> str:
    """The one sentence of a cp that must fail."""
    done = place.command("cp", *arguments)
    assert done.returncode == 1, done
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    return done.stderr


def export(place: Machine, container: bulle.Container) -> dict[str, tarfile.TarInfo]:
    out = io.BytesIO()
    container.files.export(out)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as archive:
        return {member.name: member for member in archive}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory of the host with a bit of everything."""
    source = tmp_path / "tree"
    (source / "sub/deep").mkdir(parents=True)
    (source / "file").write_text("content\n")
    (source / "sub/deep/inner").write_bytes(os.urandom(300_000))
    (source / "sub/run").write_text("#!/bin/sh\n")
    (source / "sub/run").chmod(0o755)
    (source / "link").symlink_to("file")
    (source / "dangling").symlink_to("/nowhere/at/all")
    os.link(source / "file", source / "sub/same")
    os.mkfifo(source / "fifo")
    for name in (b"bad\xff", b"long\xff" * 40, b"two\nlines", b".wh.hidden", b" blank ", b"-dash"):
        (source / os.fsdecode(name)).write_bytes(name)
    (source / "sub").chmod(0o750)
    os.utime(source / "file", ns=(1_600_000_000_123_456_789, 1_600_000_000_123_456_789))
    return source


def of_www_data(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid, member.gid = 33, 34
    return member


def census(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        times = () if path.is_symlink() else (status.st_mtime_ns,)
        found[str(path.relative_to(root))] = (status.st_mode, status.st_nlink, content, *times)
    return found


def test_a_tree_goes_in_and_out_unchanged(place: Machine, container: bulle.Container, tree: Path, tmp_path: Path) -> None:
    cp(place, tree, f"{container.name}:/opt")
    back = tmp_path / "back"
    back.mkdir()
    cp(place, f"{container.name}:/opt/tree", back)
    assert census(back / "tree") == census(tree)
    found = {change.path: change.kind for change in container.files.changes()}
    assert found["/opt"] == "C"
    assert found["/opt/tree/sub/deep/inner"] == "A"
    assert export(place, container)["opt/tree/sub/deep/inner"].size == 300_000


TABLE = {
    # source on the host, destination in the container, what must be there then ("" for a refusal)
    ("file", "/new"): "/new",
    ("file", "/new/"): "",
    ("file", "/etc/passwd"): "/etc/passwd",
    ("file", "/opt"): "/opt/file",
    ("file", "/opt/"): "/opt/file",
    ("file", "/nowhere/new"): "",
    ("tree", "/new"): "/new/file",
    ("tree", "/new/"): "/new/file",
    ("tree", "/etc/passwd"): "",
    ("tree", "/opt"): "/opt/tree/file",
    ("tree/", "/opt"): "/opt/tree/file",
    ("tree/.", "/new"): "/new/file",
    ("tree/.", "/opt"): "/opt/file",
    ("tree/.", "/etc/passwd"): "",
    ("file/", "/opt"): "",
    ("link", "/opt"): "/opt/link",
    ("missing", "/opt"): "",
    ("file", "/opt/directory"): "/opt/directory/file",
    ("file", "/tolink"): "/tolinked",
    ("file", "opt"): "/opt/file",
}


@pytest.mark.parametrize(("source", "target"), TABLE)
def test_table_of_destinations(
    place: Machine, level: Level, tree: Path, tmp_path: Path, source: str, target: str, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "file").write_text("one file\n")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "prepared/directory").mkdir(parents=True)
    expected = TABLE[source, target]
    with one(place, level, "created") as container:
        (tmp_path / "tolink").symlink_to("/tolinked")
        cp(place, tmp_path / "tolink", f"{container.name}:/")
        cp(place, f"{tmp_path}/prepared/.", f"{container.name}:/opt")
        given = f"{tmp_path}/{source}"
        if not expected:
            before = container.files.changes()
            refused(place, given, f"{container.name}:{target}")
            assert container.files.changes() == before
        else:
            cp(place, given, f"{container.name}:{target}")
            assert expected.lstrip("/") in export(place, container)
        # The other way round, into a directory of the host, where the same rules hold.
        host = tmp_path / "host"
        (host / "opt/directory").mkdir(parents=True)
        (host / "etc").mkdir()
        (host / "etc/passwd").write_text("")
        (host / "tolink").symlink_to(host / "tolinked")
        for name in ("file", "link", "tree"):
            cp(place, tmp_path / name, f"{container.name}:/var/tmp")
        if not expected:
            kept = census(host)
            refused(place, f"{container.name}:/var/tmp/{source}", f"{host}/{target.lstrip('/')}")
            assert census(host) == kept
        else:
            cp(place, f"{container.name}:/var/tmp/{source}", f"{host}/{target.lstrip('/')}")
            assert os.path.lexists(host / expected.lstrip("/"))


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.programs("dockerd", "docker", "containerd", "runc")
def test_table_is_docker_s(dockerd: Docker, busybox_image: Path, tmp_path: Path, tree: Path) -> None:
    """The same words to Docker: what it refuses we refuse, and what it makes has the same name."""
    (tmp_path / "file").write_text("one file\n")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "tolink").symlink_to("/tolinked")
    (tmp_path / "prepared/directory").mkdir(parents=True)
    dockerd("load", "-i", str(busybox_image))
    wrong = []
    try:
        for (source, target), expected in TABLE.items():
            dockerd("create", "--name", "table", "--network", "none", "busybox", "true")
            dockerd("cp", f"{tmp_path}/tolink", "table:/")
            dockerd("cp", f"{tmp_path}/prepared/.", "table:/opt")
            done = dockerd("cp", f"{tmp_path}/{source}", f"table:{target}", check=False)
            there = dockerd("cp", f"table:{expected}", "-", check=False).returncode == 0 if expected else False
            if (done.returncode == 0) != bool(expected) or there != bool(expected):
                wrong.append((source, target, done.returncode, done.stderr))
            dockerd("rm", "-f", "table")
    finally:
        dockerd("rm", "-f", "table", check=False)
    assert not wrong


@pytest.mark.root
def test_owners(place: Machine, container: bulle.Container, tmp_path: Path) -> None:
    source = tmp_path / "owned"
    source.mkdir()
    (source / "file").write_text("1")
    os.chown(source, 33, 34)
    os.chown(source / "file", 33, 34)
    cp(place, source, f"{container.name}:/opt")
    cp(place, "-a", source, f"{container.name}:/var")
    found = export(place, container)
    assert {(found[name].uid, found[name].gid) for name in ("opt/owned", "opt/owned/file")} == {(0, 0)}
    assert {(found[name].uid, found[name].gid) for name in ("var/owned", "var/owned/file")} == {(33, 34)}
    if container.state().status == "running":
        seen = place.execute(container, "stat", "-c", "%u:%g", "/opt/owned/file", "/var/owned/file")
        assert seen.stdout.split() == [b"0:0", b"33:34"]
    cp(place, f"{container.name}:/var/owned", tmp_path / "plain")
    cp(place, "-a", f"{container.name}:/var/owned", tmp_path / "archive")
    assert (tmp_path / "plain/file").stat().st_uid == 0
    assert ((tmp_path / "archive/file").stat().st_uid, (tmp_path / "archive").stat().st_gid) == (33, 34)


def test_privileges_of_a_container_do_not_reach_the_host(place: Machine, level: Level, tmp_path: Path) -> None:
    with one(place, level, "stopped", "sh", "-c", "cp /bin/busybox /root/su; chmod 6755 /root/su") as container:
        cp(place, f"{container.name}:/root/su", tmp_path)
        assert stat.S_IMODE((tmp_path / "su").stat().st_mode) == 0o755


def test_streams(place: Machine, container: bulle.Container, tree: Path) -> None:
    command = place.start_command("cp", f"{container.name}:/etc/passwd", "-", stdout=subprocess.PIPE)
    with tarfile.open(fileobj=io.BytesIO(command.communicate(timeout=240)[0])) as archive:
        assert [member.name for member in archive] == ["passwd"]
    assert command.returncode == 0
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(tree, "packed", filter=of_www_data)
    command = place.start_command("cp", "-", f"{container.name}:/opt", stdin=subprocess.PIPE)
    command.communicate(packed.getvalue(), timeout=240)
    assert command.returncode == 0
    assert "opt/packed/sub/deep/inner" in export(place, container)
    found = export(place, container)["opt/packed/file"]
    if container.plan.security.id_mappings and sum(one.size for one in container.plan.security.id_mappings) == 1:
        assert (found.uid, found.gid) == (0, 0)
    else:
        assert (found.uid, found.gid) == (33, 34)  # as the archive says, which is what Docker does
    command = place.start_command("cp", "-", f"{container.name}:/etc/passwd", stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert b"must be a directory" in command.communicate(packed.getvalue(), timeout=240)[1]
    command = place.start_command("cp", "-", f"{container.name}:/opt", stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert b"bulle: " in command.communicate(b"no archive" * 1000, timeout=240)[1]
    assert command.returncode == 1


def test_follow_link(place: Machine, container: bulle.Container, tree: Path, tmp_path: Path) -> None:
    cp(place, tree, f"{container.name}:/opt")
    cp(place, f"{container.name}:/opt/tree/link", tmp_path / "as-link")
    cp(place, "-L", f"{container.name}:/opt/tree/link", tmp_path / "as-file")
    assert os.readlink(tmp_path / "as-link") == "file"
    assert (tmp_path / "as-file").read_text() == "content\n"
    cp(place, "-L", tree / "link", f"{container.name}:/followed")
    assert export(place, container)["followed"].isreg()


def test_volumes_are_as_the_container_sees_them(place: Machine, level: Level, tree: Path, tmp_path: Path) -> None:
    shared, closed = tmp_path / "shared", tmp_path / "closed"
    for directory in (shared, closed):
        directory.mkdir()
    (shared / "there").write_text("of the volume")
    (tmp_path / "single").write_text("old")
    volumes = (
        bulle.VolumeOption(str(shared), "/data/volume"),
        bulle.VolumeOption(str(closed), "/closed", True),
        bulle.VolumeOption(str(tmp_path / "single"), "/single"),
    )
    for state in ("running", "created", "stopped"):
        with one(place, level, state, volumes=volumes) as container:
            cp(place, f"{container.name}:/data/volume/there", tmp_path / f"out-{state}")
            assert (tmp_path / f"out-{state}").read_text() == "of the volume"
            (tmp_path / state).write_text(state)
            cp(place, tmp_path / state, f"{container.name}:/data/volume")
            assert (shared / state).read_text() == state
            assert (shared / state).stat().st_uid == os.geteuid()
            assert "read-only" in refused(place, tmp_path / state, f"{container.name}:/closed")
            assert not list(closed.iterdir())
            # What is mounted on a single file stays mounted: the file itself is written.
            inode = (tmp_path / "single").stat().st_ino
            cp(place, tmp_path / state, f"{container.name}:/single")
            assert ((tmp_path / "single").read_text(), (tmp_path / "single").stat().st_ino) == (state, inode)
            assert container.files.changes() == []
            assert not [name for name in export(place, container) if name.startswith("data/volume/")]


def test_read_only_roots_refuse(place: Machine, level: Level, tree: Path) -> None:
    for state in ("running", "created", "stopped"):
        with one(place, level, state, read_only=True, tmpfs=(("/memory", ""),)) as container:
            assert "read-only" in refused(place, tree, f"{container.name}:/opt")
            assert container.files.changes() == []
            if state == "running":
                cp(place, tree / "file", f"{container.name}:/memory")
                assert place.execute(container, "cat", "/memory/file").stdout == b"content\n"


def test_wrong_words(place: Machine, level: Level, tmp_path: Path) -> None:
    with one(place, level, "created") as container:
        name = container.name
        assert "copying between containers is not supported" in refused(place, f"{name}:/etc", f"{name}:/opt")
        assert "must specify at least one container source" in refused(place, tmp_path, tmp_path)
        assert f"Could not find the file /missing in container {name}" in refused(place, f"{name}:/missing", tmp_path)
        assert "can not be empty" in refused(place, f"{name}:", tmp_path)
        assert "no such container" in refused(place, "missing:/etc", tmp_path)
        assert "no such file or directory" in refused(place, tmp_path / "missing", f"{name}:/")
        assert "not a directory" in refused(place, f"{name}:/etc/passwd/x", tmp_path)


BIG = tarfile.TarInfo("big")
BIG.size = 4 << 20
BEGINNING = tarfile.TarInfo("begun").tobuf() + BIG.tobuf()


def written(container: bulle.Container, path: str) -> list[str]:
    """What the writable layer has at a path while somebody else holds the container; of a machine, once it is there, all that is seen."""
    if container.plan.isolation == "vm":
        try:
            return GuestFiles(container.plan.state_host_path).names(path)
        except (bulle.BulleError, OSError):
            return []
    upper = Path(container.plan.root.writable_host_path, "upper", path.lstrip("/"))
    return os.listdir(upper) if upper.exists() else []


def test_a_start_waits_for_a_copy(place: Machine, level: Level, tmp_path: Path) -> None:
    """The two would else have the writable layer in two overlays at once."""
    with one(place, level, "created", "sh", "-c", "wc -c < /big") as container:
        command = place.start_command("cp", "-", f"{container.name}:/", stdin=subprocess.PIPE)
        assert command.stdin is not None
        command.stdin.write(BEGINNING + bytes(1 << 20))
        command.stdin.flush()
        wait_for(lambda: "begun" in written(container, "/"), "the copy has begun")
        started = threading.Thread(target=container.start)
        started.start()
        started.join(0.5)
        assert started.is_alive()
        command.stdin.write(bytes(3 << 20) + bytes(1024))
        command.stdin.close()
        assert command.wait(60) == 0
        started.join()
        container.wait()
        assert b"".join(entry.data for entry in container.logs()).split() == [b"4194304"]
        assert [change.path for change in container.files.changes()] == ["/begun", "/big"]


def test_a_copy_that_is_killed_leaves_nothing(place: Machine, level: Level, container: bulle.Container) -> None:
    command = place.start_command("cp", "-", f"{container.name}:/opt", stdin=subprocess.PIPE)
    assert command.stdin is not None
    command.stdin.write(BEGINNING + bytes(1 << 20))
    command.stdin.flush()
    wait_for(lambda: "begun" in written(container, "/opt"), "the copy has begun")
    command.kill()
    command.wait()
    command.stdin.close()

    def new() -> list[str]:
        return [change.path for change in container.files.changes() if change.path.startswith("/opt/")]

    wait_for(lambda: new() == ["/opt/begun"], "what was not whole is gone")
    cp(place, "/etc/hostname", f"{container.name}:/opt/after")
    assert new() == ["/opt/after", "/opt/begun"]


# Attacks


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A directory of the host that no copy may touch or read."""
    tmp_path.chmod(0o755)
    directory = tmp_path / "victim"
    directory.mkdir()
    (directory / "secret").write_text("host")
    before = census(directory)
    yield directory
    assert census(directory) == before


@pytest.mark.parametrize("state", ["running", "stopped"])
def test_links_of_a_container_lead_nowhere(place: Machine, level: Level, victim: Path, tmp_path: Path, state: str) -> None:
    """14: links in the container's root, as whole paths and on the way, in both directions."""
    climb = "../" * 20 + str(victim).lstrip("/")
    script = f"ln -s {victim} /abs; ln -s {climb} /climb; ln -s {victim}/secret /opt/secret; mkdir /tree; ln -s {victim} /tree/d; "
    script += "exec sleep 1000"
    (tmp_path / "payload").write_text("payload")
    (tmp_path / "tree/d").mkdir(parents=True)
    (tmp_path / "tree/d/planted").write_text("payload")
    with one(place, level, "running", "sh", "-c", script) as container:
        wait_for(lambda: place.execute(container, "test", "-L", "/tree/d").exit_code == 0, "the links are there")
        if state == "stopped":
            container.stop(timeout_s=0)
        paths = ("/abs/secret", "/climb/secret", "/abs/.", "/proc/1/root/.", "/proc/self/root/.", "/proc/self/cwd/", "/opt/secret")
        for number, path in enumerate(paths):
            for flags in ((), ("-L",)):
                stolen = tmp_path / f"stolen{number}{len(flags)}"
                done = place.command("cp", *flags, f"{container.name}:{path}", stolen)
                assert done.returncode == 1 or stolen.is_symlink(), path
        for path in ("/abs/planted", "/climb/planted", "/opt/secret", "/abs"):
            place.command("cp", tmp_path / "payload", f"{container.name}:{path}")
        refused(place, tmp_path / "tree", f"{container.name}:/")  # its d is a link in the container
        # An archive without members for the directories on the way.
        for name in ("abs/planted", "climb/planted", "tree/d/planted"):
            with pytest.raises(bulle.BulleError, match="symlink"):
                container.files.write_archive(archive_of(name), "/")


def archive_of(name: str) -> io.BytesIO:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    packed.seek(0)
    return packed


def test_links_on_the_host_s_side_are_not_followed(place: Machine, level: Level, victim: Path, tmp_path: Path) -> None:
    """14: what was made of a link in the destination, on the host, before the copy and during it."""
    out = tmp_path / "out"
    (out / "tree").mkdir(parents=True)
    (out / "tree/d").symlink_to(victim)
    (out / "tree/secret").symlink_to(victim / "secret")
    script = "mkdir -p /tree/d; echo 1 > /tree/secret; echo 1 > /tree/d/planted; exec sleep 1000"
    with one(place, level, "running", "sh", "-c", script) as container:
        wait_for(lambda: place.execute(container, "test", "-e", "/tree/d/planted").exit_code == 0, "the tree is there")
        assert "cannot overwrite non-directory" in refused(place, f"{container.name}:/tree", out)
        cp(place, f"{container.name}:/tree/secret", f"{out}/tree/")
        assert (out / "tree/secret").read_text() == "1\n" and not (out / "tree/secret").is_symlink()


def test_swapped_links_lead_nowhere(place: Machine, level: Level, victim: Path, tmp_path: Path) -> None:
    """14: a directory that becomes a link to the host and back all the time, while files go in and out."""
    script = f"mkdir -p /race/d; echo inside > /race/d/secret; ln -s {victim} /race/l; "
    script += "while :; do mv /race/d /race/x; mv /race/l /race/d; mv /race/d /race/l; mv /race/x /race/d; done"
    (tmp_path / "secret").write_text("planted")
    (tmp_path / "in/d").mkdir(parents=True)
    (tmp_path / "in/d/planted").write_text("planted")
    with one(place, level, "running", "sh", "-c", script) as container:
        # A shell empties a file before it writes to it.
        wait_for(lambda: place.execute(container, "test", "-s", "/race/d/secret").exit_code == 0, "the file is written")
        files = container.files
        for number in range(60):
            out = tmp_path / f"out{number}"
            out.mkdir()
            with suppress(bulle.BulleError):
                files.copy_out("/race/d/secret", str(out))
            with suppress(bulle.BulleError):
                files.copy_out("/race", str(out))
            found = [path.read_text() for path in out.rglob("secret") if path.is_file() and not path.is_symlink() and not path.parent.is_symlink()]
            assert set(found) <= {"inside\n", "planted"}
            with suppress(bulle.BulleError):
                files.copy_in(str(tmp_path / "secret"), "/race/d/secret")
            with suppress(bulle.BulleError):
                files.copy_in(f"{tmp_path}/in/.", "/race")
            assert all(change.path.startswith("/race") for change in files.changes())


def test_swapped_links_on_the_host_side_lead_nowhere(place: Machine, level: Level, victim: Path, tmp_path: Path) -> None:
    """14: the destination is a volume in which the container swaps names meanwhile; the host's own path to it is followed once."""
    shared = tmp_path / "shared"
    (shared / "tree/d").mkdir(parents=True)
    shared.chmod(0o777)
    script = f"cd /v; mkdir -p /tree/d; echo inside > /tree/d/planted; ln -s {victim} l; "
    script += "while :; do mv tree/d x; mv l tree/d; mv tree/d l; mv x tree/d; done"
    with one(place, level, "running", "sh", "-c", script, volumes=(bulle.VolumeOption(str(shared), "/v"),)) as container:
        wait_for(lambda: place.execute(container, "test", "-e", "/tree/d/planted").exit_code == 0, "the tree is there")
        for _ in range(60):
            with suppress(bulle.BulleError):
                container.files.copy_out("/tree", str(shared))


def test_nothing_of_the_container_is_executed_or_loaded(place: Machine, level: Level, tmp_path: Path) -> None:
    """15: libraries, modules and databases in the container's root that would tell if they were used."""
    poison = "touch /poisoned"
    script = (
        "mkdir -p /usr/lib/python3.11 /lib/x86_64-linux-gnu /lib64;"
        "for f in tarfile array pwd os; do echo 'open(\"/poisoned\", \"w\")' > /usr/lib/python3.11/$f.py; done;"
        f"for t in tar cp sh; do rm -f /bin/$t.real; printf '#!/bin/busybox sh\\n{poison}\\n' > /usr/bin/$t; chmod 755 /usr/bin/$t; done;"
        "echo 'passwd: poison' > /etc/nsswitch.conf; echo /poison.so > /etc/ld.so.preload; echo junk > /etc/passwd; exec sleep 1000"
    )
    (tmp_path / "file").write_text("1")
    with one(place, level, "running", "sh", "-c", script) as container:
        wait_for(lambda: any(change.path == "/etc/passwd" for change in container.files.changes()), "the poison is there")
        for stop in (False, True):
            if stop:
                container.stop(timeout_s=0)
            cp(place, "-a", tmp_path / "file", f"{container.name}:/opt")
            cp(place, f"{container.name}:/usr/bin", tmp_path / f"back{stop}")
            export(place, container)
            assert "/poisoned" not in [change.path for change in container.files.changes()]


@pytest.mark.parametrize("name", ["../escape", "a/../../escape", "/etc/escape"])
def test_names_of_an_archive_stay_below_the_destination(place: Machine, level: Level, name: str) -> None:
    with one(place, level, "created") as container:
        with suppress(bulle.BulleError):
            container.files.write_archive(archive_of(name), "/opt")
        assert all(change.path.startswith("/opt") for change in container.files.changes())


def test_devices_are_left_out(place: Machine, level: Level, tmp_path: Path) -> None:
    with one(place, level, "running") as container:
        assert "it is a device" in refused(place, f"{container.name}:/dev/null", tmp_path)
        done = place.command("cp", f"{container.name}:/dev", tmp_path)
        assert done.returncode == 0, done.stderr
        assert "dev/null is a device and was left out" in done.stderr
        assert not [path for path in (tmp_path / "dev").rglob("*") if path.is_char_device() and not path.is_symlink()]


# diff


def test_changes(place: Machine, level: Level) -> None:
    script = (
        "echo 1 > /new; mkdir /directory; echo 1 > /directory/in; rm /etc/group; echo x >> /etc/passwd; chmod 700 /root; rm -r /home;"
        "touch -d @1 /bin/busybox;"
        "rm -r /var/log; mkdir /var/log; rm /usr/bin/env; mkdir /usr/bin/env; ln -sf /x /usr/bin/id; touch /tmp"
    )
    with one(place, level, "stopped", "sh", "-c", script) as container:
        done = place.command("diff", container.name)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [
            "C /bin", "C /bin/busybox", "A /directory", "A /directory/in", "C /etc", "D /etc/group", "C /etc/passwd", "D /home", "A /new", "C /root",
            "C /usr", "C /usr/bin", "C /usr/bin/env", "C /usr/bin/id",
        ]  # fmt: skip
        assert place.command("diff", "--format", "{{.Type}}={{.Path}}", container.name).stdout.splitlines()[0] == "C=/bin"


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.programs("dockerd", "docker", "containerd", "runc")
@pytest.mark.parametrize(
    "script",
    [
        "echo 1 > /new; mkdir /directory; echo 1 > /directory/in; rm /etc/group; echo x >> /etc/passwd; chmod 700 /root; rm -r /home",
        "rm -r /var/log /usr/sbin; mkdir /var/log; touch /var/log/x; rm /usr/bin/env; mkdir /usr/bin/env; ln -sf /x /usr/bin/id; chown 5:6 /opt",
        "mv /etc/passwd /etc/p; ln /etc/p /etc/q; rm -r /usr; mkdir -p /usr/bin; echo 1 > /usr/bin/id; mkfifo /fifo; chmod 755 /etc/group",
    ],
)
def test_changes_are_docker_s(dockerd: Docker, module_machine: Machine, busybox_image: Path, script: str) -> None:
    dockerd("load", "-i", str(busybox_image))
    dockerd("run", "--name", "changed", "--network", "none", "busybox", "sh", "-c", script)
    try:
        theirs = dockerd("diff", "changed").stdout.splitlines()
        with one(module_machine, Level("container", "container"), "stopped", "sh", "-c", script) as container:
            ours = module_machine.command("diff", container.name).stdout.splitlines()
    finally:
        dockerd("rm", "-f", "changed")
    assert sorted(ours) == sorted(theirs)


def test_changes_and_export_of_a_running_container(place: Machine, level: Level) -> None:
    with one(place, level, "running", "sh", "-c", "echo 1 > /one; exec sleep 1000") as container:
        wait_for(lambda: container.files.changes() == [bulle_change("A", "/one")], "the change is seen")
        found = export(place, container)
        assert found["one"].size == 2
        assert not [name for name in found if name.startswith(("proc/", "sys/", "dev/"))]


def bulle_change(kind: str, path: str) -> object:
    from bulle.engine.differences import Change

    return Change(kind, path)  # type: ignore[arg-type]


def test_export_is_a_root_that_runs(place: Machine, container: bulle.Container, tree: Path, tmp_path: Path) -> None:
    cp(place, tree, f"{container.name}:/opt")
    archive = tmp_path / "out.tar"
    done = place.command("export", "-o", archive, container.name)
    assert done.returncode == 0, done.stderr
    done = place.command("import", "-c", 'CMD ["cat", "/opt/tree/file"]', archive, "imported:1")
    assert done.returncode == 0, done.stderr
    try:
        assert place.command("run", "--rm", "imported:1").stdout == "content\n"
    finally:
        place.command("rmi", "imported:1")



@pytest.mark.root
@pytest.mark.programs("setpriv")
def test_a_root_that_is_a_copy(run_directory: Path, busybox_image: Path, tree: Path, tmp_path: Path) -> None:
    """Where nobody may mount, a private root is a copy of the image in the host's own mount namespace: that is what is read, never the host."""
    with machine(run_directory, "copying-unmounted") as place:
        place.environment["BULLE_NO_SPAWNER"] = "1"
        without = [str(tiers.program("setpriv")), "--inh-caps", "-all", "--bounding-set", "-sys_admin", "--", *places.command_line()]

        def run(*arguments: str | Path, code: int = 0) -> str:
            command = [*without, *map(str, arguments)]
            done = subprocess.run(command, env=place.environment, capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL)
            assert done.returncode == code, done
            return done.stdout if not code else done.stderr

        run("load", "-i", busybox_image)
        run("create", "--isolation", "chroot", "--name", "early", "busybox", "true")
        assert "start the container first" in run("cp", tree, "early:/opt", code=1)
        run("run", "-d", "--isolation", "chroot", "--name", "copied", "busybox", "sleep", "1000")
        try:
            for stop in (False, True):
                if stop:
                    run("stop", "-t", "0", "copied")
                run("cp", tree, f"copied:/opt/{stop}")
                run("cp", f"copied:/opt/{stop}", tmp_path / f"back{stop}")
                assert census(tmp_path / f"back{stop}") == census(tree)
                run("cp", f"copied:{tree}", tmp_path / "stolen", code=1)
                run("export", "-o", tmp_path / "export.tar", "copied")
                with tarfile.open(tmp_path / "export.tar") as archive:
                    names = archive.getnames()
                assert f"opt/{stop}/sub/deep/inner" in names and "vmlinuz" not in names and "lost+found" not in names
                assert "copy of the image" in run("diff", "copied", code=1)
                assert "copy of the image" in run("commit", "copied", code=1)
        finally:
            run("rm", "-f", "copied", "early")


@pytest.mark.root
def test_a_writable_layer_in_memory(busybox_image: Path, run_directory: Path, tmp_path: Path) -> None:
    """Where BULLE_HOME lies on an overlay, no overlay can write: nobody takes the empty directory there for the container's changes."""
    below, home = run_directory / "overlay-below", run_directory / "overlay-home"
    for path in (below / "upper", below / "work", below / "lower", home):
        path.mkdir(parents=True)
    options = ",".join(f"{key}={below}/{name}" for key, name in (("upperdir", "upper"), ("workdir", "work"), ("lowerdir", "lower")))
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(home)], check=True)
    try:
        with machine(home, "home") as place:
            place.engine.images.load(busybox_image)
            with one(place, Level("container", "container"), "running") as container:
                (tmp_path / "file").write_text("1")
                cp(place, tmp_path / "file", f"{container.name}:/opt")
                cp(place, f"{container.name}:/opt/file", tmp_path / "back")
                for arguments in (("diff", container.name), ("commit", container.name), ("export", "-o", tmp_path / "x.tar", container.name)):
                    done = place.command(*arguments)
                    assert (done.returncode, "kept in memory" in done.stderr) == (1, True), done
                container.stop(timeout_s=0)
                assert "kept in memory" in refused(place, tmp_path / "file", f"{container.name}:/opt")
    finally:
        subprocess.run(["umount", "--lazy", str(home)], check=True)
