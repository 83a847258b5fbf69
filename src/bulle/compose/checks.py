"""What a value of a Compose file may be before its short forms are turned into long ones: small functions, joined by :mod:`bulle.compose.keys`.

A check returns None, or a :class:`Wrong` that says which key below it is in the wrong form. Kinds are those of JSON Schema, by which Compose files
are defined: an integer may be written ``1.0``, a list may have to be without repeats.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Path = tuple["str | int", ...]


class Wrong(NamedTuple):
    """Which key is wrong, and how: ``words`` follow its name."""

    path: Path
    words: str


Check = Callable[[Any, Path], "Wrong | None"]

NAME = re.compile(r"[a-zA-Z0-9._-]+")
ANY_NAME = re.compile(r".+", re.DOTALL)
LOWER_NAME = re.compile(r"[a-z]+")

_KINDS: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "integer": lambda value: (type(value) is int) or (isinstance(value, float) and value.is_integer()),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}
_SHOWN = {"string": "a string", "number": "a number", "integer": "a whole number", "boolean": "true or false", "null": "empty"}


def _either(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def scalar(*kinds: str) -> Check:
    """One of these kinds of JSON Schema."""
    tests = [_KINDS[kind] for kind in kinds]
    words = f"must be {_either([_SHOWN[kind] for kind in kinds])}"

    def check(value: Any, path: Path) -> Wrong | None:
        for test in tests:
            if test(value):
                return None
        return Wrong(path, words)

    return check


def anything(_value: Any, _path: Path) -> Wrong | None:
    """Whatever it is."""
    return None


def choice(*words: str) -> Check:
    """One of these words."""

    def check(value: Any, path: Path) -> Wrong | None:
        return None if isinstance(value, str) and value in words else Wrong(path, f"must be {_either(list(words))}")

    return check


def between(least: int, most: int | None = None) -> Check:
    """A whole number within limits, or a string."""
    words = f"must be a whole number from {least}" + (f" to {most}" if most is not None else " on")

    def check(value: Any, path: Path) -> Wrong | None:
        if isinstance(value, str):
            return None
        good = _KINDS["integer"](value) and value >= least and (most is None or value <= most)
        return None if good else Wrong(path, words)

    return check


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_plain(one) for one in value)
    if isinstance(value, dict):
        return frozenset((key, _plain(one)) for key, one in value.items())
    return (isinstance(value, bool), value)


def list_of(element: Check, *, unique: bool = False) -> Check:
    """A list; ``unique`` without repeats."""

    def check(value: Any, path: Path) -> Wrong | None:
        if not isinstance(value, list):
            return Wrong(path, "must be a list")
        for number, one in enumerate(value):
            if (wrong := element(one, (*path, number))) is not None:
                return wrong
        if unique and len(value) > 1 and len({_plain(one) for one in value}) != len(value):
            return Wrong(path, "says something twice")
        return None

    return check


def mapping_of(element: Check, names: re.Pattern[str] = NAME, *, closed: bool = True) -> Check:
    """A mapping whose keys are names; where it is not ``closed``, keys that are none are not looked at."""

    def check(value: Any, path: Path) -> Wrong | None:
        if not isinstance(value, dict):
            return Wrong(path, "must be a mapping")
        for key, one in value.items():
            if names.fullmatch(key):
                if (wrong := element(one, (*path, key))) is not None:
                    return wrong
            elif closed:
                return Wrong((*path, key), "is not a name that can stand here")
        return None

    return check


def record(fields: Mapping[str, Check], *, required: tuple[str, ...] = (), closed: bool = True, extensions: bool = True) -> Check:
    """A mapping with known keys."""

    def check(value: Any, path: Path) -> Wrong | None:
        if not isinstance(value, dict):
            return Wrong(path, "must be a mapping")
        for key, one in value.items():
            element = fields.get(key)
            if element is not None:
                if (wrong := element(one, (*path, key))) is not None:
                    return wrong
            elif closed and not (extensions and key.startswith("x-")):
                return Wrong((*path, key), f"is not a key that can stand here{_near(key, fields)}")
        for key in required:
            if key not in value:
                return Wrong(path, f"needs the key {key}")
        return None

    return check


def _near(key: str, known: Mapping[str, Check]) -> str:
    import difflib

    near = difflib.get_close_matches(key, list(known), 1)
    return f" (did you mean {near[0]}?)" if near else ""


def one_of(words: str, *checks: Check) -> Check:
    """Any of several forms; what is wrong is told by the one whose outer form fits."""

    def check(value: Any, path: Path) -> Wrong | None:
        deepest = Wrong(path, f"must be {words}")
        for one in checks:
            wrong = one(value, path)
            if wrong is None:
                return None
            if len(wrong.path) > len(deepest.path) or (wrong.path == path and "needs" in wrong.words):
                deepest = wrong
        return deepest

    return check


_POLICIES = ("always", "never", "build", "if_not_present", "missing", "refresh", "daily", "weekly")
_EVERY = re.compile(r"every_([0-9]+[wdhms])+")


def pull_policy(value: Any, path: Path) -> Wrong | None:
    """When an image is pulled."""
    good = isinstance(value, str) and (value in _POLICIES or _EVERY.fullmatch(value))
    return None if good else Wrong(path, f"must be {_either([*_POLICIES])} or a length such as every_12h")
