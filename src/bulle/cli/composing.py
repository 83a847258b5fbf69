"""``bulle compose``: the group, the flags that all its verbs share, and what a verb needs of the app that they name.

A verb is declared with ``@verb(...)`` and ``@pass_app``, which gives it an :class:`App` in place of the session.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, update_wrapper
from typing import TYPE_CHECKING, Any

import click

from bulle.cli.option_types import Choice, Suggestion, Text, Whole
from bulle.cli.session import Session, note, printable
from bulle.cli.verb import UnknownVerb, Verb, VerbGroup, WrongFlag
from bulle.errors import BulleError, CommandNotExecutable, CommandNotFound, InvalidInput, NotFound, RegistryFailure

if TYPE_CHECKING:
    from bulle.compose.model import Note, Project
    from bulle.engine import Container, Engine

_META = "bulle.compose"
_NO_FILE, _WRONG_FILE, _WRONG_FLAG, _NO_IMAGE = 14, 15, 16, 18

COMPOSE_VERBS: dict[str, str] = {
    "create": "composing_up:create",
    "down": "composing_down:down",
    "kill": "composing_lifecycle:kill",
    "pause": "composing_lifecycle:pause",
    "restart": "composing_lifecycle:restart",
    "rm": "composing_lifecycle:remove",
    "rollback": "composing_updates:rollback",
    "scale": "composing_updates:scale",
    "start": "composing_lifecycle:start",
    "stop": "composing_lifecycle:stop",
    "unpause": "composing_lifecycle:unpause",
    "up": "composing_up:up",
    "update": "composing_updates:update",
    "attach": "composing_inside:attach",
    "build": "composing_images:build",
    "chaos": "composing_chaos:chaos",
    "commit": "composing_inside:commit",
    **dict.fromkeys(("config", "convert"), "composing_config:config"),
    "cp": "composing_inside:copy",
    "events": "composing_inside:events",
    "exec": "composing_inside:execute",
    "export": "composing_inside:export",
    "images": "composing_listing:images",
    "logs": "composing_logs:logs",
    "ls": "composing_listing:ls",
    "port": "composing_listing:port",
    "ps": "composing_listing:ps",
    "pull": "composing_images:pull",
    "push": "composing_images:push",
    "run": "composing_run:run",
    "stats": "composing_listing:stats",
    "top": "composing_listing:top",
    "version": "composing_listing:version",
    "volumes": "composing_listing:volumes",
    "wait": "composing_inside:wait",
    "watch": "composing_watch:watch",
}
HIDDEN_VERBS: tuple[str, ...] = ("convert",)


@dataclass(frozen=True)
class Flags:
    """What stood between ``compose`` and the verb."""

    file: Sequence[str] = ()
    project_name: str = ""
    profile: Sequence[str] = ()
    env_file: Sequence[str] = ()
    project_directory: str = ""
    ansi: str = "auto"
    progress: str = "auto"
    parallel: int = -1
    dry_run: bool = False
    compatibility: bool = False
    all_resources: bool = False


@dataclass
class App:
    """The app that a command line speaks of: its files where a verb needs them, else only its name."""

    session: Session
    flags: Flags
    services: tuple[str, ...] = ()
    """Those that the command line names: they are enabled whatever their profiles. To be said before the project is looked at."""
    _notes_said: bool = field(default=False, repr=False)

    @property
    def engine(self) -> Engine:
        """The engine, opened at the first use."""
        return self.session.engine

    @cached_property
    def project(self) -> Project:
        """The project that the files say; raises BulleError where there are none or they are wrong."""
        from bulle.compose.loading import LoadRequest, load  # a verb on a running app needs no files

        flags = self.flags
        request = LoadRequest(
            files=tuple(flags.file), project_name=flags.project_name, project_directory=flags.project_directory, profiles=tuple(flags.profile),
            env_files=tuple(flags.env_file), services=self.services,
        )  # fmt: skip
        try:
            return load(request)
        except NotFound as error:
            raise NoFile(*error.args) from None

    @cached_property
    def name(self) -> str:
        """The app's name: as asked, else as the files say."""
        return self.flags.project_name or self.project.name

    def project_if_any(self) -> Project | None:
        """The project, or None where it was only named (``-p NAME``) and there is no file that says it."""
        if self.flags.project_name and not self.flags.file:
            from bulle.compose.loading import find_files

            if not find_files(self.flags.project_directory):
                return None
        return self.project

    def containers(self, services: Sequence[str] = (), *, one_off: bool = False) -> list[Container]:
        """Its containers by service and number, those of these services or all; those of ``compose run`` as well with ``one_off``."""
        from bulle.compose.actual import containers_of

        return containers_of(self.engine, self.name, services, one_off=one_off)

    def report(self, kind: str, name: str, what: str) -> None:
        """Say on standard error what was done to a part of the app."""
        if self.flags.progress == "json":
            import json

            note(json.dumps({"id": f"{kind} {name}", "status": what}))
        elif self.flags.progress != "quiet":
            dry = " DRY-RUN MODE - " if self.flags.dry_run else ""
            note(f"{dry} {kind} {printable(name)}  {printable(what)}")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one who changes the app; who has to wait for another is told so."""
        from bulle.compose import record

        with record.locked(self.engine, self.name, say=lambda: note(f"another command changes the app {self.name}; waiting for its end")):
            yield

    def say_notes(self, more: Sequence[Note] = ()) -> None:
        """Say once what the files ask for that is done in another way or means nothing here."""
        if not self._notes_said:
            self._notes_said = True
            for one in dict.fromkeys(str(one) for one in (*self.project.notes, *more)):
                note(f"WARNING: {printable(one)}")


class NoFile(NotFound):
    """There is no Compose file."""


def exit_code_of_failure(error: BaseException, verb: str, *, detached: bool) -> int:
    """Docker compose's rule: which number says that the command line failed, and not the workload."""
    if isinstance(error, (WrongFlag, UnknownVerb)):
        return _WRONG_FLAG
    if isinstance(error, NoFile):
        return _NO_FILE
    if isinstance(error, RegistryFailure):
        return _NO_IMAGE
    if verb == "exec" and not detached and isinstance(error, (CommandNotExecutable, CommandNotFound)):
        return error.exit_code
    if isinstance(error, InvalidInput):
        from bulle.compose.document import InvalidFile

        return _WRONG_FILE if isinstance(error, InvalidFile) else 1
    return 1


def pass_app(function: Callable[..., Any]) -> Callable[..., Any]:
    """Call a verb's function with the :class:`App` first. As with docker compose ``--dry-run`` may stand behind the verb as well."""

    def call(*arguments: Any, dry_run_here: bool = False, **keywords: Any) -> Any:
        app = _app(click.get_current_context())
        if dry_run_here:
            app.flags = replace(app.flags, dry_run=True)
        return function(app, *arguments, **keywords)

    made: Callable[..., Any] = update_wrapper(call, function)
    return click.option("--dry-run", "dry_run_here", is_flag=True, help="Execute command in dry run mode")(made)


def _app(context: click.Context) -> App:
    session = context.find_object(Session)
    assert session is not None
    return App(session, context.meta.get(_META) or Flags())


def _compose(**flags: Any) -> None:
    context = click.get_current_context()
    if flags.pop("version"):
        from bulle.cli.session import write
        from bulle.version import VERSION

        write(f"Bulle Compose version {VERSION}\n")
        context.exit()
    context.meta[_META] = Flags(**{name: value for name, value in flags.items() if value is not None})


def complete_services(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of services, for the shell."""
    try:
        return [name for name in _app(context).project.services if name.startswith(incomplete)]
    except (BulleError, OSError):
        return []


def for_root(made: click.Command, summary: str) -> Verb:
    """The same verb without ``compose`` before it, with the flags that say which app."""
    names = [one.name for one in PROJECT_FLAGS]

    def call(**flags: Any) -> Any:
        context = click.get_current_context()
        said = {name: flags.pop(name) for name in names if name is not None}
        context.meta[_META] = Flags(**{name: value for name, value in said.items() if value is not None})
        assert made.callback is not None
        return made.callback(**flags)

    usage = made.usage if isinstance(made, Verb) else ""
    return Verb(made.name, callback=call, params=[*PROJECT_FLAGS, *made.params], help=summary, usage=usage)


PROJECT_FLAGS = (
    click.Option(["-f", "--file"], multiple=True, type=Text("stringArray"), help="Compose configuration files"),
    click.Option(["-p", "--project-name"], type=Text(), help="Project name"),
    click.Option(["--profile"], multiple=True, type=Text("stringArray"), help="Specify a profile to enable"),
    click.Option(["--env-file"], multiple=True, type=Text("stringArray"), help="Specify an alternate environment file"),
    click.Option(["--project-directory"], type=Text(), help="Specify an alternate working directory"),
)  # fmt: skip

compose = VerbGroup(
    "compose",
    callback=_compose,
    help="Define and run applications of several containers.",
    verbs=COMPOSE_VERBS,
    hidden=HIDDEN_VERBS,
    params=[
        *PROJECT_FLAGS,
        click.Option(["--ansi"], type=Choice("never", "always", "auto"), default="auto", help="Control when to print ANSI control characters"),
        click.Option(
            ["--progress"], type=Suggestion("string", "auto", "tty", "plain", "json", "quiet"), default="auto", help="Set type of progress output"
        ),
        click.Option(["--parallel"], type=Whole(-1), default=-1, help="Control max parallelism, -1 for unlimited"),
        click.Option(["--dry-run"], is_flag=True, help="Execute command in dry run mode"),
        click.Option(["--compatibility"], is_flag=True, help="Run compose in backward compatibility mode"),
        click.Option(["--all-resources"], is_flag=True, help="Include all resources, even those not used by services"),
        click.Option(["-v", "--version"], is_flag=True, help="Print the version and exit"),
    ],
)
