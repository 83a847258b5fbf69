"""The guest's cables: in the machine's network namespace each interface that the keeper made is joined to a tap by a bridge of two ports.

The guest has the container's addresses and hardware addresses itself; what stands in the namespace has none of them, so that rules, ports and names
hold for a guest as they do for a container. Names are asked of an address of the first bridge, where the keeper listens. netdevice(7), bridge(8)
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from bulle.isolation.microvm import NAME_SERVER
from bulle.isolation.microvm.machine import Forward, TapNetwork, UserNetwork
from bulle.linux.bridge import learn_nothing_on
from bulle.linux.netlink import RouteSocket, random_mac
from bulle.linux.tap import make_interface
from bulle.model.network import Attachment
from bulle.model.run_plan import RunPlan

USER_MAC = "52:54:00:12:34:56"
"""Of the interface on the network that QEMU makes."""


@dataclass(frozen=True)
class Cable:
    """One tap and the hardware address of the guest's interface on it."""

    tap_fd: int
    mac: str
    mtu: int


def lay(attachments: Sequence[Attachment], taps: Sequence[int]) -> list[Cable]:
    """In the machine's own network namespace, whose interfaces the keeper has made: a cable for each of them, in their order.

    ``taps`` were opened in that namespace.
    """
    cables = []
    with RouteSocket() as route:
        for number, (attachment, tap_fd) in enumerate(zip(attachments, taps, strict=True)):
            port = socket.if_nametoindex(attachment.interface)
            # What stands here must not answer for the guest: no address of either family, another hardware address.
            route.set_hardware_address(port, random_mac())
            for address in attachment.addresses:
                with suppress(OSError):
                    route.remove_address(port, address)
            name = f"cable{number}"
            route.add_bridge(name, random_mac(), attachment.mtu)
            bridge = socket.if_nametoindex(name)
            tap_name = f"tap{number}"
            make_interface(tap_fd, tap_name)
            tap = socket.if_nametoindex(tap_name)
            for index in (port, tap):
                route.set_port(index, bridge)
            for one in (attachment.interface, tap_name):
                learn_nothing_on(one)  # the host's bridge sends the guest's own words back, and two ports need no memory
            route.set_up(tap, link_local=False)
            if number == 0:
                route.add_address(bridge, f"{NAME_SERVER}/30")
            cables.append(Cable(tap_fd, attachment.mac, attachment.mtu))
    return cables


def networks(plan: RunPlan, cables: Sequence[Cable]) -> tuple[TapNetwork | UserNetwork, ...]:
    """The machine's networks, as QEMU is told them."""
    if plan.network.mode == "user":
        forwards = tuple(
            Forward(port.protocol, address, port.host_port, port.container_port)  # type: ignore[arg-type]
            for port in plan.network.ports
            for address in port.host_addresses
            if ":" not in address
        )
        return (UserNetwork(USER_MAC, forwards),)
    return tuple(TapNetwork(one.tap_fd, one.mac) for one in cables)
