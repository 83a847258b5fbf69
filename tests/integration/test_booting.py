"""``system boot`` and ``system shutdown``: who runs again after the machine went down, who does not, and what is said of those that cannot."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

import bulle
from bulle.engine.booting import starts_at_boot
from bulle.linux import process
from bulle.model.container import ContainerState
from bulle.model.lifecycle import Intent, RestartPolicy
from bulle_testing import places
from bulle_testing.running import LEVELS, Level, Machine, wait_for

BOX = LEVELS[0]
LOOP = ("sh", "-c", "echo up; while :; do sleep 0.2; done")


def gone(pid: int) -> bool:
    return process.start_ticks(pid) == 0


def power_cut(place: Machine, *containers: bulle.Container) -> None:
    """All processes of the home end at once, and what is on the disk speaks of another boot."""
    states = [json.loads(Path(one.directory, "state.json").read_text()) for one in containers]
    pids = [places.spawner_pid(place.home), *(state["monitor_pid"] for state in states), *(state["pid"] for state in states)]
    for pid in filter(None, pids):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for pid in filter(None, pids):
        wait_for(lambda pid=pid: gone(pid), "the end of everything")
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    for one, state in zip(containers, states, strict=True):
        Path(one.directory, "state.json").write_text(json.dumps({**state, "boot_id": "6f1a7a52-0000-4000-8000-5c2a0d1a4f0b"}))


def boot(place: Machine) -> list[str]:
    """The names of what ``system boot`` started; nothing may fail."""
    done = place.command("system", "boot")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def running(place: Machine) -> set[str]:
    return set(place.command("ps", "--format", "{{.Names}}").stdout.split())


def test_after_a_power_cut(place: Machine, level: Level) -> None:
    with ExitStack() as stack:

        def begin(name: str, policy: str = "", **options: object) -> bulle.Container:
            return stack.enter_context(place.running(level, *LOOP, name=name, restart_policy=policy, **options))

        made = {name: begin(name, policy) for name, policy in (("a", "always"), ("u", "unless-stopped"), ("f", "on-failure"), ("n", ""))}
        for name, policy in (("sa", "always"), ("su", "unless-stopped"), ("sf", "on-failure")):
            begin(name, policy).stop(timeout_s=0)
        killed = begin("ku", "unless-stopped")
        killed.kill()
        gone_with_it = begin("r", auto_remove=True)
        stack.callback(place.create(level, *LOOP, name="never", restart_policy="always").remove, force=True)
        power_cut(place, *made.values(), gone_with_it)
        assert boot(place) == ["a", "u", "f", "sa"]
        assert running(place) == {"a", "u", "f", "sa"}
        assert boot(place) == []  # again: nothing is left to do
        ended = made["n"].state()
        assert (ended.status, ended.exit_code) == ("exited", -1)
        assert json.loads(Path(made["n"].directory, "state.json").read_text())["status"] == "exited", "the end is recorded"
        assert "machine went down" in made["n"].why()[0].sentence
        assert "r" not in place.command("ps", "-a", "--format", "{{.Names}}").stdout.split()
        assert made["a"].execute(bulle.ExecOptions(command=("true",)), detach=True) is None


def test_who_looks_first_starts_nothing_and_changes_nothing_of_it(box: Machine) -> None:
    with ExitStack() as stack:
        policies = {"a": "always", "f": "on-failure:1"}
        always, other = (stack.enter_context(box.running(BOX, *LOOP, name=name, restart_policy=policy)) for name, policy in policies.items())
        power_cut(box, always, other)
        assert "Exited" in box.command("ps", "-a").stdout
        time.sleep(0.5)
        assert running(box) == set()
        assert boot(box) == ["a", "f"]
        wait_for(lambda: [entry.data for entry in always.logs()] == [b"up\n"] * 2, "another run, and the first one's log")


def test_what_waited_to_be_started_again(box: Machine) -> None:
    with box.running(BOX, "sh", "-c", "exit 3", name="w", restart_policy="on-failure") as container:
        wait_for(lambda: container.state().restart_count > 3 and container.state().status == "restarting", "a longer wait")
        power_cut(box, container)
        assert running(box) == set()
        assert boot(box) == ["w"]
        wait_for(lambda: container.state().restart_count > 0, "its policy holds again")


def test_shutdown_and_boot(place: Machine, level: Level) -> None:
    with ExitStack() as stack:
        made = {}
        for name, policy in (("a", "always"), ("u", "unless-stopped"), ("f", "on-failure"), ("n", ""), ("s", "unless-stopped")):
            script = "trap 'echo asked; exit 0' TERM; echo up; while :; do sleep 0.1; done"
            made[name] = stack.enter_context(place.running(level, "sh", "-c", script, name=name, restart_policy=policy))
        for one in made.values():
            wait_for(lambda one=one: list(one.logs()), "it has begun")
        made["s"].stop()
        done = place.command("system", "shutdown")
        assert (done.returncode, done.stderr, set(done.stdout.split())) == (0, "", {"a", "u", "f", "n"})
        time.sleep(0.4)
        assert running(place) == set(), "no policy starts it at that moment"
        for name in ("a", "u", "f", "n"):
            assert [entry.data for entry in made[name].logs()] == [b"up\n", b"asked\n"], "its own signal, and its own time"
            assert made[name].why()[0].sentence.startswith(f"{name} was ended by `bulle system shutdown`")
        assert place.command("system", "shutdown").stdout == ""
        assert boot(place) == ["a", "u", "f"]
        assert running(place) == {"a", "u", "f"}


def test_shutdown_stops_all_at_once_and_kills_who_does_not_end(box: Machine) -> None:
    with ExitStack() as stack:
        for number in range(6):
            script = "trap '' TERM; echo up; while :; do sleep 0.1; done"
            one = stack.enter_context(box.running(BOX, "sh", "-c", script, name=f"deaf{number}", restart_policy="always", stop_timeout_s=60))
            wait_for(lambda one=one: list(one.logs()), "it is deaf")
        begun = time.monotonic()
        done = box.command("system", "shutdown", "-t", "5")
        assert done.returncode == 0
        assert 5 <= time.monotonic() - begun < 29, "all at once, each its five seconds"
        assert running(box) == set()
        assert box.engine.shutdown() == ()
        assert len(box.engine.boot()) == 6


def test_while_it_waits_to_be_started_again(box: Machine) -> None:
    with box.running(BOX, "sh", "-c", "exit 1", name="w", restart_policy="always") as container:
        wait_for(lambda: container.state().restart_count > 3 and container.state().status == "restarting", "a longer wait")
        assert [one.container for one in box.engine.shutdown()] == ["w"]
        assert container.state().status == "exited"
        assert boot(box) == ["w"]


def test_one_that_cannot_be_started_keeps_no_other(box: Machine, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    volume = tmp_path / "volume"
    volume.mkdir()
    with ExitStack() as stack:
        options = {"volumes": (bulle.VolumeOption(str(volume), "/volume", read_only=True),)}
        made = [
            stack.enter_context(box.running(BOX, *LOOP, name=name, restart_policy="on-failure", **more))
            for name, more in (("first", {}), ("broken", options), ("last", {}))
        ]
        power_cut(box, *made)
        volume.rmdir()
        done = box.command("system", "boot")
        assert done.returncode == 1
        assert done.stdout.split() == ["first", "last"]
        assert done.stderr.startswith("bulle: container broken: ")
        assert str(volume) in done.stderr
        (failed,) = box.engine.boot()
        assert failed.container == "broken"
        assert failed.error is not None
        volume.mkdir()
        assert boot(box) == ["broken"]


def test_what_cannot_be_collected_is_said_after_the_rest(box: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise OSError(28, "No space left on device")

    with box.running(BOX, *LOOP, name="a", restart_policy="always") as container:
        power_cut(box, container)
        monkeypatch.setattr(box.engine, "gc", fail)
        first, last = box.engine.boot()
        assert (first.container, first.error, last.container) == ("a", None, "")
        assert "No space left on device" in str(last.error)
        assert container.state().status == "running"


def test_without_a_spawner(box: Machine) -> None:
    """Monitors are made the slow way then, also from several threads."""
    with ExitStack() as stack:
        made = [stack.enter_context(box.running(BOX, *LOOP, name=name, restart_policy="always")) for name in ("one", "two", "three")]
        power_cut(box, *made)
        box.environment["BULLE_NO_SPAWNER"] = "1"
        try:
            assert boot(box) == ["one", "two", "three"]
            assert box.command("system", "shutdown", "-t", "0").returncode == 0
        finally:
            del box.environment["BULLE_NO_SPAWNER"]
        assert running(box) == set()


def test_a_build_that_the_machine_interrupted_leaves_nothing(box: Machine) -> None:
    left = box.home / "containers" / ("e" * 64)
    left.mkdir()
    (left / "rest").write_text("rest")
    os.utime(left, (1, 1))
    assert boot(box) == []
    assert not left.exists()


OTHER = ContainerState(status="exited", exit_code=-1, boot_id="another", started_at_ns=1, finished_at_ns=2)
HERE = ContainerState(status="exited", exit_code=1, boot_id=process.boot_id(), started_at_ns=1, finished_at_ns=2)


@pytest.mark.parametrize(
    ("policy", "state", "verb", "expected"),
    [
        (RestartPolicy("no"), OTHER, "system shutdown", False),
        (RestartPolicy("always"), HERE, "stop", True),
        (RestartPolicy("always"), HERE, "rm", False),
        (RestartPolicy("always"), ContainerState(), "", False),
        (RestartPolicy("always"), ContainerState(exit_code=125, finished_at_ns=1), "", True),
        (RestartPolicy("unless-stopped"), HERE, "", True),
        (RestartPolicy("unless-stopped"), HERE, "restart", True),
        (RestartPolicy("unless-stopped"), OTHER, "stop", False),
        (RestartPolicy("unless-stopped"), OTHER, "kill", False),
        (RestartPolicy("on-failure"), HERE, "", False),
        (RestartPolicy("on-failure"), HERE, "system shutdown", True),
        (RestartPolicy("on-failure"), OTHER, "", True),
        (RestartPolicy("on-failure"), OTHER, "stop", False),
        (RestartPolicy("on-failure", 2), ContainerState(status="running", boot_id="another", restart_count=1), "", True),
        (RestartPolicy("on-failure", 2), ContainerState(status="running", boot_id="another", restart_count=2), "", False),
        (RestartPolicy("on-failure"), ContainerState(exit_code=127, finished_at_ns=1), "", True),
    ],
)
def test_the_rule(policy: RestartPolicy, state: ContainerState, verb: str, expected: bool) -> None:
    assert starts_at_boot(policy, state, Intent(verb, "SIGTERM", 0, 0) if verb else None) is expected
