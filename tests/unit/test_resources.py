"""Statistics, and limits that change, on ordinary directories in the form of version 2: this machine may have another."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bulle.errors import BulleError, InvalidInput, Unavailable
from bulle.isolation.control_group import ControlGroup, LayoutV2, check
from bulle.isolation.control_group_settings import settings_v1, settings_v2
from bulle.isolation.statistics import Statistics, complete, of_group
from bulle.linux.control_group import Hierarchy
from bulle.model.run_plan import DeviceLimit, Resources

MIB = 1 << 20
FILES = {
    "cgroup.controllers": "cpu cpuset io memory pids",
    "cgroup.procs": f"{os.getpid()}\n",
    "cgroup.events": "populated 1\nfrozen 0\n",
    "cgroup.freeze": "0",
    "memory.max": "67108864",
    "memory.swap.max": "67108864",
    "memory.low": "0",
    "memory.current": "10485760\n",
    "memory.stat": "anon 1\ninactive_file 4194304\n",
    "cpu.max": "max 100000",
    "cpu.stat": "usage_usec 1234\nuser_usec 1000\n",
    "pids.max": "max",
    "pids.current": "3\n",
    "io.max": "",
    "io.stat": "254:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n8:0 rbytes=1 wbytes=1 rios=1 wios=1\n",
}


@pytest.fixture
def group(tmp_path: Path) -> Path:
    directory = tmp_path / "bulle/c1"
    directory.mkdir(parents=True)
    (tmp_path / "cgroup.controllers").write_text("cpu cpuset io memory pids")
    (tmp_path / "cgroup.subtree_control").write_text("cpu cpuset io memory pids")
    for name, content in FILES.items():
        (directory / name).write_text(content)
    return directory


def opened(group: Path) -> ControlGroup:
    root = str(group.parent.parent)
    return ControlGroup.open("c1", LayoutV2(Hierarchy(2, frozenset(("cpu", "cpuset", "io", "memory", "pids")), root, False, "")))


def test_statistics_of_version_2(group: Path) -> None:
    assert of_group({"": str(group)}) == Statistics(6 * MIB, 64 * MIB, 1_234_000, 3, 4097, 8193)
    (group / "memory.max").write_text("max\n")
    assert of_group({"": str(group)}).memory_limit_bytes is None
    assert of_group({"": str(group / "gone")}) == Statistics()
    assert of_group({}) == Statistics()


def test_what_no_group_counts_is_summed_over_processes() -> None:
    asked: list[int] = []

    def find(pids: object) -> dict[int, list[int]]:
        asked.extend(pids)  # type: ignore[call-overload]
        return {os.getpid(): [os.getpid()]}

    whole = Statistics(1, None, 2, 3, 4, 5)
    counted, summed = complete([whole, Statistics(pids=77)], [1, os.getpid()], find)
    assert asked == [os.getpid()], "only for those that lack something"
    assert (counted.memory_bytes, counted.cpu_ns, counted.pids) == (1, 2, 3)
    assert summed.pids == 77 and (summed.memory_bytes or 0) > MIB and (summed.cpu_ns or 0) > 1_000_000
    assert summed.at_ns >= counted.at_ns > 0


def test_limits_of_version_2_change_and_are_undone(group: Path) -> None:
    one = opened(group)
    try:
        before = Resources(memory_bytes=64 * MIB)
        after = Resources(memory_bytes=32 * MIB, cpu_quota_us=50_000, pids_limit=20)
        one.change(before, after, list)
        names = ("memory.max", "cpu.max", "pids.max")
        assert (group / "memory.max").read_text() == str(32 * MIB)
        assert (group / "cpu.max").read_text().startswith("50000 100000")
        assert (group / "pids.max").read_text().startswith("20")
        # A file that is not there, after others that are: they say again what they said.
        (group / "memory.low").unlink()
        for name, text in zip(names, ("33554432", "50000 100000", "20"), strict=True):
            (group / name).write_text(text)
        with pytest.raises(Unavailable, match="--memory-reservation cannot be applied"):
            one.change(after, Resources(memory_bytes=99999999, memory_reservation_bytes=8 * MIB, cpu_quota_us=50_000, pids_limit=20), list)
        assert (group / "memory.max").read_text() == "33554432"
    finally:
        one.close()


def test_a_group_whose_processes_have_ended_is_not_limited(group: Path) -> None:
    (group / "cgroup.procs").write_text("")
    one = opened(group)
    try:
        with pytest.raises(BulleError, match="is not running"):
            one.change(Resources(), Resources(pids_limit=5), list)
    finally:
        one.close()


def test_frozen_in_version_2(group: Path) -> None:
    machine = LayoutV2(Hierarchy(2, frozenset(), str(group.parent.parent), False, ""))
    directories = machine.directories("c1")
    assert not machine.is_frozen(directories)
    (group / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    assert machine.freeze(directories, True, 1) and machine.is_frozen(directories)
    assert not machine.freeze(directories, False, 0.01), "it does not thaw"
    assert not machine.is_frozen(machine.directories("gone"))


def test_limits_on_disks_in_both_versions() -> None:
    disk = next((f"/dev/{one.name}" for one in Path("/sys/block").iterdir() if Path(f"/dev/{one.name}").is_block_device()), "")
    if not disk:
        pytest.skip("this machine has no block device")
    number = f"{os.major(os.stat(disk).st_rdev)}:{os.minor(os.stat(disk).st_rdev)}"
    limits = (DeviceLimit("read_bps", disk, 4096), DeviceLimit("write_iops", disk, 7), DeviceLimit("weight", disk, 10))
    resources = Resources(blkio_weight=1000, device_limits=limits)
    check(resources)
    assert [(one.file, one.value) for one in settings_v1(resources)] == [
        ("blkio.weight", "1000"),
        ("blkio.throttle.read_bps_device", f"{number} 4096"),
        ("blkio.throttle.write_iops_device", f"{number} 7"),
        ("blkio.weight_device", f"{number} 10"),
    ]
    found = settings_v2(resources)
    assert [(one.file, one.value) for one in found[1:3]] == [("io.max", f"{number} rbps=4096"), ("io.max", f"{number} wiops=7")]
    assert {value for one in (found[0], found[3]) for _, value, _ in one.instead} == {"10000", f"{number} 1"}
    with pytest.raises(InvalidInput, match="is no rate"):
        check(Resources(device_limits=(DeviceLimit("read_bps", disk, 0),)))
