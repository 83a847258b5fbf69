"""bulle-init, process 1 of a container that asked for --init: run here in a process namespace of its own."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulle_testing import places

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    target = tmp_path_factory.mktemp("init") / "bulle-init"
    flags = ["-Os", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-fno-pie", "-no-pie", "-Werror", "-Wall", "-Wextra"]
    subprocess.run([compiler, *flags, "-o", str(target), str(places.SOURCE / "native" / "bulle-init.c")], check=True)
    yield target


def start(program: Path, *arguments: str) -> subprocess.Popen[str]:
    line = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", str(program), "--", *arguments]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["sh", "-c", "exit 7"], 7),
        (["true"], 0),
        (["sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM),
        (["/nonexistent"], 127),
        (["nonexistent"], 127),
        (["/etc/passwd"], 126),
        (["/"], 126),
    ],
)
def test_exit_code(program: Path, command: list[str], code: int) -> None:
    assert finish(start(program, *command))[0] == code


def test_missing_command_is_said(program: Path) -> None:
    assert finish(start(program, "nonexistent"))[2] == "bulle-init: nonexistent: command not found\n"


def test_passes_signals_on(program: Path) -> None:
    # Only process 1 of the namespace sends: a signal of the host's to process 1, as a driver's kill does.
    process = start(program, "sh", "-c", 'trap "echo got; exit 3" USR1; echo ready; while :; do sleep 0.05; done')
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    (first,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    subprocess.run(["kill", "-USR1", first], check=True)
    code, out, _ = finish(process)
    assert (code, out) == (3, "got\n")


def test_reaps_orphans(program: Path) -> None:
    process = start(program, "sh", "-c", "(sleep 0.1 &) ; (sleep 0.1 &) ; sleep 0.4; ps -o stat= -A | grep -c Z")
    assert finish(process)[1] == "0\n"


def test_signals_of_the_command_are_not_blocked(program: Path) -> None:
    out = finish(start(program, "grep", "SigBlk", "/proc/self/status"))[1]
    assert out.split()[1] == "0000000000000000"


def test_ends_with_its_command_though_others_live(program: Path) -> None:
    began = time.monotonic()
    assert finish(start(program, "sh", "-c", "sleep 300 >/dev/null 2>&1 & exit 4"))[0] == 4
    assert time.monotonic() - began < 60
