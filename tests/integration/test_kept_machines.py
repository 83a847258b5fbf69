"""Virtual machines whose memory is kept, in snapshots and in files: they go on from that very moment; what is damaged, foreign or hostile is refused;
whoever is killed leaves the old one or the new one.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bulle.engine import kept_machines
from bulle.engine.rebasing import snapshots
from bulle_testing.running import Machine, machine, wait_for

pytestmark = [pytest.mark.machines, pytest.mark.root]
VM = ("--isolation", "vm", "--memory", "96m")
# The shell has a file open that has no name any more.
COUNTS = 'exec 3<>/open; rm /open; echo held >&3; i=0; while true; do echo "$i"; i=$((i+1)); sleep 0.1; done'
LOOK = "cat /file /dev/shm/memory; readlink /proc/1/fd/3; hostname; cat /sys/class/net/eth0/address || true"


@pytest.fixture(scope="module")
def there(run_directory: Path, module_machine: Machine) -> Iterator[Machine]:
    """Another home, empty."""
    with machine(run_directory, "there") as place:
        yield place


def run(box: Machine, *words: str | Path, code: int = 0, **settings: str) -> str:
    """What a command prints; of one that fails its complaint, which is one line."""
    done = box.start_command(*words, env={**box.environment, **settings}, stdin=-3, stdout=-1, stderr=-1)
    out, said = (text.decode() for text in done.communicate(timeout=200))
    assert done.returncode == code, (words, done.returncode, out, said)
    assert not code or (said.count("\n") == 1 and "internal" not in said), said
    return said if code else out


def counted(box: Machine, name: str = "m") -> list[int]:
    return [int(line) for line in run(box, "logs", name).split()]


def begin(box: Machine, *flags: str) -> None:
    run(box, "run", "-d", "--name", "m", *VM, *flags, "busybox", "sh", "-c", COUNTS)
    run(box, "exec", "m", "sh", "-c", "echo before | tee /file >/dev/shm/memory")


def since(box: Machine) -> list[int]:
    """What it counted since it did not count on last."""
    told = counted(box)
    return told[max([0, *(at for at in range(1, len(told)) if told[at] != told[at - 1] + 1)]) :]


def goes_on(box: Machine, at_most: int) -> None:
    """It counts on from that moment, with what it had then."""
    wait_for(lambda: len(since(box)) > 2, "it counts")
    assert 0 < since(box)[0] <= at_most + 1
    assert run(box, "inspect", "m", "-f", "{{.State.Machine.Start}}") == "kept\n"
    assert abs(int(run(box, "exec", "m", "date", "+%s")) - time.time()) < 300


def inspected(box: Machine, *names: str) -> Any:
    found = json.loads(run(box, "inspect", "m"))[0]
    for name in names:
        found = found[name]
    return found


def test_a_snapshot_has_the_memory(box: Machine, tmp_path: Path) -> None:
    begin(box, "--network", "bridge")
    wait_for(lambda: len(counted(box)) > 2, "it counts")
    before, place = run(box, "exec", "m", "sh", "-c", LOOK), inspected(box, "NetworkSettings", "Networks")
    assert run(box, "snapshot", "create", "m", "one") == "one\n"
    at_most = counted(box)[-1]
    assert run(box, "snapshot", "ls", "--format", "{{.Tag}} {{.Memory}}") == "one kept\n"
    assert [one["Memory"] for one in inspected(box, "Snapshots")] == [True]
    run(box, "exec", "m", "sh", "-c", "echo after | tee /file >/dev/shm/memory")
    uuids = set()
    for words in (("-t", "0"), ("-t", "0")):
        run(box, "system", "prune", "-f")
        run(box, "snapshot", "restore", *words, "m", "one")
        goes_on(box, at_most)
        assert run(box, "exec", "m", "sh", "-c", LOOK) == before
        assert inspected(box, "NetworkSettings", "Networks") == place
        uuids.add(run(box, "exec", "m", "cat", "/proc/sys/kernel/random/uuid"))
    assert len(uuids) == 2
    run(box, "fork", "m", "--name", "second")
    assert run(box, "exec", "second", "cat", "/file") == "before\n"
    run(box, "rm", "-f", "second")

    refuses_others(box, tmp_path)
    run(box, "snapshot", "create", "--disk-only", "m", "disk")
    assert [one["Memory"] for one in inspected(box, "Snapshots")] == [True, False]
    run(box, "snapshot", "restore", "-t", "0", "--disk-only", "m", "one")
    assert run(box, "exec", "m", "sh", "-c", "cat /file; ls /dev/shm") == "before\n"
    run(box, "stop", "-t", "0", "m")
    run(box, "snapshot", "create", "m", "stopped")
    assert [one["Memory"] for one in inspected(box, "Snapshots")] == [True, False, False]
    run(box, "snapshot", "restore", "m", "one")  # which ran
    goes_on(box, at_most)
    directory = box.home / "containers" / inspected(box, "Id")
    assert len(os.listdir(directory / "snapshots")) == 1
    run(box, "snapshot", "rm", "m", "one")
    assert not (directory / "snapshots").exists()
    run(box, "rm", "-f", "m")


def refuses_others(box: Machine, tmp_path: Path) -> None:
    """What was damaged, and what was kept with another kernel or another network, before anything is stopped."""
    pid = inspected(box, "State", "Pid")
    [state] = (box.home / "containers" / inspected(box, "Id") / "snapshots").glob("*/kept.state")
    content = state.read_bytes()
    for damage in (content[:-1], b"", content[:5000] + b"x" + content[5001:]):
        state.write_bytes(damage)
        assert "damaged" in run(box, "snapshot", "restore", "m", "one", code=1)
    state.unlink()
    assert "missing" in run(box, "snapshot", "restore", "m", "one", code=1)
    state.write_bytes(content)
    kernel = tmp_path / "kernel"
    shutil.copytree(box.environment["BULLE_KERNEL"], kernel, symlinks=True)
    [image] = kernel.glob("boot/vmlinuz*")
    image.write_bytes(image.read_bytes() + b"\0")
    assert "the kernel is not what" in run(box, "snapshot", "restore", "m", "one", code=1, BULLE_KERNEL=str(kernel))
    assert inspected(box, "State", "Pid") == pid


def test_what_has_no_memory_to_keep_says_so(box: Machine, tmp_path: Path) -> None:
    run(box, "run", "-d", "--name", "m", "-v", f"{tmp_path}:/v", *VM, "busybox", "sleep", "1000")
    done = box.command("snapshot", "create", "m", "one")
    assert "its memory is not kept: it shows directories of the host" in done.stderr and done.stderr.count("WARNING") <= 2
    assert [one["Memory"] for one in inspected(box, "Snapshots")] == [False]
    run(box, "rm", "-f", "m")


Members = list[tuple[str, bytes]]


def unpacked(path: Path) -> Members:
    with tarfile.open(path) as archive:
        return [(member.name, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]


def packed(members: Members, path: Path) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def changed(members: Members, name: str, change: Callable[[bytes], bytes]) -> Members:
    """As whoever makes a state would: its digests are right."""
    found = {key: change(content) if key == name else content for key, content in members}
    document = json.loads(found["state.json"])
    for key, file in document["machine"].items():
        content = found[f"machine-{key}"]
        file.update(size=len(content), digest=hashlib.sha256(content).hexdigest())
    found["state.json"] = json.dumps(document).encode()
    return list(found.items())


def known(change: Callable[[Any], object]) -> Callable[[bytes], bytes]:
    def act(content: bytes) -> bytes:
        document = json.loads(content)
        change(document)
        return json.dumps(document).encode()

    return act


BIND = {"host_path": "/etc", "container_path": "/e"}
# Each with digests that are right, and what is said of it.
HOSTILE: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "another QEMU": ("machine-kept.json", known(lambda one: one["kind"].update(QEMU="QEMU emulator version 99")), "QEMU is not what"),
    "another board": ("machine-kept.json", known(lambda one: one["kind"].update({"the board": "isapc"})), "the board isapc, here that is"),
    "another agent": ("machine-kept.json", known(lambda one: one["kind"].update({"the guest's agent": "0"})), "agent is not what"),
    "more in its kind": ("machine-kept.json", known(lambda one: one["kind"].update({"\x1b[2J": "x"})), "something else is not what"),
    "no kind": ("machine-kept.json", known(lambda one: one.update(kind={})), "is not what"),
    "a bind": ("state.json", known(lambda one: one["options"].update(volumes=[BIND])), "directories of the host"),
    "a container": ("state.json", known(lambda one: one["options"].update(isolation="container")), "not what its options say"),
    "another disk": ("state.json", known(lambda one: one["options"].update(storage_bytes=2 << 30)), "not what its options say"),
    "no command": ("machine-kept.json", known(lambda one: one.update(first=77)), "does not fit together"),
    "no sessions": ("machine-kept.json", known(lambda one: one["agent"].update(sessions=[])), "does not fit together"),
    "too much credit": ("machine-kept.json", known(lambda one: one["agent"]["sessions"][0].update(credit=1 << 40)), "is damaged"),
    "an interface's path": ("machine-kept.json", known(lambda one: one.update(interfaces=["../../x"])), "is damaged"),
    "more interfaces": ("machine-kept.json", known(lambda one: one.update(interfaces=["eth0", "eth1"])), "does not fit together"),
    "an address": ("machine-kept.json", known(lambda one: one.update(addresses=[["10.0.0.1\nx"]])), "is damaged"),
    "nothing known": ("machine-kept.json", lambda content: b"{}", "is damaged"),
    "no JSON": ("machine-kept.json", lambda content: b"\xff" * 99, "is damaged"),
    "a large disk": ("machine-disk", lambda content: b"\xff" * 8 + content[8:], "too large"),
    "a disk backwards": ("machine-disk", lambda content: content[:8] + content[8:65552] * 2, "the disk is damaged"),
    "a disk cut off": ("machine-disk", lambda content: content[:70000], "the disk is"),
    "too much memory": ("machine-kept.state", lambda content: bytes(800 << 20), "incomplete or too large"),
}


def test_a_file_has_the_memory(box: Machine, there: Machine, tmp_path: Path) -> None:
    begin(box)
    wait_for(lambda: len(counted(box)) > 2, "it counts")
    run(box, "save", "--state", tmp_path / "good", "m")
    at_most = counted(box)[-1]
    identifier = inspected(box, "Id")
    run(box, "rm", "-f", "m")
    members = unpacked(tmp_path / "good")
    empty = left(there)
    for name, (which, change, said) in HOSTILE.items():
        done = there.command("load", "--state", packed(changed(members, which, change), tmp_path / "bad"))
        complaint = done.stderr.removesuffix("\n")
        assert done.returncode == 1 and said in complaint and complaint.isprintable(), (name, done.returncode, complaint)
        assert left(there) == empty, name
    for name in ("machine-kept.state", "machine-kept.json", "machine-disk"):
        flipped = [(key, content[:-9] + bytes([content[-9] ^ 1]) + content[-8:] if key == name else content) for key, content in members]
        for bad in (flipped, [one for one in members if one[0] != name]):
            run(there, "load", "--state", packed(bad, tmp_path / "bad"), code=1)
            assert left(there) == empty, name

    run(there, "load", "--state", tmp_path / "good")
    assert "goes on from its memory" in run(there, "cp", "m:/file", "-", code=1)
    run(there, "start", "m")
    goes_on(there, at_most)
    new = inspected(there, "Id")
    assert new != identifier
    assert run(there, "exec", "m", "sh", "-c", LOOK).splitlines()[:4] == ["before", "before", "/open (deleted)", new[:12]]
    run(there, "rm", "-f", "m")
    run(there, "load", "--disk-only", "--state", tmp_path / "good")
    run(there, "start", "m")
    assert run(there, "exec", "m", "sh", "-c", "cat /file; ls /dev/shm") == "before\n"
    run(there, "rm", "-f", "m")
    # A memory that says it is right and is none: the machine does not start, and then boots.
    zeros = changed(members, "machine-kept.state", lambda content: content[:99] + bytes(len(content) - 99))
    run(there, "load", "--state", packed(zeros, tmp_path / "bad"))
    assert "is damaged" in run(there, "start", "m", code=1)
    run(there, "start", "m")
    assert run(there, "exec", "m", "cat", "/file") == "before\n"
    run(there, "rm", "-f", "m")
    for image in there.engine.images.list():
        there.engine.images.remove(image.id, force=True)
    assert left(there) == empty
    there.close_test()


def left(place: Machine) -> list[str]:
    """What stands in a home beside its caches."""
    place.engine.gc()
    kept = [*place.home.glob("containers/*"), *place.home.glob("volumes/*"), *place.home.glob("layers/sha256/*"), *place.home.glob("tmp/*/*")]
    return sorted(str(path.relative_to(place.home)) for path in kept)


def test_killed_at_any_moment(box: Machine) -> None:
    """While a machine is kept, forked or restored: it is the old one or the new one, goes on, and nothing is left."""
    chance = random.Random(9)
    begin(box)
    took = {}
    for verb in (("snapshot", "create", "m", "new"), ("fork", "m", "--name", "s"), ("snapshot", "restore", "-t", "0", "m", "new")):
        began = time.monotonic()
        run(box, *verb)
        took[verb[0], verb[1] if verb[0] == "snapshot" else ""] = time.monotonic() - began
    run(box, "rm", "-f", "s")
    for number in range(50):
        keep, fork = ("snapshot", "create", "m", f"t{number}"), ("fork", "m", "--name", f"s{number}")
        words = (keep, fork, ("snapshot", "restore", "-t", "0", "m", "new"))[number % 3]
        run(box, "exec", "m", "sh", "-c", f"echo {number} | tee /file >/dev/shm/memory")
        command = box.start_command(*words, stdin=-3, stdout=-3, stderr=-3)
        time.sleep(chance.random() * took[words[0], words[1] if words[0] == "snapshot" else ""])
        command.kill()
        command.wait()
        seconds_are_whole(box)
        expected = {f"{number}\n" * 2, f"{number}\n", *(["before\nbefore\n"] if words[1] == "restore" else [])}
        # What was killed may have told it to end, or to start, just before.
        wait_for(lambda expected=expected: reads(box, expected), "it runs")  # type: ignore[misc]
    seconds_are_whole(box)
    box.engine.gc()
    directory = box.home / "containers" / inspected(box, "Id")
    kept = {one.machine.directory: one.machine.digests for one in snapshots(box.engine, "m") if one.machine is not None}
    assert len(kept) > 1
    assert {path.name: kept_machines.digests(path) for path in (directory / "snapshots").iterdir()} == kept
    assert len([name for name in os.listdir(directory) if name.startswith("root")]) == 1
    assert not list(box.home.glob("tmp/*/*"))
    assert run(box, "ps", "-a", "--format", "{{.Names}}") == "m\n"
    tag = run(box, "snapshot", "ls", "-q", "m").split()[-1]
    run(box, "snapshot", "restore", "-t", "0", "m", tag)
    assert run(box, "exec", "m", "cat", "/file", "/dev/shm/memory") == f"{tag[1:]}\n" * 2
    run(box, "rm", "-f", "m")


def seconds_are_whole(box: Machine) -> None:
    """Those forks that are there, whoever made them was killed or not."""
    for name in run(box, "ps", "-a", "--format", "{{.Names}}").split():
        if name != "m":
            run(box, "start", name)
            assert run(box, "exec", name, "cat", "/file", "/dev/shm/memory") == f"{name[1:]}\n" * 2
            run(box, "rm", "-f", name)


def reads(box: Machine, expected: set[str]) -> bool:
    """Whether it runs, having what is expected; it is told to start in case it does not."""
    box.command("start", "m")
    before = len(counted(box))
    done = box.command("exec", "m", "sh", "-c", "cat /file /dev/shm/memory 2>/dev/null; true")
    assert done.returncode or done.stdout in expected, (done.stdout, expected)
    return done.returncode == 0 and len(counted(box)) > before
