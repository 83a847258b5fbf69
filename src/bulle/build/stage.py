"""One stage carried out, instruction by instruction: each changes the state, and those that make a layer ask the cache first.

Stages of one build run in threads of their own; what a stage takes from another it waits for at that instruction and not before. What all stages
share (engine, options, context, results) is behind :class:`Work`. Dockerfile reference.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from bulle.build import instructions as known
from bulle.build.cache import Inputs, reason
from bulle.build.configuring import configure
from bulle.build.copying import directory_member
from bulle.build.expansion import expand_text, expanded
from bulle.build.files import Files
from bulle.build.graph import PREDEFINED, Stage
from bulle.build.instructions import Instruction, Location
from bulle.build.options import BuildEvent, BuildOptions, Report, Step
from bulle.build.owners import owner
from bulle.build.parsing import parse_one
from bulle.build.running import arguments_of, check_allowed, execute, network_of
from bulle.build.sources import Source
from bulle.build.state import StageState
from bulle.build.step_mounts import StepMounts
from bulle.engine import Engine
from bulle.errors import BulleError, InvalidInput, NotFound
from bulle.model.digest import Digest
from bulle.model.image import OCI_LAYER
from bulle.records.build_steps import BuildStepRow
from bulle.registry import tar_format
from bulle.store import Layer

_STEPS = (known.Run, known.Copy, known.Add, known.Workdir)


class Work(Protocol):
    """What the stages of one build share."""

    engine: Engine
    options: BuildOptions
    report: Report
    explain: bool
    now_ns: int
    latest_ns: int | None

    @property
    def cancelled(self) -> bool: ...
    def argument(self, name: str) -> str | None: ...
    def global_argument(self, name: str) -> str | None: ...
    def begin(self, stage: Stage) -> StageState: ...
    def source(self, name: str, stage: Stage, cleanup: ExitStack) -> Source: ...
    def locked(self, key: str) -> AbstractContextManager[None]: ...
    def used(self, row: BuildStepRow) -> None: ...
    def running(self) -> AbstractContextManager[object]: ...
    def ended_by(self, stop: Callable[[], None]) -> AbstractContextManager[None]: ...


class Cancelled(BulleError):
    """Another stage failed first."""


class Pruned(BulleError):
    """A layer from the cache was pruned before it was kept: the build begins anew."""


@dataclass
class StageRun:
    """One stage of one build."""

    work: Work
    stage: Stage
    _taken: list[Digest] = field(default_factory=list)
    _number: int = 0
    _total: int = 0
    state: StageState = field(init=False)

    def run(self) -> StageState:
        """Carry all of it out; returns what it came to. Raises BulleError naming file and line."""
        instructions = self.stage.instructions
        self._total = 1 + sum(isinstance(instruction, _STEPS) for instruction in instructions)
        with self._step(self.stage.beginning.original) as step:
            self.work.report(BuildEvent("started", step.step))
            self.state = self.work.begin(self.stage)
            self._taken += self.state.layers
            self.work.report(BuildEvent("done", step.step, seconds=step.seconds))
        triggers = [self._trigger(text) for text in self.state.config.on_build or ()]
        if triggers:
            self.state.change(on_build=None)
            self._total += sum(isinstance(instruction, _STEPS) for instruction in triggers)
        try:
            for instruction in (*triggers, *instructions):
                self._carry_out(instruction)
        except (NotFound, OSError):
            self.keep_taken()  # if a layer was pruned meanwhile, that is why
            raise
        return self.state

    def _trigger(self, text: str) -> Instruction:
        return parse_one(text, Location(f"ONBUILD of {self.stage.base}", 1, 1))

    @property
    def arguments(self) -> dict[str, str]:
        """What ARG has declared."""
        return self.state.arguments

    @property
    def variables(self) -> dict[str, str]:
        """What ``$NAME`` means now: ENV, and arguments that it does not name."""
        return {**self.arguments, **self.state.environment}

    @property
    def _uncached(self) -> set[str]:
        return {name.strip().lower() for names in self.work.options.no_cache_stages for name in names.split(",")} - {""}

    def _carry_out(self, instruction: Instruction) -> None:
        if isinstance(instruction, known.Arg):
            self._declare(instruction)
            return
        missing: set[str] = set()
        instruction = expanded(instruction, self.variables, missing)
        for name in sorted(missing):
            self.work.report(BuildEvent("warning", None, text=f"{instruction.location}: nobody set the variable {name}, so it is empty"))
        try:
            match instruction:
                case known.Run():
                    self._run(instruction)
                case known.Copy() | known.Add():
                    self._copy(instruction)
                case known.Workdir():
                    self._enter(instruction)
                case _:
                    configure(self.state, instruction)
        except Cancelled:
            raise
        except BulleError as error:
            # What the rooms below say knows nothing of the file.
            if not error.brief.startswith(f"{instruction.location}:"):
                error.brief = f"{instruction.location}: {error.brief}"
                error.args = (error.brief, error.details, error.resolution)
            raise

    def _declare(self, instruction: known.Arg) -> None:
        for name, default in instruction.names:
            value = self.work.argument(name)
            if value is None and default is not None:
                value = expand_text(default, instruction, self.variables)
            if value is None:
                value = self.work.global_argument(name)
            if value is not None:
                self.arguments[name] = value
            else:
                self.arguments.pop(name, None)
            self.state.note(f"ARG {name}" + (f"={value}" if value is not None and name not in PREDEFINED else ""), empty=True)

    def _run(self, run: known.Run) -> None:
        state, work = self.state, self.work
        check_allowed(run, work.options)
        words = arguments_of(run, state.shell)
        shown = " ".join(words)
        counted = {name: value for name, value in self.arguments.items() if name not in PREDEFINED}
        with ExitStack() as cleanup:
            mounts = cleanup.enter_context(
                StepMounts(run, state.config.working_dir or "/", work.engine.store, work.options, lambda name: work.source(name, self.stage, cleanup))
            )
            inputs = Inputs(state.chain_id, run.original)
            inputs.add("command", repr((words, run.script, network_of(run, work.options), run.security, state.host_binds)))
            for name, value in sorted(counted.items()):
                inputs.add(f"argument {name}", value)
            for name, value in state.environment.items():
                inputs.add(f"variable {name}", value)
            for name, value in (("user", state.config.user), ("working directory", state.config.working_dir), ("platform", str(state.platform))):
                inputs.add(name, value)
            if work.options.isolation:
                inputs.add("isolation", work.options.isolation)
            if work.latest_ns is not None:
                inputs.add("SOURCE_DATE_EPOCH", str(work.latest_ns))
            mounts.describe(inputs)
            arguments = {**{name: given for name in sorted(PREDEFINED) if (given := work.argument(name)) is not None}, **self.arguments}

            def make(output: Callable[[bytes], None]) -> Layer:
                with work.running():
                    return execute(work.engine, state, run, arguments, mounts, work.options, output, work.ended_by, work.latest_ns)

            passed = "".join(f"{name}={value} " for name, value in sorted(counted.items()))
            prefix = f"RUN |{len(counted)} {passed}" if counted else "RUN "
            self._layer(run.original, inputs, make, prefix + shown)

    def _copy(self, instruction: known.Copy | known.Add) -> None:
        state, work = self.state, self.work

        def note(text: str) -> None:
            work.report(BuildEvent("note", None, text=text))

        with ExitStack() as cleanup:
            files = cleanup.enter_context(Files(instruction, state, work.engine.store, lambda name: work.source(name, self.stage, cleanup), note))
            # Names of owners are looked up in what lies below.
            independent = instruction.link and not any(map(str.isalpha, instruction.chown))
            inputs = Inputs("" if independent else state.chain_id, instruction.original)
            inputs.add("sources", repr(instruction.sources))
            inputs.add("destination", repr((instruction.destination, state.config.working_dir, instruction.chown, instruction.chmod)))
            inputs.add("flags", repr((instruction.link, instruction.parents, instruction.excludes)))
            if work.latest_ns is not None:
                inputs.add("SOURCE_DATE_EPOCH", str(work.latest_ns))
            files.describe(inputs)

            def make(_output: Callable[[bytes], None]) -> Layer:
                with work.engine.store.layers.view(state.layers) as view:
                    return files.make(view, work.now_ns, work.latest_ns)

            self._layer(instruction.original, inputs, make, instruction.original)

    def _enter(self, instruction: known.Workdir) -> None:
        """WORKDIR: the directory is made, as the current user's, where it is missing."""
        state, work = self.state, self.work
        path = os.path.normpath("/" + os.path.join(state.config.working_dir or "/", instruction.path).lstrip("/"))
        state.change(working_dir=path)
        with work.engine.store.layers.view(state.layers) as view:
            resolved = view.resolve(os.fsencode(path))
            if resolved.place is not None and not resolved.place.is_directory:
                raise InvalidInput(f"WORKDIR {path} cannot be entered", "the image has a file there", "use another directory")
            if resolved.place is not None and resolved.place.is_directory:
                with self._step(instruction.original) as step:
                    work.report(BuildEvent("cached", step.step))
                state.note(f"WORKDIR {path}", empty=True)
                return

            def make(_output: Callable[[bytes], None]) -> Layer:
                uid, gid = owner(state.config.user, view, str(instruction.location)) if state.config.user else (0, 0)

                def stream() -> Iterator[bytes]:
                    for length in range(1, len(resolved.path) + 1):
                        above = resolved.path[:length]
                        existing = view.lookup(above)
                        if existing is not None:
                            yield tar_format.header(directory_member(above, existing))
                        else:
                            name = b"/".join(above) + b"/"
                            yield tar_format.header(tar_format.Member(name, tar_format.DIRECTORY, 0o755, uid, gid, mtime_ns=work.now_ns))
                    yield tar_format.END

                return work.engine.store.layers.add(stream())

            inputs = Inputs(state.chain_id, instruction.original)
            inputs.add("path", repr((path, state.config.user, work.latest_ns)))
            self._layer(instruction.original, inputs, make, f"WORKDIR {path}")

    def _layer(self, text: str, inputs: Inputs, make: Callable[[Callable[[bytes], None]], Layer], created_by: str) -> None:
        """Take the layer of a step from the cache, or make it; at most one build makes the same layer at a time."""
        work, cache = self.work, self.work.engine.store.build_cache
        key = inputs.key
        with self._step(text) as step:
            may_use = not work.options.no_cache and not {self.stage.name, str(self.stage.number)} & self._uncached
            row = cache.take(key) if may_use else None
            if row is None:
                explanation = (reason(cache, inputs) if may_use else "the cache is switched off") if work.explain else ""
                work.report(BuildEvent("started", step.step, explanation=explanation))
                with work.locked(key):
                    row = cache.take(key) if may_use else None
                    if row is None:
                        self.keep_taken()
                        layer = make(lambda data: work.report(BuildEvent("output", step.step, data)))
                        row = cache.put(key, inputs.parent, inputs.instruction, layer.diff_id, inputs.document)
                    else:  # another build was faster
                        self._taken.append(Digest(row.diff_id or ""))
                work.report(BuildEvent("done", step.step, seconds=step.seconds))
            else:
                work.report(BuildEvent("cached", step.step))
                self._taken.append(Digest(row.diff_id or ""))
            work.used(row)
            self._append(row.diff_id, row.created_at_ns, created_by)

    def keep_taken(self) -> None:
        """Before anything is built on layers of the base and the cache, have them kept. Raises Pruned."""
        taken, self._taken = self._taken, []
        if taken and not self.work.engine.store.build_cache.keep(taken):
            raise Pruned("a layer was pruned while it was built on", "", "build again")

    def _append(self, diff_id: str | None, created_at_ns: int, created_by: str) -> None:
        assert diff_id is not None
        state, layers = self.state, self.work.engine.store.layers
        state.created_ns = created_at_ns if self.work.latest_ns is None else min(created_at_ns, self.work.latest_ns)
        state.layers.append(Digest(diff_id))
        try:
            size = layers.size(Digest(diff_id))
        except NotFound as error:
            raise Pruned("a layer was pruned while it was built on", "", "build again") from error
        state.blobs.append((Digest(diff_id), size, OCI_LAYER))
        state.note(created_by, empty=False)

    @contextmanager
    def _step(self, text: str) -> Iterator[_Clock]:
        self._number += 1
        clock = _Clock(Step(self.stage.shown, self._number, self._total, " ".join(text.split())))
        try:
            yield clock
        except BulleError as error:
            if self.work.cancelled:
                self.work.report(BuildEvent("failed", clock.step, text="canceled", seconds=clock.seconds))
                raise Cancelled("another stage failed", str(error)) from error
            self.work.report(BuildEvent("failed", clock.step, text=str(error), seconds=clock.seconds))
            raise


class _Clock:
    def __init__(self, step: Step) -> None:
        self.step = step
        self._since = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._since
