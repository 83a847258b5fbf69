"""Debian's kernel for virtual machines, fetched by apt and unpacked into a directory of ours; nothing is installed.

apt finds and verifies the package by Debian's signatures, in directories of its own: neither the host's lists nor its architectures change, so that
any host with apt can have the kernel of any architecture, as root or as an ordinary user. apt.conf(5), deb(5)
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from bulle.errors import BulleError, InvalidInput, StorageFull, Unavailable

DEFAULT_MIRROR = "http://deb.debian.org/debian"
DEFAULT_SUITE = "trixie"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64"}
_PACKAGES = {"x86_64": "linux-image-cloud-amd64", "aarch64": "linux-image-cloud-arm64", "riscv64": "linux-image-riscv64"}
_SUITE = re.compile(r"[a-z][a-z0-9-]{0,40}")
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_PATIENCE_S = 900
_MEND = "give a kernel of your own (a file, or a directory with its modules)"


def check_suite(suite: str) -> None:
    """Refuse what cannot be a suite's name. Raises InvalidInput."""
    if not _SUITE.fullmatch(suite):
        raise InvalidInput(f"{suite!r} is not the name of a Debian suite", "", "say for example debian:trixie or debian:bookworm-backports")


def fetch(architecture: str, suite: str, directory: Path, mirror: str = "") -> str:
    """Unpack the newest kernel of a suite into the new directory ``directory`` (host path): vmlinuz below ``boot``, modules below ``lib/modules``.

    Returns the package's name and version. Raises Unavailable, InvalidInput, StorageFull.
    """
    check_suite(suite)
    if architecture not in _PACKAGES:
        raise Unavailable(f"Debian has no kernel for {architecture}", "", _MEND)
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise Unavailable(_brief(architecture, suite), f"the program {program} is not installed", _MEND)
    directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="apt-", dir=directory.parent, ignore_cleanup_errors=True) as place:
        apt = _Apt(Path(place), architecture, suite, mirror or DEFAULT_MIRROR)
        apt.run("update", "-qq", "--error-on=any")
        package = _real_package(apt.run("show", _PACKAGES[architecture], program="apt-cache"), architecture)
        apt.run("download", "-qq", package)
        found = sorted(Path(place).glob("*.deb"))
        if len(found) != 1:
            raise Unavailable(_brief(architecture, suite), f"apt fetched no file for {package}", _MEND)
        apt.unpack(found[0], directory)
        return found[0].stem


def _brief(architecture: str, suite: str) -> str:
    return f"the kernel for {architecture} cannot be fetched from Debian {suite}"


def _real_package(shown: str, architecture: str) -> str:
    """The package that the one of a constant name depends on: that with the kernel in it."""
    for line in shown.splitlines():
        if line.startswith("Depends:"):
            for name in re.findall(r"linux-image-[0-9][A-Za-z0-9.+~-]*", line):
                return str(name)
    return _PACKAGES[architecture]


class _Apt:
    """apt for one suite and one architecture, with its state below one directory."""

    def __init__(self, place: Path, architecture: str, suite: str, mirror: str) -> None:
        self._place = place
        self._brief = _brief(architecture, suite)
        for name in ("state/lists/partial", "cache/archives/partial"):
            (place / name).mkdir(parents=True)
        (place / "status").touch()
        signed = f" [signed-by={_KEYRING}]" if os.path.exists(_KEYRING) else ""
        (place / "sources.list").write_text(f"deb{signed} {mirror} {suite} main\n")
        debian = _ARCHITECTURES[architecture]
        (place / "apt.conf").write_text(
            # The host's own settings are left out, hooks above all, but for those of its way to the network.
            f'Dir::Etc::main "/dev/null"; Dir::Etc::parts "/dev/null";\n{self._network_settings()}'
            f'Dir::State "{place}/state"; Dir::State::status "{place}/status"; Dir::Cache "{place}/cache";\n'
            f'Dir::Etc::sourcelist "{place}/sources.list"; Dir::Etc::sourceparts "/dev/null"; Dir::Etc::preferencesparts "/dev/null";\n'
            f'APT::Architecture "{debian}"; APT::Architectures "{debian}"; APT::Sandbox::User ""; Acquire::Languages "none"; Acquire::Retries "2";\n'
            'Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";\n'
        )

    @staticmethod
    def _network_settings() -> str:
        """The host's proxies and the like, which apt prints in the form that it reads."""
        done = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, check=False)
        lines = (line for line in done.stdout.splitlines() if re.match(r'Acquire::(https?|tor|socks)::[^"]* "[^"]', line))
        return "".join(f"{line}\n" for line in lines)

    def run(self, verb: str, *arguments: str, program: str = "apt-get") -> str:
        """Run apt to its end; returns what it printed. Raises Unavailable with its words."""
        return self._run([program, verb, *arguments])

    def unpack(self, package: Path, directory: Path) -> None:
        """Unpack a package into a directory, which gets its name when it is complete."""
        unpacked = self._place / "unpacked"
        self._run(["dpkg-deb", "--extract", str(package), str(unpacked)])
        (unpacked / "package").write_text(package.stem)
        unpacked.chmod(0o755)
        unpacked.rename(directory)

    def _run(self, line: list[str]) -> str:
        environment = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME") or name.lower().endswith("_proxy")}
        environment |= {"APT_CONFIG": str(self._place / "apt.conf"), "LC_ALL": "C.UTF-8", "TMPDIR": str(self._place)}
        try:
            done = subprocess.run(
                line, env=environment, cwd=self._place, stdin=subprocess.DEVNULL, capture_output=True,
                text=True, errors="replace", timeout=_PATIENCE_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise Unavailable(self._brief, f"{line[0]} was not done after {_PATIENCE_S} s", _MEND) from error
        if done.returncode:
            raise self._failure(done.stderr, line[0])
        return done.stdout

    def _failure(self, complaint: str, program: str) -> BulleError:
        lines = [re.sub(r"^[EW]: |^dpkg-deb: error: ", "", text) for text in complaint.splitlines() if text.strip()]
        reason = f"{program}: {lines[0].strip() if lines else 'it failed without a word'}"[:300]
        if "No space left" in complaint:
            return StorageFull(self._brief, reason, "free some space")
        if "NO_PUBKEY" in complaint or "not signed" in complaint:
            return Unavailable(self._brief, reason, "install Debian's keys (debian-archive-keyring), or " + _MEND)
        return Unavailable(self._brief, reason, _MEND)
