"""``bulle -H ssh://…`` and contexts: every verb on another machine, by a real sshd; files carried there and back; failures in one sentence."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bulle.version import VERSION
from bulle_testing import places
from bulle_testing.running import Machine, Terminal, wait_for
from bulle_testing.ssh_servers import OtherMachine, other_machine

pytestmark = [pytest.mark.slow, pytest.mark.programs("sshd", "ssh")]


class Fleet:
    """Two homes: the command's own, which stays empty, and the other machine's."""

    def __init__(self, here: Path, there: Machine, other: OtherMachine) -> None:
        self.here, self.there, self.other = here, there, other
        self.environment = other.environment(here)

    def start(self, *arguments: str | Path, host: str = "", **options: Any) -> subprocess.Popen[bytes]:
        line = [*places.command_line(), "-H", host or self.other.host, *map(str, arguments)]
        return subprocess.Popen(line, **{"env": self.environment, "stdin": subprocess.DEVNULL, **options})

    def __call__(self, *arguments: str | Path, code: int = 0, host: str = "", input: bytes | None = None, **options: Any) -> str:
        """What a verb wrote to standard output there, or where it must fail to standard error."""
        stdin: dict[str, Any] = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        line = [*places.command_line(), *(["-H", host or self.other.host] if host != "-" else []), *map(str, arguments)]
        # What runs on this machine itself needs no spawner that outlives it.
        environment = {**self.environment, "BULLE_NO_SPAWNER": "1"} if host == "-" else self.environment
        done = subprocess.run(line, capture_output=True, timeout=240, check=False, **{"env": environment, **stdin, **options})
        assert done.returncode == code, (done.stdout, done.stderr)
        return (done.stderr if code else done.stdout).decode()

    def refused(self, *arguments: str | Path, code: int = 1, **options: Any) -> str:
        """The one sentence of a verb that fails."""
        said = self(*arguments, code=code, **options)
        assert said.startswith("bulle: ") and len(said.splitlines()) == 1, said
        return said


@pytest.fixture(scope="module")
def other(run_directory: Path, module_machine: Machine) -> Iterator[OtherMachine]:
    with other_machine(run_directory / "sshd", module_machine.home) as made:
        yield made


@pytest.fixture
def fleet(box: Machine, other: OtherMachine, tmp_path: Path) -> Iterator[Fleet]:
    here = tmp_path / "here"
    made = Fleet(here, box, other)
    yield made
    assert not (here / "run/spawner.sock").exists(), "a command for another machine needs no spawner here"
    assert carried(box) == []


def carried(there: Machine) -> list[str]:
    """Files that were carried and are still there."""
    wait_for(lambda: not list((there.home / "tmp").glob("*/in")), "what was carried is removed")
    return [str(path) for path in (there.home / "tmp").glob("*/*")]


def test_words_streams_and_the_exit_code_go_through(fleet: Fleet) -> None:
    odd = ["", "a  b", "it's", "$HOME `id` !x", "100%", "new\nline", "back\\slash", "é", "*", "~"]
    script = 'for word; do printf "<%s>" "$word"; done; cat; echo mistake >&2; exit 7'
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    done = fleet.start("run", "-i", "--rm", "busybox", "sh", "-c", script, "sh", *odd, **pipes)
    out, error = done.communicate(b"from here\0\xff", timeout=240)
    assert out == "".join(f"<{word}>" for word in odd).encode() + b"from here\0\xff"
    assert (error, done.returncode) == (b"mistake\n", 7)
    assert fleet("run", "--rm", "busybox", "sh", "-c", "exit 255", code=255) == ""


def test_a_verb_that_reads_nothing_leaves_the_input_alone(fleet: Fleet) -> None:
    line = f"while read -r line; do echo got $line; {places.command_line()[0]} -H ssh://box ps -q; done"
    done = subprocess.run(["sh", "-c", line], input="1\n2\n", env=fleet.environment, capture_output=True, text=True, timeout=240, check=True)
    assert done.stdout == "got 1\ngot 2\n"


def test_contexts_name_machines(fleet: Fleet) -> None:
    assert fleet("context", "create", "away", "ssh://box", host="-") == "away\n"
    assert fleet("context", "create", "docker-like", "--docker", "host=ssh://box:22", host="-") == "docker-like\n"
    fleet.refused("context", "create", "away", "ssh://box", host="-")
    fleet.refused("context", "create", "bad", "tcp://box", host="-")
    container = fleet("--context", "away", "create", "--name", "known", "busybox", host="-")
    try:
        assert fleet("context", "use", "away", host="-") == "away\n"
        assert fleet("ps", "-aq", "--no-trunc", host="-", env=fleet.environment) == container
        assert "away *" in fleet("context", "ls", host="-")
        assert fleet("--context", "default", "ps", "-aq", host="-") == ""
        fleet.refused("context", "rm", "away", host="-")
        fleet("context", "use", "default", host="-")
        variables = {**fleet.environment, "BULLE_HOST": "ssh://box"}
        assert fleet("ps", "-aq", "--no-trunc", host="-", env=variables) == container
        assert fleet("ps", "-aq", "--no-trunc", host="-", env={**fleet.environment, "BULLE_CONTEXT": "away"}) == container
    finally:
        fleet("rm", "known")
    assert fleet("context", "rm", "away", host="-") == "away\n"
    assert "does not exist" in fleet.refused("-c", "away", "ps", host="-", code=125)


def test_files_of_flags_are_this_machines(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("A=1\nTAKEN\n# no\n")
    (tmp_path / "labels").write_text("owner=me\n")
    (tmp_path / "profile.json").write_text('{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]}')
    flags = ["--env-file", "env", "-e", "BARE", "-e", "B=2", "--label-file", "labels", "--security-opt", "seccomp=profile.json", "-v", "./x:/mnt"]
    (tmp_path / "x").mkdir()
    shown = fleet(
        "run", "--rm", "--name", "files", *flags, "busybox", "sh", "-c", "env; mkdir /tmp/y || echo refused",
        cwd=tmp_path, env={**fleet.environment, "TAKEN": "2 words", "BARE": "bare"},
    )  # fmt: skip
    assert {"A=1", "TAKEN=2 words", "BARE=bare", "B=2", "refused"} <= set(shown.splitlines())
    identity = fleet("create", "--cidfile", "id", "--label-file", "labels", "busybox", cwd=tmp_path)
    assert (tmp_path / "id").read_text() == identity.strip()
    assert fleet("inspect", "-f", "{{.Config.Labels.owner}}", identity.strip()) == "me\n"
    fleet("rm", identity.strip())
    assert "cidfile" in fleet.refused("run", "--cidfile", "other", "busybox", cwd=tmp_path, code=125)
    assert "no such file" in fleet.refused("run", "--env-file", "missing", "busybox", cwd=tmp_path, code=125)


def test_archives_stream(fleet: Fleet, tmp_path: Path) -> None:
    fleet("save", "-o", tmp_path / "image.tar", "busybox")
    assert "no such image" in fleet("save", "-o", tmp_path / "none.tar", "nothing", code=1) and not (tmp_path / "none.tar").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) in (["image.tar"], ["here", "image.tar"])
    assert fleet("load", "-i", tmp_path / "image.tar") == "Loaded image: busybox:latest\n"
    assert fleet("load", input=(tmp_path / "image.tar").read_bytes()) == "Loaded image: busybox:latest\n"
    assert fleet("pull", f"docker-archive:{tmp_path / 'image.tar'}").strip()
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("file"))
    (tmp_path / "root.tar").write_bytes(content.getvalue())
    assert fleet("import", tmp_path / "root.tar", "mine").startswith("sha256:")
    fleet("rmi", "mine")
    fleet("volume", "import", "data", tmp_path / "root.tar")
    fleet("volume", "export", "-o", tmp_path / "back.tar", "data")
    fleet("volume", "rm", "data")
    with tarfile.open(tmp_path / "back.tar") as archive:
        assert any(name.endswith("file") for name in archive.getnames())


def test_copies_go_by_dockers_table(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/sub/file").write_text("content")
    (tmp_path / "tree/link").symlink_to("sub/file")
    fleet("create", "--name", "copies", "busybox")
    try:
        fleet("cp", "tree", "copies:/opt/new", cwd=tmp_path)
        fleet("cp", "tree/.", "copies:/opt", cwd=tmp_path)
        fleet("cp", "tree/link", "copies:/as-link", cwd=tmp_path)
        fleet("cp", "-L", "tree/link", "copies:/as-file", cwd=tmp_path)
        fleet("cp", "copies:/opt/new", "out", cwd=tmp_path)
        fleet("cp", "copies:/opt/sub/file", "out/", cwd=tmp_path)
        fleet("cp", "copies:/as-file", "renamed", cwd=tmp_path)
        fleet("cp", "copies:/as-link", ".", cwd=tmp_path)
        assert (tmp_path / "out/sub/file").read_text() == (tmp_path / "out/file").read_text() == (tmp_path / "renamed").read_text() == "content"
        assert os.readlink(tmp_path / "out/link") == os.readlink(tmp_path / "as-link") == "sub/file"
        assert "must exist" in fleet.refused("cp", "copies:/as-file", "missing/", cwd=tmp_path)
        assert "no such file" in fleet.refused("cp", "nothing", "copies:/", cwd=tmp_path)
        assert "Could not find" in fleet("cp", "copies:/nothing", "x", cwd=tmp_path, code=1) and not (tmp_path / "x").exists()
    finally:
        fleet("rm", "-f", "copies")


def test_a_build_carries_its_context(fleet: Fleet, tmp_path: Path) -> None:
    context = tmp_path / "context"
    context.mkdir()
    secret = "RUN --mount=type=secret,id=s echo $WHO $(cat /run/secrets/s) >/made"
    (context / "Containerfile").write_text(f"FROM busybox\nCOPY . /data\nARG WHO\n{secret}\n")
    (context / ".dockerignore").write_text("left-out\n")
    (context / "file").write_text("content")
    (context / "left-out").write_text("x" * 100)
    flags = ["-q", "-t", "made", "--build-arg", "WHO", "--secret", "id=s,env=HIDDEN", "--iidfile", "id"]
    identity = fleet("build", *flags, "context", cwd=tmp_path, env={**fleet.environment, "WHO": "me", "HIDDEN": "secret"})
    assert (tmp_path / "id").read_text() == identity.strip()
    try:
        assert fleet("run", "--rm", "made", "sh", "-c", "cat /made; ls -A /data") == "me secret\n.dockerignore\nContainerfile\nfile\n"
        (tmp_path / "elsewhere").write_text("FROM scratch\nCOPY file /only\n")
        fleet("build", "-q", "-f", "elsewhere", "-o", "result", "context", cwd=tmp_path)
        assert (tmp_path / "result/only").read_text() == "content"
    finally:
        fleet("rmi", "made")


def test_a_terminal_is_one_there(fleet: Fleet) -> None:
    class There(Machine):
        def __init__(self) -> None:
            self.environment = fleet.environment

    terminal = Terminal(There(), "-H", "ssh://box", "run", "-it", "--rm", "busybox", "sh", rows=33, columns=111)
    terminal.expect("# ")
    terminal.type("stty size; tty\n")
    terminal.expect("33 111")
    terminal.type("exit 3\n")
    assert terminal.wait() == 3


def test_signals_go_to_the_command_there(fleet: Fleet) -> None:
    script = 'trap "echo caught; exit 5" TERM; echo ready; while :; do sleep 0.1; done'
    command = fleet.start("run", "--rm", "busybox", "sh", "-c", script, stdout=subprocess.PIPE)
    assert command.stdout is not None
    assert command.stdout.readline() == b"ready\n"
    command.send_signal(signal.SIGTERM)
    assert command.stdout.read() == b"caught\n"
    assert command.wait(60) == 5
    command.stdout.close()


def test_the_command_there_ends_with_the_one_here(fleet: Fleet) -> None:
    fleet("run", "-d", "--name", "talks", "busybox", "sh", "-c", "echo one; sleep 1000")
    try:
        command = fleet.start("logs", "-f", "talks", stdout=subprocess.PIPE)
        assert command.stdout is not None
        assert command.stdout.readline() == b"one\n"
        assert stubs()
        command.kill()
        command.wait()
        command.stdout.close()
        wait_for(lambda: not stubs(), "the command there has ended")
    finally:
        fleet("rm", "-f", "talks")


def stubs() -> list[str]:
    """Commands that came from another machine and run."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"--fleet" in words and b"logs" in words:
            found.append(str(entry))
    return found


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("ssh://stranger", "its host key is not known"),
        ("ssh://changed", "its host key is another than the known one"),
        ("ssh://locked", "it does not accept this user or key"),
        ("ssh://127.0.0.1:1", "nothing listens for ssh there"),
        ("ssh://nowhere.invalid", "its name is not known"),
        ("tcp://box", "it is not ssh://"),
        ("ssh://-oProxyCommand=true", "it is not ssh://"),
        ("ssh://a@-b", "it is not ssh://"),
        ("ssh://box:0", "it is not ssh://"),
    ],
)
def test_what_cannot_be_reached_is_said_in_one_sentence(fleet: Fleet, tmp_path: Path, host: str, words: str) -> None:
    code = 125 if "it is not" in words else 1
    assert words in fleet.refused("ps", host=host, code=code)
    (tmp_path / "env").write_text("A=1\n")
    assert words in fleet.refused("exec", "--env-file", tmp_path / "env", "x", "true", host=host, code=code)


def test_a_machine_without_bulle_or_with_another_version(run_directory: Path, tmp_path: Path, fleet: Fleet) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    with other_machine(run_directory / "sshd-bare", fleet.there.home, str(programs)) as bare:
        alone = Fleet(tmp_path / "here", fleet.there, bare)
        (tmp_path / "env").write_text("A=1\n")
        for words in (["ps"], ["exec", "--env-file", str(tmp_path / "env"), "x", "true"]):
            assert "there is no bulle on box" in alone.refused(*words, code=125)
        # A bulle of another version, as far as the asking one can tell: it says its own in the words.
        (programs / "bulle").write_text(f'#!/bin/sh\nflag=$1; shift 2; exec {places.command_line()[0]} "$flag" 0.0.1 "$@"\n')
        (programs / "bulle").chmod(0o755)
        assert f"this machine has Bulle {VERSION}: the one that asks has 0.0.1" in alone.refused("ps", code=1)


def test_what_cannot_be_meant_elsewhere_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    for words in (["serve"], ["push", "busybox", "oci:x"], ["run", "dir:/x"], ["build", "--ssh", "id=/run/agent", str(tmp_path)]):
        fleet.refused(*words, code=125 if words[0] == "run" else 1)


def test_an_app_is_read_here_and_runs_there(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made/Containerfile").write_text("FROM busybox\nCOPY file /file\n")
    (tmp_path / "made/file").write_text("built\n")
    (tmp_path / ".env").write_text("WHO=env file\n")
    (tmp_path / "env").write_text("FROM_FILE=$$1\n")
    (tmp_path / "password").write_text("secret\n")
    (tmp_path / "compose.yaml").write_text(
        """
services:
  web:
    build: made
    image: fleet-made
    command: [sh, -c, 'echo "$$WHO $$FROM_FILE $$(cat /file /run/secrets/password /run/secrets/token)"; sleep 1000']
    environment: {WHO: "${WHO}"}
    env_file: env
    secrets: [password, token]
    stop_signal: KILL
  more: {image: busybox, command: [sleep, "1000"], profiles: [extra], stop_signal: KILL}
secrets:
  password: {file: password}
  token: {environment: TOKEN}
"""
    )
    options: dict[str, Any] = {"cwd": tmp_path, "env": {**fleet.environment, "TOKEN": "of a variable", "COMPOSE_PROJECT_NAME": "away"}}
    try:
        fleet("compose", "up", "-d", **options)
        wait_for(lambda: "built" in fleet("compose", "logs", "--no-log-prefix", "web", **options), "it has said something")
        assert fleet("compose", "logs", "--no-log-prefix", "web", **options) == "env file $1 built\nsecret\nof a variable\n"
        before = fleet("compose", "ps", "-q", **options)
        assert len(before.splitlines()) == 1
        fleet("up", "-d", **options)
        assert fleet("compose", "-p", "away", "ps", "-q", env=options["env"]) == before, "the same app is not made anew"
        assert fleet("compose", "exec", "-T", "web", "cat", input=b"typed", **options) == "typed"
        fleet("compose", "cp", "made", "web:/copied", **options)
        fleet("compose", "cp", "web:/copied/file", "back", **options)
        assert (tmp_path / "back").read_text() == "built\n"
        fleet("compose", "--profile", "extra", "up", "-d", **options)
        assert len(fleet("compose", "--profile", "extra", "ps", "-q", **options).splitlines()) == 2
    finally:
        fleet("compose", "--profile", "extra", "down", "--rmi", "all", "-v", **options)
    assert "no such service" in fleet("compose", "up", "-d", "nothing", code=1, **options)
    assert "cannot be watched" in fleet.refused("up", "--watch", **options)
    assert "services" in fleet("compose", "config", **options)
