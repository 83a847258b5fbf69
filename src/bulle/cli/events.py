"""``bulle events``: what happens to containers and images, a line each as it happens, in Docker's words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import click
import msgspec

from bulle.cli.filters import parse
from bulle.cli.human import NANOSECONDS
from bulle.cli.option_types import Suggestion, Time
from bulle.cli.session import Session, printable, write
from bulle.cli.verb import verb
from bulle.engine.events import FILTER_KEYS, event_document, summary_of

if TYPE_CHECKING:
    from bulle.records.events import Event


@verb("events")
@click.option("--since", type=Time(), help="Show all events created since timestamp")
@click.option("--until", type=Time(), help="Stream events until this timestamp")
@click.option("-f", "--filter", "wanted", multiple=True, type=Suggestion("filter", *(f"{key}=" for key in FILTER_KEYS)), help="Filter output")
@click.option("--format", "form", type=Suggestion("string", "json"), default="", help="Format output: 'json', or a Go TEMPLATE")
@click.pass_obj
def events(session: Session, since: int | None, until: int | None, wanted: Sequence[str], form: str) -> int:
    """Get real time events from the home."""
    shown = _shown(form)
    with session.engine.events(since_ns=since or 0, until_ns=until or 0, filters=parse(wanted, FILTER_KEYS)) as found:
        for event in found:
            write(shown(event) + "\n")
    return 0


def _shown(form: str) -> Callable[[Event], str]:
    if not form:
        return _line
    if form in {"json", "{{json .}}"}:
        return lambda event: msgspec.json.encode(event_document(event)).decode()
    from bulle.cli.go_template import Template

    template = Template(form.replace("\\t", "\t").replace("\\n", "\n"))
    return lambda event: template.execute(_fields(event))


def _line(event: Event) -> str:
    seconds, nanoseconds = divmod(event.time_ns, NANOSECONDS)
    moment = datetime.fromtimestamp(seconds).astimezone()
    offset = moment.strftime("%z")
    zone = "Z" if offset == "+0000" else f"{offset[:3]}:{offset[3:]}"
    attributes = ", ".join(f"{name}={value}" for name, value in sorted(event.actor.attributes.items()))
    text = f"{moment:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}{zone} {event.kind} {event.action} {event.actor.identifier}"
    return printable(f"{text} ({attributes})" if attributes else text)


class _Attributes(dict[str, str]):
    """What a template finds: no value, where Go finds none in its map."""

    def __missing__(self, name: str) -> None:
        return None


def _fields(event: Event) -> Mapping[str, object]:
    """The event as templates name it."""
    summary = summary_of(event)
    actor = {"ID": event.actor.identifier, "Attributes": _Attributes(event.actor.attributes)}
    return {
        "Status": summary.get("status", ""),
        "ID": summary.get("id", ""),
        "From": summary.get("from", ""),
        "Type": event.kind,
        "Action": event.action,
        "Actor": actor,
        "Scope": event.scope,
        "Time": event.time_s,
        "TimeNano": event.time_ns,
    }
