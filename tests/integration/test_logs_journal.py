"""A container's output in the machine's journal, and the buffer that keeps a slow log from slowing its container.

The journal of most tests is a socket of their own that speaks its protocol; one test has systemd's.
"""

from __future__ import annotations

import array
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import bulle
from bulle_testing import places, tiers
from bulle_testing.running import LEVELS, Machine, wait_for

BOX = LEVELS[0]


class Journal:
    """What journald does with its socket: takes datagrams, or what they say is in a sealed memory file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(20)

    def receive(self) -> dict[str, bytes]:
        """The fields of the next message."""
        data, ancillary, _flags, _address = self.socket.recvmsg(1 << 20, 1024)
        for level, kind, content in ancillary:
            assert (level, kind, data) == (socket.SOL_SOCKET, socket.SCM_RIGHTS, b"")
            descriptors = array.array("i")
            descriptors.frombytes(content)
            with os.fdopen(descriptors[0], "rb") as file:
                data = os.pread(file.fileno(), 1 << 26, 0)
                with pytest.raises(PermissionError):
                    os.write(file.fileno(), b"x")
        return fields(data)

    def close(self) -> None:
        self.socket.close()
        self.path.unlink(missing_ok=True)


def fields(data: bytes) -> dict[str, bytes]:
    """A message of the native protocol, taken apart."""
    found = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (length,) = struct.unpack_from("<Q", rest)
            value, rest = rest[8 : 8 + length], rest[8 + length + 1 :]
        assert name.isupper(), name
        found[name.decode()] = value
        data = rest
    return found


@pytest.fixture
def journal(run_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    """A journal of the test's own, named in the environment."""
    made = Journal(run_directory / "journal.sock")
    monkeypatch.setenv("BULLE_JOURNAL", str(made.path))
    try:
        yield made
    finally:
        made.close()


def test_messages_have_docker_s_fields(box: Machine, journal: Journal) -> None:
    options = (("labels", "com.example/tier"), ("tag", "{{.Name}}"))
    script = "echo out; echo err >&2; printf unfinished"
    labels = {"com.example/tier": "web"}
    with box.running(BOX, "sh", "-c", script, name="web", log_driver="journald", log_options=options, labels=labels) as container:
        own = {
            "CONTAINER_ID": container.id[:12].encode(),
            "CONTAINER_ID_FULL": container.id.encode(),
            "CONTAINER_NAME": b"web",
            "CONTAINER_TAG": b"web",
            "SYSLOG_IDENTIFIER": b"web",
            "IMAGE_NAME": b"busybox",
            "COM_EXAMPLE_TIER": b"web",
        }
        seen = {}
        for _ in range(3):
            message = journal.receive()
            assert message.pop("SYSLOG_TIMESTAMP").endswith(b"Z")
            assert {name: message.pop(name) for name in own} == own
            seen[message.pop("MESSAGE")] = message
        assert seen == {
            b"out": {"PRIORITY": b"6"},
            b"err": {"PRIORITY": b"3"},
            b"unfinished": {"PRIORITY": b"6", "CONTAINER_PARTIAL_MESSAGE": b"true"},
        }
        assert not list(Path(container.directory).glob("container.log*"))
        assert box.command("inspect", "-f", "{{.HostConfig.LogConfig.Type}}", "web").stdout == "journald\n"


def test_long_line_comes_in_parts(box: Machine, journal: Journal) -> None:
    with box.running(BOX, "sh", "-c", "head -c 40000 /dev/zero | tr '\\0' x; echo", log_driver="journald"):
        parts = [journal.receive() for _ in range(3)]
        assert b"".join(part["MESSAGE"] for part in parts) == b"x" * 40000
        assert ["CONTAINER_PARTIAL_MESSAGE" in part for part in parts] == [True, True, False]


def test_message_that_no_datagram_holds_goes_by_memory(box: Machine, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    from bulle.model.run_plan import LogSettings
    from bulle.monitor.journal import JournalWriter, open_journal

    settings = LogSettings("journald", fields={"LARGE": "y" * 500_000, "LINES": "a\nb"}, socket_host_path=str(journal.path))
    writer = JournalWriter(open_journal(settings), settings)
    writer.write("stdout", b"with much beside it\n")
    writer.close()
    message = journal.receive()
    assert (message["MESSAGE"], message["LARGE"], message["LINES"]) == (b"with much beside it", b"y" * 500_000, b"a\nb")


def test_missing_journal_is_said_and_nothing_runs(box: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BULLE_JOURNAL", str(tmp_path / "nosuch"))
    for flags in ((), ("-d",)):
        command = box.start_command(
            "run", *flags, "--rm", "--log-driver", "journald", "busybox", "true",
            env=box.environment | {"BULLE_JOURNAL": str(tmp_path / "nosuch")}, stderr=subprocess.PIPE,
        )  # fmt: skip
        said = command.communicate(timeout=240)[1]
        assert command.returncode == 125
        assert said.startswith(b"bulle: the container's log cannot be written to the journal: no journal listens at ")
    container = box.create(BOX, "true", log_driver="journald")
    try:
        with pytest.raises(bulle.BulleError, match=r"no journal listens at .*nosuch .*; start systemd-journald, or use another --log-driver"):
            container.start()
        assert container.state().status != "running"
    finally:
        container.remove(force=True)


def test_journal_that_goes_away_and_comes_back(box: Machine, journal: Journal) -> None:
    script = "echo one; while [ ! -e /go ]; do sleep 0.05; done; echo two; echo three; while [ ! -e /end ]; do sleep 0.05; done; echo four"
    with box.running(BOX, "sh", "-c", script, log_driver="journald") as container:
        assert journal.receive()["MESSAGE"] == b"one"
        journal.close()
        box.execute(container, "touch", "/go")
        time.sleep(0.3)
        assert container.state().status == "running"
        again = Journal(journal.path)
        try:
            box.execute(container, "touch", "/end")
            note = again.receive()["MESSAGE"]
            assert note.startswith(b"bulle: 2 messages are missing here: ")
            assert again.receive()["MESSAGE"] == b"four"
        finally:
            again.close()
        container.wait()


def test_blocking_log_makes_its_container_wait_and_no_other(box: Machine, journal: Journal) -> None:
    """The journal does not read: what is written to it waits as it would in a pipe."""
    with (
        box.running(BOX, "sh", "-c", "seq 200000; echo end", log_driver="journald") as waiting,
        box.running(BOX, "sh", "-c", "seq 200000; echo end") as other,
    ):
        assert other.wait() == 0
        assert waiting.state().status == "running"
        journal.socket.close()  # nobody takes the rest: it goes on


def test_non_blocking_log_drops_and_says_how_much(box: Machine, journal: Journal) -> None:
    options = (("mode", "non-blocking"), ("max-buffer-size", "64k"))
    script = "seq 200000; touch /done; while [ ! -e /go ]; do sleep 0.05; done; echo end"
    with box.running(BOX, "sh", "-c", script, log_driver="journald", log_options=options) as container:
        wait_for(lambda: box.execute(container, "test", "-e", "/done").exit_code == 0, "it goes on although nobody reads")
        said: list[bytes] = []
        notes: list[bytes] = []

        def take() -> None:
            message = journal.receive()["MESSAGE"]
            (notes if message.startswith(b"bulle: ") else said).append(message)

        while not notes:  # it comes when there is room again, whether the container goes on or not
            take()
        box.execute(container, "touch", "/go")
        while said[-1] != b"end":
            take()
        assert all(note.endswith(b" messages were dropped here: the log's buffer of 65536 bytes was full") for note in notes)
        dropped = sum(int(note.split()[1]) for note in notes)
        assert dropped > 1000
        assert said[0] == b"1"
        assert dropped + len(said) - 1 == 200_000
        numbers = [int(line) for line in said[:-1]]
        assert numbers == sorted(numbers)
        assert numbers[-1] <= 200_000, "no line was cut or joined to another"


def test_non_blocking_files_lose_nothing_where_there_is_room(box: Machine) -> None:
    options = (("mode", "non-blocking"), ("max-buffer-size", "8m"), ("max-size", "100k"), ("max-file", "100"), ("compress", "true"))
    with box.running(BOX, "sh", "-c", "seq 20000", log_options=options) as container:
        container.wait()
        assert b"".join(entry.data for entry in container.logs()).split() == [str(number).encode() for number in range(1, 20001)]


def test_journal_is_read_through_journalctl(box: Machine, journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with box.running(BOX, "true", name="web", log_driver="journald") as container:
        container.wait()
        without = box.environment | {"PATH": str(tmp_path), "BULLE_NO_SPAWNER": "1"}
        done = subprocess.run([sys.executable, "-m", "bulle", "logs", "web"], env=without, capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr == (
            "bulle: the container's log cannot be read: it is in the journal, and there is no journalctl here; "
            "install systemd, or read it elsewhere\n"
        )


@pytest.mark.root
@pytest.mark.programs("unshare", "journalctl")
def test_systemd_s_own_journal(run_directory: Path, busybox_image: Path) -> None:
    """Everything in a mount namespace with a /run of its own, where a real journald writes and journalctl reads."""
    daemon = "/lib/systemd/systemd-journald"
    if not Path(daemon).exists():
        tiers.give_up("programs", "systemd-journald is not installed")
    home = run_directory / "journald"
    home.mkdir(mode=0o700)
    say = " ".join(places.command_line())
    script = f"""set -e
        mount -t tmpfs run /run
        mkdir -p /run/systemd/journal /run/log/journal/$(cat /etc/machine-id)
        {daemon} & journald=$!
        trap 'kill $journald' EXIT
        until [ -S /run/systemd/journal/socket ]; do sleep 0.05; done
        {say} load -q -i {busybox_image} >/dev/null
        {say} run -d --name web --log-driver journald --log-opt env=MODE -e MODE=fast busybox sh -c \\
            'echo out; echo err >&2; sleep 1; seq 3; printf "%s\\n" "zwölf"; printf end' >/dev/null
        {say} logs -f web 2>&1
        echo ---; {say} logs -n 2 --details web
        echo ---; journalctl -o cat -q CONTAINER_NAME=web | wc -l
        {say} rm web >/dev/null"""
    try:
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script],
            env=places.environment(home), capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, done
        followed, tail, count = done.stdout.split("---\n")
        assert sorted(followed.split()[:2]) == ["err", "out"]
        assert followed.split()[2:] == ["1", "2", "3", "zwölf", "end"]
        assert tail == "MODE=fast zwölf\nMODE=fast end"
        assert count == "7\n"
    finally:
        with suppress(OSError):
            assert places.close_home(home) == []
