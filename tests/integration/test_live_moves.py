"""``bulle move`` of a virtual machine that runs: it goes on at the other end, in the same memory, and at one end only, whatever breaks."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from bulle_testing import places
from bulle_testing.running import Machine, machine, wait_for
from bulle_testing.ssh_servers import OtherMachine, other_machine

pytestmark = [pytest.mark.machines, pytest.mark.root, pytest.mark.programs("sshd", "ssh")]
VM = ("--isolation", "vm", "--memory", "96m")
# A counter that is nowhere but in memory, with what would be another's after a start; /start tells how often that was.
COUNTS = 'echo >> /start; id=$(cat /proc/sys/kernel/random/uuid); i=0; while true; do echo "$i $id $(hostname)"; i=$((i+1)); sleep 0.2; done'


@pytest.fixture(scope="module")
def there(run_directory: Path, module_machine: Machine) -> Iterator[Machine]:
    """Another home, empty."""
    with machine(run_directory, "there") as place:
        yield place


@pytest.fixture(scope="module")
def other(run_directory: Path, there: Machine) -> Iterator[OtherMachine]:
    """A real sshd that leads to it."""
    with other_machine(run_directory / "sshd-there", there.home) as made:
        yield made


@pytest.fixture
def ends(box: Machine, there: Machine) -> Iterator[tuple[Machine, Machine]]:
    """Both, empty again behind the test."""
    yield box, there
    for place in (box, there):
        for container in place.engine.containers.list(all=True):
            container.remove(force=True)
    for image in there.engine.images.list():
        there.engine.images.remove(image.id, force=True)
    there.engine.gc()
    there.close_test()


def run(place: Machine, *words: str | Path, code: int = 0) -> str:
    """What a command prints; of one that fails its complaint."""
    done = place.command(*words, timeout_s=200)
    assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
    return done.stderr if code else done.stdout


def move(other: OtherMachine, here: Machine, name: str = "goes", *, code: int = 0) -> str:
    """``bulle move`` to its end; what it said on standard error."""
    line = [*places.command_line(), "move", name, other.host]
    done = subprocess.run(
        line, env=other.environment(here.home), capture_output=True, text=True, timeout=200, stdin=subprocess.DEVNULL, check=False
    )
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert code or done.stdout == f"{name}\n"
    return done.stderr


def counted(place: Machine, name: str = "goes") -> list[tuple[int, str]]:
    """What the counter said there: its number, and whose it is."""
    lines = [line.split(" ", 1) for line in run(place, "logs", name).splitlines()]
    return [(int(number), whose) for number, whose in lines]


def names(place: Machine) -> str:
    """What is there, and how it is."""
    return run(place, "ps", "-a", "--format", "{{.Names}} {{.Status}}")


def goes_on(place: Machine, name: str = "goes") -> list[tuple[int, str]]:
    """That it counts on there; all that it said by then."""
    before = len(counted(place, name))
    wait_for(lambda: len(counted(place, name)) > before + 1, "it counts on")
    return counted(place, name)


def test_it_goes_on_there_in_the_same_memory(ends: tuple[Machine, Machine], other: OtherMachine) -> None:
    here, there = ends
    run(here, "run", "-d", "--name", "goes", "-e", "X=1", "--label", "a=b", *VM, "busybox", "sh", "-c", COUNTS)
    run(here, "exec", "goes", "sh", "-c", "echo disk > /file; echo memory > /dev/shm/file; dd if=/dev/urandom of=/big bs=1M count=8 2>/dev/null")
    digest = run(here, "exec", "goes", "sha256sum", "/big")
    [*_, (last, whose)] = goes_on(here)
    assert move(other, here) == ""
    assert names(here) == ""
    told = goes_on(there)
    assert {one for _number, one in told} == {whose}, "it is the same process, with the same name"
    assert [number for number, _one in told] == list(range(told[0][0], told[0][0] + len(told))) and told[0][0] > last
    assert run(there, "exec", "goes", "cat", "/file", "/dev/shm/file", "/start") == "disk\nmemory\n\n"
    assert run(there, "exec", "goes", "sha256sum", "/big") == digest
    assert abs(int(run(there, "exec", "goes", "date", "+%s")) - time.time()) < 300
    shown = json.loads(run(there, "inspect", "goes"))[0]
    assert shown["State"]["Machine"]["Start"] == "moved" and "X=1" in shown["Config"]["Env"] and shown["Config"]["Labels"]["a"] == "b"
    # It is a container like any other: its fork, its end and its next start.
    run(there, "fork", "goes", "--name", "second")
    assert run(there, "exec", "second", "cat", "/dev/shm/file") == "memory\n"
    run(there, "rm", "-f", "second")
    run(there, "restart", "-t", "0", "goes")
    goes_on(there)
    assert run(there, "exec", "goes", "cat", "/file", "/start") == "disk\n\n\n"


def test_what_fails_leaves_it_running_here(ends: tuple[Machine, Machine], other: OtherMachine) -> None:
    """Refused there, interrupted and killed here, and the other end killed: it goes on in the same memory."""
    here, there = ends
    chance = random.Random(7)
    run(here, "run", "-d", "--name", "goes", *VM, "busybox", "sh", "-c", COUNTS)
    [(_first, whose), *_] = goes_on(here)
    for number in range(6):
        with subprocess.Popen([*places.command_line(), "move", "goes", other.host], env=other.environment(here.home), stdout=-3, stderr=-3) as moving:
            time.sleep(chance.random() * 4)
            if number % 4 == 3:
                for pid in other.sessions():
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            else:
                moving.send_signal(signal.SIGINT if number % 4 == 2 else signal.SIGKILL)
            moving.wait(120)
        place = settled(here, there)
        told = goes_on(place)
        assert {one for _number, one in told} == {whose}
        if place is there:
            run(there, "rm", "-f", "goes")
            run(here, "run", "-d", "--name", "goes", *VM, "busybox", "sh", "-c", COUNTS)
            [(_first, whose), *_] = goes_on(here)


def settled(here: Machine, there: Machine) -> Machine:
    """Where it is, once it is at one end only."""
    found: list[Machine] = []

    def once() -> bool:
        found[:] = [place for place in (here, there) if names(place)]
        return len(found) == 1

    wait_for(once, "it is at one end only", 60)
    return found[0]


def test_what_cannot_go_is_said(ends: tuple[Machine, Machine], other: OtherMachine, busybox_image: Path, tmp_path: Path) -> None:
    here, there = ends
    run(here, "run", "-d", "--name", "goes", *VM, "busybox", "sh", "-c", COUNTS)
    there.engine.images.load(busybox_image)
    run(there, "create", "--name", "goes", "busybox", "true")
    [*_, (_last, whose)] = goes_on(here)
    said = move(other, here, code=1)
    assert "is taken" in said and said.count("\n") == 1
    run(there, "rm", "goes")
    with other_kernel(other, tmp_path):
        said = move(other, here, code=1)
    assert "the kernel is another there" in said and said.count("\n") == 1
    assert names(there) == ""
    assert {one for _number, one in goes_on(here)} == {whose}
    run(here, "rm", "-f", "goes")
    run(here, "run", "-d", "--name", "goes", "-v", "data:/data", *VM, "busybox", "sh", "-c", COUNTS)
    said = move(other, here)
    assert "it is stopped to be moved: it shows directories" in said and said.count("\n") == 1
    wait_for(lambda: run(there, "exec", "goes", "cat", "/start") == "\n\n", "it was started a second time")
    run(there, "rm", "-f", "goes")
    for place in ends:
        place.engine.volumes.remove("data")


@contextmanager
def other_kernel(other: OtherMachine, directory: Path) -> Iterator[None]:
    """The other machine's kernel is of the same release, and not the same file."""
    shutil.copytree(places.guest_kernel(), directory / "kernel", symlinks=True)
    [image] = (directory / "kernel/boot").glob("vmlinuz*")
    with image.open("ab") as file:
        file.write(bytes(16))
    login = other.directory / "login"
    before = login.read_text()
    login.write_text(before.replace("exec /bin/sh", f"export BULLE_KERNEL={directory}/kernel\nexec /bin/sh"))
    yield
    login.write_text(before)
