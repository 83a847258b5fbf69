"""Events are those that Docker tells when the same is done: their order, words and attributes, and what filters and forms show of them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from bulle_testing.peers import Docker, docker_archive, pack
from conftest import BulleCommand

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.programs("dockerd", "docker", "containerd", "runc")]

Say = Callable[..., str]
# What Docker does besides: a pause while it commits, prunes that have to ask it first, and networks, which Bulle has not yet.
ONLY_DOCKER = re.compile(r" network (connect|disconnect) | container (pause|unpause) ")
LINE = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}(?:Z|[+-]\d\d:\d\d)) (\w+) (.*)")
NAMES = ("one", "web", "renamed", "new")


@pytest.fixture
def both(dockerd: Docker, bulle: BulleCommand, busybox_rootfs: Path, tmp_path: Path) -> Iterator[dict[str, Say]]:
    """Docker and Bulle, the same image's archive at hand."""
    docker_archive(tmp_path / "image.tar", [pack(busybox_rootfs)], tags=["labelled:1"], config={"Labels": {"made": "here"}})

    def docker_says(*arguments: str) -> str:
        done = dockerd(*arguments, check=False)
        return done.stdout + done.stderr

    def bulle_says(*arguments: str) -> str:
        done = bulle(*arguments)
        return done.stdout + done.stderr

    try:
        yield {"Docker": docker_says, "Bulle": bulle_says}
    finally:
        for name in NAMES:
            dockerd("rm", "-f", name, check=False)
        for name in ("labelled:1", "labelled:2", "committed:1", "imported:1"):
            dockerd("rmi", "-f", name, check=False)


def everything(say: Say, directory: Path) -> None:
    """A life with nearly every verb."""
    archive = str(directory / "image.tar")
    say("load", "-i", archive)
    say("tag", "labelled:1", "labelled:2")
    say("save", "-o", str(directory / "saved.tar"), "labelled:2")
    say("run", "--rm", "--name", "one", "-l", "a=b", "--network", "none", "labelled:1", "true")
    say("run", "-d", "--name", "web", "--network", "none", "labelled:1", "sleep", "1000")
    say("exec", "web", "sh", "-c", "exit 3")
    say("rename", "web", "renamed")
    say("kill", "-s", "WINCH", "renamed")
    say("cp", "renamed:/etc/passwd", str(directory / "passwd"))
    say("cp", str(directory / "passwd"), "renamed:/tmp/")
    say("export", "-o", str(directory / "exported.tar"), "renamed")
    say("top", "renamed")
    say("commit", "-m", "why", "renamed", "committed:1")
    say("restart", "-t", "0", "renamed")
    say("stop", "-t", "0", "renamed")
    say("start", "renamed")
    say("rm", "-f", "renamed")
    say("create", "--name", "new", "--network", "none", "labelled:1", "false")
    say("start", "new")
    say("wait", "new")
    time.sleep(0.2)  # Docker writes the end down a little later than it tells it
    say("container", "prune", "-f")
    say("rmi", "labelled:2")
    say("rmi", "committed:1")
    say("builder", "prune", "-f")


def told(text: str) -> list[str]:
    """The lines without their times, and names in the place of ids."""
    lines = []
    for line in text.splitlines():
        if ONLY_DOCKER.search(line):
            continue
        match = LINE.fullmatch(line)
        assert match is not None, line
        plain = re.sub(r"execID=[0-9a-f]{64}", "execID=…", f"{match[2]} {match[3]}")
        lines.append(re.sub(r"(sha256:)?[0-9a-f]{64}", "…", plain))
    return lines


def test_a_life_is_told_as_docker_tells_it(both: dict[str, Say], tmp_path: Path) -> None:
    said: dict[str, list[str]] = {}
    for name, say in both.items():
        since = f"{time.time():.9f}"
        everything(say, tmp_path)
        said[name] = told(say("events", "--since", since, "--until", f"{time.time():.9f}"))
    # Which path was copied is told by Bulle, and what a prune had back is its own matter.
    ours = [re.sub(r", path=[^,)]*", "", re.sub(r"reclaimed=\d+", "reclaimed=…", line)) for line in said["Bulle"]]
    theirs = [re.sub(r"reclaimed=\d+", "reclaimed=…", line) for line in said["Docker"]]
    # Docker no longer knows the labels of an image that it has just deleted.
    deleted = "image delete … ("
    ours = [line.replace("made=here, ", "") if line.startswith(deleted) else line for line in ours]
    assert ours == theirs


FILTERS = (
    "type=container", "type=image", "event=die", "event=exec_create", "event=exec", "container=one", "container=ren", "label=a", "label=a=b",
    "label=a=c", "label=made", "image=labelled:1", "image=labelled", "image=nosuch", "scope=local", "type=nosuch",
)  # fmt: skip
FORMS = (
    "{{.Type}} {{.Action}} {{.Status}} {{.From}}", "{{.Actor.Attributes.name}} {{.Actor.Attributes.nosuch}}", "{{.Scope}} {{len .ID}}",
    "{{json .Actor.Attributes.name}}", "{{if eq .Action \"die\"}}{{.Actor.Attributes.exitCode}}{{end}}",
)  # fmt: skip


def test_filters_and_forms_show_what_docker_s_show(both: dict[str, Say], tmp_path: Path) -> None:
    shown: dict[str, dict[str, object]] = {}
    for name, say in both.items():
        since = f"{time.time():.9f}"
        say("load", "-i", str(tmp_path / "image.tar"))
        say("run", "--rm", "--name", "one", "-l", "a=b", "--network", "none", "labelled:1", "true")
        say("run", "-d", "--name", "renamed", "--network", "none", "labelled:1", "sleep", "1000")
        say("exec", "renamed", "true")
        say("rm", "-f", "renamed")
        period = ("--since", since, "--until", f"{time.time():.9f}")
        shown[name] = {f"--filter {one}": told(say("events", *period, "--filter", one)) for one in FILTERS}
        local = ("--filter", "type=container", "--filter", "type=image")
        shown[name] |= {f"--format {one}": say("events", *period, *local, "--format", one) for one in FORMS}
        documents = [json.loads(line) for line in say("events", *period, *local, "--format", "json").splitlines()]
        shown[name]["keys"] = [list(one) for one in documents]
        shown[name]["times"] = all(since <= f"{one['timeNano'] / 1e9:.9f}" and one["time"] == one["timeNano"] // 10**9 for one in documents)
    assert {one: text for one, text in shown["Bulle"].items() if text != shown["Docker"][one]} == {}
    assert shown["Bulle"]["times"] is True


def test_what_cannot_be_done_fails_as_docker_s(both: dict[str, Say], dockerd: Docker, bulle: BulleCommand) -> None:
    for say in both.values():
        say("load", "-i", "/nosuch")
    lines = (
        ("rename", "nosuch", "x"), ("rename", "nosuch", ""), ("rename", "nosuch"), ("restart", "nosuch"), ("restart",),
        ("events", "--since", "5", "--until", "4"), ("events", "--since", "soon"), ("events", "extra"), ("events", "--nosuch"),
    )  # fmt: skip
    codes = {words: (dockerd(*words, check=False).returncode, bulle(*words).returncode) for words in lines}
    assert {words: code for words, code in codes.items() if code[0] != code[1]} == {}


def test_names_are_changed_as_docker_changes_them(both: dict[str, Say], tmp_path: Path) -> None:
    shown: dict[str, list[str]] = {}
    for name, say in both.items():
        say("load", "-i", str(tmp_path / "image.tar"))
        say("create", "--name", "one", "--network", "none", "labelled:1", "true")
        identifier = say("run", "-d", "--name", "web", "--network", "none", "labelled:1", "sleep", "1000").strip()
        before = say("exec", "web", "hostname")
        names = ("web", "one", "a/b", "", " ", "-x", "x" * 3, "/renamed", "renamed")
        shown[name] = [str(bool(say("rename", identifier, one))) for one in names]
        shown[name].append(say("ps", "--format", "{{.Names}}"))
        assert say("exec", "renamed", "hostname") == before == identifier[:12] + "\n"
        shown[name].append(say("inspect", "-f", "{{.Name}}", identifier))
        shown[name].append(say("create", "--name", "web", "--network", "none", "labelled:1", "true")[:0])  # the old name is free
        for left in ("web", "one", "renamed"):
            with suppress(AssertionError):
                say("rm", "-f", left)
    assert shown["Bulle"] == shown["Docker"]
