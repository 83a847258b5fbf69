"""The crash matrix: each process that takes part, killed during each verb. Whoever else runs notices nothing, the next command says what is true, and
nothing is left once the container is removed (which the leak check holds, after every test).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace

import pytest

import bulle
from bulle.isolation.driver import Feature
from bulle_testing import places, tiers
from bulle_testing.running import Level, Machine, alive, usable, wait_for

pytestmark = pytest.mark.slow

COUNT = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.02; done"
DELAYS_MS = (0, 4, 12)

# What a program does through the library, by verb; NAME and HOME are put in.
PROGRAM = """
import bulle
engine = bulle.Engine("HOME")
def create():
    engine.containers.create(bulle.ContainerOptions(image="busybox", command=("sleep", "1000"), name="NAME", **OPTIONS))
container = None if "VERB" == "create" else engine.containers.get("NAME")
def execute():
    attachment = container.execute(bulle.ExecOptions(command=("sleep", "0.3")))
    while attachment.receive() is not None:
        pass
def follow():
    for entry in container.logs(follow=True):
        pass
{"create": create, "start": lambda: container.start(), "exec": execute, "logs": follow, "stop": lambda: container.stop(timeout_s=1),
 "rm": lambda: container.remove(force=True)}["VERB"]()
"""
VERBS = ("create", "start", "exec", "logs", "stop", "rm")
VICTIMS = ("spawner", "monitor", "init", "command", "client", "keeper")
# Who is not there yet while a container is being created.
PAIRS = [(victim, verb) for victim in VICTIMS for verb in VERBS if verb != "create" or victim not in ("monitor", "init")]


def numbers(container: bulle.Container) -> list[int]:
    return [int(entry.data.split()[1]) for entry in container.logs()]


def begin(place: Machine, level: Level, verb: str, client: bool) -> subprocess.Popen[bytes]:
    """The verb on the container ``subject``, through the library or the command line."""
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if client:
        program = PROGRAM.replace("HOME", str(place.home)).replace("NAME", "subject").replace("VERB", verb).replace("OPTIONS", repr(level.options))
        return subprocess.Popen([sys.executable, "-c", program], env=place.environment, **quiet)
    arguments = {
        "create": ("create", "--name", "subject", *level.flags, "busybox", "sleep", "1000"),
        "start": ("start", "subject"),
        "exec": ("exec", "subject", "sleep", "0.3"),
        "logs": ("logs", "-f", "subject"),
        "stop": ("stop", "-t", "1", "subject"),
        "rm": ("rm", "-f", "subject"),
    }[verb]
    return place.start_command(*arguments, **quiet)


def subject(place: Machine) -> bulle.Container | None:
    try:
        return place.engine.containers.get("subject")
    except bulle.BulleError:
        return None


def victim_pid(place: Machine, victim: str, command: subprocess.Popen[bytes]) -> int:
    """Who is to die, 0 where it is not there (any more, or yet)."""
    if victim in ("command", "client"):
        return command.pid
    if victim == "spawner":
        return places.spawner_pid(place.home)
    if victim == "keeper":
        return places.keeper_pid(place.home)
    found = subject(place)
    if found is None:
        return 0
    with suppress(bulle.BulleError, OSError):
        state = found.state()
        return state.monitor_pid if victim == "monitor" else state.pid
    return 0


def is_true(found: bulle.Container) -> bool:
    """What is said of it is what the kernel knows."""
    state = found.state()
    return alive(state.pid) if state.status == "running" else state.status in ("created", "exited") and not (state.pid and alive(state.pid))


def only(place: Machine, bystander: bulle.Container) -> bool:
    """Whether the bystander is alone; the subject is removed where it is (also one that a killed command's child has just created), and the directory
    of one that was killed half way is collected as if it were no longer young.
    """
    found = subject(place)
    if found is not None:
        wait_for(lambda: is_true(found), "a true answer")
        found.remove(force=True)
    directories = place.home / "containers"
    for name in set(os.listdir(directories)) - {bystander.id}:
        with suppress(FileNotFoundError):
            os.utime(directories / name, (0, 0))
    place.engine.gc()
    return place.command("ps", "-aq", "--no-trunc").stdout.split() == [bystander.id] and os.listdir(directories) == [bystander.id]


@pytest.mark.parametrize(("victim", "verb"), PAIRS, ids=lambda word: word)
def test_killed(place: Machine, level: Level, victim: str, verb: str) -> None:
    if victim == "keeper":
        if Feature.NETWORKS not in usable(level, place.home):
            return  # that it says so is held by the tests of networks
        level = replace(level, options={**level.options, "network": "bridge"}, flags=(*level.flags, "--network", "bridge"))
    with place.running(level, "sh", "-c", COUNT) as bystander:
        wait_for(lambda: len(numbers(bystander)) > 1, "the bystander")
        before = bystander.state().pid
        for delay_ms in DELAYS_MS:
            if verb != "create":
                container = place.create(level, "sh", "-c", COUNT, name="subject")
                if verb != "start":
                    container.start()
            command = begin(place, level, verb, victim == "client")
            try:
                if victim == "client":
                    time.sleep(0.12)  # a new interpreter imports the library first
                time.sleep(delay_ms / 1000)
                killed = victim_pid(place, victim, command)
                if killed > 0:
                    with suppress(ProcessLookupError):
                        os.kill(killed, signal.SIGKILL)
                    wait_for(lambda killed=killed, command=command: command.poll() is not None or not alive(killed), "the victim's end")
                if verb != "logs":
                    command.wait(30)
            finally:
                command.kill()
                command.wait()
            for _ in range(2):  # once the spawner has served a whole command it has ended the child of the killed one
                wait_for(lambda: only(place, bystander), "the subject's removal")
        assert bystander.state().status == "running"
        assert bystander.state().pid == before
        if victim == "keeper":
            wait_for(lambda: place.command("exec", bystander.name, "nslookup", bystander.name).returncode == 0, "names again")
        last = numbers(bystander)[-1]
        wait_for(lambda: numbers(bystander)[-1] > last, "the bystander's next lines")
        said = numbers(bystander)
        assert said == list(range(1, len(said) + 1)), "nothing of what it said is lost"


def test_created_whole_or_not_at_all(place: Machine, level: Level) -> None:
    """A program is killed at each directory that it makes while it creates a container: what is there then can be started."""
    strace = str(tiers.program("strace"))
    program = PROGRAM.replace("HOME", str(place.home)).replace("NAME", "subject").replace("VERB", "create").replace("OPTIONS", repr(level.options))
    codes = []
    while not codes or codes[-1] != 0:
        kill = f"inject=mkdir,mkdirat:signal=KILL:when={len(codes) + 1}"
        line = [strace, "-f", "-qq", "-o", "/dev/null", "-e", kill, sys.executable, "-c", program]
        codes.append(subprocess.run(line, env=place.environment, stdin=subprocess.DEVNULL, timeout=240).returncode)
        assert codes[-1] in (0, -signal.SIGKILL), codes
        assert len(codes) < 40
        if (found := subject(place)) is not None:
            found.start()
            found.remove(force=True)
        for name in os.listdir(place.home / "containers"):
            os.utime(place.home / "containers" / name, (0, 0))
        place.engine.gc()
        assert os.listdir(place.home / "containers") == []
    assert len(codes) > 3, "it was killed in between"
