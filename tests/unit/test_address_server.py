"""The answer to a machine that asks for its address by DHCP: what it is told, and that nothing that it says does harm."""

from __future__ import annotations

import random
import socket
import struct

import pytest

from bulle.isolation.microvm.address_server import reply_to
from bulle.model.network import Attachment

MAC = bytes.fromhex("020000000007")
HERE = Attachment("1", "n", "bulle1", "eth0", MAC.hex(":"), ("10.5.0.9/24", "fd00::9/64"), ("10.5.0.1",), mtu=1400)


def question(kind: int, *options: tuple[int, bytes], own: str = "0.0.0.0") -> bytes:
    message = b"\x01\x01\x06\0" + b"ABCD" + bytes(4) + socket.inet_aton(own) + bytes(12) + MAC + bytes(10 + 192) + b"\x63\x82\x53\x63"
    for code, value in ((53, bytes([kind])), *options):
        message += bytes([code, len(value)]) + value
    udp = struct.pack(">HHHH", 68, 67, 8 + len(message) + 1, 0) + message + b"\xff"
    header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, bytes(4), b"\xff" * 4)
    return b"\xff" * 6 + MAC + b"\x08\0" + header + udp


def told(frame: bytes) -> tuple[str, dict[int, bytes]]:
    """The address that a reply gives, and its options."""
    assert frame[:6] == MAC and sum(struct.unpack(">10H", frame[14:34])) % 0xFFFF == 0
    assert struct.unpack(">H", frame[16:18])[0] == len(frame) - 14 and frame[34:38] == struct.pack(">HH", 67, 68)
    message, found, place = frame[42:], dict[int, bytes](), 240
    assert message[4:8] == b"ABCD" and message[28:34] == MAC
    while message[place] != 255:
        length = message[place + 1]
        found[message[place]] = message[place + 2 : place + 2 + length]
        place += 2 + length
    return socket.inet_ntoa(message[16:20]), found


@pytest.mark.parametrize(("asked", "answered"), [(1, 2), (3, 5)])
def test_it_is_told_what_is_its_own(asked: int, answered: int) -> None:
    address, options = told(reply_to(question(asked), HERE, "web", first=True))
    assert address == "10.5.0.9" and options[53] == bytes([answered])
    assert options[1] == bytes([255, 255, 255, 0]) and options[3] == socket.inet_aton("10.5.0.1") and options[12] == b"web"
    assert options[51] == b"\xff" * 4 and options[26] == struct.pack(">H", 1400)
    name_server = socket.inet_aton("169.254.53.1")
    assert options[6] == options[54] == name_server
    assert options[121] == b"\x20" + name_server + bytes(4) + b"\0" + socket.inet_aton("10.5.0.1")
    further = told(reply_to(question(asked), HERE, "web", first=False))[1]
    assert not {3, 6, 121} & further.keys(), "one cable leads further"


def test_it_is_told_what_to_fetch() -> None:
    assert told(reply_to(question(3), HERE, "web", "http://10.5.0.1/x", first=True))[1][67] == b"http://10.5.0.1/x"
    assert 67 not in told(reply_to(question(3), HERE, "web", "http://10.5.0.1/x", first=False))[1]


def test_another_address_is_refused() -> None:
    address, options = told(reply_to(question(3, (50, socket.inet_aton("10.5.0.10"))), HERE, "web", first=True))
    assert (address, options[53]) == ("0.0.0.0", b"\x06") and options.keys() == {53, 54}
    assert reply_to(question(3, (54, socket.inet_aton("10.5.0.1"))), HERE, "web", first=True) == b"", "that was said to another server"


def test_nothing_that_it_says_does_harm() -> None:
    chosen = random.Random(3)
    whole = question(1, (55, bytes(range(1, 60))), (61, b"client"))
    for _ in range(3000):
        frame = bytearray(whole[: chosen.choice((len(whole), chosen.randrange(len(whole))))])
        for _ in range(chosen.randrange(8) if frame else 0):
            frame[chosen.randrange(len(frame))] = chosen.randrange(256)
        reply_to(bytes(frame), HERE, "web", first=True)
