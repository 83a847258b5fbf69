"""The pages of examples/, as a reader goes through them: their commands are typed, and do what the page says. The three databases are in
``tests/compat/test_databases.py``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulle_testing import places
from bulle_testing.networking import Networked, free_ports, networked
from bulle_testing.running import Machine, machine

EXAMPLES = places.SOURCE / "examples"
pytestmark = [pytest.mark.root, pytest.mark.user_namespaces]
needs_networks = pytest.mark.programs("nft", "curl")


@pytest.fixture(scope="module")
def module_machine(run_directory: Path) -> Iterator[Machine]:
    """A home without any image: the examples bring what they need."""
    with machine(run_directory, "examples") as made:
        yield made


@pytest.fixture
def net(module_machine: Machine) -> Iterator[Networked]:
    with networked(module_machine) as made:
        yield made


def typed(net: Networked, name: str, **settings: str) -> str:
    """What the commands of a page print, in the example's directory."""
    (script,) = re.findall(r"^```sh\n(.*?)^```", (EXAMPLES / name / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    command_directory = Path(places.command_line()[0]).parent
    environment = net.environment | {"PATH": f"{command_directory}:{Path(sys.executable).parent}:{os.environ['PATH']}"} | settings
    line = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(line, cwd=EXAMPLES / name, env=environment, capture_output=True, text=True, timeout=280, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{script}\nended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert net("ps", "-aq") == "" and "compose" not in net("network", "ls", "--format", "{{.Labels}}"), "the page takes everything down"
    return done.stdout


def answers(printed: str) -> dict[str, int]:
    """How many connections each replica got."""
    return {name: int(count) for count, name in re.findall(r"(\d+) hello from (\w+)", printed)}


def lines(printed: str) -> dict[str, str]:
    """What each service wrote."""
    return dict(re.findall(r"^(\w+)-1 +\| (.*)$", printed, re.MULTILINE))


def test_every_example_has_a_page_of_ten_lines() -> None:
    directories = sorted(path for path in EXAMPLES.iterdir() if path.is_dir())
    assert [path.name for path in directories] == ["arm64", "databases", "fail-over", "sandbox", "scale-to-three", "vm-or-container"]
    for path in directories:
        page = (path / "README.md").read_text()
        assert page.startswith("# ") and (path.name == "databases" or len(page.splitlines()) <= 16), path


@needs_networks
def test_scale_to_three(net: Networked) -> None:
    printed = typed(net, "scale-to-three", PORT=str(free_ports(1)))
    assert printed.count("(healthy)") == 3
    assert len(answers(printed)) == 3 and sum(answers(printed).values()) == 30


@needs_networks
def test_fail_over(net: Networked) -> None:
    printed = typed(net, "fail-over", PORT=str(free_ports(1)))
    assert re.search(r"fail-over-web-\d", printed)
    assert sum(answers(printed).values()) == 30, "every connection was answered"


@needs_networks
def test_another_processor(net: Networked, arm64_image: Path) -> None:
    # What the page makes of Debian's packages in a minute, from the tests' cache.
    net("load", "-q", "-i", str(arm64_image))
    net("tag", "arm64", "deb:bookworm")
    try:
        assert lines(typed(net, "arm64")) == {"native": os.uname().machine, "arm": "aarch64"}
    finally:
        net("rmi", "-f", "arm64", "deb:bookworm")


def test_a_sandbox_from_python(net: Networked) -> None:
    assert typed(net, "sandbox").splitlines() == [
        "computes: 499999500000",
        "never ends: time was up",
        "takes all memory: out of memory",
        "calls home: OSError: [Errno 101] Network is unreachable",
    ]


@needs_networks
@pytest.mark.machines
@pytest.mark.programs("qemu-system-x86_64")
def test_a_machine_or_a_container(net: Networked) -> None:
    printed = lines(typed(net, "vm-or-container"))
    assert printed["container"] == os.uname().release != printed["machine"]
