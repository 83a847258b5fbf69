"""``commit``, ``import`` and ``history``: images made of containers and tars, compared with Docker's."""

from __future__ import annotations

import gzip
import http.server
import io
import json
import lzma
import os
import re
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bulle.engine.config_changes import apply_changes
from bulle.errors import InvalidInput
from bulle_testing.peers import Docker
from bulle_testing.running import Level, Machine, usable, wait_for

DOCKER = pytest.mark.programs("dockerd", "docker", "containerd", "runc")


@pytest.fixture
def images(module_machine: Machine) -> Iterator[Machine]:
    """The machine, whose images are afterwards what they were before."""
    before = {image.id for image in module_machine.engine.images.list()}
    yield module_machine
    for image in module_machine.engine.images.list():
        if image.id not in before:
            module_machine.engine.images.remove(image.id, force=True)
    module_machine.settle()


def say(place: Machine, *arguments: str | Path, code: int = 0) -> str:
    done = place.command(*arguments)
    assert done.returncode == code, done
    return done.stdout if not code else done.stderr


def config_of(place: Machine, name: str) -> dict[str, Any]:
    return json.loads(place.engine.images.get(name).config_raw)


def test_commit_keeps_what_a_container_changed(place: Machine, level: Level, images: Machine) -> None:
    script = "echo 1 > /new; rm /etc/group; rm -r /var/log; mkdir /var/log; touch /var/log/x; chmod 4755 /bin/busybox; ln -s new /link; "
    script += "exec sleep 1000"
    with place.running(level, "sh", "-c", script) as container:
        wait_for(lambda: any(change.path == "/link" for change in container.files.changes()), "the changes are made")
        assert re.fullmatch(r"sha256:[0-9a-f]{64}\n", say(place, "commit", container.name, "made:1"))
    shown = place.shell(level, "cat /new; ls /etc/group /var/log; stat -c %a /bin/busybox; readlink /link; ls /etc", image="made:1")
    assert shown.split()[:5] == ["1", "/var/log:", "x", "4755", "new"]
    made, base = place.engine.images.get("made:1"), place.engine.images.get("busybox")
    assert made.layers[:-1] == base.layers
    # What only a mount needed is no part of the image.
    with place.engine.store.layers.export_tar(made.layers[-1]) as tar, tarfile.open(fileobj=tar) as archive:
        assert not {"etc/hosts", "etc/hostname", "etc/resolv.conf"} & set(archive.getnames())


def test_commit_of_created_and_stopped(place: Machine, level: Level, images: Machine) -> None:
    created = place.create(level, "true")
    stopped = place.create(level, "touch", "/here")
    try:
        stopped.start()
        stopped.wait()
        say(place, "commit", created.name, "nothing:1")
        say(place, "commit", "-p=false", stopped.name, "something:1")
    finally:
        created.remove()
        stopped.remove()
    assert place.engine.images.get("nothing:1").layers == place.engine.images.get("busybox").layers
    assert config_of(place, "nothing:1")["history"][-1]["empty_layer"] is True
    assert place.shell(level, "ls /here", image="something:1") == "/here\n"


def test_commit_of_a_container_on_the_host_s_own_files(module_machine: Machine, images: Machine, tmp_path: Path) -> None:
    container = module_machine.create(Level("container", "container"), "sh", "-c", "echo 1 > /one", image="host")
    try:
        container.start()
        assert container.wait() == 0
        say(module_machine, "commit", container.name, "hosted:1")
        done = module_machine.command("export", "-o", tmp_path / "x.tar", container.name)
        assert (done.returncode, "/usr is the host's own" in done.stderr) == (0, True)
    finally:
        container.remove()
    assert module_machine.shell(Level("container", "container"), "cat /one; ls -d /usr/bin", image="hosted:1").split() == ["1", "/usr/bin"]
    assert "those are the host's" in say(module_machine, "image", "mount", "hosted:1", code=1)


def test_commit_outlives_its_image(place: Machine, level: Level, images: Machine, busybox_image: Path, tmp_path: Path) -> None:
    """Layers in use stay although their image was removed by force, and a commit stands on them."""
    base = place.create(level, "touch", "/first")
    try:
        base.start()
        base.wait()
        say(place, "commit", base.name, "gone:1")
    finally:
        base.remove()
    second = place.create(level, "touch", "/second", image="gone:1")
    try:
        second.start()
        second.wait()
        say(place, "rmi", "-f", "gone:1")
        say(place, "commit", second.name, "kept:1")
    finally:
        second.remove()
    assert place.shell(level, "ls /first /second", image="kept:1").split() == ["/first", "/second"]
    say(place, "save", "-o", tmp_path / "kept.tar", "kept:1")
    say(place, "rmi", "kept:1")
    say(place, "load", "-i", tmp_path / "kept.tar")
    assert place.shell(level, "ls /first /second", image="kept:1").split() == ["/first", "/second"]


def test_commit_pauses(module_machine: Machine, images: Machine) -> None:
    """A pair of files that is always written together is together in the image, where the machine can pause; else it is said."""
    level = Level("container", "container", {"memory_bytes": 64 << 20} if bulle_limits(module_machine) else {})
    script = "while :; do echo >> /a; echo >> /b; done"
    with module_machine.running(level, "sh", "-c", script, image="busybox") as container:
        wait_for(lambda: len(container.files.changes()) >= 2, "it writes")
        done = module_machine.command("commit", container.name, "paused:1")
        assert done.returncode == 0, done
        before = module_machine.execute(container, "wc", "-c", "/a").stdout
        wait_for(lambda: module_machine.execute(container, "wc", "-c", "/a").stdout != before, "it goes on")
    if "went on" in done.stderr:
        return
    first, second = map(int, module_machine.shell(level, "wc -c < /a; wc -c < /b", image="paused:1").split())
    assert first - second in (0, 1)


@pytest.mark.parametrize("spawner", ["", "1"], ids=["spawned", "alone"])
def test_a_commit_that_is_killed_lets_its_container_go_on(module_machine: Machine, images: Machine, spawner: str) -> None:
    """Whoever is killed by force cannot clean up behind itself, whether the command is the process that works or the spawner's child is."""
    level = Level("container", "container", {"memory_bytes": 256 << 20} if bulle_limits(module_machine) else {})
    script = "head -c 150000000 /dev/urandom > /big; exec sleep 1000"
    with module_machine.running(level, "sh", "-c", script, image="busybox", network="none") as container:
        wait_for(lambda: b"sleep" in module_machine.execute(container, "cat", "/proc/1/comm").stdout, "it has written")
        paused = 0
        for _ in range(5):
            environment = module_machine.environment | {"BULLE_NO_SPAWNER": spawner}
            command = module_machine.start_command("commit", container.name, "killed:1", env=environment)
            wait_for(lambda command=command: container.is_paused() or command.poll() is not None, "it is paused")
            paused += container.is_paused()
            command.kill()
            command.wait()
            wait_for(lambda: not container.is_paused(), "it goes on")
        assert paused or not bulle_limits(module_machine)


def bulle_limits(place: Machine) -> bool:
    from bulle.isolation.driver import Feature

    return Feature.MEMORY_LIMIT in usable(Level("container", "container"), place.home)


CHANGES = (
    'CMD ["a", "b"]',
    "ENTRYPOINT run this",
    "ENV one=1 two='2 words' PATH=/x",
    "ENV old form of it",
    "EXPOSE 80 53/udp 8000-8002/tcp",
    'LABEL a=b "c d"="e f"',
    "ONBUILD RUN make",
    "USER nobody:nogroup",
    'VOLUME ["/data", "/more"]',
    "VOLUME /third",
    "WORKDIR /srv",
    "WORKDIR below",
    "STOPSIGNAL SIGINT",
    "HEALTHCHECK --interval=5s --timeout=1m30s --retries=3 CMD wget -q localhost",
)
COMPARED = (
    "Cmd", "Entrypoint", "Env", "ExposedPorts", "Labels", "OnBuild", "User", "Volumes", "WorkingDir", "StopSignal", "Healthcheck",
)  # fmt: skip


@pytest.mark.root
@pytest.mark.slow
@DOCKER
def test_commit_is_docker_s(dockerd: Docker, module_machine: Machine, images: Machine, busybox_image: Path) -> None:
    dockerd("load", "-i", str(busybox_image))
    # Docker knows no STOPSIGNAL here, for no reason that its manual gives.
    words = [word for change in CHANGES if not change.startswith("STOPSIGNAL") for word in ("-c", change)]
    run = ("--name", "committed", "--network", "none", "-e", "given=x", "-u", "daemon", "-w", "/tmp", "--label", "l=1")
    run += ("busybox", "sh", "-c", "echo 1 > x")
    found: dict[str, list[Any]] = {}
    try:
        for name, engine in (("docker", lambda *words: dockerd(*words).stdout), ("bulle", lambda *words: say(module_machine, *words))):
            engine("run", *run)
            engine("commit", "-a", "me", "-m", "a message", "committed", "plain:1")
            engine("commit", *words, "committed", "changed:1")
            for image in ("plain:1", "changed:1"):
                [document] = json.loads(engine("image", "inspect", image))
                config = {key: document["Config"].get(key) or None for key in COMPARED}
                found.setdefault(name, []).append(config)
            found[name].append(engine("history", "--format", "{{.CreatedBy}}|{{.Comment}}", "plain:1"))
            found[name].append(engine("diff", "committed"))
    finally:
        dockerd("rm", "-f", "committed", check=False)
        dockerd("rmi", "-f", "plain:1", "changed:1", check=False)
        module_machine.command("rm", "-f", "committed")
    for ours, theirs in zip(found["bulle"], found["docker"], strict=True):
        if isinstance(ours, dict):
            ours["Env"], theirs["Env"] = sorted(ours["Env"]), sorted(theirs["Env"])
        assert ours == theirs


WRONG = (
    "RUN make", "CMD", "ENV alone", "EXPOSE http", "EXPOSE 0", "EXPOSE 70000", "HEALTHCHECK often", "ENV 'a=b", "ONBUILD ONBUILD RUN x",
    "HEALTHCHECK --x=1 CMD a",
)  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_changes_that_are_none(module_machine: Machine, images: Machine, text: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        apply_changes({}, [text])
    archive = tmp_path / "root.tar"
    with tarfile.open(archive, "w") as out:
        out.addfile(tarfile.TarInfo("file"))
    before = [image.id for image in module_machine.engine.images.list()]
    say(module_machine, "import", "-c", text, archive, code=1)
    assert [image.id for image in module_machine.engine.images.list()] == before


def packed(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o755
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {"plain": bytes, "gzip": gzip.compress, "xz": lzma.compress}


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("way", ["file", "stdin", "url"])
def test_import(module_machine: Machine, images: Machine, busybox_rootfs: Path, tmp_path: Path, compression: str, way: str) -> None:
    content = COMPRESSIONS[compression](packed({"bin/sh": (busybox_rootfs / "bin/busybox").read_bytes(), "hello": b"hello\n"}))
    archive = tmp_path / "root.tar"
    archive.write_bytes(content)
    flags = ("-m", "by a test", "-c", 'ENTRYPOINT ["/bin/sh", "-c", "read l < /hello; echo $l"]', "-c", "LABEL a=b", "--platform", "linux/amd64")
    if way == "file":
        printed = say(module_machine, "import", *flags, archive, "imported:1")
    elif way == "stdin":
        with archive.open("rb") as stream:
            command = module_machine.start_command("import", *flags, "-", "imported:1", stdin=stream, stdout=-1)
            printed = command.communicate(timeout=240)[0].decode()
    else:
        with Served(content) as url:
            printed = say(module_machine, "import", *flags, url, "imported:1")
            assert "404" in say(module_machine, "import", f"{url}-missing", code=1)
    image = module_machine.engine.images.get("imported:1")
    assert printed == image.id + "\n"
    assert module_machine.run(Level("container", "container"), image="imported:1").stdout == b"hello\n"
    config = config_of(module_machine, "imported:1")
    assert (config["os"], config["architecture"], config["history"][0]["comment"]) == ("linux", "amd64", "by a test")


class Served:
    """A web server with one file, for as long as the block lasts."""

    def __init__(self, content: bytes) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = self.path == "/root.tar"
                self.send_response(200 if found else 404)
                self.send_header("Content-Length", str(len(content) if found else 0))
                self.end_headers()
                self.wfile.write(content if found else b"")

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_port}/root.tar"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.mark.parametrize(
    "content",
    [b"", b"no archive", bytes(10240), packed({"../escape": b"1"}), packed({"/absolute": b"1"}), gzip.compress(packed({"a": b"1" * 100_000}))[:-30]],
    ids=["empty", "words", "no members", "climbing", "absolute", "cut short"],
)
def test_import_of_what_is_no_root_leaves_nothing(module_machine: Machine, images: Machine, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "root.tar").write_bytes(content)
    kept = sorted(os.listdir(module_machine.home / "layers/sha256"))
    said = say(module_machine, "import", tmp_path / "root.tar", "broken:1", code=1)
    assert len(said.splitlines()) == 1
    assert "broken" not in say(module_machine, "images")
    assert sorted(os.listdir(module_machine.home / "layers/sha256")) == kept


@pytest.mark.root
@pytest.mark.slow
@DOCKER
def test_import_of_docker_s_export_and_back(dockerd: Docker, module_machine: Machine, images: Machine, busybox_image: Path, tmp_path: Path) -> None:
    dockerd("load", "-i", str(busybox_image))
    try:
        dockerd("run", "--name", "exported", "--network", "none", "busybox", "sh", "-c", "echo 1 > /one; chown 33:33 /one")
        dockerd("export", "-o", str(tmp_path / "docker.tar"), "exported")
        say(module_machine, "import", tmp_path / "docker.tar", "theirs:1")
        level = Level("container", "container")
        assert module_machine.shell(level, "stat -c %u:%g /one", image="theirs:1") == "33:33\n"
        container = module_machine.create(level, "true", image="theirs:1")
        try:
            say(module_machine, "export", "-o", tmp_path / "bulle.tar", container.name)
        finally:
            container.remove()
        dockerd("import", str(tmp_path / "bulle.tar"), "ours:1")
        assert dockerd("run", "--rm", "--network", "none", "ours:1", "stat", "-c", "%u:%g", "/one").stdout == "33:33\n"
    finally:
        dockerd("rm", "-f", "exported", check=False)
        dockerd("rmi", "-f", "ours:1", check=False)


@pytest.mark.root
@pytest.mark.slow
@DOCKER
def test_history_is_docker_s(dockerd: Docker, module_machine: Machine, images: Machine, busybox_image: Path) -> None:
    dockerd("load", "-i", str(busybox_image))
    engines = {"docker": lambda *words: dockerd(*words).stdout, "bulle": lambda *words: say(module_machine, *words)}
    form = "{{.ID}}|{{.CreatedBy}}|{{.CreatedAt}}|{{.Comment}}"
    asked = (("--format", form), ("--no-trunc", "--format", form), ("-q",), ("-q", "--no-trunc"), ("--human=false", "--format", "{{.CreatedSince}}"))
    for arguments in asked:
        said = {name: engine("history", *arguments, "busybox") for name, engine in engines.items()}
        assert said["bulle"] == said["docker"], arguments
    for arguments in ((), ("-H=false",)):
        heads = {name: re.split(r"\s{2,}", engine("history", *arguments, "busybox").split("\n")[0].strip()) for name, engine in engines.items()}
        assert heads["bulle"] == heads["docker"]


def test_history_shows_every_step(module_machine: Machine, images: Machine) -> None:
    container = module_machine.create(Level("container", "container"), "sh", "-c", "exit 0")
    try:
        module_machine.engine.images.commit(container, "step:1", message="first")
        module_machine.engine.images.commit(container, "step:2", message="m" * 80, changes=["CMD x"])
    finally:
        container.remove()
    rows = module_machine.engine.images.history("step:2")
    assert [row.comment for row in rows] == ["m" * 80, ""]
    assert [row.id == "<missing>" for row in rows] == [False, True]
    assert rows[0].size_bytes == 0 and rows[1].size_bytes == module_machine.engine.images.get("busybox").size_bytes
    assert say(module_machine, "history", "missing:1", code=1).startswith("bulle: no such image")
