"""Ports of the host that are kept for containers: sockets bound to them, so that nobody else can have them and the kernel says who does.

Nothing is read from these sockets but on IPv6, where they listen for a relay: what comes to a published IPv4 address is led elsewhere before it gets
here. ip(7), ipv6(7)
"""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from pathlib import Path

from bulle.errors import BulleError, Conflict, InvalidInput
from bulle.model.network import PortMapping, PublishedPort

_KINDS = {"tcp": (socket.SOCK_STREAM, 0), "udp": (socket.SOCK_DGRAM, 0), "sctp": (socket.SOCK_STREAM, socket.IPPROTO_SCTP)}
_TRIES = 32
_MOST_WAITING = 1024
_UNSEEN = "what has it does not listen, so that it cannot be named: perhaps the containers of another BULLE_HOME"
_TABLES = {"tcp": ("tcp", "tcp6"), "udp": ("udp", "udp6"), "sctp": ()}


def reserve(mapping: PortMapping, *, beside: bool = False) -> list[tuple[PublishedPort, socket.socket | None]]:
    """Take the same port of every address of a mapping; the sockets are the caller's (None where the kernel has no such protocol).

    An IPv6 address that cannot be had is left out where there is another, also one that the caller has (``beside``).

    Raises Conflict that names who holds the port.
    """
    if mapping.host_port and mapping.last_host_port > mapping.host_port:
        for port in range(mapping.host_port, mapping.last_host_port + 1):
            with suppress(Conflict):
                return _take(mapping, port)
        ports = f"{mapping.host_port}-{mapping.last_host_port}"
        raise Conflict(f"no port of {ports} is free for the container's port {mapping.container_port}", "all are taken", "give other ones")
    if mapping.host_port:
        return _take(mapping, mapping.host_port, beside)
    for _ in range(_TRIES):
        with suppress(Conflict):
            return _take(mapping, 0)
    raise BulleError(f"no free port was found for the container's port {mapping.container_port}", "", "give one, such as -p 8080:80")


def _take(mapping: PortMapping, port: int, beside: bool = False) -> list[tuple[PublishedPort, socket.socket | None]]:
    taken: list[tuple[PublishedPort, socket.socket | None]] = []
    try:
        for address in mapping.host_addresses:
            try:
                bound = _bind(mapping.protocol, address, port)
            except OSError as error:
                if error.errno in (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT) and port:
                    bound = None  # no SCTP in this kernel's sockets; packets are led on all the same
                elif (beside or len(mapping.host_addresses) > 1) and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL) and ":" in address:
                    continue  # a machine without IPv6
                else:
                    raise _explained(error, mapping.protocol, address, port) from error
            if bound is not None:
                port = bound.getsockname()[1]
            taken.append((PublishedPort(address, port, mapping.container_port, mapping.protocol), bound))
        return taken
    except BaseException:
        for _published, held in taken:
            if held is not None:
                held.close()
        raise


def _bind(protocol: str, address: str, port: int) -> socket.socket:
    kind, number = _KINDS[protocol]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    bound = socket.socket(family, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, number)
    try:
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if family == socket.AF_INET6 and protocol == "tcp":
            # A relay had connections here, which the kernel remembers for a while; who listens shares with nobody all the same.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((address, port))
            bound.listen(_MOST_WAITING)
        else:
            bound.bind((address, port))
    except BaseException:
        bound.close()
        raise
    return bound


def _explained(error: OSError, protocol: str, address: str, port: int) -> BulleError:
    where = f"{f'[{address}]' if ':' in address else address}:{port}"
    if error.errno == errno.EADDRINUSE:
        holder = holder_of(protocol, port)
        return Conflict(f"port {where}/{protocol} is already taken", f"{holder} has it" if holder else _UNSEEN, "publish another, or end that")
    if error.errno == errno.EADDRNOTAVAIL:
        return InvalidInput(f"nothing can be published on {address}", "it is no address of this machine", "see `ip address`")
    return BulleError(f"port {where}/{protocol} could not be taken", error.strerror or str(error), "choose another")


def holder_of(protocol: str, port: int) -> str:
    """The process of this machine that has bound a port, as ``NAME (pid N)``; empty where nobody can be found."""
    inodes = set()
    for table in _TABLES[protocol]:
        with suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                # The state says whether it listens; a bound socket that does not (one of ours) is not in the table.
                if int(fields[1].rpartition(":")[2], 16) == port and (protocol != "tcp" or fields[3] == "0A"):
                    inodes.add(f"socket:[{fields[9]}]")
    for pid in (name for name in os.listdir("/proc") if name.isdigit()) if inodes else ():
        with suppress(OSError):
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    if os.readlink(f"/proc/{pid}/fd/{descriptor}") in inodes:
                        return f"{Path(f'/proc/{pid}/comm').read_text().strip()} (pid {pid})"
    return ""
