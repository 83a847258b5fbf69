"""A command line on its way to another machine (:func:`travel`), and its arrival there (:func:`arrive`).

Most verbs name nothing of this machine and go as they are. The others are read here, by the same declarations as there, and every word that names a
file is replaced (:mod:`bulle.cli.remote_files`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from bulle.errors import InvalidInput
from bulle.fleet import transport
from bulle.fleet.hosts import Chosen

_OF_CONTAINERS = "commit diff inspect kill logs move pause port rename restart rm stats stop switch top unpause update wait why"
_OF_ALL = "builder doctor events history images info logout manifest network ps rmi search snapshot system tag version"
_SIMPLE = frozenset(f"{_OF_ALL} {_OF_CONTAINERS}".split())
_STARTING = frozenset(["create", "exec", "run", "start"])
_INTERACTIVE = frozenset(["-i", "--interactive", "-it", "-ti", "-dit", "-itd", "-id", "-di"])
_LONG = "detach tty rm name network publish user workdir hostname memory cpus pull platform restart init isolation label entrypoint quiet attach"
_HARMLESS = _INTERACTIVE | {"-t", "-td", "-dt", *(f"-{letter}" for letter in "dpuwhmlqa"), *(f"--{name}" for name in _LONG.split())}
_ARCHIVES = ("docker-archive:", "oci-archive:", "oci:", "dir:")
_FAMILIES = {
    "container": frozenset(f"list ls prune ps remove {_OF_CONTAINERS}".split()),
    "image": frozenset(["history", "inspect", "list", "ls", "mount", "prune", "referrers", "remove", "rm", "tag", "umount", "unmount", "verify"]),
    "volume": frozenset(["clone", "create", "inspect", "list", "ls", "prune", "remove", "rm"]),
}


def travel(choice: Chosen) -> int:
    """Run a verb on another machine and return its exit code; never raises."""
    try:
        return _travel(choice)
    except BaseException as error:  # noqa: BLE001 - the outermost frame, as in main.run
        from bulle.cli import main

        if "--debug" in choice.flags:
            import traceback

            traceback.print_exception(error)
        rule = main.exit_code_of_failure
        if choice.words[0] in ("compose", "up", "down"):
            from bulle.cli.composing import exit_code_of_failure as rule
        return main.report(error, lambda error: rule(error, choice.words[0], detached=False))


def _travel(choice: Chosen) -> int:
    terminal = os.isatty(0) and os.isatty(1)
    words = choice.words
    if is_simple(words):
        # A verb that reads nothing must not take from a pipe what is somebody else's; questions come on terminals, or to prune.
        stdin = 0 if terminal or "prune" in words or not _INTERACTIVE.isdisjoint(words) else -1
        return transport.run(choice.host, [*choice.flags, *words], terminal=terminal, stdin=stdin)
    from bulle.cli.remote_files import read
    from bulle.fleet.carrying import Told, carried

    journey = read(words)
    if journey.is_here:
        from bulle.cli import main

        return main.run([*choice.flags, *words])
    with ExitStack() as stack:
        stdout = stack.enter_context(journey.output()).fileno() if journey.output_path else 1
        stdin = stack.enter_context(open(journey.input_path, "rb")).fileno() if journey.input_path else 0 if terminal or journey.reads else -1
        terminal = terminal and not journey.input_path and not journey.output_path
        if not journey.uploads:
            code = transport.run(choice.host, [*choice.flags, *journey.words], terminal=terminal, stdin=stdin, stdout=stdout)
        else:
            brought = dict(journey.brought)
            try:
                with carried(choice.host, journey.uploads, brought) as directory:
                    there = [word.replace("\0", directory) for word in journey.words]
                    code = transport.run(choice.host, [*choice.flags, *there], terminal=terminal, stdin=stdin, stdout=stdout)
                    if code:
                        brought.clear()
            except Told as told:
                return int(told.details)
        if code and journey.output_path:
            raise _Ended(code)
        return code


class _Ended(SystemExit):
    """The command there failed: what it wrote becomes no file."""


def is_simple(words: Sequence[str]) -> bool:
    """Whether a verb names no files of the machine that it is typed on; told without the declarations, whose import costs more than ssh."""
    if words[0] in _STARTING:
        flags = {word.partition("=")[0] for word in words if word.startswith("-")}
        return flags <= _HARMLESS and not any(":/" in word or word.startswith(_ARCHIVES) for word in words)
    family = _FAMILIES.get(words[0])
    return words[1:2] != [] and words[1] in family if family is not None else words[0] in _SIMPLE


def arrive(argv: Sequence[str], invoke: Callable[[list[str]], int]) -> int:
    """What another machine asked for, here: ``argv`` is the flag of the fleet, the version there, a token, encoded words. Raises BulleError."""
    if len(argv) < 3:
        raise InvalidInput(f"{argv[0]} is how machines speak to each other", "", "use bulle -H ssh://HOST VERB")
    flag, version, token, *encoded = (transport.decode(word) for word in argv)
    transport.check_version(version)
    if flag == transport.SIGNAL_FLAG:
        return 0 if transport.signal_command(token, int(encoded[0])) else 1
    if flag == transport.CARRY_FLAG:
        from bulle.engine.home import default_home, prepare_home
        from bulle.fleet.carrying import keep

        prepare_home(default_home())
        return keep(default_home(), sys.stdin.buffer, sys.stdout.buffer)
    if flag == transport.MOVE_FLAG:
        from bulle.cli.live_moving import receive

        return receive()
    return invoke(encoded)
