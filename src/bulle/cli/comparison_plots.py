"""The plots of ``bulle compare --html``: inline SVG, drawn from the figures alone; colours and letters are the page's style sheet's.

Each plot has three columns that never meet: names, the drawing, and the figures in words. So nothing overlaps, whatever the figures are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape

from bulle.cli.comparison_table import COSTS, ms, size
from bulle.model.comparison import Comparison, Cost, CostName, Level

WIDTH, LEFT, RIGHT = 880, 170, 530
_TEXT_X = RIGHT + 20
_ROW, _AXIS, _TOP = 40, 30, 12


class Scale:
    """From values to the drawing's column, linear from 0 or logarithmic."""

    def __init__(self, least: float, most: float, *, logarithmic: bool, unit: float = 0) -> None:
        """``unit``: steps of a linear scale are round numbers of this, or of its powers (1024 for bytes)."""
        self.logarithmic = logarithmic
        self._unit = unit
        if logarithmic:
            self._low, self._high = math.floor(math.log10(least) * 2) / 2, math.ceil(math.log10(most) * 2) / 2
            if self._high <= self._low:
                self._high = self._low + 0.5
        else:
            self._low, self._high = 0.0, most or 1.0

    def x(self, value: float) -> float:
        """Where a value stands."""
        place = math.log10(max(value, 1e-12)) if self.logarithmic else value
        return round(LEFT + (RIGHT - LEFT) * min(max((place - self._low) / (self._high - self._low), 0.0), 1.0), 1)

    def ticks(self) -> list[float]:
        """Round values, few enough to be read."""
        if not self.logarithmic:
            power = self._unit ** math.floor(math.log(self._high, self._unit)) if self._unit else 1.0
            step = 10.0 ** math.floor(math.log10(self._high / power))
            step = power * next(step * factor for factor in (0.2, 0.25, 0.5, 1.0, 2.0) if self._high / (power * step * factor) <= 5.1)
            return [step * number for number in range(int(self._high / step + 1e-9) + 1)]
        decades = range(math.floor(self._low), math.ceil(self._high) + 1)
        many = self._high - self._low > 2.5
        found = [factor * 10.0**decade for decade in decades for factor in ((1,) if many else (1, 2, 5))]
        return [tick for tick in found if self._low - 1e-9 <= math.log10(tick) <= self._high + 1e-9]


def start_plot(found: Comparison) -> str:
    """Times to the first byte: the median, what lies between the fastest and the slowest, the first start."""
    levels = [level for level in found.levels if level.start]
    values = [value for level in levels if level.start for value in (level.start.cold_ms, level.start.warm_ms.least, level.start.warm_ms.most)]
    scale = Scale(min(values), max(values), logarithmic=True)

    def row(level: Level, y: float) -> Iterator[str]:
        assert level.start is not None
        warm = level.start.warm_ms
        yield _line("range", scale.x(warm.least), y, scale.x(warm.most), y)
        yield _line("range", scale.x(warm.p95), y - 6, scale.x(warm.p95), y + 6)
        yield f'<circle class="fill {_colour(found, level)}" cx="{scale.x(warm.p50)}" cy="{y}" r="6"/>'
        yield f'<circle class="first" cx="{scale.x(level.start.cold_ms)}" cy="{y}" r="5"/>'
        yield _words(y, ms(warm.p50), f"p95 {ms(warm.p95)}, first {ms(level.start.cold_ms)}")

    return _plot("Time to the first byte of the work", levels, scale, ms, row)


def memory_plot(found: Comparison) -> str:
    """Memory of an idle copy, in its parts, and how many fit."""
    levels = [level for level in found.levels if level.memory]
    scale = Scale(0, max(level.memory.copy_bytes for level in levels if level.memory), logarithmic=False, unit=1024)

    def row(level: Level, y: float) -> Iterator[str]:
        assert level.memory is not None
        memory, at = level.memory, 0.0
        for number, part in enumerate((memory.workload_bytes, memory.monitor_bytes, memory.kernel_bytes)):
            begin, end = scale.x(at), scale.x(at + part)
            if end - begin >= 1:
                yield _bar(f"{_colour(found, level)} part{number}", begin, y, max(end - begin - (1 if number < 2 else 0), 1))
            at += part
        if scale.x(at) - LEFT < 1:
            yield _bar(_colour(found, level), LEFT, y, 1)
        parts = (("work", memory.workload_bytes), ("monitor", memory.monitor_bytes), ("kernel", memory.kernel_bytes))
        said = ", ".join(f"{name} {size(part)}" for name, part in parts if part)
        yield _words(y, f"{size(memory.copy_bytes)}: {memory.fitting_copies:,} fit", said)

    return _plot("Memory of an idle copy", levels, scale, size, row)


def calls_plot(found: Comparison) -> str:
    """System calls that reach a kernel, and whose kernel that is."""
    levels = [level for level in found.levels if level.system_calls]
    scale = Scale(0, max(level.system_calls.reachable for level in levels if level.system_calls), logarithmic=False)

    def row(level: Level, y: float) -> Iterator[str]:
        assert level.system_calls is not None
        count = level.system_calls.reachable
        yield _bar(_colour(found, level), LEFT, y, max(scale.x(count) - LEFT, 1))
        kernel = "of a kernel of its own" if level.shared.get("kernel") == "own" else "of the host's kernel"
        yield _words(y, f"{count}", kernel)

    return _plot("System calls that are reachable", levels, scale, lambda value: f"{value:.0f}", row)


def cost_plot(found: Comparison) -> str:
    """All costs as times of the bare host's, a row for each work and in it a line for each level."""
    levels = [level for level in found.levels if not level.bare and level.costs]
    rows: list[tuple[CostName, list[tuple[Level, Cost]]]] = []
    for name in COSTS:
        present = [(level, level.costs[name]) for level in levels if name in level.costs and level.costs[name].times_host is not None]
        if present:
            rows.append((name, present))
    if not rows:
        return ""
    ends = [end / cost.ms.p50 * (cost.times_host or 1.0) for _name, present in rows for _, cost in present for end in (cost.ms.least, cost.ms.most)]
    scale = Scale(min(0.7, *ends), max(1.5, *ends), logarithmic=True)
    parts, y = [], float(_TOP)
    height = sum(20 * len(present) + 18 for _name, present in rows) + _TOP
    parts.append(_axis(scale, height, lambda value: f"{value:g}x"))
    parts.append(_line("one", scale.x(1), _TOP - 6, scale.x(1), height))
    for name, present in rows:
        middle = y + 10 * len(present) + 4
        parts.append(f'<text class="name" x="0" y="{middle - 2}">{escape(COSTS[name])}</text>')
        parts.append(f'<text class="small" x="0" y="{middle + 13}">{escape(_short(present[0][1].amount))}</text>')
        for level, cost in present:
            y += 20
            bare = cost.ms.p50 / (cost.times_host or 1.0)
            parts.append(_line("range", scale.x(cost.ms.least / bare), y - 4, scale.x(cost.ms.most / bare), y - 4))
            parts.append(f'<circle class="fill {_colour(found, level)}" cx="{scale.x(cost.times_host or 1.0)}" cy="{y - 4}" r="5.5"/>')
            said = f"{cost.times_host:.2f}x, {ms(cost.ms.p50)}"
            parts.append(f'<text class="value" x="{_TEXT_X}" y="{y}">{escape(said)}<tspan class="small"> {escape(level.name)}</tspan></text>')
        y += 18
        parts.append(_line("rule", 0, y - 4, WIDTH, y - 4))
    return _svg("Costs as times of the bare host's", height + _AXIS, parts)


def colour_of(found: Comparison, level: Level) -> str:
    """The class that gives a level its colour: the same in every plot."""
    return _colour(found, level)


def _colour(found: Comparison, level: Level) -> str:
    return f"level{found.levels.index(level)}"


def _plot(
    title: str, levels: Sequence[Level], scale: Scale, label: Callable[[float], str], row: Callable[[Level, float], Iterator[str]]
) -> str:  # fmt: skip
    height = _TOP + _ROW * len(levels)
    parts = [_axis(scale, height, label)]
    for number, level in enumerate(levels):
        y = _TOP + _ROW * number + _ROW / 2
        parts.append(f'<text class="name" x="0" y="{y + 5}">{escape(level.name)}</text>')
        parts += row(level, y)
    return _svg(title, height + _AXIS, parts)


def _axis(scale: Scale, height: float, label: Callable[[float], str]) -> str:
    parts = []
    for tick in scale.ticks():
        x = scale.x(tick)
        parts.append(_line("grid", x, _TOP - 6, x, height))
        parts.append(f'<text class="tick" x="{x}" y="{height + 18}">{escape(label(tick))}</text>')
    return "".join(parts)


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def _bar(kind: str, x: float, y: float, width: float) -> str:
    return f'<rect class="fill {kind}" x="{x}" y="{y - 9}" width="{width:.1f}" height="18" rx="2"/>'


def _words(y: float, value: str, more: str) -> str:
    return (
        f'<text class="value" x="{_TEXT_X}" y="{y - 2}">{escape(value)}</text>'
        f'<text class="small" x="{_TEXT_X}" y="{y + 14}">{escape(more)}</text>'
    )  # fmt: skip


def _short(amount: str) -> str:
    return amount if len(amount) <= 27 else amount.partition(" and ")[0].partition(" made")[0]


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    inside = "".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>{inside}</svg>'
