"""The pages that make claims are true: every command that the course and the README show is typed again, in order, and prints what they say.

A block marked ``console`` holds commands after ``$ `` and what they print (both streams). ``…`` stands for anything within a line, a line of nothing
but ``…`` for any lines; ``[exit N]`` is an exit code other than 0. The French pages show the same commands, so that each is run once. The tests
below it hold the course's claims where a command alone would not prove them.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bulle_testing import places

ENGLISH = ("README.md", "docs/course.md")
FRENCH = ("README.fr.md", "docs/cours.md")
COURSE = ("docs/course.md", "docs/cours.md")
Bulle = Callable[..., "subprocess.CompletedProcess[str]"]


@dataclass
class Shown:
    """One command as a page shows it; ``line`` is where it stands."""

    page: str
    line: int
    command: str
    output: list[str] = field(default_factory=list)
    exit_code: int = 0


def blocks(page: str, language: str) -> Iterator[tuple[int, list[str]]]:
    """The blocks of a language in a page, each with the number of its first line."""
    text = (places.SOURCE / page).read_text()
    for found in re.finditer(rf"^```{language}\n(.*?)^```$", text, flags=re.M | re.S):
        yield text.count("\n", 0, found.start(1)) + 1, found[1].splitlines()


def shown(page: str) -> list[Shown]:
    """Every command that a page shows, with what it says that the command prints, then its Python programs (whose comments say it)."""
    commands: list[Shown] = []
    for first, lines in blocks(page, "console"):
        assert lines and lines[0].startswith("$ "), f"{page}:{first}: a console block begins with a command"
        for number, line in enumerate(lines, first):
            if line.startswith("$ "):
                commands.append(Shown(page, number, line[2:]))
            elif code := re.fullmatch(r"\[exit (\d+)\]", line):
                commands[-1].exit_code = int(code[1])
            else:
                commands[-1].output.append(line.rstrip())
    for first, lines in blocks(page, "python"):
        prints = [line.partition("  # ")[2] for line in lines if line.startswith("print(") and "  # " in line]
        commands.append(Shown(page, first, shlex.join([sys.executable, "-c", "\n".join(lines)]), prints))
    return commands


def pattern(expected: list[str]) -> str:
    """The regular expression that what was printed must match as a whole."""
    anything = r"(?:.*\n)*"
    return "".join(anything if line == "…" else ".*".join(re.escape(part) for part in line.split("…")) + r"\n" for line in expected)


def close_homes(directory: Path) -> None:
    """End and remove the homes that the commands made beside the test's own."""
    for spawner in directory.glob("*/run/spawner.sock"):
        assert not places.close_home(spawner.parents[1])


def path_with_bulle() -> str:
    """A PATH on which ``bulle`` is the command under test."""
    return os.pathsep.join([str(Path(places.command_line()[0]).parent), os.environ["PATH"]])


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.machines
@pytest.mark.debian_mirror
@pytest.mark.timeout(600)
@pytest.mark.programs("mmdebstrap", "bash", "tar", "diff", "qemu-system-x86_64")
def test_commands_print_what_is_shown(home: Path, tmp_path: Path) -> None:
    environment = places.environment(home) | {"PATH": path_with_bulle(), "LANG": "C.UTF-8"}
    del environment["BULLE_NETWORK"]  # as a reader has it
    wrong = []
    try:
        for item in [item for page in ENGLISH for item in shown(page)]:
            done = subprocess.run(
                ["bash", "-c", item.command],
                cwd=tmp_path,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=300,
            )
            printed = [line.rstrip() for line in done.stdout.splitlines()]
            if done.returncode != item.exit_code or not re.fullmatch(pattern(item.output), "".join(f"{line}\n" for line in printed)):
                wrong.append(f"{item.page}:{item.line}: $ {item.command}\n" + "\n".join([*printed, f"[exit {done.returncode}]"]))
    finally:
        close_homes(tmp_path)
    assert not wrong, "these commands did not print what the page shows, but:\n" + "\n".join(wrong)


@pytest.mark.parametrize(("english", "french"), list(zip(ENGLISH, FRENCH, strict=True)))
def test_both_languages_show_the_same(english: str, french: str) -> None:
    one, other = ([(item.command, item.output, item.exit_code) for item in shown(page)] for page in (english, french))
    assert one == other
    count, french_count = (len(re.findall(r"^##+ ", (places.SOURCE / page).read_text(), flags=re.M)) for page in (english, french))
    assert count == french_count, "a section is missing in one language"


@pytest.mark.parametrize("page", [*ENGLISH, *FRENCH])
def test_nothing_is_shown_that_is_not_run(page: str) -> None:
    text = (places.SOURCE / page).read_text()
    assert set(re.findall(r"^```(\w*)$", text, flags=re.M)) <= {"console", "python", "sh", "text", ""}
    # `make …` has tests of its own: tests/integration/test_demo.py, and .ci/run, which is made of nothing else.
    assert not [line for _, lines in blocks(page, "sh") for line in lines if line and not line.startswith("make ")]


@pytest.mark.parametrize("page", COURSE)
def test_tests_that_are_named_exist(page: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (places.SOURCE / page).read_text())
    assert named
    for path, test in named:
        assert (places.SOURCE / path).exists(), path
        assert not test or re.search(rf"^def {test}\(", (places.SOURCE / path).read_text(), flags=re.M), f"{path} has no {test}"


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        (["a…c"], "abc\n", True),
        (["a…c"], "ab\nc\n", False),
        (["…", "end"], "one\ntwo\nend\n", True),
        (["…", "end"], "end\n", True),
        (["…", "end"], "one\n", False),
        ([], "", True),
        ([], "something\n", False),
        (["1.5"], "125\n", False),
    ],
)
def test_dots_stand_for_anything(expected: list[str], printed: str, same: bool) -> None:
    assert bool(re.fullmatch(pattern(expected), printed)) is same


# The claims


@pytest.mark.root
def test_a_container_shares_the_kernel(bulle: Bulle) -> None:
    host = os.uname()
    inside = bulle("run", "--rm", "host", "uname", "-rvm", check=True).stdout.strip()
    assert inside == f"{host.release} {host.version} {host.machine}"


@pytest.mark.root
@pytest.mark.programs("busybox")
def test_an_image_is_the_same_elsewhere(bulle: Bulle, home: Path, tmp_path: Path, busybox_image: Path) -> None:
    first = bulle("load", "-i", busybox_image, check=True).stdout.partition(": ")[2].strip()
    bulle("save", "-o", tmp_path / "image.tar", first, check=True)
    try:
        bulle("--home", tmp_path / "elsewhere", "load", "-i", tmp_path / "image.tar", check=True)
        listing = ("images", "--no-trunc", "--digests", "--format", "{{.Repository}}:{{.Tag}} {{.ID}} {{.Digest}}", first)
        assert bulle(*listing, check=True).stdout == bulle("--home", tmp_path / "elsewhere", *listing, check=True).stdout
        look = ("run", "--rm", first, "sh", "-c", "find / -xdev -type f -not -path '/etc/host*' | xargs md5sum")
        assert bulle(*look, check=True).stdout == bulle("--home", tmp_path / "elsewhere", *look, check=True).stdout
    finally:
        close_homes(tmp_path)


@pytest.mark.root
def test_containers_are_different_users(bulle: Bulle) -> None:
    ranges = []
    for name in ("one", "two"):
        bulle("run", "-d", "--name", name, "host", "sleep", "1000", check=True)
        inside, outside, count = map(int, bulle("exec", name, "cat", "/proc/self/uid_map", check=True).stdout.split())
        assert (inside, count) == (0, 65536)
        ranges.append(range(outside, outside + count))
        pid = bulle("inspect", "--format", "{{.State.Pid}}", name, check=True).stdout.strip()
        assert os.stat(f"/proc/{pid}").st_uid == outside
    assert not range(max(ranges[0][0], ranges[1][0]), min(ranges[0][-1], ranges[1][-1]) + 1)
    assert min(ranges[0][0], ranges[1][0]) > 65535


@pytest.mark.root
def test_a_failure_leaves_the_neighbours_alone(bulle: Bulle) -> None:
    counting = "i=0; while sleep 0.05; do i=$((i+1)); echo $i; done"
    bulle("run", "-d", "--name", "neighbour", "host", "sh", "-c", counting, check=True)
    pid = bulle("inspect", "--format", "{{.State.Pid}}", "neighbour", check=True).stdout
    assert bulle("run", "--rm", "--memory", "32m", "host", "tail", "/dev/zero").returncode == 137
    greedy = bulle("run", "--rm", "--pids-limit", "20", "host", "bash", "-c", "for i in {1..100}; do sleep 1 & done")
    assert "fork: " in greedy.stderr
    assert bulle("run", "--rm", "host", "sh", "-c", "kill -SEGV $$; exit 3").returncode in (3, 139)
    before = len(bulle("logs", "neighbour", check=True).stdout.splitlines())
    assert bulle("exec", "neighbour", "sleep", "0.3", check=True).stdout == ""
    assert len(bulle("logs", "neighbour", check=True).stdout.splitlines()) > before
    assert bulle("inspect", "--format", "{{.State.Pid}}", "neighbour", check=True).stdout == pid


@pytest.mark.root
def test_the_engine_stands_beside(bulle: Bulle, home: Path) -> None:
    """Monitor and spawner killed together: the container runs on, its output is kept, and the next command finds it."""
    bulle("run", "-d", "--name", "one", "host", "sh", "-c", "while sleep 0.05; do echo here; done", check=True)
    pid = bulle("inspect", "--format", "{{.State.Pid}}", "one", check=True).stdout
    monitor = int(bulle("inspect", "--format", "{{.State.MonitorPid}}", "one", check=True).stdout)
    os.kill(places.spawner_pid(home), 9)
    os.kill(monitor, 9)
    assert bulle("exec", "one", "echo", "still here", check=True).stdout == "still here\n"
    assert bulle("inspect", "--format", "{{.State.Pid}}", "one", check=True).stdout == pid
    lines = bulle("logs", "one", check=True).stdout.splitlines()
    assert lines and set(lines) == {"here"}
    bulle("stop", "--time", "0", "one", check=True)
    assert bulle("inspect", "--format", "{{.State.Status}}", "one", check=True).stdout == "exited\n"
