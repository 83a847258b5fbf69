"""Variables in the values of Compose files and env files: ``$V``, ``${V}``, ``${V:-d}``, ``${V-d}``, ``${V:?e}``, ``${V?e}``, ``${V:+a}``,
``${V+a}``, ``$$``.

What they give is what compose-go gives, down to which brace ends a default. It also says which keys are turned from the string that is then there
into the number or boolean that the key wants.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from bulle.compose.document import Tree, refusal
from bulle.compose.model import Place
from bulle.compose.quantities import go_boolean, go_float, go_integer

_NAME = "[_a-z][_a-z0-9]*"
_PATTERN = re.compile(
    rf"\$(?:(?P<escaped>\$)|(?P<named>{_NAME})|{{(?:(?P<braced>{_NAME}(?P<rest>:?[-+?].*)?)}}|(?P<invalid>)))", re.IGNORECASE | re.ASCII
)  # fmt: skip
_OPERATORS = (":?", "?", ":-", "-", ":+", "+")

Lookup = Callable[[str], "str | None"]


class InvalidTemplate(ValueError):
    """A text with a ``$`` that begins nothing; the message is the text."""


class RequiredVariable(ValueError):
    """A variable that has to have a value; the message says which and why."""


class Variable(NamedTuple):
    """A variable that a file uses."""

    name: str
    required: bool
    default: str
    alternate: str


def substitute(text: str, lookup: Lookup, missing: Callable[[str], None] | None = None) -> str:
    """The text with its variables replaced; ``missing`` is called with the name of each that is not set. Raises InvalidTemplate, RequiredVariable."""
    if "$" not in text:
        return text
    return _PATTERN.sub(lambda match: _replaced(match[0], text, lookup, missing), text)


def _replaced(found: str, text: str, lookup: Lookup, missing: Callable[[str], None] | None) -> str:
    operator = _first_operator(found)
    end = _closing_brace(found)
    rest = ""
    if end >= 0:
        found, rest = found[: end + 1], found[end + 1 :]
    match = _PATTERN.match(found)
    if match is None:
        raise InvalidTemplate(text)
    if match["escaped"]:
        return "$"
    name = match["named"]
    if not name:
        name = match["braced"]
        if not name:
            raise InvalidTemplate(text)
        if operator in name:
            return _applied(name, operator, lookup, missing) + substitute(rest, lookup, missing)
    value = lookup(name)
    if value is None:
        if missing is not None:
            missing(name)
        return ""
    return value


def _applied(substitution: str, operator: str, lookup: Lookup, missing: Callable[[str], None] | None) -> str:
    name, _, word = substitution.partition(operator)
    word = substitute(word, lookup, missing)
    value = lookup(name)
    given = bool(value) if operator.startswith(":") else value is not None
    match operator[-1]:
        case "?":
            if not given:
                raise RequiredVariable(f"required variable {name} is missing a value" + (f": {word}" if word else ""))
            return value or ""
        case "-":
            return (value or "") if given else word
        case _:
            return word if given else (value or "")


def _first_operator(text: str) -> str:
    found = [(text.index(one), number, one) for number, one in enumerate(_OPERATORS) if one in text]
    return min(found)[2] if found else _OPERATORS[0]


def _closing_brace(text: str) -> int:
    opened = index = 0
    while index < len(text):
        if text[index] == "}":
            opened -= 1
            if opened == 0:
                return index
        if text[index] == "{":
            opened += 1
            index += 1
        index += 1
    return -1


def variables(value: Any) -> Iterator[Variable]:
    """The variables that a tree's texts use."""
    if isinstance(value, str):
        yield from _variables_of(value)
    elif isinstance(value, dict):
        for one in value.values():
            yield from variables(one)
    elif isinstance(value, list):
        for one in value:
            if isinstance(one, str):
                yield from _variables_of(one)


def _variables_of(text: str) -> Iterator[Variable]:
    for match in _PATTERN.finditer(text):
        if match["escaped"]:
            continue
        if match["named"]:
            yield Variable(match["named"], False, "", "")
            continue
        found = match[0]
        end = _closing_brace(found)
        whole = match["braced"] or ""
        if end > 0:
            whole = found[2:end]
            yield from _variables_of(found[end + 1 :])
        name = re.match(r"[A-Za-z0-9_]*", whole)[0]  # type: ignore[index]
        sign, word = re.fullmatch(r"(:?[-+?])?(.*)", whole[len(name) :], re.S).groups()  # type: ignore[union-attr]
        kind = sign[-1] if sign else ""
        yield Variable(name, kind == "?", word if kind == "-" else "", word if kind == "+" else "")


_SERVICE_CASTS: dict[tuple[str, ...], Callable[[str], Any]] = {
    ("configs", "[]", "mode"): go_integer,
    ("cpu_count",): go_integer,
    ("cpu_percent",): go_float,
    ("cpu_period",): go_integer,
    ("cpu_quota",): go_integer,
    ("cpu_rt_period",): go_integer,
    ("cpu_rt_runtime",): go_integer,
    ("cpus",): go_float,
    ("cpu_shares",): go_integer,
    ("init",): go_boolean,
    ("deploy", "replicas"): go_integer,
    ("deploy", "update_config", "parallelism"): go_integer,
    ("deploy", "update_config", "max_failure_ratio"): go_float,
    ("deploy", "rollback_config", "parallelism"): go_integer,
    ("deploy", "rollback_config", "max_failure_ratio"): go_float,
    ("deploy", "restart_policy", "max_attempts"): go_integer,
    ("deploy", "placement", "max_replicas_per_node"): go_integer,
    ("healthcheck", "retries"): go_integer,
    ("healthcheck", "disable"): go_boolean,
    ("oom_kill_disable",): go_boolean,
    ("oom_score_adj",): go_integer,
    ("pids_limit",): go_integer,
    ("ports", "[]", "target"): go_integer,
    ("privileged",): go_boolean,
    ("read_only",): go_boolean,
    ("scale",): go_integer,
    ("secrets", "[]", "mode"): go_integer,
    ("stdin_open",): go_boolean,
    ("tty",): go_boolean,
    ("ulimits", "*"): go_integer,
    ("ulimits", "*", "hard"): go_integer,
    ("ulimits", "*", "soft"): go_integer,
    ("volumes", "[]", "read_only"): go_boolean,
    ("volumes", "[]", "volume", "nocopy"): go_boolean,
}  # fmt: skip
_CASTS: dict[tuple[str, ...], Callable[[str], Any]] = {
    **{("services", "*", *path): cast for path, cast in _SERVICE_CASTS.items()},
    **{("networks", "*", key): go_boolean for key in ("external", "internal", "attachable", "enable_ipv4", "enable_ipv6")},
    **{(section, "*", "external"): go_boolean for section in ("volumes", "secrets", "configs")},
}


def _as_steps(casts: Mapping[tuple[str, ...], Callable[[str], Any]]) -> dict[str, Any]:
    """Paths as nested dictionaries, whose key "" is the cast at that place."""
    root: dict[str, Any] = {}
    for path, cast in casts.items():
        step = root
        for part in path:
            step = step.setdefault(part, {})
        step[""] = cast
    return root


_STEPS = _as_steps(_CASTS)
_NO_STEPS: dict[str, Any] = {}


def interpolate(tree: Tree, environment: Mapping[str, str], missing: Callable[[str], None] | None = None) -> None:
    """Replace the variables in all values of a file's tree, in place. Raises InvalidFile with the place of the key."""
    _Interpolator(environment, missing).mapping(tree, _STEPS, None)


class _Interpolator:
    def __init__(self, environment: Mapping[str, str], missing: Callable[[str], None] | None) -> None:
        self.lookup = environment.get
        self.missing = missing

    def mapping(self, tree: dict[str, Any], steps: dict[str, Any], place: Place | None) -> None:
        places = tree.places if isinstance(tree, Tree) else {}
        for key, value in tree.items():
            if value.__class__ in (str, Tree, list):
                below = steps.get(key) or steps.get("*") or _NO_STEPS
                tree[key] = self.value(value, below, key, places.get(key, place))

    def value(self, value: Any, steps: dict[str, Any], key: str, place: Place | None) -> Any:
        if isinstance(value, Tree):
            self.mapping(value, steps, place)
        elif isinstance(value, list):
            below = steps.get("[]", _NO_STEPS)
            for number, one in enumerate(value):
                if one.__class__ in (str, Tree, list):
                    value[number] = self.value(one, below, key, place)
        elif "$" in value or steps:
            return self.text(value, steps.get(""), key, place or Place("", 0))
        return value

    def text(self, text: str, cast: Callable[[str], Any] | None, key: str, place: Place) -> Any:
        try:
            text = substitute(text, self.lookup, self.missing)
        except InvalidTemplate as error:
            raise refusal(place, f"{key}: {str(error)!r} has a $ that begins no variable", "", "write $$ for a dollar sign") from None
        except RequiredVariable as error:
            raise refusal(place, f"{key}: {error}") from None
        if cast is None:
            return text
        try:
            return cast(text)
        except ValueError as error:
            raise refusal(place, f"{key}: {error}") from None
