"""The protocol between callers and the spawner: what is said is understood, and nothing else is."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulle.spawner.caller import CAP_SYS_RESOURCE, Standing, reason_to_bypass, standing_of, takeover
from bulle.spawner.protocol import (
    HEADER,
    MalformedRequestError,
    Reason,
    Reply,
    Request,
    body_length,
    current_limits,
    pack_reply,
    pack_request,
    parse_request,
    read_reply,
)

words = st.lists(st.binary(max_size=40).map(lambda text: text.replace(b"\0", b"")), max_size=20)


def request_of(argv: list[bytes], environment: list[bytes]) -> Request:
    return Request("command", b"/usr/bin", b"", b"/tmp", argv, environment, 1, current_limits(), 4)


@given(words, words)
def test_request_survives_the_way(argv: list[bytes], environment: list[bytes]) -> None:
    request = request_of(argv, environment)
    assert parse_request(pack_request(request)) == request


@given(st.binary(max_size=600))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedRequestError):
        body_length(data.ljust(HEADER.size, b"\0"))
    if len(data) >= HEADER.size:
        with pytest.raises(MalformedRequestError):
            parse_request(data)


@given(st.data())
def test_damaged_requests_never_do_worse_than_being_refused(data: st.DataObject) -> None:
    frame = bytearray(pack_request(request_of([b"ps", b"-a"], [b"A=1"])))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    try:
        body_length(frame)
        parse_request(bytes(frame))
    except MalformedRequestError:
        pass


@pytest.mark.parametrize("argument", [b"a\0b", b"x" * (9 << 20)])
def test_what_cannot_be_said_is_refused_by_the_speaker(argument: bytes) -> None:
    with pytest.raises(MalformedRequestError):
        pack_request(request_of([argument], []))


def test_replies_in_pieces() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reply = pack_reply(Reply.EXITED, -3)
        theirs.send(reply[:5])
        theirs.send(reply[5:])
        assert read_reply(ours) == (Reply.EXITED, -3, -1)
        theirs.send(reply[:5])
        theirs.close()
        assert read_reply(ours) is None


def changed(standing: Standing, **values: object) -> Standing:
    return Standing(**({name: getattr(standing, name) for name in Standing.__slots__} | values))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, None),
        ({"umask": 0o777, "processors": b"0", "oom_score_adjustment": 1000}, None),
        ({"mount_namespace": 1}, Reason.NAMESPACES),
        ({"namespaces": (1,) * 9}, Reason.NAMESPACES),
        ({"capabilities": (b"0", b"0", b"0", b"0", b"0")}, Reason.CAPABILITIES),
        ({"no_new_privileges": b"1"}, Reason.NO_NEW_PRIVILEGES),
        ({"seccomp": (b"2", b"1")}, Reason.SECCOMP),
        ({"label": b"confined"}, Reason.LSM_LABEL),
        ({"root": (1, 2, b"3")}, Reason.ROOT_DIRECTORY),
        ({"user_ids": b"1\t2\t3\t4"}, Reason.IDENTITY),
    ],
)
def test_each_difference_that_matters_means_bypass(values: dict[str, object], reason: Reason | None) -> None:
    own = changed(standing_of("self"), capabilities=(b"0", b"1ff", b"1ff", b"1ff", b"0"))
    assert reason_to_bypass(own, own.place, changed(own, **values)) == reason


def test_limits_above_the_own_are_not_taken_over_without_the_capability() -> None:
    own = standing_of("self")
    limits = current_limits()
    low = limits[: 7 * 16] + (10).to_bytes(8, "little") * 2 + limits[8 * 16 :]
    for capable in (False, True):
        standing = changed(own, capabilities=(b"0", b"0", f"{int(capable) << CAP_SYS_RESOURCE:x}".encode(), b"0", b"0"))
        lowered = takeover(standing, limits, standing, low)
        assert lowered is not None
        assert lowered.limits == ((7, 10, 10),)
        assert (takeover(standing, low, standing, limits) is not None) == capable


def test_own_standing_is_readable() -> None:
    standing = standing_of(os.getpid())
    assert standing == standing_of("self")
    assert standing.mount_namespace == os.stat("/proc/self/ns/mnt").st_ino
