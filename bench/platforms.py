"""The part of the benchmark about other processors: a program for arm64 in a container, beside this machine's own.

As in figures.py, it takes the field of contestants and gives rows and sentences of detail.
"""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack

from contestants import docker_command
from figures import IMAGE, Field, Rows, compare
from measuring import Contestant, Failed, interleaved, program, timer

from bulle.linux import binary_formats
from bulle_testing import foreign

ARCHITECTURE = "arm64"
HELLO = ("echo", "hello")
MOST_MS = 60


def platforms(field: Field, options: argparse.Namespace) -> tuple[Rows, list[str]]:
    """Whole processes that print a word: for this processor, and for arm64. The peers need an emulator in the machine's own table, Bulle none."""
    platform, _machine, _suite, emulator = foreign.PLATFORMS[ARCHITECTURE]
    if os.uname().machine != "x86_64" or program(emulator) is None:
        raise Failed(f"{emulator} is not installed, or this machine is no x86_64")
    archive = foreign.archive(field.directory, ARCHITECTURE, "arm64:latest")
    field.bulle("load", "-i", str(archive))
    words = ["run", "--rm", "--network", "none"]
    root = ["run", "--rm", "--isolation", "chroot"]
    with ExitStack() as stack:
        plain = stack.enter_context(timer())
        own = field.bulle.environment
        runs: dict[str, Contestant] = {
            "bulle": lambda: plain.run(field.bulle.command(*words, "--platform", platform, "arm64", *HELLO), own),
            "native": lambda: plain.run(field.bulle.command(*words, IMAGE, *HELLO), own),
            "private root": lambda: plain.run(field.bulle.command(*root, "--platform", platform, "arm64", *HELLO), own),
        }
        if any(entry.name == "qemu-aarch64" and "F" in entry.flags for entry in binary_formats.entries()):
            if podman := field.podman:
                podman("load", "-i", str(archive))
                command = podman.command(*words, "--arch", "arm64", "arm64:latest", *HELLO)
                runs["podman"] = lambda: plain.run(command, podman.environment)
            if docker := field.docker:
                docker("load", "-i", str(archive))
                line = docker_command(docker, *words, "--platform", platform, "arm64:latest", *HELLO)
                runs["docker"] = lambda: plain.run(line)
        results = interleaved(runs, options.rounds)
    what = f"`run --rm --platform {platform}` of `echo`, whole process"
    rows = [compare(what, results, peer, None) for peer in ("native", "podman", "docker") if peer in runs]
    ours, theirs = results["bulle"].median, results["native"].median
    if ours is not None and theirs is not None:
        rows.append((what, f"{ours:.2f} ms", f"at most {MOST_MS} ms", ours / MOST_MS, 1.0))
        more = ours - theirs
        rows.append(("what emulation costs more than a native program", f"{more:.2f} ms", "-", None, None))
    details = [f"platforms, {name}: {result}" for name, result in results.items()]
    if "podman" not in runs:
        why = "they need an emulator in the machine's own table of binary formats, and there is none"
        details.append(f"platforms, podman and docker: not measured, {why}")
    return rows, details
