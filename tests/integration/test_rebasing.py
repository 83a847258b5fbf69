"""``switch`` and ``snapshot``: the same container at another level, or with the files that it had; killed at any moment, the old or the new one."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bulle_testing.running import LEVELS, Machine, usable, wait_for

LEVEL = {level.name: level for level in LEVELS}
WRITE = (
    "echo new >/etc/hostile; chown 7:8 /etc/hostile; chmod 4755 /etc/hostile; rm /etc/passwd; rm -r /opt; mkdir /opt; echo x >/opt/only;"
    " ln /opt/only /opt/link; ln -s only /opt/symbolic; mkfifo /opt/fifo"
)
LOOK = "stat -c '%u:%g %a' /etc/hostile; cat /etc/hostile; ls -A /opt; ls /etc/passwd; stat -c %h /opt/only; readlink /opt/symbolic"
SEEN = "7:8 4755\nnew\nfifo\nlink\nonly\nsymbolic\n2\nonly\n"


@pytest.fixture
def place(box: Machine) -> Iterator[Machine]:
    """The module's machine, whose store is afterwards what it was before."""
    layers = stored(box)
    yield box
    for container in box.engine.containers.list(all=True):
        container.remove(force=True)
    box.engine.gc()
    assert stored(box) == layers


def stored(place: Machine) -> set[str]:
    return set(os.listdir(place.home / "layers/sha256"))


def say(place: Machine, *words: str, code: int = 0) -> str:
    done = place.command(*words)
    assert done.returncode == code, (done.stdout, done.stderr)
    return done.stderr if code else done.stdout


def start(place: Machine, name: str, *flags: str) -> str:
    return say(place, "run", "-d", "--name", name, "--stop-signal", "KILL", *flags, "busybox", "sleep", "1000").strip()


def seen(place: Machine, name: str) -> str:
    return place.command("exec", name, "sh", "-c", LOOK).stdout


def reads(place: Machine, expected: set[str]) -> bool:
    done = place.command("exec", "killed", "cat", "/file")
    assert done.returncode or done.stdout in expected
    return done.returncode == 0


def roots(place: Machine, identifier: str) -> list[str]:
    return [name for name in os.listdir(place.home / "containers" / identifier) if name.startswith("root")]


def inspected(place: Machine, name: str) -> dict[str, Any]:
    return msgspec.json.decode(say(place, "inspect", name))[0]


def there_and_back(place: Machine, other: str, *flags: str) -> None:
    usable(LEVEL[other], place.home)
    identifier = start(place, "moves", "-v", "kept:/data", "--label", "a=b", "-e", "X=1", "--memory", "200m", *flags)
    try:
        say(place, "exec", "moves", "sh", "-c", f"{WRITE}; echo kept >/data/file")
        assert seen(place, "moves") == SEEN
        before = inspected(place, "moves")
        for level in (other, "container"):
            assert say(place, "switch", "moves", "--isolation", level) == "moves\n"
            after = inspected(place, "moves")
            assert after["Id"] == identifier
            assert after["State"]["Running"]
            assert after["Config"]["Labels"] == before["Config"]["Labels"]
            assert after["NetworkSettings"]["Networks"] == before["NetworkSettings"]["Networks"] or other == "chroot"
            assert seen(place, "moves") == SEEN
            assert say(place, "exec", "moves", "sh", "-c", "echo $X; cat /data/file") == "1\nkept\n"
            assert len(roots(place, identifier)) == 1
    finally:
        place.command("rm", "-f", "moves")
        place.command("volume", "rm", "kept")


def test_the_same_container_in_a_private_root(place: Machine) -> None:
    there_and_back(place, "chroot")


@pytest.mark.machines
@pytest.mark.root
def test_the_same_container_as_a_virtual_machine(place: Machine) -> None:
    there_and_back(place, "vm", "--network", "bridge")


@pytest.mark.machines
@pytest.mark.root
def test_a_snapshot_of_a_virtual_machine(place: Machine) -> None:
    usable(LEVEL["vm"], place.home)
    start(place, "machine", "--isolation", "vm")
    say(place, "exec", "machine", "sh", "-c", WRITE)
    assert "went on" in place.command("snapshot", "create", "--disk-only", "machine", "one").stderr
    say(place, "exec", "machine", "sh", "-c", "rm -r /opt")
    say(place, "snapshot", "restore", "machine", "one")
    assert seen(place, "machine") == SEEN


def test_one_that_does_not_run_stays_so(place: Machine) -> None:
    usable(LEVEL["chroot"], place.home)
    say(place, "create", "--name", "made", "busybox", "sh", "-c", "cat /file; echo 1 >>/file")
    say(place, "start", "-a", "made")
    say(place, "switch", "made", "--isolation", "chroot")
    assert not inspected(place, "made")["State"]["Running"]
    assert say(place, "start", "-a", "made") == "1\n"
    say(place, "commit", "made", "mine")
    assert say(place, "run", "--rm", "mine", "cat", "/file") == "1\n1\n"
    say(place, "rmi", "mine")


def test_what_cannot_be_is_refused_and_changes_nothing(place: Machine) -> None:
    start(place, "stays")
    before = inspected(place, "stays")
    for words, why in (
        (("--isolation", "container"), "already"),
        (("--isolation", "other"), "no isolation level"),
        (("--isolation", ""), "no level"),
    ):
        assert why in say(place, "switch", "stays", *words, code=1)
    assert inspected(place, "stays")["State"] == before["State"]
    start(place, "goes", "--rm")
    assert "--rm" in say(place, "switch", "goes", "--isolation", "chroot", code=1)
    start(place, "named", "--hostname", "mine")
    assert "chroot" in say(place, "switch", "named", "--isolation", "chroot", code=1)
    assert inspected(place, "named")["State"]["Running"]


@pytest.mark.root
def test_one_that_does_not_start_is_what_it_was(place: Machine, tmp_path: Path) -> None:
    usable(LEVEL["vm"], place.home)
    identifier = start(place, "returns", "--network", "bridge")
    say(place, "exec", "returns", "sh", "-c", WRITE)
    before = inspected(place, "returns")
    (tmp_path / "kernel").write_text("no kernel")
    environment = {**place.environment, "BULLE_KERNEL": str(tmp_path / "kernel")}
    command = place.start_command("switch", "returns", "--isolation", "vm", env=environment, stderr=-1)
    _, said = command.communicate(timeout=240)
    assert command.returncode == 1, said
    after = inspected(place, "returns")
    assert after["State"]["Running"]
    assert after["NetworkSettings"]["Networks"] == before["NetworkSettings"]["Networks"]
    assert seen(place, "returns") == SEEN
    assert len(roots(place, identifier)) == 1


def test_snapshots_are_kept_and_given_back(place: Machine) -> None:
    identifier = start(place, "shot", "--label", "a=b")
    say(place, "exec", "shot", "sh", "-c", WRITE)
    assert say(place, "snapshot", "create", "shot", "first") == "first\n"
    assert "first" in say(place, "snapshot", "create", "shot", "first", code=1)
    say(place, "exec", "shot", "sh", "-c", "rm -r /opt; echo later >/etc/hostile")
    say(place, "update", "--memory", "300m", "--memory-swap", "300m", "shot")
    assert say(place, "snapshot", "create", "shot", "second") == "second\n"
    assert say(place, "snapshot", "ls", "-q", "shot") == "first\nsecond\n"
    assert [one["Tag"] for one in inspected(place, "shot")["Snapshots"]] == ["first", "second"]
    say(place, "system", "prune", "-f")
    say(place, "snapshot", "restore", "shot", "first")
    assert seen(place, "shot") == SEEN
    assert inspected(place, "shot")["HostConfig"]["Memory"] == 0
    assert inspected(place, "shot")["Id"] == identifier
    say(place, "snapshot", "restore", "shot", "second")
    assert say(place, "exec", "shot", "cat", "/etc/hostile") == "later\n"
    assert inspected(place, "shot")["HostConfig"]["Memory"] == 300 << 20
    assert "no such snapshot" in say(place, "snapshot", "restore", "shot", "third", code=1)
    assert "cannot be the tag" in say(place, "snapshot", "create", "shot", "../x", code=1)
    say(place, "snapshot", "rm", "shot", "first")
    assert say(place, "snapshot", "ls", "-q") == "second\n"
    assert len(roots(place, identifier)) == 1
    assert place.command("snapshot", "create", "shot").stdout.strip()


def test_a_running_container_stands_still_meanwhile(place: Machine) -> None:
    usable(LEVEL["container"], place.home)
    start(place, "busy")
    say(place, "exec", "-d", "busy", "sh", "-c", "i=0; while :; do i=$((i+1)); echo $i >/a.new; mv /a.new /a; echo $i >/b.new; mv /b.new /b; done")
    for number in range(3):
        say(place, "snapshot", "create", "busy", f"t{number}")
    for number in range(3):
        say(place, "snapshot", "restore", "busy", f"t{number}")
        first, second = say(place, "exec", "busy", "sh", "-c", "cat /a /b").split()
        assert int(first) - int(second) in (0, 1)


@pytest.mark.alone
def test_killed_at_any_moment_it_is_the_old_one_or_the_new_one(place: Machine) -> None:
    identifier = start(place, "killed")
    say(place, "exec", "killed", "sh", "-c", "echo new >/file")
    say(place, "snapshot", "create", "killed", "new")
    chosen = random.Random(7)
    for number in range(50):
        say(place, "exec", "killed", "sh", "-c", f"echo old {number} >/file")
        words = ("restore", "-t", "0", "killed", "new") if number % 2 else ("create", "killed", f"t{number}")
        command = place.start_command("snapshot", *words, stdout=-3, stderr=-3)
        time.sleep(chosen.random() * 0.3)
        command.kill()
        command.wait()
        expected = {f"old {number}\n", *(["new\n"] if number % 2 else [])}
        # What was killed may have told it to end, or to start, just before.
        wait_for(lambda expected=expected: place.command("start", "killed").returncode == 0 and reads(place, expected), "it starts")  # type: ignore[misc]
    for tag in say(place, "snapshot", "ls", "-q", "killed").split():
        say(place, "snapshot", "restore", "-t", "0", "killed", tag)
        assert reads(place, {f"old {tag[1:]}\n", "new\n"})
    place.engine.gc()
    assert len(roots(place, identifier)) == 1
