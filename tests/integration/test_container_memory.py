"""Containers whose memory is kept in snapshots, by CRIU: their processes go on from that very moment, watched as any; what is damaged or from
another machine is refused; whoever is killed leaves the old one or the new one.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from bulle.engine import kept_processes
from bulle.records.database import Database
from bulle_testing.running import Machine, wait_for

pytestmark = pytest.mark.root
# The shell has a file open that has no name any more, and children that come and go.
COUNTS = (
    "trap 'exit 7' TERM; exec 3<>/open; rm /open; echo held >&3; i=0; while true; do echo \"$i\"; echo \"e$i\" >&2; i=$((i+1)); sleep 0.1; done"
)
LOOK = "cat /file /dev/shm/memory /tmpfs/memory; readlink /proc/1/fd/3; hostname; cat /sys/class/net/eth0/address; id -u"
LIMITS = ("--memory", "96m", "--network", "bridge", "--tmpfs", "/tmpfs")
# Told of a process: all that the kernel holds it to.
HELD_TO = "grep -E 'Uid|Gid|Groups|Cap|Seccomp|NoNew' /proc/1/status; cat /proc/1/limits /proc/1/uid_map /proc/1/oom_score_adj /proc/1/cgroup"
# A parent that talks to the world and a child that remembers.
SERVER = r"""
use IO::Socket::UNIX; use Socket; $| = 1;
socketpair(my $here, my $there, AF_UNIX, SOCK_STREAM, 0); $_->autoflush for $here, $there;
if (!fork) {
    my %held = map { $_ => $_ * 7 } 1..50000; my $asked = 0;
    while (my $key = <$there>) { chomp $key; $asked++; print $there "$held{$key} $asked\n"; } exit;
}
my $listener = IO::Socket::UNIX->new(Local => "/run/server", Listen => 5) or die $!; print "ready\n";
while (my $client = $listener->accept) { while (my $line = <$client>) { print $here $line; print $client scalar <$here>; $client->flush; } }
"""
ASK = 'use IO::Socket::UNIX; my $s = IO::Socket::UNIX->new("/run/server") or die $!; print $s "6\n"; $s->flush; print scalar <$s>;'
KEEPS = 'use IO::Socket::UNIX; my $s = IO::Socket::UNIX->new("/run/server") or die $!; $| = 1; print "open\n"; sleep 1000;'


@pytest.fixture
def place(box: Machine, criu: Path) -> Iterator[Machine]:
    """The module's machine, with a CRIU that works."""
    before = box.environment["PATH"]
    box.environment["PATH"] = f"{criu}:{before}"
    yield box
    box.environment["PATH"] = before


def run(box: Machine, *words: str | Path, code: int = 0) -> str:
    """What a command prints; of one that fails its complaint, which is one line."""
    done = box.command(*words)
    assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
    assert not code or (done.stderr.count("\n") == 1 and "internal" not in done.stderr), done.stderr
    return done.stderr if code else done.stdout


def inspected(box: Machine, *names: str) -> Any:
    found = json.loads(run(box, "inspect", "c"))[0]
    for name in names:
        found = found[name]
    return found


def counted(box: Machine) -> list[int]:
    return [int(line) for line in run(box, "logs", "c").split()]


def since(box: Machine) -> list[int]:
    """What it counted since it did not count on last."""
    told = counted(box)
    return told[max([0, *(at for at in range(1, len(told)) if told[at] != told[at - 1] + 1)]) :]


def counts(box: Machine) -> None:
    seen = len(counted(box))
    wait_for(lambda: len(counted(box)) > seen + 1, "it counts")


def begin(box: Machine, *flags: str) -> None:
    run(box, "run", "-d", "--name", "c", *flags, "busybox", "sh", "-c", COUNTS)
    counts(box)


def keep(box: Machine, tag: str) -> None:
    """Make a snapshot with memory."""
    done = box.command("snapshot", "create", "c", tag)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tag}\n", "")
    assert inspected(box, "Snapshots")[-1]["Memory"] is True


def test_processes_go_on_from_a_snapshot(place: Machine) -> None:
    begin(place, *LIMITS)
    run(place, "exec", "c", "sh", "-c", "echo before | tee /file /dev/shm/memory >/tmpfs/memory")
    before, held_to, network = (run(place, "exec", "c", "sh", "-c", words) for words in (LOOK, HELD_TO, "ip address show eth0 | grep -w inet"))
    mounts = run(place, "exec", "c", "sh", "-c", "cut -d' ' -f4-6 /proc/1/mountinfo | sort")
    last = counted(place)[-1]
    keep(place, "one")
    most = counted(place)[-1]
    assert run(place, "snapshot", "ls", "--format", "{{.Tag}} {{.Memory}}") == "one kept\n"
    run(place, "exec", "c", "sh", "-c", "echo after | tee /file /dev/shm/memory >/tmpfs/memory")
    for stops in (False, True):  # it is restored as it runs, and when it does not
        if stops:
            run(place, "stop", "c")
            assert inspected(place, "State", "ExitCode") == 7
        else:
            run(place, "system", "prune", "-f")
        run(place, "snapshot", "restore", "-t", "0", "c", "one")
        counts(place)
        assert last < since(place)[0] <= most + 1
        assert f"e{since(place)[1]}" in place.command("logs", "c").stderr.split()
        assert run(place, "exec", "c", "sh", "-c", LOOK).split()[:5] == before.split()[:5]
        assert run(place, "exec", "c", "sh", "-c", HELD_TO) == held_to
        assert run(place, "exec", "c", "sh", "-c", "ip address show eth0 | grep -w inet") == network
        assert run(place, "exec", "c", "sh", "-c", "cut -d' ' -f4-6 /proc/1/mountinfo | sort") == mounts
        monitor = json.loads((place.home / "containers" / inspected(place, "Id") / "state.json").read_text())["monitor_pid"]
        assert Path(f"/proc/{monitor}/task/{monitor}/children").read_text().split() == [str(inspected(place, "State", "Pid"))]
        assert int(run(place, "stats", "--no-stream", "--format", "{{.PIDs}}", "c")) >= 1
    run(place, "pause", "c")
    run(place, "unpause", "c")
    run(place, "kill", "c")
    assert run(place, "wait", "c") == "137\n"
    run(place, "start", "c")  # memory is gone on from once
    counts(place)
    assert since(place)[0] == 0
    assert run(place, "exec", "c", "cat", "/file") == "before\n"
    run(place, "snapshot", "restore", "-t", "0", "--disk-only", "c", "one")
    counts(place)
    assert since(place)[0] == 0
    directory = place.home / "containers" / inspected(place, "Id")
    assert not list(directory.glob("root-*/memory"))
    run(place, "snapshot", "rm", "c", "one")
    assert not (directory / "snapshots").exists()
    run(place, "rm", "-f", "c")


def test_what_else_belongs_to_it(place: Machine) -> None:
    """A root that cannot be written, another user, and an input; twice, since what goes on can be kept again."""
    flags = ("--read-only", "--user", "5:6", "--security-opt", "no-new-privileges", "--ulimit", "nofile=100:200", "-i")
    run(place, "run", "-d", "--name", "c", *flags, "busybox", "sh", "-c", 'while read word; do echo "$word $((i=i+1))"; done; exit 9')
    held_to = run(place, "exec", "c", "sh", "-c", HELD_TO)

    with ExitStack() as stack:
        says = stack.enter_context(attached(place))
        assert says("a") == "a 1\n"
        for number in (1, 2):
            keep(place, f"t{number}")
            assert says("lost") == f"lost {number + 1}\n"
            run(place, "snapshot", "restore", "-t", "0", "c", f"t{number}")
            says = stack.enter_context(attached(place))
            assert says("b") == f"b {number + 1}\n"
            assert run(place, "exec", "c", "sh", "-c", HELD_TO) == held_to
            assert "Read-only" in run(place, "exec", "--user", "0", "c", "touch", "/new", code=1)
        run(place, "rm", "-f", "c")


@contextmanager
def attached(place: Machine) -> Iterator[Callable[[str], str]]:
    """Says a word to the container, and returns its line. Its input ends with the block."""
    client = place.start_command("attach", "c", stdin=-1, stdout=-1, stderr=-3)

    def says(word: str) -> str:
        assert client.stdin is not None and client.stdout is not None
        client.stdin.write(f"{word}\n".encode())
        client.stdin.flush()
        line: bytes = client.stdout.readline()
        return line.decode()

    try:
        yield says
    finally:
        client.kill()
        client.communicate()


def test_a_program_keeps_what_it_holds(place: Machine, debian_tar: Path) -> None:
    run(place, "import", debian_tar, "debian")
    run(place, "run", "-d", "--name", "c", "debian", "perl", "-e", SERVER)
    wait_for(lambda: "ready" in run(place, "logs", "c"), "it listens")
    assert run(place, "exec", "c", "perl", "-e", ASK) == "42 1\n"
    keep(place, "one")
    assert run(place, "exec", "c", "perl", "-e", ASK) == "42 2\n"
    client = place.start_command("exec", "c", "perl", "-e", KEEPS, stdout=-1, stderr=-3)
    assert client.stdout is not None and client.stdout.readline() == b"open\n"
    run(place, "snapshot", "restore", "-t", "0", "c", "one")
    client.communicate(timeout=60)  # what exec had running has ended
    assert run(place, "exec", "c", "perl", "-e", ASK) == "42 2\n"
    assert run(place, "exec", "c", "perl", "-e", ASK) == "42 3\n"
    run(place, "rm", "-f", "c")
    run(place, "rmi", "debian")


def test_where_memory_cannot_be_kept_the_files_are(place: Machine, criu: Path, tmp_path: Path) -> None:
    begin(place)
    pid = inspected(place, "State", "Pid")
    without = {**place.environment, "PATH": place.environment["PATH"].removeprefix(f"{criu}:")}
    works = "\nyes  criu" in "\n" + place.start_command("doctor", env=without, stdout=-1).communicate()[0].decode()
    done = place.start_command("snapshot", "create", "c", "plain", env=without, stdout=-1, stderr=-1)
    out, said = (text.decode() for text in done.communicate())
    assert (done.returncode, out) == (0, "plain\n")
    assert ("its memory is not kept: " in said and "`bulle doctor`" in said) is not works, said
    counts(place)
    assert inspected(place, "State", "Pid") == pid
    assert "CRIU 4" in run(place, "doctor")
    assert not place.command("snapshot", "create", "--disk-only", "c", "disk").stderr
    run(place, "rm", "-f", "c")
    nested = ("--cap-add", "SYS_ADMIN", "busybox", "unshare", "-pf", "sleep", "1000")
    for words, why in (
        (("-v", f"{tmp_path}:/v", "busybox", "sleep", "1000"), "its volumes and binds go on"),
        (("-t", "busybox", "sleep", "1000"), "it has a terminal"),
        (nested, "CRIU says: "),  # processes in a pid namespace of their own
    ):
        run(place, "run", "-d", "--name", "c", *words)
        pid = inspected(place, "State", "Pid")
        done_by_us = place.command("snapshot", "create", "c", "one")
        assert done_by_us.returncode == 0
        assert f"its memory is not kept: {why}" in done_by_us.stderr and done_by_us.stderr.count("\n") == 1, done_by_us.stderr
        assert [one["Memory"] for one in inspected(place, "Snapshots")] == [False]
        assert inspected(place, "State", "Pid") == pid
        assert not (place.home / "containers" / inspected(place, "Id") / "snapshots").exists()
        run(place, "rm", "-f", "c")


def test_what_is_not_for_this_machine_or_damaged_is_refused(place: Machine) -> None:
    begin(place)
    keep(place, "one")
    pid = inspected(place, "State", "Pid")
    [directory] = (place.home / "containers" / inspected(place, "Id") / "snapshots").iterdir()
    for name in ("pages-1.img", "known.json", "mountpoints-*.img"):
        [file] = directory.glob(name)
        content = file.read_bytes()
        for damage in (content[:-1], content[:50] + bytes([content[50] ^ 1]) + content[51:]):
            file.write_bytes(damage)
            assert "damaged" in run(place, "snapshot", "restore", "c", "one", code=1)
        file.unlink()
        assert "missing" in run(place, "snapshot", "restore", "c", "one", code=1)
        file.write_bytes(content)
    known = json.loads((directory / "known.json").read_text())
    for name, value, said in (
        ("criu", "3.17.1", "kept with CRIU 3.17.1"),
        ("kernel", "5.10.0-amd64", "kept with Linux 5.10.0-amd64"),
        ("processor", "z80", "kept with the processor z80"),
        ("users", [[0, 5, 65536]], "user ids"),
    ):
        write_known(place, directory, {**known, name: value})
        assert said in run(place, "snapshot", "restore", "c", "one", code=1)
    write_known(place, directory, known)
    without = {**place.environment, "PATH": "/nowhere"}
    if not any(Path(where, "criu").exists() for where in ("/usr/sbin", "/sbin", "/usr/local/sbin")):
        done = place.start_command("snapshot", "restore", "c", "one", env=without, stdout=-3, stderr=-1)
        assert b"there is no criu" in done.communicate()[1]
    counts(place)
    assert inspected(place, "State", "Pid") == pid
    # Its digests are right, and it is nothing: it is what it was, and runs.
    last = counted(place)[-1]
    [pages] = directory.glob("core-1.img")
    pages.write_bytes(bytes(99))
    write_known(place, directory, known)
    assert "CRIU says" in run(place, "snapshot", "restore", "-t", "0", "c", "one", code=1)
    counts(place)
    assert since(place)[0] == 0 and last > 0
    assert len(list(directory.parent.parent.glob("root*"))) == 1
    run(place, "snapshot", "restore", "-t", "0", "--disk-only", "c", "one")
    run(place, "rm", "-f", "c")


def write_known(place: Machine, directory: Path, known: dict[str, Any]) -> None:
    """As a home of another machine would have it: the digests are right."""
    (directory / "known.json").write_text(json.dumps(known))
    digests = {name: kept_processes.kept_machines.digest(directory, name) for name in os.listdir(directory)}
    database = Database(place.home)
    with database.transaction() as connection:
        connection.execute("UPDATE snapshot SET machine = ?", (json.dumps({"directory": directory.name, "digests": digests}).encode(),))
    database.close()


def reads(place: Machine, expected: set[str]) -> bool:
    done = place.command("exec", "c", "cat", "/file")
    assert done.returncode or done.stdout in expected
    return done.returncode == 0


@pytest.mark.alone
def test_killed_at_any_moment(place: Machine) -> None:
    begin(place)
    identifier = inspected(place, "Id")
    run(place, "exec", "c", "sh", "-c", "echo new >/file")
    keep(place, "new")
    chosen = random.Random(9)
    for number in range(6):
        run(place, "exec", "c", "sh", "-c", f"echo old{number} >/file")
        words = ("restore", "-t", "0", "c", "new") if number % 2 else ("create", "c", f"t{number}")
        command = place.start_command("snapshot", *words, stdout=-3, stderr=-3)
        time.sleep(chosen.random() * 1.5)
        command.kill()
        command.wait()
        expected = {f"old{number}\n", *(["new\n"] if number % 2 else [])}
        # What was killed may have told it to end, or to start, just before.
        wait_for(lambda expected=expected: place.command("start", "c").returncode == 0 and reads(place, expected), "it starts")  # type: ignore[misc]
        counts(place)
    for tag in run(place, "snapshot", "ls", "-q", "c").split():
        run(place, "snapshot", "restore", "-t", "0", "c", tag)
        assert run(place, "exec", "c", "cat", "/file") == f"old{tag[1:]}\n" if tag != "new" else "new\n"
    place.engine.gc()
    directory = place.home / "containers" / identifier
    assert len([entry for entry in os.listdir(directory) if entry.startswith("root")]) == 1
    assert len(os.listdir(directory / "snapshots")) == len(run(place, "snapshot", "ls", "-q", "c").split())
    wait_for(lambda: not list(place.home.glob("tmp/*/*")), "no work in progress is left")
    run(place, "rm", "-f", "c")
