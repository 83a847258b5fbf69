"""Tests take turns across processes: many beside each other, or one alone, which is not kept waiting by those that come later."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bulle_testing import places
from bulle_testing.turns import Turns

# Tells when its turn has come, and ends it when it is told to.
OTHER = """
import sys, time
from pathlib import Path
from bulle_testing.turns import Turns
with Turns(Path(sys.argv[1])).take(alone=sys.argv[2] == "alone"):
    print(time.monotonic(), flush=True)
    sys.stdin.read()
"""
Other = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "lock"
    path.touch()
    return path


@pytest.fixture
def ours(lock: Path) -> Iterator[Turns]:
    turns = Turns(lock)
    yield turns
    turns.close()


@pytest.fixture
def other(lock: Path) -> Iterator[Other]:
    started = []

    def start(how: str) -> subprocess.Popen[str]:
        environment = {"PYTHONPATH": str(places.SOURCE / "tests")}
        command = [sys.executable, "-c", OTHER, str(lock), how]
        started.append(subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def began(process: subprocess.Popen[str]) -> float:
    assert process.stdout
    return float(process.stdout.readline())


def test_beside_each_other(ours: Turns, other: Other) -> None:
    began(other("beside"))
    with ours.take(alone=False):
        began(other("beside"))


def test_alone_waits_for_all(ours: Turns, other: Other) -> None:
    with ours.take(alone=False):
        process = other("alone")
        time.sleep(0.3)
        ended = time.monotonic()
    assert began(process) > ended


@pytest.mark.parametrize("how", ["beside", "alone"])
def test_all_wait_for_one_that_is_alone(ours: Turns, other: Other, how: str) -> None:
    with ours.take(alone=True):
        process = other(how)
        time.sleep(0.3)
        ended = time.monotonic()
    assert began(process) > ended


def test_who_comes_later_does_not_pass_one_that_waits_to_be_alone(ours: Turns, other: Other) -> None:
    with ours.take(alone=False):
        alone = other("alone")
        time.sleep(0.3)
        late = other("beside")
        time.sleep(0.3)
    first = began(alone)
    alone.kill()
    assert began(late) > first
