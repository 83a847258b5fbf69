"""Shell words as builders understand them: ``$NAME``, ``${NAME…}`` in all its forms, quotes and escapes, and where one word ends.

The rules are those of BuildKit's lexer, which are nearly and not quite a shell's: an undefined variable is empty, a backslash before any character
outside quotes goes away, ``$$`` is the (unset) variable ``$``. :mod:`bulle.build.expansion` uses it for instructions, :mod:`bulle.build.syntax` to
find heredocs. It executes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from bulle.build.wildcards import ShellPattern, WildcardError

# What Unicode calls white space; Python's str.isspace() knows more (the separators of ASCII), and \s in a pattern too.
SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"

# Nobody writes ${a:-${b:-…}} that deep; a file that does is made to exhaust the stack.
_DEEPEST = 50
# A value that grows by substitution (${x//a/aaaa…} and again) stops here, far above what an environment can carry.
_LONGEST = 1 << 20
_SPECIAL = "@*#?-$!0"
_OPERATORS = ("-", "+", "?", ":-", ":+", ":?", "#", "%")


class WordError(ValueError):
    """A word that cannot be read; says what is wrong with it."""


class Lexer:
    """Reads one text, once, with :meth:`text` or :meth:`words`.

    ``raw_quotes`` and ``raw_escapes`` keep quotes and escape characters in the result; ``quotes=False`` gives quotes no meaning; ``keep_unset``
    leaves references to undefined variables as they are written. Names that were looked up in vain are put into ``missing``. Raises WordError.
    """

    def __init__(
        self,
        text: str,
        variables: Mapping[str, str],
        *,
        escape: str = "\\",
        raw_quotes: bool = False,
        raw_escapes: bool = False,
        quotes: bool = True,
        keep_unset: bool = False,
        missing: set[str] | None = None,
    ) -> None:
        self._source = text
        self._variables = variables
        self._escape = escape
        self._raw_quotes = raw_quotes
        self._raw_escapes = raw_escapes
        self._keep_unset = keep_unset
        self._missing = missing
        self._position = 0
        self._depth = 0
        self._quotes = quotes
        # Everything up to the next of these is taken at once.
        special = "$<" + escape + ("'\"" if quotes else "")
        self._plain = re.compile(f"[^{re.escape(special)}]+")

    def text(self) -> str:
        """The whole text with variables replaced, spaces as they are."""
        return self._until("", self._raw_escapes)[0]

    def words(self) -> list[str]:
        """The same cut at spaces that stand outside quotes, also at those that came from a variable."""
        return self._until("", self._raw_escapes)[1]

    def _peek(self) -> str:
        return self._source[self._position : self._position + 1]

    def _next(self) -> str:
        character = self._peek()
        self._position += 1
        return character

    def _at_end(self) -> bool:
        return self._position >= len(self._source)

    def _until(self, stop: str, raw_escapes: bool) -> tuple[str, list[str]]:
        """Text and words up to ``stop`` (which is read too) or the end."""
        self._depth += 1
        if self._depth > _DEEPEST:
            raise WordError(f"braces stand more than {_DEEPEST} deep in each other")
        before, self._raw_escapes = self._raw_escapes, raw_escapes
        words = _Words()
        while not self._at_end():
            character = self._peek()
            if character == stop:
                self._position += 1
                self._depth -= 1
                self._raw_escapes = before
                return words.finished()
            if character == "$":
                words.add(self._dollar())
            elif character == "<":
                words.add_unbroken(self._perhaps_heredoc())
            elif self._quotes and character in "'\"":
                words.add_unbroken(self._single_quoted() if character == "'" else self._double_quoted())
            elif character == self._escape:
                self._position += 1
                if raw_escapes:
                    words.add_unbroken(character)
                words.add_unbroken(self._next())
            else:
                words.add(self._plain_text(stop))
        if stop:
            raise WordError(f"a {stop} is missing")
        self._depth -= 1
        self._raw_escapes = before
        return words.finished()

    def _plain_text(self, stop: str) -> str:
        match = self._plain.match(self._source, self._position)
        assert match is not None
        end = match.end()
        if stop:
            found = self._source.find(stop, self._position, end)
            end = end if found < 0 else found
        text = self._source[self._position : end]
        self._position = end
        return text

    def _single_quoted(self) -> str:
        end = self._source.find("'", self._position + 1)
        if end < 0:
            raise WordError("a single quote is not closed")
        text = self._source[self._position + 1 : end]
        self._position = end + 1
        return f"'{text}'" if self._raw_quotes else text

    def _double_quoted(self) -> str:
        quote = '"' if self._raw_quotes else ""
        parts = [quote]
        self._position += 1
        while not self._at_end():
            character = self._peek()
            if character == "$":
                parts.append(self._dollar())
                continue
            self._position += 1
            if character == '"':
                parts.append(quote)
                return "".join(parts)
            if character == self._escape:
                if self._raw_escapes:
                    parts.append(character)
                if self._at_end():
                    break
                if self._peek() in ('"', "$", self._escape):
                    character = self._next()
            parts.append(character)
        raise WordError("a double quote is not closed")

    def _perhaps_heredoc(self) -> str:
        """``<<`` with the spaces after it, which belong to the word: ``<< EOF`` is one."""
        begin = self._position
        self._position += 1
        if self._peek() != "<":
            return "<"
        self._position += 1
        while self._peek() in ("\t", "\r", " "):
            self._position += 1
        return self._source[begin : self._position]

    def _name(self) -> str:
        """A name, a number or one of the shell's special parameters; empty where there is none."""
        begin = self._position
        first = self._peek()
        if first and first in _SPECIAL and not first.isdecimal():
            return self._next()
        digits_only = first.isdecimal()
        while not self._at_end():
            character = self._peek()
            if not (character.isdecimal() or (not digits_only and (character.isalpha() or character == "_"))):
                break
            self._position += 1
        return self._source[begin : self._position]

    def _look_up(self, name: str) -> str | None:
        value = self._variables.get(name)
        if value is None and self._missing is not None:
            self._missing.add(name)
        return value

    def _dollar(self) -> str:
        self._position += 1
        if self._peek() != "{":
            name = self._name()
            if not name:
                return "$"
            value = self._look_up(name)
            return (f"${name}" if self._keep_unset else "") if value is None else value
        self._position += 1
        if self._at_end():
            raise WordError("a } is missing")
        if self._peek() in "{}:":
            raise WordError("${ wants the name of a variable")
        name = self._name()
        operator = self._next()
        if operator == "}":
            value = self._look_up(name)
            return (f"${{{name}}}" if self._keep_unset else "") if value is None else value
        if operator == "/":
            return self._replaced(name)
        if operator == ":":
            operator += self._next()
        if not operator:
            raise WordError("a } is missing")
        unknown = WordError(f"${{{name} is followed by {operator}; there are :- - :+ + :? ? # ## % %% / and //")
        if operator[0] not in ":-+?#%" or operator in (":#", ":%"):
            raise unknown
        word, _ = self._until("}", operator in "#%")
        value = self._look_up(name)
        if value is None and self._keep_unset:
            return f"${{{name}{operator}{word}}}"
        if operator not in _OPERATORS:
            raise unknown
        return _modified(name, operator, word, value)

    def _replaced(self, name: str) -> str:
        """``${name/pattern/replacement}``; a second slash at the begin replaces all."""
        everywhere = self._peek() == "/"
        if everywhere:
            self._position += 1
        pattern, _ = self._until("/", True)
        replacement, _ = self._until("}", True)
        value = self._look_up(name)
        if value is None and self._keep_unset:
            return f"${{{name}/{'/' if everywhere else ''}{pattern}/{replacement}}}"
        try:
            return ShellPattern(pattern).replace(value or "", replacement, everywhere=everywhere, longest=_LONGEST)
        except WildcardError as error:
            raise WordError(str(error)) from None


def _modified(name: str, operator: str, word: str, value: str | None) -> str:
    absent = value is None or (operator[0] == ":" and not value)
    value = value or ""
    if operator[-1] == "-":
        return word if absent else value
    if operator[-1] == "+":
        return "" if absent else word
    if operator[-1] == "?":
        if absent:
            raise WordError(f"{name}: {word or 'must be set'}")
        return value
    greedy = word.startswith(operator)
    try:
        pattern = ShellPattern(word[1:] if greedy else word)
        return pattern.without_prefix(value, greedy=greedy) if operator == "#" else pattern.without_suffix(value, greedy=greedy)
    except WildcardError as error:
        raise WordError(str(error)) from None


class _Words:
    """Text as it grows, once whole and once cut into words."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._words: list[str] = []
        self._word: list[str] = []
        self._length = 0

    def add(self, text: str) -> None:
        """Text whose spaces end words."""
        self._count(text)
        rest = text
        while rest:
            bare = rest.lstrip(SPACE)
            if bare != rest:
                self._end_word()
            end = next((index for index, character in enumerate(bare) if character in SPACE), len(bare))
            if end:
                self._word.append(bare[:end])
            rest = bare[end:]

    def add_unbroken(self, text: str) -> None:
        """Text whose spaces belong to the word."""
        self._count(text)
        self._word.append(text)

    def _count(self, text: str) -> None:
        self._text.append(text)
        self._length += len(text)
        if self._length > _LONGEST:
            raise WordError(f"the text grows beyond {_LONGEST} characters")

    def _end_word(self) -> None:
        word = "".join(self._word)
        if word:
            self._words.append(word)
        self._word = []

    def finished(self) -> tuple[str, list[str]]:
        """The text, and its words."""
        self._end_word()
        return "".join(self._text), self._words
