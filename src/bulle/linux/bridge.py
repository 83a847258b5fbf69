"""What a bridge and its ports do with frames that come back or claim to be somebody's. rtnetlink(7), if_bridge.h"""

from __future__ import annotations

import os
import socket
import struct

_NLM_F_REQUEST_ACK = 0x5
_NLMSG_ERROR = 2
_RTM_NEWLINK, _RTM_SETLINK = 16, 19
_NLA_F_NESTED = 0x8000
_IFLA_PROTINFO, _IFLA_LINKINFO, _IFLA_INFO_KIND, _IFLA_INFO_DATA = 12, 18, 1, 2
_IFLA_BRPORT_MODE, _IFLA_BRPORT_LEARNING = 4, 8
_IFLA_BR_MULTI_BOOLOPT = 46
_BR_BOOLOPT_NO_LL_LEARN = 1 << 0


def learn_nothing_from_link_local(device: str) -> None:
    """Have a bridge take no word from frames to 01:80:C2:00:00:0X about where a MAC address lives: of those, no rule gets to see all. Linux 5.0"""
    option = _attribute(_IFLA_BR_MULTI_BOOLOPT, struct.pack("=II", _BR_BOOLOPT_NO_LL_LEARN, _BR_BOOLOPT_NO_LL_LEARN))
    info = _attribute(_IFLA_INFO_KIND, b"bridge\0") + _attribute(_IFLA_INFO_DATA | _NLA_F_NESTED, option)
    _tell(_RTM_NEWLINK, socket.AF_UNSPEC, device, _attribute(_IFLA_LINKINFO | _NLA_F_NESTED, info))


def send_back(port: str) -> None:
    """Let a port of a bridge send out again what it received ("hairpin"), as who connects to its own published port needs."""
    _set_port(port, _IFLA_BRPORT_MODE, b"\1")


def learn_nothing_on(port: str) -> None:
    """Have a bridge not conclude from frames that come in on a port who is behind it."""
    _set_port(port, _IFLA_BRPORT_LEARNING, b"\0")


def _set_port(port: str, setting: int, value: bytes) -> None:
    _tell(_RTM_SETLINK, socket.AF_BRIDGE, port, _attribute(_IFLA_PROTINFO | _NLA_F_NESTED, _attribute(setting, value)))


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _tell(message: int, family: int, device: str, attributes: bytes) -> None:
    body = struct.pack("=BxHiII", family, 0, socket.if_nametoindex(device), 0, 0) + attributes
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as kernel:
        kernel.send(struct.pack("=IHHII", 16 + len(body), message, _NLM_F_REQUEST_ACK, 1, 0) + body)
        answer = kernel.recv(65536)
    _, kind, _, _, _, error = struct.unpack_from("=IHHIIi", answer)
    if kind == _NLMSG_ERROR and error:
        raise OSError(-error, f"bridge: {os.strerror(-error)}", device)
