"""The command line on the real engine: exit codes, streams, signals, terminals."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import BulleCommand

pytestmark = pytest.mark.root


@pytest.fixture
def host(bulle: BulleCommand) -> BulleCommand:
    """The command in a home that has the built-in image."""
    assert bulle("pull", "host", check=True).stdout == "docker.io/library/host:latest\n"
    return bulle


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass in time"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 42"], 42),
        (["sh", "-c", "kill -9 $$"], 0),  # the first process of a namespace cannot kill itself
        (["/etc/hostname"], 126),
        (["nosuch"], 127),
    ],
)
def test_exit_codes(host: BulleCommand, arguments: list[str], code: int) -> None:
    done = host("run", "--rm", "host", *arguments)
    assert done.returncode == code
    assert done.stderr.count("\n") == (1 if code in (126, 127) else 0)
    assert host("ps", "-aq", check=True).stdout == "", "--rm leaves nothing, also where nothing could start"


def test_streams_are_not_mixed(host: BulleCommand) -> None:
    done = host("run", "--rm", "-i", "host", "sh", "-c", "cat; echo problem >&2", input="from outside\n", check=True)
    assert (done.stdout, done.stderr) == ("from outside\n", "problem\n")
    assert host("run", "--rm", "host", "cat", input="not asked for", check=True).stdout == ""


def test_much_output_arrives_whole(host: BulleCommand) -> None:
    done = host("run", "--rm", "host", "seq", "1", "200000", check=True)
    assert done.stdout.split() == [str(number) for number in range(1, 200_001)]


def test_reader_that_goes_away_ends_the_command(host: BulleCommand) -> None:
    process = host.start("run", "--name", "yes", "host", "yes", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(20) in (141, -signal.SIGPIPE)
    assert process.stderr.read() == b""
    process.stderr.close()
    host("rm", "-f", "yes", check=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_reach_the_container(host: BulleCommand, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    script = f"trap 'echo got {name}; exit 3' {name}; echo ready; while :; do sleep 0.1; done"
    process = host.start("run", "--rm", "host", "sh", "-c", script, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    assert process.stdout.read() == f"got {name}\n".encode()
    assert process.wait(20) == 3
    process.stdout.close()


def test_life_of_a_container(host: BulleCommand, tmp_path: Path) -> None:
    identity = host("run", "-d", "--name", "web", "-l", "tier=web", "--cidfile", tmp_path / "id", "host", "sleep", "1000", check=True).stdout.strip()
    assert (tmp_path / "id").read_text() == identity
    assert host("ps", "--format", "{{.Names}} {{.State}} {{.Labels}}", check=True).stdout == "web running tier=web\n"
    assert "sleep 1000" in host("top", "web", check=True).stdout
    assert host("exec", "web", "sh", "-c", "exit 9").returncode == 9
    assert host("exec", "web", "nosuch").returncode == 127
    assert host("exec", "-i", "-e", "A=1", "-w", "/tmp", "web", "sh", "-c", "cat; echo $A; pwd", input="in\n", check=True).stdout == "in\n1\n/tmp\n"
    assert host("inspect", "-f", "{{.State.Running}} {{.Name}}", identity[:8], check=True).stdout == "true /web\n"
    assert host("rm", "web").returncode == 1
    assert host("rmi", "host").returncode == 1
    assert host("kill", "web", check=True).stdout == "web\n"
    assert host("wait", "web", check=True).stdout == "137\n"
    assert host("ps", "-a", "--filter", "exited=137", "-q", check=True).stdout.strip() == identity[:12]
    assert host("exec", "web", "true").returncode == 1
    assert host("rm", "web", check=True).stdout == "web\n"
    assert json.loads(host("inspect", "web").stdout) == []


def test_start_attached_again(host: BulleCommand) -> None:
    host("create", "-i", "--name", "again", "host", "sh", "-c", "cat; exit 6", check=True)
    for text in ("one", "two"):
        done = host("start", "-ai", "again", input=text)
        assert (done.stdout, done.returncode) == (text, 6)
    assert host("logs", "again", check=True).stdout == "onetwo"
    host("rm", "again", check=True)


def test_logs_are_followed(host: BulleCommand) -> None:
    host("run", "-d", "--name", "slow", "host", "sh", "-c", "echo one; sleep 0.5; echo two >&2; sleep 0.5; echo three", check=True)
    done = host("logs", "-f", "slow", check=True)
    assert (done.stdout, done.stderr) == ("one\nthree\n", "two\n")
    assert host("logs", "--tail", "1", "slow", check=True).stdout == "three\n"
    stamp = host("logs", "-t", "slow", check=True).stdout.splitlines()[1].split()[0]
    assert host("logs", "--since", stamp, "slow", check=True).stdout == "three\n"
    assert host("logs", "--since", "1h", "--until", "30m", "slow", check=True).stdout == ""
    host("rm", "slow", check=True)


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, command: BulleCommand, *arguments: str, rows: int = 31, columns: int = 97) -> None:
        self.master, slave = pty.openpty()
        self.resize(rows, columns)
        self.process = command.start(*arguments, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, preexec_fn=_own_terminal)
        os.close(slave)
        self.seen = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def write(self, data: bytes) -> None:
        os.write(self.master, data)

    def expect(self, text: bytes, seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < deadline, f"waited for {text!r}, saw {self.seen!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.master, 4096)
                except OSError:
                    time.sleep(0.02)
        self.seen = self.seen.partition(text)[2]

    @property
    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self.master)[3] & termios.ECHO)

    def close(self) -> int:
        try:
            return self.process.wait(20)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            os.close(self.master)


def _own_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_terminal(host: BulleCommand) -> None:
    terminal = Terminal(host, "run", "-it", "--name", "shell", "host", "sh", "-c", "stty size; exec sh")
    terminal.expect(b"31 97\r\n")
    terminal.expect(b"# ")
    assert not terminal.echoes, "the caller's terminal is raw while the container's is in charge"
    terminal.resize(40, 120)
    time.sleep(0.3)
    terminal.write(b"stty size\n")
    terminal.expect(b"40 120\r\n")
    terminal.write(b"sleep 100\n")
    terminal.expect(b"sleep 100\r\n")
    time.sleep(0.3)
    terminal.write(b"\x03")
    terminal.write(b"echo after $?\n")
    terminal.expect(b"after 130\r\n")
    terminal.write(b"\x10\x11")
    assert terminal.process.wait(20) == 0
    assert terminal.echoes, "the terminal is as it was"
    terminal.close()
    assert host("ps", "--format", "{{.Names}}", check=True).stdout == "shell\n"
    again = Terminal(host, "attach", "shell")
    time.sleep(0.5)
    again.write(b"echo here again; exit 5\n")
    again.expect(b"\nhere again\r\n")
    assert again.close() == 5
    host("rm", "shell", check=True)


def test_terminal_of_exec(host: BulleCommand) -> None:
    host("run", "-d", "--name", "box", "host", "sleep", "1000", check=True)
    terminal = Terminal(host, "exec", "-it", "box", "sh", "-c", "stty size; tty; exit 4", rows=20, columns=70)
    terminal.expect(b"20 70\r\n")
    terminal.expect(b"/dev/pts/")
    assert terminal.close() == 4
    host("rm", "-f", "box", check=True)


def test_terminal_is_restored_when_the_command_is_ended(host: BulleCommand) -> None:
    terminal = Terminal(host, "run", "-it", "--name", "shell", "host", "sh")
    terminal.expect(b"# ")
    assert not terminal.echoes
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.process.wait(20) in (143, -signal.SIGTERM)
    until(lambda: terminal.echoes)
    terminal.close()
    assert host("ps", "-q", check=True).stdout, "the container goes on"
    host("rm", "-f", "shell", check=True)


def test_progress_is_for_terminals(host: BulleCommand) -> None:
    done = host("pull", "host", check=True)
    assert (done.stdout, done.stderr) == ("docker.io/library/host:latest\n", "")


def test_save_and_load(host: BulleCommand, tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    host("run", "--rm", "host", "true", check=True)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "file").write_text("content")
    name = host("pull", f"dir:{tmp_path / 'root'}", check=True).stdout.strip()
    host("tag", name, "small:v1", check=True)
    host("save", "-o", archive, "small:v1", check=True)
    host("rmi", "-f", "small:v1", name, check=True)
    assert host("load", "-i", archive, check=True).stdout == "Loaded image: small:v1\n"
    with archive.open("rb") as stream:
        assert host("load", input=stream.read(), text=False).stdout == b"Loaded image: small:v1\n"
    broken = tmp_path / "broken.tar"
    broken.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    done = host("load", "-i", broken)
    assert done.returncode == 1
    assert done.stderr.startswith("bulle: ")
    assert done.stderr.count("\n") == 1


def test_images_are_named_as_they_were_asked_for(host: BulleCommand, tmp_path: Path) -> None:
    for name in ("x:1", "deb:nosuch+vim", f"dir:{tmp_path}"):
        for arguments in (("rmi", name), ("rmi", "-f", name), ("image", "inspect", name)):
            assert host(*arguments).stderr == f"bulle: no such image: {name}\n"
    (tmp_path / "file").write_text("content")
    host("pull", f"dir:{tmp_path}", check=True)
    assert host("rmi", f"dir:{tmp_path}", check=True).stdout.startswith(f"Untagged: {tmp_path.name}:latest\nDeleted: ")
