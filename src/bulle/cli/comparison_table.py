"""The table of ``bulle compare``: one column for each level, one row for each measure, and what follows from them in sentences."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Sequence

from bulle.cli import human
from bulle.cli.session import printable
from bulle.model.comparison import Comparison, Cost, CostName, Level, Spread

NOTHING = "-"
COSTS: dict[CostName, str] = {
    "processor": "processor",
    "system_call": "system calls",
    "disk_write": "disk, writing",
    "disk_read": "disk, reading",
    "small_files": "small files",
    "sync": "fsync",
    "network_receive": "network, receiving",
    "network_send": "network, sending",
    "network_round_trip": "network, round trip",
}
_GAP = 2
_TEXT_WIDTH = 100

Rows = Iterator[tuple[str, list[str]]]


def text_of(found: Comparison) -> str:
    """All of it, for a person."""
    parts = [_head(found), _table([("", [level.name for level in found.levels]), *_rows(found)])]
    lines = [_not_measured(level) for level in found.levels if not level.usable]
    lines += [f"{level.name}, {COSTS[name]}: {why}" for level in found.levels for name, why in level.cost_reasons.items() if level.usable]
    lines += [f"{level.name}, the command: {level.work_reason}" for level in found.levels if level.work_reason and level.usable]
    lines += [f"{level.name}: {one}" for level in found.levels for one in level.notes]
    if lines:
        parts.append("".join(_wrapped(line) for line in lines))
    parts.append("What suits what, as measured here:\n" + "".join(_wrapped(line, "  ") for line in _uses(found)))
    return "\n".join(parts)


def ms(value: float) -> str:
    """A time with three digits, in the unit that it reads best in."""
    if value < 1:
        return f"{value * 1000:.3g} µs"
    return f"{value:.3g} ms" if value < 1000 else f"{value / 1000:.3g} s"


def times(cost: Cost) -> str:
    """A cost as so many times the bare host's."""
    return f"{cost.times_host:.2f}x" if cost.times_host is not None else "?"


def size(count: float) -> str:
    """Bytes in binary units."""
    return re.sub(r"(?<=\d)(?=[A-Z])", " ", human.binary_size(count, 3))


def sentence(text: str) -> str:
    """Words as a sentence of its own."""
    return f"{text[:1].upper()}{text[1:]}."


def course_of(found: Comparison) -> str:
    """What was done, in a sentence."""
    work = f" The command: {' '.join(found.command)}" if found.command else ""
    return f"A first start and {found.runs} more at each level, then {found.rounds} rounds of work, the levels turn by turn.{work}"


def surroundings(found: Comparison) -> dict[str, str]:
    """Where and when it was measured, by headings."""
    here = found.environment
    return {
        "machine": f"{here.machine}{', a virtual machine itself' if here.virtual else ''}",
        "processor": f"{here.processors} x {here.processor}, {here.architecture}",
        "memory": f"{size(here.memory_bytes)}, {size(here.available_bytes)} free",
        "system": f"{here.operating_system}, Linux {here.kernel}",
        "disk": f"{here.file_system}, layers by {here.layers}",
        "accelerator": here.accelerator,
        "versions": ", ".join(f"{name} {version}" for name, version in here.versions.items()),
        "user": "root" if here.root else "an ordinary user",
        "load": f"{here.load[0]:g} before, {here.load[1]:g} after",
        "page cache": "emptied before each first start" if here.caches_dropped else "left as it was",
        "measured": f"{here.started_at}, in {here.took_s:.0f} s",
    }


def hypervisor_of(level: Level) -> str:
    """How it reaches the processor: what its driver says."""
    if not level.usable:
        return NOTHING
    return level.hypervisor or ("not told" if level.shared.get("kernel") == "own" else "none")


def _head(found: Comparison) -> str:
    about = "; ".join(f"{name}: {what}" for name, what in surroundings(found).items())
    return _wrapped(f"{found.image}: {course_of(found)}") + _wrapped(about)


def _rows(found: Comparison) -> Rows:
    def row(name: str, cell: Callable[[Level], str]) -> tuple[str, list[str]]:
        return name, [cell(level) or NOTHING for level in found.levels]

    yield "START", []
    yield row("first (cold)", lambda level: ms(level.start.cold_ms) if level.start else "")
    yield row("next, p50", lambda level: ms(level.start.warm_ms.p50) if level.start else "")
    yield row("next, p95", lambda level: ms(level.start.warm_ms.p95) if level.start else "")
    yield row("whole run, p50", lambda level: ms(level.start.whole_ms.p50) if level.start else "")
    yield row("whole run, p95", lambda level: ms(level.start.whole_ms.p95) if level.start else "")
    if found.command:
        yield "COMMAND", []
        yield row("p50", lambda level: ms(level.work.whole_ms.p50) if level.work else "")
        yield row("p95", lambda level: ms(level.work.whole_ms.p95) if level.work else "")
        yield row("exit code", lambda level: ", ".join(map(str, level.work.exit_codes)) if level.work else "")
    yield "MEMORY OF AN IDLE COPY", []
    yield row("all of it", lambda level: size(level.memory.copy_bytes) if level.memory else "")
    yield row("of it the monitor", lambda level: size(level.memory.monitor_bytes) if level.memory else "")
    yield row("of it the kernel's", lambda level: size(level.memory.kernel_bytes) if level.memory else "")
    yield row("isolation alone", lambda level: size(level.memory.isolation_bytes) if level.memory else "")
    yield row("copies that fit", lambda level: f"{level.memory.fitting_copies:,}" if level.memory else "")
    yield "DISK", []
    yield row("a copy", lambda level: size(level.storage.copy_bytes) if level.storage else "")
    yield row("once for the level", lambda level: size(level.storage.level_bytes) if level.storage else "")
    yield "COST, TIMES THE BARE HOST'S", []
    for name, word in COSTS.items():
        yield word, [_cost(level, name) for level in found.levels]
    yield "SYSTEM CALLS", []
    yield row("reachable", lambda level: str(level.system_calls.reachable) if level.system_calls else "")
    yield "SHARED WITH THE HOST", []
    for what in dict.fromkeys(what for level in found.levels for what in level.shared):
        yield row(what, lambda level, what=what: level.shared.get(what, ""))  # type: ignore[misc]
    yield row("processes in sight", lambda level: str(level.seen.processes or "") if level.seen else "")
    yield row("devices of the host", lambda level: str(level.seen.host_devices) if level.seen else "")
    yield row("connected to", lambda level: level.network)
    yield row("hypervisor", hypervisor_of)


def _cost(level: Level, name: CostName) -> str:
    cost = level.costs.get(name)
    if cost is None:
        return NOTHING
    return f"{ms(cost.ms.p50) if level.bare else times(cost)} {_around(cost.ms)}"


def _around(spread: Spread) -> str:
    """How far the samples went, in parts of the median."""
    return f"±{max(spread.most - spread.p50, spread.p50 - spread.least) / spread.p50:.0%}" if spread.p50 else ""


def _not_measured(level: Level) -> str:
    return f"{level.name} could not be measured: {level.reason}" + (f"; {level.mend}" if level.mend else "")


def _uses(found: Comparison) -> Iterator[str]:
    for use in found.uses:
        yield f"{use.name}: {use.level or 'none of these'} - {use.reason}."


def _wrapped(line: str, indent: str = "") -> str:
    return textwrap.fill(printable(line), _TEXT_WIDTH, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False) + "\n"


def _table(rows: Sequence[tuple[str, list[str]]]) -> str:
    """Numbers under each other, to the right; a row without cells is a heading."""
    first = max(len(name) for name, cells in rows if cells) + 2
    columns = max(len(cells) for _name, cells in rows)
    widths = [max((len(cells[number]) for _name, cells in rows if cells), default=0) + _GAP for number in range(columns)]
    lines = []
    for name, cells in rows:
        if not cells:
            lines.append(name)
            continue
        lines.append(f"  {name}".ljust(first) + "".join(cell.rjust(width) for cell, width in zip(map(printable, cells), widths, strict=True)))
    return "\n".join(lines) + "\n"
