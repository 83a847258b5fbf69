"""Beside ufw, firewalld, Docker and an administrator's own rules: what they must be told is told once, taken back, and no more than that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bulle.model.network import PublishedPort
from bulle_testing import leaks
from bulle_testing.firewalled import FirewalledMachine
from bulle_testing.network_lab import (
    HOST,
    HOST6,
    PATIENT_S,
    QUICK_S,
    WORLD,
    WORLD6,
    Lab,
    RulesProcess,
    Space,
    all_refused,
    echoes,
    listening,
    ports,
    reaches,
    silent,
)
from bulle_testing.peers import private_docker

pytestmark = [pytest.mark.root, pytest.mark.programs("ip", "nft", "iptables", "setpriv")]

TABLE, BRIDGE, OTHER_BRIDGE = "bulle_0badcafe", "bulle00000001", "bulle00000002"


@pytest.fixture
def lab() -> Iterator[Lab]:
    made = Lab.make()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def machine(lab: Lab, tmp_path: Path) -> RulesProcess:
    """The machine's firewalls, and ours."""
    return lab.serve(lambda: FirewalledMachine(TABLE, tmp_path))


class Traffic:
    """A member with a published port, and what passes to and from it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.rules = lab.rules(TABLE)
        self.rules.open()
        self.rules.touched()  # from now on it is watched
        network, other = lab.network(self.rules, 1), lab.network(self.rules, 2)
        self.member, self.neighbour = lab.member(self.rules, network, 2), lab.member(self.rules, network, 3)
        self.stranger = lab.member(self.rules, other, 2)
        published = PublishedPort("0.0.0.0", 9090, 80), PublishedPort("127.0.0.1", 8080, 80)
        self.rules.publish(self.member.name, ports(*published, target=self.member.address))
        self.rules.publish(self.member.name, ports(PublishedPort("::", 9090, 80), target=self.member.address6))

    def passing(self, patience_s: float = QUICK_S) -> set[str]:
        """Which ways are open."""
        found = set()
        lab, member = self.lab, self.member
        with listening(lab.world, "0.0.0.0", 80) as listener:
            found |= {"out"} if reaches(member.space, WORLD, 80, listener, patience_s) else set()
        with listening(lab.world, "::", 80) as listener:
            found |= {"out6"} if reaches(member.space, WORLD6, 80, listener, patience_s) else set()
        with listening(member.space, "0.0.0.0", 80) as listener:
            found |= {"in"} if reaches(lab.world, HOST, 9090, listener, patience_s) == WORLD else set()
            found |= {"localhost"} if reaches(lab.machine, "127.0.0.1", 8080, listener, patience_s) else set()
            found |= {"own network"} if reaches(self.neighbour.space, member.address, 80, listener, patience_s) else set()
            found |= {"hairpin"} if reaches(self.neighbour.space, HOST, 9090, listener, patience_s) else set()
            found |= {"isolation broken"} if reaches(self.stranger.space, member.address, 80, listener, QUICK_S) else set()
        with listening(member.space, "::", 80) as listener:
            found |= {"in6"} if reaches(lab.world, HOST6, 9090, listener, patience_s) else set()
        return found


EVERYTHING = {"out", "out6", "in", "in6", "localhost", "own network", "hairpin"}


@pytest.mark.programs("dockerd", "docker", "containerd", "runc")
def test_beside_docker(lab: Lab, machine: RulesProcess, run_directory: Path, tmp_path: Path) -> None:
    traffic = Traffic(lab)
    assert machine.admit([BRIDGE]) == []
    assert lab.machine.run("iptables -S").count("bulle") == 0, "nobody there, nobody told"
    directory = run_directory / "docker-with-networks"
    leaks.session_places.add(str(directory))
    lab.machine.run("sysctl -qw net.ipv4.ip_forward=0")  # so that Docker is the one who lets the machine forward, and closes it for others
    with lab.machine.inside():
        docker = private_docker(directory, networks=True)
        started = docker.__enter__()
    try:
        lab.machine.run("iptables -A DOCKER-USER -s 1.2.3.4 -j DROP")
        foreign = lab.machine.run("iptables -S DOCKER-USER")
        assert traffic.rules.touched() is False
        assert traffic.rules.others_changed() is True, "that is when to look again"
        assert traffic.passing() <= {"localhost", "own network", "out6", "in6"}, "Docker drops what it does not know"
        assert any("iptables drops" in line for line in machine.obstacles())
        assert machine.admit([BRIDGE]) == []
        assert traffic.passing(PATIENT_S) == EVERYTHING
        told = lab.machine.run("iptables -S DOCKER-USER")
        assert machine.admit([BRIDGE, OTHER_BRIDGE]) == []
        assert lab.machine.run("iptables -S DOCKER-USER") == told, "it is told once"
        assert machine.obstacles() == []

        # Docker's own containers are as closed to ours as to everybody.
        container = Space("Docker's container")
        lab.spaces.append(container)
        on_docker(lab, container, "docker0", "172.17.0.9", "172.17.0.1")
        started("network", "create", "--subnet", "172.30.0.0/24", "--opt", "com.docker.network.bridge.name=odd", "another")
        another = Space("another of Docker's")
        lab.spaces.append(another)
        on_docker(lab, another, "odd", "172.30.0.9", "172.30.0.1")
        assert traffic.rules.touched() is False
        assert traffic.rules.others_changed() is True
        assert machine.admit([BRIDGE]) == []
        for space, address in ((container, "172.17.0.9"), (another, "172.30.0.9")):
            assert echoes(lab.machine, address)
            assert silent(traffic.member.space, address)
            assert silent(space, traffic.member.address)
            assert echoes(space, WORLD)

        assert machine.withdraw() == []
        assert lab.machine.run("iptables -S DOCKER-USER") == foreign
        # The next keeper knows nothing of what the one before has told.
        assert machine.admit([BRIDGE]) == []
        following = lab.serve(lambda: FirewalledMachine(TABLE, tmp_path / "following"))
        assert following.admit([BRIDGE]) == []
        assert following.withdraw() == []
        assert lab.machine.run("iptables -S DOCKER-USER") == foreign
        started("network", "rm", "another")
    finally:
        docker.__exit__(None, None, None)


def on_docker(lab: Lab, space: Space, bridge: str, address: str, gateway: str) -> None:
    """Put something on one of Docker's bridges."""
    lab.attach(space, f"v{address.replace('.', '')}"[:15], bridge)
    space.run(f"ip addr add {address}/16 dev eth0 && ip link set eth0 up && ip route add default via {gateway}")


@pytest.mark.programs("iptables-legacy")
def test_beside_a_docker_that_uses_the_old_iptables(lab: Lab, machine: RulesProcess) -> None:
    # What Docker does with it, without Docker: Debian's has the choice of iptables from the machine's alternatives.
    if "can't initialize" in lab.machine.run("iptables-legacy -S", check=False):
        pytest.skip("this kernel has no old iptables")
    traffic = Traffic(lab)
    lab.machine.run(
        "iptables-legacy -P FORWARD DROP; iptables-legacy -N DOCKER-USER; iptables-legacy -N DOCKER",
        "iptables-legacy -A FORWARD -j DOCKER-USER; iptables-legacy -A FORWARD -o docker0 -j DOCKER; iptables-legacy -A DOCKER-USER -j RETURN",
        "ip6tables -P FORWARD DROP; ip6tables -N DOCKER-USER; ip6tables -A FORWARD -j DOCKER-USER",  # and IPv6 by the new one
    )
    assert not {"out", "out6", "in", "in6"} & traffic.passing()
    assert len(machine.obstacles()) == 2
    assert machine.admit([BRIDGE]) == []
    assert traffic.passing(PATIENT_S) == EVERYTHING
    assert machine.obstacles() == []
    assert "-i bulle+ -o docker0 -m comment --comment bulle_0badcafe -j RETURN" in lab.machine.run("iptables-legacy -S DOCKER-USER")
    assert machine.withdraw() == []
    assert lab.machine.run("iptables-legacy -S DOCKER-USER") == "-N DOCKER-USER\n-A DOCKER-USER -j RETURN\n"
    assert lab.machine.run("ip6tables -S DOCKER-USER") == "-N DOCKER-USER\n"


@pytest.mark.programs("ufw")
def test_beside_ufw(lab: Lab, machine: RulesProcess) -> None:
    traffic = Traffic(lab)
    machine.start_ufw()
    before = machine.run("ufw status numbered")
    assert traffic.passing() <= {"localhost", "own network"}
    assert any("iptables" in line for line in machine.obstacles())
    assert machine.admit([BRIDGE, OTHER_BRIDGE]) == []
    assert traffic.passing(PATIENT_S) == EVERYTHING
    assert machine.obstacles() == []
    told = machine.run("ufw status numbered")
    assert told.count("networks of Bulle") == 4
    assert machine.admit([BRIDGE]) == []
    assert machine.run("ufw status numbered") == told
    with listening(lab.machine, "0.0.0.0", 22):
        assert all_refused((traffic.member.space, HOST, 22)), "the host itself stays as closed as ufw has it"
    other = lab.rules("bulle_00000002")
    other.open()
    assert machine.withdraw() == []
    assert machine.run("ufw status numbered") == told, "another home needs it"
    other.close()
    assert machine.withdraw() == []
    assert machine.run("ufw status numbered") == before
    machine.run("ufw route allow in on bulle+; ufw route allow out on bulle+")
    assert machine.admit([BRIDGE]) == []
    assert machine.withdraw() == []
    assert machine.run("ufw status").count("bulle+") == 4, "an administrator's own stay"


@pytest.mark.slow
@pytest.mark.programs("firewalld", "firewall-cmd", "dbus-daemon")
def test_beside_firewalld(lab: Lab, machine: RulesProcess) -> None:
    traffic = Traffic(lab)
    machine.start_firewalld()
    assert traffic.passing() <= {"localhost", "own network", "in", "in6", "hairpin"}
    assert any("firewalld" in line for line in machine.obstacles())
    assert machine.admit([BRIDGE, OTHER_BRIDGE]) == []
    assert traffic.passing(PATIENT_S) == EVERYTHING
    assert machine.obstacles() == []
    assert machine.devices_in_zone() == [BRIDGE, OTHER_BRIDGE]
    assert traffic.rules.touched() is False
    traffic.rules.others_changed()
    machine.run("firewall-cmd --reload")
    assert traffic.rules.touched() is False
    assert traffic.rules.others_changed() is True
    assert machine.admit([BRIDGE, OTHER_BRIDGE]) == []
    assert traffic.passing(PATIENT_S) == EVERYTHING
    assert machine.withdraw() == []
    assert machine.devices_in_zone() == []
    assert machine.admit([BRIDGE]) == []
    machine.forget()  # as a keeper that was killed
    assert machine.withdraw() == []
    assert machine.devices_in_zone() == [BRIDGE]
    assert machine.withdraw([BRIDGE]) == []
    assert machine.devices_in_zone() == []


@pytest.mark.parametrize(
    ("wall", "mend"),
    [
        ("iptables -P FORWARD DROP", ["iptables -I FORWARD -i bulle+ -j ACCEPT", "iptables -I FORWARD -o bulle+ -j ACCEPT"]),
        (
            "nft add table inet office; nft add chain inet office way '{ type filter hook forward priority 0; policy drop; }'",
            ["nft insert rule inet office way iifname '\"bulle*\"' accept", "nft insert rule inet office way oifname '\"bulle*\"' accept"],
        ),
    ],
    ids=["iptables", "nftables"],
)
def test_an_administrators_own_wall_is_named_and_left(lab: Lab, machine: RulesProcess, wall: str, mend: list[str]) -> None:
    traffic = Traffic(lab)
    assert machine.obstacles() == []
    lab.machine.run(wall)
    assert "out" not in traffic.passing()
    before = lab.machine.run("nft list ruleset")
    assert machine.admit([BRIDGE]) == []
    assert lab.machine.run("nft list ruleset") == before
    (sentence,) = machine.obstacles()
    for command in mend:
        assert command in sentence
        lab.machine.run(command)
    assert machine.obstacles() == []
    assert {"out", "in", "hairpin"} <= traffic.passing(PATIENT_S)
