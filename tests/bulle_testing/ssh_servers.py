"""A real sshd on loopback, with keys and configuration of its own, and the ssh that finds it: another machine, as far as a command can tell."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bulle_testing import places, tiers
from bulle_testing.running import wait_for

_PRIVILEGE_SEPARATION = Path("/run/sshd")  # sshd of root insists on it


@dataclass
class OtherMachine:
    """``ssh://box`` for commands whose environment is :meth:`environment`."""

    directory: Path
    port: int
    server: subprocess.Popen[bytes]

    @property
    def host(self) -> str:
        """As ``-H`` takes it; the port is in the configuration of ssh."""
        return "ssh://box"

    def environment(self, here: Path) -> dict[str, str]:
        """The environment of a command with this home, whose ssh knows the machine."""
        chosen = places.environment(here)
        return chosen | {"PATH": f"{self.directory / 'bin'}{os.pathsep}{chosen['PATH']}"}

    def sessions(self) -> list[int]:
        """The pids of what serves connections."""
        found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self.server.pid)], capture_output=True, text=True, check=False)
        return [int(pid) for pid in found.stdout.split()]


@contextmanager
def other_machine(directory: Path, home: Path, program_directory: str | None = None) -> Iterator[OtherMachine]:
    """An sshd whose commands have that home; ``program_directory`` is where they find ``bulle`` (None: where the tests do)."""
    tiers.need("sshd", "ssh", "ssh-keygen")
    directory.mkdir(mode=0o700)
    for name in ("host", "user", "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name], check=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    _write_configuration(directory, port, home, program_directory)
    made = os.geteuid() == 0 and not _PRIVILEGE_SEPARATION.exists()
    if made:
        _PRIVILEGE_SEPARATION.mkdir(mode=0o755)
    with (directory / "log").open("wb") as log:
        server = subprocess.Popen([str(tiers.program("sshd")), "-D", "-e", "-f", directory / "sshd_config"], stdout=log, stderr=log)
    machine = OtherMachine(directory, port, server)
    try:
        wait_for(lambda: b"listening" in (directory / "log").read_bytes(), "sshd listens")
        yield machine
    finally:
        for pid in (*machine.sessions(), server.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        server.wait()
        if made:
            _PRIVILEGE_SEPARATION.rmdir()


def _write_configuration(directory: Path, port: int, home: Path, program_directory: str | None) -> None:
    there = places.environment(home)
    there["PATH"] = f"{program_directory or Path(places.command_line()[0]).parent}:/usr/bin:/bin:/usr/sbin:/sbin"
    kept = {name: value for name, value in there.items() if name == "PATH" or name.startswith(("BULLE_", "LC_"))}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in kept.items()]
    (directory / "login").write_text("\n".join(["#!/bin/sh", *lines, 'exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"', ""]))
    (directory / "login").chmod(0o755)
    (directory / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {directory}/host\nAuthorizedKeysFile {directory}/user.pub\nPidFile none\nStrictModes no\n"
        f"UsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nForceCommand {directory}/login\n"
        "SetEnv SHLVL=2\n"  # bash then leaves the user's own start file alone
    )
    key = (directory / "host.pub").read_text().split()
    (directory / "known").write_text(f"box {key[0]} {key[1]}\n")
    (directory / "known-other").write_text(f"box {' '.join((directory / 'other.pub').read_text().split()[:2])}\n")
    (directory / "empty").write_text("")
    hosts = {"box": ("user", "known"), "stranger": ("user", "empty"), "changed": ("user", "known-other"), "locked": ("other", "known")}
    (directory / "ssh_config").write_text(
        "".join(
            f"Host {name}\n HostName 127.0.0.1\n Port {port}\n HostKeyAlias box\n IdentityFile {directory}/{key}\n"
            f" UserKnownHostsFile {directory}/{known}\n"
            for name, (key, known) in hosts.items()
        )
        + f"Host *\n IdentitiesOnly yes\n IdentityAgent none\n GlobalKnownHostsFile /dev/null\n UserKnownHostsFile {directory}/known\n"
    )
    (directory / "bin").mkdir()
    # ssh finds its configuration by the user database, not by HOME.
    (directory / "bin/ssh").write_text(f'#!/bin/sh\nexec {tiers.program("ssh")} -F {directory}/ssh_config "$@"\n')
    (directory / "bin/ssh").chmod(0o755)
