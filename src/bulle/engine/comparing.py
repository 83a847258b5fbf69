"""``compare``: the same work at each isolation level and on the bare host, measured turn by turn.

Every round lets each subject have its turn, beginning with another one each time, so that a busy moment of the machine hits all alike; what is told
is the median and its spread. A subject that fails stands in the result with the reason, and the others go on. Everything that was made is removed,
also when an exception comes in between; what a killed comparison leaves is collected as what a killed build leaves.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bulle.engine import comparing_sharing, gauge, suitability
from bulle.engine.comparing_environment import environment
from bulle.engine.comparing_subjects import Conversation, Host, Idle, Isolated, Subject, server
from bulle.engine.drivers import LEVELS
from bulle.errors import BulleError, InvalidInput, Unavailable
from bulle.linux import process_usage
from bulle.model.comparison import (
    Comparison,
    Cost,
    CostName,
    Level,
    Memory,
    Seen,
    Spread,
    Start,
    Storage,
    SystemCalls,
    Work,
)  # fmt: skip
from bulle.store import Image
from bulle.store.workspace import remove_tree

if TYPE_CHECKING:
    from bulle.engine.engine import Engine
    from bulle.isolation.driver import Probe

Report = Callable[[str, int, int], None]
"""Called with what is done now, and how many steps of how many are done."""

_IDLE_COPIES, _IDLE_ROUNDS = 3, 3
_FEWEST_ROUNDS = 3
_SETTLE_S = 0.1
"""Before each turn: what the one before left to the kernel (namespaces, mounts) is not the next one's time."""
_IDLE_S = 0.25

_PROCESSOR_MIB, _CALLS, _DISK_MIB, _FILES, _SYNCS, _NETWORK_MIB, _ROUND_TRIPS = 16, 100_000, 32, 200, 20, 16, 200
_AMOUNTS: dict[CostName, str] = {
    "processor": f"SHA-256 of {_PROCESSOR_MIB} MiB",
    "system_call": f"{_CALLS:,} system calls",
    "disk_write": f"{_DISK_MIB} MiB written and brought to the disk",
    "disk_read": f"{_DISK_MIB} MiB read again",
    "small_files": f"{_FILES} files of 4 KiB made, read, removed",
    "sync": "4 KiB and fsync",
    "network_receive": f"{_NETWORK_MIB} MiB received from the host",
    "network_send": f"{_NETWORK_MIB} MiB sent to the host",
    "network_round_trip": "a byte to the host and back",
}  # fmt: skip
_OF_NETWORK: tuple[CostName, ...] = ("network_receive", "network_send", "network_round_trip")


@dataclass
class _Entry:
    """What is known of one subject so far; with a ``failure`` it has no more turns."""

    subject: Subject
    probe: Probe | None = None
    failure: str = ""
    cold_ms: float = 0.0
    warm_ms: list[float] = field(default_factory=list)
    whole_ms: list[float] = field(default_factory=list)
    work_ms: list[float] = field(default_factory=list)
    work_codes: set[int] = field(default_factory=set)
    work_failure: str = ""
    idle: list[Idle] = field(default_factory=list)
    available_bytes: int = 0
    costs: dict[CostName, list[float]] = field(default_factory=dict)
    cost_failures: dict[CostName, str] = field(default_factory=dict)
    network: str = ""
    facts: list[tuple[str, str]] = field(default_factory=list)
    calls: str = ""
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """One turn, whose failure is this subject's alone."""
        time.sleep(_SETTLE_S)
        try:
            yield
        except (BulleError, OSError) as error:
            self.failure = self.failure or str(error)


def compare(
    engine: Engine,
    image: str,
    command: Sequence[str] = (),
    *,
    levels: Sequence[str] = (),
    runs: int = 10,
    pull: str = "missing",
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
    gauge.require_program()
    found = engine.images.for_run(image, pull, "")
    _require_processor(image, found)
    begun_s, load = time.time(), os.getloadavg()[0]
    with ExitStack() as stack:
        directory = engine.store.temporary_directory()
        stack.callback(_clean, engine, directory)
        with engine.store.receiving():
            layer = engine.store.layers.add(iter([gauge.layer()])).diff_id
            bare = directory / "host"
            bare.mkdir()
            isolated = [Isolated(engine, name, found, layer, directory) for name in names]
            entries = [_Entry(Host(bare)), *(_Entry(subject, subject.probe()) for subject in isolated)]
            course = _Course(entries, runs, tuple(command), on_host, drop_caches, progress)
            course.run()
    made = _levels(entries, bool(command))
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
    known = [kind.name for kind in reversed(LEVELS)]
    for name in levels:
        if name not in known:
            raise InvalidInput(f"there is no isolation level {name!r}", "", f"use one of {', '.join(known)}")
    return [name for name in known if name in levels or not levels]


def _require_processor(name: str, image: Image) -> None:
    """The gauge is a program for this machine's processor: in an image for another one it says nothing."""
    from bulle.registry.documents import this_platform

    here = this_platform().architecture
    if image.config.architecture not in ("", here):
        why = f"it is for {image.config.architecture}, and the program that measures is for this machine's {here}"
        raise Unavailable(f"image {name} cannot be compared", why, "take one for this machine's processor")


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
        self, entries: Sequence[_Entry], runs: int, command: tuple[str, ...], on_host: bool, drop_caches: bool, progress: Report | None
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

    def run(self) -> None:
        """Everything."""
        for entry in self._entries:
            if entry.probe is not None and not entry.probe.usable:
                entry.failure = entry.probe.reason
        self._starts()
        if self._command:
            self._commands()
        self._idle()
        self._works()

    def _turns(self, number: int, what: str) -> Iterator[_Entry]:
        """The subjects that still run, in the order of this round."""
        turn = number % len(self._entries)
        for entry in (*self._entries[turn:], *self._entries[:turn]):
            if self._progress is not None:
                self._progress(f"{entry.subject.name}: {what}", self._done, self._steps)
            self._done += 1
            if not entry.failure:
                yield entry

    def _starts(self) -> None:
        for entry in self._turns(0, "first start"):
            with entry.turn():
                if self._drop_caches:
                    os.sync()
                    Path("/proc/sys/vm/drop_caches").write_text("3\n")
                entry.cold_ms = _first_start(entry)
        for number in range(self._runs):
            for entry in self._turns(number, f"start {number + 1} of {self._runs}"):
                with entry.turn():
                    first, whole = entry.subject.once()
                    entry.warm_ms.append(first)
                    entry.whole_ms.append(whole)

    def _commands(self) -> None:
        words = " ".join(self._command)[:40]
        for entry in self._entries:
            if entry.subject.bare and not self._on_host:
                entry.work_failure = "the command is not run without isolation unless --on-host says so"
        for number in range(-1, self._runs):
            for entry in self._turns(number, f"{words}, run {number + 1} of {self._runs}" if number >= 0 else f"{words}, once unmeasured"):
                if entry.work_failure:
                    continue
                time.sleep(_SETTLE_S)
                try:
                    took, code = entry.subject.command(self._command)
                except (BulleError, OSError) as error:
                    entry.work_failure = str(error)
                    continue
                if number >= 0:
                    entry.work_ms.append(took)
                    entry.work_codes.add(code)

    def _idle(self) -> None:
        for number in range(_IDLE_ROUNDS):
            for entry in self._turns(number, f"memory of {_IDLE_COPIES} idle copies, round {number + 1} of {_IDLE_ROUNDS}"):
                with entry.turn():
                    entry.available_bytes = process_usage.available_bytes()
                    entry.idle.append(entry.subject.idle(_IDLE_COPIES, _IDLE_S))

    def _works(self) -> None:
        with ExitStack() as stack:
            conversations: dict[str, Conversation] = {}
            ports: dict[str, int] = {}
            for entry in self._turns(0, "what it sees, and which system calls there are"):
                with entry.turn():
                    opened = conversations[entry.subject.name] = entry.subject.conversation(stack)
                    entry.network = opened.network
                    entry.facts = opened.gauge.ask("facts")
                    entry.calls = dict(opened.gauge.ask("calls")).get("calls", "")
                    if opened.server and opened.server not in ports:
                        ports[opened.server] = stack.enter_context(server(opened.server))
                    _do_works(entry, opened, ports, warm_up=True)
            for number in range(self.rounds):
                for entry in self._turns(number, f"processor, disk and network, round {number + 1} of {self.rounds}"):
                    with entry.turn():
                        _do_works(entry, conversations[entry.subject.name], ports)


def _first_start(entry: _Entry) -> float:
    """The first start; where only the network that it would have makes it fail, without one."""
    subject = entry.subject
    try:
        return subject.once()[0]
    except BulleError as error:
        if not isinstance(subject, Isolated):
            raise
        subject.network = "none"
        try:
            took = subject.once()[0]
        except BulleError:
            raise error from None
        entry.notes.append(f"without a network: {error}")
        return took


def _do_works(entry: _Entry, conversation: Conversation, ports: dict[str, int], *, warm_up: bool = False) -> None:
    """Each of the fixed amounts of work once. One that fails is told by its cause, and not tried again."""
    opened, directory, address, _network = conversation
    requests: list[tuple[dict[CostName, str], tuple[object, ...]]] = [
        ({"processor": "took"}, ("processor", _PROCESSOR_MIB)),
        ({"system_call": "took"}, ("call", _CALLS)),
        ({"disk_write": "written", "disk_read": "read"}, ("disk", directory, _DISK_MIB)),
        ({"small_files": "took"}, ("files", directory, _FILES)),
        ({"sync": "each"}, ("sync", directory, _SYNCS)),
    ]
    if address:
        names: dict[CostName, str] = {"network_receive": "received", "network_send": "sent", "network_round_trip": "each"}
        requests.append((names, ("network", address, ports[address], _NETWORK_MIB, _ROUND_TRIPS)))
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
            if samples and not warm_up:
                entry.costs.setdefault(name, []).append(statistics.median(samples))


# From samples to the result


def spread(samples: Sequence[float]) -> Spread:
    """Samples in short; the 95th part of a hundred by the nearest rank."""
    ordered = sorted(samples)
    p95 = ordered[max(0, math.ceil(0.95 * len(ordered)) - 1)]
    return Spread(statistics.median(ordered), p95, ordered[0], ordered[-1], len(ordered))


def _levels(entries: Sequence[_Entry], worked: bool) -> tuple[Level, ...]:
    host = entries[0]
    host_seen = comparing_sharing.seen(host.facts) if host.facts else None
    return tuple(_level(entry, host, host_seen, worked) for entry in entries)


def _level(entry: _Entry, host: _Entry, host_seen: Seen | None, worked: bool) -> Level:
    probe, subject = entry.probe, entry.subject
    seen = comparing_sharing.seen(entry.facts, host_seen, dict(host.facts).get("devices", "")) if entry.facts and host_seen else None
    calls: SystemCalls | None = None
    if entry.calls and host_seen is not None:
        calls = comparing_sharing.system_calls(entry.calls, host.calls, host_seen.machine)
    return Level(
        name=subject.name,
        usable=not entry.failure,
        bare=subject.bare,
        reason=entry.failure,
        mend=probe.mend if probe is not None and not probe.usable else "",
        hypervisor=probe.hypervisor if probe is not None else "",
        notes=(*(probe.notes if probe is not None else ()), *entry.notes),
        start=Start(entry.cold_ms, spread(entry.warm_ms), spread(entry.whole_ms)) if entry.warm_ms else None,
        work=Work(spread(entry.work_ms), tuple(sorted(entry.work_codes))) if entry.work_ms else None,
        work_reason=entry.work_failure or (entry.failure if worked and not entry.work_ms else ""),
        memory=_memory(entry, host),
        storage=Storage(round(statistics.median(one.disk_bytes for one in entry.idle)), subject.kept_bytes()) if entry.idle else None,
        costs=_costs(entry, host),
        cost_reasons=entry.cost_failures,
        network=entry.network,
        system_calls=calls,
        seen=seen,
        shared=comparing_sharing.shared(seen, host_seen) if seen is not None and host_seen is not None and not subject.bare else {},
    )


def _memory(entry: _Entry, host: _Entry) -> Memory | None:
    if not entry.idle or not host.idle:
        return None
    workload, monitor, kernel = _parts(entry.idle)
    copy, work = workload + monitor + kernel, sum(_parts(host.idle))
    return Memory(
        copy_bytes=copy,
        workload_bytes=workload,
        monitor_bytes=monitor,
        kernel_bytes=kernel,
        isolation_bytes=copy - work,
        available_bytes=entry.available_bytes,
        fitting_copies=entry.available_bytes // max(copy, 1),
        copies=_IDLE_COPIES,
        rounds=len(entry.idle),
    )


def _parts(idle: Sequence[Idle]) -> tuple[int, int, int]:
    """Workload, monitor, kernel: the median of each over the rounds. What the machine did meanwhile can make the kernel's less than nothing."""
    workload, monitor, kernel, _disk = (max(round(statistics.median(values)), 0) for values in zip(*idle, strict=True))
    return workload, monitor, kernel


def _costs(entry: _Entry, host: _Entry) -> dict[CostName, Cost]:
    found: dict[CostName, Cost] = {}
    for name, samples in entry.costs.items():
        bare = statistics.median(host.costs[name]) if host.costs.get(name) else 0.0
        found[name] = Cost(_AMOUNTS[name], spread(samples), statistics.median(samples) / bare if bare else None)
    return found
