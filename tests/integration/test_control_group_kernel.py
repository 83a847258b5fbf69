"""Control groups on the real kernel: limits that bite, processes that are found, frozen, killed, and groups that go away.

Written against version 1 or hybrid where the machine has it, else version 2; each test makes a group of its own below ``bulle`` and removes it.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bulle.isolation.control_group import ControlGroup, available
from bulle.isolation.control_group_settings import DEVICE_RULES
from bulle.linux import control_group as kernel
from bulle.linux import device_filter
from bulle.model.run_plan import Resources

pytestmark = pytest.mark.root
MIB = 1 << 20


@pytest.fixture(autouse=True)
def groups() -> Iterator[None]:
    """These tests need groups to write."""
    if not available().controllers:
        pytest.skip(f"no control groups here: {available().reason}")
    yield


class Inside:
    """Forks processes into one group, and ends all at the close."""

    def __init__(self, group: ControlGroup) -> None:
        self.group, self.pids = group, list[int]()

    def fork(self, body: Callable[[], object]) -> int:
        """A process of the group that runs ``body`` and ends with its answer; it is in the group when this returns."""
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            status = 99
            try:
                self.group.attach_self()
                if self.group.clone_into_fd >= 0:
                    kernel.write(self.group._directories[""], "cgroup.procs", "0")
                os.close(reader)
                os.close(writer)
                status = int(body() or 0)  # type: ignore[call-overload]
            finally:
                os._exit(status)
        self.pids.append(pid)
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)
        return pid

    def wait(self, pid: int) -> int:
        """The exit code, negative for a signal."""
        self.pids.remove(pid)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def close(self) -> None:
        """Kill, reap, remove."""
        self.group.kill()
        for pid in list(self.pids):
            self.wait(pid)
        assert self.group.remove()
        self.group.close()


@pytest.fixture
def inside(request: pytest.FixtureRequest) -> Iterator[Callable[..., Inside]]:
    """``inside(resources, restrict_devices=...)``: a new group, removed at the end."""
    made: list[Inside] = []

    def make(resources: Resources, **more: bool) -> Inside:
        made.append(Inside(ControlGroup.create(f"test{os.getpid()}-{len(made)}", resources, **more)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def sleep() -> None:
    signal.pause()


def test_any_process_finds_freezes_and_kills_the_whole_group(inside: Callable[..., Inside]) -> None:
    one = inside(Resources())
    pids = sorted(one.fork(sleep) for _ in range(3))
    found = ControlGroup.open(one.group.container_id)
    try:
        assert found.processes() == pids
        assert found.freeze()
        os.kill(pids[0], signal.SIGTERM)
        time.sleep(0.02)
        ended = os.waitid(os.P_PID, pids[0], os.WEXITED | os.WNOHANG | os.WNOWAIT)
        assert ended is None or "" in found._directories  # frozen: not even that ends it; version 2 lets fatal signals through
        assert ControlGroup.is_frozen(one.group.container_id)
        assert found.thaw()
        assert one.wait(pids[0]) == -signal.SIGTERM
        assert found.kill()
        assert [one.wait(pid) for pid in pids[1:]] == [-signal.SIGKILL] * 2
        assert found.processes() == []
    finally:
        found.close()


@pytest.mark.alone
def test_a_fork_bomb_is_bounded_and_killed_in_one_go(inside: Callable[..., Inside]) -> None:
    one = inside(Resources(pids_limit=20))

    def bomb() -> None:
        while True:
            try:
                os.fork()
            except OSError as error:
                assert error.errno == errno.EAGAIN
                time.sleep(0.01)

    one.fork(bomb)
    deadline = time.monotonic() + 5
    while len(one.group.processes()) < 20 and time.monotonic() < deadline:
        time.sleep(0.005)
    assert len(one.group.processes()) == 20
    assert one.group.kill()
    assert one.group.processes() == []


def test_memory_beyond_the_limit_ends_the_process_and_is_counted(inside: Callable[..., Inside]) -> None:
    one = inside(Resources(memory_bytes=24 * MIB, memory_swap_bytes=24 * MIB))

    def eat() -> int:
        block = bytearray(96 * MIB)
        return len(block) > 0

    assert one.wait(one.fork(eat)) == -signal.SIGKILL
    assert one.group.oom_count() >= 1
    assert one.group.stats().memory_limit_bytes == 24 * MIB
    small = one.fork(lambda: len(bytearray(2 * MIB)) == 0)
    assert one.wait(small) == 0


def test_limits_read_back_from_the_kernel(inside: Callable[..., Inside]) -> None:
    one = inside(Resources(memory_bytes=64 * MIB, nano_cpus=500_000_000, cpu_shares=512, cpuset_cpus="0", pids_limit=50))
    pid = one.fork(sleep)
    assert os.sched_getaffinity(pid) == {0}
    groups = Path(f"/proc/{pid}/cgroup").read_text()
    assert f"/{one.group.container_id}\n" in groups
    directories = one.group._directories
    if "" in directories:
        assert kernel.read(directories[""], "cpu.max") == "50000 100000"
        assert kernel.read(directories[""], "memory.max") == str(64 * MIB)
    else:
        assert kernel.read(directories["cpu"], "cpu.cfs_quota_us") == "50000"
        assert kernel.read(directories["cpu"], "cpu.shares") == "512"
        assert kernel.read(directories["memory"], "memory.memsw.limit_in_bytes") in (str(128 * MIB), "")


def test_half_a_processor_is_half_the_time(inside: Callable[..., Inside]) -> None:
    one = inside(Resources(nano_cpus=200_000_000))

    def spin() -> int:
        end = time.monotonic() + 0.6
        while time.monotonic() < end:
            pass
        return int(time.process_time() * 100)  # hundredths of a second

    assert one.wait(one.fork(spin)) < 30


def test_accounting_without_limits(inside: Callable[..., Inside]) -> None:
    one = inside(Resources(), accounting=True)
    one.fork(sleep)
    usage = one.group.stats()
    assert usage.pids == 1
    assert usage.memory_limit_bytes is None
    assert usage.cpu_ns is not None and usage.memory_bytes is not None


def test_groups_that_the_container_made_go_with_it(inside: Callable[..., Inside]) -> None:
    one = inside(Resources())
    directory = next(iter(one.group._directories.values()))
    Path(directory, "inner/deeper").mkdir(parents=True)

    def move() -> None:
        kernel.write(f"{directory}/inner/deeper", "cgroup.procs", "0")
        signal.pause()

    pid = one.fork(move)
    deadline = time.monotonic() + 5
    while not kernel.processes(f"{directory}/inner/deeper") and time.monotonic() < deadline:
        time.sleep(0.005)
    assert one.group.processes() == [pid]
    assert one.group.kill()
    assert one.wait(pid) == -signal.SIGKILL
    assert one.group.remove()
    assert not Path(directory).exists()


def test_a_group_in_use_is_not_removed(inside: Callable[..., Inside]) -> None:
    one = inside(Resources())
    one.fork(sleep)
    assert not one.group.remove(0.02)


def test_a_group_left_by_a_crash_is_taken_over(inside: Callable[..., Inside]) -> None:
    one = inside(Resources(pids_limit=7))
    again = ControlGroup.create(one.group.container_id, Resources(pids_limit=9))
    try:
        directory = again._directories.get("pids") or again._directories[""]
        assert kernel.read(directory, "pids.max") == "9"
    finally:
        again.close()


def open_device(major: int, minor: int) -> int:
    """0 when a fresh node of that device can be opened, else the errno."""
    path = f"/tmp/bulle-device-{os.getpid()}"
    os.mknod(path, 0o600 | 0o020000, os.makedev(major, minor))
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    except OSError as error:
        return error.errno or 1
    finally:
        os.unlink(path)
    return 0


def test_only_listed_devices_can_be_opened(inside: Callable[..., Inside]) -> None:
    """/dev/null and /dev/urandom, but no /dev/kmsg or /dev/mem, whatever nodes root makes."""
    one = inside(Resources(), restrict_devices=True)
    results = [one.wait(one.fork(lambda number=number: open_device(*number))) for number in ((1, 3), (1, 9), (1, 11), (1, 1))]
    assert results == [0, 0, errno.EPERM, errno.EPERM]
    assert one.wait(one.fork(lambda: open_device(1, 11))) == errno.EPERM
    assert open_device(1, 11) == 0  # outside it can


def test_the_device_program_of_version_2() -> None:
    """On whatever tree of version 2 is mounted: with controllers (pure) or without (hybrid)."""
    root = next((h.mount_path for h in kernel.hierarchies() if h.version == 2 and not h.read_only), None)
    if root is None:
        pytest.skip("no writable tree of version 2")
    directory = Path(root, "bulle", f"test{os.getpid()}-devices")
    made_base = not directory.parent.exists()
    directory.mkdir(parents=True)
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            device_filter.attach(descriptor, DEVICE_RULES)
        finally:
            os.close(descriptor)
        results = []
        for number in ((1, 3), (1, 8), (5, 2), (1, 11), (1, 1)):
            pid = os.fork()
            if not pid:
                status = 99
                try:
                    kernel.write(str(directory), "cgroup.procs", "0")
                    status = open_device(*number)
                finally:
                    os._exit(status)
            results.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        assert results[:2] == [0, 0]
        assert results[2] in (0, errno.ENODEV, errno.ENXIO, errno.EIO, errno.ENOENT)  # allowed, but a ptmx outside of devpts may not open
        assert results[3:] == [errno.EPERM] * 2
    finally:
        assert kernel.remove(str(directory), 2)
        if made_base:
            directory.parent.rmdir()
