"""Env files (``.env``, ``env_file``, ``label_file``) as compose-go's dotenv reads them: quotes, ``export``, several lines, comments, variables.

It knows no project: who calls it says what a variable is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from bulle.compose.document import MOST_BYTES, InvalidFile, refusal
from bulle.compose.interpolation import InvalidTemplate, Lookup, RequiredVariable, substitute
from bulle.compose.model import Place
from bulle.errors import NotFound

_BLANK = "\t\v\f\r \x85\xa0"
_ESCAPE = re.compile(r"\\(?:[abcfnrtv$\"\\]|0\d{0,3})", re.ASCII)
_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\", '"': '"', "$": "$$"}
_EXPORT = re.compile(r"export[ \t\n\r\f\v]+")


def read_env_files(files: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """What several files say, the later ones over the earlier; variables in them are the environment's, then those of the files so far."""
    found: dict[str, str] = {}
    for file in files:
        if os.path.isdir(file):
            raise InvalidFile(f"{file} is a directory", "an env file was asked for")

        def lookup(name: str) -> str | None:
            value = environment.get(name)
            return found.get(name) if value is None else value

        found.update(read_env_file(file, lookup))
    return found


def read_env_file(file: str, lookup: Lookup, *, raw: bool = False) -> dict[str, str]:
    """What one file (host path) says; ``raw``: everything behind the equals sign as it stands. Raises NotFound, InvalidFile."""
    try:
        with open(file, "rb") as opened:
            content = opened.read(MOST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"no env file {file}", "", "make it, or say required: false") from None
    except OSError as error:
        raise InvalidFile(f"cannot read {file}", error.strerror or "") from None
    if len(content) > MOST_BYTES:
        raise InvalidFile(f"{file} is too large", "", f"an env file has at most {MOST_BYTES >> 20} MB")
    text = content.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    return _raw(text, file, lookup) if raw else _Parser(text, file, lookup).parse()


def _raw(text: str, file: str, lookup: Lookup) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.lstrip()
        if not line or line.startswith("#"):
            continue
        key, equals, value = line.partition("=")
        if not key or any(character.isspace() for character in key):
            raise refusal(Place(file, number), f"the name {key!r} has a blank" if key else "no name of a variable")
        if equals:
            found[key] = value
        elif (known := lookup(key)) is not None:
            found[key] = known
    return found


class _Parser:
    def __init__(self, text: str, file: str, lookup: Lookup) -> None:
        self.text = text
        self.file = file
        self.given = lookup
        self.position = 0
        self.found: dict[str, str] = {}

    def lookup(self, name: str) -> str | None:
        value = self.given(name)
        return self.found.get(name) if value is None else value

    def refused(self, position: int, what: str) -> InvalidFile:
        return refusal(Place(self.file, self.text.count("\n", 0, position) + 1), what)

    def parse(self) -> dict[str, str]:
        while self.skip_to_statement():
            start = self.position
            key, inherited = self.key()
            if " " in key:
                raise self.refused(start, f"the name {key!r} has a blank")
            if inherited:
                if (value := self.given(key)) is not None:
                    self.found[key] = value
            else:
                self.found[key] = self.value()
        return self.found

    def skip_to_statement(self) -> bool:
        text = self.text
        while True:
            while self.position < len(text) and text[self.position].isspace():
                self.position += 1
            if self.position == len(text):
                return False
            if text[self.position] != "#":
                return True
            end = text.find("\n", self.position)
            if end < 0:
                self.position = len(text)
                return False
            self.position = end

    def skip_blanks(self) -> None:
        while self.position < len(self.text) and self.text[self.position] in _BLANK:
            self.position += 1

    def key(self) -> tuple[str, bool]:
        if _EXPORT.match(self.text, self.position):
            self.position += len("export")
            self.skip_blanks()
        start = self.position
        for index in range(start, len(self.text)):
            character = self.text[index]
            if character in _BLANK:
                continue
            if character in "=:\n":
                self.position = index + 1
                self.skip_blanks()
                return self.text[start:index].rstrip(), character == "\n"
            if character not in "_.-[]" and not character.isalpha() and not character.isnumeric():
                raise self.refused(index, f"unexpected {character!r} in the name of a variable")
        # without a line's end there is no name: what Compose's own reader makes of it
        return "", False

    def value(self) -> str:
        text = self.text
        quote = text[self.position : self.position + 1]
        if quote not in ("'", '"') or not quote:
            end = text.find("\n", self.position)
            line = text[self.position : end if end >= 0 else len(text)]
            start, self.position = self.position, end + 1 if end >= 0 else len(text)
            return self.expanded(line.partition(" #")[0].rstrip(), start)
        start = self.position
        characters: list[str] = []
        escaped = False
        for index in range(start + 1, len(text)):
            character = text[index]
            if character == quote and not escaped:
                self.position = index + 1
                value = "".join(characters)
                return self.expanded(_ESCAPE.sub(_unescaped, value), start) if quote == '"' else value
            if character != quote and not escaped and character == "\\":
                escaped = True
                continue
            if escaped and character != quote:
                characters.append("\\")
            escaped = False
            characters.append(character)
        raise self.refused(start, f"the quote {quote} is never closed")

    def expanded(self, value: str, start: int) -> str:
        try:
            return substitute(value, self.lookup)
        except InvalidTemplate as error:
            raise self.refused(start, f"{str(error)!r} has a $ that begins no variable") from None
        except RequiredVariable as error:
            raise self.refused(start, str(error)) from None


def _unescaped(match: re.Match[str]) -> str:
    text = match[0][1:]
    if text in _ESCAPES:
        return _ESCAPES[text]
    # \0 and three octal digits are a byte; anything shorter stays as it stands
    if len(text) == 4 and all(digit in "01234567" for digit in text) and (number := int(text, 8)) < 256:
        return chr(number)
    return f"\\{text.removeprefix('0')}"
