"""The composition root: which entry runs what, and what the spawner loads before anybody asks.

``python -m bulle ARGS`` runs the command line in this process. Two forms are for the spawner alone: ``--spawner HOME`` (be the warm process,
started by the stub or the library) and ``--entry NAME HOME COUNT ARGS`` (run one entry in a fresh interpreter, where no spawner serves). Only this
module knows both the spawner and what it starts, so that the spawner's room stays low in the house.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bulle.spawner.child import Entry
    from bulle.spawner.leash import Leash
    from bulle.spawner.server import Configuration


def run_command(argv: list[str], _descriptors: list[int], _leash: Leash | None) -> int:
    """The entry ``command``."""
    from bulle.cli.main import run

    return run(argv)


def run_monitor(argv: list[str], descriptors: list[int], leash: Leash | None) -> int:
    """The entry ``monitor``."""
    from bulle.engine.supervisor import main as supervise

    return supervise(argv, descriptors, leash)


ENTRIES: dict[str, Entry] = {"command": run_command, "monitor": run_monitor}

# Loaded before the first request: every import that a frequent verb would otherwise do in its child.
PRELOADED = ("bulle.cli.main", "bulle.engine.supervisor")


def configure(home: str) -> Configuration:
    """What the spawner of ``home`` is made of."""
    import importlib
    from pathlib import Path

    from bulle.spawner.launch import interpreter_directory
    from bulle.spawner.server import IDLE_S, Configuration

    for name in PRELOADED:
        importlib.import_module(name)
    importlib.import_module("bulle.cli.main").preload()
    importlib.import_module("bulle.engine.supervisor").warm(Path(home))
    return Configuration(
        home=home,
        entries=ENTRIES,
        interpreter=interpreter_directory(),
        package=os.fsencode(Path(__file__).resolve().parent),
        spare={"command": 1, "monitor": 1},
        idle_s=float(os.environ.get("BULLE_SPAWNER_IDLE_S") or IDLE_S),
    )


def main(arguments: list[str]) -> int:
    """Dispatch on the first argument; everything that is not for the spawner is a command."""
    if arguments[:1] == ["--spawner"]:
        from bulle.spawner.startup import main as spawner_main

        return spawner_main(arguments, configure)
    if arguments[:1] == ["--entry"]:
        from bulle.spawner.client import run_entry

        return run_entry(arguments, ENTRIES.__getitem__, None)
    return run_command(arguments, [], None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
