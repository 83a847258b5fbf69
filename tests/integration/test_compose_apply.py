"""``bulle compose up`` and the verbs that change an app: what is made, what is left alone, and what is left when somebody is killed in the middle."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bulle_testing.running import Machine, wait_for

pytestmark = [pytest.mark.root, pytest.mark.programs("nft")]

LOOP = '[sh, -c, "while :; do sleep 0.1; done"]'

READY_AFTER_NS = 300_000_000
"""How long the database of these tests is not healthy."""


class App:
    """A Compose file in a directory of its own, and the command on it."""

    def __init__(self, place: Machine, directory: Path) -> None:
        self.place = place
        self.file = directory / "compose.yaml"

    def write(self, text: str) -> None:
        self.file.write_text("name: app\n" + text)

    def __call__(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = self.place.command("compose", "-f", self.file, *arguments)
        assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
        return done

    def up(self, *arguments: str, code: int = 0) -> str:
        return self("up", "-d", *arguments, code=code).stderr

    def containers(self, service: str = "") -> dict[str, Any]:
        """Every container of the app by its name."""
        self.place.connect()
        found = self.place.engine.containers.labelled("com.docker.compose.project", "app")
        return {one.name: one for one in found if not service or one.options.labels["com.docker.compose.service"] == service}

    def ids(self) -> dict[str, str]:
        return {name: one.id for name, one in self.containers().items()}

    def starts(self) -> dict[str, int]:
        return {name: one.state().started_at_ns for name, one in self.containers().items()}

    def networks(self) -> set[str]:
        return {one.name for one in self.place.engine.networks.list()} - {"bridge", "host", "none"}

    def volumes(self) -> set[str]:
        return {one.name for one in self.place.engine.volumes.list()}


@pytest.fixture
def app(box: Machine, tmp_path: Path) -> Iterator[App]:
    """An app that is taken down at the end, whatever it became."""
    made = App(box, tmp_path)
    made.write("services: {}\n")
    yield made
    box.command("compose", "-p", "app", "down", "-v", "--remove-orphans", "-t", "0")
    box.engine.volumes.prune()  # anonymous ones of containers that went without -v
    assert (made.networks(), made.volumes(), made.ids()) == (set(), set(), {})
    assert not (box.home / "apps" / "app").exists()


def services(text: str) -> str:
    """Services that sleep, told apart by what stands in ``text``."""
    return text.replace("SLEEP", f"image: busybox\n    command: {LOOP}\n    init: true\n    stop_grace_period: 0s")


SHOP = services("""
services:
  web:
    SLEEP
    depends_on: {db: {condition: service_healthy}, job: {condition: service_completed_successfully}}
    secrets: [{source: password, uid: "7", gid: "8", mode: 0400}]
    configs: [{source: settings, target: /etc/settings}]
    environment: {COLOUR: red}
  db:
    image: busybox
    command: [sh, -c, "sleep 0.3; touch /ready; while :; do sleep 0.1; done"]
    stop_grace_period: 0s
    healthcheck: {test: test -e /ready, interval: 100ms}
    volumes: [data:/data, /anonymous]
  job:
    image: busybox
    command: [sh, -c, "sleep 0.2"]
volumes: {data: {}}
secrets: {password: {environment: SHOP_PASSWORD}}
configs: {settings: {content: "a=1"}}
""")


def test_an_app_comes_stays_and_goes(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(app.place.environment, "SHOP_PASSWORD", "correct-horse")
    app.write(SHOP)
    said = app.up()
    there = app.containers()
    assert {name: one.state().status for name, one in there.items()} == {"app-web-1": "running", "app-db-1": "running", "app-job-1": "exited"}
    # In their order: the others were as web wants them when it started.
    web, db, job = (there[f"app-{name}-1"] for name in ("web", "db", "job"))
    assert web.state().started_at_ns > max(job.state().finished_at_ns, db.state().started_at_ns + READY_AFTER_NS)
    assert said.index("app-db-1  Started") < said.index("app-web-1  Started")
    assert (app.networks(), "app_data" in app.volumes()) == ({"app_default"}, True)
    assert {"com.docker.compose.service": "web", "com.docker.compose.container-number": "1"}.items() <= web.options.labels.items()
    assert app("ps", "-a", "--format", "{{.Service}}").stdout.split() == ["db", "job", "web"]
    # The secret: of whom and how it was asked for, and told to nobody else.
    seen = app("exec", "web", "sh", "-c", "ls -ln /run/secrets/password; cat /run/secrets/password /etc/settings; nslookup db").stdout
    assert seen.startswith("-r--------    1 7        8 ")
    assert "correct-horsea=1" in seen
    assert "correct-horse" not in json.dumps(web.inspect())
    # By another process: who closes a file of the database here gives up the locks that SQLite has on it.
    (kept,) = subprocess.run(["grep", "-rl", "correct-horse", app.place.home], capture_output=True, text=True, check=True).stdout.split()
    assert Path(kept).parent == app.place.home / "apps" / "app"
    # A second time nothing is done, but for the job, which has ended.
    before, started = app.ids(), app.starts()
    app.up()
    assert app.ids() == before
    assert {name for name, at in app.starts().items() if at != started[name]} == {"app-job-1"}
    app("down")
    assert (app.ids(), app.networks(), app.volumes()) == ({}, set(), {"app_data"} | {one for one in app.volumes() if len(one) == 64})
    app.up()
    assert app("down", "-v").stderr.count("Removed") == 5


def test_only_what_changed_is_made_anew(app: App) -> None:
    two = services("services:\n  one:\n    SLEEP\n    volumes: [/kept]\n  two:\n    SLEEP\n    environment: {A: '1'}\n")
    app.write(two)
    app.up()
    before = app.ids()
    (volume,) = [one.volume for one in app.containers()["app-one-1"].plan.mounts]
    app.write(two.replace("A: '1'", "A: '2'"))
    assert "app-two-1  Recreated" in app.up()
    now = app.ids()
    assert now["app-one-1"] == before["app-one-1"]
    assert now["app-two-1"] != before["app-two-1"]
    app.up("--no-deps", "--force-recreate", "one")
    assert [one.volume for one in app.containers()["app-one-1"].plan.mounts] == [volume]
    app.up("--force-recreate", "-V", "one")
    assert [one.volume for one in app.containers()["app-one-1"].plan.mounts] != [volume]
    app.up("--scale", "two=3")
    assert set(app.ids()) == {"app-one-1", "app-two-1", "app-two-2", "app-two-3"}
    app("scale", "two=1")
    app.write(services("services:\n  two:\n    SLEEP\n    environment: {A: '2'}\n"))
    assert "app-one-1; --remove-orphans" in app.up()
    app.up("--remove-orphans")
    assert app.ids() == {"app-two-1": now["app-two-1"]}


@pytest.mark.parametrize(
    ("image", "line", "message"),
    [
        ("busybox", "devices: [/dev/null:/dev/null]", "compose.yaml:8: services.web.devices cannot be done"),
        ("nothing.invalid/there", "pull_policy: never", "compose.yaml:7: image nothing.invalid/there is not here"),
        ("busybox", "mem_limit: 1m", "compose.yaml:6: service web cannot be made: the memory limit is too small"),
        ("busybox", "secrets: [unknown]", "compose.yaml:8"),
        ("busybox", "colour: red", "compose.yaml:8"),
        ("busybox", "ports: ['PORT:80']", "compose.yaml:8: port PORT of 127.0.0.1 cannot be published: somebody else has it"),
        ("busybox", "volumes: [{type: bind, source: /not/there, target: /x}]", "compose.yaml:8: /not/there cannot be bound"),
    ],
)  # fmt: skip
def test_what_is_wrong_changes_nothing(app: App, image: str, line: str, message: str) -> None:
    app.write(services("services:\n  other:\n    SLEEP\n"))
    app.up()
    before = app.starts()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        other = f"services:\n  other:\n    image: busybox\n    command: {LOOP.replace('0.1', '0.2')}\n"
        app.write(f"{other}  web:\n    image: {image}\n    {line.replace('PORT', port)}\n    command: {LOOP}\n")
        done = app.place.command("compose", "-f", app.file, "up", "-d")
        assert done.returncode in (1, 15)  # 15: docker compose's for a file that is wrong in itself
        assert message.replace("PORT", port) in done.stderr
    assert app.starts() == before


def test_conditions_that_do_not_come_true(app: App) -> None:
    text = services("""
services:
  web:
    SLEEP
    depends_on: {DEPENDS}
  job: {image: busybox, command: [sh, -c, exit 4]}
  sick:
    image: busybox
    command: [sleep, "1000"]
    stop_signal: KILL
    healthcheck: {test: exit 1, interval: 50ms, retries: 2}
""")
    app.write(text.replace("DEPENDS", "job: {condition: service_completed_successfully}"))
    assert 'service "job" didn\'t complete successfully: exit 4' in app.up("web", code=1)
    assert app.containers()["app-web-1"].state().status == "created"
    app.write(text.replace("DEPENDS", "sick: {condition: service_healthy}"))
    assert "container app-sick-1 is unhealthy" in app.up("web", code=1)
    app.write(text.replace("DEPENDS", "sick: {condition: service_healthy, required: false}"))
    app.up("web")
    assert app.containers()["app-web-1"].state().status == "running"


def test_two_at_once_and_some_that_are_killed(app: App) -> None:
    text = services("services:\n" + "".join(f"  s{number}:\n    SLEEP\n    environment: {{A: 'VALUE'}}\n" for number in range(4)))
    text = text.replace("  s3:\n", "  s3:\n    scale: 3\n    depends_on: [s0]\n    deploy: {update_config: {monitor: 10ms, order: start-first}}\n")
    app.write(text.replace("VALUE", "0"))
    with ThreadPoolExecutor() as pool:  # two at once serialise
        for one in [pool.submit(app.up) for _ in range(2)]:
            one.result()
    expected = {"app-s0-1", "app-s1-1", "app-s2-1", "app-s3-1", "app-s3-2", "app-s3-3"}
    assert set(app.ids()) == expected
    for turn in range(1, 7):
        app.write(text.replace("VALUE", str(turn)))
        killed = app.place.start_command("compose", "-f", app.file, "up", "-d", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(random.uniform(0.01, 0.5))  # any moment will do
        killed.kill()
        killed.wait()
        app.up()
        there = app.containers()
        assert set(there) == expected
        assert {one.state().status for one in there.values()} == {"running"}
        assert {one.options.environment for one in there.values()} == {(f"A={turn}",)}
    before = app.starts()
    app.up()
    assert app.starts() == before
    known = set(app.ids().values())
    for path in (app.place.home / "containers").iterdir():
        if path.name not in known:
            os.utime(path, (0, 0))  # of one that was killed half way: collected as if it were no longer young


def test_verbs_between_up_and_down(app: App) -> None:
    app.write(services("services:\n  one:\n    SLEEP\n  two:\n    SLEEP\n    depends_on: {one: {condition: service_started, restart: true}}\n"))

    def states() -> dict[str, str]:
        return {name: one.state().status for name, one in app.containers().items()}

    app("create")
    assert states() == {"app-one-1": "created", "app-two-1": "created"}
    app("start")
    before = app.starts()
    app("restart", "one")
    assert all(at > before[name] for name, at in app.starts().items())  # the other wants to be restarted with it
    app("pause", "one")
    assert app.containers()["app-one-1"].is_paused()
    app("unpause")
    said = app("stop").stderr
    assert said.index("two") < said.index("one")
    assert set(states().values()) == {"exited"}
    app("start", "one")
    app("kill", "one")
    assert set(states().values()) == {"exited"}
    app("rm", "-f", "two")
    assert set(states()) == {"app-one-1"}
    assert "no such service: three" in app("stop", "three", code=1).stderr
    app("--dry-run", "up", "-d")
    assert set(states()) == {"app-one-1"}
    assert app.place.command("compose", "-p", "app", "restart", "one").returncode == 0  # a name is enough
    assert states() == {"app-one-1": "running"}


def test_in_the_foreground(app: App) -> None:
    app.write(services("services:\n  long:\n    SLEEP\n  short: {image: busybox, command: [sh, -c, echo said; sleep 0.2; exit 7]}\n"))
    done = app("up", "--exit-code-from", "short", code=7)
    assert "short-1  | said" in done.stdout
    assert {one.state().status for one in app.containers().values()} == {"exited"}
    process = app.place.start_command("compose", "-f", app.file, "up", "long", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: app.containers("long")["app-long-1"].state().status == "running", "the start")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert app.containers("long")["app-long-1"].state().status == "exited"


def test_networks_that_are_shared_and_that_change(app: App) -> None:
    text = services("""
services:
  main:
    SLEEP
    networks: {default: {aliases: [other-name], ipv4_address: 10.199.7.9}}
  beside:
    SLEEP
    network_mode: service:main
  asks:
    SLEEP
    links: ["main:linked"]
networks: {default: {ipam: {config: [{subnet: 10.199.7.0/24}]}}}
""")
    app.write(text)
    app.up()
    there = app.containers()
    assert there["app-beside-1"].plan.network.container_id == there["app-main-1"].id
    for name in ("main", "other-name", "linked", "app-main-1"):
        assert "10.199.7.9" in app("exec", "asks", "nslookup", name).stdout
    app.write(text.replace("10.199.7.", "10.199.8."))
    app.up()
    now = app.containers()
    assert now["app-beside-1"].plan.network.container_id == now["app-main-1"].id != there["app-main-1"].id
    assert "10.199.8.9" in app("exec", "asks", "nslookup", "main").stdout


WEB = """
services:
  web:
    image: busybox
    command: [sh, -c, "mkdir /www; echo VERSION >/www/index.html; exec httpd -f -p 80 -h /www"]
    stop_signal: KILL
    ports: ["PORT:80"]
    healthcheck: {test: wget -qO- http://127.0.0.1/, interval: 100ms}
    deploy: {replicas: 3, update_config: {order: start-first, monitor: 200ms, failure_action: rollback}}
"""


@pytest.mark.alone
def test_an_update_loses_no_request(app: App) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    text = WEB.replace("PORT", str(port))
    app.write(text.replace("VERSION", "one"))
    assert "published on 127.0.0.1 alone" in app.up("--wait")
    answers: Counter[str] = Counter()
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.02):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=240) as answer:
                answers[answer.read().decode().strip()] += 1

    def seen(version: str) -> None:
        before = answers[version]
        wait_for(lambda: answers[version] > before, f"answers of {version}")

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        try:
            seen("one")
            app.write(text.replace("VERSION", "two"))
            app.up()
            seen("two")
            app("rollback", "web")
            seen("one")
            app.write(text.replace("VERSION", "three").replace("exec httpd", "exit 3; exec httpd"))  # it never comes up
            assert "was rolled back" in app.up(code=1)
            app.place.engine.images.tag("busybox", "busybox:new")
            app("update", "web", "--image", "busybox:new")
        finally:
            over.set()
        for one in asking:
            one.result()  # no request failed
    assert set(answers) == {"one", "two"}
    assert {one.image for one in app.containers().values()} == {"busybox:new"}
    app("down")
    app.place.engine.images.remove("busybox:new")


def test_after_a_reboot_dependencies_come_first(app: App) -> None:
    app.write(services("""
services:
  web:
    SLEEP
    restart: always
    depends_on: {db: {condition: service_healthy}}
  db:
    image: busybox
    command: [sh, -c, "rm -f /ready; sleep 0.3; touch /ready; while :; do sleep 0.1; done"]
    stop_grace_period: 0s
    restart: always
    healthcheck: {test: test -e /ready, interval: 100ms}
"""))  # fmt: skip
    app.up()
    assert app.place.command("system", "shutdown").returncode == 0
    assert app.place.command("system", "boot").stdout.split() == ["app-db-1", "app-web-1"]
    there = app.containers()
    assert there["app-web-1"].state().started_at_ns > there["app-db-1"].state().started_at_ns + READY_AFTER_NS
