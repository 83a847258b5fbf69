"""Prints docs/reference.md: every command and flag, from the command line itself. Run by ``make reference``; a style test holds the page to it."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator

import click

HEAD = """# The command line

Written by `make reference` from the commands themselves. Docker's verbs, flags and exit codes, unless
[differences.md](differences.md) says otherwise.
"""


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """Every visible command below a group, with its full name, in alphabetical order."""
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=name)
        for child in sorted(command.list_commands(context)):
            found = command.get_command(context, child)
            if found is not None and not found.hidden:
                yield from commands(found, f"{name} {child}")


def flag(option: click.Option) -> str:
    """One row of the table of flags."""
    names = ", ".join(f"`{name}`" for name in sorted([*option.opts, *option.secondary_opts], key=lambda name: (len(name) > 2, name)))
    value = "" if option.is_flag or option.count else f" {option.metavar or option.type.name.upper()}".replace("|", "\\|")
    meaning = " ".join((option.help or "").split()).replace("|", "\\|")
    return f"| {names}{value} | {meaning} |"


def section(name: str, command: click.Command, told: dict[object, str]) -> Iterator[str]:
    """The part of the page about one command; one that was told already under another name only points there."""
    if command.callback in told and not isinstance(command, click.Group):
        yield f"\n## `{name}`\n"
        yield f"The same as `{told[command.callback]}`.\n"
        return
    told[command.callback] = name
    arguments = [parameter.make_metavar(click.Context(command)) for parameter in command.params if isinstance(parameter, click.Argument)]
    yield f"\n## `{name}`\n"
    if not isinstance(command, click.Group):
        yield f"`{' '.join([name, '[OPTIONS]', *arguments])}`\n"
    yield inspect.cleandoc((command.help or "").replace("\b", "")).split("\f")[0].strip() + "\n"
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option) and not parameter.hidden]
    if options:
        yield "| flag | meaning |\n| --- | --- |"
        yield from (flag(option) for option in options)


def main() -> None:
    """Print the page."""
    from bulle.cli import main as command_line

    group = command_line.ROOT
    lines = [HEAD.rstrip()]
    told: dict[object, str] = {}
    # Short names first: `bulle container run` then points to `bulle run`.
    for name, command in sorted(commands(group, "bulle"), key=lambda found: (found[0].count(" "), found[0])):
        lines += section(name, command, told)
    sys.stdout.write(re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n")


if __name__ == "__main__":
    main()
