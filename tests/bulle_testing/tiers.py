"""Tiers: what a test needs of the machine, found out by trying and never by a user id or a version number.

A test names its tiers with marks (``root``, ``user_namespaces``, ``debian_mirror``, ``package_index``, ``programs("umoci", ...)``). Where a tier
cannot run, its tests are counted and the cause is printed at the end of the run, never silently; where the tier was asked for
(``BULLE_REQUIRE_TIERS=root,programs`` or ``all``; ``CI=true`` asks for all), such a test fails instead. conftest.py calls this; fixtures that need
a program call :func:`need`.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from typing import NoReturn

import pytest

# How the reason of a skipped test begins when a tier could not run; conftest.py counts these at the end.
SKIPPED = "Skipped: tier "

# When no further test begins, in seconds since the epoch; 0 for never. What is left out then is counted by module at the end.
UNTIL_S = float(os.environ.get("BULLE_TESTS_UNTIL") or 0)
TOO_LATE = "the time was over"

# Debian keeps many of these where an ordinary user's PATH does not look.
SEARCH_PATH = os.pathsep.join(["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin", os.environ.get("PATH", "")])


def program(name: str) -> str | None:
    """The path of an installed program, also where only root's PATH would find it."""
    return shutil.which(name, path=SEARCH_PATH)


def required(tier: str) -> bool:
    """Whether this run was asked not to skip the tier."""
    asked = os.environ.get("BULLE_REQUIRE_TIERS")
    if asked is None:
        asked = "all" if os.environ.get("CI", "").lower() in ("1", "true", "yes") else ""
    names = {word.strip() for word in asked.replace(",", " ").split()}
    return tier in names or "all" in names


def give_up(tier: str, cause: str) -> NoReturn:
    """Count the test as one that its tier could not run, or fail it where the tier was asked for."""
    if required(tier):
        pytest.fail(f"the tier {tier!r} was asked for and cannot run: {cause}", pytrace=False)
    pytest.skip(f"tier {tier}: {cause}")


def need(*names: str) -> None:
    """Go on only where all these programs are installed."""
    absent = [name for name in names if program(name) is None]
    if absent:
        give_up("programs", f"not installed: {', '.join(absent)} (`make packages` as root installs them)")


def check(item: pytest.Item) -> None:
    """Look at the marks of a test before its fixtures are made."""
    for tier, probe in PROBES.items():
        if item.get_closest_marker(tier):
            cause = probe()
            if cause:
                give_up(tier, cause)
    for mark in item.iter_markers("programs"):
        need(*mark.args)


def _refusal(command: list[str], timeout_s: float = 20) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


@functools.cache
def root_missing() -> str:
    """Why this process is not the machine's real root; empty when it is."""
    if os.geteuid() != 0:
        return "not run as root"
    with open("/proc/self/uid_map") as uid_map:
        if uid_map.read().split() != ["0", "0", "4294967295"]:
            return "root of a user namespace only, not of the machine"
    refusal = _refusal(["unshare", "--mount", "--pid", "--fork", "mount", "-t", "tmpfs", "none", "/mnt"])
    return f"this root may not mount: {refusal}" if refusal else ""


@functools.cache
def user_namespaces_missing() -> str:
    """Why this user cannot make a user namespace; empty when she can."""
    refusal = _refusal(["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "true"])
    return f"no user namespaces here: {refusal}" if refusal else ""


@functools.cache
def id_range_missing() -> str:
    """Why this user cannot have a range of ids for the users of a root; empty when she can."""
    if os.geteuid() == 0:
        return ""
    refusal = _refusal(["unshare", "--user", "--map-root-user", "--map-auto", "true"])
    return f"no range of ids for this user: {refusal}" if refusal else ""


@functools.cache
def debian_mirror_missing() -> str:
    """Why no package of Debian can be fetched; empty when it can."""
    if program("apt-get") is None:
        return "no apt-get"
    # Asks the mirror that apt is set up for one small index, without touching apt's own state.
    script = 'd=$(mktemp -d) && trap "rm -rf $d" EXIT && cd "$d" && apt-get -o Debug::NoLocking=1 download hostname'
    refusal = _refusal(["sh", "-c", script], timeout_s=240)
    return f"Debian's mirror does not answer: {refusal}" if refusal else ""


@functools.cache
def package_index_missing() -> str:
    """Why no Python package can be fetched; empty when one can."""
    script = 'd=$(mktemp -d) && trap "rm -rf $d" EXIT && "$1" -m pip --quiet download --no-deps --dest "$d" hatchling'
    refusal = _refusal(["sh", "-c", script, "sh", sys.executable], timeout_s=120)
    return f"the Python package index does not answer: {refusal}" if refusal else ""


PROBES = {
    "root": root_missing,
    "user_namespaces": user_namespaces_missing,
    "debian_mirror": debian_mirror_missing,
    "package_index": package_index_missing,
}
