"""The part of the benchmark about virtual machines, beside QEMU as anybody starts it: ``-M q35 -kernel bzImage``, emulated, with the same kernel.

As in figures.py, it takes the field of contestants and gives rows and sentences of detail.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import stat
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from figures import IMAGE, Field, Row, Rows
from measuring import SETTLE_S, Failed, Result, timer

from bulle.isolation.microvm.initial_ramdisk import archive
from bulle_testing import peers, places, tiers, virtual_machines

NAME = "machine"
VM = ("--isolation", "vm", "--accel", "tcg")
MOST_OF_BOOT, MOST_EXEC_MS, MOST_OWN_MIB = 0.60, 15.0, 60.0
MOST_OF_BOOT_BEGUN, MOST_OF_BOOT_GENERIC, MOST_OF_BOOT_FORKED, MOST_BEGUN_MIB = 0.10, 0.20, 0.05, 45.0
COMMANDS = 200
MEMORY_MIB = 256
BEGUN = ("--memory", f"{MEMORY_MIB}m", "--start", "template")
PATIENCE_S = 60.0
_REACHED, _PANIC = b"Run /init as init process", b"Kernel panic"
_INIT = b"#!/bin/busybox sh\n/bin/busybox poweroff -f\n"


@dataclass
class Plain:
    """QEMU with nothing said but the kernel, a ramdisk with busybox whose init switches it off, and a console to read."""

    kernel: Path
    ramdisk: Path
    reached: Result = field(default_factory=Result)
    ended: Result = field(default_factory=Result)
    lost: int = 0

    def run(self, *, measured: bool) -> None:
        """One boot that succeeds. QEMU 7.2 gets an instruction of this kernel's allocator wrong now and then: such boots are told, not timed."""
        for _ in range(5):
            begin = time.perf_counter_ns()
            command = [str(tiers.program("qemu-system-x86_64")), "-M", "q35", "-kernel", str(self.kernel), "-initrd", str(self.ramdisk)]
            command += ["-append", "console=ttyS0 panic=-1", "-nographic", "-no-reboot"]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            try:
                reached = self._watch(process)
            finally:
                process.kill()
                process.communicate()
            if reached:
                if measured:
                    self.reached.samples.append((reached - begin) / 1e6)
                    self.ended.samples.append((time.perf_counter_ns() - begin) / 1e6)
                return
            self.lost += 1
        raise Failed("plain QEMU does not boot this kernel")

    @staticmethod
    def _watch(process: subprocess.Popen[bytes]) -> int:
        """When the kernel said that it starts init, once the machine is off; 0 where it does not come to that."""
        assert process.stdout is not None
        said, reached = b"", 0
        deadline = time.monotonic() + PATIENCE_S
        while select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            data = os.read(process.stdout.fileno(), 65536)
            said += data
            if not reached and _REACHED in said:
                reached = time.perf_counter_ns()
            if not data:
                process.wait()
                return 0 if _PANIC in said else reached
        return 0


def machines(contestants: Field, options: argparse.Namespace) -> tuple[Rows, list[str]]:
    """Start, exec and memory of virtual machines."""
    if os.uname().machine != "x86_64" or tiers.program("qemu-system-x86_64") is None:
        raise Failed("qemu-system-x86_64 is not installed, or this machine is no x86_64")
    bulle = contestants.bulle
    kernel = virtual_machines.debian_kernel("x86_64")
    vmlinuz = next((places.cache_directory() / "kernels/debian-trixie-x86_64").rglob("vmlinuz-*"))
    guest = (*VM, "--kernel", str(vmlinuz.parents[1]))
    bulle("run", "--rm", *guest, "--network", "none", IMAGE, "true")  # unpacks the kernel, makes the ramdisk
    plain = Plain(vmlinuz, _ramdisk(contestants.directory))
    rows, details = _starts(contestants, guest, plain, max(3, options.rounds // 3))
    forked, said = _forks(contestants, guest, plain, max(3, options.rounds // 3))
    rows.append(forked)
    details.append(said)
    more_rows, more = _commands(contestants, guest, options.rounds)
    rows += more_rows
    details += [*more, f"machines: the guest's kernel is {kernel.release}, the same for plain QEMU"]
    for what, words in (("", ()), (", with a volume", ("-v", f"{contestants.directory}/shared:/shared"))):
        (contestants.directory / "shared").mkdir(exist_ok=True)
        own, said = _own_memory(contestants, guest, words)
        figure = f"memory of an idle machine beside its guest's own{what}"
        rows.append((figure, f"{own:.1f} MiB", f"at most {MOST_OWN_MIB:.0f} MiB", own / MOST_OWN_MIB, 1.0))
        details.append(f"machines, memory{what}: {said}")
    begun, said = _begun_memory(contestants, guest)
    rows.append(("memory of each of four machines from one template, with its guest's", f"{begun:.1f} MiB", f"at most {MOST_BEGUN_MIB:.0f} MiB",
                 begun / MOST_BEGUN_MIB, 1.0))  # fmt: skip
    return rows, [*details, said]


def _ramdisk(directory: Path) -> Path:
    busybox = Path(peers.static_busybox()).read_bytes()
    folders = [(name, stat.S_IFDIR | 0o755, b"") for name in ("bin", "dev", "proc")]
    path = directory / "plain-initrd"
    path.write_bytes(archive([*folders, ("init", stat.S_IFREG | 0o755, _INIT), ("bin/busybox", stat.S_IFREG | 0o755, busybox)]))
    return path


def _starts(contestants: Field, guest: tuple[str, ...], plain: Plain, rounds: int) -> tuple[Rows, list[str]]:
    """A machine that runs ``true``, cold and from templates, from the command to its exit code, turn by turn with plain QEMU."""
    bulle, own, begun, generic = contestants.bulle, Result(), Result(), Result()
    others = [_another_image(contestants, number) for number in range(rounds + 1)]
    bulle("run", "--rm", *guest, "--network", "none", *BEGUN, IMAGE, "true")  # boots, and leaves both templates
    with timer() as clock:
        for number in range(-1, rounds):
            for ours in (own, begun, generic, None) if number % 2 else (None, generic, begun, own):
                time.sleep(SETTLE_S)
                if ours is None:
                    plain.run(measured=number >= 0)
                    continue
                words, image = () if ours is own else BEGUN, others.pop() if ours is generic else IMAGE
                took = clock.run(bulle.command("run", "--rm", *guest, "--network", "none", *words, image, "true"), bulle.environment)
                if number >= 0:
                    ours.samples.append(took)
    assert own.median and begun.median and generic.median and plain.reached.median and plain.ended.median
    what = "`run --rm --isolation vm` of `true`, cold, whole process"
    rows: Rows = [
        (what, f"{own.median:.0f} ms", f"q35, until init: {plain.reached.median:.0f} ms", own.median / plain.reached.median, MOST_OF_BOOT),
        (what, f"{own.median:.0f} ms", f"q35, until it is off: {plain.ended.median:.0f} ms", own.median / plain.ended.median, None),
    ]
    template = "`run --rm --isolation vm --start template` of `true`, from its image's template"
    beside = f"q35, until init: {plain.reached.median:.0f} ms"
    rows.append((template, f"{begun.median:.0f} ms", beside, begun.median / plain.reached.median, MOST_OF_BOOT_BEGUN))
    template = "`run --rm --isolation vm --start template` of `true`, first run of another image, from the generic template"
    rows.append((template, f"{generic.median:.0f} ms", beside, generic.median / plain.reached.median, MOST_OF_BOOT_GENERIC))
    said = [f"start from a template: {begun}", f"start from the generic template: {generic}", f"cold start, bulle: {own}"]
    said += [f"cold start, q35 until init: {plain.reached}", f"cold start, q35 until it is off: {plain.ended}"]
    return rows, [*said, *([f"cold start, q35: {plain.lost} boots that panicked or hung are not counted"] if plain.lost else [])]


def _another_image(contestants: Field, number: int) -> str:
    """The same as the first, with one more file: an image of as many layers that no template knows."""
    name, differs = f"another{number}", contestants.rootfs / "another"
    differs.write_text(name)
    try:
        peers.docker_archive(contestants.directory / "another.tar", [peers.pack(contestants.rootfs)], tags=[f"{name}:latest"])
    finally:
        differs.unlink()
    contestants.bulle("load", "-i", str(contestants.directory / "another.tar"))
    return name


def _forks(contestants: Field, guest: tuple[str, ...], plain: Plain, rounds: int) -> tuple[Row, str]:
    """A second machine from one that runs, the whole command: then both run."""
    bulle, result = contestants.bulle, Result()
    with _machine(contestants, guest, "--start", "template"), timer() as clock:
        for number in range(-1, rounds):
            time.sleep(SETTLE_S)
            took = clock.run(bulle.command("fork", NAME, "--name", "second"), bulle.environment)
            bulle("rm", "-f", "second")
            if number >= 0:
                result.samples.append(took)
    assert result.median and plain.reached.median
    figure, beside = f"`fork` of a running machine of {MEMORY_MIB} MiB", f"q35, until init: {plain.reached.median:.0f} ms"
    return (figure, f"{result.median:.0f} ms", beside, result.median / plain.reached.median, MOST_OF_BOOT_FORKED), f"fork: {result}"


def _commands(contestants: Field, guest: tuple[str, ...], rounds: int) -> tuple[Rows, list[str]]:
    """What ``exec`` of a command takes beyond what the guest takes for it: a shell in the guest starts the same command and waits for it."""
    bulle = contestants.bulle
    now = "cut -d' ' -f1 /proc/uptime"
    loop = f"{now}; i=0; while [ $i -lt {COMMANDS} ]; do /bin/true; i=$((i+1)); done; {now}"
    exec_, container, inside = Result(), Result(), Result()
    with _machine(contestants, guest), ExitStack() as stack:
        bulle("run", "-d", "--name", "beside", "--network", "none", IMAGE, "sleep", "100000")
        stack.callback(bulle, "rm", "-f", "beside")
        clock = stack.enter_context(timer())
        for number in range(-2, rounds):
            for result, name in ((exec_, NAME), (container, "beside")):
                time.sleep(0.05)
                took = clock.run(bulle.command("exec", name, "/bin/true"), bulle.environment)
                if number >= 0:
                    result.samples.append(took)
        for _ in range(5):
            before, after = map(float, bulle("exec", NAME, "sh", "-c", loop).split())
            inside.samples.append((after - before) * 1000 / COMMANDS)
    assert exec_.median and inside.median
    beyond = exec_.median - inside.median
    figure = "`exec` in a machine, beyond the command itself"
    rows: Rows = [(figure, f"{beyond:.1f} ms", f"at most {MOST_EXEC_MS:.0f} ms", beyond / MOST_EXEC_MS, 1.0)]
    return rows, [f"exec in a machine: {exec_}", f"the same command by a shell in the guest: {inside}", f"exec in a container: {container}"]


@contextmanager
def _machine(contestants: Field, guest: tuple[str, ...], *words: str) -> Iterator[dict[str, object]]:
    """A machine that does nothing; gives its State."""
    bulle = contestants.bulle
    bulle("run", "-d", "--name", NAME, *guest, "--network", "none", "--memory", f"{MEMORY_MIB}m", *words, IMAGE, "sleep", "100000")
    try:
        yield json.loads(bulle("inspect", "--format", "{{json .State}}", NAME))
    finally:
        bulle("rm", "-f", NAME)


def _own_memory(contestants: Field, guest: tuple[str, ...], words: tuple[str, ...]) -> tuple[float, str]:
    """MiB of monitor, shepherd, file server and QEMU without the guest's memory: each process's part of what it has in memory."""
    parts: dict[str, list[float]] = {}
    for _ in range(3):
        with _machine(contestants, guest, *words) as state:
            contestants.bulle("exec", NAME, "true")
            time.sleep(2.0)
            monitor, shepherd = (int(str(state[name])) for name in ("MonitorPid", "Pid"))
            for pid in (monitor, shepherd, *_children(shepherd)):
                name = {monitor: "monitor", shepherd: "shepherd"}.get(pid) or Path(f"/proc/{pid}/comm").read_text().strip()
                for kind, size in _proportional_mib(pid, MEMORY_MIB << 20).items():
                    parts.setdefault(f"{name}{kind}", []).append(size)
    medians = {name: statistics.median(values) for name, values in parts.items()}
    return sum(medians.values()), ", ".join(f"{name} {value:.1f} MiB" for name, value in medians.items())


def _begun_memory(contestants: Field, guest: tuple[str, ...]) -> tuple[float, str]:
    """MiB of QEMU's part of what it has in memory, the guest's included, in each of four machines that began from one template and are idle."""
    bulle = contestants.bulle
    names = [f"begun{number}" for number in range(5)]
    try:
        sizes = []
        for name in names:
            bulle("run", "-d", "--name", name, *guest, "--network", "none", *BEGUN, IMAGE, "sleep", "100000")
        bulle("rm", "-f", names.pop(0))  # this one may have booted
        time.sleep(2.0)
        for name in names:
            shepherd = int(bulle("inspect", "--format", "{{.State.Pid}}", name))
            for pid in _children(shepherd):
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                sizes.append(next(int(line.split()[1]) for line in rollup if line.startswith("Pss:")) / 1024)
        return statistics.median(sizes), f"machines from one template, each: {', '.join(f'{size:.1f}' for size in sizes)} MiB"
    finally:
        bulle("rm", "-f", *names)


def _children(pid: int) -> list[int]:
    return [int(word) for path in Path(f"/proc/{pid}/task").glob("*/children") for word in path.read_text().split()]


def _proportional_mib(pid: int, guest_bytes: int) -> dict[str, float]:
    """Of shared pages its part, by kinds of mappings; those as large as the guest's memory are that, and left out. proc_pid_smaps(5)"""
    found: dict[str, float] = {}
    kind = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        if "-" in first and not first.endswith(":"):
            begin, end = (int(word, 16) for word in first.split("-"))
            kind = ", the kernel's file" if "/kernels/images/" in rest else ", translated code" if rest.startswith("rwx") else ""
            kind = "guest" if guest_bytes <= end - begin <= 2 * guest_bytes else kind
        elif first == "Pss:" and kind != "guest":
            found[kind] = found.get(kind, 0.0) + int(rest.split()[0]) / 1024
    return found
