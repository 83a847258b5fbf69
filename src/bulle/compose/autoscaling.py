"""How many replicas a service with ``x-bulle-autoscale`` should have, by what those that it has use.

Kubernetes' rule: as many as bring each to its target, unless it is nearly there; more at once, fewer only when no look of the last while wanted more,
so that a load that comes and goes does not have replicas made and removed all the time. The measure is :class:`bulle.engine.measuring.Meter`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

from bulle.compose.service_parts import Autoscale
from bulle.engine.container import Container
from bulle.engine.measuring import Meter
from bulle.model.run_plan import Resources

_TOLERANCE = 0.1
_AT_LEAST_MORE = 4
STEADY_S = 60.0
"""For how long fewer must have been enough before there are fewer."""


class Autoscaler:
    """Remembers what it saw of one home's services; asked from time to time."""

    def __init__(self, home: Path, steady_s: float = STEADY_S) -> None:
        self._meter = Meter(home)
        self._steady_s = steady_s
        self._usage: dict[str, tuple[float, int]] = {}
        self._seen: set[str] = set()
        self._wanted: dict[tuple[str, str], list[tuple[float, int]]] = {}

    def look(self, containers: Sequence[Container]) -> None:
        """Measure these, all at once: what they used since the last look."""
        self._usage = {}
        for one, used in zip(containers, self._meter.measure(containers), strict=True):
            if one.id in self._seen and used.pids:
                self._usage[one.id] = (used.cpu_percent / processors(one.plan.resources), used.memory_bytes)
        self._seen = {one.id for one in containers}

    def replicas(self, app: str, service: str, rule: Autoscale, current: int, containers: Sequence[Container]) -> int:
        """How many there should be of a service that is to have ``current`` and has these, which were looked at."""
        used = [self._usage[one.id] for one in containers if one.id in self._usage]
        wanted = current
        if used:
            by_target = [
                needed(sum(each[position] for each in used), len(used), target, current)
                for position, target in enumerate((rule.cpu, float(rule.memory)))
                if target
            ]
            wanted = max(by_target, default=current)
        wanted = min(max(wanted, rule.min), rule.max)
        now = time.monotonic()
        seen = self._wanted.setdefault((app, service), [(now, current)])
        seen.append((now, wanted))
        # The last one before the time began says what held when it did.
        while len(seen) > 1 and seen[1][0] <= now - self._steady_s:
            del seen[0]
        if wanted < current:
            wanted = current if seen[0][0] > now - self._steady_s else min(current, max(number for _, number in seen[1:]))
        return min(max(wanted, rule.min), rule.max)


def needed(total: float, count: int, target: float, current: int) -> int:
    """How many replicas bring each to the target where ``count`` that were measured use so much together, of ``current`` that there are to be.

    One that could not be measured yet counts as idle where more would be needed, as at its target where fewer.
    """
    ratio = total / count / target
    if abs(ratio - 1) <= _TOLERANCE:
        return current
    with_others = (total + (current - count) * (0.0 if ratio > 1 else target)) / current / target if current > count else ratio
    if abs(with_others - 1) <= _TOLERANCE or (with_others - 1) * (ratio - 1) < 0:
        return current
    return min(math.ceil(current * with_others - 1e-9), max(2 * current, current + _AT_LEAST_MORE))


def processors(resources: Resources) -> float:
    """How many processors a container may use; one where it may use all."""
    if resources.nano_cpus:
        return resources.nano_cpus / 1e9
    if resources.cpu_quota_us > 0:
        return resources.cpu_quota_us / (resources.cpu_period_us or 100_000)
    return 1.0
