"""``events``, ``rename``, ``restart`` and ``wait --condition``: what the command line and the library tell of real containers and images."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Sequence

import pytest

from bulle.errors import Conflict, InvalidInput, NotFound
from bulle_testing.running import LEVELS, PATIENCE_S, Level, Machine, wait_for

BOX = LEVELS[0]


class Since:
    """What happened in a home since this was made, as a program and as a user see it."""

    def __init__(self, place: Machine) -> None:
        self.place = place
        self.begun_ns = time.time_ns()

    def actions(self, **filters: Sequence[str]) -> list[str]:
        """The actions of the events until now."""
        with self.place.engine.events(since_ns=self.begun_ns, follow=False, filters=filters) as found:
            return [event.action for event in found]

    def printed(self, *flags: str, form: str = "") -> list[str]:
        """The lines of the command."""
        until = f"{time.time():.9f}"
        wanted = [] if not form else ["--format", form]
        done = self.place.command("events", "--since", f"{self.begun_ns / 1e9:.9f}", "--until", until, *flags, *wanted)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()


def test_the_life_of_a_container(place: Machine, level: Level) -> None:
    since = Since(place)
    assert place.command("run", *level.flags, "--name", "life", "--label", "kind=short", "busybox", "sh", "-c", "exit 3").returncode == 3
    place.command("start", "life")
    place.engine.containers.get("life").wait()
    assert place.command("rm", "life").returncode == 0
    assert since.actions(type=["container"]) == ["create", "attach", "start", "die", "start", "die", "destroy"]
    (first, second) = since.printed("-f", "event=die", form="json")
    event = json.loads(first)
    assert (event["Type"], event["status"], event["from"], event["scope"]) == ("container", "die", "busybox", "local")
    assert event["id"] == event["Actor"]["ID"]
    assert event["Actor"]["Attributes"] == {"image": "busybox", "name": "life", "kind": "short", "exitCode": "3"}
    assert event["time"] == event["timeNano"] // 1_000_000_000
    assert json.loads(second)["timeNano"] > event["timeNano"]
    line = since.printed("-f", "event=destroy")[0]
    moment = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}(Z|[+-]\d\d:\d\d)"
    assert re.fullmatch(rf"{moment} container destroy {event['id']} \(image=busybox, kind=short, name=life\)", line)
    assert since.printed("-f", "event=create", form="{{.Action}} {{.Actor.Attributes.name}} {{.Type}}") == ["create life container"]


def test_what_commands_do_to_one_that_runs(place: Machine, level: Level) -> None:
    since = Since(place)
    with place.running(level, "sh", "-c", "trap '' USR1 TERM; echo deaf; exec sleep 1000", name="busy") as container:
        wait_for(lambda: list(container.logs()), "it is deaf")
        assert place.command("exec", "busy", "sh", "-c", "exit 4").returncode == 4
        place.command("kill", "-s", "USR1", "busy")
        place.command("rename", "busy", "lazy")
        place.command("restart", "-t", "0", "lazy")
        wait_for(lambda: len(list(container.logs())) == 2, "it is deaf again")
        place.command("top", "lazy")
        place.command("stop", "-t", "0", "lazy")
    found = since.actions(container=[container.id])
    assert found == [
        *("create", "start", "exec_create: sh -c exit 4", "exec_start: sh -c exit 4", "exec_die", "kill", "rename"),
        *("kill", "kill", "die", "stop", "start", "restart", "top", "kill", "kill", "die", "stop", "destroy"),
    ]
    assert len(set(since.printed("-f", "event=exec_create", "-f", "event=exec_die", form="{{.Actor.Attributes.execID}}"))) == 1
    assert since.printed("-f", "event=exec_die", form="{{.Actor.Attributes.exitCode}}") == ["4"]
    assert since.printed("-f", "event=rename", form="{{.Actor.Attributes.oldName}} {{.Actor.Attributes.name}}") == ["/busy lazy"]
    assert since.printed("-f", "event=kill", form="{{.Actor.Attributes.signal}}") == ["10", "15", "9", "15", "9"]


def test_what_monitors_do(box: Machine) -> None:
    """Restarts by a policy, health, and removal at the end, which no command tells."""
    since = Since(box)
    with box.running(BOX, "sh", "-c", "exit 1", restart_policy="on-failure:2") as container:
        container.wait()
    assert since.actions(container=[container.id]) == ["create", *["start", "die"] * 3, "destroy"]
    with box.running(BOX, health_command="true", health_interval_ns=50_000_000) as container:
        wait_for(lambda: since.actions(event=["health_status: healthy"]), "the word of its health")
    since = Since(box)
    assert box.command("run", "-d", "--rm", "busybox", "true").returncode == 0
    wait_for(lambda: "destroy" in since.actions(), "its removal")
    assert since.actions() == ["create", "start", "die", "destroy"]


def test_images(box: Machine) -> None:
    since = Since(box)
    box.command("tag", "busybox", "events/other:1")
    box.command("rmi", "events/other:1")
    assert since.actions(type=["image"]) == ["tag", "untag"]
    assert since.printed("-f", "event=tag", form="{{.Actor.Attributes.name}}") == ["events/other:1"]


def test_following(box: Machine) -> None:
    """The command says what happens when it happens, and ends without a word when it is interrupted."""
    box.command("create", "--name", "before", "busybox", "true")
    following = box.start_command(
        "events", "--filter", "type=container", "--format", "{{.Action}} {{.Actor.Attributes.name}}", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert following.stdout is not None
        seen: list[str] = []
        reader = threading.Thread(target=lambda: seen.extend(line.decode().strip() for line in following.stdout or ()))
        reader.start()
        deadline = time.monotonic() + PATIENCE_S
        while not seen and time.monotonic() < deadline:  # until it has begun to listen
            box.command("create", "--name", "probe", "busybox", "true")
            box.command("rm", "probe")
            time.sleep(0.1)
        box.command("rm", "before")
        wait_for(lambda: "destroy before" in seen, "the event")
        assert "create before" not in seen, "it tells what is to come"
    finally:
        following.send_signal(signal.SIGINT)
        code = following.wait(PATIENCE_S)
        reader.join(PATIENCE_S)
        errors = following.stderr.read() if following.stderr else b""
        for stream in (following.stdout, following.stderr):
            if stream is not None:
                stream.close()
    assert (code, errors) == (130, b"")


def test_until_a_moment_to_come(box: Machine) -> None:
    begun = time.monotonic()
    done = box.command("events", "--until", f"{time.time() + 1:.3f}", "--filter", "event=nosuch")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert 0.9 < time.monotonic() - begun < 60
    with box.engine.events(until_ns=time.time_ns() + 400_000_000, filters={"event": ["destroy"], "container": ["later"]}) as found:
        box.command("create", "--name", "later", "busybox", "true")
        box.command("rm", "later")
        assert [event.actor.attributes["name"] for event in found] == ["later"]


@pytest.mark.parametrize("wrong", [("--filter", "colour=red"), ("--filter", "type"), ("--since", "yesterday"), ("--since", "1s", "--until", "2s")])
def test_wrong_questions(box: Machine, wrong: tuple[str, ...]) -> None:
    done = box.command("events", *wrong)
    assert done.returncode != 0
    assert done.stderr.startswith("bulle: ")
    assert "Traceback" not in done.stderr


# rename


def test_rename(place: Machine, level: Level) -> None:
    with place.running(level, name="old") as container:
        hostname = place.execute(container, "hostname").stdout
        assert place.command("rename", "old", "new").returncode == 0
        assert place.command("ps", "--format", "{{.Names}}").stdout == "new\n"
        assert place.engine.containers.get("new").id == container.id
        assert place.command("inspect", "--format", "{{.Name}}", "new").stdout == "/new\n"
        assert place.execute(container, "hostname").stdout == hostname
        with pytest.raises(NotFound):
            place.engine.containers.get("old")
        place.create(level, "true", name="old")  # its name is free
        assert place.command("rm", "old").returncode == 0


def test_names_that_cannot_be(box: Machine) -> None:
    one, other = box.create(BOX, "true", name="one"), box.create(BOX, "true", name="other")
    with pytest.raises(Conflict, match="'other' is taken"):
        one.rename("other")
    with pytest.raises(InvalidInput):
        one.rename("one")
    for wrong in ("", "no spaces", "../escape", "-flag"):
        done = box.command("rename", "--", "one", wrong)
        assert done.returncode == 1
        assert done.stderr.startswith("bulle: ")
    assert box.command("rename", "nosuch", "x").returncode == 1
    assert sorted(container.name for container in box.engine.containers.list(all=True)) == ["one", "other"]
    stale = box.engine.containers.get("one")
    one.remove()
    with pytest.raises(NotFound):
        stale.rename("later")
    other.remove()


# restart


def test_restart(place: Machine, level: Level) -> None:
    script = "trap 'echo asked; exit 0' TERM; echo up; while :; do sleep 0.1; done"
    with place.running(level, "sh", "-c", script, name="again") as container:
        wait_for(lambda: list(container.logs()), "it has begun")
        before = container.state()
        done = place.command("restart", "again")
        assert (done.returncode, done.stdout) == (0, "again\n")
        after = container.state()
        assert after.status == "running"
        assert (after.pid, after.started_at_ns > before.started_at_ns) != (before.pid, False)
        assert after.restart_count == 0, "no policy did it"
        wait_for(lambda: len(list(container.logs())) == 3, "another run")
        assert [entry.data for entry in container.logs()] == [b"up\n", b"asked\n", b"up\n"]
        container.stop(timeout_s=1)
        container.restart()
        assert container.state().status == "running", "one that had ended is started"


def test_restart_goes_on_after_one_that_fails(box: Machine) -> None:
    with box.running(BOX, name="there") as container:
        pid = container.state().pid
        done = box.command("restart", "-t", "0", "nosuch", "there")
        assert (done.returncode, done.stdout) == (1, "there\n")
        assert "no such container: nosuch" in done.stderr
        assert container.state().pid != pid


def test_restart_under_a_policy(box: Machine) -> None:
    """Stopped and started once, not twice."""
    with box.running(BOX, "sh", "-c", "echo up; sleep 1000", restart_policy="always") as container:
        container.restart(timeout_s=0)
        time.sleep(0.5)
        assert [entry.data for entry in container.logs()] == [b"up\n"] * 2
        assert container.state().restart_count == 0
        pid = container.state().pid
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: container.state().status == "running" and container.state().pid != pid, "its policy holds on")


# wait


def waiting(place: Machine, name: str, condition: str) -> subprocess.Popen[bytes]:
    return place.start_command("wait", "--condition", condition, name, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def answer(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    out, _ = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out.decode()


def test_wait_for_the_next_exit(place: Machine, level: Level) -> None:
    container = place.create(level, "sh", "-c", "sleep 0.3; exit 7", name="next")
    try:
        assert place.command("wait", "next").stdout == "0\n", "it never ran, so there is nothing to wait for"
        process = waiting(place, "next", "next-exit")
        time.sleep(0.3)
        assert process.poll() is None
        container.start()
        assert answer(process) == (0, "7\n")
        assert container.wait() == 7
        process = waiting(place, "next", "next-exit")
        time.sleep(0.4)
        assert process.poll() is None, "the last exit is not the next"
        container.start()
        assert answer(process) == (0, "7\n")
    finally:
        container.remove(force=True)


def test_wait_until_it_is_removed(place: Machine, level: Level) -> None:
    container = place.create(level, "sh", "-c", "exit 5", name="until")
    container.start()
    container.wait()
    process = waiting(place, "until", "removed")
    time.sleep(0.5)
    assert process.poll() is None
    container.remove()
    assert answer(process) == (0, "5\n")


def test_wait_for_what_is_removed_instead(box: Machine) -> None:
    container = box.create(BOX, "true", name="never")
    process = waiting(box, "never", "next-exit")
    time.sleep(0.5)
    container.remove()
    assert answer(process)[0] == 1


def test_wait_beyond_restarts(box: Machine) -> None:
    with box.running(BOX, "sh", "-c", "sleep 0.2; exit 9", restart_policy="on-failure:2") as container:
        assert container.wait() == 9
        assert container.state().restart_count == 2, "a restart is not the end"
    with box.running(BOX, "sh", "-c", "sleep 0.3; exit 9", restart_policy="on-failure:2") as container:
        assert container.wait("next-exit") == 9
        assert container.state().restart_count < 2


def test_a_condition_that_is_none(box: Machine) -> None:
    assert box.command("wait", "--condition", "healthy", "x").returncode == 125
    with box.running(BOX) as container, pytest.raises(InvalidInput, match="not-running, next-exit, removed"):
        container.wait("healthy")  # type: ignore[arg-type]


# ps


def test_ps_shows_sizes(place: Machine, level: Level) -> None:
    with place.running(level, "sh", "-c", "head -c 3000000 /dev/zero > /large; sleep 1000", name="writer") as container:
        wait_for(lambda: container.sizes()[0] >= 3_000_000, "what it writes")
        own, whole = container.sizes()
        assert 3_000_000 <= own < 3_500_000 < whole, "on a disk of its own with what a file system adds"
        line = place.command("ps", "-s", "--format", "table {{.Names}}\\t{{.Size}}").stdout.splitlines()[1]
        assert re.fullmatch(r"writer\s+3(\.[0-4]\d*)?MB \(virtual [\d.]+MB\)", line.strip())
        table = place.command("ps", "-s").stdout.splitlines()
        assert table[0].split()[-1] == "SIZE"
        assert re.match(r"3(\.[0-4]\d*)?MB \(virtual", place.command("ps", "--format", "{{.Size}}").stdout)
        assert "SIZE" not in place.command("ps").stdout


def test_ps_by_health_and_age(box: Machine) -> None:
    def names(*flags: str) -> list[str]:
        done = box.command("ps", *flags, "--format", "{{.Names}}")
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    options = {"health_interval_ns": 50_000_000, "health_retries": 1}
    with (
        box.running(BOX, name="well", health_command="true", **options) as well,
        box.running(BOX, name="ill", health_command="false", **options) as ill,
        box.running(BOX, name="unknown"),
    ):
        gone = box.create(BOX, "true", name="gone")
        wait_for(lambda: [one.state().health.status for one in (well, ill) if one.state().health] == ["healthy", "unhealthy"], "both answers")
        assert names("-f", "health=healthy") == ["well"]
        assert names("-f", "health=unhealthy", "-f", "health=healthy") == ["ill", "well"]
        assert names("-f", "health=none") == ["unknown"]
        assert names("-a", "-f", "health=none") == ["gone", "unknown"]
        assert names("-f", "health=starting") == []
        assert names("-l") == ["gone"]
        assert names("-n", "2") == ["gone", "unknown"]
        assert names("-n", "1", "-f", "status=running") == ["unknown"]
        assert names("-a", "-f", "since=well", "-f", "before=gone") == ["unknown", "ill"]
        assert names("-f", f"id={ill.id[:8]}") == ["ill"]
        assert names("-f", "ancestor=busybox", "-f", "name=^w") == ["well"]
        assert box.command("ps", "-f", "health=ill").returncode == 1
        gone.remove()
