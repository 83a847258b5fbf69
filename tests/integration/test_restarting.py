"""``restart``, ``rename``, ``wait --condition`` and ``events`` of real containers, at every level: what changes, what stays, and who is told."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

import bulle
from bulle.errors import Conflict, InvalidInput, NotFound
from bulle_testing.running import Level, Machine, wait_for

LOOP = "trap 'exit 5' TERM; echo begun; while :; do sleep 0.02; done"


def begun(container: bulle.Container) -> int:
    return [entry.data for entry in container.logs()].count(b"begun\n")


def actions(place: Machine, since_ns: int, **filters: str) -> list[str]:
    chosen = {key: [value] for key, value in filters.items()}
    with place.engine.events(since_ns=since_ns, follow=False, filters=chosen) as found:
        return [event.action for event in found]


def test_restart_ends_and_starts(place: Machine, level: Level) -> None:
    with place.running(level, "sh", "-c", LOOP, name="again") as container:
        wait_for(lambda: begun(container) == 1, "the first run")
        first, since = container.state(), time.time_ns()
        assert place.command("restart", "again").stdout == "again\n"
        second = container.state()
        assert (second.status, second.pid == first.pid) == ("running", False)
        assert second.started_at_ns > first.started_at_ns
        wait_for(lambda: begun(container) == 2, "the second run")
        assert actions(place, since, container="again") == ["kill", "die", "stop", "start", "restart"]
        container.stop()
        assert container.state().exit_code == 5
        container.restart()
        assert container.state().status == "running"
        wait_for(lambda: begun(container) == 3, "the third run")
        done = place.command("restart", "-t", "0", "-s", "WINCH", "again", "nosuch")
        assert (done.returncode, done.stdout) == (1, "again\n")
        assert "no such container: nosuch" in done.stderr
    made = place.create(level, "sh", "-c", LOOP, name="made")
    made.restart()
    assert made.state().status == "running"
    made.remove(force=True)


def test_restart_of_what_goes_with_its_end(place: Machine, level: Level) -> None:
    """``--rm`` counts for the last end, not for that of a restart."""
    assert place.command("run", "-d", "--rm", "--name", "brief", *level.flags, "busybox", "sh", "-c", LOOP).returncode == 0
    container = place.engine.containers.get("brief")
    wait_for(lambda: begun(container) == 1, "the first run")
    assert place.command("restart", "brief").returncode == 0
    assert container.state().status == "running"
    wait_for(lambda: begun(container) == 2, "the second run")
    container.stop()
    wait_for(lambda: not place.engine.containers.list(all=True), "its removal")
    since = time.time_ns()
    with place.start_command("run", "--rm", "--name", "brief", *level.flags, "busybox", "sh", "-c", LOOP, stdout=subprocess.PIPE) as shown:
        assert shown.stdout is not None
        assert shown.stdout.readline() == b"begun\n"
        assert place.command("restart", "brief").returncode == 0
        assert shown.wait(20) == 5  # as in Docker whoever waits for the run sees its end
    attached = place.engine.containers.get("brief")
    assert attached.state().status == "running"
    wait_for(lambda: begun(attached) == 2, "the second run")
    attached.stop()
    wait_for(lambda: not place.engine.containers.list(all=True), "its removal")
    assert actions(place, since, container="brief") == (
        "create attach start kill die stop start restart kill die destroy stop".split()  # noqa: SIM905 - reads as a life
    )


def test_rename_while_it_runs(place: Machine, level: Level) -> None:
    with place.running(level, name="before", hostname="host-name") if level.name != "chroot" else place.running(level, name="before") as container:
        other = place.create(level, "true", name="other")
        host_name = place.execute(container, "hostname").stdout
        since = time.time_ns()
        assert place.command("rename", "before", "after").returncode == 0
        assert place.engine.containers.get("after").id == container.id
        with pytest.raises(NotFound):
            place.engine.containers.get("before")
        renamed = place.engine.containers.get("after")
        assert place.execute(renamed, "hostname").stdout == host_name
        for name, error in (("other", Conflict), ("after", InvalidInput), ("a/b", InvalidInput), ("", InvalidInput)):
            with pytest.raises(error):
                renamed.rename(name)
        assert renamed.name == "after"
        with place.engine.events(since_ns=since, follow=False, filters={"event": ["rename"]}) as found:
            assert [one.actor.attributes for one in found] == [{"image": "busybox", "name": "after", "oldName": "/before"}]
        renamed.stop(timeout_s=0)
        other.remove()
        renamed.rename("before")
        renamed.remove()


def test_wait_conditions(place: Machine, level: Level) -> None:
    container = place.create(level, "sh", "-c", LOOP, name="waited")
    assert place.command("wait", "waited").stdout == "0\n"  # as Docker says of what never ran
    waiting = {
        condition: place.start_command("wait", "--condition", condition, "waited", stdout=subprocess.PIPE) for condition in ("next-exit", "removed")
    }
    time.sleep(0.3)
    container.start()
    running = place.start_command("wait", "waited", stdout=subprocess.PIPE)
    wait_for(lambda: begun(container), "its start")
    assert {one.poll() for one in (*waiting.values(), running)} == {None}
    container.stop()
    assert (waiting["next-exit"].communicate(timeout=240)[0], running.communicate(timeout=20)[0]) == (b"5\n", b"5\n")
    assert container.wait() == 5
    late = place.start_command("wait", "--condition", "next-exit", "waited", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(0.3)
    assert (waiting["removed"].poll(), late.poll()) == (None, None)
    container.remove()
    assert waiting["removed"].communicate(timeout=240)[0] == b"5\n"
    _, said = late.communicate(timeout=240)
    assert (late.returncode, b"was removed" in said) == (1, True)
    done = place.command("wait", "--condition", "asleep", "waited")
    assert (done.returncode, "not-running, next-exit, removed" in done.stderr) == (125, True)


def test_events_are_shown_as_they_happen(place: Machine, level: Level) -> None:
    form = "{{.Action}} {{.Actor.Attributes.name}}"
    with place.start_command("events", "--filter", "type=container", "--format", form, stdout=subprocess.PIPE) as shown:
        assert shown.stdout is not None
        wait_for(lambda: (place.home / "events").exists(), "the first look")
        time.sleep(0.3)
        container = place.create(level, "true", name="seen")
        assert shown.stdout.readline() == b"create seen\n"
        container.remove()
        assert shown.stdout.readline() == b"destroy seen\n"
        shown.terminate()
    begin = time.monotonic()
    until = time.time() + 0.5
    with place.start_command("events", "--until", f"{until:.6f}", "--format", "json", stdout=subprocess.PIPE) as shown:
        place.create(level, "true", name="unseen").remove()
        lines = shown.communicate(timeout=240)[0].splitlines()
    assert time.monotonic() - begin > 0.4
    assert json.loads(lines[-1])["Actor"]["Attributes"] == {"image": "busybox", "name": "unseen"}


def test_what_a_build_does_is_no_event_of_containers(place: Machine, level: Level, tmp_path: Path) -> None:
    (tmp_path / "Containerfile").write_text("FROM busybox\nRUN echo built >/file\n")
    since = time.time_ns()
    assert place.command("build", "-q", "-t", f"built-{level.name}:1", "--no-cache", str(tmp_path)).returncode == 0
    assert actions(place, since, type="container") == []
    assert actions(place, since, type="image") == ["tag"]
    place.engine.images.remove(f"built-{level.name}:1")
