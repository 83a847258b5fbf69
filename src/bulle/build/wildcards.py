"""Patterns with ``*`` and ``?`` in ``${name#pattern}`` and its like: which part of a value they match.

Stars may stand anywhere, and values come from outside; so this is no regular expression but a walk that visits each pair of places at most once.
File name patterns (``COPY *.py``, ``.dockerignore``) are in :mod:`bulle.build.patterns`.
"""

from __future__ import annotations

_ANY, _STAR = object(), object()
_MOST_STEPS = 1_000_000


class WildcardError(ValueError):
    """A pattern that cannot be understood, or is too much work."""


class ShellPattern:
    """``*`` is any text and ``?`` any character within a line; a backslash takes the meaning from ``*``, ``?`` and itself. Raises WildcardError."""

    def __init__(self, text: str) -> None:
        self._tokens: list[object] = []
        characters = iter(text)
        for character in characters:
            if character == "\\":
                escaped = next(characters, "")
                if escaped == "" or escaped not in "*?\\}/":
                    raise WildcardError(f"the pattern {text!r} has a backslash before {escaped or 'its end'!r}; it may stand before * ? \\ }} and /")
                self._tokens.append(escaped)
            else:
                self._tokens.append(_STAR if character == "*" else _ANY if character == "?" else character)
        self._literal = "".join(str(token) for token in self._tokens) if not any(token in (_ANY, _STAR) for token in self._tokens) else None

    def without_prefix(self, value: str, *, greedy: bool) -> str:
        """The value without the shortest (or longest) begin that matches."""
        if self._literal is not None:
            return value.removeprefix(self._literal)
        end = _Match(self._tokens, value, greedy).end(0)
        return value if end is None else value[end:]

    def without_suffix(self, value: str, *, greedy: bool) -> str:
        """The value without the shortest (or longest) end that matches."""
        if self._literal is not None:
            return value.removesuffix(self._literal)
        end = _Match(self._tokens[::-1], value[::-1], greedy).end(0)
        return value if end is None else value[: len(value) - end]

    def replace(self, value: str, replacement: str, *, everywhere: bool, longest: int) -> str:
        """The value with the first match (or all) replaced, each as long as it can be; refused where the result is longer than ``longest``."""
        if self._literal:
            if len(value) + value.count(self._literal) * len(replacement) > longest:
                raise WildcardError(f"the value grows beyond {longest} characters")
            return value.replace(self._literal, replacement, -1 if everywhere else 1)
        match = _Match(self._tokens, value, True)
        parts: list[str] = []
        length = position = copied = 0
        replaced_until = -1
        while position <= len(value):
            end = match.end(position)
            if end is None or (end == position and position == replaced_until):
                position += 1
                continue
            parts += [value[copied:position], replacement]
            length += len(replacement)
            if length > longest:
                raise WildcardError(f"the value grows beyond {longest} characters")
            copied = replaced_until = end
            position = max(end, position + (end == position))
            if not everywhere:
                break
        return "".join([*parts, value[copied:]])


class _Match:
    """Where matches of one pattern in one value end. What was tried in vain is remembered, so all questions together are bounded."""

    def __init__(self, tokens: list[object], value: str, greedy: bool) -> None:
        self._tokens, self._value, self._greedy = tokens, value, greedy
        self._width = len(value) + 1
        size = (len(tokens) + 1) * self._width
        if size > _MOST_STEPS:
            raise WildcardError("the pattern and the value are too long")
        self._vain = bytearray(size)

    def end(self, begin: int) -> int | None:
        """The end of the match that begins there."""
        # Ways not yet tried; the last one first, for it is the preferred one.
        waiting = [(0, begin)]
        tried: list[int] = []
        while waiting:
            index, at = waiting.pop()
            state = index * self._width + at
            if self._vain[state]:
                continue
            if index == len(self._tokens):
                for state in tried:
                    self._vain[state] = 0
                return at
            self._vain[state] = 1
            tried.append(state)
            token = self._tokens[index]
            inside_line = at < len(self._value) and self._value[at] != "\n"
            if token is _STAR:
                ways = [(index + 1, at), (index, at + 1)] if inside_line else [(index + 1, at)]
                waiting += ways if self._greedy else reversed(ways)
            elif at < len(self._value) and (inside_line if token is _ANY else self._value[at] == token):
                waiting.append((index + 1, at + 1))
        return None
