"""The kinds of value that flags take: sizes, processors, pairs, signals, and names that a shell can complete.

Verbs name them in their declarations; each turns one string into one value or says in a few words why it cannot. Names are completed by asking
the engine.
"""

from __future__ import annotations

import signal
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from bulle.cli import human
from bulle.cli.session import Session
from bulle.errors import BulleError, InvalidInput
from bulle.model.quantities import duration_ns

if TYPE_CHECKING:
    from collections.abc import Iterable


class Size(click.ParamType[int]):
    """Bytes: ``512m``, ``1.5g``; -1 where ``unlimited`` is allowed."""

    name = "bytes"

    def __init__(self, unlimited: bool = False) -> None:
        self.unlimited = unlimited

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number of bytes."""
        if self.unlimited and value == "-1":
            return -1
        try:
            return human.parse_size(value)
        except InvalidInput as error:
            raise click.BadParameter(str(error), ctx, param) from None


class NanoCpus(click.ParamType[int]):
    """Processors as a decimal number: ``1.5`` is 1,500,000,000 billionths."""

    name = "decimal"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Billionths of a processor."""
        try:
            exact = Decimal(value) * 1_000_000_000
            if exact == exact.to_integral_value() and exact >= 0:
                return int(exact)
        except (InvalidOperation, OverflowError):
            pass
        raise click.BadParameter(f"'{value}' is not a number of processors (such as 1.5)", ctx, param)


class Whole(click.ParamType[int]):
    """A whole number, not below ``lowest``."""

    name = "int"

    def __init__(self, lowest: int | None = None) -> None:
        self.lowest = lowest

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number."""
        try:
            number = int(value)
        except ValueError:
            raise click.BadParameter(f"'{value}' is not a whole number", ctx, param) from None
        if self.lowest is not None and number < self.lowest:
            raise click.BadParameter(f"it must be {self.lowest} or more", ctx, param)
        return number


class Signal(click.ParamType[str]):
    """A signal by name or number: ``TERM``, ``SIGTERM``, ``15``, ``RTMIN+3``."""

    name = "signal"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The value as it came, once it is known to be a signal."""
        name = value.upper().removeprefix("SIG")
        if value.isdecimal() and 0 < int(value) < signal.NSIG:
            return value
        base, plus, offset = name.partition("+")
        if base in {"RTMIN", "RTMAX"} and (not plus or offset.isdecimal()):
            return name
        base, minus, offset = name.partition("-")
        if base == "RTMAX" and minus and offset.isdecimal():
            return name
        if f"SIG{name}" in signal.Signals.__members__:
            return name
        raise InvalidInput(f"invalid signal: '{value}' is not a signal", "", "see `kill -l` for names")

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The names of the signals."""
        return _matching((one.name.removeprefix("SIG") for one in signal.Signals), incomplete.upper())


class Time(click.ParamType[int]):
    """A moment: a date, a Unix time, or a span before now; nanoseconds since the epoch."""

    name = "time"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Nanoseconds since the epoch."""
        try:
            return human.parse_time_ns(value)
        except InvalidInput as error:
            raise InvalidInput(f'invalid value for "{param.name if param else self.name}"', str(error)) from None


class Duration(click.ParamType[int]):
    """A span of time as Go writes it (``1m30s``), or a number of seconds; nanoseconds."""

    name = "duration"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Nanoseconds, not negative."""
        try:
            nanoseconds = round(float(value) * 1e9) if value.replace(".", "", 1).isdecimal() else duration_ns(value)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from None
        if nanoseconds < 0:
            raise click.BadParameter("it is negative", ctx, param)
        return nanoseconds


class Choice(click.ParamType[str]):
    """One of a few words; Docker's words for what is wrong."""

    def __init__(self, *words: str) -> None:
        self.words = words
        self.name = "|".join(words)

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The word."""
        if value in self.words:
            return value
        raise click.BadParameter(f"it is one of {', '.join(self.words)}", ctx, param)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The words."""
        return _matching(self.words, incomplete)


class Suggestion(click.ParamType[str]):
    """Any string; the words are what completion offers."""

    def __init__(self, name: str, *words: str) -> None:
        self.name = name
        self.words = words

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The value as it came."""
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The words."""
        return _matching(self.words, incomplete)


PLATFORM = Suggestion("string", "linux/amd64", "linux/arm64", "linux/arm/v7", "linux/riscv64")
"""A platform: what is no platform is refused by whoever looks for its image."""


class Text(Suggestion):
    """A string with a name of its own in the help."""

    def __init__(self, name: str = "string") -> None:
        super().__init__(name)


class HostPath(Text):
    """A path of the caller, completed by the shell."""

    def __init__(self) -> None:
        super().__init__("file")

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """What the shell itself knows about files."""
        return [CompletionItem(incomplete, type="file")]


def _matching(words: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(word) for word in sorted(set(words)) if word.startswith(incomplete)]


def complete_containers(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names of all containers."""
    session = ctx.find_object(Session)
    try:
        return _matching((one.name for one in session.engine.containers.list(all=True)), incomplete) if session else []
    except (BulleError, OSError):
        return []  # a shell that completes a word is no place for messages


def complete_networks(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names of all networks."""
    session = ctx.find_object(Session)
    try:
        return _matching((one.name for one in session.engine.networks.list()), incomplete) if session else []
    except (BulleError, OSError):
        return []


def complete_images(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names of all images, as a user would write them."""
    from bulle.model.reference import Reference

    session = ctx.find_object(Session)
    try:
        images = session.engine.images.list() if session else []
        return _matching((Reference.parse(name).familiar for one in images for name in one.references), incomplete)
    except (BulleError, OSError):
        return []


def complete_volumes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names of all volumes."""
    session = ctx.find_object(Session)
    try:
        return _matching((one.name for one in session.engine.volumes.list()), incomplete) if session else []
    except (BulleError, OSError):
        return []
