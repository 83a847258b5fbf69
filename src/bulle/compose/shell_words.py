"""A command written as one string, split into words as Compose does it: quotes and backslashes, no variables, nothing run.

Everything from an operator of a shell on (``;``, ``&``, ``|``, ``<``, ``>``) is no part of the command, as for Compose; :func:`leftover` tells of it.
"""

from __future__ import annotations

from typing import NamedTuple

_OPERATORS = frozenset(";&|<>")
_BLANKS = frozenset(" \t\r\n")


class Words(NamedTuple):
    """The words, and what stands behind them from an operator on."""

    words: list[str]
    leftover: str


def split_words(text: str) -> list[str]:
    """The words of a command. Raises ValueError where a quote or a bracket is open at its end."""
    return split(text).words


def split(text: str) -> Words:
    """The words of a command and its leftover. Raises ValueError."""
    return _Splitter(text).split()


class _Splitter:
    def __init__(self, text: str) -> None:
        self.text = text
        self.words: list[str] = []
        self.word = ""
        self.begun = False
        """Whether there is a word, also an empty one in quotes."""
        self.quote = ""
        self.escaped = False

    def split(self) -> Words:
        for position, character in enumerate(self.text):
            if self.escaped:
                self.word += character
                self.escaped = False
                self.begun = True
            elif character == "\\":
                if self.quote == "'":
                    self.word += character
                else:
                    self.escaped = True
            elif character in _BLANKS and not self.quote:
                self.end()
            elif not self.special(character):
                if character in _OPERATORS and not self.quote:
                    if character == ">" and self.word[:1].isdigit():
                        self.word, self.begun = "", False
                    self.end()
                    return Words(self.words, self.text[position:])
                self.word += character
                self.begun = True
        if self.escaped or self.quote:
            raise ValueError(f"{self.text!r} has a quote or bracket that is never closed")
        self.end()
        return Words(self.words, "")

    def end(self) -> None:
        if self.begun or self.word:
            self.words.append(self.word)
        self.word, self.begun = "", False

    def special(self, character: str) -> bool:
        """Quotes and brackets: whether the character is dealt with."""
        if character in "'\"" and self.quote in ("", character):
            self.quote = "" if self.quote else character
            self.begun = True
            return True
        if character == "`" and self.quote in ("", "`"):
            self.quote = "" if self.quote else "`"
        elif character == "(" and not self.quote:
            if not self.word.endswith("$"):
                raise ValueError(f"{self.text!r} has a bracket that a shell would understand, and there is none")
            self.quote = "("
        elif character == ")" and self.quote == "(":
            self.quote = ""
        else:
            return False
        self.word += character
        self.begun = True
        return True
