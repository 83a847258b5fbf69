"""The verbs of ``bulle compose`` that look at an app or use it: what they print, what they do, and their exit codes, which are docker compose's."""

from __future__ import annotations

import json
import re
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bulle_testing.apps import App, an_app
from bulle_testing.peers import Registry
from bulle_testing.running import Machine, Terminal, wait_for

pytestmark = [pytest.mark.root, pytest.mark.programs("nft")]

SLEEP = "trap 'exit 3' TERM; while :; do sleep 0.1; done"
SHOP = f"""
name: shop
services:
  web:
    image: busybox
    command: [sh, -c, "mkdir /www; hostname >/www/index.html; echo serving; exec httpd -f -p 80 -h /www"]
    ports: ["127.0.0.1::80"]
    depends_on: [db]
    stop_grace_period: 0s
  db:
    image: busybox
    command: [sh, -c, "echo hello $$HOSTNAME; echo error >&2; {SLEEP}"]
    environment: {{KIND: database}}
    working_dir: /srv
    volumes: ["data:/data"]
    scale: 2
  once:
    image: busybox
    command: [sh, -c, "echo out; echo err >&2; exit 3"]
    profiles: [extra]
volumes:
  data:
"""


@pytest.fixture
def apps(box: Machine, tmp_path: Path) -> Iterator[Callable[[str], App]]:
    """Makes the app of a test from its file."""
    with ExitStack() as stack:
        yield lambda file: stack.enter_context(an_app(box, tmp_path / "shop", file))


def test_looking_at_an_app(apps: Callable[[str], App]) -> None:
    app = apps(SHOP)
    assert app("ps") == "NAME      IMAGE     COMMAND   SERVICE   CREATED   STATUS    PORTS"
    app("up", "-d")
    assert app("ps", "--format", "{{.Name}} {{.Image}} {{.Service}} {{.State}} {{.Project}}").splitlines() == [
        "shop-db-1 busybox db running shop", "shop-db-2 busybox db running shop", "shop-web-1 busybox web running shop",
    ]  # fmt: skip
    assert [one.split()[0] for one in app("ps", "web", "db").splitlines()] == ["NAME", "shop-db-1", "shop-db-2", "shop-web-1"]
    ids = app("ps", "-q").splitlines()
    assert len(ids) == 3 and all(len(one) == 64 for one in ids)
    assert app("ps", "--services") == "db\nweb"
    (web,) = app.rows("web")
    (published,) = web["Publishers"]
    assert (web["Health"], web["ExitCode"], published["TargetPort"]) == ("", 0, 80)
    assert web["Ports"] == f"127.0.0.1:{published['PublishedPort']}->80/tcp"
    assert app("port", "web", "80") == f"127.0.0.1:{published['PublishedPort']}"
    app("stop", "-t", "1", "db")
    assert app("ps", "-q", "db") == "" and app("ps", "-q", "--status", "exited") == "\n".join(ids[:2])
    assert app("ps", "-q", "--filter", "status=running") == ids[2]
    assert [one["ExitCode"] for one in app.rows("-a", "db")] == [3, 3]
    assert app("ls", "--format", "json") == json.dumps(
        [{"Name": "shop", "Status": "running(1)", "ConfigFiles": str(app.directory / "compose.yaml")}], separators=(",", ":")
    )
    assert app("ls", "-a").splitlines()[1].startswith("shop                exited(2), running(1)   ")
    assert app("ls", "-q", "--filter", "name=nothing") == "" and app("ls", "-q", "-a", "--filter", "name=sh") == "shop"
    title, *images = app("images").splitlines()
    assert title.split() == ["CONTAINER", "REPOSITORY", "TAG", "IMAGE", "ID", "SIZE"] and len(images) == 3
    assert json.loads(app("images", "web", "--format", "json"))[0]["Repository"] == "busybox" and len(app("images", "-q")) == 64
    assert app("volumes", "-q") == "shop_data" and app("volumes", "web", "-q") == ""
    assert app("top").splitlines()[0] == "shop-web-1" and "httpd -f -p 80" in app("top", "web")
    assert app("stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}", "web") == "shop-web-1 1"
    assert json.loads(app("version", "--format", "json"))["version"] == app("version", "--short")
    # What is only named, from elsewhere, is found by its labels.
    assert app("-p", "shop", "--project-directory", "/", "ps", "-q") == ids[2]


def test_what_is_refused_and_with_which_code(apps: Callable[[str], App]) -> None:
    app = apps(SHOP)
    assert "no such service: nothing; the app shop has db, web" in app.refused("ps", "nothing")
    assert 'service "db" is not running' in app.refused("exec", "-T", "db", "true")
    assert 'service "web" is not running container #4' in app.refused("port", "--index", "4", "web", "80")
    assert "invalid filter 'name'" in app.refused("ps", "--filter", "name=web")
    assert 'no containers for project "shop"' in app.refused("wait", "web")
    assert "unknown copy direction" in app.refused("cp", "a", "b")
    assert "incompatible" in app.refused("run", "-P", "-p", "80:80", "web")
    assert "unknown flag: --nothing" in app.refused("ps", "--nothing", code=16)
    assert "unknown command" in app.refused("nothing", code=16)
    assert "no Compose file" in app.refused("--project-directory", "/", "ps", code=14)
    app.write("wrong.yaml", "services:\n  web:\n    imagee: x\n")
    assert "wrong.yaml:3" in app.refused("-f", "wrong.yaml", "ps", code=15)
    app.write("wrong.yaml", "services: {web: {image: 'localhost:1/nothing'}}")
    for words in (("pull",), ("up", "-d"), ("run", "-T", "web")):
        assert "cannot reach the registry" in app.refused("-f", "wrong.yaml", *words, code=18)
    assert app("-f", "wrong.yaml", "pull", "--ignore-pull-failures") == ""


def test_logs(apps: Callable[[str], App]) -> None:
    app = apps(SHOP)
    app("up", "-d")
    wait_for(lambda: app("logs").count("\n") == 4, "all have said something")
    lines = app("logs").splitlines()
    assert sorted(line.partition(" | ")[0] for line in lines) == ["db-1  ", "db-1  ", "db-2  ", "db-2  ", "web-1 "]
    assert "web-1  | serving" in lines and sum(line.endswith(" | error") for line in lines) == 2
    assert app.run("logs").stderr == "" and app("logs", "--no-log-prefix", "web") == "serving"
    assert re.fullmatch(r"db-2  \| 2\d{3}-\d\d-\d\dT[\d:]+\.\d{9}Z (hello.*|error)", app("logs", "-t", "-n", "1", "--index", "2", "db"))
    assert app("logs", "--since", "10m").count("\n") == 4 and app("logs", "--until", "10m") == "" and app("logs", "--tail", "0") == ""
    assert "\x1b[3" in app("--ansi", "always", "logs") and "\x1b[" not in app("--ansi", "always", "logs", "--no-color")
    with app.start("logs", "-f", "db") as following:
        assert following.stdout is not None
        for _ in range(4):
            following.stdout.readline()
        app("restart", "-t", "2", "--no-deps", "db")
        app("up", "-d", "--scale", "db=3", "--no-recreate")
        app("stop", "-t", "2", "db")
        said, _ = following.communicate(timeout=240)
    assert following.returncode == 0
    assert said.count("db-1 exited with code 3\n") == said.count("db-2 exited with code 3\n") >= 1
    for name, times in (("db-1", 1), ("db-2", 1), ("db-3", 1)):
        assert len(re.findall(rf"^{name}  \| hello", said, re.MULTILINE)) == times, said
    assert said.rstrip().endswith("exited with code 3")


def test_into_containers(apps: Callable[[str], App], tmp_path: Path) -> None:
    app = apps(SHOP)
    app("up", "-d")
    assert app("exec", "-T", "db", "sh", "-c", "echo $KIND $A; pwd; id -u", A="b") == "database\n/srv\n0"
    assert app("exec", "-e", "A=b", "-w", "/tmp", "-u", "1", "db", "sh", "-c", "echo $A; pwd; id -u") == "b\n/tmp\n1"
    hosts = [app("exec", "--index", str(number), "db", "hostname") for number in (1, 2)]
    assert len({*hosts}) == 2 and app("exec", "db", "hostname") == hosts[0]
    assert app("exec", "-T", "db", "cat", input="given\n") == "given"
    assert app.run("exec", "db", "sh", "-c", "exit 7").returncode == 7
    assert "command not found" in app.refused("exec", "db", "nothing", code=127)
    app("exec", "-d", "db", "touch", "/tmp/detached")
    wait_for(lambda: app.run("exec", "db", "test", "-e", "/tmp/detached").returncode == 0, "it was run")
    here = app.write("here/file", "of the host\n").parent
    app("cp", str(here), "db:/copied")
    assert [app("exec", "--index", str(number), "db", "cat", "/copied/file") for number in (1, 2)] == ["of the host"] * 2
    app("cp", "--index", "2", str(here / "file"), "db:/alone")
    assert app.run("exec", "--index", "1", "db", "test", "-e", "/alone").returncode == 1
    app("cp", "--index", "2", "db:/alone", str(tmp_path / "back"))
    assert (tmp_path / "back").read_text() == "of the host\n"
    app("export", "-o", str(tmp_path / "tar"), "web")
    with tarfile.open(tmp_path / "tar") as archive:
        assert "www/index.html" in archive.getnames()
    assert app("commit", "-m", "kept", "--index", "2", "db", "kept:1").startswith("sha256:")
    assert app.net("run", "--rm", "--network", "none", "--entrypoint", "cat", "kept:1", "/alone") == "of the host"
    app.net("rmi", "kept:1")


def test_a_terminal(apps: Callable[[str], App]) -> None:
    app = apps(SHOP)
    app("up", "-d")
    words = ("-f", str(app.directory / "compose.yaml"))
    for verb in (("exec", "web"), ("run", "--rm", "--no-deps", "web")):
        terminal = Terminal(app.net.machine, "compose", *words, *verb, "sh", "-c", "tty; stty size; read x; echo got $x; exit 4")
        terminal.expect("/dev/")
        terminal.expect("30 100")
        terminal.type("this\n")
        terminal.expect("got this")
        assert terminal.wait() == 4
    attached = app.start("attach", "--no-stdin", "db")
    app("kill", "-s", "TERM", "db")
    assert attached.wait(30) == 3
    attached.communicate()


def test_waiting_and_events(apps: Callable[[str], App]) -> None:
    app = apps(SHOP)
    began = time.time()
    app("up", "-d", "db")
    with app.start("events", "--json", "db") as events, app.start("wait", "db") as waiting:
        assert events.stdout is not None and waiting.stdout is not None
        time.sleep(0.5)  # until both listen
        app("stop", "-t", "5", "db")
        said, _ = waiting.communicate(timeout=240)
        first = json.loads(events.stdout.readline())
        events.terminate()
        events.communicate()
    assert waiting.returncode == 3 and said.count("exited with status code 3") == 2
    assert (first["action"], first["service"], first["type"]) == ("kill", "db", "container")
    assert {*first["attributes"]} == {"image", "name", "signal"}
    past = app("events", "--since", str(began), "--until", str(time.time()), "db").splitlines()
    assert [line.split()[3] for line in past if "name=shop-db-1" in line] == ["create", "start", "kill", "die", "stop"]
    app("start", "db")
    with app.start("wait", "--down-project", "db") as waiting:
        time.sleep(0.5)
        app("kill", "db")
        waiting.communicate(timeout=240)
    assert waiting.returncode == 137 and app("ps", "-aq") == "" and app("ls", "-aq") == ""


def test_run(apps: Callable[[str], App]) -> None:
    app = apps(SHOP)
    done = app.run("run", "--rm", "-T", "once")
    assert (done.returncode, done.stdout) == (3, "out\n") and done.stderr.endswith("err\n")
    assert app("ps", "-aq") == ""
    # What the service depends on is started; nobody is found under its name but replicas.
    assert app("run", "--rm", "web", "sh", "-c", "nslookup db | grep -c '^Address.*172\\|^Address.*10\\.'") != "0"
    assert [one["Service"] for one in app.rows("-a")] == ["db", "db"]
    said = app(
        "run", "--rm", "-e", "A=b", "--env-from-file", str(app.write("more", "C=d\n")), "-l", "own=label", "--name", "mine", "-u", "1", "-w", "/tmp",
        "-v", f"{app.directory}:/here:ro", "-v", "data:/elsewhere", "--no-deps", "--entrypoint", "sh -c", "--cap-add", "NET_ADMIN", "db",
        "echo $KIND $A $C; pwd; id -u; ls /here; touch /here/x 2>/dev/null || echo read-only; hostname >/elsewhere/file 2>/dev/null; echo $0",
    )  # fmt: skip
    assert said.splitlines() == ["database b d", "/tmp", "1", "compose.yaml", "more", "read-only", "sh"]
    identifier = app("run", "-d", "-p", "127.0.0.1::80", "web")
    row = next(one for one in app.rows("-a") if one["Service"] == "web")
    assert re.fullmatch(r"shop-web-run-[0-9a-f]{12}", row["Name"]) and row["Publishers"][0]["TargetPort"] == 80
    labels = app.net.inspect(identifier, ".Config.Labels")
    assert (labels["com.docker.compose.oneoff"], len(labels["com.docker.compose.slug"])) == ("True", 64)
    assert app("ps", "-q", "web") == "" and len(app("ps", "-aq", "web")) == 64
    assert "exec: " not in app.refused("run", "--rm", "-T", "--no-deps", "web", "nothing")
    assert "no such service" in app.refused("run", "nothing")
    assert "is taken" in app.refused("run", "--no-deps", "--name", row["Name"], "web", "true")
    app("up", "-d", "web")
    assert len(app("ps", "-q", "web").splitlines()) == 1, "up does not count it"


BUILT = """
name: shop
services:
  base:
    build:
      context: .
      dockerfile_inline: |
        FROM busybox
        ARG WORD=none
        RUN echo $$WORD >/word
      args: {WORD: said}
  app:
    image: shop/app:1
    build:
      context: app
      dockerfile: Own
      target: wanted
      additional_contexts: {below: "service:base", more: ./more}
      tags: ["shop/app:2"]
      labels: {a: b}
      args: {FROM_SHELL: null}
      secrets: [pass, {source: of_variable, target: other}]
      extra_hosts: ["somewhere=10.9.8.7"]
      ulimits: {nofile: {soft: 77, hard: 88}}
      shm_size: 32m
      network: none
      cache_from: [x]
    command: cat /word /said
secrets:
  pass: {file: ./pass}
  of_variable: {environment: PASSWORD}
"""
OWN = """FROM below AS wanted
ARG FROM_SHELL
COPY --from=more file /more
RUN --mount=type=secret,id=pass --mount=type=secret,id=other cat /run/secrets/pass /run/secrets/other /more >/said
RUN echo $FROM_SHELL >>/said; ulimit -n >>/said; ulimit -Hn >>/said; grep somewhere /etc/hosts >>/said; ls /sys/class/net >>/said
FROM busybox
RUN false
"""


def _line(key: str) -> int:
    return next(number for number, text in enumerate(BUILT.splitlines(), 1) if text.strip().startswith(f"{key}:"))


def test_build(apps: Callable[[str], App]) -> None:
    app = apps(BUILT)
    app.write("app/Own", OWN)
    app.write("more/file", "more\n")
    app.write("pass", "word\n")
    variables = {"PASSWORD": "hidden\n", "FROM_SHELL": "shell"}
    plan = json.loads(app("build", "--print", "app", **variables))
    assert [*plan["target"]] == ["base", "app"] and plan["target"]["app"]["tags"] == ["shop/app:1", "shop/app:2"]
    done = app.run("build", "--build-arg", "MORE=1", "app", **variables)
    assert done.returncode == 0 and f"compose.yaml:{_line('cache_from')}: cache_from: what was built here" in done.stderr, done.stderr
    said = app("run", "--rm", "-T", "--quiet", "app", **variables).split()
    assert said == ["said", "word", "hidden", "more", "shell", "77", "88", "10.9.8.7", "somewhere", "lo"]
    assert app.net("inspect", "shop/app:2", "--format", "{{.Config.Labels.a}}") == "b"
    assert app.run("build", "-q", **variables).stderr.count("\n") == 1, "nothing but the note"
    # What is missing is built by up, and by run; what is wrong has file and line.
    app.net("rmi", "shop-base", "shop/app:1", "shop/app:2")
    assert "shop-base" in app.run("up", "-d", "base", **variables).stderr + app.net("images", "--format", "{{.Repository}}")
    for wrong in ("network: 'service:base'", "additional_contexts: {a: 'service:none'}"):
        key = wrong.partition(":")[0]
        lines = [f"      {wrong}" if text.startswith(f"      {key}:") else text for text in BUILT.splitlines()]
        app.write("wrong.yaml", "\n".join(lines))
        assert f"wrong.yaml:{_line(key)}: " in app.run("-f", "wrong.yaml", "build", "app", **variables).stderr, wrong
    app.net("image", "prune", "-af", "--filter", "label=none")


def test_pull_and_push(apps: Callable[[str], App], registry: Registry) -> None:
    name = f"{registry.address}/compose/pushed:1"
    app = apps(
        f"name: shop\nservices:\n  made: {{image: '{name}', build: {{context: ., dockerfile_inline: FROM busybox}}}}\n"
        f"  used: {{image: '{name}', depends_on: [made]}}\n  other: {{build: {{context: ., dockerfile_inline: FROM busybox}}}}\n"
    )
    app("build", "made")
    said = app.run("push").stderr
    assert f"made Pushed {name}" in said and "used Skipped" in said and "other Skipped" in said
    app.net("rmi", name)
    assert "Skipped" in app.run("pull", "--ignore-buildable", "other").stderr
    said = app.run("pull").stderr
    assert "made Pulled" in said and "used Skipped - Image is already being pulled by made" in said and "other Skipped - No image" in said
    assert "used Skipped - Image is already present locally" in app.run("pull", "--policy", "missing", "used").stderr
    assert "made Skipped" in (said := app.run("pull", "--include-deps", "--policy", "always", "used").stderr) and "used Pulled" in said
    assert app.run("pull", "-q").stderr == ""
    app.net("rmi", name)


WATCHED = """
name: shop
services:
  web:
    build:
      context: .
      dockerfile_inline: |
        FROM busybox
        COPY version /version
    command: [sh, -c, "sleep 1000"]
    stop_grace_period: 0s
    init: true
    scale: 2
    develop:
      watch:
        - {path: ./src, action: sync, target: /app, ignore: ["*.tmp"], initial_sync: true}
        - {path: ./conf, action: sync+restart, target: /conf, include: ["*.conf"]}
        - {path: ./run, action: sync+exec, target: /run/it, exec: {command: "sh -c 'date +%s%N >>/executed'"}}
        - {path: ./version, action: rebuild}
"""


def test_watch(apps: Callable[[str], App]) -> None:
    app = apps(WATCHED)
    for name in ("src/first", "conf/a.conf", "run/it", "version", "src/deep/file"):
        app.write(name, "1\n")

    def inside(command: str, index: int = 1) -> str:
        return app.run("exec", "--index", str(index), "web", "sh", "-c", command).stdout

    with app.start("watch") as watching:
        try:
            wait_for(lambda: inside("cat /app/first /app/deep/file", 2) == "1\n1\n", "what is there is synced")
            app.write("src/x.tmp", "no")
            app.write("src/sub/new", "2\n")
            wait_for(lambda: [inside("cat /app/sub/new", number) for number in (1, 2)] == ["2\n"] * 2, "a new file is in both replicas")
            (app.directory / "src/first").unlink()
            wait_for(lambda: inside("ls /app") == "deep\nsub\n", "what is gone here is gone there, what is ignored never came")
            before = app("ps", "-q")
            app.write("run/it", "3\n")
            wait_for(lambda: inside("wc -l </executed").strip() == "1", "the command was run")
            app.write("conf/a.txt", "no")
            app.write("conf/a.conf", "4\n")
            wait_for(lambda: inside("ls /conf") == "a.conf\n" and inside("cut -d. -f1 /proc/uptime") != "", "it came with a restart")
            assert app("ps", "-q") == before
            app.write("version", "2\n")
            wait_for(lambda: [inside("cat /version", number) for number in (1, 2)] == ["2\n"] * 2, "it is built and made anew")
            assert app("ps", "-q") != before
        finally:
            watching.terminate()
            said, _ = watching.communicate(timeout=240)
    assert "Watch enabled" in said and 'Restarting service "web"' in said and "Rebuilding service(s) web" in said, said
    app.write("none.yaml", "services: {web: {image: busybox}}")
    assert "none of the selected services is configured for watch" in app.refused("-f", "none.yaml", "watch")
    app.write("none.yaml", "services:\n  web:\n    image: busybox\n    develop:\n      watch:\n        - {path: ./src, action: rebuild}\n")
    assert "none.yaml:6" in app.refused("-f", "none.yaml", "watch")


def test_dry_run_changes_nothing(apps: Callable[[str], App]) -> None:
    app = apps(SHOP)
    app("up", "-d", "web")
    before = app("ps", "-aq")
    for words in (("run", "db", "true"), ("exec", "db", "false"), ("cp", "compose.yaml", "db:/x"), ("pull",), ("push",), ("build",)):
        for line in (("--dry-run", *words), (words[0], "--dry-run", *words[1:])):
            done = app.run(*line)
            assert done.returncode == 0 and ("DRY-RUN MODE" in done.stderr or words == ("build",)), (line, done.stderr)
    assert app("ps", "-aq") == before and app.run("exec", "db", "test", "-e", "/x").returncode == 1
