"""A composition root for tests of the spawner: the real server and callers with entries of the tests' own.

``python spawner_root.py --spawner HOME ...`` serves; anything else is a command run in place, like ``python -m bulle``.
"""

# ruff: noqa: T201 -- it is a command
from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

from bulle.spawner.configuration import Configuration
from bulle.spawner.leash import Leash
from bulle.spawner.startup import main as spawner_main

VERSION = "1"  # the test of replaced code edits a copy of this file


def report() -> dict[str, object]:
    """What a process can say of itself."""
    return {
        "version": VERSION,
        "pid": os.getpid(),
        "ppid": os.getppid(),
        "served": os.environ.get("TEST_IN_PLACE") is None,
        "argv": sys.argv[1:],
        "cwd": os.getcwd(),
        "environment": dict(os.environ),
        "umask": os.umask(0o077),
        "nofile": resource.getrlimit(resource.RLIMIT_NOFILE),
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "groups": os.getgroups(),
        "gid": os.getgid(),
        "affinity": sorted(os.sched_getaffinity(0)),
        "oom": int(Path("/proc/self/oom_score_adj").read_text()),
        "session": os.getsid(0),
        "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd")),
        "scheduler": os.sched_getscheduler(0),
        "tty": [os.isatty(number) for number in range(3)],
    }


def command(argv: list[str], _descriptors: list[int], _leash: Leash | None) -> int:
    """The verbs that the tests ask for."""
    verb, *rest = argv
    if verb == "report":
        print(json.dumps(report()))
    elif verb == "exit":
        return int(rest[0])
    elif verb == "raise":
        raise SystemExit(rest[0])
    elif verb == "die":
        signal.signal(int(rest[0]), signal.SIG_DFL) if int(rest[0]) not in (9, 19) else None
        os.kill(os.getpid(), int(rest[0]))
        time.sleep(5)
    elif verb == "cat":
        sys.stdout.write(sys.stdin.read().upper())
        print("error", file=sys.stderr)
    elif verb == "wait":
        Path(rest[0]).write_text(str(os.getpid()))
        time.sleep(float(rest[1]))
    elif verb == "signals":
        for name in ("INT", "TERM", "HUP", "QUIT", "WINCH", "CONT"):
            signal.signal(getattr(signal, f"SIG{name}"), lambda number, _frame: os.write(1, signal.Signals(number).name.encode() + b"\n"))
        print("ready", os.getpid(), flush=True)
        while True:
            signal.pause()
    elif verb == "execute":
        exec(Path(rest[0]).read_text())
    elif verb == "submit":
        from bulle.spawner.client import submit

        print(submit(Path(os.environ["BULLE_HOME"]), "monitor", rest))
    return 0


def monitor(argv: list[str], descriptors: list[int], leash: Leash | None) -> int:
    """A detached child: ``record FILE`` writes a line about its life, then does as told."""
    verb, path, *rest = argv
    contents = [os.pread(descriptor, 100, 0).decode() for descriptor in descriptors]
    line = {"argv": argv, "pid": os.getpid(), "ppid": os.getppid(), "contents": contents, "session": os.getsid(0)}
    line |= {"cwd": os.getcwd(), "leash": leash is not None}
    with Path(path).open("a") as file:
        file.write(json.dumps(line) + "\n")
    if verb == "hold" and leash is not None and "--recover" not in argv:
        for descriptor in descriptors:
            leash.hold(descriptor)
        os.kill(os.getpid(), signal.SIGKILL)
    if verb == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if verb == "stay":
        time.sleep(float(rest[0]))
    if leash is not None:
        leash.release()
    return 0


def orphan_ended(pid: int, status: int) -> None:
    """Record it where the test looks."""
    with (Path(os.environ["BULLE_HOME"]) / "orphans").open("a") as file:
        file.write(f"{pid} {status}\n")


def configure(home: str) -> Configuration:
    """The tests' configuration."""
    return Configuration(
        home=home,
        entries={"command": command, "monitor": monitor},
        interpreter=os.fsencode(os.environ.get("TEST_INTERPRETER") or os.path.dirname(sys.executable)),
        package=os.fsencode(Path(sys.modules["bulle"].__file__ or "").resolve().parent),
        spare=json.loads(os.environ.get("TEST_SPARE", '{"command": 1, "monitor": 1}')),
        rehearsals={"command": lambda: command(["report"], [], None)},
        on_orphan=orphan_ended,
        idle_s=float(os.environ.get("BULLE_SPAWNER_IDLE_S", "300")),
    )


def main() -> None:
    """Serve or run in place."""
    if "--spawner" in sys.argv:
        sys.exit(spawner_main(sys.argv[1:], configure))
    os.environ["TEST_IN_PLACE"] = "1"
    sys.exit(command(sys.argv[1:], [], None))


if __name__ == "__main__":
    main()
