"""The host's resolv.conf, and the container's. resolv.conf(5)"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

HOST_FILE = Path("/etc/resolv.conf")


def _lines(path: Path) -> list[list[str]]:
    try:
        return [words for line in path.read_text(errors="replace").splitlines() if (words := line.split()) and words[0][0] not in "#;"]
    except OSError:
        return []


def host_search(path: Path = HOST_FILE) -> tuple[str, ...]:
    """The domains that the host searches."""
    found: tuple[str, ...] = ()
    for words in _lines(path):
        if words[0] in ("search", "domain"):
            found = tuple(words[1:])
    return found


def reachable_servers(path: Path = HOST_FILE) -> list[str]:
    """The host's name servers that others reach too: those on its loopback are its own."""
    addresses = [words[1] for words in _lines(path) if words[0] == "nameserver" and len(words) > 1]
    return [address for address in addresses if not address.startswith("127.") and address != "::1"]


def resolver_text(servers: Sequence[str], search: Sequence[str], options: Sequence[str]) -> str:
    """A container's resolv.conf."""
    chosen = [f"nameserver {server}" for server in servers]
    if search:
        chosen.append(f"search {' '.join(search)}")
    chosen.append(f"options {' '.join([*options, *([] if any(one.startswith('ndots:') for one in options) else ['ndots:0'])])}")
    return "\n".join(chosen) + "\n"
