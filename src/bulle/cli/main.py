"""The command line: the root group, its verbs, and the one place where an error becomes a sentence and an exit code.

``python -m bulle`` and the spawner call :func:`run` with the arguments after the program's name; tests give it another engine. Verbs are
imported when they are asked for; the spawner calls :func:`preload` once, before it forks. Nothing here knows what a verb does.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bulle.cli.session import Reported, Session, complain, note, open_default_engine, write
from bulle.cli.terminal import Interrupted
from bulle.cli.verb import INVOKED, Verb, VerbGroup, WrongFlag, WrongValue
from bulle.errors import BulleError, CommandNotExecutable, CommandNotFound, StorageFull
from bulle.version import VERSION

if TYPE_CHECKING:
    from bulle.engine import Engine

PROGRAM = "bulle"
COMPLETION_VARIABLE = "_BULLE_COMPLETE"
FAILED = 1
WRONG_FLAG = 125
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

CONTAINER_VERBS = {
    "attach": "attaching:attach",
    "commit": "image_making:commit",
    "cp": "copying:copy",
    "create": "running:create",
    "diff": "copying:diff",
    "exec": "attaching:execute",
    "export": "copying:export",
    "kill": "lifecycle:kill",
    "logs": "logs:logs",
    "pause": "pausing:pause",
    "port": "ports:port",
    "rename": "renaming:rename",
    "restart": "restarting:restart",
    "rm": "lifecycle:remove",
    "run": "running:run",
    "start": "lifecycle:start",
    "stats": "statistics:stats",
    "stop": "lifecycle:stop",
    "top": "processes:top",
    "unpause": "pausing:unpause",
    "update": "updating:update",
    "wait": "lifecycle:wait",
    "why": "why:why",
}
IMAGE_VERBS = {
    "build": "building:build",
    "history": "image_making:history",
    "import": "image_making:import_image",
    "load": "image_transfer:load",
    "pull": "image_transfer:pull",
    "push": "image_transfer:push",
    "save": "image_transfer:save",
    "tag": "images:tag",
}
SYSTEM_VERBS = {"events": "events:events", "info": "system:info"}
BUILDER_VERBS = {"prune": "cleaning:prune_builder"}
VERBS = {
    **CONTAINER_VERBS,
    **IMAGE_VERBS,
    **SYSTEM_VERBS,
    "builder": "main:builder",
    "compare": "comparing:compare",
    "completion": "completion:completion",
    "compose": "composing:compose",
    "container": "main:container",
    "context": "serving:context",
    "down": "composing_down:root_down",
    "doctor": "system:doctor",
    "image": "main:image",
    "images": "images:images",
    "inspect": "inspection:inspect",
    "login": "login:login",
    "logout": "login:logout",
    "manifest": "main:manifest",
    "network": "main:network",
    "ps": "processes:ps",
    "rmi": "images:remove",
    "search": "image_search:search",
    "serve": "serving:serve",
    "system": "main:system",
    "up": "composing_up:root_up",
    "version": "system:version",
    "volume": "main:volume",
}

container = VerbGroup(
    "container",
    help="Manage containers.",
    verbs={
        **CONTAINER_VERBS,
        "inspect": "inspection:inspect_container",
        **dict.fromkeys(("ls", "list", "ps"), "processes:ps"),
        "prune": "cleaning:prune_containers",
        "remove": "lifecycle:remove",
    },
    hidden=("list", "ps", "remove"),
)
image = VerbGroup(
    "image",
    help="Manage images.",
    verbs={
        **IMAGE_VERBS,
        "inspect": "inspection:inspect_image",
        "referrers": "manifests:referrers",
        **dict.fromkeys(("ls", "list"), "images:images"),
        "mount": "image_mounting:mount",
        "prune": "cleaning:prune_images",
        **dict.fromkeys(("unmount", "umount"), "image_mounting:unmount"),
        "verify": "image_verify:verify",
        **dict.fromkeys(("rm", "remove"), "images:remove"),
    },
    hidden=("list", "remove", "umount"),
)
manifest = VerbGroup(
    "manifest",
    help="Manage indexes: several images under one name, one for each platform.",
    verbs={
        "add": "manifests:add",
        "annotate": "manifests:annotate",
        "create": "manifests:create",
        "inspect": "manifests:inspect",
        **dict.fromkeys(("ls", "list"), "manifests:ls"),
        "push": "manifests:push",
        "remove": "manifests:remove",
        "rm": "manifests:delete",
    },
    hidden=("list",),
)
network = VerbGroup(
    "network",
    help="Manage networks.",
    verbs={
        "connect": "networks:connect",
        "create": "networks:create",
        "disconnect": "networks:disconnect",
        "inspect": "networks:inspect",
        **dict.fromkeys(("ls", "list"), "networks:ls"),
        "prune": "networks:prune",
        **dict.fromkeys(("rm", "remove"), "networks:remove"),
        "rules": "networks:rules",
    },
    hidden=("list", "remove"),
)
system = VerbGroup(
    "system",
    help="Manage Bulle.",
    verbs={
        **SYSTEM_VERBS,
        "boot": "booting:boot",
        "df": "usage:disk_usage",
        "install": "booting:install",
        "prune": "cleaning:prune_system",
        "shutdown": "booting:shutdown",
    },
)
volume = VerbGroup(
    "volume",
    help="Manage volumes.",
    verbs={
        "clone": "volumes:clone",
        "create": "volumes:create",
        "export": "volumes:export",
        "import": "volumes:import_volume",
        "inspect": "volumes:inspect",
        **dict.fromkeys(("ls", "list"), "volumes:ls"),
        "prune": "volumes:prune",
        **dict.fromkeys(("rm", "remove"), "volumes:remove"),
    },
    hidden=("list", "remove"),
)
builder = VerbGroup("builder", help="Manage the build cache.", verbs=BUILDER_VERBS)


def _root(home: str | None, debug: bool, version: bool) -> None:
    context = click.get_current_context()
    session = context.find_object(Session)
    assert session is not None
    if version:
        write(f"Bulle version {VERSION}\n")
        context.exit()
    session.debug = debug
    session.meta = context.meta
    if home is not None:
        session.home = Path(home).absolute()


ROOT = VerbGroup(
    PROGRAM,
    callback=_root,
    help="Run the same image as a private root or a container, from one command.",
    verbs=VERBS,
    params=[
        click.Option(["--home"], metavar="DIR", help="Where images and containers are kept (default: $BULLE_HOME, else the user's own place)."),
        click.Option(["--debug"], is_flag=True, help="Show where an error came from."),
        click.Option(["-v", "--version"], is_flag=True, help="Print the version and exit."),
    ],
)


def preload() -> None:
    """Import every verb and what it imports late, so that processes forked from this one find them ready."""
    late = ("cli.go_template", "cli.progress", "build.platforms", "engine.mounting", "engine.volume_archives", "isolation.emulation")
    for name in (*late, "api.job_process", "api.works", "compose.loading", "compose.one_off"):
        importlib.import_module(f"bulle.{name}")
    context = click.Context(ROOT, info_name=PROGRAM)
    groups = [ROOT]
    for group in groups:
        for name in group.verbs:
            command = group.get_command(context, name)
            if isinstance(command, VerbGroup):
                groups.append(command)
            if isinstance(command, Verb):
                command.flags(context)


def run(argv: Sequence[str], open_engine: Callable[[Path | None], Engine] = open_default_engine) -> int:
    """Run one command line (without the program's name) and return its exit code; never raises, never exits."""
    session = Session(open_engine)
    try:
        return _invoke(list(argv), session)
    except BaseException as error:  # noqa: BLE001 - the outermost frame: whatever happened becomes a sentence and a code
        if session.debug:
            import traceback

            traceback.print_exception(error)
        return _report(error, session)
    finally:
        try:
            session.close()
        except (BulleError, OSError) as error:
            complain(str(error))


def _invoke(argv: list[str], session: Session) -> int:
    instruction = os.environ.get(COMPLETION_VARIABLE)
    if instruction:
        from click.shell_completion import shell_complete

        return shell_complete(ROOT, {"obj": session}, PROGRAM, COMPLETION_VARIABLE, instruction)
    with ROOT.make_context(PROGRAM, argv, obj=session) as context:
        result = ROOT.invoke(context)
    sys.stdout.flush()
    return result if isinstance(result, int) else 0


def exit_code_of_failure(error: BaseException, verb: str, *, detached: bool) -> int:
    """Docker's rule, verb by verb: which number says that the command line failed, and not the workload.

    ``run`` has the error's own: 125, and 126 or 127 for a command that cannot be executed or found. So has ``exec`` for its command, unless it
    only leaves it behind (``-d``). A flag that does not exist or a value that it cannot have is 125 everywhere; all else is 1.
    """
    if isinstance(error, (WrongFlag, WrongValue)):
        return WRONG_FLAG
    if isinstance(error, click.ClickException):
        return FAILED
    if verb == "exec" and not detached and isinstance(error, (CommandNotExecutable, CommandNotFound)):
        return error.exit_code
    if verb == "run":
        return error.exit_code if isinstance(error, BulleError) else BulleError.exit_code
    return FAILED


def _exit_code(error: BaseException, session: Session) -> int:
    invoked = session.meta.get(INVOKED)
    verb, detached = ("", False) if invoked is None else (invoked.command.name or "", bool(invoked.params.get("detach")))
    wrong = error.ctx if isinstance(error, click.UsageError) else None
    if "bulle.compose" in session.meta or (wrong is not None and wrong.command.name == "compose"):
        from bulle.cli.composing import exit_code_of_failure as of_compose

        return of_compose(error, verb, detached=detached)
    return exit_code_of_failure(error, verb, detached=detached)


def _report(error: BaseException, session: Session) -> int:
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILED
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return 130
    if isinstance(error, Interrupted):
        return 128 + error.number
    if isinstance(error, BrokenPipeError):
        return _pipe_closed()
    if isinstance(error, Reported):
        return _exit_code(error.error, session)
    if isinstance(error, OSError):
        error = _explained(error)
    if isinstance(error, RecursionError):
        error = BulleError("directories or documents are nested too deeply to be followed", "", "take apart what is so deep")
    if isinstance(error, click.ClickException):
        _say_usage(error)
    elif isinstance(error, BulleError):
        complain(str(error))
    else:
        complain(f"internal error ({type(error).__name__}: {error}); this is a mistake in Bulle, `bulle --debug …` shows where")
    return _exit_code(error, session)


def _explained(error: OSError) -> BulleError:
    place = f" ({error.filename})" if error.filename else ""
    if error.errno in _FULL:
        return StorageFull("there is no space left", f"{error.strerror}{place}", "make room, or move the state with --home")
    return BulleError(f"{error.strerror or error}{place}")


def _say_usage(error: click.ClickException) -> None:
    complain(error.format_message().rstrip("."))
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is not None:
        pieces = " ".join(context.command.collect_usage_pieces(context))
        note(f"\nUsage:  {context.command_path} {pieces}\n\nRun '{context.command_path} --help' for more information")


def _pipe_closed() -> int:
    # The reader has gone; what is still in the buffers must not fail a second time when the process ends.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return 141
