"""The values of Compose files in their long form read into what they mean, as compose-go reads them into its structures.

Each reader takes a value that is there and not empty, and gives what is kept: None where that is the default anyway, which the canonical form leaves
out. They raise :class:`Unreadable`. :mod:`bulle.compose.keys` joins them into tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bulle.compose.document import Timestamp
from bulle.compose.quantities import bytes_of, go_boolean, go_float, go_integer, nanoseconds_of, single_precision, sprint
from bulle.compose.service_parts import Bytes, Nanoseconds
from bulle.compose.shell_words import split_words

Reader = Callable[[Any], Any]


class Unreadable(ValueError):
    """A value that means nothing; ``path`` are the keys below where reading began."""

    def __init__(self, words: str) -> None:
        super().__init__(words)
        self.path: list[str] = []


def _named(function: Reader, key: str, value: Any) -> Any:
    try:
        return function(value)
    except Unreadable as error:
        error.path.insert(0, key)
        raise
    except ValueError as error:
        unreadable = Unreadable(str(error))
        unreadable.path = [key]
        raise unreadable from None


def text(value: Any) -> str | None:
    """A string; a whole number is one too."""
    return _string(value) or None


def _string(value: Any) -> str:
    if value is None:
        return ""
    if value.__class__ is str:
        return str(value)
    if isinstance(value, Timestamp):
        raise Unreadable(f"{value!r} is a time, quote it")
    if type(value) is int:
        return str(value)
    raise Unreadable(f"{sprint(value)} is not a string")


def flag(value: Any) -> bool | None:
    """True, or nothing."""
    return kept_flag(value) or None


def kept_flag(value: Any) -> bool:
    """True or false, where saying false differs from saying nothing."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return go_boolean(value)
    raise Unreadable(f"{sprint(value)} is neither true nor false")


def whole(value: Any) -> int | None:
    """A number that is not 0."""
    return kept_whole(value) or None


def kept_whole(value: Any) -> int:
    """A number, 0 too."""
    if isinstance(value, str):
        return go_integer(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Unreadable(f"{sprint(value)} is not a number")
    return int(value)


def natural(value: Any) -> int | None:
    """A number above 0."""
    return kept_natural(value) or None


def kept_natural(value: Any) -> int:
    """A number from 0 on."""
    if isinstance(value, str):
        raise Unreadable(f"{value!r} is not a number")
    if (number := kept_whole(value)) < 0:
        raise Unreadable(f"{number} is less than nothing")
    return number


def single(value: Any) -> float | None:
    """A number of 32 bits, perhaps with a fraction, that is not 0."""
    if isinstance(value, str):
        value = go_float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Unreadable(f"{sprint(value)} is not a number")
    return single_precision(float(value)) or None


def size(value: Any) -> Bytes | None:
    """A size in bytes that is not 0."""
    if isinstance(value, str):
        return Bytes(bytes_of(value)) or None
    return Bytes(int(value)) or None if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def length(value: Any) -> Nanoseconds:
    """A length of time."""
    return Nanoseconds(nanoseconds_of(sprint(value)))


def some_length(value: Any) -> Nanoseconds | None:
    """A length of time that is not 0."""
    return length(value) or None


def texts(value: Any) -> list[str] | None:
    """Strings; one alone is a list of it."""
    if isinstance(value, str):
        return [_string(value)]
    if not isinstance(value, list):
        raise Unreadable("not a list")
    return [_string(one) for one in value] or None


def shown_texts(value: Any) -> list[str] | None:
    """Strings or numbers."""
    return [sprint(one) for one in value] or None if isinstance(value, list) else texts(value)


def command(value: Any) -> list[str]:
    """The words of a command, which may be none."""
    return split_words(_string(value)) if isinstance(value, str) else [_string(one) for one in value]


def test(value: Any) -> list[str] | None:
    """How health is tested."""
    return ["CMD-SHELL", _string(value)] if isinstance(value, str) else texts(value)


def _pairs(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [(key, one if one is None else sprint(one)) for key, one in value.items()]
    if isinstance(value, list):
        parts = [sprint(one).partition("=") for one in value]
        return [(key, rest if equals else None) for key, equals, rest in parts]
    raise Unreadable("neither a mapping nor a list")


def variables(value: Any) -> dict[str, str | None] | None:
    """Variables with their values, None where none is said."""
    return dict(sorted(_pairs(value))) if value else None


def mapping(value: Any) -> dict[str, str] | None:
    """Names with values, empty where none is said."""
    return {key: one or "" for key, one in sorted(_pairs(value), key=lambda pair: pair[0])} or None


def strings(value: Any) -> dict[str, str] | None:
    """Names with values that are strings or whole numbers."""
    return {key: _named(_string, key, one) for key, one in sorted(value.items())} or None


def hosts(value: Any) -> list[str] | None:
    """``NAME=ADDRESS`` each."""
    found: dict[str, list[str]] = {}
    for name, addresses in _hosts(value):
        if not name or ":" in name or "=" in name:
            raise Unreadable(f"{name!r} is not the name of a host")
        bare = [one[1:-1] if len(one) > 2 and one[0] == "[" and one[-1] == "]" else one for one in addresses]
        found.setdefault(name, []).extend(bare)
    return sorted(f"{name}={address}" for name, addresses in found.items() for address in addresses) or None


def _hosts(value: Any) -> list[tuple[str, list[str]]]:
    if isinstance(value, dict):
        listed = {name: one if isinstance(one, list) else ["" if one is None else one] for name, one in value.items()}
        return [(name, [sprint(item) for item in one]) for name, one in listed.items()]
    found = []
    for one in value:
        line = sprint(one)
        separator = "=" if "=" in line else ":"
        name, there, address = line.partition(separator)
        if not there:
            raise Unreadable(f"{line!r} has no address")
        found.append((name, address.split(",")))
    return found


def device_count(value: Any) -> int | None:
    """How many devices, -1 for all."""
    if isinstance(value, str):
        return -1 if value.lower() == "all" else go_integer(value) or None
    return whole(value)


def ulimit(value: Any) -> Any:
    """A limit, or a soft and a hard one."""
    if isinstance(value, dict):
        return {key: _limit(value[key]) if value.get(key) is not None else 0 for key in ("soft", "hard")}
    return _limit(value) or {"soft": 0, "hard": 0}


def _limit(value: Any) -> int:
    if isinstance(value, float):
        raise Unreadable(f"{sprint(value)} is not a whole number")
    return kept_whole(value)


def ssh(value: Any) -> list[str] | None:
    """Keys, ``default`` or ``ID: PATH``."""
    return [key if path is None else f"{key}: {sprint(path)}" for key, path in sorted(value.items())] or None


def external(value: Any) -> bool | None:
    """Whether it exists already."""
    return True if isinstance(value, dict) else flag(value)


def whatever(value: Any) -> Any:
    """The value as it stands."""
    return value


def each(element: Reader) -> Reader:
    """A mapping of names to what ``element`` reads; names without a value are kept."""

    def read(value: Any) -> dict[str, Any] | None:
        if not isinstance(value, dict):
            raise Unreadable("not a mapping")
        return {key: None if one is None else _named(element, key, one) for key, one in sorted(value.items())} or None

    return read


def many(element: Reader) -> Reader:
    """A list of what ``element`` reads."""

    def read(value: Any) -> list[Any] | None:
        if not isinstance(value, list):
            raise Unreadable("not a list")
        return [element({} if one is None else one) for one in value] or None

    return read


def structure(fields: Mapping[str, Reader], *, kept: bool = True) -> Reader:
    """A mapping with known keys, in the order of the table, extensions last; an empty one is dropped unless it is ``kept``."""

    def read(value: Any) -> dict[str, Any] | None:
        if not isinstance(value, dict):
            raise Unreadable("not a mapping")
        found: dict[str, Any] = {}
        for key, reader in fields.items():
            if (one := value.get(key)) is not None and (result := _named(reader, key, one)) is not None:
                found[key] = result
        for key in sorted(value):
            if key.startswith("x-") and key not in fields:
                found[key] = value[key]
        return found if found or kept else None

    return read
