"""What happens to a container while nobody looks, the same at every isolation level: restarts, health checks, limits of time, why it ended."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import bulle
from bulle.errors import Conflict, InvalidInput
from bulle.isolation.driver import Feature
from bulle_testing.running import Level, Machine, usable, wait_for

MILLISECONDS = 1_000_000
KILLS = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS"}]}


def words(container: bulle.Container) -> list[str]:
    return [entry.data.decode().strip() for entry in container.logs()]


def ended(container: bulle.Container) -> bool:
    return container.state().status == "exited"


def why(container: bulle.Container) -> str:
    """The sentence of its last end, without its name."""
    return container.why()[0].sentence.partition(" ")[2]


# Restart policies


def test_on_failure_as_often_as_allowed(place: Machine, level: Level) -> None:
    with place.running(level, "sh", "-c", "echo again; exit 3", restart_policy="on-failure:2") as container:
        wait_for(lambda: ended(container), "the last end")
        assert words(container) == ["again"] * 3
        assert (container.state().restart_count, container.state().exit_code) == (2, 3)
        assert len(container.why()) == 3
        assert container.inspect()["RestartCount"] == 2


def test_on_failure_is_content_with_success(place: Machine, level: Level) -> None:
    with place.running(level, "sh", "-c", "echo once", restart_policy="on-failure") as container:
        wait_for(lambda: ended(container), "its end")
        time.sleep(0.3)
        assert words(container) == ["once"]
        assert container.state().status == "exited"


@pytest.mark.parametrize("policy", ["always", "unless-stopped"])
def test_always_until_it_is_stopped(place: Machine, level: Level, policy: str) -> None:
    with place.running(level, "sh", "-c", "echo again; sleep 0.1", restart_policy=policy) as container:
        wait_for(lambda: len(words(container)) > 2, "the third run")
        container.stop(timeout_s=1)
        assert container.state().status == "exited"
        said = words(container)
        time.sleep(0.5)
        assert words(container) == said
        container.start()
        wait_for(lambda: len(words(container)) > len(said) + 1, "restarts after a new start")
        container.kill()
        time.sleep(0.3)
        assert container.state().status == "exited", "kill ends it for good, as stop does"


def test_killed_while_it_waits(place: Machine, level: Level) -> None:
    """There is nothing to be killed then; that it is not started again is what was meant."""
    with place.running(level, "sh", "-c", "echo again; exit 1", restart_policy="always") as container:
        wait_for(lambda: container.state().restart_count > 3 and container.state().status == "restarting", "a longer wait")
        container.kill()
        assert container.state().status == "exited"
        said = words(container)
        time.sleep(0.5)
        assert words(container) == said
        with pytest.raises(Conflict, match="is not running"):
            container.kill()


def test_while_it_waits(place: Machine, level: Level) -> None:
    """Between two runs it counts as running, is stopped and removed at once, and cannot be entered."""
    with place.running(level, "sh", "-c", "echo again; exit 1", restart_policy="always") as container:
        wait_for(lambda: container.state().restart_count > 3 and container.state().status == "restarting", "a longer wait")
        assert container.id in {one.id for one in place.engine.containers.list()}
        assert "Restarting (1)" in place.command("ps").stdout
        inspected = container.inspect()["State"]
        assert isinstance(inspected, dict)
        assert (inspected["Status"], inspected["Running"], inspected["Restarting"]) == ("restarting", True, True)
        with pytest.raises(Conflict, match="restarting"):
            container.remove()
        with pytest.raises(Conflict):
            container.attach()
        with pytest.raises(Conflict):
            container.execute(bulle.ExecOptions(command=("true",)))
        container.start()  # it will start by itself
        container.stop()
        assert container.state().status == "exited"
        container.start()
        wait_for(lambda: container.state().restart_count > 2 and container.state().status == "restarting", "a wait again")
        container.remove(force=True)
        assert not Path(container.directory).exists()


def test_the_monitor_is_killed_while_it_waits(place: Machine, level: Level) -> None:
    with place.running(level, "sh", "-c", "echo again; exit 1", restart_policy="always") as container:
        wait_for(lambda: container.state().restart_count > 2 and container.state().status == "restarting", "a longer wait")
        count = container.state().restart_count
        os.kill(container.state().monitor_pid, signal.SIGKILL)
        wait_for(lambda: container.state().restart_count > count, "a restart by another monitor")


def test_the_monitor_is_killed_before_the_end(place: Machine, level: Level) -> None:
    with place.running(level, "sh", "-c", "echo again; sleep 1", restart_policy="always") as container:
        os.kill(container.state().monitor_pid, signal.SIGKILL)
        wait_for(lambda: len(words(container)) > 1, "a restart by another monitor")


def test_a_restart_that_fails_is_tried_again(place: Machine, level: Level, tmp_path: Path) -> None:
    if Feature.VOLUMES not in usable(level, place.home):
        return
    tmp_path.chmod(0o755)
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho again\nsleep 0.2\nexit 1\n")
    program.chmod(0o755)
    volume = bulle.VolumeOption(str(tmp_path), "/volume")
    with place.running(level, "/volume/program", restart_policy="always", volumes=(volume,)) as container:
        wait_for(lambda: len(words(container)) > 0, "the first run")
        text = program.read_bytes()
        program.unlink()
        wait_for(lambda: container.state().error and container.state().restart_count > 2, "a restart that failed")
        assert "could not be started" in why(container)
        said = len(words(container))
        program.write_bytes(text)
        program.chmod(0o755)
        wait_for(lambda: len(words(container)) > said, "a restart that succeeded")


def test_nothing_of_earlier_runs_is_left_open(place: Machine, level: Level) -> None:
    def resting(runs: int) -> int:
        """The fewest descriptors the monitor had while it waited after so many runs; what a run just ended holds is closed a little later."""
        seen: list[int] = []

        def enough() -> bool:
            state = container.state()
            if state.restart_count > runs and state.status == "restarting":
                seen.append(len(os.listdir(f"/proc/{state.monitor_pid}/fd")))
            return len(seen) >= 20

        wait_for(enough, f"rests after {runs} runs")
        return min(seen)

    with place.running(level, "sh", "-c", "exit 1", restart_policy="always", interactive=True) as container:
        first = resting(2)
        monitor = container.state().monitor_pid
        assert resting(5) <= first
        assert container.state().monitor_pid == monitor


@pytest.mark.parametrize("policy", ["sometimes", "always:3", "on-failure:many", "on-failure:-1"])
def test_a_policy_that_is_none(place: Machine, level: Level, policy: str) -> None:
    with pytest.raises(InvalidInput, match="invalid restart policy"):
        place.create(level, "true", restart_policy=policy)


def test_what_is_removed_cannot_be_started_again(place: Machine, level: Level) -> None:
    with pytest.raises(InvalidInput, match="--rm"):
        place.create(level, "true", restart_policy="always", auto_remove=True)


# Health


def test_health_is_asked_for(place: Machine, level: Level) -> None:
    script = "touch /tmp/well; while :; do sleep 0.1; done"
    check = {"health_command": "echo asked; test -e /tmp/well", "health_interval_ns": 100 * MILLISECONDS, "health_retries": 2}
    with place.running(level, "sh", "-c", f"mkdir -p /tmp; {script}", **check) as container:
        wait_for(lambda: (known := container.state().health) is not None and known.status == "healthy", "a first answer")
        assert "(healthy)" in place.command("ps").stdout
        place.execute(container, "rm", "/tmp/well")
        wait_for(lambda: (known := container.state().health) is not None and known.status == "unhealthy", "bad news")
        document = json.loads(place.command("inspect", "-f", "{{json .State.Health}}", container.name).stdout)
        assert document["Status"] == "unhealthy"
        assert document["FailingStreak"] >= 2
        assert (document["Log"][-1]["ExitCode"], document["Log"][-1]["Output"]) == (1, "asked\n")
        assert len(document["Log"]) <= 5
        assert container.state().status == "running", "nothing was to be done about it"
        place.execute(container, "touch", "/tmp/well")
        wait_for(lambda: (known := container.state().health) is not None and known.status == "healthy", "good news")


def test_unhealthy_is_restarted(place: Machine, level: Level) -> None:
    check = {"health_command": "exit 1", "health_interval_ns": 50 * MILLISECONDS, "health_retries": 2, "health_on_failure": "restart"}
    with place.running(level, "sh", "-c", "echo again; while :; do sleep 0.1; done", stop_timeout_s=0, **check) as container:
        wait_for(lambda: len(words(container)) > 2, "two restarts")
        assert "its health check failed 2 times in a row (--health-on-failure restart)" in why(container)


def test_unhealthy_is_killed_and_the_policy_decides(place: Machine, level: Level) -> None:
    check = {"health_command": "exit 1", "health_interval_ns": 50 * MILLISECONDS, "health_retries": 1, "health_on_failure": "kill"}
    with place.running(level, "sleep", "1000", restart_policy="on-failure:1", **check) as container:
        wait_for(lambda: ended(container), "the last end")
        assert (container.state().restart_count, container.state().exit_code) == (1, 137)


def test_unhealthy_is_stopped(place: Machine, level: Level) -> None:
    check = {"health_command": "! test -e /ready", "health_interval_ns": 50 * MILLISECONDS, "health_retries": 1, "health_on_failure": "stop"}
    script = "trap 'exit 7' TERM; touch /ready; while :; do sleep 0.05; done"
    with place.running(level, "sh", "-c", script, restart_policy="always", **check) as container:
        wait_for(lambda: ended(container), "its end")
        assert container.state().exit_code == 7
        assert container.state().restart_count == 0


def test_a_check_that_takes_too_long(place: Machine, level: Level) -> None:
    check = {"health_command": "sleep 100", "health_interval_ns": 50 * MILLISECONDS, "health_timeout_ns": 100 * MILLISECONDS, "health_retries": 1}
    with place.running(level, **check) as container:
        wait_for(lambda: (known := container.state().health) is not None and known.status == "unhealthy", "bad news")
        known = container.state().health
        assert known is not None
        assert known.log[0].exit_code == -1
        assert known.log[0].output == "Health check exceeded timeout (0.1s)"


def test_failures_while_it_starts_do_not_count(place: Machine, level: Level) -> None:
    check = {
        "health_command": "test -e /well",
        "health_interval_ns": 100 * MILLISECONDS,
        "health_start_interval_ns": 50 * MILLISECONDS,
        "health_start_period_ns": 60_000 * MILLISECONDS,
        "health_retries": 1,
    }
    with place.running(level, **check) as container:
        wait_for(lambda: (known := container.state().health) is not None and len(known.log) > 2, "three answers")
        known = container.state().health
        assert known is not None
        assert (known.status, known.failing_streak) == ("starting", 0)
        place.execute(container, "touch", "/well")
        wait_for(lambda: (known := container.state().health) is not None and known.status == "healthy", "good news")
        place.execute(container, "rm", "/well")
        wait_for(lambda: (known := container.state().health) is not None and known.status == "unhealthy", "failures count now")


def test_health_goes_on_under_another_monitor(place: Machine, level: Level) -> None:
    check = {"health_command": "test -e /well", "health_interval_ns": 100 * MILLISECONDS, "health_retries": 1}
    with place.running(level, "sh", "-c", "touch /well; sleep 1000", **check) as container:
        wait_for(lambda: (known := container.state().health) is not None and known.status == "healthy", "a first answer")
        os.kill(container.state().monitor_pid, signal.SIGKILL)
        place.execute(container, "rm", "/well")
        wait_for(lambda: (known := container.state().health) is not None and known.status == "unhealthy", "bad news")


def test_health_flags_that_cannot_be(place: Machine, level: Level) -> None:
    for options, message in (
        ({"health_interval_ns": MILLISECONDS}, "no health check to change"),
        ({"health_command": "true", "no_healthcheck": True}, "--no-healthcheck conflicts"),
        ({"health_command": "true", "health_interval_ns": 5}, "too short"),
    ):
        with pytest.raises(InvalidInput, match=message):
            place.create(level, "true", **options)


# Limits of time


def test_it_runs_for_as_long_as_allowed(place: Machine, level: Level) -> None:
    with place.running(level, timeout_s=0.2, stop_timeout_s=0, restart_policy="always") as container:
        assert container.wait() == 137
        assert container.state().status == "exited", "a limit is no failure to be mended"
        assert why(container) == "was ended because it ran for as long as it was allowed to: 0.2 s (--timeout)"


def test_the_limit_is_kept_by_another_monitor(place: Machine, level: Level) -> None:
    with place.running(level, timeout_s=1, stop_timeout_s=0) as container:
        os.kill(container.state().monitor_pid, signal.SIGKILL)
        wait_for(lambda: ended(container), "its end")
        assert "(--timeout)" in why(container)


def test_it_is_asked_before_it_is_killed(place: Machine, level: Level) -> None:
    with place.running(level, "sh", "-c", "trap 'echo asked; exit 4' TERM; while :; do sleep 0.05; done", timeout_s=3) as container:
        assert container.wait() == 4
        assert words(container) == ["asked"]


def test_who_does_nothing_is_ended(place: Machine, level: Level) -> None:
    script = "for i in 1 2 3 4 5 6; do echo $i; sleep 0.5; done; sleep 1000"
    with place.running(level, "sh", "-c", script, idle_timeout_s=2, stop_timeout_s=0) as container:
        assert container.wait() == 137
        assert words(container) == ["1", "2", "3", "4", "5", "6"], "not while it said something"
        assert why(container) == "was ended because it did nothing for 2 s (--idle-timeout)"


def test_who_works_in_silence_is_not_ended(place: Machine, level: Level) -> None:
    with place.running(level, "sh", "-c", "while :; do :; done", idle_timeout_s=1, stop_timeout_s=0) as container:
        time.sleep(2)
        assert container.state().status == "running"


# Why


def test_why_says_who_wanted_it(place: Machine, level: Level) -> None:
    with place.running(level, "sh", "-c", "trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done") as container:
        wait_for(lambda: words(container), "it is ready")
        assert not container.why()
        container.stop()
        assert "was ended by `bulle stop` of user" in why(container)
        assert "it ended by itself on SIGTERM, with exit code 0" in why(container)
        container.start()
        container.kill()
        assert "was ended by `bulle kill` of user" in why(container)
        assert [one.sentence.split("`")[1] for one in container.why()] == ["bulle kill", "bulle stop"]
        shown = place.command("why", "--all", container.name).stdout.splitlines()
        assert [line.split("`")[1] for line in shown if not line.startswith(" ")] == ["bulle kill", "bulle stop"]


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("exit 0", "ended by itself with exit code 0: it had done its work"),
        ("echo broken >&2; exit 3", "ended by itself with exit code 3"),
        ("exit 137", "ended by itself with exit code 137: shells say so of a command that SIGKILL ended"),
        ("echo 'x: error while loading shared libraries: libx.so.1: cannot open shared object file' >&2; exit 127",
         "could not run its program because a library is missing: libx.so.1 (cannot open shared object file)"),
    ],
)  # fmt: skip
def test_why_says_how_it_ended(place: Machine, level: Level, script: str, sentence: str) -> None:
    with place.running(level, "sh", "-c", script) as container:
        container.wait()
        wait_for(lambda: container.why(), "what was recorded")
        assert why(container) == sentence
        if "broken" in script:
            assert "    broken" in container.why()[0].evidence


def test_why_knows_a_kill_from_outside(place: Machine, level: Level) -> None:
    with place.running(level) as container:
        os.kill(container.state().pid, signal.SIGKILL)
        wait_for(lambda: ended(container), "its end")
        assert why(container) == "was killed from outside (SIGKILL): by no command of Bulle's, and the kernel says nothing of memory"


def test_why_knows_a_start_that_failed(place: Machine, level: Level) -> None:
    container = place.create(level, "/nothing")
    with suppress(bulle.BulleError):
        container.start()
    assert why(container).startswith("could not be started: /nothing: no such file or directory in the container")
    container.remove()


def test_why_knows_of_memory(place: Machine, level: Level) -> None:
    if Feature.MEMORY_LIMIT not in usable(level, place.home):
        return
    fill = "x=a; while :; do x=$x$x; done"
    with place.running(level, "sh", "-c", fill, memory_bytes=16 << 20) as container:
        wait_for(lambda: ended(container), "its end")
        assert why(container) == "was killed by the kernel because it had used up its memory"
    with place.running(level, "sh", "-c", f"({fill}); exit 5", memory_bytes=16 << 20) as container:
        wait_for(lambda: ended(container), "its end")
        assert why(container) == "ended with exit code 5 after the kernel had killed one of its processes for want of memory"


@pytest.mark.root
@pytest.mark.parametrize(
    ("command", "options", "sentence"),
    [
        (("mkdir", "/directory"), {"security_options": (f"seccomp={json.dumps(KILLS)}",)}, "was killed by its system call filter: it called mkdir"),
        (("unshare", "-U", "true"), {"security_options": ("seccomp-log",), "cap_drop": ("ALL",)},
         "ended by itself with exit code 1 after the system call filter had refused unshare"),
    ],
    ids=["killed", "refused"],
)  # fmt: skip
def test_why_names_the_call_that_the_filter_refused(
    place: Machine, level: Level, command: tuple[str, ...], options: dict[str, Any], sentence: str
) -> None:
    for _ in range(30):  # the kernel writes ten such records within five seconds and drops the rest, whoever caused them
        with place.running(level, *command, **options) as container:
            wait_for(lambda container=container: ended(container), "its end")
            said = why(container)
        if said == sentence:
            return
        time.sleep(1)
    assert said == sentence
