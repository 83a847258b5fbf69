"""``compare``: the same work at each isolation level and on the bare host, measured turn by turn.

Every round lets each subject have its turn, beginning with another one each time, so that a busy moment of the machine hits all alike; what is told
is the median and its spread. A subject that fails stands in the result with the reason, and the others go on. Everything that was made is removed,
also when an exception comes in between; what a killed comparison leaves is collected as what a killed build leaves.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from bulle.engine import comparing_results as results
from bulle.engine import gauge, suitability
from bulle.engine.comparing_environment import environment
from bulle.engine.comparing_results import Entry
from bulle.engine.comparing_subjects import Conversation, Host, Isolated, server
from bulle.engine.drivers import LEVELS
from bulle.errors import BulleError, InvalidInput, Unavailable, Unsupported
from bulle.linux import process_usage
from bulle.model.comparison import Comparison, CostName
from bulle.store.workspace import remove_tree

if TYPE_CHECKING:
    from bulle.engine.engine import Engine

Report = Callable[[str, int, int], None]
"""Called with what is done now, and how many steps of how many are done."""

_FEWEST_ROUNDS, _IDLE_ROUNDS = 3, 3
_SETTLE_S = 0.1
"""Before each turn: what the one before left to the kernel (namespaces, mounts) is not the next one's time."""
_IDLE_S = 0.25

_OF_NETWORK: tuple[CostName, ...] = ("network_receive", "network_send", "network_round_trip")


def compare(
    engine: Engine,
    image: str,
    command: Sequence[str] = (),
    *,
    levels: Sequence[str] = (),
    runs: int = 10,
    pull: str = "missing",
    platform: str = "",
    on_host: bool = False,
    drop_caches: bool = False,
    progress: Report | None = None,
) -> Comparison:
    """Measure the levels (by default all) with an image, and the bare host beside them.

    ``command`` is run in the image as ``run`` would, in addition to what is always measured; on the bare host only with ``on_host``. ``runs`` starts
    are measured at each level after a first one. ``drop_caches`` (root) empties the whole machine's page cache before each first start. Raises
    BulleError where nothing can be measured; a level that cannot run is no exception but stands in the result.
    """
    if runs < 1:
        raise InvalidInput(f"{runs} runs cannot be measured", "", "ask for 1 or more")
    if drop_caches and os.geteuid() != 0:
        raise InvalidInput("the page cache cannot be dropped", "only root may do that", "leave --drop-caches out")
    names = _chosen(levels)
    found = engine.images.for_run(image, pull, platform)
    program = gauge.program_for(image, found.config.architecture)
    begun_s, load = time.time(), os.getloadavg()[0]
    with ExitStack() as stack:
        directory = engine.store.temporary_directory()
        stack.callback(_clean, engine, directory)
        with engine.store.receiving():
            layer = engine.store.layers.add(iter([gauge.layer(program)])).diff_id
            bare = directory / "host"
            bare.mkdir()
            isolated = [Isolated(engine, name, found, layer, directory, platform) for name in names]
            entries = [Entry(Host(bare)), *(Entry(subject, subject.probe()) for subject in isolated)]
            course = _Course(entries, runs, tuple(command), on_host, drop_caches, progress)
            course.run()
    made = results.levels_of(entries, bool(command))
    return Comparison(
        image=image,
        image_id=found.id,
        command=tuple(command),
        runs=runs,
        rounds=course.rounds,
        environment=environment(engine, begun_s, (load, os.getloadavg()[0]), drop_caches),
        levels=made,
        uses=suitability.uses(made),
    )


def _chosen(levels: Sequence[str]) -> list[str]:
    known = LEVELS[::-1]
    for name in levels:
        if name not in known:
            raise InvalidInput(f"there is no isolation level {name!r}", "", f"use one of {', '.join(known)}")
    return [name for name in known if name in levels or not levels]


def _clean(engine: Engine, directory: Path) -> None:
    """Remove what an exception may have left between two steps, then the directory and the gauge's layer."""
    for container in engine.containers.list(all=True):
        if container.plan.root.writable_host_path.startswith(f"{directory}/"):
            with suppress(BulleError, OSError):
                container.remove(force=True)
    remove_tree(directory)
    engine.store.gc()


class _Course:
    """The order in which everything is measured."""

    def __init__(
        self, entries: Sequence[Entry], runs: int, command: tuple[str, ...], on_host: bool, drop_caches: bool, progress: Report | None
    ) -> None:
        self.rounds = max(_FEWEST_ROUNDS, runs // 2)
        self._entries = entries
        self._runs = runs
        self._command = command
        self._on_host = on_host
        self._drop_caches = drop_caches
        self._progress = progress
        self._done = 0
        self._steps = len(entries) * (2 + runs + (1 + runs if command else 0) + _IDLE_ROUNDS + self.rounds)
        self._program = next(entry.subject.program for entry in entries if isinstance(entry.subject, Host))
        self._conversations: dict[str, Conversation] = {}
        self._ports: dict[str, int] = {}

    def run(self) -> None:
        """Everything."""
        for entry in self._entries:
            if entry.probe is not None and not entry.probe.usable:
                entry.failure = entry.probe.reason
        self._starts()
        if self._command:
            self._commands()
        self._idle()
        with ExitStack() as stack:
            self._works(stack)

    def _turns(self, number: int, what: str, act: Callable[[Entry], None]) -> None:
        """A turn of each subject that still runs, in the order of this round."""
        turn = number % len(self._entries)
        for entry in (*self._entries[turn:], *self._entries[:turn]):
            if self._progress is not None:
                self._progress(f"{entry.subject.name}: {what}", self._done, self._steps)
            self._done += 1
            if not entry.failure:
                time.sleep(_SETTLE_S)
                entry.take_turn(lambda entry=entry: act(entry))  # type: ignore[misc]

    def _starts(self) -> None:
        def start(entry: Entry) -> None:
            if not entry.cold_ms:
                return self._first_start(entry)
            first, whole = entry.subject.once()
            entry.warm_ms.append(first)
            entry.whole_ms.append(whole)
            return None

        self._turns(0, "first start", start)
        for number in range(self._runs):
            self._turns(number, f"start {number + 1} of {self._runs}", start)
        for entry in self._entries:  # a first start that failed took the turn of another
            while not entry.failure and not entry.warm_ms:
                entry.take_turn(lambda entry=entry: start(entry))  # type: ignore[misc]

    def _first_start(self, entry: Entry) -> None:
        """The first start; where there can be no network, without one."""
        if self._drop_caches:
            os.sync()
            Path("/proc/sys/vm/drop_caches").write_text("3\n")
        subject = entry.subject
        try:
            entry.cold_ms = subject.once()[0]
        except (Unavailable, Unsupported) as error:
            if not isinstance(subject, Isolated):
                raise
            subject.network = "none"
            try:
                entry.cold_ms = subject.once()[0]
            except BulleError:
                raise error from None
            entry.notes.append(f"without a network: {error}")

    def _commands(self) -> None:
        words = " ".join(self._command)[:40]
        for entry in self._entries:
            if entry.subject.bare and not self._on_host:
                entry.work_failure = "the command is not run without isolation unless --on-host says so"

        def run(entry: Entry, measured: bool) -> None:
            if entry.work_failure:
                return
            try:
                took, code = entry.subject.command(self._command)
            except (BulleError, OSError) as error:
                entry.work_failure = str(error)
                return
            if measured:
                entry.work_ms.append(took)
                entry.work_codes.add(code)

        self._turns(0, f"{words}, once unmeasured", lambda entry: run(entry, measured=False))
        for number in range(self._runs):
            self._turns(number, f"{words}, run {number + 1} of {self._runs}", lambda entry: run(entry, measured=True))

    def _idle(self) -> None:
        def look(entry: Entry) -> None:
            entry.available_bytes = process_usage.available_bytes()
            entry.idle.append(entry.subject.idle(results.IDLE_COPIES, _IDLE_S))

        for number in range(_IDLE_ROUNDS):
            self._turns(number, f"memory of {results.IDLE_COPIES} idle copies, round {number + 1} of {_IDLE_ROUNDS}", look)

    def _works(self, stack: ExitStack) -> None:
        self._turns(0, "what it sees, and which system calls there are", lambda entry: self._converse(entry, stack))
        for number in range(self.rounds):
            self._turns(number, f"processor, disk and network, round {number + 1} of {self.rounds}", lambda entry: self._work(entry, stack))

    def _converse(self, entry: Entry, stack: ExitStack) -> None:
        """Have a gauge that was asked once all that it can be asked."""
        opened = entry.subject.conversation(stack)
        entry.network = opened.network
        entry.facts = opened.gauge.ask("facts")
        entry.calls = entry.calls or dict(opened.gauge.ask("calls")).get("calls", "")
        if opened.server and opened.server not in self._ports:
            self._ports[opened.server] = stack.enter_context(server(self._program, opened.server))
        _do_works(entry, opened, self._ports, measured=False)
        self._conversations[entry.subject.name] = opened

    def _work(self, entry: Entry, stack: ExitStack) -> None:
        name = entry.subject.name
        if name not in self._conversations:
            self._converse(entry, stack)
        # Taken out while it is asked: after a failure there is another one.
        opened = self._conversations.pop(name)
        _do_works(entry, opened, self._ports, measured=True)
        self._conversations[name] = opened


def _do_works(entry: Entry, conversation: Conversation, ports: dict[str, int], *, measured: bool) -> None:
    """Each of the fixed amounts of work once. One that fails is told by its cause, and not tried again."""
    opened, directory, address, _network = conversation
    requests: list[tuple[dict[CostName, str], tuple[object, ...]]] = [
        ({"processor": "took"}, ("processor", results.PROCESSOR_MIB)),
        ({"system_call": "took"}, ("call", results.CALLS)),
        ({"disk_write": "written", "disk_read": "read"}, ("disk", directory, results.DISK_MIB)),
        ({"small_files": "took"}, ("files", directory, results.FILES)),
        ({"sync": "each"}, ("sync", directory, results.SYNCS)),
    ]
    if address:
        names: dict[CostName, str] = {"network_receive": "received", "network_send": "sent", "network_round_trip": "each"}
        requests.append((names, ("network", address, ports[address], results.NETWORK_MIB, results.ROUND_TRIPS)))
    else:
        entry.cost_failures.update(dict.fromkeys(_OF_NETWORK, "it has no network with the host"))
    for wanted, words in requests:
        if wanted.keys() & entry.cost_failures.keys():
            continue
        try:
            answer = opened.ask(*words)
        except BulleError as error:
            if not error.brief.endswith("could not be measured"):
                raise
            entry.cost_failures.update(dict.fromkeys(wanted, error.details))
            continue
        for name, key in wanted.items():
            samples = [int(value) / 1e6 for said, value in answer if said == key]
            if samples and measured:
                entry.costs.setdefault(name, []).append(statistics.median(samples))
