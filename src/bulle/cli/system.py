"""``bulle version``, ``info`` and ``doctor``: what this is, what it holds, and what this machine can do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import click

from bulle.cli.option_types import Suggestion
from bulle.cli.session import Session, printable, write
from bulle.cli.table import Listing, render, render_one
from bulle.cli.verb import verb

if TYPE_CHECKING:
    from bulle.engine import Finding

_FORMAT = click.option("-f", "--format", "form", type=Suggestion("string", "json"), default="", help="Format output: 'json', or a Go TEMPLATE")


def _lines(value: Mapping[str, object], indent: str = "") -> Iterator[str]:
    """A mapping as indented ``Name: value`` lines, the form of Docker's ``info`` and ``version``."""
    for name, content in value.items():
        if isinstance(content, Mapping):
            yield f"{indent}{name}:"
            yield from _lines(content, indent + " ")
        elif isinstance(content, (list, tuple)) and content and isinstance(content[0], Mapping):
            yield f"{indent}{name}:"
            for one in content:
                yield from _lines(one, indent + " ")
        else:
            yield f"{indent}{name}: {printable(_plain(content))}"


def _plain(content: object) -> str:
    if isinstance(content, (list, tuple)):
        return " ".join(map(str, content))
    return str(content).lower() if isinstance(content, bool) else "" if content is None else str(content)


def _show(value: Mapping[str, object], form: str) -> int:
    write(render_one(value, form) if form else "".join(line + "\n" for line in _lines(value)))
    return 0


@verb("version")
@_FORMAT
@click.pass_obj
def version(session: Session, form: str) -> int:
    """Show the version of Bulle and of what it runs on."""
    return _show(session.engine.version(), form)


@verb("info")
@_FORMAT
@click.pass_obj
def info(session: Session, form: str) -> int:
    """Display system-wide information."""
    return _show(session.engine.info(), form)


_FINDINGS: Listing[Finding] = Listing(
    fields={
        "Subject": ("SUBJECT", lambda one: one.subject),
        "OK": ("OK", lambda one: one.ok),
        "Found": ("FOUND", lambda one: one.found),
        "Mend": ("MEND", lambda one: one.mend),
    },
    columns=(),
    methods={},
)


@verb("doctor")
@_FORMAT
@click.pass_obj
def doctor(session: Session, form: str) -> int:
    """Say what this machine can and cannot do, and the command that would mend it."""
    findings = session.engine.doctor()
    if form:
        write(render(_FINDINGS, findings, form))
        return 0
    width = max((len(one.subject) for one in findings), default=0)
    for one in findings:
        write(f"{'yes' if one.ok else ' no'}  {one.subject.ljust(width)}  {printable(one.found)}\n")
        if one.mend and not one.ok:
            write(f"{'':{width + 5}}  mend: {printable(one.mend)}\n")
    return 0
