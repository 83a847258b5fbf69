"""Network interfaces whose other end is a descriptor. Kernel documentation, networking/tuntap.rst"""

from __future__ import annotations

import fcntl
import os
import struct

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000


def open_tap() -> int:
    """A descriptor that can become an interface of the network namespace in which this is called. OSError where /dev/net/tun may not be opened."""
    return os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)


def make_interface(descriptor: int, name: str) -> None:
    """Have it be a new Ethernet interface, called ``name``: frames go through the descriptor, with virtio's header. Needs CAP_NET_ADMIN there."""
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
