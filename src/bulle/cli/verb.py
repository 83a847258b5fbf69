"""How a command line is read: click's commands with the grammar of Docker's flags.

Every verb is a :class:`Verb` (a click command), every group of verbs a :class:`VerbGroup`. click supplies the declarations, the types, the help
and the shell completion; the walk over the arguments is ours, because Docker's users write ``--rm=false``, ``-e=A=1`` and ``-it``, know its
error messages, and because only the flags that were given cost time. It does not run anything and prints nothing but help.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click
from click.core import ParameterSource

from bulle.errors import InvalidInput

_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})


INVOKED = "bulle.invoked"
"""Where in ``Context.meta`` the context is of the verb that stands on the command line."""


class WrongUsage(click.UsageError):
    """A command line that cannot be right; ``main`` shows it with the verb's usage line."""


class WrongFlag(WrongUsage):
    """A flag that does not exist, or a value that it cannot have."""


class UnknownVerb(WrongUsage):
    """A verb that does not exist."""


class WrongValue(InvalidInput):
    """A flag's value that cannot be right, found when all flags were read; one sentence, without the usage line."""


def flag_name(option: click.Option) -> str:
    """How an error names a flag: ``-m, --memory``."""
    return ", ".join(sorted(option.opts, key=len))


class _Unknown(Exception):
    pass


@dataclass
class _Line:
    """What was found on one command line."""

    given: list[tuple[click.Option, str | bool]] = field(default_factory=list)
    positional: list[str] = field(default_factory=list)


class _Flags:
    """The flags of one command by name, and their values when they are not given."""

    def __init__(self, command: click.Command, context: click.Context) -> None:
        self.parameters = command.get_params(context)
        self.by_name: dict[str, click.Option] = {}
        self.defaults: dict[str, Any] = {}
        self.arguments = [one for one in self.parameters if isinstance(one, click.Argument)]
        for option in self.parameters:
            if isinstance(option, click.Option) and option.name is not None:
                self.by_name.update(dict.fromkeys(option.opts, option))
                if option.expose_value:
                    self.defaults[option.name] = _default_of(option)

    def find(self, name: str, message: str) -> click.Option:
        option = self.by_name.get(name)
        if option is None:
            raise _Unknown(message)
        return option

    def walk(self, arguments: Sequence[str], *, interspersed: bool) -> _Line:
        """Sort the arguments into flags and positional ones; raises _Unknown with Docker's words."""
        line = _Line()
        rest = list(reversed(arguments))
        while rest:
            text = rest.pop()
            if text == "--":
                line.positional += reversed(rest)
                break
            if text.startswith("--"):
                self._long(text, rest, line)
            elif text.startswith("-") and text != "-":
                self._short(text, rest, line)
            else:
                line.positional.append(text)
                if not interspersed:
                    line.positional += reversed(rest)
                    break
        return line

    def _long(self, text: str, rest: list[str], line: _Line) -> None:
        name, equals, value = text.partition("=")
        option = self.find(name, f"unknown flag: {name}")
        if option.is_flag:
            line.given.append((option, _boolean(value, option) if equals else True))
        elif equals:
            line.given.append((option, value))
        elif isinstance(option.flag_value, str):  # its value is only ever behind an equals sign
            line.given.append((option, option.flag_value))
        elif rest:
            line.given.append((option, rest.pop()))
        else:
            raise _Unknown(f"flag needs an argument: {name}")

    def _short(self, text: str, rest: list[str], line: _Line) -> None:
        letters = text[1:]
        while letters:
            option = self.find("-" + letters[0], f"unknown shorthand flag: '{letters[0]}' in {text}")
            letter, letters = letters[0], letters[1:]
            if option.is_flag:
                if letters.startswith("="):
                    line.given.append((option, _boolean(letters[1:], option)))
                    return
                line.given.append((option, True))
                continue
            if letters:
                line.given.append((option, letters.removeprefix("=")))
            elif rest:
                line.given.append((option, rest.pop()))
            else:
                raise _Unknown(f"flag needs an argument: '{letter}' in {text}")
            return


def _default_of(option: click.Option) -> Any:
    if option.multiple:
        return ()
    default = option.default
    if option.is_flag:
        return default is True
    # click marks "no default" with a sentinel of its own that changed between its versions.
    return default if isinstance(default, (str, int, float)) else None


def _boolean(value: str, option: click.Option) -> bool:
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise _Unknown(f'invalid argument "{value}" for "{flag_name(option)}" flag: it is true or false')


class Verb(click.Command):
    """One verb. ``usage`` is what follows the verb in its usage line; ``interspersed`` says whether flags may follow arguments."""

    def __init__(self, *arguments: Any, usage: str = "", interspersed: bool = True, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.usage = usage
        self.interspersed = interspersed
        self._flags: _Flags | None = None

    def flags(self, context: click.Context) -> _Flags:
        """The flags by name, made once for the life of the process."""
        if self._flags is None:
            self._flags = _Flags(self, context)
        return self._flags

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """The usage line after the verb's name."""
        return ["[OPTIONS]", self.usage] if self.usage else ["[OPTIONS]"]

    def read(self, ctx: click.Context, args: Sequence[str]) -> tuple[list[tuple[click.Option, str | bool]], list[str]]:
        """The flags that are given, in order, with their values as text, and the arguments; nothing is converted or run. Raises WrongFlag."""
        try:
            line = self.flags(ctx).walk(args, interspersed=self.interspersed)
        except _Unknown as unknown:
            raise WrongFlag(str(unknown), ctx) from None
        return line.given, line.positional

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Fill ``ctx.params``; raises WrongUsage."""
        ctx.meta[INVOKED] = ctx
        ctx._opt_prefixes.update(("-", "--"))  # click's parser would say so; completion asks
        flags = self.flags(ctx)
        try:
            line = flags.walk(args, interspersed=self.interspersed)
        except _Unknown as unknown:
            if not ctx.resilient_parsing:
                raise WrongFlag(str(unknown), ctx) from None
            line = _Line(positional=[text for text in args if not text.startswith("-")])
        ctx.params.update(flags.defaults)
        _store(ctx, line)
        self._store_arguments(ctx, flags.arguments, line.positional)
        return []

    def _store_arguments(self, ctx: click.Context, arguments: Sequence[click.Argument], positional: list[str]) -> None:
        fewest = sum(1 for one in arguments if one.required)
        most = None if any(one.nargs == -1 for one in arguments) else len(arguments)
        if not ctx.resilient_parsing and (len(positional) < fewest or (most is not None and len(positional) > most)):
            raise WrongUsage(f"'{ctx.command_path}' {_expected(fewest, most)}", ctx)
        rest = list(positional)
        for argument in arguments:
            given: str | tuple[str, ...] | None = tuple(rest) if argument.nargs == -1 else rest.pop(0) if rest else None
            if argument.name is not None:
                ctx.params[argument.name] = given
                if given:
                    ctx.set_parameter_source(argument.name, ParameterSource.COMMANDLINE)


def _store(ctx: click.Context, line: _Line) -> None:
    for option, value in line.given:
        name = option.name or ""
        if not option.expose_value:  # click's own --help, the only flag of that kind
            click.echo(ctx.get_help(), color=ctx.color)
            ctx.exit()
        converted = value
        if isinstance(value, str) and not ctx.resilient_parsing:
            try:
                converted = option.type.convert(value, option, ctx)
            except click.BadParameter as error:
                raise WrongFlag(f'invalid argument "{value}" for "{flag_name(option)}" flag: {error.message}', ctx) from None
        ctx.params[name] = (*ctx.params.get(name, ()), converted) if option.multiple else converted
        ctx.set_parameter_source(name, ParameterSource.COMMANDLINE)


def _expected(fewest: int, most: int | None) -> str:
    def counted(number: int) -> str:
        return f"{number} argument{'' if number == 1 else 's'}"

    if most == 0:
        return "accepts no arguments"
    if most is None:
        return f"requires at least {counted(fewest)}"
    if fewest == most:
        return f"requires {counted(fewest)}"
    return f"accepts at most {counted(most)}" if fewest == 0 else f"requires at least {fewest} and at most {counted(most)}"


class VerbGroup(Verb, click.Group):
    """A group whose verbs are imported when they are asked for: ``verbs`` maps a name to ``module:attribute`` below ``bulle.cli``.

    Names in ``hidden`` work but are not listed (``container list`` is ``container ls``).
    """

    def __init__(self, *arguments: Any, verbs: Mapping[str, str], hidden: Sequence[str] = (), **attributes: Any) -> None:
        super().__init__(*arguments, usage="COMMAND", interspersed=False, **attributes)
        self.verbs = verbs
        self.hidden_verbs = frozenset(hidden)
        self._loaded: dict[str, click.Command] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names that help and completion show."""
        return sorted(name for name in self.verbs if name not in self.hidden_verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb of that name, imported now if it was not."""
        if cmd_name not in self._loaded:
            place = self.verbs.get(cmd_name)
            if place is None:
                return None
            module, _, attribute = place.partition(":")
            self._loaded[cmd_name] = getattr(importlib.import_module(f"bulle.cli.{module}"), attribute)
        return self._loaded[cmd_name]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options, then the verbs."""
        click.Command.format_options(self, ctx, formatter)
        self.format_commands(ctx, formatter)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Fill ``ctx.params`` with the group's own flags, and leave the verb and what follows it in ``ctx.args``."""
        ctx._opt_prefixes.update(("-", "--"))  # click's parser would say so; completion asks
        flags = self.flags(ctx)
        try:
            line = flags.walk(args, interspersed=False)
        except _Unknown as unknown:
            if not ctx.resilient_parsing:
                raise WrongFlag(str(unknown), ctx) from None
            line = _Line(positional=[text for text in args if not text.startswith("-")])
        ctx.params.update(flags.defaults)
        _store(ctx, line)
        ctx.args = line.positional
        return ctx.args

    def invoke(self, ctx: click.Context) -> Any:
        """Run the group's own callback, then the verb; returns what the verb returns."""
        if self.callback is not None:
            ctx.invoke(self.callback, **ctx.params)
        if not ctx.args:
            click.echo(ctx.get_help(), color=ctx.color)
            return 0
        name = ctx.args[0]
        command = self.get_command(ctx, name)
        if command is None:
            raise UnknownVerb(f"unknown command: {ctx.command_path} {name}", ctx)
        with command.make_context(name, ctx.args[1:], parent=ctx) as inner:
            return command.invoke(inner)


def verb(name: str, usage: str = "", *, interspersed: bool = True) -> Callable[[Callable[..., Any]], Verb]:
    """Declare a verb; its function's docstring is its help."""

    def decorate(function: Callable[..., Any]) -> Verb:
        made = click.command(name, cls=Verb, usage=usage, interspersed=interspersed)(function)
        assert isinstance(made, Verb)
        return made

    return decorate
