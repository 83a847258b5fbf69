"""The command line on an engine in memory: grammar, exit codes, messages, listings."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import click
import msgspec
import pytest

import bulle.engine
import bulle.monitor
from bulle.cli import main
from bulle.cli.verb import VerbGroup
from bulle.engine.booting import Outcome
from bulle.errors import BulleError, Unsupported
from bulle.model.container import ContainerOptions, ContainerState, VolumeOption
from bulle.model.lifecycle import Health
from bulle.model.run_plan import ResourceLimit
from bulle.model.volume import MountOption
from bulle_testing import fake_engine
from bulle_testing.fake_engine import FakeEngine


class CommandLine:
    """Runs command lines in this process and remembers what they printed."""

    def __init__(self, engine: FakeEngine, capture: pytest.CaptureFixture[str]) -> None:
        self.engine = engine
        self.capture = capture
        self.out = ""
        self.err = ""

    def __call__(self, *argv: str, code: int = 0) -> str:
        self.capture.readouterr()
        returned = main.run(list(argv), lambda home: self.engine)
        self.out, self.err = self.capture.readouterr()
        assert returned == code, f"{argv} returned {returned}\n{self.out}{self.err}"
        assert "Traceback" not in self.err
        return self.out

    def options(self, *argv: str) -> ContainerOptions:
        """The options that `create` makes of these flags."""
        identity = self("create", *argv).strip()
        return self.engine.containers.by_id[identity].options


@pytest.fixture
def engine() -> FakeEngine:
    made = FakeEngine()
    made.images.add("img")
    return made


@pytest.fixture
def cli(engine: FakeEngine, capfd: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(engine, capfd)


def all_commands() -> list[tuple[str, click.Command]]:
    context = click.Context(main.ROOT, info_name="bulle")
    found: list[tuple[str, click.Command]] = []
    waiting: list[tuple[str, click.Command]] = [("bulle", main.ROOT)]
    while waiting:
        name, command = waiting.pop()
        found.append((name, command))
        if isinstance(command, VerbGroup):
            waiting += [(f"{name} {one}", command.get_command(context, one)) for one in command.verbs]
    return sorted(found, key=lambda one: one[0])


@pytest.mark.parametrize(("name", "command"), all_commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_verb_and_flag_has_help(name: str, command: click.Command) -> None:
    assert command.help, f"{name} has no help"
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"{name} {option.opts} has no help"


# What a user of Docker types: the flags of these verbs that the first issue promises.
FLAGS = {
    "run": "-d -i -t --rm --name -e --env-file -w -u -v --mount --tmpfs --read-only --hostname -h --entrypoint --cap-add --cap-drop --security-opt "
    "--ulimit --privileged --init --stop-signal --stop-timeout --label -l --pull --isolation --network --net --userns --hardened --memory -m "
    "--memory-swap --cpus --cpu-shares -c --cpuset-cpus --pids-limit --shm-size --platform --dry-run --cidfile -a --detach-keys --sig-proxy",
    "start": "-a -i",
    "stop": "-t -s",
    "kill": "-s",
    "rm": "-f -v",
    "ps": "-a -q -l -n -s --no-trunc --filter --format",
    "logs": "-f --tail -n --since --until -t --details",
    "exec": "-i -t -e --env-file -u -w -d --privileged",
    "inspect": "--type -f",
    "images": "-q -a --digests --no-trunc --filter --format",
    "load": "-i -q",
    "pull": "-a --all-tags -q --platform",
    "push": "-a --all-tags -q",
    "login": "-u --username -p --password --password-stdin",
    "save": "-o --format",
    "rmi": "-f",
}


@pytest.mark.parametrize("name", FLAGS)
def test_flags_of_docker_are_there(name: str) -> None:
    command = main.ROOT.get_command(click.Context(main.ROOT), name)
    assert command is not None
    known = {text for option in command.params for text in option.opts}
    assert set(FLAGS[name].split()) <= known


@pytest.mark.parametrize("argv", [["--help"], ["run", "--help"], ["ps", "-a", "--help"], ["container", "--help"], ["container", "ls", "--help"], []])
def test_help_is_no_error(cli: CommandLine, argv: list[str]) -> None:
    assert "Usage:" in cli(*argv)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["run", "--nosuch", "img"], "unknown flag: --nosuch"),
        (["run", "-iX", "img"], "unknown shorthand flag: 'X' in -iX"),
        (["--nosuch"], "unknown flag: --nosuch"),
        (["nosuch"], "unknown command: bulle nosuch"),
        (["container", "nosuch"], "unknown command: bulle container nosuch"),
        (["run"], "'bulle run' requires at least 1 argument"),
        (["exec", "one"], "'bulle exec' requires at least 2 arguments"),
        (["ps", "extra"], "'bulle ps' accepts no arguments"),
        (["tag", "one"], "'bulle tag' requires 2 arguments"),
        (["run", "--name"], "flag needs an argument: --name"),
        (["ps", "-n"], "flag needs an argument: 'n' in -n"),
        (["ps", "-n", "abc"], 'invalid argument "abc" for "-n, --last" flag: \'abc\' is not a whole number'),
        (["run", "-m", "much", "img"], 'invalid argument "much" for "-m, --memory" flag: invalid size: \'much\''),
        (["run", "--pull", "often", "img"], 'invalid argument "often" for "--pull" flag: it is one of always, missing, never'),
        (["rm", "-x"], "unknown shorthand flag: 'x' in -x"),
        (["run", "--rm=maybe", "img"], 'invalid argument "maybe" for "--rm" flag: it is true or false'),
    ],
)
def test_wrong_usage(cli: CommandLine, argv: list[str], message: str) -> None:
    cli(*argv, code=1 if message.startswith(("unknown command", "'bulle")) else 125)
    first, *rest = cli.err.splitlines()
    assert first == f"bulle: {message}"
    assert rest[1].startswith("Usage:  bulle")
    assert rest[3].endswith("--help' for more information")


def test_flags_in_all_of_dockers_spellings(cli: CommandLine) -> None:
    options = cli.options("-it", "--rm=false", "-e=A=1", "-eB=2", "--env=C=3", "-e", "D=4", "--name=x", "img", "echo", "--rm", "-e")
    assert (options.interactive, options.terminal, options.auto_remove) == (True, True, False)
    assert options.environment == ("A=1", "B=2", "C=3", "D=4")
    assert options.command == ("echo", "--rm", "-e")
    assert cli.options("--", "img", "-x").command == ("-x",)


def test_options_of_a_container(cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FROM_CALLER", "yes")
    monkeypatch.delenv("NOT_THERE", raising=False)
    (tmp_path / "env").write_bytes(b"\xef\xbb\xbf# a comment\n\n  INDENTED=1\r\nFROM_CALLER\nNOT_THERE\n")
    (tmp_path / "labels").write_text("a=1\nbare\n")
    (tmp_path / "profile").write_text('{"defaultAction": "SCMP_ACT_ALLOW"}')
    options = cli.options(
        *("--env-file", "env", "-e", "FROM_CALLER", "-e", "NOT_THERE", "-l", "b=2", "--label-file", "labels"),
        *("-v", "/a:/b:ro", "-v", "./c:/d", "--mount", "type=bind,src=/e,dst=/f,readonly", "--mount", "type=tmpfs,target=/g,tmpfs-size=1m"),
        *("--tmpfs", "/h:size=64k,mode=700", "--read-only", "-h", "box", "--entrypoint", "/x", "-w", "/w", "-u", "1:2"),
        *("--cap-add", "NET_ADMIN", "--cap-drop", "ALL", "--security-opt", "seccomp=profile", "--security-opt", "no-new-privileges"),
        *("--ulimit", "nofile=10:20", "--ulimit", "core=-1", "--privileged", "--hardened", "--userns", "host", "--isolation", "chroot"),
        *("--net", "host", "-m", "512m", "--memory-swap", "-1", "--cpus", "1.5", "-c", "512", "--cpuset-cpus", "0-1", "--pids-limit", "9"),
        *("--shm-size", "1g", "--init", "--stop-signal", "SIGINT", "--stop-timeout", "3", "--pull", "never", "--platform", "linux/arm64"),
        *("-i", "-t", "--rm", "img", "echo", "hi"),
    )
    assert options == ContainerOptions(
        image="img",
        command=("echo", "hi"),
        entrypoint=("/x",),
        environment=("INDENTED=1", "FROM_CALLER=yes", "FROM_CALLER=yes"),
        working_directory="/w",
        user="1:2",
        volumes=(VolumeOption("/a", "/b", True), VolumeOption(f"{tmp_path}/c", "/d"), VolumeOption("/e", "/f", True)),
        tmpfs=(("/h", "size=64k,mode=700"), ("/g", "size=1048576")),
        read_only=True,
        hostname="box",
        isolation="chroot",
        network="host",
        user_namespace="host",
        privileged=True,
        hardened=True,
        cap_add=("NET_ADMIN",),
        cap_drop=("ALL",),
        security_options=('seccomp={"defaultAction": "SCMP_ACT_ALLOW"}', "no-new-privileges"),
        limits=(ResourceLimit("nofile", 10, 20), ResourceLimit("core", -1, -1)),
        memory_bytes=512 << 20,
        memory_swap_bytes=-1,
        nano_cpus=1_500_000_000,
        cpu_shares=512,
        cpuset_cpus="0-1",
        pids_limit=9,
        shm_bytes=1 << 30,
        init=True,
        terminal=True,
        interactive=True,
        auto_remove=True,
        stop_signal="INT",
        stop_timeout_s=3,
        labels={"a": "1", "bare": "", "b": "2"},
        pull="never",
        platform="linux/arm64",
    )
    assert cli.options("--entrypoint", "", "img").entrypoint == ()


def test_mounts_of_a_container(cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = cli.options(
        *("-v", "data:/a:nocopy,ro", "-v", "/b", "-v", "/host:/c:rslave,z", "-v", "./here:/d:U", "-v", "n:/e", "--volumes-from", "x:ro"),
        *("--mount", 'source=v,dst=/f,volume-subpath=p/q,volume-label=k=v,volume-opt=type=tmpfs,"volume-opt=o=size=1m,mode=700"'),
        *("--mount", "type=bind,src=.,target=/g,bind-propagation=rslave,bind-recursive=readonly,readonly=true,consistency=cached"),
        *("--mount", "type=bind,src=/h,target=/h,bind-nonrecursive", "--mount", "type=image,source=img,target=/i,image-subpath=etc"),
        *("--mount", "TYPE=tmpfs,target=/j,tmpfs-mode=1770,ro", "--mount", 'type=bind,"source=/with,comma",target=/k,ro=false', "img"),
    )
    assert options.mounts == (
        MountOption(kind="volume", source="data", target="/a", copy=False, read_only=True),
        MountOption(kind="volume", target="/b"),
        MountOption(kind="bind", source="/host", target="/c", propagation="rslave"),
        MountOption(kind="bind", source=f"{tmp_path}/here", target="/d", change_owner=True),
        MountOption(kind="volume", source="n", target="/e"),
        MountOption(
            kind="volume", source="v", target="/f", subpath="p/q", labels={"k": "v"}, driver_options={"type": "tmpfs", "o": "size=1m,mode=700"}
        ),
        MountOption(kind="bind", source=str(tmp_path), target="/g", propagation="rslave", recursive="readonly", read_only=True),
        MountOption(kind="bind", source="/h", target="/h", recursive="disabled"),
        MountOption(kind="image", source="img", target="/i", subpath="etc"),
        MountOption(kind="tmpfs", target="/j", tmpfs_options=("mode=1770",), read_only=True),
    )
    assert options.volumes == (VolumeOption("/with,comma", "/k"),)
    assert options.volumes_from == ("x:ro",)


@pytest.mark.parametrize(
    "argv",
    [
        ["-v", "relative/path:/b"],
        ["-v", "-x:/b"],
        ["-v", "/a:relative"],
        ["-v", "only"],
        ["-v", "/a:/b:wrong"],
        ["-v", "/a:/b:ro,rw"],
        ["-v", "/a:/b:nocopy"],
        ["-v", "name:/b:rslave"],
        ["--mount", "source=a,target=relative"],
        ["--mount", "type=tmpfs,source=/a,target=/x"],
        ["--mount", "type=bind,source=/a,target=/x,volume-nocopy"],
        ["--mount", "target=/x,bind-propagation=rslave"],
        ["--mount", "type=bind,source=/a,target=/x,bind-propagation=upwards"],
        ["--mount", "type=bind,source=/a,target=/x,bind-recursive=readonly"],
        ["--mount", "target=/x,readonly=perhaps"],
        ["--mount", "target=/x,source"],
        ["--mount", "type=tmpfs,target=/x,tmpfs-mode=rwx"],
        ["--mount", 'type=tmpfs,"target=/x'],
        ["--mount", "target=/x,volume-driver=nfs"],
        ["--mount", "type=image,target=/x"],
        ["--mount", "type=magic,target=/x"],
        ["--mount", "type=bind,target=/x"],
        ["--mount", "type=tmpfs,target=/x,colour=red"],
        ["--ulimit", "nofile=many"],
        ["--ulimit", "nosuch=1"],
        ["--ulimit", "nofile=2:1"],
        ["--env-file", "/nonexistent"],
        ["-e", "=x"],
        ["--security-opt", "seccomp=/nonexistent"],
        ["--detach-keys", "ctrl-ä"],
        ["--tmpfs", "relative"],
    ],
)
def test_values_that_cannot_be_right(cli: CommandLine, argv: list[str]) -> None:
    cli("run", *argv, "img", "echo", code=125)
    if argv[0] != "--detach-keys":
        cli("create", *argv, "img", "echo", code=125)
    assert re.fullmatch(r"bulle: [^\n]+\n", cli.err)
    assert cli.engine.containers.by_id == {}


class TestRun:
    def test_output_and_exit_code(self, cli: CommandLine) -> None:
        assert cli("run", "--rm", "img", "echo", "hello") == "hello\n"
        assert cli.engine.containers.by_id == {}
        cli("run", "img", "exit", "3", code=3)

    def test_streams(self, cli: CommandLine) -> None:
        assert cli("run", "img", "warn", "careful") == ""
        assert cli.err == "careful\n"
        cli("run", "-a", "stdout", "img", "warn", "careful")
        assert (cli.out, cli.err) == ("", "")

    def test_command_not_found(self, cli: CommandLine) -> None:
        cli("run", "--rm", "img", "nosuch", code=127)
        assert cli.err == "bulle: nosuch: command not found\n"
        assert cli.engine.containers.by_id == {}, "--rm holds for a container that could not start"
        cli("run", "img", "nosuch", code=127)
        assert len(cli.engine.containers.by_id) == 1

    def test_detached(self, cli: CommandLine) -> None:
        identity = cli("run", "-d", "--name", "web", "img", "sleep").strip()
        assert cli.engine.containers.get("web").id == identity
        cli("run", "-d", "-a", "stdout", "img", "sleep", code=125)

    def test_standard_input_only_when_asked(self, cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
        with standard_input(b"from outside\n"):
            assert cli("run", "-i", "img", "cat") == "from outside\n"
        with standard_input(b"from outside\n"):
            assert cli("run", "img", "cat") == ""

    def test_terminal_needs_a_terminal(self, cli: CommandLine) -> None:
        with standard_input(b""):
            cli("run", "-it", "img", "cat", code=125)
        assert "stdin is not a terminal" in cli.err

    def test_pulls_what_is_missing(self, cli: CommandLine) -> None:
        assert cli("run", "--platform", "linux/arm64", "remote", "echo", "x") == "x\n"
        assert cli.err == "Unable to find image 'remote' locally\n"
        assert cli.engine.images.pulled == [("remote", "linux/arm64")]
        cli("run", "remote", "echo")
        assert len(cli.engine.images.pulled) == 1
        cli("run", "--pull", "always", "remote", "echo")
        assert len(cli.engine.images.pulled) == 2

    def test_image_that_is_nowhere(self, cli: CommandLine) -> None:
        cli("create", "nosuch", "echo", code=1)
        cli("run", "--stop-signal", "NOSUCH", "img", "echo", code=125)
        cli("create", "--stop-signal", "NOSUCH", "img", "echo", code=1)
        cli("container", "run", "nosuch", "echo", code=125)
        cli("run", "nosuch", "echo", code=125)
        assert cli.err.splitlines()[-1] == "bulle: no such image: nosuch: the registry does not know it"
        cli("run", "--pull", "never", "remote", "echo", code=125)
        assert cli.err == "bulle: no such image: remote\n"

    def test_dry_run(self, cli: CommandLine) -> None:
        plan = json.loads(cli("run", "--dry-run", "--isolation", "chroot", "img", "echo", "a b"))
        assert plan["process"]["arguments"] == ["echo", "a b"]
        assert plan["isolation"] == "chroot"
        assert cli.engine.containers.by_id == {}

    def test_cidfile(self, cli: CommandLine, tmp_path: Path) -> None:
        path = tmp_path / "id"
        cli("run", "--cidfile", str(path), "img", "echo")
        assert cli.engine.containers.get(path.read_text())
        cli("run", "--cidfile", str(path), "img", "echo", code=125)
        assert "container ID file found" in cli.err
        cli("run", "--cidfile", str(tmp_path / "other"), "nosuch", "echo", code=125)
        assert not (tmp_path / "other").exists()

    def test_detach_keys(self, cli: CommandLine) -> None:
        cli("run", "--name", "one", "img", "detach")
        assert cli.engine.containers.get("one").now.status == "running"

    def test_what_is_weaker_than_asked_is_said(self, cli: CommandLine) -> None:
        cli("create", "--name", "a", "img", "echo", "x")
        cli.engine.containers.get("a").notes = ("no limits on resources: \x1b[2Jhere",)
        assert cli("start", "-a", "a") == "x\n"
        assert cli.err == "WARNING: no limits on resources: \\x1b[2Jhere\n"

    def test_killed_monitor_loses_nothing(self, cli: CommandLine) -> None:
        assert cli("run", "img", "orphan") == "before\nafter\n"

    def test_full_disk_is_one_sentence(self, cli: CommandLine) -> None:
        cli("run", "img", "fail", code=125)
        assert cli.err.startswith("bulle: there is no space left: No space left on device (/var/lib/bulle); ")

    def test_mistake_of_ours_shows_no_traceback(self, cli: CommandLine) -> None:
        cli("create", "--name", "a", "img", "mistake")
        cli("start", "-a", "a", code=1)
        cli("run", "img", "mistake", code=125)
        assert "internal error (RuntimeError: a mistake)" in cli.err
        assert main.run(["--debug", "run", "img", "mistake"], lambda home: cli.engine) == 125
        assert "Traceback" in cli.capture.readouterr().err

    @pytest.mark.parametrize(("name", "number"), [("INT", 2), ("TERM", 15), ("USR1", 10)])
    def test_signals_are_passed_on(self, cli: CommandLine, name: str, number: int) -> None:
        def send() -> None:
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline and not any(one.entries for one in list(cli.engine.containers.by_id.values())):
                time.sleep(0.01)
            os.kill(os.getpid(), number)

        sender = threading.Thread(target=send)
        sender.start()
        cli("run", "img", "sleep", code=128 + number)
        sender.join()


class standard_input:  # noqa: N801 - used like a function
    """Put bytes on descriptor 0 while the block runs."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __enter__(self) -> None:
        self.before = os.dup(0)
        reader, writer = os.pipe()
        os.write(writer, self.data)
        os.close(writer)
        os.dup2(reader, 0)
        os.close(reader)

    def __exit__(self, *exception: object) -> None:
        os.dup2(self.before, 0)
        os.close(self.before)


class TestLife:
    def test_several_at_once(self, cli: CommandLine) -> None:
        cli("create", "--name", "a", "img", "sleep")
        cli("create", "--name", "b", "img", "sleep")
        assert cli("start", "a", "nosuch", "b", code=1) == "a\nb\n"
        assert cli.err == "bulle: no such container: nosuch\n"
        assert cli("stop", "-t", "3", "-s", "INT", "a", "b") == "a\nb\n"
        assert cli.engine.containers.get("a").stopped_with == (3, "INT")
        assert cli("wait", "a", "b") == "143\n143\n"
        assert cli("rm", "a", "b") == "a\nb\n"

    def test_rm(self, cli: CommandLine) -> None:
        cli("run", "-d", "--name", "a", "img", "sleep")
        cli("rm", "a", code=1)
        assert "use -f" in cli.err
        assert cli("rm", "-fv", "a") == "a\n"
        assert cli("rm", "-f", "a") == ""
        cli("rm", "a", code=1)

    def test_port(self, cli: CommandLine) -> None:
        cli("run", "-d", "--name", "a", "img", "sleep")
        assert cli("port", "a") == ""
        cli("port", "a", "80", code=1)
        assert cli.err == "bulle: no public port '80' published for a\n"
        for wrong in ("web", "0", "70000", "80/icmp"):
            cli("port", "a", wrong, code=1)
            assert f"invalid port '{wrong}'" in cli.err
        places = [{"HostIp": "127.0.0.1", "HostPort": "8080"}, {"HostIp": "::1", "HostPort": "8080"}]
        cli.engine.containers.get("a").ports = {"80/tcp": places, "53/udp": None}
        assert cli("port", "a") == "80/tcp -> 127.0.0.1:8080\n80/tcp -> [::1]:8080\n"
        assert cli("container", "port", "a", "80/tcp") == "127.0.0.1:8080\n[::1]:8080\n"

    def test_kill(self, cli: CommandLine) -> None:
        cli("run", "-d", "--name", "a", "img", "sleep")
        cli("kill", "-s", "SIGUSR1", "a")
        cli("container", "kill", "a")
        assert cli.engine.containers.get("a").signals == [10, 9]
        cli("kill", "-s", "NOSUCH", "a", code=1)
        assert "'NOSUCH' is not a signal" in cli.err

    def test_start_attached(self, cli: CommandLine) -> None:
        cli("create", "--name", "a", "-i", "img", "cat")
        with standard_input(b"typed"):
            assert cli("start", "-ai", "a") == "typed"
        cli("create", "--name", "b", "img", "exit", "9")
        cli("start", "-a", "b", code=9)
        cli("start", "-a", "a", "b", code=1)
        cli("create", "--name", "c", "img", "nosuch")
        cli("start", "c", code=1)
        cli("start", "-a", "c", code=1)
        assert cli.err == "bulle: nosuch: command not found\n"

    def test_exec(self, cli: CommandLine) -> None:
        cli("run", "-d", "--name", "a", "img", "sleep")
        assert cli("exec", "-e", "A=1", "-u", "5", "-w", "/w", "a", "echo", "-n") == "-n\n"
        done = cli.engine.executed[-1]
        assert (done.environment, done.user, done.working_directory, done.command) == (("A=1",), "5", "/w", ("echo", "-n"))
        with standard_input(b"piped"):
            assert cli("exec", "-i", "a", "cat") == "piped"
        cli("exec", "a", "exit", "4", code=4)
        cli("exec", "a", "nosuch", code=127)
        cli("exec", "-d", "a", "nosuch", code=1)
        cli("exec", "-u", "nobody-here", "a", "echo", code=126)
        cli("exec", "-e", "=x", "a", "echo", code=125)
        cli("exec", "--env-file", "/nonexistent", "a", "echo", code=1)
        cli("exec", "nosuch", "echo", code=1)
        cli("stop", "a")
        cli("exec", "a", "echo", code=1)
        cli("start", "a")
        assert cli("exec", "-d", "a", "echo") == ""

    def test_attach(self, cli: CommandLine) -> None:
        cli("create", "--name", "a", "img", "echo", "x")
        cli("attach", "a", code=1)
        assert "stopped container" in cli.err
        cli("start", "a")
        assert cli("attach", "a") == "x\n"

    def test_logs(self, cli: CommandLine) -> None:
        cli("run", "--name", "a", "img", "echo", "x")
        cli("run", "--name", "b", "img", "warn", "y")
        assert cli("logs", "a") == "x\n"
        assert cli("logs", "b") == ""
        assert cli.err == "y\n"
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z x\n", cli("logs", "-t", "a"))
        assert cli("logs", "--tail", "0", "a") == ""
        assert cli("logs", "-n", "all", "a") == "x\n"
        assert cli("logs", "--since", "10m", "a") == "x\n"
        assert cli("logs", "--until", "10m", "a") == ""
        cli("logs", "--since", "soon", "a", code=1)

    def test_top(self, cli: CommandLine) -> None:
        cli("run", "-d", "--name", "a", "img", "sleep")
        assert cli("top", "a", "-o", "pid,cmd") == f"{'PID':20}CMD\n{'4711':20}sleep\n"
        assert json.loads(cli("top", "--format", "json", "a")) == {"PID": "4711", "CMD": "sleep"}


@pytest.fixture
def several(cli: CommandLine) -> CommandLine:
    """Three containers: exited, running, created; the youngest last."""
    cli("run", "--name", "first", "-l", "tier=web", "img", "exit", "3", code=3)
    cli("run", "-d", "--name", "second", "-l", "tier=db", "-v", "/data:/srv", "img", "sleep", "a b")
    cli("create", "--name", "third", "--net", "host", "img", "echo", "a rather long command line")
    return cli


class TestPs:
    def test_table(self, several: CommandLine) -> None:
        lines = several("ps", "-a").splitlines()
        assert lines[0] == "CONTAINER ID   IMAGE     COMMAND                  CREATED      STATUS                              PORTS     NAMES"
        assert [line.split()[-1] for line in lines[1:]] == ["third", "second", "first"]
        assert re.search(r'"echo \'a rather long…"\s+4 days ago\s+Created\s+third', lines[1])
        assert re.search(r'"sleep \'a b\'"\s+4 days ago\s+Up Less than a second\s+second', lines[2])
        assert re.search(r"Exited \(3\) Less than a second ago", lines[3])
        assert lines[1].startswith(several.engine.containers.get("third").id[:12] + "   img")

    def test_only_running_unless_asked(self, several: CommandLine) -> None:
        assert several("ps", "--format", "{{.Names}}") == "second\n"
        assert several("ps", "-aq").count("\n") == 3
        assert several("ps", "-lq", "--no-trunc") == several.engine.containers.get("third").id + "\n"
        assert several("ps", "-n", "2", "--format", "{{.Names}}") == "third\nsecond\n"
        assert several("container", "ls", "--format", "{{.Names}}") == "second\n"

    @pytest.mark.parametrize(
        ("filters", "names"),
        [
            (["status=exited"], "first"),
            (["status=running", "status=created"], "third second"),
            (["exited=3"], "first"),
            (["exited=0"], ""),
            (["name=sec"], "second"),
            (["name=^/first$", "status=exited"], "first"),
            (["label=tier"], "second"),
            (["label=tier=web", "status=exited"], "first"),
            (["label=tier=web", "label=tier=db"], ""),
            (["ancestor=img"], "second"),
            (["ancestor=nosuch"], ""),
            (["before=third"], "second"),
            (["since=second", "status=created"], "third"),
            (["network=host", "status=created"], "third"),
            (["volume=/srv"], "second"),
            (["isolation=chroot"], ""),
            (["health=healthy"], "second"),
            (["health=healthy", "health=starting"], "second"),
            (["health=unhealthy"], ""),
            (["health=none", "status=created", "status=exited"], "third first"),
        ],
    )
    def test_filters(self, several: CommandLine, filters: list[str], names: str) -> None:
        second = several.engine.containers.get("second")
        second.now = msgspec.structs.replace(second.now, health=Health("healthy"))
        arguments = [part for one in filters for part in ("--filter", one)]
        assert several("ps", *arguments, "--format", "{{.Names}}").split() == names.split()

    @pytest.mark.parametrize("wrong", ["colour=red", "status=happy", "health=ill", "status", "exited=x", "name=[", "before=nosuch"])
    def test_wrong_filters(self, several: CommandLine, wrong: str) -> None:
        several("ps", "-f", wrong, code=1 if "=" in wrong else 125)

    def test_formats(self, several: CommandLine) -> None:
        rows = [json.loads(line) for line in several("ps", "-a", "--format", "json").splitlines()]
        assert rows[1]["Names"] == "second"
        assert rows[1]["State"] == "running"
        assert list(rows[1]) == sorted(rows[1])
        table = several("ps", "--format", 'table {{.Names}}\\t{{.Label "tier"}}\\t{{upper .State}}')
        assert table == "NAMES     tier      STATE\nsecond    db        RUNNING\n"
        several("ps", "--format", "{{.Nosuch}}", code=1)
        assert several.err == 'bulle: template parsing error: there is no field ".Nosuch" here\n'
        several("ps", "--format", "{{.Names", code=1)

    def test_a_name_cannot_drive_the_terminal(self, cli: CommandLine) -> None:
        cli("create", "img", "echo", "\x1b[31mred")
        assert "\x1b" not in cli("ps", "-a")
        cli("rm", "\x1b[2J", code=1)
        assert "\x1b" not in cli.err

    def test_unknown_exit_code(self, cli: CommandLine) -> None:
        cli("create", "--name", "a", "img", "echo")
        cli.engine.containers.get("a").now = ContainerState(status="exited", exit_code=-1, finished_at_ns=time.time_ns() - 5_000_000_000)
        assert cli("ps", "-a", "--format", "{{.Status}}") == "Exited (unknown) 5 seconds ago\n"
        assert cli("wait", "a") == "255\n"
        assert cli.err == "bulle: the exit code of a is unknown: it ended while nothing watched it\n"


class TestBooting:
    def test_what_failed_is_said_and_the_rest_is_named(self, cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
        failed = (Outcome("a"), Outcome("b", Unsupported("limits of memory", "chroot")), Outcome("c"), Outcome("", BulleError("the rest", "why")))
        monkeypatch.setattr(cli.engine, "boot", lambda: failed)
        monkeypatch.setattr("bulle.compose.record.have_kept", lambda _engine: None)  # there is no home that could have apps
        assert cli("system", "boot", code=1) == "a\nc\n"
        assert cli.err == "bulle: container b: isolation level 'chroot' has no limits of memory\nbulle: the rest: why\n"

    def test_shutdown(self, cli: CommandLine) -> None:
        cli("run", "-d", "--name", "a", "img", "sleep")
        cli("create", "--name", "b", "img", "sleep")
        assert cli("system", "shutdown", "-t", "3") == "a\n"
        assert cli.engine.containers.get("a").stopped_with == (3, "")
        assert cli("system", "shutdown") == ""
        cli("system", "shutdown", "-t", "soon", code=125)


class TestImages:
    def test_table(self, cli: CommandLine) -> None:
        cli.engine.images.add("localhost:5000/team/app:v1", created="2026-03-01T00:00:00.123456789+02:00", size=999)
        cli.engine.images.add(created="")
        lines = cli("images").splitlines()
        assert lines[0].split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
        assert lines[1].split()[:2] == ["<none>", "<none>"]
        assert lines[2].split()[:3] == ["localhost:5000/team/app", "v1", "2aaaaaaaaaaa"]
        assert lines[2].endswith("999B")
        assert lines[3].split()[:2] == ["img", "latest"]
        assert lines[3].endswith("123MB")
        assert "DIGEST" in cli("images", "--digests")
        assert cli("image", "ls", "-q", "img") == "1aaaaaaaaaaa\n"
        assert cli("images", "-q", "--no-trunc", "img") == "sha256:1" + "a" * 63 + "\n"

    @pytest.mark.parametrize(
        ("arguments", "names"),
        [
            (["i*"], "img"),
            (["team/*"], "team/app"),
            (["*"], "img"),
            (["-f", "reference=team/app:v?"], "team/app"),
            (["-f", "dangling=true"], "<none>"),
            (["-f", "dangling=false"], "team/app img"),
            (["-f", "label=kind=web"], "team/app"),
            (["-f", "before=team/app:v1"], "img"),
            (["-f", "since=img"], "<none> team/app"),
        ],
    )
    def test_filters(self, cli: CommandLine, arguments: list[str], names: str) -> None:
        cli.engine.images.add("team/app:v1", created="2026-03-01T00:00:00Z", labels={"kind": "web"})
        cli.engine.images.add(created="2026-04-01T00:00:00Z")
        assert cli("images", "--format", "{{.Repository}}", *arguments).split() == names.split()

    def test_json(self, cli: CommandLine) -> None:
        assert json.loads(cli("images", "--format", "json"))["Repository"] == "img"

    def test_pull_prints_only_its_result_on_a_pipe(self, cli: CommandLine) -> None:
        assert cli("pull", "remote") == "docker.io/library/remote:latest\n"
        assert cli.err == ""
        cli("pull", "nosuch", code=1)

    def test_load(self, cli: CommandLine, tmp_path: Path) -> None:
        (tmp_path / "archive").write_text("one two:v2")
        assert cli("load", "-i", str(tmp_path / "archive")) == "Loaded image: one:latest\nLoaded image: two:v2\n"
        (tmp_path / "archive").write_text("")
        assert cli("load", "-q", "-i", str(tmp_path / "archive")).startswith("Loaded image ID: sha256:")
        cli("load", "-i", "/nonexistent", code=1)
        assert cli.err == "bulle: open /nonexistent: no such file or directory\n"

    def test_save(self, cli: CommandLine, tmp_path: Path) -> None:
        assert cli("save", "img").startswith("docker-archive:sha256:")
        target = tmp_path / "out.tar"
        assert cli("save", "--format", "oci-archive", "-o", str(target), "img") == ""
        assert target.read_text().startswith("oci-archive:sha256:")
        cli("save", "-o", str(tmp_path / "other"), "nosuch", code=1)
        assert [one.name for one in tmp_path.iterdir()] == ["out.tar"]

    def test_tag_and_rmi(self, cli: CommandLine) -> None:
        cli("tag", "img", "other:v1")
        assert cli("images", "--format", "{{.Repository}}:{{.Tag}}") == "img:latest\nother:v1\n"
        assert cli("rmi", "img", "nosuch", code=1).startswith("Untagged: img\nDeleted: sha256:1aaa")
        assert cli("rmi", "-f", "nosuch") == ""
        assert cli.err == "bulle: no such image: nosuch\n"


class TestInspect:
    def test_json(self, several: CommandLine) -> None:
        found = json.loads(several("inspect", "second", "img"))
        assert found[0]["Name"] == "/second"
        assert found[1]["RepoTags"] == ["img:latest"]
        assert several.out.startswith('[\n    {\n        "Id": ')
        assert json.loads(several("inspect", "--format", "json", "second"))[0]["State"]["Running"] is True

    def test_template(self, several: CommandLine) -> None:
        assert several("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "first", "second") == "exited 3\nrunning 0\n"
        assert several("inspect", "-f", '{{index .Config.Labels "tier"}}{{.Config.Labels.nosuch}}', "first") == "web\n"
        assert several("inspect", "-f", "{{range .Mounts}}{{.Source}}:{{.RW}}{{end}}", "second") == "/data:true\n"

    def test_missing(self, several: CommandLine) -> None:
        assert json.loads(several("inspect", "first", "nosuch", code=1))[0]["Name"] == "/first"
        assert several.err == "bulle: no such object: nosuch\n"
        several("inspect", "--type", "image", "first", code=1)
        several("image", "inspect", "first", code=1)
        several("container", "inspect", "img", code=1)


class TestSystem:
    def test_version_info_doctor(self, cli: CommandLine) -> None:
        assert cli("version") == "Version: 0.1.0\nKernel: 6.18\n"
        assert cli("version", "--format", "{{.Version}}") == "0.1.0\n"
        assert "Drivers:\n container: true\n" in cli("system", "info")
        assert json.loads(cli("info", "-f", "json"))["Containers"] == 0
        assert "mend: apt-get install mmdebstrap" in cli("doctor")
        assert [json.loads(line)["OK"] for line in cli("doctor", "--format", "json").splitlines()] == [True, False]
        assert cli("--version").startswith("Bulle version ")

    def test_home_goes_to_the_engine(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        seen: list[Path | None] = []

        def opener(home: Path | None) -> FakeEngine:
            seen.append(home)
            return FakeEngine(home)

        assert main.run(["--home", str(tmp_path), "ps"], opener) == 0
        assert main.run(["ps"], opener) == 0
        assert seen == [tmp_path, None]

    def test_engine_is_closed_once(self, cli: CommandLine) -> None:
        cli("ps")
        cli("rm", "nosuch", code=1)
        assert cli.engine.closed == 2

    def test_engine_that_cannot_be_opened(self, capfd: pytest.CaptureFixture[str]) -> None:
        def opener(home: Path | None) -> FakeEngine:
            raise BulleError("the state cannot be read", "permission denied\nby \x07someone", "use --home")

        assert main.run(["ps"], opener) == 1
        assert capfd.readouterr().err == "bulle: the state cannot be read: permission denied by \\x07someone; use --home\n"
        assert main.run(["run", "img"], opener) == 125


def completions(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], line: str) -> list[str]:
    words = line.split(" ")
    monkeypatch.setenv("_BULLE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    capfd.readouterr()
    assert main.run([], lambda home: engine) == 0
    return [one.partition(",")[2] for one in capfd.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("bulle im", {"image", "images", "import"}),
        ("bulle container r", {"rename", "restart", "rm", "run"}),
        ("bulle run --isol", {"--isolation"}),
        ("bulle run --isolation c", {"container", "chroot"}),
        ("bulle run i", {"img:latest"}),
        ("bulle stop w", {"web"}),
        ("bulle stop web d", {"db"}),
        ("bulle exec -i ", {"web", "db"}),
        ("bulle ps --filter st", {"status="}),
        ("bulle kill -s US", {"USR1", "USR2"}),
        ("bulle completion f", {"fish"}),
    ],
)
def test_completion(
    cli: CommandLine, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], line: str, expected: set[str]
) -> None:
    cli("create", "--name", "web", "img", "echo")
    cli("create", "--name", "db", "img", "echo")
    assert set(completions(engine, monkeypatch, capfd, line)) == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(cli: CommandLine, shell: str) -> None:
    assert f"_BULLE_COMPLETE={shell}_complete" in cli("completion", shell)


PIPE_PROGRAM = """
import sys
sys.path[:0] = {path!r}
from bulle.cli.main import run
from bulle_testing import fake_engine
from bulle_testing.fake_engine import FakeEngine
engine = FakeEngine()
for number in range(3000):
    engine.images.add("img" + str(number))
sys.exit(run(["images"], lambda home: engine))
"""


def test_reader_that_goes_away() -> None:
    program = PIPE_PROGRAM.format(path=[one for one in sys.path if one])
    done = subprocess.run(["bash", "-c", f'{sys.executable} -c "$0" | head -n 1; echo ${{PIPESTATUS[0]}}', program], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "141"


def public_interface(kind: type) -> dict[str, list[str]]:
    """The parameters of every public method."""
    return {
        name: [parameter for parameter in inspect.signature(member).parameters if parameter not in ("self", "cls")]
        for name, member in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


@pytest.mark.parametrize(
    ("fake", "real"),
    [
        (fake_engine.FakeEngine, bulle.engine.Engine),
        (fake_engine.Containers, bulle.engine.Containers),
        (fake_engine.Container, bulle.engine.Container),
        (fake_engine.Images, bulle.engine.Images),
        (fake_engine.Volumes, bulle.engine.volumes.Volumes),
        (fake_engine.Attachment, bulle.monitor.Attachment),
    ],
)
def test_the_fake_engine_is_like_the_real_one(fake: type, real: type) -> None:
    own = {"add", "finish"}
    offered = public_interface(real)
    for name, parameters in public_interface(fake).items():
        assert name in own or offered.get(name) == parameters, f"{fake.__name__}.{name}"
