"""Where a container's output goes: files that stay within their bounds, readers that lose nothing and slow nobody, floods, full disks."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import bulle
from bulle.engine.container_log import ContainerLog
from bulle.monitor.log_reading import Choice
from bulle_testing.running import LEVELS, PATIENCE_S, Level, Machine, machine, wait_for

BOX = LEVELS[0]
COUNT = 'i=0; while [ $i -lt {count} ]; do i=$((i+1)); echo "line $i of what a container says to whoever reads it"; done'
SLOWLY = "for r in $(seq {rounds}); do seq $(( (r-1)*{each}+1 )) $(( r*{each} )); sleep 0.02; done"


@contextmanager
def ended(place: Machine, level: Level, script: str, *log_options: str, **options: object) -> Iterator[bulle.Container]:
    """A container that ran to its end and is removed afterwards; with ``--log-opt`` as on the command line."""
    pairs = tuple(tuple(option.split("=", 1)) for option in log_options)
    container = place.create(level, "sh", "-c", script, log_options=pairs, **options)
    try:
        container.start()
        container.wait()
        yield container
    finally:
        container.remove(force=True)


def log_files(container: bulle.Container) -> dict[str, int]:
    """The files of its log, and what they take."""
    found = {}
    for path in Path(container.directory).glob("container.log*"):
        with suppress(FileNotFoundError):  # given another number at this moment
            found[path.name] = path.stat().st_size
    return found


def text(container: bulle.Container, **choice: int) -> str:
    return b"".join(entry.data for entry in container.logs(**choice)).decode()


def consecutive(numbers: list[int], last: int) -> bool:
    return numbers == list(range(last - len(numbers) + 1, last + 1))


def test_log_stays_within_its_bounds(place: Machine, level: Level) -> None:
    with ended(place, level, "seq 100000", "max-size=50k", "max-file=3") as container:
        files = log_files(container)
        assert files.keys() == {"container.log", "container.log.1", "container.log.2"}
        assert all(0 < size < 50_200 for size in files.values()), files
        kept = [int(line) for line in text(container).split()]
        assert len(kept) > 1000
        assert consecutive(kept, 100_000), "what is kept is the end of what was said, without a gap"
        for tail in (1, len(kept) - 1, len(kept), 10**6):
            assert [int(line) for line in text(container, tail=tail).split()] == kept[-tail:]
        for name in files:
            lines = (Path(container.directory) / name).read_text().splitlines()
            assert all(json.loads(line).keys() == {"log", "stream", "time"} for line in lines), f"{name} has whole lines only"


def test_flood_is_bounded_by_default(box: Machine) -> None:
    with ended(box, BOX, "yes | head -c 6000000") as container:
        files = log_files(container)
        assert sum(files.values()) <= 100_010_000
        assert len(files) == 5
        assert set(text(container, tail=1000).split()) == {"y"}


def test_log_of_one_file_begins_anew(box: Machine) -> None:
    with ended(box, BOX, "seq 20000", "max-size=20k", "max-file=1") as container:
        assert log_files(container).keys() == {"container.log"}
        assert log_files(container)["container.log"] < 20_200
        assert consecutive([int(line) for line in text(container).split()], 20_000)


def test_log_without_a_bound_keeps_everything(box: Machine) -> None:
    with ended(box, BOX, "seq 300000", "max-size=-1") as container:
        assert log_files(container).keys() == {"container.log"}
        assert log_files(container)["container.log"] > 20_000_000
        assert text(container, tail=300_000).split() == [str(number) for number in range(1, 300_001)]


@pytest.mark.parametrize("options", [{"log_driver": "local"}, {}], ids=["local", "json-file"])
def test_older_files_are_compressed(box: Machine, options: dict[str, str]) -> None:
    script = "seq 3000; while [ ! -e /go ]; do sleep 0.05; done; echo more; while [ ! -e /end ]; do sleep 0.05; done"
    log_options = (("max-size", "50k"), ("max-file", "20"), *((("compress", "true"),) if not options else ()))
    with box.running(BOX, "sh", "-c", script, log_options=log_options, **options) as container:

        def names() -> set[str]:
            return set(log_files(container))

        wait_for(lambda: names() == {"container.log", *(f"container.log.{number}.gz" for number in range(1, 5))}, "all but the newest are compressed")
        with gzip.open(Path(container.directory) / "container.log.1.gz", "rt") as lines:
            assert json.loads(lines.readline())["stream"] == "stdout"
        everything = [str(number) for number in range(1, 3001)]
        wait_for(lambda: len(text(container).split()) == 3000, "all lines")
        assert text(container).split() == everything
        for tail in (1, 700, 1500, 2999, 4000):
            assert text(container, tail=tail).split() == everything[-tail:]
        half = next(entry.time_ns for entry in container.logs() if entry.data == b"1500\n")
        assert text(container, since_ns=half).split()[-1] == "3000"
        children = Path(f"/proc/{container.state().monitor_pid}/task/{container.state().monitor_pid}/children").read_text().split()
        assert children == [str(container.state().pid)], "what compressed has gone, and was waited for"
        box.execute(container, "touch", "/go")
        wait_for(lambda: text(container, tail=1) == "more\n", "the monitor goes on")
        box.execute(container, "touch", "/end")
        container.wait()


def test_damaged_compressed_file_hides_no_other(box: Machine) -> None:
    with ended(box, BOX, "seq 3000", "max-size=50k", "max-file=20") as container:
        directory = Path(container.directory)
        oldest = max(directory.glob("container.log.*"), key=lambda path: int(path.suffix[1:]))
        (directory / f"{oldest.name}.gz").write_bytes(gzip.compress(oldest.read_bytes())[:-2000])
        oldest.unlink()
        shown = text(container).split()
        assert shown[-1] == "3000"
        assert consecutive([int(line) for line in text(container, tail=1000).split()], 3000)


def test_follower_goes_on_through_rotations(box: Machine) -> None:
    script = SLOWLY.format(rounds=40, each=100)
    with box.running(BOX, "sh", "-c", script, log_options=(("max-size", "20k"), ("max-file", "50"), ("compress", "true"))) as container:
        done = box.command("logs", "-f", container.name)
        assert done.stdout.split() == [str(number) for number in range(1, 4001)]
        assert len(log_files(container)) > 10


def test_follower_goes_on_when_its_file_is_compressed_or_gone(box: Machine) -> None:
    with box.running(
        BOX, "sh", "-c", "seq 500; while [ ! -e /go ]; do sleep 0.05; done; seq 501 1500", log_options=(("max-size", "10k"), ("max-file", "30"))
    ) as container:
        wait_for(lambda: len(text(container).split()) == 500, "the first lines")
        seen: list[bytes] = []
        directory = Path(container.directory)

        def more() -> bool:
            """Called at the end of what there is: meanwhile the container goes on, and its files are compressed behind the reader's back."""
            if len(seen) > 1000:
                return False
            box.execute(container, "touch", "/go")
            container.wait()
            for path in directory.glob("container.log.*"):
                if path.suffix != ".gz":
                    packed = directory / f"{path.name}.gz"
                    packed.write_bytes(gzip.compress(path.read_bytes()))
                    os.utime(packed, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
                    path.unlink()
            return False

        from bulle.monitor.log_reading import read_log

        for entry in read_log(container.directory, Choice(), more):
            seen.append(entry.data)
        assert b"".join(seen).split() == [str(number).encode() for number in range(1, 1501)]


def test_follower_outlives_a_monitor(box: Machine) -> None:
    with box.running(BOX, "sh", "-c", "for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.2; done") as container:
        follower = box.start_command("logs", "-f", container.name, stdout=subprocess.PIPE)
        assert follower.stdout is not None
        assert follower.stdout.readline() == b"1\n"
        os.kill(container.state().monitor_pid, signal.SIGKILL)
        assert follower.stdout.read().split() == [b"2", b"3", b"4", b"5", b"6", b"7", b"8"]
        assert follower.wait(PATIENCE_S) == 0
        follower.stdout.close()


def test_follower_goes_on_across_restarts(box: Machine) -> None:
    """As long as the container counts as running: between two runs its monitor may be another, and nobody listens."""
    with box.running(BOX, "sh", "-c", "seq 300", log_options=(("max-size", "10k"), ("max-file", "20"))) as container:
        runs = [container.wait()]

        def is_running() -> bool:
            if len(runs) == 3:
                return False
            container.start()
            runs.append(container.wait())
            return True

        entries = list(ContainerLog(container.plan, container.name, is_running).entries(Choice(), follow=True))
        assert [int(entry.data) for entry in entries] == [*range(1, 301)] * 3


def test_follower_ends_when_its_container_is_removed(box: Machine) -> None:
    with box.running(BOX, "sh", "-c", "echo one; sleep 1000") as container:
        follower = box.start_command("logs", "-f", container.name, stdout=subprocess.PIPE)
        assert follower.stdout is not None
        assert follower.stdout.readline() == b"one\n"
        container.remove(force=True)
        assert follower.wait(PATIENCE_S) == 0
        follower.stdout.close()


def test_reader_that_does_not_read_slows_nobody(box: Machine) -> None:
    with box.running(BOX, "sh", "-c", "seq 400000; echo done") as container:
        follower = box.start_command("logs", "-f", container.name, stdout=subprocess.PIPE)
        try:
            assert container.wait() == 0
            assert text(container, tail=1) == "done\n"
        finally:
            follower.kill()
            follower.wait()
            assert follower.stdout is not None
            follower.stdout.close()


def test_follower_ends_at_until(box: Machine) -> None:
    with box.running(BOX, "sh", "-c", "echo early; sleep 1000") as container:
        wait_for(lambda: text(container) == "early\n", "its line")
        begun = time.monotonic()
        done = list(container.logs(follow=True, until_ns=time.time_ns() + 300_000_000))
        assert [entry.data for entry in done] == [b"early\n"]
        assert 0.2 < time.monotonic() - begun < PATIENCE_S


def test_followed_container_that_never_started_has_an_end(box: Machine) -> None:
    container = box.create(BOX, "true")
    try:
        assert list(container.logs(follow=True)) == []
    finally:
        container.remove()


def test_times_and_both_streams(box: Machine) -> None:
    with ended(box, BOX, "for i in 1 2 3; do echo out$i; echo err$i >&2; sleep 0.05; done; printf end", "max-size=1k", "max-file=9") as container:
        done = box.command("logs", container.name)
        assert (done.stdout, done.stderr) == ("out1\nout2\nout3\nend", "err1\nerr2\nerr3\n")
        stamped = [line.split(" ", 1) for line in box.command("logs", "-t", container.name).stdout.splitlines()]
        assert [said for _time, said in stamped] == ["out1", "out2", "out3", "end"]
        assert box.command("logs", "--since", stamped[1][0], container.name).stdout == "out2\nout3\nend"
        assert box.command("logs", "--until", stamped[1][0], container.name).stdout == "out1\nout2\n"
        assert box.command("logs", "--since", stamped[1][0], "--until", stamped[1][0], container.name).stdout == "out2\n"
        assert box.command("logs", "--since", "1h", "--until", "30m", container.name).stdout == ""
        assert box.command("logs", "-n", "0", container.name).stdout == ""


def test_long_lines_come_back_whole(box: Machine) -> None:
    script = "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); printf 'é€😀'; done; echo; echo '\"quoted\\n\\\\\"'; printf '\\377\\n'"
    with ended(box, BOX, script) as container:
        assert text(container) == "é€😀" * 30000 + '\n"quoted\\n\\\\"\n\ufffd\n'
        lines = (Path(container.directory) / "container.log").read_bytes().splitlines()
        assert max(len(json.loads(line)["log"].encode()) for line in lines) <= 16385


def test_labels_variables_and_a_tag_stand_beside_each_message(box: Machine) -> None:
    options = ("labels=tier", "env=MODE", "env-regex=^X_", "tag={{.Name}}/{{.ID}}/{{.ImageName}}")
    environment = ("MODE=a b", "X_ONE=1", "OTHER=2")
    with ended(box, BOX, "echo hi", *options, labels={"tier": "web", "more": "x"}, environment=environment, name="tagged") as container:
        expected = {"tier": "web", "MODE": "a b", "X_ONE": "1", "tag": f"tagged/{container.id[:12]}/busybox"}
        (entry,) = container.logs()
        assert entry.attributes == expected
        assert json.loads((Path(container.directory) / "container.log").read_text())["attrs"] == expected
        said = box.command("logs", "--details", "tagged").stdout
        assert said == f"MODE=a+b,X_ONE=1,tag=tagged%2F{container.id[:12]}%2Fbusybox,tier=web hi\n"
        shown = json.loads(box.command("inspect", "-f", "{{json .HostConfig.LogConfig}}", "tagged").stdout)
        assert shown == {"Type": "json-file", "Config": dict(option.split("=", 1) for option in options)}


def test_none_keeps_nothing_and_says_so(box: Machine) -> None:
    with ended(box, BOX, "echo hi", log_driver="none", name="silent") as container:
        assert log_files(container) == {}
        done = box.command("logs", "silent")
        assert done.returncode == 1
        assert done.stderr.startswith("bulle: container silent has no log: it was created with --log-driver none")
        assert box.command("inspect", "-f", "{{.HostConfig.LogConfig.Type}}{{.LogPath}}", "silent").stdout == "none\n"
    assert box.command("run", "--rm", "--log-driver", "none", "busybox", "echo", "still", "shown").stdout == "still shown\n"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--log-driver", "syslog"), "there is no log driver 'syslog'"),
        (("--log-opt", "max-size"), "invalid logging option: 'max-size'"),
        (("--log-opt", "max-sizes=1m"), "unknown log opt 'max-sizes' for json-file log driver"),
        (("--log-opt", "max-size=0"), "invalid log opt max-size=0"),
        (("--log-opt", "max-size=much"), "invalid log opt max-size=much"),
        (("--log-opt", "max-file=0"), "invalid log opt max-file=0"),
        (("--log-opt", "compress=maybe"), "invalid log opt compress=maybe"),
        (("--log-opt", "compress=true", "--log-opt", "max-file=1"), "compress cannot be true when max-file is less than 2"),
        (("--log-opt", "mode=sometimes"), "invalid log opt mode=sometimes"),
        (("--log-opt", "max-buffer-size=1m"), "the log opt max-buffer-size is only for mode=non-blocking"),
        (("--log-opt", "tag={{.Nosuch}}"), "invalid log opt tag: there is no '.Nosuch'"),
        (("--log-opt", "labels-regex=("), "invalid log opt labels-regex=("),
        (("--log-driver", "none", "--log-opt", "max-size=1m"), "unknown log opt 'max-size' for none log driver"),
        (("--log-driver", "journald", "--log-opt", "max-size=1m"), "unknown log opt 'max-size' for journald log driver"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_made(box: Machine, flags: tuple[str, ...], said: str) -> None:
    done = box.command("create", *flags, "busybox", "true")
    assert done.returncode in (1, 125)
    assert done.stderr.startswith(f"bulle: {said}"), done.stderr
    assert box.command("ps", "-aq").stdout == ""


@pytest.mark.alone
def test_flood_of_one_container_leaves_the_others_alone(box: Machine) -> None:
    flood = (("max-size", "1m"), ("max-file", "2"))
    with (
        box.running(BOX, "sh", "-c", "yes a flood of many words", log_options=flood) as loud,
        box.running(BOX, "sh", "-c", SLOWLY.format(rounds=50, each=1)) as quiet,
    ):
        assert loud.state().monitor_pid != quiet.state().monitor_pid
        assert quiet.wait() == 0
        assert text(quiet).split() == [str(number) for number in range(1, 51)]
        assert loud.state().status == "running"
        assert sum(log_files(loud).values()) < 2_100_000
        assert text(loud, tail=3) == "a flood of many words\n" * 3


@pytest.fixture
def full(run_directory: Path, busybox_image: Path) -> Iterator[tuple[Machine, Path]]:
    """A machine, and a file system of 256 KiB that its spawner has seen from the beginning."""
    small = run_directory / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "small", str(small)], check=True)
    try:
        with machine(run_directory, "full") as place:
            place.engine.images.load(busybox_image)
            yield place, small
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.root
def test_full_disk_is_survived_and_told(full: tuple[Machine, Path]) -> None:
    box, small = full
    pause = "while [ ! -e /{name} ]; do sleep 0.05; done"
    script = f"{COUNT.format(count=20000)}; touch /full; {pause.format(name='go')}; echo after; {pause.format(name='end')}"
    container = box.create(BOX, "sh", "-c", script)
    (Path(container.directory) / "container.log").symlink_to(small / "container.log")
    try:
        (small / "ballast").write_bytes(bytes(128 << 10))
        (small / "container.log").touch(0o600)
        container.start()
        wait_for(lambda: box.execute(container, "test", "-e", "/full").exit_code == 0, "it has said everything")
        assert os.statvfs(small).f_bavail == 0
        assert container.state().status == "running"
        (small / "ballast").unlink()
        box.execute(container, "touch", "/go")
        wait_for(lambda: text(container, tail=1) == "after\n", "what is said when there is space again")
        lines = [json.loads(line) for line in (small / "container.log").read_text().splitlines()]
        notes = [line["log"] for line in lines if line["log"].startswith("bulle: ")]
        assert len(notes) == 1
        missing = int(notes[0].split()[1])
        assert notes[0] == f"bulle: {missing} messages are missing here: No space left on device\n"
        assert missing + len(lines) - 2 == 20000, "every line is there or counted"
        box.execute(container, "touch", "/end")
        assert container.wait() == 0
    finally:
        container.remove(force=True)
