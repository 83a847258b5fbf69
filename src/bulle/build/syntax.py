"""The lines of a Containerfile as statements: directives, comments, continued lines, heredocs, and each statement cut into words.

This is the part of the language that is the same for every instruction; :mod:`bulle.build.parsing` gives the statements their meaning. It agrees with
BuildKit's parser line by line, which the tests hold against each other. A file is UTF-8; elsewhere than in comments anything else is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from bulle.build.instructions import Location
from bulle.build.shell_words import SPACE, Lexer, WordError
from bulle.build.words import BLANKS, CUTS, CutError, cut, flags_and_rest
from bulle.errors import BuildSyntaxError

DEFAULT_ESCAPE = "\\"
_DIRECTIVES = ("syntax", "escape", "check")
_DIRECTIVE_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9]*")
_ASCII_SPACE = "\t\n\f\r "
_WITH_HEREDOCS = ("ADD", "COPY", "RUN")
_HEREDOC = re.compile(r"([0-9]*)<<(-?)[\t\n\f\r ]*([^<]*)")
_LEADING_TABS = re.compile(r"^\t+", re.MULTILINE)


def refusal(place: object, what: str, instead: str = "") -> BuildSyntaxError:
    """The error for something at a place (a location, or ``file:line``): what is wrong there, and what to write instead."""
    return BuildSyntaxError(f"{place}: {what}", instead)


@dataclass(frozen=True, slots=True)
class HeredocText:
    """A heredoc as it stands in the file; ``raw`` is its content with the tabs that ``<<-`` strips."""

    name: str
    raw: str
    expand: bool
    strip_tabs: bool
    descriptor: int

    @property
    def content(self) -> str:
        """The content that the heredoc stands for."""
        return _LEADING_TABS.sub("", self.raw) if self.strip_tabs else self.raw


@dataclass(frozen=True, slots=True)
class Statement:
    """One instruction: its keyword as written, its flags, its text, and the words that the text was cut into.

    An ONBUILD has the instruction in it as ``trigger``, and no words; so have keywords that nobody knows.
    """

    location: Location
    keyword: str
    flags: tuple[str, ...]
    text: str
    line: str
    words: tuple[str, ...] = ()
    json: bool = False
    trigger: Statement | None = None
    heredocs: tuple[HeredocText, ...] = ()
    escape: str = DEFAULT_ESCAPE


@dataclass(slots=True)
class SourceText:
    """A file, read: what its directives say, its statements, and warnings with the rule that each breaks."""

    directives: dict[str, str] = field(default_factory=dict)
    statements: list[Statement] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)


def read(text: bytes | str, name: str, *, first_line: int = 1, directives: bool = True) -> SourceText:
    """The statements of a file. Raises BuildSyntaxError."""
    if isinstance(text, bytes):
        # What is not UTF-8 must be told from what is, but only where it matters: see _refuse_unreadable.
        text = text.decode("utf-8", "surrogateescape")
    return _Reader(text.removeprefix("\ufeff"), name, first_line, directives).read()


def parse_heredoc(word: str) -> tuple[str, bool, bool, int] | None:
    """Name, whether its content is expanded, whether tabs are stripped, and descriptor of ``<<EOF``; None for other words. Raises WordError."""
    match = _HEREDOC.fullmatch(word)
    if match is None or not match[3]:
        return None
    plain = Lexer(match[3], {}, keep_unset=True).words()
    if len(plain) != 1:
        return None
    quoted = Lexer(match[3], {}, keep_unset=True, raw_quotes=True).words()
    expand = _quotes(plain[0]) == _quotes("".join(quoted))
    return plain[0], expand, match[2] == "-", int(match[1][-9:] or "0")


def _quotes(text: str) -> int:
    return text.count("'") + text.count('"')


class _Reader:
    def __init__(self, text: str, name: str, first_line: int, directives: bool) -> None:
        self._name = name
        self._lines = _lines(text)
        self._number = first_line - 1
        self._escape = DEFAULT_ESCAPE
        self._directives_over = not directives
        self._result = SourceText()

    def read(self) -> SourceText:
        for raw in self._lines:
            self._number += 1
            line = raw.rstrip("\r\n").lstrip(SPACE)
            if not self._directives_over:
                self._read_directive(line)
            if line.startswith("#"):
                continue
            line, continues = self._without_continuation(line)
            if line or continues:
                self._read_statement(line, continues)
        if not self._result.statements:
            raise refusal(f"{self._name}:{max(self._number, 1)}", "there is no instruction in it", "a Containerfile begins with FROM and an image")
        return self._result

    def _read_directive(self, line: str) -> None:
        key, equals, value = line[1:].partition("=")
        key, value = key.lstrip(SPACE).rstrip(_ASCII_SPACE), value.strip(_ASCII_SPACE) or value[-1:]
        name = key.lower()
        if not (line.startswith("#") and equals and value and _DIRECTIVE_NAME.fullmatch(key) and name in _DIRECTIVES):
            self._directives_over = True
            return
        place = f"{self._name}:{self._number}"
        if name in self._result.directives:
            raise refusal(place, f"the directive {name} stands there twice", "keep one of them")
        if name == "escape":
            if value not in ("\\", "`"):
                raise refusal(place, f"{value} cannot be the escape character", "write # escape=\\ or # escape=`")
            self._escape = value
        self._result.directives[name] = value

    def _without_continuation(self, line: str) -> tuple[str, bool]:
        """The line without the escape character at its end (spaces may follow it), and whether there was one. A doubled one is none."""
        bare = line.rstrip(" \t")
        if bare.endswith(self._escape) and not bare.endswith(self._escape * 2):
            return bare[:-1], True
        return line, False

    def _read_statement(self, line: str, continues: bool) -> None:
        start = self._number
        parts = [line]
        empty = False
        while continues:
            raw = next(self._lines, None)
            if raw is None:
                break
            self._number += 1
            bare = raw.lstrip(SPACE)
            if bare.startswith("#"):
                continue
            if not bare:
                empty = True
                continue
            line, continues = self._without_continuation(raw.rstrip("\r\n"))
            parts.append(line)
        joined = "".join(parts)
        location = Location(self._name, start, self._number)
        _refuse_unreadable(joined, location)
        if empty:
            shown = f"{self._name}:{start}: an empty line is within the instruction; take it away, or make it a comment"
            self._result.warnings.append(("NoEmptyContinuation", shown))
        heredocs = self._read_heredocs(joined, location) if "<<" in joined else ()
        location = Location(self._name, start, self._number)
        self._result.statements.append(_statement(joined, location, self._escape, heredocs))

    def _read_heredocs(self, line: str, location: Location) -> tuple[HeredocText, ...]:
        statement = _statement(line, location, self._escape, ())
        inner = statement.trigger or statement
        if inner.keyword.upper() not in _WITH_HEREDOCS or inner.json:
            return ()
        return tuple(self._read_heredoc(*begin, location) for begin in _heredocs_of(line, location))

    def _read_heredoc(self, name: str, expand: bool, strip_tabs: bool, descriptor: int, location: Location) -> HeredocText:
        content: list[str] = []
        for raw in self._lines:
            self._number += 1
            line = raw.rstrip("\r\n")
            if (line.lstrip("\t") if strip_tabs else line) == name:
                text = "".join(content)
                _refuse_unreadable(text, location)
                return HeredocText(name, text, expand, strip_tabs, descriptor)
            content.append(raw)
        remedy = f"end it with a line that has nothing but {name} (or put << into quotes, if none was meant)"
        raise refusal(location, f"the heredoc {name} is not ended", remedy)


def _lines(text: str) -> Iterator[str]:
    """Lines with their ends; only a line feed ends one."""
    position = 0
    while position < len(text):
        end = text.find("\n", position) + 1 or len(text)
        yield text[position:end]
        position = end


def _refuse_unreadable(text: str, location: Location) -> None:
    if "\0" in text:
        raise refusal(location, "there is a NUL byte in it", "a Containerfile is text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise refusal(location, "it is not UTF-8", "store the file in that encoding") from None


def _heredocs_of(line: str, location: Location) -> Iterator[tuple[str, bool, bool, int]]:
    try:
        words = Lexer(line, {}, raw_quotes=True, raw_escapes=True, keep_unset=True).words()
    except WordError:
        # A shell reads this line by rules of its own; what we cannot read has no heredocs.
        return
    for word in words:
        try:
            begin = parse_heredoc(word)
        except WordError as error:
            raise refusal(location, f"the heredoc {word} has no name: {error}", "write <<EOF") from None
        if begin is not None:
            yield begin


def _statement(line: str, location: Location, escape: str, heredocs: tuple[HeredocText, ...], inside: bool = False) -> Statement:
    """A line cut into keyword, flags and words."""
    keyword, *rest = BLANKS.split(line.strip(SPACE), maxsplit=1)
    flags, text = flags_and_rest(rest[0], escape) if rest else ((), "")
    text = text.strip(SPACE)
    words: tuple[str, ...] = ()
    is_json, trigger = False, None
    name = keyword.upper() if keyword.isascii() else keyword
    if name == "ONBUILD":
        if inside:
            raise refusal(location, "an ONBUILD cannot stand in an ONBUILD", "write it once")
        trigger = _statement(text, location, escape, (), True) if text else None
    elif name in CUTS:
        try:
            words, is_json = cut(name, text, escape)
        except CutError as error:
            raise refusal(location, error.what, error.instead) from None
    return Statement(location, keyword, flags, text, line, words, is_json, trigger, heredocs, escape)
