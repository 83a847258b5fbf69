"""What the host's kernel is told for networks, and what it keeps."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulle.errors import Unavailable
from bulle.network import host_settings
from bulle.network.ruleset import link_local
from bulle_testing.network_lab import Space, frame, icmpv6, mac_of, send_frame

pytestmark = [pytest.mark.root, pytest.mark.programs("ip")]


@pytest.fixture
def machine() -> Iterator[Space]:
    made = Space("machine")
    try:
        made.run(
            "sysctl -qw net.ipv4.ip_forward=0 && ip link add name bridge0 type bridge",
            "ip link add uplink type veth peer name router && ip link set router up",
        )
        yield made
    finally:
        made.close()


def setting(machine: Space, name: str) -> str:
    """A sysctl of the machine."""
    return machine.run(f"sysctl -n {name}").strip()


def test_ipv4_alone_leaves_ipv6_as_it_is(machine: Space) -> None:
    with machine.inside():
        assert host_settings.prepare_host() == ["net/ipv4/ip_forward"]
        assert host_settings.prepare_host() == []
        host_settings.open_bridge("bridge0")
    assert setting(machine, "net.ipv4.ip_forward") == "1"
    assert setting(machine, "net.ipv6.conf.all.forwarding") == "0"
    assert setting(machine, "net.ipv6.conf.uplink.accept_ra") == "1"
    assert setting(machine, "net.ipv6.conf.bridge0.disable_ipv6") == "1", "nobody there speaks it"
    assert setting(machine, "net.ipv4.conf.bridge0.route_localnet") == "1"
    assert setting(machine, "net.ipv4.conf.uplink.route_localnet") == setting(machine, "net.ipv4.conf.all.route_localnet") == "0"


def test_an_uplink_that_learns_its_way_out_goes_on_learning(machine: Space) -> None:
    def advertise() -> None:
        router = mac_of(machine, "router")
        packet = icmpv6(link_local(router), "ff02::1", 134, struct.pack("!BBHII", 64, 0, 1800, 0, 0))
        send_frame(machine, frame(router, "33:33:00:00:00:01", 0x86DD, packet), "router")

    def has_way_out() -> bool:
        for _ in range(50):
            if "proto ra" in machine.run("ip -6 route show default dev uplink"):
                return True
            time.sleep(0.02)
        return False

    machine.run("ip link set uplink up; sysctl -qw net.ipv6.conf.router.accept_ra=0; sleep 0.2")
    advertise()
    assert has_way_out()
    with machine.inside():
        assert "net/ipv6/conf/uplink/accept_ra" in host_settings.prepare_host(ipv6=True)
        assert host_settings.prepare_host(ipv6=True) == []
        host_settings.open_bridge("bridge0", ipv6=True)
    assert has_way_out(), "it was not forgotten"
    assert setting(machine, "net.ipv6.conf.all.forwarding") == setting(machine, "net.ipv6.conf.bridge0.forwarding") == "1"
    assert setting(machine, "net.ipv6.conf.router.accept_ra") == "0", "who did not listen does not begin to"
    assert setting(machine, "net.ipv6.conf.bridge0.accept_ra") == "0", "no container is a router"
    machine.run("ip -6 route flush proto ra")
    advertise()
    assert has_way_out(), "and it learns anew"


def test_what_cannot_be_set_is_said(machine: Space, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ipv4").mkdir()
    monkeypatch.setattr(host_settings, "_SYSCTLS", tmp_path)
    with pytest.raises(Unavailable, match=r"sysctl -w net\.ipv4\.conf\.bridge0\.forwarding=1"):
        host_settings.open_bridge("bridge0")
    assert not host_settings.has_ipv6()
