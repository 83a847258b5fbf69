"""docs/spec-support.md says what is so: every cell is asked of the drivers, or typed."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bulle.engine.drivers import LEVELS, driver_for
from bulle.isolation.driver import Feature
from bulle_testing import places

PAGE = places.SOURCE / "docs/spec-support.md"
Bulle = Callable[..., "subprocess.CompletedProcess[str]"]


def rows(heading: str) -> tuple[list[str], dict[str, dict[str, str]]]:
    """The levels of the table below a heading, and what each row says of each."""
    section = PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines() if line.startswith("| ")]
    first, _rule, *rest = [[cell.strip() for cell in line] for line in lines]
    found = {line[0].strip("`"): dict(zip(first[1:], line[1:], strict=True)) for line in rest}
    assert len(found) == len(rest), "a row stands there twice"
    return first[1:], found


FLAGS = rows("Docker's flags of `run` and `create`")[1]


def test_every_level_and_feature_is_there() -> None:
    for heading in ("Features", "Docker's flags of `run` and `create`"):
        assert set(rows(heading)[0]) == set(LEVELS)
    assert set(rows("Features")[1]) == {feature.value for feature in Feature}


@pytest.mark.root
@pytest.mark.parametrize("level", LEVELS)
def test_features_are_the_drivers(level: str, home: Path) -> None:
    probe = driver_for(level, home).probe()
    if not probe.usable:
        pytest.skip(f"{level} cannot be used here: {probe.reason}")
    for name, cells in rows("Features")[1].items():
        has = Feature(name) in probe.features
        assert cells[level] in ("yes", "no", "where")
        assert cells[level] == "where" or has == (cells[level] == "yes"), f"{name} at {level}: the page says {cells[level]}, the driver {has}"


@pytest.mark.root
@pytest.mark.parametrize("flag", FLAGS)
def test_flags_are_taken_or_refused(flag: str, bulle: Bulle, busybox_image: Path) -> None:
    bulle("load", "-i", busybox_image, check=True)
    image = bulle("images", "--format", "{{.Repository}}:{{.Tag}}", check=True).stdout.split()[0]
    bulle("create", "--name", "other", "--network", "none", image, check=True)
    for level, cell in FLAGS[flag].items():
        done = bulle("run", "--dry-run", "--isolation", level, *flag.split(), image, "true")
        if cell == "yes":
            assert done.returncode == 0, f"{level}: {done.stderr}"
            continue
        assert done.returncode == 125, f"{level} takes it, and the page says: {cell}"
        wanted = f"unknown flag: {flag.split()[0]}" if cell == "unknown" else f"isolation level '{level}' has no {re.sub('^no: ', '', cell)}"
        assert wanted in done.stderr
