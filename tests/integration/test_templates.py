"""Virtual machines that begin where another one like them had got to: what they share, what is their own, what becomes of a bad template."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from bulle.isolation.microvm.template import forget_oldest
from bulle_testing import peers
from bulle_testing.networking import Networked
from bulle_testing.running import Machine

pytestmark = [pytest.mark.machines, pytest.mark.root]
IMAGE = "busybox"
BEGUN = ("--isolation", "vm", "--start", "template", "--memory", "128m")
WHO = "cat /proc/sys/kernel/random/uuid; hostname; date +%s; ls /written 2>&1; echo $0 > /written"


def run(box: Machine, *words: str, code: int = 0) -> str:
    """What a command prints; of one that fails its complaint."""
    done = box.command(*words, timeout_s=120)
    assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
    return done.stderr if code else done.stdout


def start_of(box: Machine, name: str) -> str:
    return run(box, "inspect", name, "--format", "{{.State.Machine.Start}}").strip()


def template(box: Machine) -> Path:
    """The one that was used last."""
    return max((box.home / "cache/templates").iterdir(), key=lambda one: (one / "known.json").stat().st_mtime_ns)


def test_each_is_its_own(box: Machine) -> None:
    """The first boots, the others begin from it: with time, randomness, name and disk of their own."""
    told = []
    for number, start in enumerate(("cold", "template", "template")):
        name = f"own{number}"
        said = run(box, "run", "--name", name, *BEGUN, IMAGE, "sh", "-c", WHO)
        assert start_of(box, name) == start
        told.append(said.splitlines())
        assert len(told[-1]) == 4, said
    uuids, names, times, files = zip(*told, strict=True)
    assert len(set(uuids)) == len(set(names)) == 3
    assert all(abs(int(one) - time.time()) < 300 for one in times)
    assert all("No such file" in one for one in files)
    for number in range(3):
        shown = json.loads(run(box, "inspect", f"own{number}"))[0]
        assert names[number] == shown["Config"]["Hostname"] == shown["Id"][:12]
    # What one wrote is there when it starts again, which is another kind.
    for start in ("generic", "template"):
        run(box, "start", "-a", "own1")
        assert start_of(box, "own1") == start
        assert run(box, "cp", "own1:/written", "-")
    run(box, "rm", *(f"own{number}" for number in range(3)))


def test_another_image_begins_without_booting(box: Machine, busybox_rootfs: Path, tmp_path: Path) -> None:
    """From where the machine had no image yet: its files are its own image's, and what differs from the first is done."""
    run(box, "run", "--rm", *BEGUN, IMAGE, "true")
    root = shutil.copytree(busybox_rootfs, tmp_path / "root", symlinks=True)
    (root / "which").write_bytes(b"the other\n" * 100_000)
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/passwd").write_text("some:x:77:78::/home/some:/bin/sh\n")
    peers.docker_archive(tmp_path / "other.tar", [peers.pack(root)], tags=["other:latest"])
    box.engine.images.load(tmp_path / "other.tar")
    script = "md5sum < /which; id -u; pwd; cat /sys/fs/cgroup/pids.max; df -k /dev/shm | tail -n1; echo $HOME $0; cut -c1-3 /proc/1/oom_score_adj"
    sums = hashlib.md5(b"the other\n" * 100_000).hexdigest()
    for number, start in enumerate(("generic", "template")):
        name = f"other{number}"
        words = ("--user", "some", "--workdir", "/made", "--pids-limit", "33", "--oom-score-adj", "99", "--tmpfs", "/dev/shm:size=3m")
        said = run(box, "run", "--name", name, *BEGUN, *words, "other", "sh", "-c", script, "zero").splitlines()
        assert start_of(box, name) == start
        assert said[:4] == [f"{sums}  -", "77", "/made", "33"] and said[4].split()[1] == "3072" and said[5:] == ["/home/some zero", "99"], said
    run(box, "rm", "other0", "other1")


def test_their_interfaces_are_their_own(net: Networked) -> None:
    """What a template remembers of another one's interface is replaced: address, hardware address, and the rule that holds it to both."""
    for name in ("first", "second", "third"):
        net("run", "-d", "--name", name, *BEGUN, IMAGE, "sleep", "1000")
    assert net("inspect", "third", "--format", "{{.State.Machine.Start}}") == "template"
    told = {net("exec", name, "cat", "/sys/class/net/eth0/address") for name in ("first", "second", "third")}
    assert told == {net.inspect(name, ".NetworkSettings.Networks.bridge.MacAddress") for name in ("first", "second", "third")} and len(told) == 3
    assert "0% packet loss" in net("exec", "second", "ping", "-c", "2", "third")


def test_they_share_memory_that_none_can_change(box: Machine) -> None:
    names = ("first", "second", "third")
    for name in names:
        run(box, "run", "-d", "--name", name, *BEGUN, IMAGE, "sleep", "1000")
    assert [start_of(box, name) for name in names[1:]] == ["template"] * 2
    inodes = set()
    for name in names[1:]:
        pid = box.engine.containers.get(name).state().pid
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            if "bulle-memory" in os.readlink(descriptor):
                inodes.add(descriptor.stat().st_ino)
                writable = os.open(descriptor, os.O_RDWR | os.O_CLOEXEC)
                with pytest.raises(OSError) as refused:
                    os.pwrite(writable, b"changed", 0)
                os.close(writable)
                assert refused.value.errno == errno.EPERM
    assert len(inodes) == 1
    # What one does to its memory and files reaches no other, and an exec works as in any.
    run(box, "exec", "second", "sh", "-c", "dd if=/dev/urandom of=/dev/shm/x bs=1M count=20 2>/dev/null; echo 1 > /only")
    assert run(box, "exec", "third", "sh", "-c", "ls /only /dev/shm/x 2>&1", code=1) == ""
    run(box, "rm", "-f", *names)


def test_a_bad_one_is_told_and_made_anew(box: Machine) -> None:
    for _ in range(2):
        run(box, "run", "--name", "good", *BEGUN, IMAGE, "true")
        run(box, "rm", "good")
    state = template(box) / "state"
    state.write_bytes(random.Random(7).randbytes(state.stat().st_size))
    said = run(box, "run", "--name", "bad", *BEGUN, IMAGE, "true", code=125)
    run(box, "rm", "bad")
    assert "could not begin from its template" in said and said.count("\n") == 1
    assert run(box, "ps", "-aq") == ""
    for start in ("generic", "template"):
        run(box, "run", "--name", "anew", *BEGUN, IMAGE, "true")
        assert start_of(box, "anew") == start
        run(box, "rm", "anew")
    forget_oldest(box.home / "cache/templates", 0)
    run(box, "run", "--rm", *BEGUN, IMAGE, "true")
    generic = min((box.home / "cache/templates").iterdir(), key=lambda one: (one / "known.json").stat().st_mtime_ns)
    (generic / "state").write_bytes(random.Random(8).randbytes((generic / "state").stat().st_size))
    said = run(box, "run", "--name", "bad", *BEGUN, IMAGE, "true", code=125)  # another kind: it is not removed at its end
    run(box, "rm", "bad")
    assert "could not begin from its template" in said and said.count("\n") == 1
    run(box, "run", "--name", "anew", *BEGUN, IMAGE, "true")
    assert start_of(box, "anew") == "cold"
    run(box, "rm", "anew")


def test_what_cannot_be_begun_is_booted_and_says_so(box: Machine, tmp_path: Path) -> None:
    done = box.command("run", "--rm", *BEGUN, "-v", f"{tmp_path}:/v", IMAGE, "true", timeout_s=120)
    assert done.returncode == 0 and "was booted, not begun from a template: it shows directories of the host" in done.stderr
    assert "--start" in run(box, "run", "--rm", "--start", "template", IMAGE, "true", code=125)


def test_killed_while_it_is_made(box: Machine) -> None:
    """At any moment: the next one is whole, from a template or not."""
    chance = random.Random(11)
    for number in range(6):
        name, memory = f"killed{number}", f"{140 + number}m"
        run(box, "create", "--name", name, "--isolation", "vm", "--start", "template", "--memory", memory, IMAGE, "sleep", "100")
        with box.start_command("start", name, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as starting:
            time.sleep(chance.random() * 3)
            run(box, "rm", "-f", name)
            starting.wait(60)
        assert run(box, "run", "--rm", "--isolation", "vm", "--start", "template", "--memory", memory, IMAGE, "echo", "whole") == "whole\n"
    assert len(list((box.home / "cache/templates").iterdir())) <= 8
    forget_oldest(box.home / "cache/templates", 0)
    assert not any((box.home / "cache/templates").iterdir())
