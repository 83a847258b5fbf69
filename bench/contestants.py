"""The programs that Bulle is measured against, made ready: bundles for the OCI runtimes, a private dockerd, podman in directories of its own."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from measuring import Timer, program

from bulle_testing import peers, places


@dataclass
class Bulle:
    """Bulle in a home of its own."""

    home: Path

    @property
    def environment(self) -> dict[str, str]:
        """Only what the command needs."""
        return {"BULLE_HOME": str(self.home)}

    def command(self, *arguments: str) -> list[str]:
        """A whole command."""
        return [*places.command_line(), *arguments]

    def __call__(self, *arguments: str, timeout_s: float = 600) -> str:
        """Run it, unmeasured; returns what it printed."""
        done = subprocess.run(self.command(*arguments), env=places.environment(self.home), capture_output=True, text=True, timeout=timeout_s)
        if done.returncode != 0:
            raise RuntimeError(f"bulle {' '.join(arguments)} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def monitors(self) -> list[int]:
        """The pids of the monitors of all running containers."""
        states = [json.loads(path.read_text()) for path in (self.home / "containers").glob("*/state.json")]
        return [state["monitor_pid"] for state in states if state.get("status") == "running"]


@dataclass
class Podman:
    """podman with storage of its own; runc below it, since crun 1.8 refuses hybrid control groups."""

    directory: Path

    def __post_init__(self) -> None:
        self.directory.mkdir()
        (self.directory / "containers.conf").write_text("[containers]\ndefault_ulimits = []\n")

    @property
    def environment(self) -> dict[str, str]:
        """Its settings, and nothing of the machine's."""
        return {"CONTAINERS_CONF": str(self.directory / "containers.conf")}

    def command(self, *arguments: str) -> list[str]:
        """A whole command."""
        own = ["--root", f"{self.directory}/root", "--runroot", f"{self.directory}/run", "--tmpdir", f"{self.directory}/tmp"]
        own += ["--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--events-backend", "none", "--runtime", "runc"]
        return [str(program("podman")), *own, *arguments]

    def __call__(self, *arguments: str) -> str:
        """Run it, unmeasured."""
        done = subprocess.run(self.command(*arguments), env={**os.environ, **self.environment}, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"podman {' '.join(arguments)} ended with {done.returncode}: {done.stderr}")
        return done.stdout


@dataclass
class Buildah:
    """buildah with storage of its own, and runc below it."""

    directory: Path

    def __post_init__(self) -> None:
        self.directory.mkdir()
        (self.directory / "containers.conf").write_text("[containers]\ndefault_ulimits = []\n")

    @property
    def environment(self) -> dict[str, str]:
        """Its settings, and nothing of the machine's."""
        return {"CONTAINERS_CONF": str(self.directory / "containers.conf"), "BUILDAH_RUNTIME": "runc"}

    def command(self, *arguments: str) -> list[str]:
        """A whole command."""
        own = ["--root", f"{self.directory}/root", "--runroot", f"{self.directory}/run", "--storage-driver", "overlay"]
        return [str(program("buildah")), *own, *arguments]

    def __call__(self, *arguments: str) -> str:
        """Run it, unmeasured."""
        done = subprocess.run(self.command(*arguments), env={**os.environ, **self.environment}, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"buildah {' '.join(arguments)} ended with {done.returncode}: {done.stderr}")
        return done.stdout


def docker_command(docker: peers.Docker, *arguments: str) -> list[str]:
    """A whole command of the docker client."""
    return [str(program("docker")), "--host", f"unix://{docker.socket_path}", *arguments]


def bundle(directory: Path, rootfs: Path) -> Path:
    """An OCI bundle that runs ``true`` with the runtime's own example settings, without a terminal."""
    directory.mkdir()
    subprocess.run([str(program("runc") or program("crun")), "spec", "--bundle", str(directory)], check=True, cwd=directory)
    settings = json.loads((directory / "config.json").read_text())
    settings["process"] |= {"terminal": False, "args": ["true"]}
    settings["process"].pop("rlimits", None)
    settings["root"] = {"path": str(rootfs), "readonly": True}
    (directory / "config.json").write_text(json.dumps(settings))
    return directory


def timer_for_crun() -> Timer:
    """crun 1.8 refuses a machine whose control groups are hybrid: its timer stands in a mount namespace that does not show the second hierarchy."""
    if not Path("/sys/fs/cgroup/unified").is_dir() or not Path("/sys/fs/cgroup/memory").is_dir():
        return Timer()
    return Timer(["unshare", "--mount", "--propagation", "private", "sh", "-c", 'umount /sys/fs/cgroup/unified; exec "$@"', "sh"])
