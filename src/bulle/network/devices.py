"""Interfaces: the bridge of a network, and what a container has in its own network namespace. veth(4), network_namespaces(7)

The keeper enters a container's namespace only to open sockets there: a socket belongs to the namespace in which it was opened.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from ipaddress import ip_interface, ip_network

from bulle.errors import BulleError, Conflict, Unavailable
from bulle.linux import namespaces
from bulle.linux.netlink import RouteSocket, random_mac
from bulle.model.network import Attachment
from bulle.network import host_settings

NAME_SERVER = "127.0.0.11"
_IP_FREEBIND = 15  # ip(7)
_HOST_END = "bullev"
_LONGEST_ALIAS = 255


@contextmanager
def inside(namespace_fd: int) -> Iterator[None]:
    """Stand in a network namespace for a moment."""
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        namespaces.setns(namespace_fd, namespaces.CLONE_NEWNET)
        try:
            yield
        finally:
            namespaces.setns(here, namespaces.CLONE_NEWNET)
    finally:
        os.close(here)


def exists(device: str) -> bool:
    """Whether this network namespace has a device of that name; a /sys may be another's."""
    try:
        return socket.if_nametoindex(device) > 0
    except OSError:
        return False


def check_free(network: str, subnets: Sequence[str]) -> None:
    """Raise Conflict where a route of this machine leads into a network's subnets already: its containers would be mixed up with what is there."""
    with RouteSocket() as route:
        routes = [ip_network(text) for text in route.destinations()]
    for text in subnets:
        subnet = ip_network(text)
        for other in routes:
            if other.version == subnet.version and other[0] in subnet and other[-1] in subnet:
                mend = f"end what has it (`ip route show {other}`), or make the network anew with another --subnet"
                raise Conflict(f"network {network} cannot stand", f"something else on this machine has {other} of its subnet {subnet}", mend)


def make_bridge(device: str, mtu: int, alias: str) -> bool:
    """Have the bridge of a network stand; False where it did. ``alias`` is what `ip link` says beside its name."""
    with RouteSocket() as route:
        try:
            route.add_bridge(device, random_mac(), mtu)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EPERM):
                mend = "load the kernel's module `bridge`, and run as root; or use --network none or host"
                raise Unavailable("no bridge can be made for the network", os.strerror(error.errno), mend) from error
            raise
    with suppress(OSError), open(f"/sys/class/net/{device}/ifalias", "w") as file:
        file.write(alias[:_LONGEST_ALIAS])
    return True


def give_addresses(device: str, addresses: tuple[str, ...]) -> None:
    """Give a device of the host addresses (CIDRs)."""
    with RouteSocket() as route:
        index = socket.if_nametoindex(device)
        for address in addresses:
            with suppress(FileExistsError):
                route.add_address(index, address)


def remove_bridge(device: str) -> None:
    """Remove a bridge; harmless where there is none."""
    with suppress(OSError), RouteSocket() as route:
        route.delete_link(socket.if_nametoindex(device))


def new_host_end(attachment: Attachment) -> str:
    """A name for the host's end of an interface that is to be made; empty for a macvlan, which has none."""
    return "" if attachment.driver == "macvlan" else f"{_HOST_END}{secrets.token_hex(4)}"


def attach(attachment: Attachment, namespace_fd: int, veth: str, *, default_route: tuple[bool, bool]) -> None:
    """Make the interface in the container's namespace, with this end on the host.

    ``default_route`` says for IPv4 and IPv6 whether everything else goes over it.
    """
    with RouteSocket() as route:
        if attachment.driver == "macvlan":
            _made(attachment, lambda: route.add_macvlan(attachment.device, namespace_fd, attachment.interface, attachment.mac, attachment.mtu))
        else:
            make = partial(route.add_veth, veth, attachment.device, namespace_fd, attachment.interface, attachment.mac, attachment.mtu)
            try:
                _made(attachment, make)
            except FileExistsError:  # another keeper was killed when it had begun
                detach(attachment.interface, namespace_fd)
                _made(attachment, make)
            with suppress(OSError):  # then it reaches itself by its own address alone
                host_settings.open_port(veth)
    with inside(namespace_fd):
        route = RouteSocket()
        index = socket.if_nametoindex(attachment.interface)
    with route:
        for address in attachment.addresses:
            route.add_address(index, address)
        route.set_up(index, link_local=any(":" in address for address in attachment.addresses))
        for gateway in attachment.gateways:
            version = ip_interface(gateway).version
            if default_route[version == 6]:
                with suppress(FileExistsError):
                    route.add_default_route(gateway, index)


def _made(attachment: Attachment, make: Callable[[], None]) -> None:
    try:
        make()
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno == errno.ENODEV or isinstance(error, FileNotFoundError):
            raise BulleError(f"network {attachment.network} has lost its device {attachment.device}", str(error.strerror), "make it anew") from error
        reason = error.strerror or str(error)
        raise BulleError(f"no interface could be made for network {attachment.network}", reason, "see `bulle doctor`") from error


def lead_further(attachments: Sequence[Attachment], namespace_fd: int) -> None:
    """Have the first interfaces with a gateway be the way to everything else, where no other is any longer."""
    for attachment in attachments:
        with inside(namespace_fd):
            route = RouteSocket()
            index = socket.if_nametoindex(attachment.interface)
        with route:
            for gateway in attachment.gateways:
                with suppress(FileExistsError):
                    route.add_default_route(gateway, index)


def detach(interface: str, namespace_fd: int) -> None:
    """Remove an interface from a container's namespace; harmless where it is gone."""
    with inside(namespace_fd):
        route = RouteSocket()
        with suppress(OSError):
            index = socket.if_nametoindex(interface)
            route.delete_link(index)
        route.close()


def host_ends(namespace_fd: int) -> dict[str, str]:
    """The host's end of every veth of ours in a namespace, by the interface's name inside."""
    with inside(namespace_fd):
        route = RouteSocket()
    with route:
        inner = route.links()
    with RouteSocket() as here:
        names = {(index, peer): name for name, (index, peer) in here.links().items() if name.startswith(_HOST_END)}
    # Both must say so: a container may have veths of its own, whose other ends are elsewhere and have numbers of their own.
    return {name: names[peer, index] for name, (index, peer) in inner.items() if (peer, index) in names}


def name_server_sockets(namespace_fd: int, address: str = "") -> tuple[socket.socket, socket.socket]:
    """Where the keeper answers a container's questions about names: a datagram socket and a listener, inside its namespace.

    At another address than the usual one where it is asked from a guest, whose loopback is its own; it need not be there yet.
    """
    with inside(namespace_fd):
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for opened in (datagrams, listener):
            opened.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
            opened.bind((address or NAME_SERVER, 53))
        listener.listen(64)
    except OSError as error:
        datagrams.close()
        listener.close()
        raise BulleError("names cannot be answered inside the container", error.strerror or str(error), "see `bulle doctor`") from error
    return datagrams, listener


def first_routes(has_route: list[bool], attachment: Attachment) -> tuple[bool, bool]:
    """Whether this interface is the first of each family that leads further; notes it in ``has_route``."""
    first = []
    for number, colon in enumerate((False, True)):
        leads = any((":" in gateway) == colon for gateway in attachment.gateways)
        first.append(leads and not has_route[number])
        has_route[number] = has_route[number] or leads
    return first[0], first[1]
