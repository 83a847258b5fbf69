"""The host's name servers: what resolv.conf says, read anew when it changes. resolv.conf(5)

Given to :class:`bulle.network.dns.NameServer`, which asks them from the host's network namespace; so a server on loopback (systemd-resolved's stub)
is as good as any.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Sequence
from pathlib import Path

Server = tuple[str, int]
PORT = 53
_LOOK_AGAIN_S = 1.0


class HostResolvers:
    """A function without arguments that gives the host's name servers."""

    def __init__(self, path: Path = Path("/etc/resolv.conf"), clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._looked = float("-inf")
        self._version: tuple[int, int, int] | None = None
        self._servers: tuple[Server, ...] = ()

    def __call__(self) -> Sequence[Server]:
        """The servers in the file's order; none if there is no file."""
        now = self._clock()
        if now - self._looked >= _LOOK_AGAIN_S:
            self._looked = now
            try:
                status = self._path.stat()  # of what a link leads to: resolvconf and systemd replace that
                version = (status.st_mtime_ns, status.st_ino, status.st_size)
                if version != self._version:
                    self._servers = servers(self._path.read_text(errors="replace"))
                    self._version = version
            except OSError:
                self._version, self._servers = None, ()
        return self._servers


def servers(text: str) -> tuple[Server, ...]:
    """The servers that a resolv.conf names."""
    words = (line.split() for line in text.splitlines())
    return tuple((line[1], PORT) for line in words if len(line) > 1 and line[0] == "nameserver" and is_address(line[1]))


def is_address(text: str) -> bool:
    """Whether it is an address (an IPv6 one with its interface, perhaps) and no name, for which somebody would have to be asked."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
