"""What can be asked for is written down: every verb, flag and setting; every path in the map exists; links between pages lead somewhere."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def documents() -> str:
    """All pages as one text."""
    return "\n".join(page.read_text() for page in PAGES)


def test_reference_is_what_the_commands_say() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    written = subprocess.run([sys.executable, "tools/reference.py"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert written.returncode == 0, written.stderr
    assert (ROOT / "docs/reference.md").read_text() == written.stdout, "`make reference` writes docs/reference.md anew"


def test_every_setting_is_documented() -> None:
    folders = [(ROOT / folder).rglob(pattern) for folder, pattern in (("src", "*.py"), ("native", "*.c"), ("tests", "*.py"), ("bench", "*.py"))]
    sources = [ROOT / "hatch_build.py", *itertools.chain(*folders)]
    used = {name for path in sources for name in re.findall(r"""["'](BULLE_[A-Z0-9_]+)["'=]""", path.read_text())}
    assert "BULLE_HOME" in used
    text = documents()
    assert not {name for name in used if name not in text}


def test_paths_in_the_map_exist() -> None:
    page = ROOT / "docs/architecture.md"
    named = set(re.findall(r"`((?:src|tests|bench|docs|native|tools|demo|\.ci)/[\w./-]*)`", page.read_text()))
    assert named, "the map names paths"
    assert not sorted(name for name in named if not (ROOT / name).exists())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    assert not [link for link in links if "://" not in link and not link.startswith("mailto:") and not (page.parent / link).exists()]


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "docs/architecture.md", "docs/differences.md"])
def test_page_is_there(name: str) -> None:
    assert (ROOT / name).stat().st_size > 200


def test_changelog_keeps_its_form() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert text.startswith("# Changelog\n")
    assert "## [Unreleased]" in text
    headings = re.findall(r"^### (.*)$", text, flags=re.M)
    assert set(headings) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_decisions_keep_their_form() -> None:
    records = sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))
    assert [int(record.name[:4]) for record in records] == list(range(1, len(records) + 1))
    for record in records:
        text = record.read_text()
        assert text.startswith(f"# {int(record.name[:4])}. "), record
        for heading in ("## Context", "## Decision", "## Consequences"):
            assert heading in text, f"{record} has no {heading}"


def test_every_path_of_the_socket_is_documented() -> None:
    from bulle.api.routes import ROUTES

    page = (ROOT / "docs/socket.md").read_text()
    missing = {route.path for route in ROUTES if route.path.removesuffix("/{path...}") not in page}
    assert not missing
