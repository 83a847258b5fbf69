"""The parts of the benchmark: each takes the field of contestants and gives rows (figure, Bulle, peer, ratio, at most) and sentences of detail."""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from contestants import Bulle, Podman, bundle, docker_command, timer_for_crun
from measuring import HERE, Contestant, Failed, Result, Timer, compiled, interleaved, program, resident_kib, timer, unique_kib

from bulle_testing import peers, places

Row = tuple[str, str, str, float | None, float | None]
Rows = list[Row]
IMAGE = "busybox:latest"
FLOOR_FIRST_ID = 1_879_048_192
LARGE_PACKAGES = ("python3", "perl", "git", "openssh-client", "tzdata", "vim")


@dataclass
class Field:
    """Who takes part; None where it is not installed."""

    directory: Path
    rootfs: Path
    bulle: Bulle
    docker: peers.Docker | None
    podman: Podman | None


def compare(figure: str, results: dict[str, Result], peer: str, at_most: float | None) -> tuple[str, str, str, float | None, float | None]:
    """One row: Bulle's median against a peer's."""
    own, other = results["bulle"].median, results[peer].median if peer in results else None
    ratio = own / other if own is not None and other else None
    shown = [f"{value:.2f} ms" if value is not None else "-" for value in (own, other)]
    return figure, shown[0], f"{peer}: {shown[1]}", ratio, at_most


def start(field: Field, options: argparse.Namespace) -> tuple[Rows, list[str]]:
    """Whole processes that run ``true`` in a container without a network."""
    with ExitStack() as stack:
        plain: Timer = stack.enter_context(timer())
        runs: dict[str, Contestant] = {
            "bulle": lambda: plain.run(field.bulle.command("run", "--rm", "--network", "none", IMAGE, "true"), field.bulle.environment)
        }
        root = field.directory / "runtimes"
        root.mkdir(exist_ok=True)
        made = bundle(field.directory / "bundle", field.rootfs) if program("runc") or program("crun") else None
        if program("crun"):
            inside = timer_for_crun()
            stack.callback(inside.close)
            crun = [str(program("crun")), "--root", f"{root}/crun", "--cgroup-manager", "cgroupfs"]
            crun += ["run", "--bundle", str(made), f"bench-crun-{os.getpid()}"]
            runs["crun"] = lambda: inside.run(crun)
        if program("runc"):
            runc = [str(program("runc")), "--root", f"{root}/runc", "run", "--bundle", str(made), f"bench-runc-{os.getpid()}"]
            runs["runc"] = lambda: plain.run(runc)
        if program("bwrap"):
            bwrap = [str(program("bwrap")), "--unshare-all", "--bind", str(field.rootfs), "/", "--proc", "/proc", "--dev", "/dev", "true"]
            runs["bwrap"] = lambda: plain.run(bwrap)
        if docker := field.docker:
            command = docker_command(docker, "run", "--rm", "--network", "none", IMAGE, "true")
            runs["docker"] = lambda: plain.run(command)
        if podman := field.podman:
            runs["podman"] = lambda: plain.run(podman.command("run", "--rm", "--network", "none", IMAGE, "true"), podman.environment)
        results = interleaved(runs, options.rounds)
    what = "`run --rm --network none` of `true`, whole process"
    rows: Rows = [compare(what, results, "crun", 2.0), compare(what, results, "docker", 1 / 12)]
    rows += [compare(what, results, peer, None) for peer in ("runc", "podman", "bwrap")]
    return rows, [f"start, {name}: {result}" for name, result in results.items()]


def library(field: Field, options: argparse.Namespace) -> tuple[Rows, list[str]]:
    """``bulle.run`` in one process against the C floor, in alternating portions."""
    floor = compiled(HERE / "floor.c", field.directory / "floor")
    if floor is None:
        raise Failed("no C compiler for the floor")
    filter_file = field.directory / "filter.bpf"
    filter_file.write_bytes(default_filter())
    state = field.directory / "floor-state"
    state.mkdir()
    portion = max(1, options.library_rounds // 10)
    results = {"bulle": Result(), "C floor": Result()}
    groups = group_parents(field.bulle)
    own = [sys.executable, str(HERE / "in_process.py"), str(portion), IMAGE]
    other = [str(floor), str(portion + 3), str(state), str(FLOOR_FIRST_ID), str(filter_file), str(field.rootfs), ":".join(groups) or ":", "/bin/true"]
    for _ in range(0, options.library_rounds, portion):
        for name, command, environment in (("bulle", own, places.environment(field.bulle.home)), ("C floor", other, dict(os.environ))):
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode != 0:
                raise Failed(f"{name}: {done.stderr.strip().splitlines()[-1:]}")
            samples = [int(line) / 1e6 for line in done.stdout.split()]
            # The floor's first rounds are its warm-up; in_process.py leaves out its own.
            results[name].samples += samples if name == "bulle" else samples[3:]
    row = compare("`bulle.run` of `true`, in process", results, "C floor", 2.5)
    return [row], [f"in process, {name}: {result}" for name, result in results.items()]


def default_filter() -> bytes:
    """The very filter that Bulle installs by default, as the kernel reads it."""
    from bulle.isolation import seccomp_profile
    from bulle.linux.capabilities import DOCKER_DEFAULT

    return seccomp_profile.program_for("default", frozenset(DOCKER_DEFAULT), None) or b""


def group_parents(bulle: Bulle) -> list[str]:
    """The hierarchies in which Bulle makes a control group for a container without limits."""
    container = bulle("run", "-d", "--network", "none", IMAGE, "sleep", "60").strip()
    try:
        return sorted(str(path.parent.parent) for path in Path("/sys/fs/cgroup").glob(f"*/bulle/{container}*"))
    finally:
        bulle("rm", "-f", container)


def many(field: Field, options: argparse.Namespace) -> tuple[Rows, list[str]]:
    """``ps`` with many running containers, and the memory of what watches over them."""
    count = options.containers
    for _ in range(count):
        field.bulle("run", "-d", "--network", "none", IMAGE, "sleep", "100000")
        if field.docker:
            field.docker("run", "-d", "--network", "none", IMAGE, "sleep", "100000")
    try:
        with timer() as plain:
            runs: dict[str, Contestant] = {"bulle": lambda: plain.run(field.bulle.command("ps"), field.bulle.environment)}
            if docker := field.docker:
                command = docker_command(docker, "ps")
                runs["docker"] = lambda: plain.run(command)
            results = interleaved(runs, options.rounds)
        rows: Rows = [compare(f"`ps` with {count} containers", results, "docker", 0.5)]
        details = [f"ps, {name}: {result}" for name, result in results.items()]
        more, said = memory_rows(field, f"each of {count} idle containers")
        return rows + more, details + said
    finally:
        field.bulle("rm", "-f", *field.bulle("ps", "-aq").split())
        if field.docker:
            field.docker("rm", "-f", *field.docker("ps", "-aq").stdout.split())


def alone(field: Field, options: argparse.Namespace) -> tuple[Rows, list[str]]:
    """The memory of the only container's monitor: nobody else to share a page with."""
    container = field.bulle("run", "-d", "--network", "none", IMAGE, "sleep", "100000").strip()
    other = field.docker("run", "-d", "--network", "none", IMAGE, "sleep", "100000").stdout.strip() if field.docker else ""
    try:
        return memory_rows(field, "the only idle container")
    finally:
        field.bulle("rm", "-f", container)
        if field.docker:
            field.docker("rm", "-f", other)


def memory_rows(field: Field, what: str) -> tuple[Rows, list[str]]:
    """Monitors against shims, before and after the spawner that forked the monitors was killed and another came."""
    time.sleep(1.0)
    rows: Rows = []
    details: list[str] = []
    shims = [unique_kib(pid) for pid in shim_pids(field.directory)] if field.docker else []
    shim = statistics.median(shims) if shims else None
    spawner = places.spawner_pid(field.bulle.home)
    if spawner:
        size = resident_kib(spawner)
        rows.append((f"spawner, resident, {what}", f"{size / 1024:.1f} MiB", "40 MB", size * 1024 / 40e6, 1.0))
    for moment in ("", ", after the spawner was replaced"):
        if moment:
            if not spawner:
                break
            os.kill(spawner, signal.SIGKILL)
            field.bulle("ps")
            field.bulle("ps")
            time.sleep(1.0)
            details.append(f"spawner {spawner} was killed, {places.spawner_pid(field.bulle.home)} came")
        monitors = [unique_kib(pid) for pid in field.bulle.monitors()]
        if not monitors:
            raise Failed("no monitor of a running container was found")
        own = statistics.median(monitors)
        ratio = own / shim if shim else None
        rows.append((f"unique memory, {what}{moment}", f"{own:.0f} KiB", f"containerd-shim: {shim or 0:.0f} KiB", ratio, 1 / 3))
        spread = f"shims {min(shims)} to {max(shims)} KiB" if shims else "no shims"
        details.append(f"monitors, {what}{moment}: {min(monitors)} to {max(monitors)} KiB; {spread}")
    return rows, details


def shim_pids(directory: Path) -> list[int]:
    """The shims of the private dockerd."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "containerd-shim" in command.split("\0")[0] and str(directory) in command:
            found.append(int(path.parent.name))
    return found


def load(field: Field, options: argparse.Namespace) -> tuple[Rows, list[str]]:
    """An archive of a Debian image with over 10,000 files, until it is ready to run."""
    tar = peers.debian_root("bookworm", LARGE_PACKAGES)
    archive = places.cache_directory() / f"{tar.stem}-image.tar"
    if not archive.exists():
        part = archive.with_suffix(".part")
        peers.docker_archive(part, [tar.read_bytes()], tags=["large:latest"])
        part.rename(archive)
    with tarfile.open(tar) as entries:
        files = sum(1 for _ in entries)
    with ExitStack() as stack:
        plain = stack.enter_context(timer())

        def settled(command: list[str], environment: dict[str, str] | None, remove: Callable[[], object]) -> float:
            """One load on a disk that has nothing left to write, then its removal, unmeasured."""
            os.sync()
            took = plain.run(command, environment)
            remove()
            return took

        bulle = field.bulle
        runs: dict[str, Contestant] = {
            "bulle": lambda: settled(bulle.command("load", "-i", str(archive)), bulle.environment, lambda: bulle("rmi", "large:latest"))
        }
        if docker := field.docker:
            runs["docker"] = lambda: settled(docker_command(docker, "load", "-i", str(archive)), None, lambda: docker("rmi", "large:latest"))
        if podman := field.podman:
            runs["podman"] = lambda: settled(podman.command("load", "-i", str(archive)), podman.environment, lambda: podman("rmi", "large:latest"))
        results = interleaved(runs, options.load_rounds, warm_up=1)
    what = f"load of a Debian image, {files:,} entries, {archive.stat().st_size >> 20} MiB"
    rows: Rows = [compare(what, results, "docker", 1 / 6), compare(what, results, "podman", 1 / 8)]
    return rows, [f"load, {name}: {result}" for name, result in results.items()]
