"""Machines with a system of their own, kept: their disk through a registry, and snapshots of it, also of one that runs; killed at any moment, the old
or the new one.

Their system counts, in two places of the disk in turn, and says at each boot what it finds there: so its console shows what a snapshot held.
"""

from __future__ import annotations

import json
import os
import random
import re
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulle.isolation.microvm import sessions
from bulle_testing import whole_disk
from bulle_testing.peers import Registry
from bulle_testing.running import Machine, wait_for

pytestmark = [pytest.mark.machines, pytest.mark.root]
PATIENCE_S = 300.0


@pytest.fixture
def place(box: Machine, tmp_path: Path) -> Iterator[Machine]:
    """The module's machine with the image ``counter``, of which nothing is there at the end."""
    say(box, "vm", "import", whole_disk.counter(tmp_path / "counter.img"), "counter")
    yield box
    for container in box.engine.containers.list(all=True):
        container.remove(force=True)
    say(box, "rmi", "counter")


def say(place: Machine, *words: str | Path, code: int = 0) -> str:
    done = place.command(*words, timeout_s=300)
    assert done.returncode == code, (words, done.stdout, done.stderr)
    assert not code or done.stderr.count("\n") == 1, done.stderr
    return (done.stderr if code else done.stdout).strip()


def make(place: Machine, name: str, *flags: str, image: str = "counter") -> Path:
    """A machine that was not started; returns its host directory."""
    say(place, "vm", "create", name, "--image", image, "--memory", "32m", "--network", "none", *flags)
    return Path(place.engine.containers.get(name).directory)


def found_at_boots(directory: Path) -> list[tuple[int, int]]:
    """What a machine found in its two places, at each boot of it so far."""
    text = "".join(json.loads(line)["log"] for line in (directory / "container.log").read_text().splitlines())
    return [(int(first, 16), int(second, 16)) for first, second in re.findall(r"([0-9a-f]{8}) ([0-9a-f]{8}) \r?\n", text)]


def started(place: Machine, name: str, directory: Path, words: tuple[str, ...] = ()) -> tuple[int, int]:
    """Start it, or do something else that does; what it found."""
    before = len(found_at_boots(directory)) if (directory / "container.log").exists() else 0
    say(place, *(words or ("start", name)))
    wait_for(lambda: (directory / "container.log").exists() and len(found_at_boots(directory)) > before, "it boots", PATIENCE_S)
    return found_at_boots(directory)[-1]


def await_counting(directory: Path) -> None:
    before = (directory / "container.log").read_text().count("\".\\n")
    wait_for(lambda: (directory / "container.log").read_text().count("\".\\n") > before + 1, "it counts", PATIENCE_S)


def own_disk(directory: Path) -> Path:
    [found] = directory.glob("root*/disk")
    return found


def test_through_a_registry(box: Machine, registry: Registry, tmp_path: Path) -> None:
    """Imported, pushed, removed here, pulled by who makes a machine, and booted; what is pulled is in the convention's place."""
    name = f"{registry.address}/machines/counter:1"
    imported = say(box, "vm", "import", whole_disk.counter(tmp_path / "counter.img"), name)
    say(box, "push", name)
    say(box, "rmi", name)
    assert "machines/counter" not in say(box, "images")
    directory = make(box, "pulled", image=name)
    assert json.loads(say(box, "image", "inspect", name))[0]["Id"] == imported
    [layer] = json.loads(say(box, "image", "inspect", name))[0]["RootFS"]["Layers"]
    with tarfile.open(box.home / "layers/sha256" / layer.partition(":")[2] / "tar") as archive:
        assert [one.name for one in archive.getmembers() if one.isreg()] == ["disk/counter.qcow2"]
    assert started(box, "pulled", directory) == (0, 0)
    say(box, "rm", "-f", "pulled")
    say(box, "rmi", name)


def test_one_that_runs_is_kept_at_one_moment(place: Machine) -> None:
    directory = make(place, "counts", "--disk", "2m")
    started(place, "counts", directory)
    for tag in ("one", "two", "three"):
        await_counting(directory)
        assert say(place, "snapshot", "create", "counts", tag) == tag
    assert "there is a snapshot two" in say(place, "snapshot", "create", "counts", "two", code=1)
    with sessions.connect(str(directory)) as line:  # as a snapshot asks for it, for longer
        sessions.send(line, sessions.StandRequest())
        assert sessions.words.decode(line.recv(1000)).kind == "done"
        before = own_disk(directory).read_bytes()
        assert "stands still already" in say(place, "snapshot", "create", "counts", "four", code=1)
        time.sleep(0.5)
        assert own_disk(directory).read_bytes() == before
    await_counting(directory)
    say(place, "pause", "counts")
    assert "unpause" in say(place, "snapshot", "create", "counts", "four", code=1)
    say(place, "unpause", "counts")
    say(place, "kill", "counts")
    say(place, "vm", "resize", "counts", "3m")
    last = started(place, "counts", directory)
    seen = [started(place, "counts", directory, ("snapshot", "restore", "-t", "0", "counts", tag)) for tag in ("one", "two", "three")]
    assert 0 < seen[0][0] < seen[1][0] < seen[2][0] < last[0], (seen, last)
    assert all(first - second in (0, 1) for first, second in seen), seen
    assert json.loads(say(place, "inspect", "counts"))[0]["State"]["Machine"]["DiskSize"] == 2 << 20
    assert "it is a machine with a system of its own" in say(place, "switch", "counts", "--isolation", "container", code=1)
    say(place, "snapshot", "rm", "counts", "one", "three")
    assert [one.name for one in directory.glob("snapshot-*")] == ["snapshot-two"]


def test_one_that_does_not_run(place: Machine) -> None:
    """Its firmware's variables and its seed are kept too; one without an image as well."""
    directory = make(place, "stands", "--firmware", "uefi", "--user", "ada")
    say(place, "vm", "create", "bare", "--disk", "1m", "--memory", "32m", "--network", "none")
    say(place, "snapshot", "create", "stands", "first")
    before = {path.name: path.read_bytes() for path in own_disk(directory).parent.iterdir()}
    assert sorted(before) == ["disk", "seed.iso", "uefi-variables"]
    for name in before:
        (own_disk(directory).parent / name).write_bytes(b"other")
    say(place, "snapshot", "restore", "stands", "first")
    assert {path.name: path.read_bytes() for path in own_disk(directory).parent.iterdir()} == before
    say(place, "snapshot", "create", "bare", "first")
    say(place, "snapshot", "restore", "bare", "first")
    say(place, "snapshot", "rm", "stands", "first")
    os.truncate(next(Path(place.engine.containers.get("bare").directory).glob("snapshot-first/disk")), 0)
    assert "is damaged" in say(place, "snapshot", "restore", "bare", "first", code=1)


def is_settled(place: Machine, directory: Path) -> bool:
    """Whether a collection leaves one machine and the files of the snapshots that there are; what was killed may end a moment later."""
    place.engine.gc()
    tags = say(place, "snapshot", "ls", "-q", "killed").split()
    return len(list(directory.glob("root*"))) == 1 and {one.name for one in directory.glob("snapshot-*")} == {f"snapshot-{tag}" for tag in tags}


@pytest.mark.alone
def test_killed_at_any_moment_it_is_the_old_one_or_the_new_one(place: Machine) -> None:
    directory, chosen = make(place, "killed"), random.Random(9)
    content = b"new" * 4_000_000
    own_disk(directory).write_bytes(content)
    say(place, "snapshot", "create", "killed", "new")
    for number in range(30):
        old = b"old %05d" % number
        own_disk(directory).write_bytes(old * 4_000_000)
        words = ("restore", "killed", "new") if number % 2 else ("create", "killed", f"t{number}")
        kill(place, chosen, *words)
        wait_for(lambda: is_settled(place, directory), "what was left is swept")
        assert own_disk(directory).read_bytes() in (old * 4_000_000, *([content] if number % 2 else []))
        if (kept := directory / f"snapshot-t{number}").exists():
            assert (kept / "disk").read_bytes() == old * 4_000_000
            say(place, "snapshot", "rm", "killed", kept.name.removeprefix("snapshot-"))
    say(place, "rm", "killed")


@pytest.mark.alone
def test_whoever_is_killed_leaves_no_machine_standing(place: Machine) -> None:
    directory, chosen = make(place, "goes"), random.Random(3)
    started(place, "goes", directory)
    for number in range(6):
        kill(place, chosen, "create", "goes", f"t{number}")
        await_counting(directory)
    say(place, "snapshot", "create", "goes", "last")


def kill(place: Machine, chosen: random.Random, *words: str) -> None:
    command = place.start_command("snapshot", *words, stdout=-3, stderr=-3)
    time.sleep(chosen.random() * 0.4)
    command.kill()
    command.wait()
