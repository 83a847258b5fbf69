"""How many replicas a load needs: the rule, and that fewer come only after a while."""

from __future__ import annotations

from pathlib import Path

import pytest

from bulle.compose.autoscaling import Autoscaler, needed, processors
from bulle.compose.service_parts import Autoscale, Bytes
from bulle.model.run_plan import Resources


@pytest.mark.parametrize(
    ("total", "count", "current", "wanted"),
    [
        (100, 2, 2, 2), (108, 2, 2, 2), (92, 2, 2, 2),  # at the target of 50, or a tenth beside it
        (120, 2, 2, 3), (200, 2, 2, 4), (2000, 2, 2, 6), (900, 10, 10, 18), (2000, 10, 10, 20),  # more, and how many at once
        (50, 2, 2, 1), (0, 4, 4, 0), (70, 4, 4, 2),  # fewer
        (100, 1, 2, 2), (150, 1, 2, 3), (10, 1, 2, 2),  # one of two is not measured yet: idle where more are needed, else at its target
    ],
)  # fmt: skip
def test_the_rule(total: float, count: int, current: int, wanted: int) -> None:
    assert needed(total, count, 50, current) == wanted


def test_a_load_that_comes_and_goes_keeps_its_replicas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("bulle.compose.autoscaling.time.monotonic", lambda: now[0])
    scaler = Autoscaler(tmp_path, steady_s=60)
    rule = Autoscale(min=1, max=5, cpu=50)

    class One:
        id = "one"

    def look(percent: float, current: int, after_s: float = 2) -> int:
        now[0] += after_s
        scaler._usage = {"one": (percent, 0)}
        return scaler.replicas("shop", "web", rule, current, [One()])  # type: ignore[list-item]

    assert look(100, 1) == 2, "more at once"
    assert look(5000, 2) == 5, "never more than the most"
    for _ in range(14):
        assert look(1, 5) == 5 and look(49, 5) == 5, "fewer only when fewer were enough for the whole time"
    for _ in range(31):
        assert look(1, 5) == 5
    assert look(1, 5) < 5


def test_processors_that_a_replica_may_use() -> None:
    assert processors(Resources()) == 1
    assert processors(Resources(nano_cpus=250_000_000)) == 0.25
    assert processors(Resources(cpu_quota_us=400_000)) == 4
    assert Autoscale(max=2, memory=Bytes(5)).min == 1
