"""How everything here is measured: whole commands timed by a small process, in interleaved rounds, and told by the median.

A :class:`Timer` is one such process; :func:`interleaved` runs several contestants turn by turn, so that a busy moment of the machine hits
all of them.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from bulle_testing import tiers  # noqa: E402 - the tests know where programs are

SETTLE_S = 0.25
"""Before each run: what the one before left to do (network namespaces and mounts that the kernel takes apart) is not the next one's time."""

Contestant = Callable[[], float]
"""Runs once and returns its milliseconds."""


class Failed(Exception):
    """A contestant's command failed: it leaves the race, and the table says why."""


class Timer:
    """A process that times commands; see bench/timer.py. ``prefix`` puts it into other surroundings (a mount namespace)."""

    def __init__(self, prefix: Sequence[str] = ()) -> None:
        command = [*prefix, "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable, "-I", "-S", str(HERE / "timer.py")]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, command: Sequence[str], environment: dict[str, str] | None = None) -> float:
        """The milliseconds of one whole command; raises Failed when it does not end with 0."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        chosen = {"PATH": tiers.SEARCH_PATH, "HOME": os.environ.get("HOME", "/"), "LC_ALL": "C.UTF-8", **(environment or {})}
        self.process.stdin.write(json.dumps({"command": list(command), "environment": chosen}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if answer["code"] != 0:
            raise Failed(f"`{' '.join(command)}` ended with {answer['code']}: {(answer['error'].strip().splitlines() or [''])[-1]}")
        return float(answer["ns"]) / 1e6

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def timer(prefix: Sequence[str] = ()) -> Iterator[Timer]:
    """A timer for as long as the block lasts."""
    made = Timer(prefix)
    try:
        yield made
    finally:
        made.close()


@dataclass
class Result:
    """What one contestant reached: milliseconds of each round, or why it could not."""

    samples: list[float] = field(default_factory=list)
    failure: str = ""

    @property
    def median(self) -> float | None:
        """The median, None where nothing was measured."""
        return statistics.median(self.samples) if self.samples and not self.failure else None

    def __str__(self) -> str:
        if self.median is None:
            return f"not measured: {self.failure or 'not installed'}"
        ordered = sorted(self.samples)
        return f"{self.median:.2f} ms (of {len(ordered)}; middle half {ordered[len(ordered) // 4]:.2f} to {ordered[len(ordered) * 3 // 4]:.2f})"


def interleaved(contestants: dict[str, Contestant], rounds: int, warm_up: int = 2) -> dict[str, Result]:
    """Let everyone run ``warm_up`` times unmeasured, then once per round, each round beginning with another one."""
    results = {name: Result() for name in contestants}
    names = list(contestants)
    for number in range(-warm_up, rounds):
        turn = number % len(names) if names else 0
        for name in names[turn:] + names[:turn]:
            if results[name].failure:
                continue
            time.sleep(SETTLE_S)
            try:
                took = contestants[name]()
            except Failed as error:
                results[name].failure = str(error)
                continue
            if number >= 0:
                results[name].samples.append(took)
    return results


def program(name: str) -> str | None:
    """The path of a peer, None where it is not installed."""
    return tiers.program(name)


def unique_kib(pid: int) -> int:
    """The memory that would come back if this process ended: what it shares with no other. proc_pid_smaps(5)"""
    total = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_"):
            total += int(line.split()[1])
    return total


def resident_kib(pid: int) -> int:
    """Resident size, shared pages included."""
    return next(int(line.split()[1]) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))


def first_value(path: str, key: str, separator: str) -> str:
    """The value of the first line that begins with a key, empty where there is none."""
    for line in Path(path).read_text().splitlines():
        if line.startswith(key):
            return line.partition(separator)[2].strip().strip('"')
    return ""


def machine() -> str:
    """What this was measured on, in one paragraph."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = []
    for name in ("crun", "runc", "dockerd", "podman", "buildah", "bwrap"):
        if path := program(name):
            said = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
            number = next((word.strip(",") for word in said.split() if word[0].isdigit()), "?")
            versions.append(f"{name} {number}")
    kind = subprocess.run(["findmnt", "-no", "FSTYPE", "-T", "/var/tmp"], capture_output=True, text=True).stdout.strip()
    processor = first_value("/proc/cpuinfo", "model name", ":") or os.uname().machine
    return (
        f"{processor}, {os.cpu_count()} processors, {memory_gib:.0f} GiB; {first_value('/etc/os-release', 'PRETTY_NAME', '=')}, "
        f"kernel {os.uname().release}, {kind}; Python {sys.version.split()[0]}; {', '.join(versions)}."
    )


def compiled(source: Path, target: Path) -> Path | None:
    """A C program, built; None where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    subprocess.run([compiler, "-O2", "-Wall", "-o", str(target), str(source)], check=True)
    return target
