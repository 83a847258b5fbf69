"""Which stages a build has, what they need of each other, and which of them the result needs.

Made from a parsed Containerfile before anything is done. Arguments before the first FROM are evaluated here, since they choose images. Dockerfile
reference, "FROM", "ARG", "Automatic platform ARGs in the global scope".
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from bulle.build.expansion import expanded
from bulle.build.instructions import Add, Arg, Containerfile, Copy, From, Instruction, Run
from bulle.errors import InvalidInput
from bulle.model.image import Platform

PREDEFINED = frozenset(
    {"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "FTP_PROXY", "ftp_proxy", "NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"}
)
"""Arguments that need no ARG and that no cache counts."""


@dataclass(frozen=True)
class Stage:
    """One stage: ``base`` is an earlier stage's number or an image's name, ``needs`` are the numbers of all stages that it takes anything from."""

    number: int
    name: str
    base: int | str
    platform: str
    beginning: From
    instructions: tuple[Instruction, ...]
    needs: frozenset[int]

    @property
    def shown(self) -> str:
        """How progress and errors name it."""
        return self.name or f"stage-{self.number}"


@dataclass(frozen=True)
class Graph:
    """All stages in the file's order, the arguments that stand before them, and the stage that is the result."""

    stages: tuple[Stage, ...]
    global_arguments: Mapping[str, str]
    target: Stage

    @property
    def needed(self) -> list[Stage]:
        """The target and what it needs, in the file's order."""
        wanted, pending = set(), [self.target.number]
        while pending:
            number = pending.pop()
            if number not in wanted:
                wanted.add(number)
                pending += self.stages[number].needs
        return [stage for stage in self.stages if stage.number in wanted]


def platform_arguments(target: Platform, build: Platform) -> dict[str, str]:
    """The arguments that describe both platforms."""
    return {
        f"{prefix}{part}": value
        for prefix, platform in (("TARGET", target), ("BUILD", build))
        for part, value in (("PLATFORM", str(platform)), ("OS", platform.os), ("ARCH", platform.architecture), ("VARIANT", platform.variant))
    }


def make_graph(file: Containerfile, target: str, given: Mapping[str, str], platforms: Mapping[str, str], contexts: Mapping[str, str]) -> Graph:
    """The stages of a file. ``given`` are the caller's arguments; names in ``contexts`` replace images and stages. Raises InvalidInput."""
    arguments: dict[str, str] = dict(platforms)
    stages: list[Stage] = []
    numbers: dict[str, int] = {}
    for instruction in file.instructions:
        if isinstance(instruction, Arg) and not stages:
            for name, default in _named(expanded(instruction, arguments)):
                value = given.get(name, default if default is not None else arguments.get(name))
                if value is not None:
                    arguments[name] = value
        elif isinstance(instruction, From):
            beginning = expanded(instruction, arguments)
            assert isinstance(beginning, From)
            number = len(stages)
            if not beginning.image:
                raise InvalidInput(f"{instruction.location}: FROM names no image", f"{instruction.image} is empty", "give the argument a default")
            base: int | str = beginning.image
            if beginning.image not in contexts:
                base = numbers.get(beginning.image.lower(), beginning.image)
            needs = frozenset({base} if isinstance(base, int) else ())
            stages.append(Stage(number, beginning.name, base, beginning.platform, beginning, (), needs))
            if beginning.name:
                numbers[beginning.name.lower()] = number
        elif stages:
            stages[-1] = _with(stages[-1], instruction, numbers, contexts)
    if not stages:
        raise InvalidInput(
            f"{file.instructions[0].location.file if file.instructions else 'the Containerfile'} has no FROM", "", "begin with FROM IMAGE"
        )
    return Graph(tuple(stages), arguments, _target(stages, numbers, target))


def _named(instruction: Instruction) -> tuple[tuple[str, str | None], ...]:
    assert isinstance(instruction, Arg)
    return instruction.names


def _with(stage: Stage, instruction: Instruction, numbers: Mapping[str, int], contexts: Mapping[str, str]) -> Stage:
    """The stage with one more instruction, and what that takes from others."""
    sources: list[str] = []
    if isinstance(instruction, Copy | Add) and instruction.from_:
        sources.append(instruction.from_)
    elif isinstance(instruction, Run):
        sources += [mount.from_ for mount in instruction.mounts if mount.from_]
    needs = set(stage.needs)
    for source in sources:
        number = stage_number(source, stage.number, numbers, contexts)
        if number == stage.number:
            raise InvalidInput(f"{instruction.location}: the stage {source!r} cannot take files from itself", "", "name an earlier stage or an image")
        if number is not None:
            needs.add(number)
    return Stage(stage.number, stage.name, stage.base, stage.platform, stage.beginning, (*stage.instructions, instruction), frozenset(needs))


def stage_number(source: str, before: int, numbers: Mapping[str, int], contexts: Mapping[str, str]) -> int | None:
    """The number of the stage that a ``--from`` names; None for an image or context."""
    if source in contexts:
        return None
    if source.isdecimal() and len(source) < 6:
        return int(source) if int(source) < before + 1 else None
    return numbers.get(source.lower())


def _target(stages: list[Stage], numbers: Mapping[str, int], wanted: str) -> Stage:
    if not wanted:
        return stages[-1]
    if wanted.isdecimal() and len(wanted) < 6 and int(wanted) < len(stages):
        return stages[int(wanted)]
    if wanted.lower() in numbers:
        return stages[numbers[wanted.lower()]]
    close = difflib.get_close_matches(wanted.lower(), numbers, 1)
    names = ", ".join(stage.name for stage in stages if stage.name)
    advice = f"did you mean {close[0]}?" if close else f"stages are {names}" if names else "no stage has a name: write FROM … AS NAME"
    raise InvalidInput(f"there is no stage {wanted!r}", "", advice)
