"""Variables in instructions: :func:`expanded` gives an instruction as it is carried out, with ``$NAME`` replaced and quotes and escapes taken away.

Which parts of which instruction are treated so is BuildKit's choice, and stands in :func:`expanded` at one place: commands (RUN, CMD, ENTRYPOINT,
HEALTHCHECK, SHELL) are left to the shell, ONBUILD to the later build, MAINTAINER and ``--exclude`` stay as they are, and the stage of ``--from``
may not vary at all. Variables are those of the stage, or before the first FROM (and for FROM itself) the file's own build arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from bulle.build import instructions as known
from bulle.build.instructions import Heredoc, Instruction
from bulle.build.mounts import MountError, read_mount
from bulle.build.shell_words import Lexer, WordError
from bulle.build.syntax import refusal

_Files = TypeVar("_Files", known.Copy, known.Add)


def expanded(instruction: Instruction, variables: Mapping[str, str], missing: set[str] | None = None) -> Instruction:
    """The instruction with its variables replaced; undefined ones are empty, and ``missing`` gathers their names. Raises BuildSyntaxError.

    In an ARG each default sees the names before it; where build arguments come in between, expand the defaults one by one with :func:`expand_text`.
    """
    expansion = _Expansion(instruction, variables, missing)
    match instruction:
        case known.From():
            return expansion.from_(instruction)
        case known.Arg():
            return expansion.arg(instruction)
        case known.Env() | known.Label():
            return replace(instruction, pairs=tuple((expansion.text(name), expansion.text(value)) for name, value in instruction.pairs))
        case known.Run():
            return expansion.run(instruction)
        case known.Copy():
            return expansion.files(instruction)
        case known.Add():
            return replace(expansion.files(instruction), checksum=expansion.text(instruction.checksum))
        case known.Expose():
            return replace(instruction, ports=expansion.words(instruction.ports))
        case known.Volume():
            return replace(instruction, paths=expansion.texts(instruction.paths))
        case known.User():
            return replace(instruction, user=expansion.text(instruction.user))
        case known.Workdir():
            return replace(instruction, path=expansion.text(instruction.path))
        case known.StopSignal():
            return replace(instruction, signal=expansion.text(instruction.signal))
    return instruction


def expand_text(text: str, instruction: Instruction, variables: Mapping[str, str], missing: set[str] | None = None) -> str:
    """One text of an instruction with its variables replaced, quotes and escapes taken away. Raises BuildSyntaxError."""
    return _Expansion(instruction, variables, missing).text(text)


class _Expansion:
    def __init__(self, instruction: Instruction, variables: Mapping[str, str], missing: set[str] | None) -> None:
        self._instruction, self._variables, self._missing = instruction, variables, missing

    def _lexer(self, text: str) -> Lexer:
        return Lexer(text, self._variables, escape=self._instruction.escape, missing=self._missing)

    def _refuse(self, text: str, error: WordError) -> Exception:
        shown = text if len(text) <= 60 else f"{text[:60]}…"
        escape = self._instruction.escape
        remedy = f"put {escape} before a $ or a quote that is meant as such"
        return refusal(self._instruction.location, f"{shown} cannot be expanded: {error}", remedy)

    def text(self, text: str) -> str:
        if text.isalnum():
            return text
        try:
            return self._lexer(text).text()
        except WordError as error:
            raise self._refuse(text, error) from None

    def texts(self, texts: Iterable[str]) -> tuple[str, ...]:
        return tuple(self.text(text) for text in texts)

    def words(self, texts: Iterable[str]) -> tuple[str, ...]:
        """Texts that may each become several words, or none."""
        found: list[str] = []
        for text in texts:
            try:
                found += self._lexer(text).words()
            except WordError as error:
                raise self._refuse(text, error) from None
        return tuple(found)

    def from_(self, instruction: known.From) -> known.From:
        image, platform = self.text(instruction.image), self.text(instruction.platform)
        if not image:
            what = f"{instruction.image} is empty, and FROM wants an image"
            raise refusal(instruction.location, what, "write ARG with a default before the first FROM, or give --build-arg")
        if instruction.platform and not platform:
            what = f"--platform={instruction.platform} is empty"
            raise refusal(instruction.location, what, "write ARG with a default before the first FROM, or give --build-arg")
        return replace(instruction, image=image, platform=platform)

    def arg(self, instruction: known.Arg) -> known.Arg:
        known_by_now = dict(self._variables)
        self._variables = known_by_now
        names: list[tuple[str, str | None]] = []
        for name, default in instruction.names:
            value = None if default is None else self.text(default)
            if value is not None:
                known_by_now[name] = value
            names.append((name, value))
        return replace(instruction, names=tuple(names))

    def run(self, instruction: known.Run) -> known.Run:
        if not instruction.mount_options:
            return instruction
        try:
            return replace(instruction, mounts=tuple(read_mount(text, self.text) for text in instruction.mount_options))
        except MountError as error:
            raise refusal(instruction.location, error.what, error.instead) from None

    def files(self, instruction: _Files) -> _Files:
        return replace(
            instruction,
            sources=self.texts(instruction.sources),
            destination=self.text(instruction.destination),
            heredocs=tuple(self._heredoc(heredoc) for heredoc in instruction.heredocs),
            chown=self.text(instruction.chown),
            chmod=self.text(instruction.chmod),
        )

    def _heredoc(self, heredoc: Heredoc) -> Heredoc:
        """In the content of a heredoc quotes mean nothing, and the backslash escapes whatever the file says."""
        if not heredoc.expand:
            return heredoc
        try:
            content = Lexer(heredoc.content, self._variables, quotes=False, missing=self._missing).text()
        except WordError as error:
            remedy = f"quote its delimiter, <<'{heredoc.name}', if nothing in it is to be replaced"
            raise refusal(self._instruction.location, f"the heredoc {heredoc.name} cannot be expanded: {error}", remedy) from None
        return replace(heredoc, content=content)
