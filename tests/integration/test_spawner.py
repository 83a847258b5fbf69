"""The spawner, seen from its callers: the native stub and its Python twin, which must behave the same, and the library."""

from __future__ import annotations

import array
import contextlib
import json
import os
import pty
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bulle.spawner.launch import connect
from bulle.spawner.protocol import HEADER, Request, current_limits, pack_request, send_with_descriptors
from bulle_testing import places

pytestmark = pytest.mark.slow

ROOT_PROGRAM = Path(__file__).with_name("spawner_root.py")
SOURCE = places.SOURCE
TWIN = """
import sys
from bulle.spawner.stub import main
main(sys.argv[1:], None, [sys.executable, {program!r}])
"""
WRAPPER = """#!/bin/sh
shift 3
TEST_INTERPRETER={directory} exec {python} {program} "$@"
"""


class Stub:
    """A command that speaks to a spawner of the tests' own composition root."""

    def __init__(self, kind: str, directory: Path, home: Path, program: Path) -> None:
        self.home = home
        self.program = program
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("BULLE_")}
        self.environment |= {"BULLE_HOME": str(home), "PYTHONPATH": str(SOURCE / "src"), "BULLE_SPAWNER_IDLE_S": "60"}
        if kind == "native":
            bin_directory = directory / "bin"
            bin_directory.mkdir()
            shutil.copy(native_stub(directory), bin_directory / "bulle")
            wrapper = bin_directory / "python3"
            wrapper.write_text(WRAPPER.format(directory=bin_directory, python=sys.executable, program=program))
            wrapper.chmod(0o755)
            self.command = [str(bin_directory / "bulle")]
        else:
            twin = directory / "twin.py"
            twin.write_text(TWIN.format(program=str(program)))
            self.command = [sys.executable, str(twin)]

    def start(self, *arguments: str, before: tuple[str, ...] = (), **options: object) -> subprocess.Popen[bytes]:
        options = {"env": self.environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        return subprocess.Popen([*before, *self.command, *arguments], **options)  # type: ignore[call-overload,no-any-return]

    def __call__(self, *arguments: str, before: tuple[str, ...] = (), stdin: bytes = b"", **options: object) -> subprocess.CompletedProcess[bytes]:
        with self.start(*arguments, before=before, stdin=subprocess.PIPE, **options) as process:
            out, err = process.communicate(stdin, timeout=240)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def report(self, **options: object) -> dict[str, object]:
        done = self("report", **options)  # type: ignore[arg-type]
        assert done.returncode == 0, done.stderr
        result: dict[str, object] = json.loads(done.stdout)
        return result

    @property
    def spawner(self) -> int:
        return places.spawner_pid(self.home)


def native_stub(directory: Path) -> Path:
    """The native stub, compiled here from its source."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    target = directory / "stub"
    flags = ["-Os", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-fno-pie", "-no-pie", "-Werror", "-Wall", "-Wextra"]
    subprocess.run([compiler, *flags, "-o", str(target), str(SOURCE / "native" / "bulle.c")], check=True)
    return target


@pytest.fixture(params=["native", "python"])
def stub(request: pytest.FixtureRequest, home: Path, tmp_path: Path) -> Stub:
    return Stub(request.param, tmp_path, home, ROOT_PROGRAM)


@pytest.fixture
def served(home: Path, tmp_path: Path) -> Stub:
    """One kind of stub, with its spawner running, for what concerns the server alone."""
    stub = Stub("python", tmp_path, home, ROOT_PROGRAM)
    assert stub("exit", "0").returncode == 0
    return stub


def until(condition: Callable[[], object], patience_s: float = 120) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def ready(path: Path) -> int:
    until(lambda: path.exists() and path.read_text())
    return int(path.read_text())


def reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


# The caller's side of one command


@pytest.mark.parametrize("code", [0, 1, 7, 125, 255])
def test_exit_code(stub: Stub, code: int) -> None:
    assert stub("exit", str(code)).returncode == code


def test_exit_with_a_text(stub: Stub) -> None:
    done = stub("raise", "wrong")
    assert (done.returncode, done.stderr) == (1, b"wrong\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGSEGV, signal.SIGUSR1])
def test_dies_by_the_signal_of_its_child(stub: Stub, number: signal.Signals) -> None:
    assert stub("die", str(int(number))).returncode == -number


def test_streams(stub: Stub) -> None:
    text = "é" + "a" * 300_000
    done = stub("cat", stdin=text.encode())
    assert done.stdout.decode() == text.upper()
    assert done.stderr == b"error\n"


def test_served_by_a_warm_process(stub: Stub) -> None:
    first = stub.report()
    time.sleep(0.2)  # the next child is one that was forked ahead and has rehearsed
    second = stub.report()
    assert first["served"]
    assert second["scheduler"] == os.SCHED_OTHER
    assert second["version"] == first["version"]
    assert first["ppid"] == second["ppid"] == stub.spawner
    assert first["session"] == first["pid"]
    # stdio, the caller's connection, the leash, and the listing's own descriptor: nothing of the server's or of other callers.
    assert len(first["descriptors"]) == 6  # type: ignore[arg-type]


def test_takes_over_what_may_differ(stub: Stub, tmp_path: Path) -> None:
    stub("exit", "0")
    deep = tmp_path / "räume" / "b"
    deep.mkdir(parents=True)
    limited = ("sh", "-c", 'umask 027; ulimit -n 100; ulimit -c 0; echo 300 > /proc/self/oom_score_adj; exec taskset -c 0 "$@"', "sh")
    report = stub.report(before=limited, cwd=str(deep), env=stub.environment | {"TZ": "Asia/Tokyo", "OTHER": "ü\n="})
    assert report["umask"] == 0o027
    assert report["nofile"] == [100, 100]
    assert report["affinity"] == [0]
    assert report["oom"] == 300
    assert report["cwd"] == str(deep)
    assert report["environment"]["OTHER"] == "ü\n="  # type: ignore[index]
    other = stub.report(env=stub.environment | {"ONLY": "1"})
    assert "OTHER" not in other["environment"]  # type: ignore[operator]
    assert other["ppid"] == report["ppid"]
    assert other["nofile"] != [100, 100]


@pytest.mark.root
def test_takes_over_groups(stub: Stub) -> None:
    assert stub("exit", "0").returncode == 0
    report = stub.report(before=("setpriv", "--groups", "12345,54321", "--regid", "777"))
    assert (report["groups"], report["gid"]) == ([12345, 54321], 777)
    assert report["ppid"] == stub.spawner


def test_working_directory_that_was_removed(stub: Stub, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    done = stub("exit", "5", before=("sh", "-c", f'cd {gone}; rmdir {gone}; exec "$@"', "sh"))
    assert done.returncode == 5


def test_large_environment_and_many_arguments(stub: Stub) -> None:
    large = {f"VARIABLE{number}": "x" * 10_000 for number in range(100)}
    arguments = [str(number) for number in range(2000)]
    done = stub("report", *arguments, env=stub.environment | large)
    report = json.loads(done.stdout)
    assert report["served"]
    assert report["argv"] == ["report", *arguments]
    assert all(report["environment"][name] == value for name, value in large.items())


def test_closed_standard_descriptors(stub: Stub) -> None:
    assert stub("exit", "3", before=("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh")).returncode == 3


def test_home_with_a_long_path(stub: Stub, tmp_path: Path) -> None:
    long = tmp_path / ("l" * 100) / ("m" * 100)
    stub.home = long
    stub.environment["BULLE_HOME"] = str(long)
    try:
        report = stub.report()
        assert report["served"]
        assert report["ppid"] == stub.spawner
    finally:
        places.close_home(long)


def test_passes_signals_on(stub: Stub) -> None:
    with stub.start("signals") as process:
        assert process.stdout
        _, pid = process.stdout.readline().split()
        for name in ("INT", "HUP", "QUIT", "WINCH", "CONT", "TERM"):
            process.send_signal(getattr(signal, f"SIG{name}"))
            assert process.stdout.readline() == f"SIG{name}\n".encode()
        os.kill(int(pid), signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL


def test_stops_and_continues_with_its_child(stub: Stub, tmp_path: Path) -> None:
    with stub.start("wait", str(tmp_path / "pid"), "1") as process:
        pid = ready(tmp_path / "pid")

        def state(pid: int) -> str:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]

        process.send_signal(signal.SIGTSTP)
        until(lambda: state(pid) == "T" and state(process.pid) == "T")
        process.send_signal(signal.SIGCONT)
        until(lambda: state(pid) == "S" and state(process.pid) == "S")
        assert process.wait(10) == 0


def test_ignored_signals_stay_ignored(stub: Stub, tmp_path: Path) -> None:
    with stub.start("wait", str(tmp_path / "pid"), "0.3", before=("nohup",), stdin=subprocess.DEVNULL) as process:
        ready(tmp_path / "pid")
        process.send_signal(signal.SIGHUP)
        assert process.wait(10) == 0


def test_its_death_ends_the_child(stub: Stub, tmp_path: Path) -> None:
    with stub.start("wait", str(tmp_path / "pid"), "60") as process:
        pid = ready(tmp_path / "pid")
        process.kill()
        until(lambda: not alive(pid))


def test_terminal(stub: Stub) -> None:
    leader, follower = pty.openpty()
    try:
        process = stub.start("report", stdin=follower, stdout=follower, stderr=follower)
        os.close(follower)
        output = b""
        with contextlib.suppress(OSError):
            while chunk := os.read(leader, 65536):
                output += chunk
        assert process.wait(10) == 0
        assert json.loads(output)["tty"] == [True, True, True]
    finally:
        os.close(leader)


def test_concurrent_starts_give_one_spawner(stub: Stub) -> None:
    processes = [stub.start("report") for _ in range(8)]
    reports = [json.loads(process.communicate(timeout=240)[0]) for process in processes]
    assert {report["ppid"] for report in reports} == {stub.spawner}


# Callers that are not served


def in_place(stub: Stub, *before: str, **options: object) -> bool:
    report = stub.report(before=before, **options)
    return not report["served"]


def test_asked_for_no_spawner(stub: Stub) -> None:
    assert in_place(stub, env=stub.environment | {"BULLE_NO_SPAWNER": "1"})
    assert stub.spawner == 0
    assert not in_place(stub, env=stub.environment | {"BULLE_NO_SPAWNER": "0"})


def test_spawner_that_does_not_start(stub: Stub) -> None:
    assert in_place(stub, env=stub.environment | {"TEST_SPARE": "nonsense"})


def test_no_new_privileges(stub: Stub) -> None:
    stub("exit", "0")
    assert in_place(stub, "setpriv", "--no-new-privs")


@pytest.mark.root
@pytest.mark.parametrize(
    "before",
    [
        ("unshare", "--net"),
        ("unshare", "--mount"),
        ("unshare", "--uts"),
        ("unshare", "--cgroup"),
        ("unshare", "--pid", "--fork"),
        ("capsh", "--drop=cap_net_raw", "--shell=/bin/sh", "--", "-c", 'exec "$@"', "sh"),
        ("setpriv", "--inh-caps", "-all", "--bounding-set", "-sys_admin"),
    ],
)
def test_other_standing(stub: Stub, before: tuple[str, ...]) -> None:
    stub("exit", "0")
    assert in_place(stub, *before)
    assert not in_place(stub)


@pytest.mark.root
def test_other_root_directory(stub: Stub, tmp_path: Path) -> None:
    """Even one that is the same directory through another mount."""
    stub("exit", "0")
    place = tmp_path / "root"
    place.mkdir()
    subprocess.run(["mount", "--bind", "/", str(place)], check=True)
    subprocess.run(["mount", "--bind", "/proc", f"{place}/proc"], check=True)
    try:
        assert in_place(stub, "chroot", str(place))
        assert not in_place(stub)
    finally:
        subprocess.run(["umount", f"{place}/proc", str(place)], check=True)


@pytest.mark.root
def test_other_user_is_refused(served: Stub) -> None:
    home = served.home
    # Even where the directories would let the other user in.
    for path in (home, home / "run", home.parent):
        path.chmod(0o755)
    (home / "run" / "spawner.sock").chmod(0o777)
    script = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({str(home / 'run/spawner.sock')!r}); s.settimeout(5); print(s.recv(1))"
    done = subprocess.run(["setpriv", "--reuid", "65534", "--clear-groups", "/usr/bin/python3", "-c", script], capture_output=True, text=True)
    assert done.stdout == "b''\n", done.stderr


def test_lower_hard_limit_of_the_spawner_is_no_trap(home: Path, tmp_path: Path) -> None:
    stub = Stub("python", tmp_path, home, ROOT_PROGRAM)
    before = ("sh", "-c", 'ulimit -n 100; exec "$@"', "sh")
    assert stub.report(before=before)["nofile"] == [100, 100]
    # Root without CAP_SYS_RESOURCE and other users cannot raise it again: then the command runs in place, with its own limit.
    assert stub.report()["nofile"] != [100, 100]


def test_other_installation(home: Path, tmp_path: Path) -> None:
    stub = Stub("python", tmp_path, home, ROOT_PROGRAM)
    stub.report()
    first = stub.spawner
    with stub.start("wait", str(tmp_path / "pid"), "1") as process:
        ready(tmp_path / "pid")
        # A busy spawner stays; an idle one makes way.
        other = stub.environment | {"PYTHONPATH": str(copy_of_source(tmp_path))}
        assert in_place(stub, env=other)
        assert stub.spawner == first
        assert process.wait(10) == 0
    until(lambda: not alive(first) or not in_place(stub, env=other))
    assert stub.spawner != first


def copy_of_source(tmp_path: Path) -> Path:
    target = tmp_path / "copied"
    if not target.exists():
        shutil.copytree(SOURCE / "src" / "bulle", target / "bulle", ignore=shutil.ignore_patterns("__pycache__"))
    return target


# The spawner's own life


def test_killed_spawner_loses_nothing(stub: Stub, tmp_path: Path) -> None:
    with stub.start("wait", str(tmp_path / "pid"), "0.7") as process:
        ready(tmp_path / "pid")
        first = stub.spawner
        os.kill(first, signal.SIGKILL)
        until(lambda: not alive(first))
        assert stub.report()["ppid"] not in (first, 1)
        assert process.wait(10) == 0


def test_new_code_takes_over_in_place(home: Path, tmp_path: Path) -> None:
    program = tmp_path / "root.py"
    text = ROOT_PROGRAM.read_text()
    program.write_text(text)
    stub = Stub("python", tmp_path, home, program)
    with stub.start("wait", str(tmp_path / "pid"), "2") as process:
        child = ready(tmp_path / "pid")
        spawner = stub.spawner
        namespace = os.stat(f"/proc/{spawner}/ns/mnt").st_ino
        before = stub.report()
        program.write_text(text.replace('VERSION = "1"', 'VERSION = "second"'))
        after = stub.report()
        assert (before["version"], after["version"]) == ("1", "second")
        assert before["ppid"] == after["ppid"] == spawner
        assert os.stat(f"/proc/{spawner}/ns/mnt").st_ino == namespace
        # Code that does not start is not taken; its user sees why, and the old one is there when it is mended.
        program.write_text(text + "\ndef broken\n")
        broken = stub("report")
        assert b"SyntaxError" in broken.stderr
        program.write_text(text.replace('VERSION = "1"', 'VERSION = "third"'))
        assert stub.report()["version"] == "third"
        assert stub.spawner == spawner
        # The child of the first version is still the spawner's, whose third version reports its end.
        os.kill(child, signal.SIGTERM)
        assert process.wait(10) == -signal.SIGTERM


def test_idle_spawner_ends_but_not_while_a_child_lives(home: Path, tmp_path: Path) -> None:
    stub = Stub("python", tmp_path, home, ROOT_PROGRAM)
    stub.environment["BULLE_SPAWNER_IDLE_S"] = "0.2"
    stub("submit", "stay", str(tmp_path / "record"), "1")
    spawner = stub.spawner
    time.sleep(0.6)
    assert alive(spawner)
    until(lambda: not alive(spawner))
    assert not (home / "run" / "spawner.sock").exists()


def test_spawner_of_a_removed_home_ends(home: Path, tmp_path: Path) -> None:
    stub = Stub("python", tmp_path, home, ROOT_PROGRAM)
    stub("exit", "0")
    spawner = stub.spawner
    shutil.rmtree(home)
    until(lambda: not alive(spawner))
    home.mkdir()


@pytest.mark.root
def test_mounts_made_later_are_seen(served: Stub, tmp_path: Path) -> None:
    place = tmp_path / "mounted"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(place)], check=True)
    try:
        (place / "inside").mkdir()
        report = served.report(cwd=str(place / "inside"))
        assert report["served"]
        assert report["cwd"] == str(place / "inside")
        assert served("wait", str(place / "inside" / "written"), "0").returncode == 0
        assert (place / "inside" / "written").exists()
        assert os.stat(f"/proc/{served.spawner}/ns/mnt").st_ino != os.stat("/proc/self/ns/mnt").st_ino
    finally:
        # Not busy: no namespace of the spawner keeps it.
        subprocess.run(["umount", str(place)], check=True)
    assert served.report()["served"]


def test_memory(served: Stub) -> None:
    status = Path(f"/proc/{served.spawner}/status").read_text()
    resident_kib = int(status.split("VmRSS:")[1].split()[0])
    assert resident_kib < 40 * 1024


# Detached children


def records(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def library(served: Stub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """The library in this process, with the spawner of ``served``."""
    monkeypatch.delenv("BULLE_NO_SPAWNER", raising=False)
    yield served
    until(lambda: not Path(f"/proc/{served.spawner}/task/{served.spawner}/children").read_text().split()[2:])


def test_submit_from_a_thread(library: Stub, tmp_path: Path) -> None:
    from bulle.spawner.client import submit

    content = tmp_path / "content"
    content.write_text("some text")
    pids = []

    def work() -> None:
        with content.open() as file:
            pids.append(submit(library.home, "monitor", ["record", str(tmp_path / "record"), "é"], [file.fileno()]))

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: len(records(tmp_path / "record")) == 5)
    lives = records(tmp_path / "record")
    assert {life["pid"] for life in lives} == set(pids)
    for life in lives:
        assert life["argv"] == ["record", str(tmp_path / "record"), "é"]
        assert life["contents"] == ["some text"]
        assert life["ppid"] == library.spawner
        assert life["session"] == life["pid"]
        assert life["cwd"] == "/"
        assert life["leash"]


def test_dead_child_is_forked_anew_with_what_it_held(library: Stub, tmp_path: Path) -> None:
    from bulle.spawner.client import submit

    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("one")
    second.write_text("two")
    record = tmp_path / "record"
    with first.open() as one, second.open() as two:
        submit(library.home, "monitor", ["hold", str(record)], [one.fileno(), two.fileno()])
    until(lambda: len(records(record)) == 2)
    life, second_life = records(record)
    assert second_life["argv"] == ["hold", str(record), "--recover"]
    assert second_life["contents"] == ["one", "two"]
    assert second_life["pid"] != life["pid"]


def test_child_that_always_dies_is_given_up(library: Stub, tmp_path: Path) -> None:
    from bulle.spawner import server
    from bulle.spawner.client import submit

    record = tmp_path / "record"
    submit(library.home, "monitor", ["crash", str(record)])
    until(lambda: len(records(record)) == server.SHORT_LIVES_LIMIT + 1)
    time.sleep(0.3)
    assert len(records(record)) == server.SHORT_LIVES_LIMIT + 1
    assert library("exit", "4").returncode == 4


def test_detached_child_survives_the_spawner(library: Stub, tmp_path: Path) -> None:
    from bulle.spawner.client import submit

    pid = submit(library.home, "monitor", ["stay", str(tmp_path / "record"), "0.5"])
    until(lambda: records(tmp_path / "record"))
    os.kill(library.spawner, signal.SIGKILL)
    time.sleep(0.1)
    assert alive(pid)
    assert library("exit", "0").returncode == 0
    until(lambda: not alive(pid))
    reap(pid)


def test_orphans_are_adopted_and_reported(served: Stub, tmp_path: Path) -> None:
    script = "import os, time; pid = os.fork(); pid and os._exit(0); time.sleep(0.2); os._exit(9)"
    spawner = served.spawner
    # A command that leaves a process behind, as a monitor that is killed leaves its container.
    code = f"import os; os.spawnv(os.P_WAIT, {sys.executable!r}, ['python', '-c', {script!r}])"
    program = tmp_path / "leave.py"
    program.write_text(code)
    served("execute", str(program))
    orphans = served.home / "orphans"
    until(lambda: orphans.exists() and orphans.read_text().endswith("\n"))
    assert orphans.read_text().split()[1] == str(9 << 8)
    assert served.spawner == spawner


@pytest.mark.parametrize("threads", [1, 2])
def test_submit_without_a_spawner(home: Path, tmp_path: Path, threads: int) -> None:
    """One thread and a function: a double fork; else a fresh interpreter."""
    script = tmp_path / "submit.py"
    script.write_text(f"""
import os, sys, threading, time
sys.path.insert(0, {str(ROOT_PROGRAM.parent)!r})
from pathlib import Path
import spawner_root
from bulle.spawner.client import submit
if {threads} > 1:
    threading.Thread(target=time.sleep, args=(1,), daemon=True).start()
fd = os.open({str(ROOT_PROGRAM)!r}, os.O_RDONLY)
os.environ["TEST_RECORD"] = {str(tmp_path / "record")!r}
print(submit(Path({str(home)!r}), "monitor", ["record", {str(tmp_path / "record")!r}], [fd], local=spawner_root.monitor))
""")
    environment = os.environ | {"PYTHONPATH": str(SOURCE / "src"), "BULLE_NO_SPAWNER": "1", "BULLE_HOME": str(home)}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=240)
    if threads == 1:
        until(lambda: records(tmp_path / "record"))
        (life,) = records(tmp_path / "record")
        assert life["pid"] == int(done.stdout)
        assert life["contents"] == [ROOT_PROGRAM.read_text()[:100]]
        assert not life["leash"]
        assert life["session"] != os.getsid(0)
    else:
        # The fresh interpreter runs Bulle's own composition root, whose monitor knows nothing of this test; it was started and told its pid.
        assert int(done.stdout) > 1, done.stderr


# Hostile and broken callers


def test_bad_requests_end_only_their_own_connection(served: Stub) -> None:
    generator = random.Random(1)
    spawner = served.spawner
    good = pack_request(Request("command", b"", b"", b"/", [b"exit"], [], 1, current_limits(), 4))
    attempts = [b"", b"x", generator.randbytes(1000), good[:-1] + b"x", good[:100], good + b"more", b"\xff" * 300]
    attempts += [good[:8] + b"\xff" * 24 + good[32:]]
    attempts += [bytes(byte if generator.random() > 0.01 else generator.randrange(256) for byte in good) for _ in range(200)]
    for attempt in attempts:
        connection = connect(served.home)
        assert connection is not None
        with connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(attempt)
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(5)
            while connection.recv(1000):
                pass
    assert served.report()["ppid"] == spawner


def test_too_many_descriptors(served: Stub) -> None:
    connection = connect(served.home)
    assert connection is not None
    with connection, Path("/dev/null").open() as null:
        content = pack_request(Request("command", b"", b"", b"/", [b"exit"], [], 1, current_limits(), 4))
        connection.sendmsg([content], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null.fileno()] * 250))])
        connection.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""
    served("exit", "0")
    until(lambda: len(os.listdir(f"/proc/{served.spawner}/fd")) < 25)


def test_slow_callers_do_not_hold_up_others(served: Stub) -> None:
    content = pack_request(Request("command", b"", b"", b"/", [b"exit", b"0"], [], 0, current_limits(), 0))
    slow = [connect(served.home) for _ in range(200)]
    try:
        for number, connection in enumerate(slow):
            if connection is not None:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.sendall(content[: 1 + number % (HEADER.size + 3)])
        began = time.monotonic()
        assert served.report()["ppid"] == served.spawner
        assert time.monotonic() - began < 60
    finally:
        for connection in slow:
            if connection is not None:
                connection.close()


def test_caller_that_never_reads(served: Stub) -> None:
    connection = connect(served.home)
    assert connection is not None
    with connection, Path("/dev/null").open() as null:
        directory = os.open("/", os.O_PATH)
        interpreter = os.fsencode(Path(sys.executable).parent)
        content = pack_request(Request("command", interpreter, b"", b"/", [b"exit", b"0"], [], 1, current_limits(), 4))
        send_with_descriptors(connection, content, [null.fileno()] * 3 + [directory])
        os.close(directory)
        connection.shutdown(socket.SHUT_RD)
    assert served("exit", "6").returncode == 6
