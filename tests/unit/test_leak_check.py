"""The check that runs after every test does see what a test leaves behind (else its silence would mean nothing)."""

from __future__ import annotations

import os
import subprocess
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


@pytest.mark.root
def test_a_control_group(before: leaks.Snapshot, run_directory: Path) -> None:
    hierarchy = next(path for path in (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")) if path.is_dir())
    group = hierarchy / "bulle" / f"left-{os.getpid()}"
    group.mkdir(parents=True)
    try:
        assert f"control group: {group}" in left(before, run_directory)
    finally:
        group.rmdir()


@pytest.mark.root
@pytest.mark.programs("nft", "ip")
def test_a_network_device_and_a_table(before: leaks.Snapshot, run_directory: Path) -> None:
    name, table = f"bulle{os.getpid()}", f"bulle_{os.getpid()}"
    leaks.our_tables.add(table)
    subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=True)
    subprocess.run(["ip", "link", "set", name, "alias", f"network shop of {run_directory}/home"], check=True)
    subprocess.run(["nft", "add", "table", "inet", table], check=True)
    try:
        assert left(before, run_directory).splitlines() == [f"network device: {name}", f"nftables table: {table}"]
    finally:
        subprocess.run(["ip", "link", "delete", name], check=True)
        subprocess.run(["nft", "delete", "table", "inet", table], check=True)
        leaks.our_tables.discard(table)
