"""The check that runs after every test does see what a test leaves behind (else its silence would mean nothing)."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulle_testing import leaks, places


@pytest.fixture
def before(run_directory: Path) -> leaks.Snapshot:
    return leaks.Snapshot.take(run_directory)


def left(before: leaks.Snapshot, run_directory: Path) -> str:
    return "\n".join(leaks.what_is_left(before, run_directory, patience_s=0.2))


def test_nothing(before: leaks.Snapshot, run_directory: Path) -> None:
    assert left(before, run_directory) == ""


def test_an_orphan(before: leaks.Snapshot, run_directory: Path) -> None:
    subprocess.run(["sh", "-c", "sleep 4321 & exit 0"], check=True)
    assert "sleep 4321" in left(before, run_directory)
    # And it was ended.
    assert left(before, run_directory) == ""


def test_a_descriptor(before: leaks.Snapshot, run_directory: Path) -> None:
    number = os.open("/etc/passwd", os.O_RDONLY)
    try:
        assert f"descriptor {number}: /etc/passwd" in left(before, run_directory)
    finally:
        os.close(number)


def test_a_changed_process(before: leaks.Snapshot, run_directory: Path) -> None:
    mask = os.umask(0o777)
    try:
        assert "umask of the test process" in left(before, run_directory)
    finally:
        os.umask(mask)


@pytest.mark.root
def test_a_mount(before: leaks.Snapshot, run_directory: Path) -> None:
    target = run_directory / "left-mounted"
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(target)], check=True)
    try:
        assert "mount: " in left(before, run_directory)
    finally:
        places.remove_tree(target)
    assert not target.exists()


@pytest.fixture
def group() -> Iterator[Path]:
    hierarchy = next(path for path in (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")) if path.is_dir())
    group = hierarchy / "bulle" / f"left-{os.getpid()}"
    yield group
    if group.exists():
        group.rmdir()


@pytest.mark.root
def test_a_control_group(before: leaks.Snapshot, run_directory: Path, group: Path) -> None:
    group.mkdir(parents=True)
    (run_directory / "home" / "containers" / group.name).mkdir(parents=True)
    try:
        assert f"control group: {group}" in left(before, run_directory)
    finally:
        places.remove_tree(run_directory / "home")


@pytest.fixture(params=["home0", "home0/second"])
def home_of_another_run(request: pytest.FixtureRequest) -> Iterator[Path]:
    directory = places.run_directory()
    home = directory / request.param
    home.mkdir(parents=True)
    (home / "bulle.db").touch()
    yield home
    places.remove_tree(directory)


@pytest.mark.root
def test_a_control_group_of_another_run(before: leaks.Snapshot, run_directory: Path, group: Path, home_of_another_run: Path) -> None:
    """Which is empty for a moment, before its first process comes, and stays empty where a test of that run kills who would remove it."""
    group.mkdir(parents=True)
    assert f"control group: {group}" in left(before, run_directory)
    (home_of_another_run / "containers" / group.name).mkdir(parents=True)
    assert left(before, run_directory) == ""


@pytest.mark.root
@pytest.mark.programs("ip")
def test_network_devices(before: leaks.Snapshot, run_directory: Path, home_of_another_run: Path) -> None:
    """Those of another run are in its database, or ports of a bridge that is."""
    bridge, port = f"bulle{os.getpid()}", f"bullev{os.getpid()}"
    for command in (f"link add {bridge} type bridge", f"link add {port} type veth peer name {port}b", f"link set {port} master {bridge}"):
        subprocess.run(["ip", *command.split()], check=True)
    try:
        found = left(before, run_directory)
        assert f"network device: {bridge}" in found and f"network device: {port}" in found
        (home_of_another_run / "bulle.db-wal").write_bytes(b"\0" + bridge.encode() + b"\0")
        subprocess.run(["ip", "link", "set", f"{port}b", "master", bridge], check=True)
        assert left(before, run_directory) == ""
    finally:
        for device in (port, bridge):
            subprocess.run(["ip", "link", "delete", device], check=True)


@pytest.mark.root
@pytest.mark.parametrize("ours", [True, False])
def test_a_control_group_with_a_process(
    before: leaks.Snapshot, run_directory: Path, group: Path, ours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    group.mkdir(parents=True)
    with subprocess.Popen(["sleep", "4322"]) as process:
        try:
            (group / "cgroup.procs").write_text(str(process.pid))
            if not ours:
                monkeypatch.setattr(leaks, "session_places", {"sleep 4322"})
            assert (f"control group: {group}" in left(before, run_directory)) is ours
        finally:
            process.kill()


@pytest.mark.root
def test_a_control_group_that_comes_when_the_test_is_over(before: leaks.Snapshot, run_directory: Path, group: Path) -> None:
    """It is somebody else's; what was waited for is told all the same."""
    number = os.open("/etc/passwd", os.O_RDONLY)
    late = threading.Timer(0.1, lambda: group.mkdir(parents=True))
    late.start()
    try:
        found = left(before, run_directory)
    finally:
        late.join()
        os.close(number)
    assert group.is_dir() and f"descriptor {number}: /etc/passwd" in found and "control group" not in found


@pytest.mark.root
@pytest.mark.programs("nft")
def test_a_table(before: leaks.Snapshot, run_directory: Path) -> None:
    table = f"bulle_{os.getpid()}"
    leaks.our_tables.add(table)
    subprocess.run(["nft", "add", "table", "inet", table], check=True)
    try:
        assert left(before, run_directory) == f"nftables table: {table}"
    finally:
        subprocess.run(["nft", "delete", "table", "inet", table], check=True)
        leaks.our_tables.discard(table)
