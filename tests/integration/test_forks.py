"""A second virtual machine from one that runs: what goes on in both, what is each one's own, and what is left where it is broken off."""

from __future__ import annotations

import json
import os
import subprocess
import time

import pytest

from bulle_testing.networking import Networked
from bulle_testing.running import Machine, wait_for

pytestmark = [pytest.mark.machines, pytest.mark.root]
IMAGE = "busybox"
VM = ("--isolation", "vm", "--memory", "96m")
COUNTS = 'i=0; while true; do echo "$i $(hostname)"; i=$((i+1)); sleep 0.3; done'


def run(box: Machine, *words: str, code: int = 0) -> str:
    """What a command prints; of one that fails its complaint."""
    done = box.command(*words, timeout_s=200)
    assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
    return done.stderr if code else done.stdout


def counted(box: Machine, name: str) -> list[tuple[int, str]]:
    """What the counting command said, by the number it had come to and the host name it had then."""
    lines = [line.split() for line in run(box, "logs", name).splitlines()]
    return [(int(number), host) for number, host in lines]


def test_it_goes_on_from_the_same_moment_with_an_identity_of_its_own(box: Machine) -> None:
    run(box, "run", "-d", "--name", "first", "-e", "WHAT=kept", *VM, IMAGE, "sh", "-c", COUNTS)
    identify = "tr -d - < /proc/sys/kernel/random/uuid > /etc/machine-id"
    run(box, "exec", "first", "sh", "-c", f"echo before > /file; echo before > /dev/shm/memory; {identify}")
    with box.start_command("exec", "first", "sleep", "1000", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as beside:
        wait_for(lambda: len(counted(box, "first")) > 2, "it counts")
        identifier = run(box, "fork", "first", "--name", "second").strip()
        at_most = counted(box, "first")[-1][0] + 1
        wait_for(lambda: len(counted(box, "second")) > 3, "the second counts")
        told = counted(box, "second")
        assert 2 < told[0][0] <= at_most and [number for number, _host in told] == list(range(told[0][0], told[0][0] + len(told)))
        assert told[-1][1] == identifier[:12] == run(box, "exec", "second", "hostname").strip()
        assert "sleep 1000" not in run(box, "top", "second") and "sleep 1000" in run(box, "top", "first")  # nobody is there for it
        assert run(box, "exec", "second", "cat", "/file", "/dev/shm/memory", "/etc/hostname") == f"before\nbefore\n{identifier[:12]}\n"
        run(box, "exec", "second", "sh", "-c", "echo after > /file; echo after > /dev/shm/memory")
        assert run(box, "exec", "first", "cat", "/file", "/dev/shm/memory") == "before\nbefore\n"
        random_numbers = {run(box, "exec", name, "cat", "/proc/sys/kernel/random/uuid") for name in ("first", "second")}
        assert len(random_numbers) == 2
        assert len({run(box, "exec", name, "cat", "/etc/machine-id") for name in ("first", "second")}) == 2
        assert abs(int(run(box, "exec", "second", "date", "+%s")) - time.time()) < 300
        shown = json.loads(run(box, "inspect", "second"))[0]
        assert shown["State"]["Machine"]["Start"] == "kept" and "WHAT=kept" in shown["Config"]["Env"] and shown["Config"]["Image"] == IMAGE
        # It is a container like any other: its fork, its end and its next start.
        run(box, "fork", "second", "--name", "third")
        assert run(box, "exec", "third", "cat", "/file") == "after\n"
        run(box, "stop", "-t", "1", "second")
        run(box, "start", "second")
        assert run(box, "exec", "second", "cat", "/file") == "after\n"
        assert beside.poll() is None
        run(box, "rm", "-f", "first", "second", "third")
        beside.wait(60)


def test_their_addresses_are_their_own(net: Networked) -> None:
    """Also of one that began from a template; a port that only one can have becomes another."""
    for name in ("booted", "first"):
        net("run", "-d", "--name", name, "-p", "127.0.0.1::80", "--start", "template", *VM, IMAGE, "sleep", "1000")
    done = net.bulle("fork", "first", "--name", "second", timeout_s=200)
    assert done.returncode == 0, done.stderr
    assert "0% packet loss" in net("exec", "second", "ping", "-c", "2", "first")
    assert "0% packet loss" in net("exec", "first", "ping", "-c", "2", "second")
    addresses = {net.address(name) for name in ("booted", "first", "second")}
    assert len(addresses) == 3 and net.address("second") in net("exec", "second", "ip", "address", "show", "eth0")
    assert net("port", "first") != net("port", "second") != ""


def test_what_cannot_be_forked_is_refused_in_a_sentence(box: Machine, tmp_path: os.PathLike[str]) -> None:
    run(box, "run", "-d", "--name", "container", IMAGE, "sleep", "1000")
    run(box, "run", "-d", "--name", "shows", "-v", f"{tmp_path}:/v", *VM, IMAGE, "sleep", "1000")
    run(box, "run", "--name", "ended", *VM, IMAGE, "true")
    for name, why in (("container", "has no fork"), ("shows", "shows directories of the host"), ("ended", "not running")):
        said = run(box, "fork", name, code=1)
        assert why in said and said.count("\n") == 1, said
    assert run(box, "exec", "shows", "echo", "goes on") == "goes on\n"
    run(box, "pause", "shows")
    assert "is paused" in run(box, "fork", "shows", code=1)
    assert sorted(run(box, "ps", "-a", "--format", "{{.Names}}").split()) == ["container", "ended", "shows"]
    run(box, "rm", "-f", "container", "shows", "ended")
