"""Prints docs/reference.md: every command and flag, from the command line itself. Run by ``make reference``; a style test holds the page to it."""

from __future__ import annotations

import inspect
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


def section(name: str, command: click.Command) -> Iterator[str]:
    """The part of the page about one command."""
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

    group = next(value for value in vars(command_line).values() if isinstance(value, click.Group))
    lines = [HEAD.rstrip()]
    for name, command in commands(group, "bulle"):
        lines += section(name, command)
    sys.stdout.write("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
