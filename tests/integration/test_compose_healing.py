"""Apps that are kept as they should be: what dies is there again, what is ill is replaced, what is busy has more replicas, outside nobody notices."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from bulle.records.events import read
from bulle_testing import places
from bulle_testing.networking import SERVER, Networked, ask, free_ports
from bulle_testing.running import wait_for

pytestmark = [pytest.mark.alone, pytest.mark.root, pytest.mark.programs("nft", "ip", "unshare", "nsenter")]
ARCHIVE = "python_archive"
NAME = "shop"
# Busy while it is told so by a file.
BUSY = "import os, time\nwhile True:\n    if not os.path.exists('/tmp/work'): time.sleep(0.05)"
CHECK = {"test": ["CMD-SHELL", "test ! -e /tmp/ill"], "interval": "100ms", "retries": 1}


class Running:
    """An app of the tests."""

    def __init__(self, net: Networked, file: Path) -> None:
        self.net = net
        self._file = file
        self._since_ns = time.time_ns()

    def __call__(self, *arguments: str) -> str:
        """``bulle compose`` on it, which must succeed."""
        return self.net("compose", "-p", NAME, "-f", self._file, *arguments)

    def up(self, *, wait: bool = True, **services: dict[str, Any]) -> None:
        """Have these services run, and be well."""
        defaults = {"image": "python", "volumes": [{"type": "bind", "source": "/usr", "target": "/usr", "read_only": True}], "stop_signal": "SIGKILL"}
        self._file.write_text(yaml.safe_dump({"services": {name: defaults | one for name, one in services.items()}}))
        self("up", "-d", *(["--wait"] if wait else []))

    def replicas(self, service: str) -> dict[str, tuple[str, str]]:
        """Name, id and state of each container of a service."""
        label = f"label=com.docker.compose.service={service}"
        lines = self.net("ps", "-a", "--no-trunc", "--filter", label, "--format", "{{.Names}} {{.ID}} {{.State}}").splitlines()
        return {name: (identifier, state) for name, identifier, state in map(str.split, lines)}

    def runs(self, name: str) -> bool:
        """Whether a container of that name runs."""
        return self.net("ps", "--filter", f"name=^{name}$", "--format", "{{.State}}") == "running"

    def crash(self, name: str) -> None:
        """Kill its first process, as nobody's command would."""
        os.kill(self.net.inspect(name, ".State.Pid"), signal.SIGKILL)

    def starts(self, name: str) -> list[float]:
        """When it was started in this test (seconds since the epoch)."""
        found = (one for one in read(self.net.home, since_ns=self._since_ns) if one.kind == "container" and one.action == "start")
        return [one.time_ns / 1e9 for one in found if one.actor.attributes.get("name") == name]


@pytest.fixture
def app(net: Networked, tmp_path: Path) -> Iterator[Running]:
    made = Running(net, tmp_path / "compose.yaml")
    yield made
    made("down", "-v")
    wait_for(lambda: places.reconciler_pid(net.home) == 0, "the reconciler ends with the last app")


def served(port: int, **more: Any) -> dict[str, Any]:
    """A service that answers at a port."""
    return {"command": ["/usr/bin/python3", "-c", SERVER, "web", "80"], "ports": [f"127.0.0.1:{port}:80"], **more}


class Load:
    """Four clients that together ask about 200 times a second."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._ended = threading.Event()
        self.asked = 0
        self.lost: list[str] = []
        self._threads = [threading.Thread(target=self._run) for _ in range(4)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._ended.wait(0.02):
            answer = ask("127.0.0.1", self._port)
            self.asked += 1
            if not answer.startswith("web "):
                self.lost.append(answer)


def test_what_dies_comes_back(app: Running) -> None:
    port = free_ports(1)
    app.up(web=served(port, scale=2))
    before = app.replicas("web")
    app.crash("shop-web-1")
    wait_for(lambda: len(app.starts("shop-web-1")) == 2 and app.runs("shop-web-1"), "a crash is followed by a start")
    assert app.replicas("web") == before, "of the same container"
    app.net("rm", "-f", "shop-web-2")
    wait_for(lambda: app.runs("shop-web-2"), "one that is gone is made anew")
    assert app.replicas("web")["shop-web-2"] != before["shop-web-2"]
    wait_for(lambda: ask("127.0.0.1", port).startswith("web "), "and they answer")
    lines = app("chaos", "--kill", "1", "web").splitlines()
    assert lines[0].split()[0] == "NAME" and lines[1].startswith("shop-web-") and "never" not in lines[1]


def test_what_a_user_ended_stays_ended(app: Running) -> None:
    sleep = {"command": ["sleep", "1000"]}
    app.up(wait=False, stopped=sleep, killed=sleep, never={**sleep, "restart": "no"}, once={"command": ["true"]}, other=sleep, away=sleep)
    app.net("stop", "shop-stopped-1")
    app.net("kill", "shop-killed-1")
    app("rm", "-s", "-f", "away")
    app.crash("shop-never-1")
    app.crash("shop-other-1")
    wait_for(lambda: app.runs("shop-other-1") and len(app.starts("shop-other-1")) == 2, "that nobody wanted to end is started again")
    app.crash("shop-other-1")
    wait_for(lambda: app.runs("shop-other-1") and len(app.starts("shop-other-1")) == 3, "twice")
    for name in ("stopped", "killed", "never", "once"):
        assert len(app.starts(f"shop-{name}-1")) == 1, name
    assert app.replicas("away") == {}


def test_the_reconciler_killed_at_any_moment(app: Running) -> None:
    app.up(web={"command": ["sleep", "1000"], "scale": 4})
    chance = random.Random(7)
    ended = threading.Event()

    def kill() -> None:
        while not ended.wait(chance.uniform(0.02, 0.4)):
            with suppress(ProcessLookupError):
                if pid := places.reconciler_pid(app.net.home):
                    os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        for _ in range(3):
            app.crash(f"shop-web-{chance.randint(1, 2)}")
            app.net("rm", "-f", f"shop-web-{chance.randint(3, 4)}")
            wait_for(lambda: all(app.runs(f"shop-web-{number}") for number in range(1, 5)), "all run again")
    finally:
        ended.set()
        killer.join()
    wait_for(lambda: sorted(app.replicas("web")) == [f"shop-web-{number}" for number in range(1, 5)], "and there is none too many")


def test_the_unhealthy_are_replaced(app: Running) -> None:
    port = free_ports(1)
    app.up(web=served(port, healthcheck=CHECK))
    before = app.replicas("web")
    with Load(port) as load:
        app.net("exec", "shop-web-1", "touch", "/tmp/ill")

        def is_replaced() -> bool:
            found = app.replicas("web")
            return found.keys() == before.keys() and found["shop-web-1"][0] != before["shop-web-1"][0]

        wait_for(is_replaced, "another one stands in its place")
        wait_for(lambda: app.net.inspect("shop-web-1", ".State.Health.Status") == "healthy", "which is well")
    assert load.asked and all(answer == "ConnectionRefusedError" for answer in load.lost), "nobody waits for one that is ill"
    wait_for(lambda: ask("127.0.0.1", port).startswith("web "), "it answers")


def test_one_that_has_files_is_started_again(app: Running, tmp_path: Path) -> None:
    usr = {"type": "bind", "source": "/usr", "target": "/usr", "read_only": True}
    app.up(data={"command": ["sleep", "1000"], "healthcheck": CHECK, "volumes": [usr, {"type": "bind", "source": str(tmp_path), "target": "/data"}]})
    before = app.replicas("data")
    app.net("exec", "shop-data-1", "touch", "/tmp/ill")
    wait_for(lambda: len(app.starts("shop-data-1")) == 2, "two at once could spoil what both write")
    assert app.replicas("data").keys() == before.keys() and app.replicas("data")["shop-data-1"][0] == before["shop-data-1"][0]


def test_what_an_up_did_not_come_to_is_not_started(app: Running, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    tmp_path.chmod(0o755)
    check = {"test": ["CMD-SHELL", "test -e /shared/well"], "interval": "100ms", "retries": 1}
    sleep = {"command": ["sleep", "1000"]}
    data = {**sleep, "healthcheck": check, "volumes": [{"type": "bind", "source": str(shared), "target": "/shared", "read_only": True}]}
    with pytest.raises(AssertionError, match="unhealthy"):
        app.up(wait=False, data=data, web={**sleep, "depends_on": {"data": {"condition": "service_healthy"}}}, other=sleep)
    wait_for(lambda: app.runs("shop-other-1"), "what depends on nobody runs")
    app.crash("shop-other-1")
    wait_for(lambda: len(app.starts("shop-other-1")) == 2, "it is looked after")
    assert app.starts("shop-web-1") == [], "it would find no data"
    (shared / "well").touch()
    app("up", "-d")
    wait_for(lambda: app.runs("shop-web-1"), "now it does")


def test_who_crashes_again_and_again_is_waited_for_longer(app: Running) -> None:
    app.up(wait=False, failing={"command": ["false"]})
    wait_for(lambda: len(app.starts("shop-failing-1")) >= 6, "it is tried several times")
    for number, (earlier, later) in enumerate(pairwise(app.starts("shop-failing-1")[:6])):
        assert later - earlier >= 0.05 * 2**number, "each pause is twice as long"


def test_more_replicas_for_a_load(app: Running) -> None:
    rule = {"min": 1, "max": 2, "cpu": 50}
    app.up(busy={"command": ["/usr/bin/python3", "-c", BUSY], "cpus": 0.1, "x-bulle-autoscale": rule})
    app.net("exec", "shop-busy-1", "touch", "/tmp/work")
    wait_for(lambda: app.runs("shop-busy-2"), "there are two")
    wait_for(lambda: any(one.kind == "service" and one.actor.attributes["replicas.new"] == "2" for one in read(app.net.home)), "it is said")
    app.net("exec", "shop-busy-1", "rm", "/tmp/work")
    wait_for(lambda: app.replicas("busy").keys() == {"shop-busy-1"}, "there is one again")
    app("up", "-d")
    assert app.replicas("busy").keys() == {"shop-busy-1"}


def test_a_kill_under_load_loses_what_was_in_flight(app: Running) -> None:
    port = free_ports(1)
    app.up(web=served(port, scale=3))
    with Load(port) as load:
        for number in (1, 2, 3):
            wait_for(lambda mark=load.asked: load.asked > mark + 50, "requests go on")
            app.crash(f"shop-web-{number}")
            wait_for(lambda number=number: len(app.starts(f"shop-web-{number}")) == 2, "it is there again")  # type: ignore[misc]
    assert len(load.lost) <= 3 * 4, f"at most one of each client for each kill: {load.lost}"


def test_an_update_under_load_loses_nothing(app: Running) -> None:
    port = free_ports(1)
    app.up(web=served(port, scale=2))
    before = app.replicas("web")
    app.net("tag", "python", "python:next")
    with Load(port) as load:
        wait_for(lambda: load.asked > 50, "requests go on")
        app("update", "web", "--image", "python:next")
        mark = load.asked
        wait_for(lambda: load.asked > mark + 50, "requests go on")
    after = app.replicas("web")
    assert after.keys() == before.keys() and not set(after.values()) & set(before.values())
    assert load.lost == []
