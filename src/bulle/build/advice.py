"""What in a Containerfile is allowed and probably not meant: the warnings of ``parse``.

Each has the name that BuildKit gives to the same check, so that ``# check=skip=Name`` works for both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from bulle.build import instructions as known
from bulle.build.instructions import Instruction
from bulle.build.syntax import Statement

_RESERVED = ("context", "scratch")
_SECRET = re.compile(r"(?:^|_)(?:apikey|auth|credential|credentials|key|password|pword|passwd|secret|token)(?:_|$)", re.IGNORECASE)
_NO_SECRET = re.compile(r"(?:^|_)(?:public|file)(?:_|$)", re.IGNORECASE)
_JSON_WANTED = ("ADD", "CMD", "COPY", "ENTRYPOINT", "HEALTHCHECK", "RUN", "VOLUME")


def advise(statements: Iterable[Statement], found: Iterable[Instruction]) -> Iterator[tuple[str, str]]:
    """Rule and text of every warning, in the order of the file."""
    stage = _Stage()
    for statement, instruction in zip(statements, found, strict=True):
        for rule, text in (*_of_statement(statement), *stage.take(instruction)):
            yield rule, f"{instruction.location}: {text}"


def _of_statement(statement: Statement) -> Iterator[tuple[str, str]]:
    keyword = statement.keyword.upper()
    text = statement.words[-1] if keyword == "HEALTHCHECK" and statement.words else statement.text
    if keyword in _JSON_WANTED and not statement.json and _resembles_json(text):
        yield "JSONArgsRecommended", f"{keyword} resembles JSON and is none, so it is taken as plain text: put double quotes around every word"
    if keyword in ("ENV", "LABEL") and statement.words and "=" not in statement.text.split(None, 1)[0]:
        name = statement.words[0]
        yield "LegacyKeyValueFormat", f"{keyword} {name} has a space after the name: write {keyword} {name}=value"
    if keyword == "MAINTAINER":
        yield "MaintainerDeprecated", "MAINTAINER is deprecated: write LABEL org.opencontainers.image.authors=name"


def _resembles_json(text: str) -> bool:
    # [ "$a" = b ] is a command of the shell, ["a" is nothing but JSON gone wrong.
    if text.startswith(('["', "['")):
        return True
    return text.startswith(('[ "', "[ '")) and text.endswith("]") and "," in text


class _Stage:
    """What was said in the stages so far."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._once: set[str] = set()
        self._absolute = False

    def take(self, instruction: Instruction) -> Iterator[tuple[str, str]]:
        """The warnings for the next instruction."""
        if isinstance(instruction, known.From):
            self._once.clear()
            self._absolute = False
            if instruction.name in self._names:
                yield "DuplicateStageName", f"an earlier stage is called {instruction.name} too, and from here on this one is meant: rename one"
            if instruction.name in _RESERVED:
                yield "ReservedStageName", f"{instruction.name} is a name with a meaning of its own: give the stage another one"
            self._names |= {instruction.name} - {""}
        elif isinstance(instruction, known.Cmd | known.Entrypoint | known.Healthcheck):
            if instruction.keyword in self._once:
                yield "MultipleInstructionsDisallowed", f"only the last {instruction.keyword} of a stage counts: take the earlier ones away"
            self._once.add(instruction.keyword)
        elif isinstance(instruction, known.Workdir):
            self._absolute = self._absolute or instruction.path.lstrip("\"'").startswith(("/", "$"))
            if not self._absolute:
                yield "WorkdirRelativePath", f"WORKDIR {instruction.path} depends on the image before it: write the whole path"
        elif isinstance(instruction, known.Arg | known.Env):
            pairs = instruction.names if isinstance(instruction, known.Arg) else instruction.pairs
            for name, _ in pairs:
                if _SECRET.search(name) and not _NO_SECRET.search(name):
                    text = f"{instruction.keyword} {name} stays in the image for everyone to read: use RUN --mount=type=secret"
                    yield "SecretsUsedInArgOrEnv", text
