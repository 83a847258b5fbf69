"""Patterns of file names: what ``.dockerignore`` leaves out of a context, the wildcards of COPY and ADD, and ``--exclude``.

``*`` and ``?`` stay within a name, ``**`` is any number of directories, ``[a-z]`` and ``[^a]`` are classes and a backslash takes a character's
meaning away: Go's filepath.Match, with the ``**`` that Docker added to it. Paths have slashes and are relative to the context. Which files there
are is the caller's knowledge.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable

from bulle.build.shell_words import SPACE
from bulle.errors import InvalidInput

_WILD = re.compile(r"[*?\[\\]")
# Above these the time of a regular expression could grow beyond reason, and a slower walk takes its place, whose time cannot.
_REGULAR_WILDCARDS, _REGULAR_LENGTH = 3, 4096
_LONGEST = 4096

_NAME, _STAR, _DEEP, _REST = "name", "star", "deep", "rest"
_QUANTIFIERS = {_STAR: "[^/]*", _DEEP: "(?:.*/)?", _REST: ".*"}


def has_wildcards(text: str) -> bool:
    """Whether a source of COPY or ADD stands for whatever matches it, not for the file of that very name."""
    return _WILD.search(text) is not None


class PathPattern:
    """One pattern. Raises InvalidInput where it cannot be understood."""

    def __init__(self, text: str) -> None:
        self.text = text
        if len(text) > _LONGEST:
            raise InvalidInput(f"the pattern {text[:40]}… has {len(text)} characters", f"no path has more than {_LONGEST}")
        self._parts = list(_parts(text))
        self._exact = text if not has_wildcards(text) else None
        quantified = [kind for kind, _ in self._parts if kind != _NAME]
        self._regular = None
        if len(quantified) <= _REGULAR_WILDCARDS:
            source = "".join(_QUANTIFIERS.get(kind, expression) for kind, expression in self._parts)
            self._regular = re.compile(source, re.DOTALL)
        self._components = text.split("/")

    def matches(self, path: str) -> bool:
        """Whether the whole path is matched; directories on the way to it do not count."""
        if self._exact is not None:
            return path == self._exact
        if self._regular is not None and len(path) <= _REGULAR_LENGTH:
            return self._regular.fullmatch(path) is not None
        return self._walk(path)

    def may_match_below(self, directory: str) -> bool:
        """Whether something within the directory can match. False is certain; True is not."""
        if directory in ("", "."):
            return True
        names = directory.split("/")
        for index, component in enumerate(self._components):
            # A class or an escaped character may be a slash, and ** matches any number of them.
            if "**" in component or "[" in component or "\\" in component:
                return True
            if index == len(names):
                return True
            matched = PathPattern(component).matches(names[index]) if has_wildcards(component) else component == names[index]
            if not matched:
                return False
        return False

    def _walk(self, path: str) -> bool:
        """The same as the regular expression, all ways at once: the work is the length of the path times that of the pattern."""
        places = self._entered(0)
        singles = [re.compile(expression, re.DOTALL).fullmatch for _, expression in self._parts]
        for character in path:
            after: set[int] = set()
            for place in places:
                # A negative place is within the ** at ~place, whose directory has not ended yet.
                index = ~place if place < 0 else place
                if index == len(self._parts):
                    continue
                kind, _ = self._parts[index]
                if kind == _DEEP:
                    if place < 0:
                        after.add(place)
                        if character == "/":
                            after |= self._entered(index + 1)
                elif kind == _REST or (kind == _STAR and character != "/"):
                    after |= self._entered(index)
                elif kind == _NAME and singles[index](character):
                    after |= self._entered(index + 1)
            places = after
        return len(self._parts) in places

    def _entered(self, index: int) -> set[int]:
        places = {index}
        while index < len(self._parts) and self._parts[index][0] != _NAME:
            if self._parts[index][0] == _DEEP:
                places.add(~index)
            index += 1
            places.add(index)
        return places


def _parts(text: str) -> Iterable[tuple[str, str]]:
    """The pattern as a row of single characters (as regular expressions) and of what repeats."""
    # Docker takes **name, without a slash and without other wildcards, for whatever ends so.
    if text.startswith("**") and not text.startswith("**/") and not _WILD.search(text, 2) and "]" not in text:
        yield _REST, ""
        text = text[2:]
    position = 0
    while position < len(text):
        character = text[position]
        position += 1
        if text.startswith("**", position - 1):
            position += 1
            position += text.startswith("/", position)
            yield (_DEEP if position < len(text) else _REST), ""
        elif character == "*":
            yield _STAR, ""
        elif character == "?":
            yield _NAME, "[^/]"
        elif character == "[":
            expression, position = _class(text, position)
            yield _NAME, expression
        elif character == "\\":
            escaped, position = _escaped(text, position - 1)
            yield _NAME, re.escape(escaped)
        else:
            yield _NAME, re.escape(character)


def _class(text: str, position: int) -> tuple[str, int]:
    negated = text.startswith("^", position)
    position += negated
    ranges: list[str] = []
    empty = True
    while empty or not text.startswith("]", position):
        if text[position : position + 1] in ("", "-", "]"):
            raise _malformed(text)
        first, position = _escaped(text, position)
        last = first
        if text.startswith("-", position):
            if text[position + 1 : position + 2] in ("", "-", "]"):
                raise _malformed(text)
            last, position = _escaped(text, position + 1)
        if first <= last:
            ranges.append(f"{re.escape(first)}-{re.escape(last)}")
        empty = False
    if not ranges:
        return ("." if negated else r"(?!)"), position + 1
    return f"[{'^' if negated else ''}{''.join(ranges)}]", position + 1


def _escaped(text: str, position: int) -> tuple[str, int]:
    if text.startswith("\\", position):
        position += 1
    if position >= len(text):
        raise _malformed(text)
    return text[position], position + 1


def _malformed(text: str) -> InvalidInput:
    why = "a class is not closed or empty, or a backslash stands last"
    return InvalidInput(f"{text[:60]!r} is no pattern of file names", why, "write [a-z], \\[ or \\\\")


class IgnoreRules:
    """The patterns of a ``.dockerignore`` (or of ``--exclude``): the last one that matches a path, or a directory above it, decides."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._rules: list[tuple[PathPattern, bool]] = []
        for text in patterns:
            kept = text.startswith("!")
            cleaned = _cleaned(text.removeprefix("!"))
            if not cleaned:
                if kept:
                    raise InvalidInput("the rule '!' has no pattern", "", "write what is to be kept after it")
                continue
            self._rules.append((PathPattern(cleaned), kept))
        self._kept = [pattern for pattern, kept in self._rules if kept]
        self._nothing = (False, (False,) * len(self._rules))
        self._directories: dict[str, tuple[bool, tuple[bool, ...]]] = {}

    @classmethod
    def parse(cls, text: bytes | str) -> IgnoreRules:
        """The rules of a file: one on a line, ``#`` at the begin of a line for comments, ``!`` for what is kept after all. Raises InvalidInput."""
        if isinstance(text, bytes):
            text = text.decode("utf-8", "surrogateescape")
        patterns: list[str] = []
        for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
            pattern = "" if line.startswith("#") else line.strip(SPACE)
            try:
                cls([pattern])
            except InvalidInput as error:
                raise InvalidInput(f".dockerignore:{number}: {error.brief}", error.details, error.resolution) from None
            patterns.append(pattern)
        return cls(patterns)

    def excludes(self, path: str, is_directory: bool = False) -> bool:
        """Whether a path is left out. Files and directories are alike to the rules; what is found for a directory is kept for what is in it."""
        return self._judged(path, is_directory)[0]

    def prunes(self, directory: str) -> bool:
        """Whether the directory and all in it is left out, so that a walk need not go there: no ``!`` can match anything below it."""
        return self.excludes(directory, True) and not any(pattern.may_match_below(directory) for pattern in self._kept)

    def __bool__(self) -> bool:
        return bool(self._rules)

    def _judged(self, path: str, is_directory: bool) -> tuple[bool, tuple[bool, ...]]:
        """Whether a path is left out, and for each rule whether it was found to match the path or a directory above it."""
        path = path.strip("/")
        end, found = len(path) + 1, self._nothing
        while end > 0:
            # The nearest directory above it that was asked for already.
            end = path.rfind("/", 0, max(end - 1, 0))
            known = self._directories.get(path[: max(end, 0)])
            if known is not None:
                found = known
                break
        if path in ("", "."):
            return found
        while end < len(path):
            following = path.find("/", end + 1)
            end = len(path) if following < 0 else following
            name = path[:end]
            found = self._judged_within(name, found[1])
            if is_directory or end < len(path):
                self._directories[name] = found
        return found

    def _judged_within(self, path: str, above: tuple[bool, ...]) -> tuple[bool, tuple[bool, ...]]:
        """The same, where the answer for the directory of the path is known.

        A rule that could change nothing at its turn is not looked at, and so is not passed on to what is below: Docker does it so, and it shows, for
        ``a``, ``!a/b`` and ``a`` once more keep what is in ``a/b``.
        """
        excluded = False
        matches: list[bool] = []
        for (pattern, kept), before in zip(self._rules, above, strict=True):
            matched = before or (kept == excluded and pattern.matches(path))
            matches.append(matched)
            if matched:
                excluded = not kept
        return excluded, tuple(matches)


def _cleaned(text: str) -> str:
    """A pattern without what does not matter: spaces around it, ``./``, ``//``, ``..``, a slash at either end."""
    text = text.strip(SPACE)
    if not text:
        return ""
    # normpath keeps two slashes at the begin apart from one, as POSIX allows it to.
    cleaned = posixpath.normpath("/" + text.lstrip("/") if text.startswith("/") else text)
    return cleaned[1:] if len(cleaned) > 1 and cleaned.startswith("/") else cleaned
