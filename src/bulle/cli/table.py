"""Listings: the same rows as an aligned table, as JSON lines, or through the user's own template.

``ps``, ``images`` and the others make one :class:`Row` per thing and hand them to :func:`render`. A field is computed only when the form that
was asked for shows it. Columns are aligned as Go's tabwriter does it for Docker (at least ten wide, three blanks between).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from bulle.cli.session import printable

FORMAT_HELP = "Format output: 'table', 'table TEMPLATE', 'json', or a Go TEMPLATE"
"""What the flag ``--format`` of every listing says of itself."""

Thing = TypeVar("Thing")
_LEAST_WIDTH = 10
_GAP = 3


@dataclass(frozen=True)
class Listing(Generic[Thing]):
    """What a verb lists: every field with the heading and how it is computed, and the columns that are shown unless asked otherwise.

    ``methods`` are what a template may call with an argument (``{{.Label "key"}}``); they are no part of the JSON form.
    """

    fields: Mapping[str, tuple[str, Callable[[Thing], object]]]
    columns: Sequence[str]
    methods: Mapping[str, tuple[str, Callable[[Thing], Callable[..., object]]]]


class Row(Mapping[str, object], Generic[Thing]):
    """One thing seen through a listing: a mapping whose values are computed when they are asked for."""

    def __init__(self, listing: Listing[Thing], thing: Thing) -> None:
        self._listing = listing
        self._thing = thing

    def __getitem__(self, name: str) -> object:
        if name in self._listing.fields:
            return self._listing.fields[name][1](self._thing)
        return self._listing.methods[name][1](self._thing)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._listing.fields))

    def __len__(self) -> int:
        return len(self._listing.fields)


def render(listing: Listing[Thing], things: Iterable[Thing], form: str = "", columns: Sequence[str] = ()) -> str:
    """The whole listing as text. ``form`` is what the user gave to ``--format``: nothing, ``table``, ``table TEMPLATE``, ``json`` or a template."""
    rows = [Row(listing, thing) for thing in things]
    form = form.strip(" ")
    if form in {"", "table"}:
        shown = columns or listing.columns
        lines = [[listing.fields[name][0] for name in shown]]
        lines += [[printable(str(row[name])) for name in shown] for row in rows]
        return align(lines)
    if form in {"json", "{{json .}}"}:
        return "".join(msgspec.json.encode(dict(row)).decode() + "\n" for row in rows)
    return _through_template(listing, rows, form)


def _through_template(listing: Listing[Thing], rows: Sequence[Row[Thing]], form: str) -> str:
    from bulle.cli.go_functions import HEADER_FUNCTIONS
    from bulle.cli.go_template import Template

    form = form.replace("\\t", "\t").replace("\\n", "\n")
    word, _, rest = form.partition(" ")
    if word != "table":
        template = Template(form)
        return "".join(template.execute(row) + "\n" for row in rows)
    template = Template(rest.strip(" "))
    headings: dict[str, object] = {name: heading for name, (heading, _) in listing.fields.items()}
    headings.update({name: _heading_method(heading) for name, (heading, _) in listing.methods.items()})
    texts = [template.execute(headings, HEADER_FUNCTIONS), *(template.execute(row) for row in rows)]
    return align([line.split("\t") for text in texts for line in text.split("\n")])


def _heading_method(heading: str) -> Callable[..., str]:
    # Docker's heading for {{.Label "com.example.a-b"}} is "a b".
    return lambda *arguments: " ".join(str(arguments[0]).rpartition(".")[2].replace("-", " ").replace("_", " ").split()) if arguments else heading


def align(lines: Sequence[Sequence[str]], least_width: int = _LEAST_WIDTH) -> str:
    """Cells under each other; the last cell of a line is not padded."""
    widths: dict[int, int] = {}
    for cells in lines:
        for column, cell in enumerate(cells[:-1]):
            widths[column] = max(widths.get(column, least_width), len(cell) + _GAP)
    return "".join("".join(cell.ljust(widths[column]) for column, cell in enumerate(cells[:-1])) + cells[-1] + "\n" for cells in lines)


def render_one(value: Mapping[str, object], form: str) -> str:
    """One mapping as JSON or through a template (``info``, ``version``, ``doctor``)."""
    if form in {"json", "{{json .}}"}:
        return msgspec.json.encode(value).decode() + "\n"
    from bulle.cli.go_template import Template

    return Template(form).execute(value) + "\n"
