"""What the host's kernel must be told so that bridges of ours reach the world and are reached: sysctls, as few as do it. ip-sysctl.rst

Forwarding is the machine's own setting and stays as it is when we go: others may have come to need it. What belongs to a bridge goes with it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from bulle.errors import Unavailable
from bulle.linux import bridge

_SYSCTLS = Path("/proc/sys/net")


def has_ipv6() -> bool:
    """Whether this machine's kernel has IPv6 at all."""
    return (_SYSCTLS / "ipv6").exists()


def prepare_host(*, ipv6: bool = False) -> list[str]:
    """Let this host forward packets, those of IPv6 only if asked. Returns the settings that were changed. Errors: Unavailable."""
    changed = []
    if _set("ipv4/ip_forward", "1"):
        changed.append("net/ipv4/ip_forward")
    if ipv6 and has_ipv6() and _read("ipv6/conf/all/forwarding") != "1":
        # A router takes no word from routers: an uplink that has its addresses and its way out from one must say that it goes on listening.
        for name in sorted(os.listdir(_SYSCTLS / "ipv6/conf")):
            if name not in ("all", "lo") and _read(f"ipv6/conf/{name}/accept_ra") == "1" and _set(f"ipv6/conf/{name}/accept_ra", "2"):
                changed.append(f"net/ipv6/conf/{name}/accept_ra")
        if _set("ipv6/conf/all/forwarding", "1"):
            changed.append("net/ipv6/conf/all/forwarding")
    return changed


def open_bridge(device: str, *, ipv6: bool = False) -> None:
    """Tell one of our bridges, once it is made, that it routes; also 127.0.0.0/8, so that localhost reaches published ports. Errors: Unavailable."""
    with suppress(OSError):  # a kernel before 5.0, on which no container of ours runs
        bridge.learn_nothing_from_link_local(device)
    _set(f"ipv4/conf/{device}/forwarding", "1")
    _set(f"ipv4/conf/{device}/route_localnet", "1")
    _set(f"ipv4/conf/{device}/accept_source_route", "0")  # a packet goes where its rules were asked about, and not elsewhere afterwards
    if not has_ipv6():
        return
    _set(f"ipv6/conf/{device}/accept_ra", "0")  # no container is this host's router
    # Nobody on it may have this host's address. Without an address of its link in use, it can ask for no neighbour, in the first seconds.
    _set(f"ipv6/conf/{device}/accept_dad", "0")
    _set(f"ipv6/conf/{device}/disable_ipv6", "0" if ipv6 else "1")
    if ipv6:
        _set(f"ipv6/conf/{device}/forwarding", "1")


def open_port(veth: str) -> None:
    """Tell a port of our bridge, once it is one, that a container may reach its own published ports. Errors: OSError."""
    bridge.send_back(veth)


def _read(name: str) -> str:
    with suppress(OSError):
        return (_SYSCTLS / name).read_text().strip()
    return ""


def _set(name: str, value: str) -> bool:
    """Whether it had to be changed."""
    if _read(name) == value:
        return False
    try:
        (_SYSCTLS / name).write_text(value)
    except OSError as error:
        setting = f"net.{name.replace('/', '.')}"
        raise Unavailable(
            f"the kernel setting {setting} cannot be made {value}", str(error.strerror), f"networks need it: sysctl -w {setting}={value}"
        ) from error
    return True
