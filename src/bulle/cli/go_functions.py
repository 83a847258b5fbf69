"""The functions of Docker's ``--format`` templates, and Go's way to print, compare and look into values.

:mod:`bulle.cli.go_template` calls it. Values are plain data: mappings, lists, strings, numbers, booleans and None.
https://pkg.go.dev/text/template#hdr-Functions
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import msgspec

from bulle.errors import InvalidInput

_VERB = re.compile(r"%([-+# 0]*)(\d+|\*)?(?:\.(\d+|\*))?([a-zA-Z%])")
_QUOTED = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\v": "\\v"}
# In Go these are maps from string to string, where a missing key is the empty string; everywhere else a missing field is an error.
_FREE_MAPS = frozenset({"Labels", "Annotations", "Sysctls", "Tmpfs", "Options", "Ports", "Networks", "Volumes", "ExposedPorts", "LogOpts"})


def failure(message: str) -> InvalidInput:
    """The one error of a template that cannot be executed."""
    return InvalidInput("template parsing error", message)


def truth(value: object) -> bool:
    """Go's truth: false, 0, nil and everything empty are false."""
    return bool(value)


def text_of(value: object) -> str:
    """A value as Go's ``%v`` prints it: ``[a b]``, ``map[k:v]``, ``true``, ``<no value>``."""
    if isinstance(value, str):
        return value
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.0f}" if value == int(value) and abs(value) < 1e21 else repr(value)
    if isinstance(value, Mapping):
        return "map[" + " ".join(f"{text_of(key)}:{text_of(value[key])}" for key in sorted(value)) + "]"
    if isinstance(value, (list, tuple)):
        return "[" + " ".join(text_of(item) for item in value) + "]"
    return str(value)


def resolve(value: object, path: Sequence[str]) -> object:
    """What stands at ``.path[0].path[1]…`` below ``value``; raises InvalidInput where a field is missing."""
    parent = ""
    for name in path:
        if not isinstance(value, Mapping):
            raise failure(f"can't evaluate field {name} in {'nil' if value is None else text_of(value)!r}")
        try:
            value = value[name]
        except KeyError:
            if parent not in _FREE_MAPS:
                raise failure(f'there is no field ".{name}" here') from None
            value = ""
        parent = name
    return value


def call(name: str, function: Callable[..., object], arguments: Sequence[object]) -> object:
    """The function's result; a wrong number or kind of arguments becomes an InvalidInput that names it."""
    try:
        return function(*arguments)
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise failure(f"error calling {name}: {error}") from None


def length(value: object) -> int:
    """The number of elements of a list or mapping, or of bytes of a string."""
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, (Mapping, list, tuple)):
        return len(value)
    raise TypeError(f"len of {text_of(value)}")


def quote(text: str) -> str:
    """A string in double quotes with Go's escapes (strconv.Quote)."""
    return '"' + "".join(_QUOTED.get(c) or (c if c.isprintable() else f"\\x{ord(c):02x}" if ord(c) < 128 else f"\\u{ord(c):04x}") for c in text) + '"'


def _json(value: object) -> str:
    return msgspec.json.encode(dict(value) if isinstance(value, Mapping) else value).decode()


def _index(value: object, *keys: object) -> object:
    for key in keys:
        if value is None:
            raise TypeError("index of untyped nil")
        if isinstance(value, Mapping):
            value = value.get(key, "")
        elif isinstance(value, (list, tuple, str)) and isinstance(key, int):
            if not 0 <= key < len(value):
                raise IndexError(f"index out of range: {key}")
            value = value[key]
        else:
            raise TypeError(f"can't index {text_of(value)} with {text_of(key)}")
    return value


def _slice(value: str | list[object], *bounds: int) -> object:
    low, high = (*bounds, *(0, len(value))[len(bounds) :])[:2]
    if not 0 <= low <= high <= len(value):
        raise IndexError(f"index out of range: {low}:{high}")
    return value[low:high]


def _join(values: Sequence[object] | None, separator: str) -> str:
    if isinstance(values, str):
        raise TypeError(f"wrong type for value; expected a list; got {quote(values)}")
    return separator.join(text_of(value) for value in values or ())


def _split(value: str, separator: str) -> list[str]:
    return value.split(separator) if separator else list(value)


def _pad(value: str, before: int, after: int) -> str:
    return " " * before + value + " " * after if value else value


def _truncate(value: str, width: int) -> str:
    return value[:width]


def _title(value: str) -> str:
    return re.sub(r"(^|\s)(\S)", lambda match: match[1] + match[2].upper(), value)


def _equal(first: object, *others: object) -> bool:
    if not others:
        raise TypeError("missing argument for comparison")
    return any(type(first) is type(other) and first == other for other in others)


def _less(first: object, second: object) -> bool:
    comparable = (int, float)
    if isinstance(first, str) and isinstance(second, str):
        return first < second
    if isinstance(first, comparable) and isinstance(second, comparable):
        return first < second
    raise TypeError("incompatible types for comparison")


def _format_one(match: re.Match[str], values: list[object]) -> str:
    flags, width, precision, verb = match[1], match[2] or "", match[3], match[4]
    if verb == "%":
        return "%"
    width = str(values.pop(0)) if width == "*" else width
    if not values:
        return f"%!{verb}(MISSING)"
    value = values.pop(0)
    dot = "" if precision is None else f".{precision}"
    if verb in "dxXobc" and isinstance(value, int) and not isinstance(value, bool):
        body = chr(value) if verb == "c" else format(value, "b") if verb == "b" else f"%{flags.replace('-', '')}{verb}" % value
    elif verb in "eEfFgG" and isinstance(value, (int, float)):
        body = f"%{flags.replace('-', '')}{dot}{verb}" % value
    elif verb in "svtxXq":
        body = text_of(value)
        body = quote(body) if verb == "q" else body.encode().hex() if verb in "xX" else body
        body = body.upper() if verb == "X" else body
        body = body[: int(precision)] if precision is not None and verb == "s" else body
    else:
        return f"%!{verb}({text_of(value)})"
    if "-" in flags:
        return body.ljust(int(width or 0))
    return body.zfill(int(width or 0)) if "0" in flags else body.rjust(int(width or 0))


def _printf(form: str, *values: object) -> str:
    remaining = list(values)
    text = _VERB.sub(lambda match: _format_one(match, remaining), form)
    return text if not remaining else f"{text}%!(EXTRA {', '.join(text_of(value) for value in remaining)})"


def _print(*values: object) -> str:
    out = ""
    for position, value in enumerate(values):
        # fmt.Print puts a space only between two operands of which neither is a string.
        spaced = position > 0 and not isinstance(value, str) and not isinstance(values[position - 1], str)
        out += (" " if spaced else "") + text_of(value)
    return out


def _urlquery(*values: object) -> str:
    safe = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~")
    return "".join("+" if byte == 32 else chr(byte) if byte in safe else f"%{byte:02X}" for byte in _print(*values).encode())


def _last_truth(*values: object, stop_at: bool) -> object:
    result: object = None
    for result in values:
        if truth(result) == stop_at:
            break
    return result


def _html(*values: object) -> str:
    import html  # brings a table of two thousand names

    return html.escape(_print(*values))


FUNCTIONS: dict[str, Callable[..., object]] = {
    "json": _json,
    "join": _join,
    "split": _split,
    "title": _title,
    "lower": lambda text: text.lower(),
    "upper": lambda text: text.upper(),
    "pad": _pad,
    "truncate": _truncate,
    "len": length,
    "index": _index,
    "slice": _slice,
    "print": _print,
    "println": lambda *values: " ".join(text_of(value) for value in values) + "\n",
    "printf": _printf,
    "html": _html,
    "js": lambda *values: _json(_print(*values))[1:-1],
    "urlquery": _urlquery,
    "and": lambda *values: _last_truth(*values, stop_at=False),
    "or": lambda *values: _last_truth(*values, stop_at=True),
    "not": lambda value: not truth(value),
    "eq": _equal,
    "ne": lambda first, second: not _equal(first, second),
    "lt": _less,
    "le": lambda first, second: first == second or _less(first, second),
    "gt": lambda first, second: _less(second, first),
    "ge": lambda first, second: first == second or _less(second, first),
    "call": lambda function, *values: function(*values),
}

# For the header line of `table TEMPLATE`: what would change a value leaves its heading alone.
_UNCHANGED = {name: (lambda value, *rest: value) for name in ("json", "title", "lower", "upper", "truncate", "pad", "split", "join")}
HEADER_FUNCTIONS: dict[str, Callable[..., object]] = {**FUNCTIONS, **_UNCHANGED}
