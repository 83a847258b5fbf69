"""``pip install .`` into any virtual environment gives the command and the library, as a user without a checkout gets them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.package_index
def test_installed_command_and_library(installation: Path, home: Path) -> None:
    settings = {"BULLE_HOME": str(home), "PATH": "/usr/bin:/bin"}
    said = subprocess.run([str(installation / "bin/bulle"), "--version"], env=settings, capture_output=True, text=True)
    assert (said.returncode, said.stdout[:14]) == (0, "Bulle version "), said.stderr
    program = "import bulle; print(bulle.__file__, bulle.Engine.__name__)"
    said = subprocess.run([str(installation / "bin/python"), "-c", program], env=settings, cwd="/", capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert str(installation) in said.stdout
    assert said.stdout.endswith(" Engine\n")


@pytest.mark.slow
@pytest.mark.package_index
def test_installed_package_brings_its_programs(installation: Path) -> None:
    (package,) = installation.glob("lib/python3*/site-packages/bulle")
    assert (package / "py.typed").exists()
    assert (package / "_bin/bulle-init").stat().st_mode & 0o111
