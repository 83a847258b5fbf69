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
    from collections.abc import Sequence
    from pathlib import Path

    from bulle.spawner.child import Entry
    from bulle.spawner.configuration import Configuration
    from bulle.spawner.leash import Leash


def run_command(argv: list[str], _descriptors: list[int], _leash: Leash | None) -> int:
    """The entry ``command``."""
    from bulle.cli.main import run

    return run(argv)


def run_elsewhere(arguments: list[str]) -> int | None:
    """Run the command on another machine where it is for one; None where it is for this one."""
    from bulle.errors import BulleError
    from bulle.fleet.hosts import chosen

    try:
        choice = chosen(arguments, os.environ)
    except BulleError as error:
        os.write(2, f"bulle: {error}\n".encode())
        return 125
    if choice is None:
        return None
    from bulle.cli.remote import travel

    return travel(choice)


def run_monitor(argv: list[str], descriptors: list[int], leash: Leash | None) -> int:
    """The entry ``monitor``."""
    from bulle.engine.supervisor import main as supervise

    return supervise(argv, descriptors, leash)


def run_start(argv: list[str], descriptors: list[int], leash: Leash | None) -> int:
    """The entry ``start``."""
    from bulle.engine.supervisor import start

    return start(argv, descriptors, leash)


def run_keeper(argv: list[str], descriptors: list[int], leash: Leash | None) -> int:
    """The entry ``keeper``."""
    from bulle.engine.keeping import main as keep

    return keep(argv, descriptors, leash)


def run_reconciler(argv: list[str], descriptors: list[int], leash: Leash | None) -> int:
    """The entry ``reconciler``."""
    from bulle.compose.reconciling import main as reconcile

    return reconcile(argv, descriptors, leash)


def run_job(argv: list[str], descriptors: list[int], leash: Leash | None) -> int:
    """The entry ``job``."""
    from bulle.api.job_process import main as work

    return work(argv, descriptors, leash)


ENTRIES: dict[str, Entry] = {
    "command": run_command, "monitor": run_monitor, "execute": run_monitor, "start": run_start, "keeper": run_keeper,
    "reconciler": run_reconciler, "job": run_job,
}  # fmt: skip


def configure(home: str) -> Configuration:
    """What the spawner of ``home`` is made of. Imports, here and now, everything that a frequent verb or a monitor would otherwise import late."""
    from functools import partial
    from pathlib import Path

    from bulle.cli.main import preload
    from bulle.engine import supervisor
    from bulle.spawner.configuration import Configuration
    from bulle.spawner.launch import interpreter_directory

    preload()
    place = Path(home)
    return Configuration(
        home=home,
        entries=ENTRIES,
        interpreter=interpreter_directory(),
        package=os.fsencode(Path(__file__).resolve().parent),
        spare={"command": 1, "run": 1, "build": 1, "monitor": 1, "execute": 1},
        kind=kind_of,
        watchers={"start": supervisor.watch},
        rehearsals={
            "command": partial(rehearse_command, home),
            "run": partial(rehearse_run, home),
            "build": partial(rehearse_build, home),
            "monitor": rehearse_monitor,
            "start": supervisor.rehearse_watch,
        },
        enter_scope=enter_scope,
        process_to_join=partial(living_monitor, place),
        prepare=partial(prepare, place),
        on_orphan=partial(supervisor.record_orphan, place),
        idle_s=_idle_s(),
    )


def rehearse_command(home: str) -> None:
    """What most verbs do, without an effect: the command's child does it before it has a caller (see ``bulle.spawner.child``)."""
    os.environ["BULLE_HOME"] = home
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 -- lives as long as the process, or until the caller's streams take its place
    for argv in (["ps"], ["run", "--dry-run", "--rm", "--pull", "never", "--network", "none", "host", "true"]):
        run_command(argv, [], None)


def kind_of(entry: str, argv: Sequence[bytes]) -> str:
    """Commands that start a container get a child that has a shell for it, builds one that has read a Containerfile."""
    verb = argv[3:4] if argv[:1] == [b"--fleet"] else argv[:1]
    return verb[0].decode() if entry == "command" and verb in ([b"run"], [b"build"]) else entry


def rehearse_run(home: str) -> None:
    """As :func:`rehearse_command`, and make ready for a start."""
    rehearse_command(home)
    rehearse_monitor()


def rehearse_build(home: str) -> None:
    """As :func:`rehearse_command`, and read a Containerfile."""
    from bulle.build.builder import rehearse

    rehearse_command(home)
    rehearse()


def rehearse_monitor() -> None:
    """Make ready for a start."""
    from bulle.isolation.namespaces import NamespaceDriver

    NamespaceDriver.open_shell()


def _idle_s() -> float:
    from bulle.spawner.configuration import IDLE_S

    try:
        return float(os.environ.get("BULLE_SPAWNER_IDLE_S") or IDLE_S)
    except ValueError:
        return IDLE_S


def enter_scope() -> None:
    """Where systemd manages the machine, move into Bulle's scope: the end of the session or job that started the spawner then ends no container."""
    from bulle.isolation import control_group_scope

    if control_group_scope.systemd_runs():
        for root in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup"):
            if os.path.exists(f"{root}/cgroup.procs"):
                control_group_scope.prepare(root, control_group_scope.base(root))
                return


def living_monitor(home: Path) -> int | None:
    """A monitor that lives, in whose mount namespace the layers are mounted already."""
    from bulle.linux.process import start_ticks
    from bulle.monitor.state import read_state

    for directory in (home / "containers").glob("*"):
        state = read_state(str(directory))
        if state.active and state.monitor_pid and start_ticks(state.monitor_pid) == state.monitor_start_ticks:
            return state.monitor_pid
    return None


def prepare(home: Path) -> None:
    """Find out once what every child would find out anew, and import the keeper's part; what a machine lacks is told when it is asked for."""
    from contextlib import suppress

    from bulle.engine import supervisor
    from bulle.engine.home import prepare_home

    with suppress(Exception):
        prepare_home(home)
        supervisor.warm(home)
        if os.geteuid() == 0:
            import bulle.network.keeper  # noqa: F401 - not before anybody is answered: it takes longer than all the rest


def main(arguments: list[str]) -> int:
    """Dispatch on the first argument; everything that is not for the spawner is a command."""
    if arguments[:1] == ["--spawner"]:
        from bulle.spawner.startup import main as spawner_main

        return spawner_main(arguments, configure)
    if arguments[:1] == ["--entry"]:
        from bulle.spawner.client import run_entry

        return run_entry(arguments, ENTRIES.__getitem__, living_monitor)
    code = run_elsewhere(arguments)
    return run_command(arguments, [], None) if code is None else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
