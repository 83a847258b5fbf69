"""Killed at any moment: spawner, monitor or command die by SIGKILL while a container runs; it goes on, nothing it says or returns is lost, and the
next command finds it as it is. Nothing is left once it is removed.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import pytest

import bulle
from bulle.isolation.driver import Feature
from bulle_testing import places
from bulle_testing.running import PATIENCE_S, Level, Machine, Terminal, alive, follow, usable, wait_for

# A container that counts until it is told to end, and says how.
COUNT = "trap 'echo asked; exit 23' USR1; i=0; while :; do i=$((i+1)); echo line $i; sleep 0.02; done"


def kill_spawner(place: Machine) -> None:
    pid = places.spawner_pid(place.home)
    assert pid > 0
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not alive(pid), "the spawner's end")


def kill_monitor(place: Machine, container: bulle.Container) -> None:
    pid = container.state().monitor_pid
    assert pid > 0
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not alive(pid), "the monitor's end")


def numbers(container: bulle.Container) -> list[int]:
    return [int(entry.data.split()[1]) for entry in container.logs() if entry.data.startswith(b"line ")]


def goes_on(container: bulle.Container) -> None:
    """It runs, and what it says arrives."""
    assert container.state().status == "running"
    last = max(numbers(container), default=0)
    wait_for(lambda: max(numbers(container), default=0) > last + 2, "more lines")


@pytest.mark.parametrize("victims", ["spawner", "monitor", "monitor twice", "spawner and monitor", "monitor and spawner"])
def test_container_survives(place: Machine, level: Level, victims: str) -> None:
    with place.running(level, "sh", "-c", COUNT, name="survivor") as container:
        wait_for(lambda: numbers(container), "the first line")
        pid = container.state().pid
        for victim in victims.replace("monitor twice", "monitor and monitor").split(" and "):
            if victim == "spawner":
                kill_spawner(place)
            else:
                kill_monitor(place, container)
            goes_on(container)
        assert container.state().pid == pid
        assert place.command("ps", "-q", "--no-trunc").stdout.split() == [container.id]
        assert place.execute(container, "echo", "reached").stdout == b"reached\n" if Feature.EXECUTE in usable(level, place.home) else True
        seen = numbers(container)
        assert seen == sorted(set(seen)), "no line comes twice"
        assert len(seen) >= seen[-1] - 3, "at most what was being written at that moment is missing"
        container.kill("USR1")
        assert place.command("wait", "survivor").stdout == "23\n"
        assert [entry.data for entry in container.logs()][-1] == b"asked\n"
        assert container.state().exit_code == 23


def test_exit_code_of_a_container_that_ends_while_nobody_watches(place: Machine, level: Level) -> None:
    """The monitor is stopped and killed around the end: the code is kept by the spawner or the kernel."""
    with place.running(level, "sh", "-c", "sleep 0.3; echo last; exit 17") as container:
        monitor = container.state().monitor_pid
        os.kill(monitor, signal.SIGSTOP)
        time.sleep(0.6)
        os.kill(monitor, signal.SIGKILL)
        wait_for(lambda: container.state().status == "exited", "the end")
        assert container.wait() == 17
        assert [entry.data for entry in container.logs()] == [b"last\n"], "what it wrote without a reader is read afterwards"


def test_unknown_is_said_where_all_watchers_died(place: Machine, level: Level) -> None:
    """Both dead, and then the end: either the code (a kernel that tells) or an honest unknown, never a guess."""
    with place.running(level, "sh", "-c", "sleep 0.7; exit 17") as container:
        state = container.state()
        spawner = places.spawner_pid(place.home)
        os.kill(spawner, signal.SIGKILL)
        os.kill(state.monitor_pid, signal.SIGKILL)
        wait_for(lambda: not alive(state.pid), "the container's end")
        place.engine.containers.list(all=True)
        wait_for(lambda: container.state().status == "exited", "the end is noticed")
        assert container.wait() in (17, -1)
        if container.wait() == -1:
            assert "unknown" in container.state().error
            assert container.inspect()["State"]["ExitCodeKnown"] is False  # type: ignore[index]


def test_terminal_survives_the_spawner(place: Machine, level: Level) -> None:
    if Feature.TERMINAL not in usable(level, place.home):
        pytest.skip("no terminals here")
    with place.running(level, "sh", terminal=True, interactive=True, name="terminal") as container:
        kill_spawner(place)
        assert container.state().status == "running"
        terminal = Terminal(place, "attach", "terminal")
        try:
            terminal.type("echo re''ached\r")
            terminal.expect("reached")
        finally:
            terminal.close()


def test_terminal_survives_its_monitor(place: Machine, level: Level) -> None:
    if Feature.TERMINAL not in usable(level, place.home):
        pytest.skip("no terminals here")
    with place.running(level, "sh", terminal=True, interactive=True, name="terminal") as container:
        for _ in range(2):
            kill_monitor(place, container)
            terminal = Terminal(place, "attach", "terminal")
            try:
                terminal.type("stty size; echo re''ached\r")
                terminal.expect("reached")
                terminal.resize(44, 111)
                terminal.type("until [ \"$(stty size)\" = '44 111' ]; do sleep 0.05; done; echo re''sized\r")
                terminal.expect("resized")
            finally:
                terminal.close()
        attachment = container.attach(stdin=True)
        attachment.send_stdin(b"exit 5\r")
        assert follow(attachment).exit_code == 5
        assert container.wait() == 5
        assert any(b"reached" in entry.data for entry in container.logs())


def test_input_survives_the_monitor(place: Machine, level: Level) -> None:
    with place.running(level, "sh", "-c", "while read line; do echo got $line; done; echo end", interactive=True) as container:
        attachment = container.attach(stdin=True)
        attachment.send_stdin(b"one\n")
        wait_for(lambda: any(entry.data == b"got one\n" for entry in container.logs()), "the first line")
        kill_monitor(place, container)
        attachment.close()
        wait_for(lambda: container.state().status == "running" and alive(container.state().monitor_pid), "a monitor")
        attachment = container.attach(stdin=True)
        attachment.send_stdin(b"two\n")
        attachment.close_stdin()
        assert follow(attachment).exit_code == 0
        assert [entry.data for entry in container.logs()] == [b"got one\n", b"got two\n", b"end\n"]


def test_killed_command_of_a_foreground_run(place: Machine, level: Level) -> None:
    """The command dies: the container goes on, as Docker's does."""
    command = place.start_command("run", "--name", "survivor", *level.flags, "busybox", "sh", "-c", COUNT, stdout=subprocess.PIPE)
    assert command.stdout is not None
    try:
        with command.stdout:
            assert command.stdout.readline() == b"line 1\n"
            command.kill()
            command.wait()
        container = place.engine.containers.get("survivor")
        goes_on(container)
        container.kill("USR1")
        assert container.wait() == 23
        assert [entry.data for entry in container.logs()][-1] == b"asked\n"
    finally:
        with suppress(bulle.BulleError):
            place.engine.containers.get("survivor").remove(force=True)


def test_run_survives_the_loss_of_its_monitor(place: Machine, level: Level) -> None:
    arguments = ("run", "--name", "survivor", *level.flags, "busybox", "sh", "-c", COUNT)
    command = place.start_command(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert command.stdout is not None
    try:
        with command:
            assert command.stdout.readline() == b"line 1\n"
            container = place.engine.containers.get("survivor")
            if container.state().monitor_pid == command.pid:
                pytest.skip("the command itself is the monitor")
            kill_monitor(place, container)
            goes_on(container)
            container.kill("USR1")
            assert container.wait() == 23
            command.communicate(timeout=240)
            assert command.returncode in (23, 137, -9), "the exit code where a command is left to hear of it"
    finally:
        with suppress(bulle.BulleError):
            place.engine.containers.get("survivor").remove(force=True)


def test_removed_by_itself_although_the_monitor_was_killed(place: Machine, level: Level) -> None:
    container = place.create(level, "sh", "-c", COUNT, auto_remove=True)
    container.start()
    wait_for(lambda: numbers(container), "the first line")
    kill_monitor(place, container)
    goes_on(container)
    container.kill("USR1")
    wait_for(lambda: not place.engine.containers.list(all=True), "its removal")
    wait_for(lambda: not Path(container.directory).exists(), "the removal of its directory")


def test_a_long_removal_outlives_its_command(place: Machine, level: Level) -> None:
    """The command has said its exit code and is not waited for: what it had not removed yet is removed by a monitor."""
    fill = "i=0; mkdir -p /tmp/many; while [ $i -lt 12000 ]; do i=$((i+1)); : > /tmp/many/$i; done"
    assert place.command("run", "--rm", *level.flags, "busybox", "sh", "-c", fill).returncode == 0
    wait_for(lambda: not os.listdir(place.home / "containers"), "the removal of its directory")


@pytest.mark.parametrize("delay_ms", [0, 1, 2, 4, 6, 9, 13, 20])
def test_monitor_killed_during_a_start_leaves_nothing(place: Machine, level: Level, delay_ms: int) -> None:
    """The whole spawner with its children dies at some moment of a start: what is there afterwards can be started or removed."""
    container = place.create(level, "sleep", "1000")
    command = place.start_command("start", container.name, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: command.poll() is not None or monitors(place, container.id), "a monitor or the end")
    time.sleep(delay_ms / 1000)
    killed = monitors(place, container.id)
    for pid in killed:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    command.wait(30)
    wait_for(lambda: not any(map(alive, killed)), "the end of what was killed")
    wait_for(lambda: not monitors(place, container.id) or alive(container.state().pid), "an end, or a container that runs")
    container.start()
    assert container.state().status == "running", container.state()
    container.remove(force=True)


def test_start_while_an_end_is_recorded_waits_for_that(place: Machine, level: Level) -> None:
    """Monitor and container were killed: another monitor, which this test stands for, holds the lock until it has written how that ended."""
    with place.running(level) as container:
        path = Path(container.directory, "state.json")
        before = path.read_bytes()
        container.stop(timeout_s=0)
        after = path.read_bytes()
        with open(f"{container.directory}/monitor.lock", "rb") as lock:
            wait_for(lambda: try_lock(lock), "its monitor has gone")
            path.write_bytes(before)

            def recorded() -> None:
                path.write_bytes(after)
                fcntl.flock(lock, fcntl.LOCK_UN)

            timer = threading.Timer(0.4, recorded)
            timer.start()
            container.start()
            timer.join()
        assert container.state().status == "running"


def try_lock(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@pytest.mark.parametrize("killed", [False, True])
def test_start_during_a_start_waits_for_it(place: Machine, level: Level, killed: bool) -> None:
    """The second start returns when the container runs: by the first one, or by itself where the first came to nothing."""
    # Much to mount: the first process is on its way for longer.
    container = place.create(level, "sleep", "1000", volumes=tuple(bulle.VolumeOption("/usr", f"/v{number}") for number in range(100)))
    first, pid = half_started(place, container)
    with first, place.start_command("start", container.name) as second:
        time.sleep(0.1)
        assert second.poll() is None
        os.kill(pid, signal.SIGKILL if killed else signal.SIGCONT)
    assert second.returncode == 0
    assert (first.returncode == 0) is not killed
    assert container.state().status == "running"
    assert (container.state().pid == pid) is not killed
    container.remove(force=True)


def half_started(place: Machine, container: bulle.Container) -> tuple[subprocess.Popen[bytes], int]:
    """A command that starts it, and its first process, stopped while it is still what it was forked from."""
    for _ in range(200):
        command = place.start_command("start", container.name, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        pid, deadline = 0, time.monotonic() + PATIENCE_S
        while pid == 0 and time.monotonic() < deadline:  # without a pause: it is half way for a few milliseconds only
            pid = container.state().pid
        os.kill(pid, signal.SIGSTOP)
        wait_for(lambda pid=pid: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", "its stop")
        if os.readlink(f"/proc/{pid}/exe") == os.readlink("/proc/self/exe"):
            return command, pid
        os.kill(pid, signal.SIGCONT)
        command.wait()
        container.stop(0)
    pytest.fail("no start was caught half way")


def monitors(place: Machine, identifier: str) -> list[int]:
    """Processes that hold something open in the container's directory."""
    found = []
    directory = f"{place.home}/containers/{identifier}"
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with suppress(OSError):
                for descriptor in itertools.islice(os.listdir(f"/proc/{entry}/fd"), 64):
                    with suppress(OSError):
                        if os.readlink(f"/proc/{entry}/fd/{descriptor}").startswith(directory):
                            found.append(int(entry))
                            break
    return found
