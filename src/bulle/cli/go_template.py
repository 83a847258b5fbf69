"""The part of Go's text/template that ``--format`` needs: parsing and execution.

Docker's users write ``{{.Names}}``, ``{{json .}}`` or ``{{range .Mounts}}…{{end}}``; every verb that takes ``--format`` comes here. A template
is parsed to a tree of small closures and executed on plain data (mappings, lists, strings, numbers). The functions and Go's way to print a value
are in :mod:`bulle.cli.go_functions`. Not covered: ``define``, ``template``, ``block``, complex numbers. https://pkg.go.dev/text/template
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bulle.cli.go_functions import FUNCTIONS, call, resolve, text_of, truth
from bulle.errors import InvalidInput

_TOKEN = re.compile(
    r"""(?P<space>\s+)
    |(?P<string>"(?:[^"\\\n]|\\.)*"|`[^`]*`)
    |(?P<character>'(?:[^'\\\n]|\\.)')
    |(?P<number>[+-]?(?:0[xX][0-9a-fA-F]+|\d+(?:\.\d+)?(?:[eE][+-]?\d+)?))
    |(?P<variable>\$\w*)
    |(?P<field>\.\w+)
    |(?P<dot>\.)
    |(?P<name>[A-Za-z_]\w*)
    |(?P<mark>:=|=|\||\(|\)|,)""",
    re.VERBOSE,
)
_ACTION = re.compile(r"\{\{(-(?=\s))?\s*(/\*.*?\*/|(?:\"(?:[^\"\\]|\\.)*\"|`[^`]*`|'(?:[^'\\]|\\.)'|(?!\}\}).)*?)\s*((?<=\s)-)?\}\}", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'", "a": "\a", "b": "\b", "f": "\f", "v": "\v", "0": "\0"}

Value = object
Expression = Callable[["_Scope"], Value]
Step = Callable[["_Scope", list[str]], None]


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


@dataclass
class _Scope:
    """Where an expression is evaluated: the dot, the variables in sight, and the functions."""

    dot: Value
    functions: Mapping[str, Callable[..., Value]]
    variables: ChainMap[str, Value] = field(default_factory=ChainMap)

    def inner(self, dot: Value) -> _Scope:
        return _Scope(dot, self.functions, self.variables.new_child())


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    adjacent: bool


def _failure(message: str) -> InvalidInput:
    return InvalidInput("template parsing error", message)


class Template:
    """One parsed template; raises InvalidInput where the text is not one."""

    def __init__(self, text: str) -> None:
        self._steps = _Parser(text).whole()

    def execute(self, data: Value, functions: Mapping[str, Callable[..., Value]] = FUNCTIONS) -> str:
        """The text that the template makes of ``data``; raises InvalidInput for a field that is not there."""
        out: list[str] = []
        _run(self._steps, _Scope(data, functions, ChainMap({"$": data})), out)
        return "".join(out)


def _run(steps: Sequence[Step], scope: _Scope, out: list[str]) -> None:
    for step in steps:
        step(scope, out)


def _unquote(token: str) -> str:
    if token[0] == "`":
        return token[1:-1]

    def replace(match: re.Match[str]) -> str:
        code = match[1]
        if code[0] in "xuU":
            return chr(int(code[1:], 16))
        return _ESCAPES.get(code, code)

    return re.sub(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", replace, token[1:-1], flags=re.DOTALL)


def _number(token: str) -> Value:
    try:
        return int(token, 0) if not token.lstrip("+-").startswith("0") or "x" in token.lower() or token.lstrip("+-") == "0" else int(token, 8)
    except ValueError:
        return float(token)


class _Parser:
    """Cuts the text into literal parts and actions, and builds the steps; one level of blocks per call of :meth:`block`."""

    def __init__(self, text: str) -> None:
        self.parts = self._split(text)
        self.position = 0

    @staticmethod
    def _split(text: str) -> list[tuple[bool, str]]:
        parts: list[tuple[bool, str]] = []
        position, trim_next = 0, False
        while (start := text.find("{{", position)) >= 0:
            match = _ACTION.match(text, start)
            if match is None:
                raise _failure("unclosed action")
            literal = text[position:start]
            literal = literal.lstrip() if trim_next else literal
            parts.append((False, literal.rstrip() if match[1] else literal))
            if not match[2].startswith("/*"):
                parts.append((True, match[2].strip()))
            trim_next, position = bool(match[3]), match.end()
        tail = text[position:]
        parts.append((False, tail.lstrip() if trim_next else tail))
        return parts

    def whole(self) -> list[Step]:
        steps, end = self.block()
        if end is not None:
            raise _failure(f"unexpected {{{{{end}}}}}")
        return steps

    def block(self) -> tuple[list[Step], str | None]:
        """Steps until ``end``, ``else …`` or the end of the text; says which."""
        steps: list[Step] = []
        while self.position < len(self.parts):
            is_action, text = self.parts[self.position]
            self.position += 1
            if not is_action:
                if text:
                    steps.append(_literal(text))
                continue
            word, rest = _words(text)
            if word in {"end", "else"}:
                return steps, text
            steps.append(self._action(word, text, rest))
        return steps, None

    def _action(self, word: str, text: str, rest: str) -> Step:
        if word == "if":
            return self._branch(rest, "if")
        if word == "with":
            return self._branch(rest, "with")
        if word == "range":
            return self._range(rest)
        if word == "break":
            return _raise_break
        if word == "continue":
            return _raise_continue
        if not text:
            raise _failure("missing value for command")
        names, mark, pipeline = _Pipeline(text).parse_with_variables()
        if len(names) > 1:
            raise _failure("too many declarations in command")
        return _assign(names[0], mark, pipeline) if names else _output(pipeline)

    def _body(self, kind: str) -> tuple[list[Step], list[Step]]:
        steps, end = self.block()
        if end is None:
            raise _failure(f"unexpected end of the template: {kind} is not closed by {{{{end}}}}")
        if end == "end":
            return steps, []
        _, chained = _words(end)
        if chained:
            word, rest = _words(chained)
            if word not in {"if", "with"}:
                raise _failure(f"unexpected <{word}> after else")
            return steps, [self._branch(rest, word)]
        otherwise, end = self.block()
        if end != "end":
            raise _failure(f"{kind} is not closed by {{{{end}}}}")
        return steps, otherwise

    def _branch(self, rest: str, kind: str) -> Step:
        names, _, condition = _Pipeline(rest).parse_with_variables()
        steps, otherwise = self._body(kind)

        def step(scope: _Scope, out: list[str]) -> None:
            value = condition(scope)
            inner = scope.inner(value if kind == "with" and truth(value) else scope.dot)
            inner.variables.update(dict.fromkeys(names, value))
            _run(steps if truth(value) else otherwise, inner, out)

        return step

    def _range(self, rest: str) -> Step:
        names, _, sequence = _Pipeline(rest).parse_with_variables()
        steps, otherwise = self._body("range")

        def step(scope: _Scope, out: list[str]) -> None:
            pairs = _pairs(sequence(scope))
            if not pairs:
                _run(otherwise, scope, out)
            for key, value in pairs:
                inner = scope.inner(value)
                if names:
                    inner.variables.update({names[-1]: value} if len(names) == 1 else {names[0]: key, names[1]: value})
                try:
                    _run(steps, inner, out)
                except _Continue:
                    continue
                except _Break:
                    break

        return step


def _words(text: str) -> tuple[str, str]:
    """The first word of an action, and the rest."""
    match = re.match(r"(\w*)\s*(.*)", text, re.DOTALL)
    return (match[1], match[2]) if match else ("", text)


def _pairs(value: Value) -> list[tuple[Value, Value]]:
    if value is None:
        return []
    if isinstance(value, Mapping):
        return sorted(value.items())
    if isinstance(value, int) and not isinstance(value, bool):
        return [(number, number) for number in range(value)]
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    raise _failure(f"range can't iterate over {text_of(value)}")


def _literal(text: str) -> Step:
    return lambda scope, out: out.append(text)


def _output(pipeline: Expression) -> Step:
    return lambda scope, out: out.append(text_of(pipeline(scope)))


def _assign(name: str, mark: str, pipeline: Expression) -> Step:
    def step(scope: _Scope, out: list[str]) -> None:
        # `:=` declares here, `=` changes the variable of the block that declared it.
        owner = scope.variables.maps[0] if mark == ":=" else next((one for one in scope.variables.maps if name in one), None)
        if owner is None:
            raise _failure(f'undefined variable "{name}"')
        owner[name] = pipeline(scope)

    return step


def _raise_break(scope: _Scope, out: list[str]) -> None:
    raise _Break


def _raise_continue(scope: _Scope, out: list[str]) -> None:
    raise _Continue


class _Pipeline:
    """Parses what stands inside one pair of braces: ``$x := command | command …``."""

    def __init__(self, text: str) -> None:
        self.tokens: list[_Token] = []
        position, adjacent = 0, False
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise _failure(f"unexpected {text[position]!r} in {text!r}")
            position = match.end()
            if match.lastgroup == "space":
                adjacent = False
                continue
            self.tokens.append(_Token(match.lastgroup or "", match[0], adjacent))
            adjacent = True
        self.position = 0

    def peek(self) -> _Token | None:
        return self.tokens[self.position] if self.position < len(self.tokens) else None

    def parse_with_variables(self) -> tuple[list[str], str, Expression]:
        """The variables before ``:=`` or ``=``, which of the two it was, and the pipeline."""
        names: list[str] = []
        mark = ""
        for position, token in enumerate(self.tokens):
            if token.text in {":=", "="} and token.kind == "mark" and self.tokens[0].kind == "variable":
                names = [name.text for name in self.tokens[:position] if name.text != ","]
                mark, self.position = token.text, position + 1
                break
        pipeline = self.pipeline()
        if (extra := self.peek()) is not None:
            raise _failure(f"unexpected {extra.text!r}")
        return names, mark, pipeline

    def pipeline(self) -> Expression:
        stages = [self.command()]
        while (token := self.peek()) is not None and token.text == "|" and token.kind == "mark":
            self.position += 1
            stages.append(self.command())

        def evaluate(scope: _Scope) -> Value:
            value = stages[0](scope, ())
            for stage in stages[1:]:
                value = stage(scope, (value,))
            return value

        return evaluate

    def command(self) -> Callable[[_Scope, tuple[Value, ...]], Value]:
        operands: list[tuple[str, Expression, str]] = []
        while (token := self.peek()) is not None and not (token.kind == "mark" and token.text in {"|", ")"}):
            operands.append(self.operand())
        if not operands:
            raise _failure("missing value for command")
        kind, first, name = operands[0]
        arguments = [expression for _, expression, _ in operands[1:]]
        if kind == "function" and name in {"and", "or"}:
            return _short_circuit(name, arguments)

        def evaluate(scope: _Scope, piped: tuple[Value, ...]) -> Value:
            value = first(scope)
            values = [argument(scope) for argument in arguments] + list(piped)
            if callable(value):
                return call(name, value, values)
            if values:
                raise _failure(f"can't give argument to non-function {name}")
            return value

        return evaluate

    def operand(self) -> tuple[str, Expression, str]:
        token = self.tokens[self.position]
        self.position += 1
        kind, base = self._term(token)
        path: list[str] = []
        name = token.text
        while (following := self.peek()) is not None and following.kind == "field" and following.adjacent:
            path.append(following.text[1:])
            name += following.text
            self.position += 1
        if token.kind == "field":
            path.insert(0, token.text[1:])
        if not path:
            return kind, base, name

        return kind, lambda scope: resolve(base(scope), path), name

    def _term(self, token: _Token) -> tuple[str, Expression]:
        text = token.text
        if token.kind in {"field", "dot"}:
            return "value", lambda scope: scope.dot
        if token.kind == "variable":
            return "value", lambda scope: _variable(scope, text)
        if token.kind == "name":
            constants: dict[str, Value] = {"true": True, "false": False, "nil": None}
            if text in constants:
                return "value", lambda scope: constants[text]
            if text not in FUNCTIONS:
                raise _failure(f'function "{text}" not defined')
            return "function", lambda scope: scope.functions[text]
        if text == "(":
            inner = self.pipeline()
            if (closing := self.peek()) is None or closing.text != ")":
                raise _failure("unclosed left paren")
            self.position += 1
            return "value", inner
        if token.kind in {"string", "character", "number"}:
            value: Value = _number(text) if token.kind == "number" else _unquote(text)
            value = ord(str(value)) if token.kind == "character" else value
            return "value", lambda scope: value
        raise _failure(f"unexpected {text!r}")


def _variable(scope: _Scope, name: str) -> Value:
    if name not in scope.variables:
        raise _failure(f'undefined variable "{name}"')
    return scope.variables[name]


def _short_circuit(name: str, arguments: list[Expression]) -> Callable[[_Scope, tuple[Value, ...]], Value]:
    """``and`` and ``or`` stop at the first argument that decides, so that ``{{and .Health .Health.Status}}`` is safe."""

    def evaluate(scope: _Scope, piped: tuple[Value, ...]) -> Value:
        result: Value = None
        for value in [*arguments, *[lambda scope, one=one: one for one in piped]]:
            result = value(scope)
            if truth(result) == (name == "or"):
                return result
        return result

    return evaluate
