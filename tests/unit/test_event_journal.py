"""The journal of events: nothing is lost or torn by writers at once, by its being cut, by a full disk, or by what a power cut leaves."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import resource
import select
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bulle.engine.events import Events
from bulle.errors import InvalidInput
from bulle.linux import inotify
from bulle.records import events
from bulle.records.events import Event, Following, container_attributes, describe_container, publish, publish_container, read

CONTAINER = "c" * 64


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Journals that are put away after some twenty events."""
    monkeypatch.setattr(events, "LARGEST_BYTES", 4096)


def journal(home: Path) -> Path:
    return home / "events" / "journal"


def said(found: list[Event]) -> list[str]:
    return [event.action for event in found]


def run_at_once(work: Callable[[int], None], count: int) -> None:
    """In processes of their own."""
    processes = [multiprocessing.get_context("fork").Process(target=work, args=(number,)) for number in range(count)]
    for one in processes:
        one.start()
    for one in processes:
        one.join()
        assert one.exitcode == 0
        one.close()


def test_events_come_back_as_they_were(tmp_path: Path) -> None:
    before = time.time_ns()
    publish(tmp_path, "container", "create", CONTAINER, {"name": "web", "image": "busybox"})
    publish(str(tmp_path), "image", "pull", "busybox:latest", {})
    first, second = read(tmp_path)
    assert (first.kind, first.action, first.actor.identifier, first.actor.attributes) == (
        "container", "create", CONTAINER, {"name": "web", "image": "busybox"},
    )  # fmt: skip
    assert (second.kind, second.action, second.scope) == ("image", "pull", "local")
    assert before <= first.time_ns <= second.time_ns <= time.time_ns()
    assert first.time_s == first.time_ns // 1_000_000_000
    assert said(list(read(tmp_path, since_ns=second.time_ns))) == ["pull"]
    assert said(list(read(tmp_path, until_ns=first.time_ns))) == ["create"]
    assert list(read(tmp_path, until_ns=before)) == []
    assert journal(tmp_path).stat().st_mode & 0o777 == 0o600


def test_a_home_without_events_has_none(tmp_path: Path) -> None:
    assert list(read(tmp_path)) == []
    publish(tmp_path / "nosuch", "container", "create", CONTAINER, {})  # nothing is raised
    assert not (tmp_path / "nosuch").exists()


def test_writers_at_once_lose_nothing_and_keep_the_order(tmp_path: Path) -> None:
    def write(writer: int) -> None:
        for number in range(200):
            publish(tmp_path, "container", "start", str(writer), {"number": str(number), "padding": "x" * 300})

    run_at_once(write, 4)
    found = list(read(tmp_path))
    for writer in range(4):
        assert [int(one.actor.attributes["number"]) for one in found if one.actor.identifier == str(writer)] == list(range(200))
    assert [one.time_ns for one in found] == sorted(one.time_ns for one in found)


def test_the_journal_is_bounded_and_who_follows_misses_nothing(tmp_path: Path, small: None) -> None:
    def write(writer: int) -> None:
        for number in range(100):
            publish(tmp_path, "container", "start", str(writer), {"number": str(number)})
            time.sleep(0.0002)

    received: dict[str, list[int]] = {"0": [], "1": []}
    with Following(tmp_path) as following:
        writers = threading.Thread(target=run_at_once, args=(write, 2))
        writers.start()
        for _ in range(200):
            event = next(following)
            received[event.actor.identifier].append(int(event.actor.attributes["number"]))
        writers.join()
    assert received == {"0": list(range(100)), "1": list(range(100))}
    assert sorted(os.listdir(tmp_path / "events")) == ["journal", "journal.1"]
    assert sum(path.stat().st_size for path in (tmp_path / "events").iterdir()) < 3 * 4096
    kept = [int(event.actor.attributes["number"]) for event in read(tmp_path) if event.actor.identifier == "1"]
    assert kept == list(range(100 - len(kept), 100))
    assert 0 < len(kept) < 100


def test_who_follows_slowly_reads_the_journals_that_are_left(tmp_path: Path, small: None) -> None:
    with Following(tmp_path) as following:
        for number in range(80):
            publish(tmp_path, "container", str(number), CONTAINER, {})
        numbers = [int(next(following).action)]
        while numbers[-1] < 79:
            numbers.append(int(next(following).action))
    # It had the first journal open, and the last two are kept: what was between them is gone, but nothing comes twice or in another order.
    assert numbers == sorted(set(numbers))
    assert numbers[0] == 0
    assert len(numbers) > 40


@pytest.mark.parametrize("watched", [True, False], ids=["inotify", "without"])
def test_following_begins_now_or_where_it_is_told(tmp_path: Path, watched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not watched:

        def refuse() -> int:
            raise OSError(24, "Too many open files")

        monkeypatch.setattr(inotify, "inotify_init", refuse)
    publish(tmp_path, "container", "create", CONTAINER, {})
    with Following(tmp_path) as following:
        later = threading.Timer(0.2, publish, (tmp_path, "container", "start", CONTAINER, {}))
        later.start()
        assert next(following).action == "start"
        later.join()
    with Following(tmp_path, since_ns=1) as following:
        assert said([next(following), next(following)]) == ["create", "start"]
    begun = time.monotonic()
    with Following(tmp_path, since_ns=1, until_ns=time.time_ns() + 300_000_000) as following:
        assert said(list(following)) == ["create", "start"]
    assert 0.25 < time.monotonic() - begun < 60


def test_following_ends_with_the_home(tmp_path: Path) -> None:
    with Following(tmp_path) as following:
        publish(tmp_path, "container", "destroy", CONTAINER, {})
        journal(tmp_path).unlink()
        (tmp_path / "events").rmdir()
        assert said(list(following)) == ["destroy"]


def test_what_is_torn_is_passed_over(tmp_path: Path) -> None:
    publish(tmp_path, "container", "create", CONTAINER, {})
    with journal(tmp_path).open("ab") as file:
        file.write(b'{"Type":"container","Action":"st')
    publish(tmp_path, "container", "die", CONTAINER, {})
    with journal(tmp_path).open("ab") as file:
        file.write(b"\0" * 500 + b'\n[1, 2]\n{"Type": 3}\n\xff\xfe\n')
    publish(tmp_path, "container", "destroy", CONTAINER, {})
    assert said(list(read(tmp_path))) == ["create", "die", "destroy"]


def test_a_full_disk_loses_an_event_and_leaves_no_half_of_it(tmp_path: Path) -> None:
    publish(tmp_path, "container", "create", CONTAINER, {})
    size = journal(tmp_path).stat().st_size

    def write(_: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, size + 50))
        publish(tmp_path, "container", "start", CONTAINER, {})

    run_at_once(write, 1)
    assert journal(tmp_path).stat().st_size == size
    publish(tmp_path, "container", "die", CONTAINER, {})
    assert said(list(read(tmp_path))) == ["create", "die"]


def test_a_writer_that_stands_still_with_the_lock_stops_nobody(tmp_path: Path) -> None:
    publish(tmp_path, "container", "create", CONTAINER, {})
    with journal(tmp_path).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        begun = time.monotonic()
        publish(tmp_path, "container", "start", CONTAINER, {})
        assert time.monotonic() - begun < 20
    assert said(list(read(tmp_path))) == ["create", "start"]


def test_bytes_that_are_no_text_do_not_stop_an_event(tmp_path: Path) -> None:
    publish(tmp_path, "container", "exec_create: \udcff", CONTAINER, {"label": "\udcfe"})
    (event,) = read(tmp_path)
    assert (event.action, event.actor.attributes) == ("exec_create: ?", {"label": "?"})


def test_a_container_is_described_once(tmp_path: Path) -> None:
    directory = tmp_path / "containers" / CONTAINER
    directory.mkdir(parents=True)
    publish_container(str(directory), "start")  # a step of a build: nobody described it
    assert container_attributes(str(directory)) is None
    describe_container(str(directory), {"name": "web", "image": "busybox"})
    publish_container(str(directory), "die", exitCode="3")
    describe_container(str(directory), {"name": "other", "image": "busybox"})
    publish_container(str(directory), "start")
    first, second = read(tmp_path)
    assert (first.actor.identifier, first.actor.attributes) == (CONTAINER, {"name": "web", "image": "busybox", "exitCode": "3"})
    assert second.actor.attributes == {"name": "other", "image": "busybox"}


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        ({}, "create exec_create: sh start destroy pull tag health_status: healthy"),
        ({"type": ["image"]}, "pull tag"),
        ({"type": ["image", "container"], "event": ["start", "tag"]}, "start tag"),
        ({"event": ["exec_create"]}, "exec_create: sh"),
        ({"event": ["exec_create: sh"]}, "exec_create: sh"),
        ({"event": ["exec"]}, ""),
        ({"event": ["health_status"]}, "health_status: healthy"),
        ({"event": ["health_status: healthy"]}, "health_status: healthy"),
        ({"container": ["we"]}, "create exec_create: sh"),
        ({"container": ["web", "other"]}, "create exec_create: sh start destroy health_status: healthy"),
        ({"container": ["cc"]}, "create exec_create: sh"),
        ({"label": ["a"]}, "create start"),
        ({"label": ["a=b"]}, "create"),
        ({"label": ["a=b", "c"]}, ""),
        ({"image": ["busybox"]}, "create exec_create: sh pull tag"),
        ({"image": ["127.0.0.1:5000/x/app"]}, "start"),
        ({"image": ["127.0.0.1:5000/x/app:1"]}, "start"),
        ({"image": ["sha256:11"]}, "tag"),
        ({"network": ["web"]}, ""),
        ({"scope": ["local"], "type": ["image"]}, "pull tag"),
        ({"scope": ["swarm"]}, ""),
    ],
)
def test_filters(tmp_path: Path, filters: dict[str, list[str]], wanted: str) -> None:
    other = "d" * 64
    publish(tmp_path, "container", "create", CONTAINER, {"name": "web", "image": "busybox", "a": "b"})
    publish(tmp_path, "container", "exec_create: sh", CONTAINER, {"name": "web", "image": "busybox"})
    publish(tmp_path, "container", "start", other, {"name": "other", "image": "127.0.0.1:5000/x/app:1", "a": "c"})
    publish(tmp_path, "container", "destroy", other, {"name": "other", "image": "made"})
    publish(tmp_path, "image", "pull", "busybox:latest", {"name": "busybox"})
    publish(tmp_path, "image", "tag", "sha256:11", {"name": "busybox:1"})
    publish(tmp_path, "container", "health_status: healthy", other, {"name": "other"})
    assert " ".join(said(list(Events(tmp_path, follow=False, filters=filters)))) == wanted


def test_what_cannot_be_asked_for_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="invalid filter 'colour'"):
        Events(tmp_path, filters={"colour": ["red"]})
    with pytest.raises(InvalidInput, match="since"):
        Events(tmp_path, since_ns=2, until_ns=1)
    assert not (tmp_path / "events").exists()


def test_what_arrived_meanwhile_is_told_without_waiting(tmp_path: Path, small: None) -> None:
    publish(tmp_path, "container", "before", CONTAINER, {})
    with Following(tmp_path) as following:
        assert following.arrived() == []
        for number in range(100):  # several journals
            publish(tmp_path, "container", f"number {number}", CONTAINER, {})
            if number % 10 == 0:
                assert said(following.arrived())[-1] == f"number {number}"
        assert said(following.arrived()) == [f"number {number}" for number in range(91, 100)]
        assert following.arrived() == []
        poll = select.poll()
        poll.register(following.fileno(), select.POLLIN)
        assert poll.poll(0) == [], "nothing has happened since"
        publish(tmp_path, "container", "one more", CONTAINER, {})
        assert poll.poll(5000) and said(following.arrived()) == ["one more"]
