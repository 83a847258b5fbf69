"""Recordings of a terminal: real commands in a real terminal become a picture that moves, without scripts and without this machine's paths."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from bulle_testing import places

TOOL = places.SOURCE / "tools/recording.py"


def record(directory: Path, *commands: str) -> subprocess.CompletedProcess[str]:
    """The tool, with these commands in a directory of one file."""
    (directory / "example").mkdir()
    (directory / "example/file").write_text("a < b\n")
    (directory / "commands").write_text("\n".join(["# A & B", *commands, ""]))
    line = [sys.executable, str(TOOL), str(directory / "out.svg"), str(directory / "commands"), str(directory / "example")]
    return subprocess.run(line, capture_output=True, text=True, timeout=240)


def shown(picture: str) -> list[list[str]]:
    """The lines of each frame."""
    space = "{http://www.w3.org/2000/svg}"
    root = ElementTree.fromstring(picture)
    texts = {f"#{one.get('id')}": "".join(one.itertext()) for one in root.iter(f"{space}text")}
    return [[texts[use.get("href", "")] for use in group.iter(f"{space}use")] for group in root.iter(f"{space}g")]


def test_commands_are_shown_as_a_terminal_shows_them(tmp_path: Path) -> None:
    script = r"""printf '\033[31mred\033[0m plain\n1 of 2\r2 of 2\nabc\033[1A\rX\n\n'"""
    done = record(tmp_path, "cat file", "# said", script, f"@ touch {tmp_path}/untold", "stty size")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "untold").exists()
    picture = (tmp_path / "out.svg").read_text()
    last = shown(picture)[-1]
    assert last[:3] == ["~/shop $ cat file", "a < b", "~/shop $ # said"]
    assert last[4:7] == ["red plain", "X of 2", "abc"] and last[-1] == "20 92"
    assert '<tspan fill="#ff7b72">red </tspan>plain' in picture
    assert "<title>A &amp; B</title>" in picture and "<script" not in picture
    assert any("1 of 2" in line or "~/shop $ cat " in line for frame in shown(picture)[:5] for line in frame), "it begins with the first command"


def test_what_scrolls_away_is_gone(tmp_path: Path) -> None:
    assert record(tmp_path, "seq 50").returncode == 0
    assert shown((tmp_path / "out.svg").read_text())[-1][-1] == "50"
    assert all(len(frame) <= 20 for frame in shown((tmp_path / "out.svg").read_text()))


def test_paths_of_this_machine_and_failures_are_refused(tmp_path: Path) -> None:
    done = record(tmp_path, "pwd")
    assert done.returncode == 1 and "tells paths" in done.stderr and not (tmp_path / "out.svg").exists()
    (tmp_path / "commands").write_text("# title\nfalse\n")
    line = [sys.executable, str(TOOL), str(tmp_path / "out.svg"), str(tmp_path / "commands"), str(tmp_path / "example")]
    assert subprocess.run(line, capture_output=True, timeout=240).returncode and not (tmp_path / "out.svg").exists()


def test_the_recording_of_apps_is_a_picture_and_nothing_else() -> None:
    picture = (places.SOURCE / "docs/images/apps.svg").read_text()
    frames = shown(picture)
    assert any("bulle compose chaos" in line for line in frames[-1])
    assert not re.search(r"<script|https?://(?!www\.w3\.org/2000/svg)|/home/|/root|/tmp|/var", picture)
