"""A CRIU that knows today's kernels: Debian 13's package and its libraries, fetched through apt into the tests' cache and unpacked there."""

from __future__ import annotations

import fcntl
import platform
import shlex
import subprocess
from pathlib import Path

import pytest

from bulle_testing import compose_peer, places, tiers

PACKAGES = (
    "criu", "libc6", "libprotobuf-c1", "libnl-3-200", "libnet1", "libnftables1", "libnftnl11", "libmnl0", "libgnutls30t64", "libgmp10",
    "libhogweed6t64", "libnettle8t64", "libidn2-0", "libunistring5", "libp11-kit0", "libtasn1-6", "libffi8", "libxtables12", "libjansson4",
    "libedit2", "libbsd0", "libmd0", "libtinfo6", "libuuid1", "libzstd1", "libbrotli1",
)  # fmt: skip


def _unpack(target: Path) -> None:
    part = target.with_suffix(".part")
    places.remove_tree(part)
    compose_peer.unpack_packages(PACKAGES, part)
    (library,) = part.glob("usr/lib/*-linux-gnu")
    loader = next(library.glob("ld-linux*.so.*"))
    here = shlex.quote(str(target / library.relative_to(part)))
    text = f'#!/bin/sh\nexec {here}/{loader.name} --library-path {here} {shlex.quote(str(target))}/usr/sbin/criu "$@"\n'
    (part / "program").mkdir()
    (part / "program/criu").write_text(text)
    (part / "program/criu").chmod(0o755)
    part.rename(target)


@pytest.fixture(scope="session")
def criu() -> Path:
    """The directory of a ``criu`` that works on this machine, for PATH; where none does its tests are counted as not run, with what it says."""
    target = places.cache_directory() / f"criu-trixie-{platform.machine()}"
    with open(places.cache_directory() / "criu.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            if cause := tiers.PROBES["debian_mirror"]():
                tiers.give_up("debian_mirror", cause)
            _unpack(target)
    checked = subprocess.run([str(target / "program/criu"), "check"], capture_output=True, text=True, timeout=240)
    if checked.returncode:
        tiers.give_up("programs", f"CRIU does not work with this kernel: {checked.stderr.strip()[-300:]}")
    return target / "program"
