"""``system install``: a unit that systemd accepts, where it is looked for, and that goes away without a trace."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from pathlib import Path

import pytest

from bulle.engine import systemd_unit
from bulle_testing import places, tiers
from bulle_testing.running import wait_for
from bulle_testing.socket_clients import Served

UNIT = "bulle.service"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's user has units; it may have spaces and what systemd would expand."""
    directory = tmp_path / "settings"
    directory.mkdir()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(directory))
    return directory / "systemd" / "user"


def command(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*places.command_line(), *arguments], env=places.environment(home) | {"BULLE_NO_SPAWNER": "1"}, capture_output=True, text=True, timeout=240
    )


def without_systemd() -> None:
    if os.path.isdir("/run/systemd/system"):
        tiers.give_up("root", "systemd runs here, and would be told of a unit of a test")


def verify(unit: Path, *flags: str) -> None:
    """What systemd itself says of a unit: nothing."""
    program = tiers.program("systemd-analyze")
    if program is None:
        tiers.give_up("root", "systemd-analyze is not installed")
    with tempfile.TemporaryDirectory() as directory:  # it makes a directory there
        environment = {**os.environ, "XDG_RUNTIME_DIR": directory}
        line = [str(program), "verify", "--man=no", *flags, str(unit)]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=240)
    said = [line for line in (done.stdout + done.stderr).splitlines() if UNIT in line or "bulle" in line]
    assert (done.returncode, said) == (0, [])


def value(unit: str, key: str) -> str:
    (line,) = [one for one in unit.splitlines() if one.startswith(f"{key}=")]
    return line.partition("=")[2]


@pytest.mark.parametrize("flags", [(), ("--user",)])
def test_systemd_accepts_what_is_printed(home: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    done = command(home, "system", "install", "--print", *flags)
    assert (done.returncode, done.stderr) == (0, "")
    for key, wanted in (("Type", "oneshot"), ("RemainAfterExit", "yes"), ("After", "bulle.scope" if flags else None)):
        assert wanted is None or value(done.stdout, key) == wanted
    assert "\nAfter=bulle.scope\n" in done.stdout
    assert value(done.stdout, "WantedBy") == ("default.target" if flags else "multi-user.target")
    unit = tmp_path / UNIT
    unit.write_text(done.stdout)
    verify(unit, *flags)


def test_the_commands_in_it_are_what_a_shell_would_run(home: Path) -> None:
    """Without a home, a PATH or a directory that they would need."""
    unit = command(home, "system", "install", "--print").stdout
    for key, verb in (("ExecStart", "boot"), ("ExecStop", "shutdown")):
        words = value(unit, key).split()
        assert words[-4:] == ["--home", str(home), "system", verb]
        assert words[0].startswith("/")
        done = subprocess.run(words, env={"BULLE_NO_SPAWNER": "1"}, cwd="/", capture_output=True, text=True, timeout=240)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_home_with_a_strange_name(tmp_path: Path) -> None:
    home = tmp_path / 'a "home" of 100%n $USER'
    unit = systemd_unit.text(home, user=False)
    quoted = str(home).replace('"', '\\"').replace("%", "%%")
    assert value(unit, "RequiresMountsFor") == f'"{quoted}"'
    assert value(unit, "ExecStart").endswith(f'"{quoted.replace("$", "$$")}" system boot')
    path = tmp_path / UNIT
    path.write_text(unit)
    verify(path)


def test_install_and_remove_for_a_user(home: Path, settings: Path) -> None:
    without_systemd()
    unit, link = settings / UNIT, settings / "default.target.wants" / UNIT
    done = command(home, "system", "install", "--user")
    assert (done.returncode, done.stdout) == (0, f"{unit}\n")
    assert "enable-linger" in done.stderr
    assert unit.read_text() == command(home, "system", "install", "--user", "--print").stdout
    assert unit.stat().st_mode & 0o777 == 0o644
    assert link.resolve() == unit
    verify(unit, "--user")
    other = command(home, "--home", str(home.parent / "other-home"), "system", "install", "--user")
    assert other.returncode == 0
    assert "other-home" in unit.read_text(), "once more is a change"
    assert sorted(one.name for one in settings.iterdir()) == [UNIT, "default.target.wants"]
    removed = command(home, "system", "install", "--user", "--remove")
    assert (removed.returncode, removed.stdout) == (0, f"{unit}\n")
    assert list(settings.iterdir()) == []
    again = command(home, "system", "install", "--user", "--remove")
    assert again.returncode == 1
    assert f"there is no {unit}" in again.stderr


def test_the_systems_unit_is_enabled(home: Path, tmp_path: Path) -> None:
    """In a mount namespace whose /etc/systemd/system is the test's."""
    without_systemd()
    if os.geteuid() != 0:
        refused = command(home, "system", "install")
        assert refused.returncode == 1
        assert "only root may" in refused.stderr
        return
    if not os.path.isdir("/etc/systemd/system"):
        tiers.give_up("root", "there is no /etc/systemd/system")
    own = tmp_path / "system"
    own.mkdir()
    script = 'mount --bind "$1" /etc/systemd/system; shift; "$@" && systemctl is-enabled bulle.service'
    line = ["unshare", "--mount", "sh", "-ec", script, "sh", str(own), *places.command_line(), "system", "install"]
    done = subprocess.run(line, env=places.environment(home) | {"BULLE_NO_SPAWNER": "1"}, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout) == (0, "/etc/systemd/system/bulle.service\nenabled\n"), done.stderr
    assert os.readlink(own / "multi-user.target.wants" / UNIT) == f"../{UNIT}"
    assert not Path("/etc/systemd/system", UNIT).exists()


def test_what_somebody_else_wrote_stays(home: Path, settings: Path) -> None:
    without_systemd()
    settings.mkdir(parents=True)
    unit = settings / UNIT
    unit.write_text("[Unit]\nDescription=mine\n")
    for arguments in (("--user",), ("--user", "--remove")):
        done = command(home, "system", "install", *arguments)
        assert done.returncode == 1
        assert "is not Bulle's" in done.stderr
        assert unit.read_text() == "[Unit]\nDescription=mine\n"
    unit.unlink()
    unit.symlink_to("/dev/null")
    assert command(home, "system", "install", "--user").returncode == 1
    assert os.readlink(unit) == "/dev/null"


def test_now_without_systemd_is_said_and_changes_nothing(home: Path, settings: Path) -> None:
    without_systemd()
    for arguments in (("--now",), ("--now", "--remove")):
        done = command(home, "system", "install", "--user", *arguments)
        assert done.returncode == 1
        assert "systemd does not run on this machine; leave out --now" in done.stderr
    assert not settings.exists()
    for arguments in (("--print", "--now"), ("--print", "--remove")):
        assert command(home, "system", "install", "--user", *arguments).returncode == 1


def test_a_directory_that_cannot_be_written(home: Path, settings: Path) -> None:
    without_systemd()
    settings.parent.parent.joinpath("systemd").write_text("a file")
    done = command(home, "system", "install", "--user")
    assert done.returncode == 1
    assert f"{settings / UNIT} cannot be written" in done.stderr


def test_systemd_is_told(home: Path, settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a program in systemctl's place: which words it is given, and that its refusal is passed on."""
    said = tmp_path / "said"
    programs = tmp_path / "programs"
    programs.mkdir()
    fake = programs / "systemctl"
    fake.write_text(f'#!/bin/sh\necho "$@" >> {said}\n[ "$2" != start ] || {{ echo "no manager" >&2; exit 1; }}\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr("bulle.isolation.control_group_scope.systemd_runs", lambda: True)
    systemd_unit.install(home, user=True)
    with pytest.raises(systemd_unit.BulleError, match=r"systemctl --user start bulle.service` failed: no manager; see"):
        systemd_unit.install(home, user=True, now=True)
    systemd_unit.remove(user=True, now=True)
    lines = said.read_text().splitlines()
    assert lines == [
        "--user daemon-reload",
        "--user daemon-reload",
        "--user start bulle.service",
        "--user stop bulle.service",
        "--user daemon-reload",
    ], json.dumps(lines)


DOCKER_UNITS = ("bulle-docker.service", "bulle-docker.socket")


@pytest.mark.parametrize("flags", [(), ("--user",)])
def test_systemd_accepts_the_units_of_the_socket(home: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    done = command(home, "system", "install", "--print", "--socket", *flags)
    assert (done.returncode, done.stderr) == (0, "")
    own, server, listener = re.split(r"^# /.*\n", done.stdout, flags=re.MULTILINE)[1:]
    assert own.strip() == command(home, "system", "install", "--print", *flags).stdout.strip()
    assert value(listener, "ListenStream") == ("%t/bulle/docker.sock" if flags else "/run/bulle/docker.sock")
    assert (value(listener, "SocketMode"), value(server, "KillMode")) == ("0660", "process")
    assert value(server, "ExecStart").split()[-3:] == ["--home", str(home), "serve"]
    for name, text in zip(DOCKER_UNITS, (server, listener), strict=True):
        (tmp_path / name).write_text(text)
    for name in DOCKER_UNITS:
        verify(tmp_path / name, *flags)


def test_the_socket_is_installed_and_removed_for_a_user(home: Path, settings: Path) -> None:
    without_systemd()
    done = command(home, "system", "install", "--user", "--socket")
    assert (done.returncode, done.stdout.splitlines()) == (0, [str(settings / name) for name in (UNIT, *DOCKER_UNITS)])
    assert (settings / "sockets.target.wants/bulle-docker.socket").resolve() == settings / "bulle-docker.socket"
    assert sorted(one.name for one in settings.iterdir()) == [*DOCKER_UNITS, UNIT, "default.target.wants", "sockets.target.wants"]
    removed = command(home, "system", "install", "--user", "--remove")
    assert (removed.returncode, sorted(removed.stdout.splitlines())) == (0, sorted(done.stdout.splitlines()))
    assert list(settings.iterdir()) == []


def test_a_socket_unit_of_somebody_else_keeps_everything_as_it_is(home: Path, settings: Path) -> None:
    without_systemd()
    settings.mkdir(parents=True)
    (settings / "bulle-docker.socket").write_text("[Socket]\nListenStream=/mine\n")
    done = command(home, "system", "install", "--user", "--socket")
    assert (done.returncode, "is not Bulle's" in done.stderr) == (1, True)
    assert [one.name for one in settings.iterdir()] == ["bulle-docker.socket"]


@pytest.mark.root
@pytest.mark.programs("systemd-socket-activate", "docker")
def test_what_the_units_say_serves_docker(home: Path, tmp_path: Path) -> None:
    """Socket and command of the units, with systemd's own program in the manager's place: it starts the server for the first who connects."""
    server = command(home, "system", "install", "--print", "--socket").stdout
    line = next(one for one in server.splitlines() if one.startswith("ExecStart=") and one.endswith(" serve")).partition("=")[2].split()
    path = tmp_path / "docker.sock"
    environment = [f"--setenv={key}={text}" for key, text in places.environment(home).items() if key.startswith("BULLE_")]
    activate = [str(tiers.program("systemd-socket-activate")), "-l", str(path), *environment, *line]
    process = subprocess.Popen(activate, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")
    try:
        wait_for(path.exists, "the socket is there")
        served = Served(path)
        assert served.docker("ps", "-aq").stdout == ""
        assert served.docker("info", "--format", "{{.DockerRootDir}}").stdout.strip() == str(home)
        assert served.pid == process.pid
    finally:
        process.terminate()
        process.wait(20)
