"""Docker's Compose to compare with: Debian's package, fetched through apt into the tests' cache and unpacked there, never installed.

Its ``config`` needs no dockerd. Only the answer and the verdict are compared, never the words of an error.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from bulle_testing import places, tiers

_SUITE = "trixie"
_HERE = "/@here@"


@dataclass(frozen=True)
class DockerCompose:
    """The peer's program."""

    program: Path

    def config(self, arguments: Sequence[str], files: Mapping[str, str], *, cwd: Path, environment: Mapping[str, str]) -> tuple[int, str]:
        """The exit code and output of a verb that looks at nothing but these files, which are in the directory: from the tests' cache where it was
        asked before, as it is the same always.
        """
        question = json.dumps([self.program.stat().st_size, list(arguments), sorted(files.items()), sorted(environment.items())])
        kept = places.cache_directory() / "compose-answers" / hashlib.sha256(question.encode()).hexdigest()[:32]
        try:
            code, text = json.loads(kept.read_text())
        except (FileNotFoundError, ValueError):
            done = self.run(*arguments, cwd=cwd, environment=environment)
            code, text = done.returncode, done.stdout.replace(str(cwd), _HERE)
            kept.parent.mkdir(exist_ok=True)
            aside = kept.with_name(f"{kept.name}.{os.getpid()}")
            aside.write_text(json.dumps([code, text]))
            aside.rename(kept)
        return code, text.replace(_HERE, str(cwd))

    def run(self, *arguments: str, cwd: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """Run it in a directory; it sees nothing but this environment."""
        line = [str(self.program), *arguments]
        return subprocess.run(line, cwd=cwd, env=dict(environment), capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=240)


def unpack_packages(packages: Sequence[str], target: Path) -> None:
    """Unpack packages of Debian's suite, and none that they depend on, in a new directory. Locked by the caller; the tests' cache has the rest."""
    from bulle.isolation.microvm.debian_kernel import DEFAULT_MIRROR

    place = target.with_name(f"{target.name}-apt")
    for name in ("state/lists/partial", "cache/archives/partial"):
        (place / name).mkdir(parents=True, exist_ok=True)
    (place / "status").touch()
    (place / "sources.list").write_text(f"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {DEFAULT_MIRROR} {_SUITE} main\n")
    dumped = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    network = "".join(f"{line}\n" for line in dumped.splitlines() if line.startswith(("Acquire::http", "Acquire::https")))
    (place / "apt.conf").write_text(
        f'Dir::Etc::main "/dev/null"; Dir::Etc::parts "/dev/null";\n{network}'
        f'Dir::State "{place}/state"; Dir::State::status "{place}/status"; Dir::Cache "{place}/cache";\n'
        f'Dir::Etc::sourcelist "{place}/sources.list"; Dir::Etc::sourceparts "/dev/null"; APT::Sandbox::User ""; Acquire::Languages "none";\n'
    )
    environment = {"APT_CONFIG": str(place / "apt.conf"), "LC_ALL": "C.UTF-8", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    for line in (["apt-get", "update", "-qq"], ["apt-get", "download", "-qq", *packages]):
        subprocess.run(line, env=environment, cwd=place, check=True, capture_output=True, timeout=300)
    for package in place.glob("*.deb"):
        subprocess.run(["dpkg-deb", "--extract", str(package), str(target)], check=True, timeout=240)
    places.remove_tree(place)


def _fetch(target: Path) -> None:
    unpacked = target.with_name("compose-unpacked")
    unpack_packages(["docker-compose"], unpacked)
    (unpacked / "usr/libexec/docker/cli-plugins/docker-compose").rename(target)
    places.remove_tree(unpacked)


def fetched() -> Path:
    """Debian's docker-compose in the tests' cache, fetched the first time."""
    target = places.cache_directory() / f"docker-compose-{_SUITE}"
    with open(places.cache_directory() / "docker-compose.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            if cause := tiers.PROBES["debian_mirror"]():
                tiers.give_up("debian_mirror", cause)
            _fetch(target)
    return target


@pytest.fixture(scope="session")
def docker_compose() -> DockerCompose:
    """Debian's docker-compose, fetched once."""
    return DockerCompose(fetched())
