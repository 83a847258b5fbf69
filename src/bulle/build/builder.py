"""``build``: from a Containerfile and a context to an image of the store.

Called by the command line and by programs. The stages that the result needs run in threads of their own, as many commands at once as there are
processors; everything that is made on the way is kept for this process until the image is there, and by the build cache afterwards. A build that is
killed leaves nothing but cached layers.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from bulle.build.checking import check_options
from bulle.build.configuring import configure, configures
from bulle.build.context import Context, ignore_rules, open_context, open_directory
from bulle.build.expansion import expanded
from bulle.build.graph import PREDEFINED, Graph, Stage, make_graph, platform_arguments, stage_number
from bulle.build.options import IMAGE_CONTEXTS, BuildEvent, BuildOptions, Report, silent
from bulle.build.package_lists import check_form
from bulle.build.parsing import parse
from bulle.build.result import finish, keeps, manifest
from bulle.build.sources import HostDirectory, LayersSource, Source
from bulle.build.stage import Cancelled, Pruned, StageRun
from bulle.build.state import StageState, state_of_image
from bulle.engine import Engine
from bulle.engine.planning import DEFAULT_PATH
from bulle.errors import BulleError, InvalidInput, NotFound
from bulle.model.image import ExecutionConfig, Manifest, Platform
from bulle.model.platform import parse_platform, this_platform
from bulle.records.build_steps import BuildStepRow
from bulle.store import Image

if TYPE_CHECKING:
    from concurrent.futures import Future

    from bulle.registry.progress import Progress

_NANOSECONDS = 1_000_000_000
_SCRATCH = "scratch"
_SAMPLE = """FROM scratch AS sample
ARG NAME=value
ENV A=$NAME B="${NAME}"
LABEL a=b
WORKDIR /a
COPY --chown=0:0 a* b ./
RUN --mount=type=cache,target=/c make && echo $A
RUN ["a", "b"]
USER 0
EXPOSE 80
VOLUME /v
STOPSIGNAL TERM
ENTRYPOINT ["a"]
CMD b
"""


@dataclass(frozen=True)
class Built:
    """What a build came to: the image, and for each argument that was given and never declared its name."""

    image: Image
    state: StageState
    unused_arguments: tuple[str, ...] = ()


def build(engine: Engine, options: BuildOptions, *, report: Report = silent, stdin: BinaryIO | None = None, explain: bool = False) -> Built:
    """Build one image for one platform (see :mod:`bulle.build.platforms` for several).

    ``report`` is called from several threads. Raises BulleError naming file and line.
    """
    check_options(options)
    check_form(options.sbom)
    if options.sbom and not keeps(options):
        raise InvalidInput("--sbom needs the image in the store", "the list of packages refers to it", "add --output type=image")
    with engine.store.receiving():
        try:
            with open_context(options, engine.store, stdin, lambda text: report(BuildEvent("note", None, text=text))) as context:
                try:
                    return _Build(engine, options, report, context, explain).run()
                except Pruned:
                    return _Build(engine, options, report, context, explain).run()
        except BaseException:
            engine.gc()  # what was made for a step that failed
            raise


def rehearse() -> None:
    """What every build does before its first step, without an effect: so that a process made ready ahead of time has done it once."""
    file = parse(_SAMPLE, "Containerfile")
    make_graph(file, "", {}, platform_arguments(this_platform(), this_platform()), {})
    state = StageState(this_platform())
    for instruction in file.instructions:
        done = expanded(instruction, {"NAME": "value"})
        if configures(done):
            configure(state, done)
    manifest(state, msgspec.json.encode(state.image_config()), BuildOptions())


class _Build:
    """The work of one build; its stages' threads share it."""

    def __init__(self, engine: Engine, options: BuildOptions, report: Report, context: Context, explain: bool) -> None:
        self.engine = engine
        self.options = options
        self.report = report
        self.explain = explain
        self.now_ns = time.time_ns()
        self.latest_ns = None if options.source_date_epoch_s is None else options.source_date_epoch_s * _NANOSECONDS
        if self.latest_ns is not None:
            self.now_ns = self.latest_ns
        self._context = context
        self._given = _given_arguments(options)
        self._contexts = dict(options.contexts)
        self._asked: set[str] = set()
        self._platform = parse_platform(options.platforms[0] if options.platforms else "")
        self._file = parse(context.text, context.name)
        platforms = platform_arguments(self._platform, this_platform())
        self._graph: Graph = make_graph(self._file, options.target, self._given, platforms, self._contexts)
        self._results: dict[int, Future[StageState]] = {}
        self._processors = threading.Semaphore(os.cpu_count() or 1)
        self._failed = threading.Event()
        self._stops: set[Callable[[], None]] = set()
        self._used: list[BuildStepRow] = []
        self._locks = os.open(engine.home / "run" / "builds.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def run(self) -> Built:
        """All stages that the target needs, and the image of the target."""
        for warning in self._file.warnings:
            self.report(BuildEvent("warning", None, text=warning))
        try:
            target = StageRun(self, self._graph.target)
            state = self._run_stages(target, [stage for stage in self._graph.needed if stage is not self._graph.target])
            self.engine.store.build_cache.use(self._used)
            image = finish(self.engine, state, self.options, self.latest_ns, target.keep_taken)
        finally:
            os.close(self._locks)
        unused = sorted(set(self._given) - self._asked - PREDEFINED - {"SOURCE_DATE_EPOCH"})
        return Built(image, state, tuple(unused))

    def _run_stages(self, target: StageRun, others: list[Stage]) -> StageState:
        """The target in this thread, the others in theirs. Raises the error that was first, not one that it caused elsewhere."""
        if not others:
            return self._run_stage(target)
        from concurrent.futures import ThreadPoolExecutor  # a build of one stage does without

        with ThreadPoolExecutor(len(others), "bulle-stage") as pool:
            ready = threading.Event()

            def run(stage: Stage) -> StageState:
                ready.wait()
                try:
                    run = StageRun(self, stage)
                    state = self._run_stage(run)
                    run.keep_taken()  # others build on it
                    return state
                finally:
                    self.engine.database.close()  # this thread's connection

            try:
                for stage in others:
                    self._results[stage.number] = pool.submit(run, stage)
            except BaseException:  # no more threads: those that are there must not wait for ever
                self._failed.set()
                raise
            finally:
                ready.set()
            try:
                state: StageState | BaseException = self._run_stage(target)
            except BaseException as error:  # noqa: BLE001 - raised below, unless another one caused it
                state = error
        found = [self._results[stage.number].exception() for stage in others]
        errors = [error for error in (*found, state) if isinstance(error, BaseException)]
        if isinstance(state, BaseException) or errors:
            raise next((error for error in errors if not isinstance(error, Cancelled)), errors[0])
        return state

    def _run_stage(self, run: StageRun) -> StageState:
        """One stage; when it fails, or the user interrupts, what the others run is ended too."""
        try:
            return run.run()
        except BaseException:
            self._failed.set()
            for stop in list(self._stops):
                stop()
            raise

    def _result(self, number: int) -> StageState:
        if number not in self._results:
            what = self._graph.stages[number].shown
            raise InvalidInput(f"an ONBUILD takes files from the stage {what}", "nothing else needs it", f"add COPY --from={what} to the file itself")
        try:
            return self._results[number].result()
        except BulleError as error:
            raise Cancelled("another stage failed", str(error)) from None

    # What stages ask for: see bulle.build.stage.Work.

    @property
    def cancelled(self) -> bool:
        """Whether another stage has failed, or the user has had enough."""
        return self._failed.is_set()

    def argument(self, name: str) -> str | None:
        """A build argument that the caller gave."""
        self._asked.add(name)
        return self._given.get(name)

    def global_argument(self, name: str) -> str | None:
        """An argument from before the first FROM, or one that is always there."""
        return self._graph.global_arguments.get(name)

    def begin(self, stage: Stage) -> StageState:
        """The state in which a stage begins."""
        if isinstance(stage.base, int):
            return self._result(stage.base).copy()
        platform = parse_platform(stage.platform) if stage.platform else self._platform
        if stage.base == _SCRATCH:
            return StageState(platform, config=ExecutionConfig(env=(DEFAULT_PATH,)))
        explicit = bool(stage.platform or self.options.platforms)
        return self._state_of(self._image(stage.base, platform, str(stage.beginning.location), explicit=explicit))

    def _state_of(self, image: Image) -> StageState:
        descriptors = Manifest.parse(image.manifest).layers
        return state_of_image(image, [(one.parsed_digest, one.size, one.media_type) for one in descriptors])

    def _image(self, name: str, platform: Platform, where: str, *, explicit: bool) -> Image:
        """An image by name, pulled when it must be; ``where`` is the instruction that asks, for errors."""
        place = self._contexts.get(name, "")
        if place and not place.startswith(IMAGE_CONTEXTS):
            raise InvalidInput(f"{where}: the context {name} is a directory", "a stage begins with an image", f"copy from it: COPY --from={name}")
        name = place or name
        name = name.removeprefix("docker-image://")
        if name.startswith("oci-layout://"):
            name = f"oci:{name.removeprefix('oci-layout://')}"
        # Where nobody asked for a platform, an image that is here will do, whatever it is for: as with run.
        wanted = str(platform) if explicit else ""
        try:
            return self.engine.images.for_run(name, "always" if self.options.pull else "missing", wanted, self._pulling)
        except BulleError as error:
            if where:
                error.args = (f"{where}: {error.brief}", error.details, error.resolution)
                error.brief = f"{where}: {error.brief}"
            raise

    def _pulling(self, progress: Progress) -> None:
        """Show how far a pull is; and end it when another stage has failed."""
        if self._failed.is_set():
            raise Cancelled("another stage failed")
        self.report(BuildEvent("progress", None, text=progress.id, part=(progress.current, progress.total)))

    def source(self, name: str, stage: Stage, cleanup: ExitStack) -> Source:
        """What ``--from`` names: the context for "", a context by name, a stage, an image."""
        if not name:
            return self._context.source
        directory = self._contexts.get(name, "")
        if directory and not directory.startswith(IMAGE_CONTEXTS):
            root, _text = open_directory(directory, self.engine.store, None, lambda _text: None, cleanup)
            return HostDirectory(root, f"the context {name}", ignore_rules(root))
        earlier = {one.name.lower(): one.number for one in self._graph.stages[: stage.number] if one.name}
        number = stage_number(name, stage.number, earlier, self._contexts)
        if number is not None and number < stage.number:
            layers, binds = self._result(number).layers, self._result(number).host_binds
        else:
            try:
                image = self._image(name, self._platform, "", explicit=bool(self.options.platforms))
                self.engine.store.layers.keep(image.layers)
            except BulleError as error:
                details = f"no stage before is called so, and as an image: {error}"
                raise NotFound(f"there is no {name!r} to copy from", details, "name an earlier stage, a context or an image") from error
            layers, binds = list(image.layers), image.host_binds
        view = cleanup.enter_context(self.engine.store.layers.view(layers))
        if binds:
            raise InvalidInput(f"nothing can be copied from {name}", f"its {binds[0]} is this machine's own, in no layer", "copy from the context")
        return LayersSource(view, name)

    @contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """Be the only one on this home that makes this step; a lock on one byte of a file, which the kernel ends with its owner."""
        place = int(key[:14], 16)
        # Of the open file, not of the process: stages are threads. fcntl(2), "Open file description locks"
        descriptor = os.open(f"/proc/self/fd/{self._locks}", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLKW, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, place, 1, 0))
            yield
        finally:
            os.close(descriptor)

    def used(self, row: BuildStepRow) -> None:
        """Note that a step of the cache is of use."""
        self._used.append(row)

    @contextmanager
    def running(self) -> Iterator[None]:
        """While a command runs: as many at once as there are processors. Raises when another stage has failed."""
        with self._processors:
            if self._failed.is_set():
                raise Cancelled("another stage failed")
            yield

    @contextmanager
    def ended_by(self, stop: Callable[[], None]) -> Iterator[None]:
        """While something runs that ``stop`` ends: called from the thread of a stage that fails, or at once if one has failed already."""
        self._stops.add(stop)
        try:
            if self._failed.is_set():  # asked after adding: whoever fails sets this first and looks for stops then
                stop()
            yield
        finally:
            self._stops.discard(stop)


def _given_arguments(options: BuildOptions) -> dict[str, str]:
    """``--build-arg NAME=value``, and ``NAME`` alone for the caller's own."""
    found: dict[str, str] = {}
    for item in options.arguments:
        name, equals, value = item.partition("=")
        if not name:
            raise InvalidInput(f"--build-arg {item!r} names nothing", "", "write NAME=value, or NAME for the value of your environment")
        if equals:
            found[name] = value
        elif name in options.environment:
            found[name] = options.environment[name]
    return found
