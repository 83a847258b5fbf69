"""How the text after a keyword is cut: flags, words, ``name=value`` pairs, JSON.

Which instruction is cut in which way stands in :data:`CUTS`. Nothing is replaced here: quotes and ``$`` stay in the words, and go when the
instruction is carried out (:mod:`bulle.build.expansion`). The rules are those of BuildKit's parser, where an escape character keeps the quote
after it from beginning a quoted part.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from bulle.build.shell_words import SPACE

BLANKS = re.compile(r"[\t\v\f\r ]+")
_SPACE = frozenset(SPACE)


class CutError(ValueError):
    """A text that cannot be cut: what is wrong with it, and what to write instead."""

    def __init__(self, what: str, instead: str) -> None:
        super().__init__(what, instead)
        self.what = what
        self.instead = instead


def flags_and_rest(text: str, escape: str) -> tuple[tuple[str, ...], str]:
    """The words at the begin that begin with ``--`` (their quotes and escapes removed), up to a lone ``--``; and what is after them."""
    flags: list[str] = []
    position, length = 0, len(text)
    while position < length:
        if text[position] in _SPACE:
            position += 1
            continue
        if not text.startswith("--", position):
            return tuple(flags), text[position:]
        word, position = _flag(text, position, escape)
        if word == "--":
            return tuple(flags), text[position:]
        flags.append(word)
    return tuple(flags), ""


def _flag(text: str, position: int, escape: str) -> tuple[str, int]:
    parts: list[str] = []
    quote = ""
    while position < len(text):
        character = text[position]
        if not quote and character in _SPACE:
            break
        position += 1
        if character == quote:
            quote = ""
        elif not quote and character in "'\"":
            quote = character
        elif character == escape:
            # At the end there is nothing to escape, and it goes away.
            parts.append(text[position : position + 1])
            position += 1
        else:
            parts.append(character)
    return "".join(parts), position


def words(text: str, escape: str) -> list[str]:
    """Words between spaces; quoted parts, with their quotes, are within a word."""
    found: list[str] = []
    word: list[str] = []
    quote = ""
    position, length = 0, len(text)
    while position < length:
        character = text[position]
        position += 1
        if not quote and character in _SPACE:
            if word:
                found.append("".join(word))
                word = []
            continue
        if character == escape and quote != "'":
            if position == length:
                break
            word += [character, text[position]]
            position += 1
            continue
        if character == quote:
            quote = ""
        elif not quote and character in "'\"":
            quote = character
        word.append(character)
    if word:
        found.append("".join(word))
    return found


def _assignments(keyword: str) -> Callable[[str, str], list[str]]:
    """Names and values in turn: from ``name=value …``, or from the old form ``name value with spaces``."""

    def cut(text: str, escape: str) -> list[str]:
        found = words(text, escape)
        if not found:
            return []
        if "=" not in found[0]:
            pair = BLANKS.split(text, maxsplit=1)
            if len(pair) < 2:
                raise CutError(f"{keyword} wants a name and a value", f"write {keyword} {pair[0]}=value")
            return pair
        for word in found:
            if "=" not in word:
                raise CutError(f"{keyword} wants name=value pairs, and {word} has no =", "put quotes around a value with spaces")
        return [part for word in found for part in word.split("=", 1)]

    return cut


def _by_blanks(text: str, escape: str) -> list[str]:
    return BLANKS.split(text) if text else []


def _whole(text: str, escape: str) -> list[str]:
    return [text] if text else []


def json_array(text: str) -> list[str] | None:
    """The texts of a JSON array; None where the text is none, for then it is a shell form. An array of anything but texts is refused."""
    if not text.startswith("["):
        return None
    import json  # costs a millisecond, and not every file has a JSON form

    def refuse(name: str) -> None:
        raise ValueError(name)

    try:
        values = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return None
    for value in values:
        if not isinstance(value, str):
            raise CutError(f"a JSON form has texts only, and {json.dumps(value)[:40]} is none", "put double quotes around it")
        if "\0" in value:
            raise CutError("there is a NUL character in the JSON form", "take it away, no program can be given one")
    # Half of a surrogate pair is no character.
    return [value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") for value in values]


# How the text of each instruction is cut, and whether it may be JSON. ONBUILD is not here: its text is an instruction.
CUTS: dict[str, tuple[Callable[[str, str], list[str]], bool]] = {
    "ADD": (_by_blanks, True),
    "ARG": (words, False),
    "CMD": (_whole, True),
    "COPY": (_by_blanks, True),
    "ENTRYPOINT": (_whole, True),
    "ENV": (_assignments("ENV"), False),
    "EXPOSE": (_by_blanks, False),
    "FROM": (_by_blanks, False),
    "HEALTHCHECK": (_whole, True),
    "LABEL": (_assignments("LABEL"), False),
    "MAINTAINER": (_whole, False),
    "RUN": (_whole, True),
    "SHELL": (_whole, True),
    "STOPSIGNAL": (_whole, False),
    "USER": (_whole, False),
    "VOLUME": (_by_blanks, True),
    "WORKDIR": (_whole, False),
}


def cut(keyword: str, text: str, escape: str) -> tuple[tuple[str, ...], bool]:
    """The words of an instruction, and whether they stood in a JSON form. Raises CutError."""
    if keyword == "HEALTHCHECK":
        kind, blanks, command = _first_word(text)
        if not kind:
            return (), False
        found, is_json = cut("CMD", command, escape) if blanks else ((), False)
        return (kind, *found), is_json
    how, may_be_json = CUTS[keyword]
    array = json_array(text) if may_be_json else None
    if array is not None:
        return tuple(array), True
    return tuple(how(text, escape)), False


def _first_word(text: str) -> tuple[str, str, str]:
    end = next((index for index, character in enumerate(text) if character in _SPACE), len(text))
    rest = text[end:].lstrip(SPACE)
    return text[:end], text[end : len(text) - len(rest)], rest
