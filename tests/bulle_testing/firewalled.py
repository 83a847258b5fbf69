"""ufw and firewalld in namespaces of a test: their settings and sockets are copies that no other process of the machine sees. Needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from bulle.linux import mount, namespaces
from bulle.linux.libc import check, libc
from bulle.network.firewalls import Firewalls
from bulle_testing import tiers
from bulle_testing.network_lab import run

BUS = """<busconfig>
  <type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
  <policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/><allow user="root"/></policy>
</busconfig>"""
"""A bus for root, that starts no services."""


class FirewalledMachine(Firewalls):
    """:class:`Firewalls` in a mount namespace of its own, where other firewalls can be started; for :meth:`Lab.serve`."""

    def __init__(self, table: str, directory: Path) -> None:
        super().__init__(table)
        check(libc.unshare(namespaces.CLONE_NEWNS), "unshare")
        mount.mount(None, "/", flags=mount.MS_REC | mount.MS_PRIVATE)
        mount.mount("tmpfs", "/run", "tmpfs")
        for settings in ("/etc/ufw", "/etc/firewalld"):
            if os.path.isdir(settings):
                copy = directory / Path(settings).name
                shutil.copytree(settings, copy)
                mount.mount(copy, settings, flags=mount.MS_BIND)
        self._log = directory / "log"

    def run(self, command: str, check: bool = True) -> str:
        """A command of a shell on this machine."""
        return run(command, check=check)

    def start_ufw(self) -> None:
        """Have it as Debian's package has it, once enabled."""
        run("ufw --force enable")

    def start_firewalld(self) -> None:
        """firewalld with a message bus of its own."""
        os.makedirs("/run/dbus")
        Path("/run/bus.conf").write_text(BUS)
        self._start("dbus-daemon", "--config-file=/run/bus.conf", "--nofork", "--nopidfile")
        self._start("firewalld", "--nofork", "--nopid")
        deadline = time.monotonic() + 30
        while run("firewall-cmd --state", check=False).strip() != "running":
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.1)

    def _start(self, *command: str) -> None:
        program = str(tiers.program(command[0]))
        with self._log.open("ab") as log:
            # It ends with this process, however that ends.
            setpriv = [str(tiers.program("setpriv")), "--pdeathsig", "KILL", "--"]
            subprocess.Popen([*setpriv, program, *command[1:]], stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def forget(self) -> None:
        """Know no more of what was told than a new keeper."""
        super().__init__(self.table)

    def devices_in_zone(self) -> Sequence[str]:
        """The interfaces of firewalld's zone ``trusted``."""
        return run("firewall-cmd --zone=trusted --list-interfaces").split()
