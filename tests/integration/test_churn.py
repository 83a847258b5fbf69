"""Five hundred containers at once, used, started again and removed: the last is as the first, and nothing is left."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

import bulle
from bulle.isolation.driver import Feature
from bulle_testing import places
from bulle_testing.running import LEVELS, Machine, machine, usable, wait_for

pytestmark = pytest.mark.slow

COUNT = 500
AGAIN = 200
WAVES = 3
LEVEL = LEVELS[0]


@pytest.fixture
def place(run_directory: Path, busybox_image: Path, nothing_left_behind: None) -> Iterator[Machine]:
    with machine(run_directory, "churn") as made:
        if Feature.OWN_PROCESSES not in usable(LEVEL, made.home):
            pytest.skip("the level container has no processes of its own here")
        made.engine.images.load(busybox_image)
        yield made


def private_kib(pid: int) -> int:
    """What would be freed if the process ended."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))


def anonymous_kib(pid: int) -> int:
    """What it holds besides files, shared with its children or not: which of its pages are still shared says nothing of what it lost."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.alone
def test_five_hundred_containers(place: Machine) -> None:
    def start() -> bulle.Container:
        container = place.create(LEVEL, "sh", "-c", "echo begun; sleep 1000")
        container.start()
        return container

    def remove(some: list[bulle.Container]) -> None:
        done = place.command("rm", "-f", *(container.id for container in some), timeout_s=120)
        assert (done.returncode, done.stderr) == (0, "")
        assert not place.engine.containers.list(all=True)
        assert not os.listdir(place.home / "containers")

    containers = [start() for _ in range(COUNT)]
    spawner = places.spawner_pid(place.home)
    assert len(place.command("ps", "-q").stdout.split()) == COUNT
    for number, container in enumerate(containers[::10]):
        if number % 2:
            container.stop(timeout_s=0)
            container.start()
        else:
            assert place.execute(container, "cat", "/proc/1/cmdline").stdout == b"sleep\x001000\x00"
    for container in containers[5::50]:
        os.kill(container.state().monitor_pid, signal.SIGKILL)
    wait_for(lambda: all(one.state().status == "running" for one in containers), "all of them")
    first, last = containers[1], containers[-1]
    wait_for(lambda: [one.data for one in last.logs()] == [b"begun\n"], "the last one's word")
    assert private_kib(last.state().monitor_pid) <= private_kib(first.state().monitor_pid) * 1.2 + 64

    remove(containers)
    # The first of the equal waves fills the holes that the five hundred left in the heap. One of those behind it may need more at once than those
    # before it; what is lost at each start is lost in all of them.
    remove([start() for _ in range(AGAIN)])
    held_descriptors, held_kib = descriptors(spawner), [anonymous_kib(spawner)]
    for _ in range(WAVES):
        remove([start() for _ in range(AGAIN)])
        held_kib.append(anonymous_kib(spawner))
    assert places.spawner_pid(place.home) == spawner
    wait_for(lambda: descriptors(spawner) <= held_descriptors, "the spawner's descriptors closed")
    assert min(after - before for before, after in pairwise(held_kib)) <= 256, held_kib
