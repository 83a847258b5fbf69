"""The page of ``bulle compare --html``: one file that needs nothing else, for light and dark screens and for paper, without any script."""

from __future__ import annotations

import json
from collections.abc import Callable
from html import escape

import msgspec

from bulle.cli import comparison_plots as plots
from bulle.cli.comparison_table import COSTS, NOTHING, course_of, hypervisor_of, ms, sentence, size, surroundings, times
from bulle.model.comparison import Comparison, Level, Use

_STYLE = """
:root { color-scheme: light dark; --page: #f9f9f7; --sheet: #fcfcfb; --ink: #0b0b0b; --second: #52514e; --line: #dddcd7; --soft: #efeeea;
  --l0: #8a8984; --l1: #eb6834; --l2: #2a78d6; --l3: #1baf7a; --l4: #8a5bc9; --own: #d9efe2; --own-ink: #0b5a36; --shared: #fbe6d6; --shared-ink: #7a3a0c; }
@media (prefers-color-scheme: dark) { :root { --page: #0d0d0d; --sheet: #1a1a19; --ink: #ffffff; --second: #c3c2b7; --line: #3a3a37; --soft: #262624;
  --l0: #a5a49d; --l1: #e8733f; --l2: #3987e5; --l3: #2bb583; --l4: #a78be0; --own: #163d2a; --own-ink: #a6e3c2; --shared: #47290f; --shared-ink: #f6c9a3; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 960px; margin: 0 auto; padding: 40px 20px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 8px; }
h2 { font-size: 19px; margin: 0 0 4px; }
p { margin: 0 0 12px; color: var(--second); }
section { background: var(--sheet); border: 1px solid var(--line); border-radius: 10px; padding: 22px 24px; margin: 20px 0; break-inside: avoid; }
svg { display: block; width: 100%; min-width: 640px; height: auto; margin-top: 10px; font-size: 14px; }
svg text { fill: var(--ink); } svg .small { fill: var(--second); font-size: 12.5px; font-weight: 400; } svg .value { font-weight: 600; }
svg .tick { fill: var(--second); font-size: 12.5px; text-anchor: middle; } svg .grid { stroke: var(--line); stroke-width: 1; }
svg .rule { stroke: var(--soft); } svg .one { stroke: var(--second); stroke-width: 1.5; stroke-dasharray: 4 3; }
svg .range { stroke: var(--second); stroke-width: 1.5; } svg .first { fill: var(--sheet); stroke: var(--ink); stroke-width: 1.5; }
.level0 { fill: var(--l0); background: var(--l0); } .level1 { fill: var(--l1); background: var(--l1); } .level2 { fill: var(--l2); background: var(--l2); }
.level3 { fill: var(--l3); background: var(--l3); } .level4 { fill: var(--l4); background: var(--l4); }
.part1 { opacity: .62; } .part2 { opacity: .35; }
.key { display: inline-flex; vertical-align: middle; align-items: center; gap: 7px; margin: 6px 18px 0 0; color: var(--second); font-size: 14px; }
.key i { width: 12px; height: 12px; border-radius: 50%; display: inline-block; } .key .bar { border-radius: 3px; } .key .bar, .key .dot { background: var(--second); }
.key .ring { background: none; border: 1.5px solid var(--ink); } .key .stroke { height: 2px; width: 18px; border-radius: 0; background: var(--second); }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 14.5px; }
th, td { padding: 6px 10px; text-align: right; border-bottom: 1px solid var(--soft); white-space: nowrap; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; font-weight: 400; color: var(--second); } thead th { border-bottom: 1px solid var(--line); }
tr.group td { color: var(--ink); font-weight: 600; padding-top: 14px; } td.own { background: var(--own); color: var(--own-ink); }
td.shared { background: var(--shared); color: var(--shared-ink); } .centre th, .centre td { text-align: center; } .centre td:first-child { text-align: left; }
dl { margin: 8px 0 0; } dt { font-weight: 600; margin-top: 14px; } dd { margin: 0; color: var(--second); }
.about { display: grid; grid-template-columns: repeat(auto-fill, minmax(270px, 1fr)); gap: 2px 24px; font-size: 14px; }
.about div { display: flex; gap: 8px; } .about dt { margin: 0; font-weight: 400; color: var(--second); } .about dd { color: var(--ink); }
.pill { display: inline-block; border: 1px solid var(--line); border-radius: 99px; padding: 0 10px 0 8px; margin-left: 8px; font-weight: 500; font-size: 14px; }
.pill i { width: 9px; height: 9px; border-radius: 50%; display: inline-block; margin-right: 6px; }
summary { cursor: pointer; } pre { overflow-x: auto; font-size: 12.5px; } footer { color: var(--second); font-size: 13.5px; }
@media print { body { background: none; } main { max-width: none; padding: 0; } details { display: none; } }
"""  # noqa: E501 - a style sheet


def page_of(found: Comparison) -> str:
    """The whole page."""
    ran = [level for level in found.levels if level.usable]
    sections = [_uses(found)]
    if any(level.start for level in found.levels):
        first = '<span class="key"><i class="ring"></i>the first start</span>'
        note = '<span class="key"><i class="dot"></i>median</span><span class="key"><i class="stroke"></i>fastest to slowest, with p95</span>'
        text = f"From asking for a start to the first byte that the work wrote, {found.runs} times at each level. The axis is logarithmic."
        sections.append(_section("How fast it starts", text, plots.start_plot(found), note + first))
    if any(level.memory for level in found.levels):
        text = "What an idle copy takes: its own processes (with a hypervisor, where there is one), its monitor, the kernel's part. And how many fit."
        parts = enumerate(("the work", "its monitor", "the kernel, for it"))
        keys = "".join(f'<span class="key"><i class="bar part{number}"></i>{name}</span>' for number, name in parts)
        sections.append(_section("How much memory it takes", text, plots.memory_plot(found), keys))
    if costs := plots.cost_plot(found):
        text = "The same work as on the bare host, whose time is the dashed line at 1x: to the right of it is slower. The axis is logarithmic."
        sections.append(_section("What work costs in it", text, costs, _keys(found, [level for level in ran if not level.bare])))
    if any(level.system_calls for level in found.levels):
        text = "Of all system calls, how many end in a kernel's code when a process inside makes them."
        sections.append(_section("What it can ask of a kernel", text, plots.calls_plot(found)))
    sections += [_sharing(found), _figures(found), _not_measured(found), _data(found)]
    title = escape(f"What isolation costs: {found.image}")
    about = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(what)}</dd></div>" for name, what in surroundings(found).items())
    head = f'<p>{escape(course_of(found))}</p><dl class="about">{about}</dl>'
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/><meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{title}</title><style>{_STYLE}</style></head><body><main><h1>{title}</h1>{head}{''.join(sections)}"
        f"<footer>Measured by bulle compare; docs/compare.md says how.</footer></main></body></html>\n"
    )


def _section(title: str, text: str, content: str, keys: str = "") -> str:
    shown = f"<div>{keys}</div>" if keys else ""
    return f'<section><h2>{escape(title)}</h2><p>{escape(text)}</p>{shown}<div class="wide">{content}</div></section>'


def _keys(found: Comparison, levels: list[Level]) -> str:
    return "".join(f'<span class="key"><i class="{plots.colour_of(found, level)}"></i>{escape(level.name)}</span>' for level in levels)


def _uses(found: Comparison) -> str:
    def entry(use: Use) -> str:
        level = found.level(use.level)
        dot = f'<i class="{plots.colour_of(found, level)}"></i>' if level is not None else ""
        pill = f'<span class="pill">{dot}{escape(use.level or "none of these")}</span>'
        return f"<dt>{escape(sentence(use.name)[:-1])}{pill}</dt><dd>{escape(sentence(use.reason))}</dd>"

    return _section("What suits what", "Of the levels that ran here, by what was measured.", f"<dl>{''.join(map(entry, found.uses))}</dl>")


def _sharing(found: Comparison) -> str:
    levels = [level for level in found.levels if level.shared]
    if not levels:
        return ""
    head = "".join(f"<th>{escape(level.name)}</th>" for level in levels)
    rows = []
    for what in dict.fromkeys(what for level in levels for what in level.shared):
        cells = "".join(f'<td class="{level.shared.get(what, "")}">{escape(level.shared.get(what, NOTHING))}</td>' for level in levels)
        rows.append(f"<tr><td>{escape(what)}</td>{cells}</tr>")
    text = "The same boot_id inside and outside is the same kernel; the same numbers of namespaces are the same processes, network, users and so on."
    table = f'<table class="centre"><thead><tr><th></th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return _section("What it shares with the host", text, table)


def _figures(found: Comparison) -> str:
    rows: list[tuple[str, Callable[[Level], str] | None]] = [
        ("Start", None),
        ("first (cold)", lambda level: ms(level.start.cold_ms) if level.start else ""),
        ("next, p50", lambda level: ms(level.start.warm_ms.p50) if level.start else ""),
        ("next, p95", lambda level: ms(level.start.warm_ms.p95) if level.start else ""),
        ("whole run, p50", lambda level: ms(level.start.whole_ms.p50) if level.start else ""),
    ]
    if found.command:
        rows.append(("the command, p50", lambda level: ms(level.work.whole_ms.p50) if level.work else ""))
    rows += [
        ("Idle copy", None),
        ("memory", lambda level: size(level.memory.copy_bytes) if level.memory else ""),
        ("memory of isolation alone", lambda level: size(level.memory.isolation_bytes) if level.memory else ""),
        ("copies that fit", lambda level: f"{level.memory.fitting_copies:,}" if level.memory else ""),
        ("disk", lambda level: size(level.storage.copy_bytes) if level.storage else ""),
        ("disk, once for the level", lambda level: size(level.storage.level_bytes) if level.storage else ""),
        ("Work", None),
    ]
    for name, word in COSTS.items():
        rows.append((word, lambda level, name=name: f"{ms(level.costs[name].ms.p50)} ({times(level.costs[name])})" if name in level.costs else ""))  # type: ignore[misc]
    rows += [
        ("In sight", None),
        ("processes", lambda level: str(level.seen.processes or "") if level.seen else ""),
        ("devices of the host", lambda level: str(level.seen.host_devices) if level.seen else ""),
        ("connected to", lambda level: level.network),
        ("hypervisor", hypervisor_of),
    ]
    columns = len(found.levels) + 1
    body = "".join(
        f'<tr class="group"><td colspan="{columns}">{escape(name)}</td></tr>'
        if cell is None
        else f"<tr><td>{escape(name)}</td>{''.join(f'<td>{escape(cell(level) or NOTHING)}</td>' for level in found.levels)}</tr>"
        for name, cell in rows
    )
    head = "".join(f"<th>{escape(level.name)}</th>" for level in found.levels)
    table = f'<table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>'
    return _section("The figures", "Medians; in brackets how many times the bare host's time that is.", table)


def _not_measured(found: Comparison) -> str:
    lines = [(level.name, f"{level.reason}{f'; {level.mend}' if level.mend else ''}") for level in found.levels if not level.usable]
    lines += [(f"{level.name}, {COSTS[name]}", why) for level in found.levels for name, why in level.cost_reasons.items() if level.usable]
    lines += [(f"{level.name}, the command", level.work_reason) for level in found.levels if level.work_reason and level.usable]
    lines += [(level.name, note) for level in found.levels for note in level.notes]
    if not lines:
        return ""
    entries = "".join(f"<dt>{escape(name)}</dt><dd>{escape(why)}</dd>" for name, why in lines)
    return _section("What was not measured, or is weaker than it could be", "And why.", f"<dl>{entries}</dl>")


def _data(found: Comparison) -> str:
    text = json.dumps(msgspec.to_builtins(found), indent=2, ensure_ascii=False)
    return f"<details><summary>Everything that was measured, as JSON</summary><pre>{escape(text)}</pre></details>"
