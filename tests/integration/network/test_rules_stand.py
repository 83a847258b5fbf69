"""The rules of networks over time: flushed, changed by others, two homes side by side, a keeper that is killed, and machines that lack something."""

from __future__ import annotations

import errno
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bulle.errors import BulleError, Conflict, Unavailable
from bulle.linux import nftables
from bulle.model.network import PublishedPort
from bulle.network import ruleset
from bulle.network.egress import parse_egress
from bulle.network.rules import Rules
from bulle_testing.network_lab import (
    HOST,
    QUICK_S,
    WORLD,
    WORLD6,
    Lab,
    WatchingRules,
    all_refused,
    connected,
    echoes,
    listening,
    ports,
    reaches,
    silent,
    taken,
)

pytestmark = [pytest.mark.root, pytest.mark.programs("ip", "nft")]

TABLE = "bulle_0badcafe"


@pytest.fixture
def lab() -> Iterator[Lab]:
    made = Lab.make()
    try:
        yield made
    finally:
        made.close()


def shape(text: object) -> list[str]:
    """What nft prints, without what changes with time."""
    return sorted(re.sub(r"(timeout|expires) [0-9a-z]+", "", str(text)).split())


@pytest.fixture(params=["libnftables.so.1", "no such library"], ids=["library", "program"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """By the library, and by the program ``nft`` where there is no library."""
    monkeypatch.setattr(nftables, "LIBRARY", request.param)
    return str(request.param)


@pytest.mark.parametrize(
    "damage",
    [
        "nft flush ruleset",
        f"nft delete table inet {TABLE}",
        f"nft flush chain bridge {TABLE} sender",
        f"nft delete element inet {TABLE} everywhere4 '{{ tcp . 9090 }}'",
        f"nft insert rule inet {TABLE} egress accept",
    ],
)
def test_what_others_take_away_is_noticed_and_put_back(lab: Lab, way: str, damage: str) -> None:
    rules = lab.rules()
    rules.open()
    network = lab.network(rules, 1)
    member, other = lab.member(rules, network, 2, "allow:example.org"), lab.member(rules, network, 3, "none")
    assert rules.touched() is False, "from now on it is watched"
    rules.publish(member.name, ports(PublishedPort("0.0.0.0", 9090, 80), target=member.address))
    rules.allow(member.name, [WORLD], [80], 60)
    before = shape(rules.describe())
    assert rules.touched() is False, "what it changes itself is no news"
    lab.machine.run("nft add table inet somebody; nft add chain inet somebody chain; nft delete table inet somebody")
    assert rules.touched() is False, "nor what does not concern it"
    lab.machine.run(damage)
    assert rules.touched() is True
    rules.restore()
    assert rules.touched() is False
    assert shape(rules.describe()) == before
    with listening(member.space, "0.0.0.0", 80) as listener:
        assert reaches(lab.world, HOST, 9090, listener) == WORLD
    with listening(lab.world, "0.0.0.0", 80) as listener:
        assert reaches(member.space, WORLD, 80, listener) == HOST
    assert silent(other.space, WORLD)


def test_a_change_on_a_flushed_table_makes_all_of_it_anew(lab: Lab) -> None:
    rules = lab.rules()
    rules.open()
    network = lab.network(rules, 1)
    member = lab.member(rules, network, 2, "none")
    lab.machine.run("nft flush ruleset")
    rules.publish(member.name, ports(PublishedPort("0.0.0.0", 9090, 80), target=member.address))
    assert silent(member.space, WORLD)
    lab.machine.run("nft flush ruleset")
    rules.retract(member.name, ports(PublishedPort("0.0.0.0", 9090, 80), target=member.address))
    assert silent(member.space, WORLD)
    lab.machine.run("nft flush ruleset")
    rules.remove_member(member.name)
    assert echoes(member.space, WORLD), "masqueraded, and no longer limited"
    rules.close()
    assert lab.machine.run("nft list ruleset") == ""


def test_who_saves_all_rules_of_the_machine_can_load_them_again(lab: Lab, tmp_path: Path) -> None:
    rules = lab.rules()
    rules.open()
    network = lab.network(rules, 1)
    member, other = lab.member(rules, network, 2, "allow:example.org:80,10.0.0.0/8"), lab.member(rules, network, 3, "none")
    rules.publish(member.name, ports(PublishedPort("0.0.0.0", 9090, 80), PublishedPort("127.0.0.1", 53, 53, "udp"), target=member.address))
    rules.allow(member.name, [WORLD, WORLD6], [80], 60)
    before = shape(rules.describe())
    lab.machine.run(f"nft list ruleset >{tmp_path}/saved; nft flush ruleset && nft -f {tmp_path}/saved")
    assert shape(rules.describe()) == before
    assert silent(other.space, WORLD)


def test_what_the_kernel_refuses_changes_nothing(lab: Lab) -> None:
    rules = lab.rules()
    rules.open()
    network = lab.network(rules, 1)
    member, other = lab.member(rules, network, 2), lab.member(rules, network, 3)
    rules.publish(member.name, ports(PublishedPort("0.0.0.0", 9090, 80), target=member.address))
    before = rules.describe()
    with pytest.raises(Conflict, match=r"0\.0\.0\.0:9090/tcp"):
        rules.publish(other.name, ports(PublishedPort("127.0.0.1", 8080, 80), PublishedPort("0.0.0.0", 9090, 80), target=other.address))
    with pytest.raises(BulleError, match="rules of the networks"):
        rules.add_network("overlapping", "bulle00000009", ["10.208.0.0/16"], ["10.208.0.1"], False)
    assert rules.describe() == before
    rules.restore()
    assert rules.describe() == before


def test_an_allowed_name_is_open_for_its_time_and_what_stands_goes_on(lab: Lab) -> None:
    rules = lab.rules()
    rules.open()
    member = lab.member(rules, lab.network(rules, 1), 2, "allow:example.org:80,*.example.net")
    other = lab.member(rules, "network1", 3, "allow:example.org:80")
    with listening(lab.world, "0.0.0.0", 80) as listener, listening(lab.world, "0.0.0.0", 81) as another_port:
        assert all_refused((member.space, WORLD, 80))
        rules.allow(member.name, [WORLD, WORLD6], [80], 2)
        connection = connected(member.space, WORLD, 80)
        assert connection is not None
        assert all_refused((member.space, WORLD, 81))
        assert all_refused((other.space, WORLD, 80))
        assert silent(member.space, WORLD)
        rules.allow(member.name, [WORLD], [], 2)
        assert reaches(member.space, WORLD, 81, another_port)
        assert echoes(member.space, WORLD)
        rules.allow(member.name, [WORLD], [80], 4)  # asked again: its time begins anew
        time.sleep(2.4)
        with connection, taken(listener) as accepted:
            assert reaches(member.space, WORLD, 80, listener)
            time.sleep(2)
            assert all_refused((member.space, WORLD, 80))
            connection.sendall(b"still here")
            assert accepted.recv(99) == b"still here"


def test_two_homes_stand_side_by_side(lab: Lab) -> None:
    one, two = lab.rules("bulle_00000001"), lab.rules("bulle_00000002")
    one.open()
    two.open()
    first, second = lab.member(one, lab.network(one, 1), 2), lab.member(two, lab.network(two, 2), 2, "internet")
    one.publish(first.name, ports(PublishedPort("0.0.0.0", 9090, 80), target=first.address))
    two.publish(second.name, ports(PublishedPort("127.0.0.1", 8080, 80), target=second.address))
    with listening(first.space, "0.0.0.0", 80) as listener:
        assert reaches(lab.world, HOST, 9090, listener) == WORLD
        assert all_refused((second.space, first.address, 80))
        assert all_refused((second.space, HOST, 9090)), "the host is not the internet"
    with listening(second.space, "0.0.0.0", 80) as listener:
        assert reaches(lab.machine, "127.0.0.1", 8080, listener) == "10.208.2.1"
        assert all_refused((first.space, second.address, 80))
    assert echoes(first.space, WORLD)
    assert echoes(second.space, WORLD6)
    assert two.touched() is False
    one.close()
    assert two.touched() is False
    with listening(second.space, "0.0.0.0", 80) as listener:
        assert reaches(lab.machine, "127.0.0.1", 8080, listener) == "10.208.2.1"
        assert all_refused((lab.world, HOST, 9090))


def test_the_next_keeper_takes_over_and_connections_go_on(lab: Lab) -> None:
    rules = lab.rules()
    rules.open()
    network = lab.network(rules, 1)
    member, gone = lab.member(rules, network, 2, "none"), lab.member(rules, network, 3)
    published = ports(PublishedPort("0.0.0.0", 9090, 80), target=member.address)
    rules.publish(member.name, published)
    rules.publish(gone.name, ports(PublishedPort("0.0.0.0", 7070, 80), target=gone.address))
    with listening(member.space, "0.0.0.0", 80) as listener:
        connection = connected(lab.world, HOST, 9090)
        assert connection is not None
        with connection, taken(listener) as accepted:
            rules.kill()
            following = lab.rules()
            following.add_network(network, "bulle00000001", ["10.208.1.0/24", "fd00:1::/64"], ["10.208.1.1", "fd00:1::1"], False)
            following.add_member(member.name, [member.link], member.egress)
            following.publish(member.name, published)
            following.open()
            connection.sendall(b"over")
            assert accepted.recv(9) == b"over"
            accepted.sendall(b"and back")
            assert connection.recv(9) == b"and back"
            assert reaches(lab.world, HOST, 9090, listener) == WORLD
    assert "7070" not in str(following.describe())
    assert silent(member.space, WORLD)


class LaterRules(WatchingRules):
    """Rules that leave what is not urgent to a loop."""

    def __init__(self, table: str) -> None:
        super().__init__(table)
        self.waiting: list[Callable[[], None]] = []
        self.later = lambda delay_s, callback: self.waiting.append(callback)

    def turn(self) -> int:
        """What the loop would do; how much that was."""
        waiting, self.waiting = self.waiting, []
        for callback in waiting:
            callback()
        return len(waiting)


@pytest.mark.parametrize("kind", [WatchingRules, LaterRules], ids=["at-once", "later"])
def test_who_sends_datagrams_all_the_time_finds_the_next_container(lab: Lab, kind: type[Rules]) -> None:
    rules = lab.rules(kind=kind)
    rules.open()
    network = lab.network(rules, 1)
    old, new = lab.member(rules, network, 2), lab.member(rules, network, 3)

    def published(member: object) -> object:
        return ports(PublishedPort("0.0.0.0", 5353, 53, "udp"), target=member.address)  # type: ignore[attr-defined]

    with lab.world.inside():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender, listening(old.space, "0.0.0.0", 53, socket.SOCK_DGRAM) as before, listening(new.space, "0.0.0.0", 53, socket.SOCK_DGRAM) as after:
        sender.connect((HOST, 5353))
        sender.send(b"too early")
        rules.publish(old.name, published(old))
        assert kind is WatchingRules or rules.turn() == 1
        try:
            sender.send(b"first")
        except ConnectionRefusedError:  # of the one before
            sender.send(b"first")
        assert before.recv(99) == b"first"
        rules.retract(old.name, published(old))
        rules.publish(new.name, published(new))
        assert kind is WatchingRules or rules.turn() == 1, "for both"
        sender.send(b"second")
        assert after.recv(99) == b"second"


def test_a_list_is_not_got_around_by_who_had_the_address_before(lab: Lab) -> None:
    rules = lab.rules()
    rules.open()
    member = lab.member(rules, lab.network(rules, 1), 2)
    with listening(lab.world, "0.0.0.0", 80) as listener, listening(lab.world, "0.0.0.0", 81) as listed:
        connection, allowed = connected(member.space, WORLD, 80), connected(member.space, WORLD, 81)
        assert connection is not None
        assert allowed is not None
        with connection, allowed, taken(listener) as accepted, taken(listed) as accepted_too:
            rules.remove_member(member.name)
            rules.add_member("the next", [member.link], parse_egress(f"allow:example.org,{WORLD}:81"))
            allowed.sendall(b"as before")
            assert accepted_too.recv(99) == b"as before"
            connection.sendall(b"as before")
            accepted.settimeout(QUICK_S)
            with pytest.raises(TimeoutError):
                accepted.recv(99)


def test_a_machine_without_ipv6_has_rules_too(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    really = os.path.exists
    monkeypatch.setattr(ruleset.os.path, "exists", lambda path: path != "/proc/sys/net/ipv6" and really(path))
    lab.machine.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")
    rules = lab.rules()
    rules.open()
    member = lab.member(rules, lab.network(rules, 1, ipv6=False), 2)
    rules.publish(member.name, ports(PublishedPort("0.0.0.0", 9090, 80), PublishedPort("::", 9090, 80), target=member.address))
    with listening(member.space, "0.0.0.0", 80) as listener:
        assert reaches(lab.world, HOST, 9090, listener) == WORLD
    assert "dnat ip6" not in str(rules.describe())


def test_without_nftables_it_says_what_to_install(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nftables, "LIBRARY", "no such library")
    monkeypatch.setattr(nftables.shutil, "which", lambda *_, **__: None)
    with pytest.raises(Unavailable, match="install the package nftables"):
        lab.rules().open()


def test_the_watcher_says_so_when_more_happened_than_it_was_told(lab: Lab) -> None:
    with lab.machine.inside(), nftables.Watcher() as watcher:
        watcher.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        lab.machine.run("for i in 1 2 3 4 5 6 7 8; do nft add table inet somebody; nft delete table inet somebody; done")
        assert watcher.changed() is None
        assert watcher.changed() == set()
        lab.machine.run("nft add table inet somebody")
        assert watcher.changed() == {"somebody"}
        with pytest.raises(BlockingIOError) as caught:
            watcher.recv(1)
        assert caught.value.errno == errno.EAGAIN
