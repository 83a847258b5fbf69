"""Roots of other processors: real programs from Debian's packages, unpacked without running any of them.

Packages are kept in the cache, checked against the digests in the mirror's index.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import subprocess
import urllib.request
from pathlib import Path

import pytest

from bulle_testing import peers, places, tiers

MIRROR = "http://deb.debian.org/debian"
# Debian's word for a processor: the platform, what uname says there, the suite that has it, and its emulator.
PLATFORMS = {
    "arm64": ("linux/arm64", "aarch64", "bookworm", "qemu-aarch64-static"),
    "armhf": ("linux/arm/v7", "armv7l", "bookworm", "qemu-arm-static"),
    "riscv64": ("linux/riscv64", "riscv64", "trixie", "qemu-riscv64-static"),
}
APPLETS = (
    "sh", "ls", "uname", "cat", "sleep", "echo", "kill", "true", "false", "id", "ps", "mount", "umount", "touch", "env", "head", "gunzip", "cmp",
    "wc", "mkdir", "rm", "su", "date", "grep", "dd", "chmod",
)  # fmt: skip


def need_emulator(architecture: str) -> None:
    """Go on only where its programs can be run and fetched."""
    if os.uname().machine != "x86_64":
        tiers.give_up("programs", "the tests of emulation are written for an x86_64 machine")
    tiers.need(PLATFORMS[architecture][3])
    if cause := tiers.debian_mirror_missing():
        tiers.give_up("debian_mirror", cause)


def busybox_root(directory: Path, architecture: str, packages: tuple[str, ...] = ()) -> Path:
    """A root with busybox of another processor, and what the packages hold."""
    target = directory / f"root-{architecture}"
    for name in peers.DIRECTORIES:
        (target / name).mkdir(parents=True, exist_ok=True)
    for package in ("busybox-static", *packages):
        subprocess.run(["dpkg-deb", "--extract", str(debian_package(architecture, package)), str(target)], check=True)
    if not (target / "bin/busybox").exists():
        shutil.copy(target / "usr/bin/busybox", target / "bin/busybox")
    for applet in APPLETS:
        (target / "bin" / applet).symlink_to("busybox")
    (target / "tmp").chmod(0o1777)
    (target / "etc/passwd").write_text(peers.PASSWD)
    (target / "etc/group").write_text(peers.GROUP)
    return target


def archive(directory: Path, architecture: str, tag: str, packages: tuple[str, ...] = ()) -> Path:
    """A docker-archive of such a root."""
    platform = dict(zip(("os", "architecture", "variant"), PLATFORMS[architecture][0].split("/"), strict=False))
    target = directory / f"{architecture}.tar"
    peers.docker_archive(target, [peers.pack(busybox_root(directory, architecture, packages))], tags=[tag], platform=platform)
    return target


def debian_package(architecture: str, name: str) -> Path:
    """One package, fetched once."""
    target = places.cache_directory() / f"{name}-{PLATFORMS[architecture][2]}-{architecture}.deb"
    with peers.one_at_a_time():
        if not target.exists():
            _fetch(target, architecture, name)
    return target


def _fetch(target: Path, architecture: str, name: str) -> None:
    suite = PLATFORMS[architecture][2]
    index = lzma.decompress(_get(f"{MIRROR}/dists/{suite}/main/binary-{architecture}/Packages.xz")).decode()
    fields = next(
        dict(line.split(": ", 1) for line in text.splitlines() if ": " in line and not line.startswith(" "))
        for text in index.split("\n\n")
        if text.startswith(f"Package: {name}\n")
    )
    content = _get(f"{MIRROR}/{fields['Filename']}")
    assert hashlib.sha256(content).hexdigest() == fields["SHA256"]
    part = target.with_suffix(f".{os.getpid()}")
    part.write_bytes(content)
    part.rename(target)


def _get(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=240) as answer:
        content: bytes = answer.read()
        return content


@pytest.fixture(scope="session")
def arm64_image(run_directory: Path) -> Path:
    """A docker-archive ``arm64:latest`` with busybox and pigz, a dynamic program with threads."""
    need_emulator("arm64")
    return archive(run_directory, "arm64", "arm64:latest", ("libc6", "zlib1g", "pigz"))


@pytest.fixture(scope="session")
def armhf_image(run_directory: Path) -> Path:
    """A docker-archive ``armhf:latest`` with busybox."""
    need_emulator("armhf")
    return archive(run_directory, "armhf", "armhf:latest")


@pytest.fixture(scope="session")
def riscv64_image(run_directory: Path) -> Path:
    """A docker-archive ``riscv64:latest`` with busybox."""
    need_emulator("riscv64")
    return archive(run_directory, "riscv64", "riscv64:latest")
