"""A writable layer of a limited size, /dev/shm, the out-of-memory score, at every level: what is asked holds, survives, and leaves nothing."""

from __future__ import annotations

import io
import json
import os
import signal
import tarfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import bulle
from bulle.errors import InvalidInput, Unavailable, Unsupported
from bulle.isolation.driver import Feature
from bulle.linux import mount
from bulle_testing.running import Level, Machine, follow, machine, usable, wait_for

SIZE = 64 << 20


@pytest.fixture(autouse=True)
def no_loop_device_stays(place: Machine) -> Iterator[None]:
    yield
    wait_for(lambda: not loops(place), "the loop devices of this home are given back")


def loops(place: Machine) -> list[str]:
    """The files of this home's containers that stand behind a loop device."""
    found = []
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            name = file.read_text().strip()
            if f"{place.home}/containers/" in name:
                found.append(name)
    return found


def lacks_limit(place: Machine, level: Level) -> bool:
    if Feature.STORAGE_LIMIT in usable(level, place.home):
        return False
    with pytest.raises(Unsupported, match="limit on the size of the writable layer"):
        place.create(level, "true", storage_bytes=SIZE)
    assert place.engine.containers.list(all=True) == []
    return True


def start(container: bulle.Container) -> tuple[int, str]:
    """One run of the container to its end: exit code and output."""
    attachment = container.start(attach=True)
    assert attachment is not None
    done = follow(attachment)
    return container.wait(), (done.stdout + done.stderr).decode()


def document(place: Machine, container: bulle.Container) -> Any:
    return json.loads(place.command("inspect", container.id).stdout)[0]


def test_the_size_holds_and_is_there_again_after_a_restart(place: Machine, level: Level) -> None:
    if lacks_limit(place, level):
        return
    script = """
        if [ -e /var/first ]; then cat /var/first; rm /var/big && sync && sleep 0.5 && echo freed; exit; fi
        echo kept > /var/first; rm -rf /opt
        dd if=/dev/zero of=/var/big bs=1M count=60 2>/dev/null && echo fits
        dd if=/dev/zero of=/var/more bs=1M count=40 2>&1 | grep -o 'No space left on device'
        df -m / | tail -n1 | awk '{print $2}'
    """
    container = place.create(level, "sh", "-c", script, storage_bytes=SIZE)
    try:
        code, text = start(container)
        fits, full, size = text.split("\n")[:3]
        assert (code, fits, full) == (0, "fits", "No space left on device"), text
        assert 60 <= int(size) <= 68, "df says what was asked for"
        assert document(place, container)["HostConfig"]["StorageOpt"] == {"size": str(SIZE)}

        def on_disk() -> int:
            return sum(path.lstat().st_blocks * 512 for path in Path(container.directory).rglob("*"))

        taken = on_disk()
        assert taken >= 60 << 20
        assert start(container) == (0, "kept\nfreed\n")
        wait_for(lambda: not loops(place), "its device is given back")
        # While it runs: what was deleted in the last moment ext4 gives back only if that comes before the unmount.
        wait_for(lambda: on_disk() <= taken - (50 << 20), "what is deleted inside is given back to the disk")
    finally:
        container.remove(force=True)
    assert not Path(container.directory).exists()


def test_nothing_of_the_disk_is_taken_before_it_is_written(place: Machine, level: Level) -> None:
    if lacks_limit(place, level):
        return
    container = place.create(level, "true", storage_bytes=1 << 40)
    try:
        assert sum(path.lstat().st_blocks * 512 for path in Path(container.directory).rglob("*")) < 32 << 20
        assert start(container) == (0, "")
    finally:
        container.remove(force=True)


def test_verbs_see_its_files_running_and_stopped(place: Machine, level: Level, tmp_path: Path) -> None:
    if lacks_limit(place, level):
        return
    with place.running(level, "sh", "-c", "echo new > /new; rm -rf /opt; echo up; exec sleep 1000", storage_bytes=SIZE) as container:
        wait_for(lambda: b"new" in place.execute(container, "cat", "/new").stdout, "it has written")
        for moment in ("running", "stopped"):
            if moment == "stopped":
                container.kill()
                container.wait()
            told = place.command("diff", container.name)
            assert {"A /new", "D /opt"} <= set(told.stdout.splitlines()), (moment, told)
            (tmp_path / moment).write_text(moment)
            for copy in (
                place.command("cp", f"{container.name}:/new", tmp_path / f"{moment}-new"),
                place.command("cp", tmp_path / moment, f"{container.name}:/{moment}"),
                place.command("export", "-o", tmp_path / f"{moment}.tar", container.name),
                place.command("commit", container.name, f"kept:{moment}"),
            ):
                assert copy.returncode == 0, (moment, copy)
            assert (tmp_path / f"{moment}-new").read_text() == "new\n"
            with tarfile.open(tmp_path / f"{moment}.tar") as archive:
                names = archive.getnames()
                new = archive.extractfile("new")
                assert new is not None
                assert new.read() == b"new\n"
            assert moment in names
            assert "opt" not in names
            assert "lost+found" not in names
            assert place.shell(level, f"cat /new /{moment}; ls -d /opt || true", image=f"kept:{moment}").startswith(f"new\n{moment}")
            sizes = json.loads(place.command("inspect", "--size", container.id).stdout)[0]
            assert sizes["SizeRw"] >= 4
            place.command("rmi", f"kept:{moment}")
        assert place.command("start", container.name).returncode == 0
        assert place.execute(container, "cat", "/stopped").stdout == b"stopped"


def test_a_copy_into_a_full_one_is_refused(place: Machine, level: Level) -> None:
    if lacks_limit(place, level):
        return
    container = place.create(level, "true", storage_bytes=SIZE)
    try:
        tar = io.BytesIO()
        with tarfile.open(fileobj=tar, mode="w") as archive:
            member = tarfile.TarInfo("big")
            member.size = 100 << 20
            archive.addfile(member, io.BytesIO(bytes(member.size)))
        path = Path(container.directory).parent.parent / "big.tar"
        path.write_bytes(tar.getvalue())
        done = place.command("cp", path, f"{container.name}:/")
        path.unlink()
        assert done.returncode == 1
        assert "No space left on device" in done.stderr
    finally:
        container.remove(force=True)


def test_whoever_is_killed_nothing_stays(place: Machine, level: Level) -> None:
    if lacks_limit(place, level):
        return
    container = place.create(level, "sh", "-c", "echo kept >> /log; cat /log; exec sleep 1000", storage_bytes=SIZE)
    try:
        for round_number in range(1, 4):
            container.start()
            wait_for(lambda: place.execute(container, "cat", "/log").stdout == b"kept\n" * round_number, "it has written")  # noqa: B023
            own_kernel = Feature.OWN_KERNEL in usable(level, place.home)
            assert len(loops(place)) == (0 if own_kernel else 1)
            if own_kernel:
                place.execute(container, "sync")  # to kill what it runs in is a power cut
            state = container.state()
            for pid in (state.monitor_pid, state.pid):
                os.kill(pid, signal.SIGKILL)
            wait_for(lambda: not container.state().active and not loops(place), "it is over, and the kernel has given the device back")
    finally:
        container.remove(force=True)


def test_started_again_at_once_it_never_has_two_devices(place: Machine, level: Level) -> None:
    if lacks_limit(place, level):
        return
    container = place.create(level, "sh", "-c", "echo one >> /log; wc -l < /log", storage_bytes=SIZE)
    try:
        for count in range(1, 8):
            assert start(container) == (0, f"{count}\n")
            assert len(loops(place)) <= 1
    finally:
        container.remove(force=True)


def test_removed_with_rm(place: Machine, level: Level) -> None:
    flags = (*level.flags, "--storage-opt", f"size={SIZE >> 20}m")
    done = place.command("run", "--rm", *flags, "busybox", "dd", "if=/dev/zero", "of=/big", "bs=1M", "count=100")
    if Feature.STORAGE_LIMIT in usable(level, place.home):
        assert done.returncode == 1
        assert "No space left on device" in done.stderr
    else:
        assert done.returncode == 125


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("size=", "invalid size"),
        ("size", "invalid storage option"),
        ("size=0", "invalid storage option"),
        ("size=-1", "invalid size"),
        ("size=1k", "the smallest is 16 MiB"),
        ("size=lots", "invalid size"),
        ("size=8000p", "writable layer"),
        ("dm.basesize=1G", "unknown storage option"),
    ],
)
def test_wrong_storage_options(place: Machine, option: str, why: str) -> None:
    done = place.command("run", "--storage-opt", option, "busybox", "true")
    assert done.returncode == 125
    assert why in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2, done.stderr
    assert place.engine.containers.list(all=True) == []


def test_size_of_shared_memory(place: Machine, level: Level) -> None:
    script = "df -k /dev/shm | tail -n1 | awk '{print $2}'; dd if=/dev/zero of=/dev/shm/x bs=1M count=3 2>&1 | grep -o 'No space.*'"
    if Feature.TMPFS not in usable(level, place.home):
        pytest.skip("no mounts here")
    assert place.shell(level, script, shm_bytes=2 << 20) == "2048\nNo space left on device\n"
    assert place.shell(level, "df -k /dev/shm | tail -n1 | awk '{print $2}'") == "65536\n", "Docker's default"
    done = place.command("run", "--rm", *level.flags, "--shm-size", "3m", "busybox", "sh", "-c", script)
    assert done.stdout.startswith("3072\n")


def test_oom_score(place: Machine, level: Level) -> None:
    own = int(Path("/proc/self/oom_score_adj").read_text())
    wanted = min(own + 300, 1000)
    with place.running(level, oom_score_adj=wanted) as container:
        assert Path(f"/proc/{container.state().pid}/oom_score_adj").read_text() == f"{wanted}\n"
        assert place.execute(container, "cat", "/proc/self/oom_score_adj").stdout == b"%d\n" % wanted
        assert document(place, container)["HostConfig"]["OomScoreAdj"] == wanted
        assert Path(f"/proc/{container.state().monitor_pid}/oom_score_adj").read_text() == f"{own}\n", "the monitor's is its own"
    with place.running(level) as container:
        assert Path(f"/proc/{container.state().pid}/oom_score_adj").read_text() == f"{own}\n"
    done = place.command("run", "--rm", *level.flags, "--oom-score-adj", str(wanted), "busybox", "cat", "/proc/self/oom_score_adj")
    assert (done.returncode, done.stdout) == (0, f"{wanted}\n")


def test_oom_score_below_the_engines_own(place: Machine, level: Level) -> None:
    effective = int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff")).split()[1], 16)
    container = place.create(level, "cat", "/proc/self/oom_score_adj", oom_score_adj=-900)
    try:
        if effective >> 24 & 1:
            assert start(container) == (0, "-900\n")
            return
        own = int(Path("/proc/self/oom_score_adj").read_text())
        with pytest.raises(Unavailable, match=f"CAP_SYS_RESOURCE.*use a value from {own} to 1000"):
            container.start()
    finally:
        container.remove(force=True)


@pytest.mark.parametrize("value", [-1001, 1001])
def test_wrong_oom_scores(place: Machine, level: Level, value: int) -> None:
    with pytest.raises(InvalidInput, match="range for oom score adj is"):
        place.create(level, "true", oom_score_adj=value)
    done = place.command("run", *level.flags, f"--oom-score-adj={value}", "busybox", "true")
    assert done.returncode == 125
    assert place.engine.containers.list(all=True) == []


def test_start_of_a_sized_one_waits_for_nobody(place: Machine, level: Level) -> None:
    """Making and mounting it costs milliseconds, also for a large one."""
    if lacks_limit(place, level):
        return
    begun = time.monotonic()
    container = place.create(level, "true", storage_bytes=100 << 30)
    try:
        assert start(container)[0] == 0
    finally:
        container.remove(force=True)
    assert time.monotonic() - begun < 60


def test_a_full_one_starts_again(place: Machine, level: Level) -> None:
    if lacks_limit(place, level):
        return
    script = "dd if=/dev/zero of=/fill bs=1M; i=0; while echo x > /s$i; do i=$((i+1)); [ $i -gt 9000 ] && break; done; mkdir /d; echo done"
    script = f"if [ -e /fill ]; then echo again; echo more > /more; mkdir /dir; else {script}; fi"
    container = place.create(level, "sh", "-c", script, storage_bytes=SIZE)
    try:
        assert start(container)[1].startswith("done\n")
        for _ in range(4):
            text = start(container)[1]
            assert text.startswith("again\n")
            assert "No space left on device" in text
            assert place.command("cp", f"{container.name}:/etc/passwd", "-").returncode == 0
        assert "A /fill" in place.command("diff", container.name).stdout
    finally:
        container.remove(force=True)


def test_without_what_makes_file_systems_it_says_what_to_install(place: Machine, level: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    if lacks_limit(place, level):
        return
    monkeypatch.setattr("bulle.isolation.sized_file_system._MAKERS_PATH", "/nowhere")
    with pytest.raises(Unavailable, match=r"mkfs\.ext4 is not installed; install e2fsprogs"):
        place.create(level, "true", storage_bytes=SIZE)
    assert place.engine.containers.list(all=True) == []
    assert os.listdir(place.home / "containers") == []


# A full disk


@pytest.mark.root
def test_a_full_disk(level: Level, run_directory: Path, busybox_image: Path) -> None:
    """Whoever fills the disk that all is on can still be seen, stopped and removed; then there is space again."""
    if tuple(map(int, os.uname().release.split(".")[:2])) < (6, 3) and level.name != "chroot":
        pytest.skip("before 6.3 the kernel maps no ids of a tmpfs, so no container has its home on one")
    small = run_directory / f"small-{level.name}"
    small.mkdir()
    mount.mount("tmpfs", small, "tmpfs", 0, "size=120m,mode=0755")
    try:
        with machine(small, "home") as place:
            usable(level, place.home)
            place.engine.images.load(busybox_image)
            script = "head -c 300000000 /dev/zero > /big; sync; exec sleep 1000"
            with place.running(level, "sh", "-c", script, name="full") as container:
                wait_for(lambda: "exec sleep 1000" not in place.command("exec", "full", "ps").stdout, "it has filled the disk", 200)
                assert _free(small) < 2 << 20
                assert "Up " in place.command("ps").stdout
                assert place.command("stop", "-t", "1", "full").returncode == 0
                assert container.state().status == "exited"
                assert "was ended by `bulle stop`" in place.command("why", "full").stdout
                done = place.command("rm", "full")
                assert (done.returncode, done.stderr) == (0, "")
            assert _free(small) > 32 << 20
            assert place.run(level, "echo", "again").stdout == b"again\n"
    finally:
        mount.umount(small, mount.MNT_DETACH)
        small.rmdir()


def _free(directory: Path) -> int:
    state = os.statvfs(directory)
    return state.f_bavail * state.f_frsize
