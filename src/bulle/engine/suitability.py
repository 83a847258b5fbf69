"""Which level suits which use, and why: read from what was measured, never from a level's name.

The uses are those of the course (docs/course.md, "Users must choose"). A level is a candidate by what it shares and what it costs here; where none of
those that ran is one, that is the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bulle.model.comparison import Cost, CostName, Level, Use

_MEBIBYTE = 1 << 20
_SPEED: tuple[CostName, ...] = ("processor", "system_call", "disk_write", "disk_read", "small_files", "sync")
_EMULATING = "emulating"


def uses(levels: Sequence[Level]) -> tuple[Use, ...]:
    """The answers for all uses, of the levels that ran; the bare host is what they are compared with, and no answer."""
    ran = [level for level in levels if level.usable and not level.bare and level.start is not None]
    host = next((level for level in levels if level.bare), None)
    found = [
        _trusted_services(ran),
        _dense_services(ran),
        _short_work(ran, host),
        _untrusted_code(ran),
        _other_kernel(ran),
        _other_processor(ran, host),
        _rescue(ran),
    ]
    return tuple(found)


def _is(level: Level, what: str, how: str) -> bool:
    return level.shared.get(what) == how


def _fenced(level: Level) -> bool:
    """Whether what runs in it sees neither the processes nor the users of the host."""
    return _is(level, "kernel", "own") or (_is(level, "processes", "own") and _is(level, "users", "own"))


def _best(levels: Sequence[Level], key: Callable[[Level], float]) -> Level | None:
    return min(levels, key=key, default=None)


def _memory(level: Level) -> float:
    return level.memory.copy_bytes if level.memory else float("inf")


def _warm(level: Level) -> float:
    return level.start.warm_ms.p50 if level.start else float("inf")


def _slowness(level: Level) -> float:
    """The middle of all costs, as times of the bare host."""
    times = sorted(cost.times_host for name in _SPEED if (cost := level.costs.get(name)) and cost.times_host is not None)
    return times[len(times) // 2] if times else float("inf")


def _ms(value: float) -> str:
    return f"{value:.1f} ms" if value < 100 else f"{value:,.0f} ms"


def _mib(value: float) -> str:
    return f"{value / _MEBIBYTE:.1f} MiB"


def _times(cost: Cost | None) -> str:
    return "?" if cost is None or cost.times_host is None else f"{cost.times_host:.2f}"


def _takes(level: Level) -> str:
    """Start and memory, in words."""
    parts = []
    if level.start:
        parts.append(f"starts in {_ms(level.start.warm_ms.p50)}")
    if level.memory:
        parts.append(f"an idle copy takes {_mib(level.memory.copy_bytes)}")
    return ", ".join(parts)


def _shares(level: Level, *, only: tuple[str, ...]) -> str:
    both = [what for what in only if _is(level, what, "shared")]
    return " and ".join(both) if len(both) < 3 else f"{', '.join(both[:-1])} and {both[-1]}"


def _trusted_services(ran: Sequence[Level]) -> Use:
    name = "trusted services of one's own"
    found = _best([level for level in ran if _fenced(level)], _slowness)
    if found is None:
        return Use(name, "", "no level that ran has processes and users of its own")
    computing, disk = _times(found.costs.get("processor")), _times(found.costs.get("sync"))
    costs = f"{computing} times the bare host's for computing, {disk} for bringing data to the disk"
    return Use(name, found.name, f"of those with processes and users of their own it costs least: {costs}; {_takes(found)}")


def _dense_services(ran: Sequence[Level]) -> Use:
    name = "many small services on one machine"
    candidates = [level for level in ran if _fenced(level) and level.memory]
    found = _best(candidates, _memory)
    if found is None or found.memory is None:
        return Use(name, "", "no level that ran has processes and users of its own")
    others = [level for level in candidates if level is not found and level.memory]
    against = "".join(f", {level.memory.fitting_copies:,} at the level {level.name}" for level in others if level.memory)
    return Use(name, found.name, f"{found.memory.fitting_copies:,} idle copies fit in this machine's memory{against}; {_takes(found)}")


def _short_work(ran: Sequence[Level], host: Level | None) -> Use:
    name = "short work: builds, tests, functions"
    found = _best([level for level in ran if _fenced(level)], lambda level: level.start.whole_ms.p50 if level.start else float("inf"))
    if found is None or found.start is None:
        return Use(name, "", "no level that ran has processes and users of its own")
    against = f"; a bare process takes {_ms(host.start.whole_ms.p50)}" if host and host.start else ""
    whole = f"{_ms(found.start.whole_ms.p50)} from the request until the work is done and everything is removed (p95 {_ms(found.start.whole_ms.p95)})"
    return Use(name, found.name, whole + against)


def _untrusted_code(ran: Sequence[Level]) -> Use:
    name = "code that is not trusted"
    own = _best([level for level in ran if _is(level, "kernel", "own")], _warm)
    fenced = _best([level for level in ran if _fenced(level)], lambda level: level.system_calls.reachable if level.system_calls else float("inf"))
    if own is not None:
        calls = f"; its {own.system_calls.reachable} system calls end in that" if own.system_calls else ""
        return Use(name, own.name, f"it has a kernel of its own: a hole in that is no hole in this machine's{calls}; {_takes(own)}")
    if fenced is None:
        return Use(name, "", "no level that ran keeps it from this machine's processes and users")
    calls = f"{fenced.system_calls.reachable} system calls still reach it" if fenced.system_calls else "system calls still reach it"
    but = f"but this machine's kernel is shared and {calls}: hostile code wants a kernel of its own"
    return Use(name, fenced.name, f"the best of those that ran, {but}")


def _other_kernel(ran: Sequence[Level]) -> Use:
    name = "another kernel or operating system"
    found = _best([level for level in ran if _is(level, "kernel", "own")], _warm)
    if found is None or found.seen is None:
        return Use(name, "", "every level that ran shares this machine's kernel (the same boot_id inside and outside)")
    return Use(name, found.name, f"it runs Linux {found.seen.release}, started for it alone; {_takes(found)}")


def _other_processor(ran: Sequence[Level], host: Level | None) -> Use:
    name = "programs for another processor"
    here = host.seen.machine if host and host.seen else ""
    found = next((level for level in ran if level.seen and level.seen.machine and level.seen.machine != here), None)
    found = found or next((level for level in ran if level.hypervisor == _EMULATING), None)
    if found is None or found.seen is None:
        return Use(name, "", f"no level that ran has another processor than this machine's own ({here or 'unknown'})")
    slower = f"; computing takes {_times(found.costs.get('processor'))} times the bare host's time" if found.costs.get("processor") else ""
    return Use(name, found.name, f"its processor ({found.seen.machine}) is a program, so it can be any{slower}")


def _rescue(ran: Sequence[Level]) -> Use:
    name = "teaching, and rescue of a root file system"
    words = ("processes", "network", "users")
    candidates = [level for level in ran if _is(level, "kernel", "shared") and _is(level, "files", "own")]
    found = _best(candidates, lambda level: -sum(_is(level, word, "shared") for word in words))
    if found is None or not _shares(found, only=words):
        return Use(name, "", "no level that ran has files of its own and shares everything else")
    inside = f": {found.seen.processes} processes are in sight" if found.seen and found.seen.processes else ""
    shared = _shares(found, only=words)
    return Use(name, found.name, f"only files are its own; it shares the host's {shared}{inside}, so the host's tools see all of it")
