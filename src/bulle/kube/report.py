"""What is lost on the way to Kubernetes: notes and refusals, each with file and line.

:func:`look_at` finds every key that a file sets and :mod:`bulle.kube.keys` notes or refuses; the modules that map a key add what depends on
its value.
"""

from __future__ import annotations

import functools
from typing import Any

import msgspec

from bulle.compose.model import Note, Project
from bulle.errors import InvalidInput
from bulle.kube.keys import KEYS

Path = tuple[str | int, ...]


class NotMapped(InvalidInput):
    """An app that cannot be written for Kubernetes as it is; ``refusals`` are the keys and their reasons, in the order of the file."""

    def __init__(self, name: str, refusals: tuple[Note, ...]) -> None:
        number = "one key" if len(refusals) == 1 else f"{len(refusals)} keys"
        super().__init__(f"{name} cannot be written for Kubernetes as it is, because of {number}", "; ".join(str(note) for note in refusals))
        self.refusals = refusals
        self.args = (name, refusals)


class Report:
    """Collects what is to be said about a project."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self.notes: list[Note] = []
        self.refusals: list[Note] = []

    def note(self, text: str, *path: str | int) -> None:
        """The key is done in another way than said."""
        self._add(self.notes, text, path)

    def refuse(self, text: str, *path: str | int) -> None:
        """The key cannot be done."""
        self._add(self.refusals, text, path)

    def _add(self, notes: list[Note], text: str, path: Path) -> None:
        note = Note(self._project.place(*path), ".".join(str(part) for part in path), text)
        if note not in notes:
            notes.append(note)

    def check(self, *, strict: bool) -> None:
        """Raises NotMapped for the refusals, when ``strict`` also for the notes."""
        wrong = [*self.refusals, *(self.notes if strict else ())]
        if wrong:
            raise NotMapped(self._project.name, tuple(sorted(wrong, key=lambda note: (note.place.file, note.place.line))))


@functools.cache
def _fields(kind: type[msgspec.Struct]) -> tuple[tuple[str, Any], ...]:
    """The names of a struct's fields and the values that say nothing."""
    return tuple(
        (field.name, field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default)
        for field in msgspec.structs.fields(kind)
    )


def look_at(report: Report, value: object, path: Path) -> None:
    """Note and refuse the keys in ``value``, which stands at ``path``, that are so whatever their values are."""
    if isinstance(value, dict):
        for key, inner in value.items():
            look_at(report, inner, (*path, key))
    elif isinstance(value, tuple):
        for number, inner in enumerate(value):
            look_at(report, inner, (*path, number))
    elif isinstance(value, msgspec.Struct):
        keys = KEYS[type(value)]
        for name, nothing in _fields(type(value)):
            inner = getattr(value, name)
            if inner == nothing:
                continue
            key = keys[name]
            here = (*path, name) if name != "extensions" else path
            if key.verdict == "mapped":
                look_at(report, inner, here)
            elif key.verdict == "refused":
                report.refuse(key.text, *here)
            else:
                report.note(key.text, *here)
