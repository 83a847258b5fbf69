"""``pip install .`` into any virtual environment gives the command and the library, as a user without a checkout gets them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bulle_testing import places


@pytest.fixture(scope="module")
def environment(run_directory: Path) -> Path:
    """A new virtual environment with Bulle installed from this checkout, not as a link to it."""
    target = run_directory / "installed"
    subprocess.run([sys.executable, "-m", "venv", str(target)], check=True, capture_output=True)
    done = subprocess.run([str(target / "bin/pip"), "install", "--quiet", str(places.SOURCE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


@pytest.mark.slow
@pytest.mark.package_index
def test_installed_command_and_library(environment: Path, home: Path) -> None:
    settings = {"BULLE_HOME": str(home), "PATH": "/usr/bin:/bin"}
    said = subprocess.run([str(environment / "bin/bulle"), "--version"], env=settings, capture_output=True, text=True)
    assert (said.returncode, said.stdout[:14]) == (0, "Bulle version "), said.stderr
    program = "import bulle; print(bulle.__file__, bulle.Engine.__name__)"
    said = subprocess.run([str(environment / "bin/python"), "-c", program], env=settings, cwd="/", capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert str(environment) in said.stdout
    assert said.stdout.endswith(" Engine\n")


@pytest.mark.slow
@pytest.mark.package_index
def test_installed_package_brings_its_programs(environment: Path) -> None:
    (package,) = environment.glob("lib/python3*/site-packages/bulle")
    assert (package / "py.typed").exists()
    assert (package / "_bin/bulle-init").stat().st_mode & 0o111
