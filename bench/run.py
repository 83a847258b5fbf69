"""The figures of Bulle beside its peers: ``make bench``, or ``python bench/run.py --only start,build --rounds 20``.

Every figure is a median of interleaved rounds on this machine in this run; what is not installed is left out and named. Needs root. Prints Markdown;
``--write docs/performance.md`` puts it between that page's two marks.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import apps
import doors
import figures
import images
import lives
import machines
import platforms
import sockets
from contestants import Bulle, Podman
from measuring import Failed, machine, program

from bulle_testing import leaks, peers, places, tiers

BEGIN, END = "<!-- figures{}: written by make bench-write -->", "<!-- end of figures{} -->"
PARTS = ("start", "library", "ps", "memory", "lives", "stats", "idle", "doors", "load", "build", "pull", "platforms", "machines", "sockets", "apps")


@dataclass
class Row:
    """One line of the table."""

    figure: str
    bulle: str
    peer: str
    ratio: float | None
    target: float | None

    def __str__(self) -> str:
        ratio = f"{self.ratio:.3f}" if self.ratio is not None else "-"
        verdict = "-" if self.ratio is None or self.target is None else "yes" if self.ratio <= self.target else "**no**"
        return f"| {self.figure} | {self.bulle} | {self.peer} | {ratio} | {'-' if self.target is None else f'{self.target:.3f}'} | {verdict} |"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts to measure, of {','.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=30, help="rounds of whole commands")
    parser.add_argument("--library-rounds", type=int, default=200, help="calls of bulle.run and rounds of the C floor")
    parser.add_argument("--load-rounds", type=int, default=5, help="loads of the large image")
    parser.add_argument("--build-rounds", type=int, default=10, help="builds of thirty steps, each of three kinds")
    parser.add_argument("--containers", type=int, default=100, help="running containers for ps and memory")
    parser.add_argument("--idle-containers", type=int, default=500, help="idle containers of which all the engine's memory is told")
    parser.add_argument(
        "--section", default="", help="which table of the page to write: images, lives, doors, platforms, machines, sockets, apps, or the first one"
    )
    parser.add_argument("--write", type=Path, help="page to write the table into")
    return parser.parse_args()


def prepare(stack: ExitStack, directory: Path) -> figures.Field:
    """Everyone who is installed, with the same busybox image."""
    rootfs = directory / "rootfs"
    rootfs.mkdir()
    peers.make_busybox_rootfs(rootfs)
    archive = directory / "busybox.tar"
    peers.docker_archive(archive, [peers.pack(rootfs)], tags=["busybox:latest"])
    home = directory / "home"
    home.mkdir(mode=0o700)
    stack.callback(places.close_home, home)
    bulle = Bulle(home)
    bulle("load", "-i", str(archive))
    docker = None
    if all(program(name) for name in ("dockerd", "docker", "containerd", "runc")):
        docker = stack.enter_context(peers.private_docker(directory / "docker"))
        docker("load", "-i", str(archive))
    podman = None
    if program("podman") and program("runc"):
        podman = Podman(directory / "podman")
        podman("load", "-i", str(archive))
    return figures.Field(directory, rootfs, bulle, docker, podman)


def write(page: Path, text: str, section: str) -> None:
    """Put the text between the marks of a section of the page, or make the page."""
    begin, end = (mark.format(f" of {section}" if section else "") for mark in (BEGIN, END))
    old = page.read_text() if page.exists() else f"# Performance\n\n{begin}\n{end}\n"
    before, _, rest = old.partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}\n\n{text}\n{end}{after}")


def report(rows: list[Row], details: list[str], options: argparse.Namespace) -> str:
    """The section as Markdown."""
    of_section = {
        "images": ("load_rounds", "build_rounds"),
        "lives": ("rounds", "containers", "idle_containers"),
        "doors": ("rounds",),
        "platforms": ("rounds",),
        "machines": ("rounds",),
        "sockets": ("rounds",),
        "apps": ("rounds",),
    }
    names = of_section.get(options.section, ("rounds", "library_rounds", "load_rounds", "containers"))
    chosen = f"--section {options.section} --only {options.only} " if options.section else ""
    chosen += " ".join(f"--{name.replace('_', '-')} {getattr(options, name)}" for name in names)
    command = f"make bench-write ARGUMENTS='{chosen}'"
    lines = [f"Measured {date.today().isoformat()} by `{command}` on {machine()}", ""]
    lines += ["| figure | Bulle | peer | ratio | at most | reached |", "| --- | --- | --- | --- | --- | --- |", *map(str, rows)]
    return "\n".join([*lines, "", "The medians:", "", *(f"- {detail}" for detail in details), ""])


def main() -> int:
    """Measure and print."""
    options = arguments()
    if cause := tiers.root_missing():
        print(f"the figures need real root: {cause}", file=sys.stderr)
        return 1
    leaks.become_subreaper()
    rows: list[Row] = []
    details: list[str] = []
    wanted = options.only.split(",")
    parts: dict[str, Callable[[figures.Field, argparse.Namespace], tuple[list[tuple[str, str, str, float | None, float | None]], list[str]]]] = {
        "start": figures.start, "library": figures.library, "ps": figures.many, "memory": figures.alone, "lives": lives.lives, "stats": lives.stats,
        "idle": lives.idle, "doors": doors.doors, "load": figures.load,
        "build": images.build, "pull": images.pull, "platforms": platforms.platforms, "machines": machines.machines,
        "sockets": sockets.sockets, "apps": apps.apps,
    }  # fmt: skip
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="bulle-bench-", dir=os.environ.get("BULLE_TEST_DIRECTORY", "/var/tmp")))
        stack.callback(places.remove_tree, directory)
        field = prepare(stack, directory)
        for name in PARTS:
            if name in wanted:
                print(f"measuring: {name}", file=sys.stderr, flush=True)
                try:
                    found, said = parts[name](field, options)
                except (Failed, RuntimeError, OSError, subprocess.SubprocessError, AssertionError) as error:
                    details.append(f"{name}: not measured: {error}")
                    continue
                rows += [Row(*row) for row in found]
                details += said
    text = report(rows, details, options)
    print(text)
    if options.write:
        write(options.write, text, options.section)
    return 0


if __name__ == "__main__":
    sys.exit(main())
