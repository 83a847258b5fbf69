"""Ports and names that replicas share: who is led to whom, who is not, and what stands when replicas and the keeper come and go."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Any

import pytest
from msgspec.structs import replace

import bulle
from bulle.network.naming import table_name
from bulle_testing import places
from bulle_testing.networking import IMAGE, SERVER, Networked, ask, free_ports, other_machine
from bulle_testing.running import wait_for

pytestmark = [pytest.mark.root, pytest.mark.programs("nft", "ip", "unshare", "nsenter")]
ARCHIVE = "python_archive"
LOCALHOST = ("127.0.0.1", "::1")
ECHO = "import socket, sys; c = socket.create_server(('', 80)).accept()[0]\nwhile data := c.recv(100): c.sendall(sys.argv[1].encode() + data)"
FORTY = "import socket, sys\nfor _ in range(40): print(socket.create_connection((sys.argv[1], int(sys.argv[2])), 2).recv(99).decode().strip())"
CHECK: dict[str, Any] = {"health_command": "test -e /tmp/healthy", "health_interval_ns": 50_000_000, "health_retries": 1}


def start(net: Networked, name: str, *mappings: bulle.PortMapping, command: tuple[str, ...] = (), **options: Any) -> bulle.Container:
    """A server that says its name, one of the replicas of ``web``."""
    wanted = bulle.ContainerOptions(
        image=IMAGE, name=name, ports=mappings, network="bridge", networks=(bulle.NetworkOption("bridge", aliases=("web",)),),
        volumes=(bulle.VolumeOption("/usr", "/usr", True),), command=command or ("/usr/bin/python3", "-c", SERVER, name, "80"), **options,
    )  # fmt: skip
    made = net.machine.engine.containers.create(wanted)
    made.start()
    return made


def three(net: Networked, *mappings: bulle.PortMapping, **options: Any) -> list[bulle.Container]:
    made = [start(net, name, *mappings, **options) for name in ("one", "two", "three")]
    wait_for(lambda: all(one.standing() == "ready" for one in made), "all are in balance")
    return made


def shared(port: int, addresses: tuple[str, ...] = LOCALHOST, **more: Any) -> bulle.PortMapping:
    return bulle.PortMapping(80, host_port=port, host_addresses=addresses, shared="app/web", **more)


def counted(times: int, answer: Callable[[], str]) -> Counter[str]:
    """Who answers so many times."""
    return Counter(answer().partition(" ")[0] for _ in range(times))


def test_connections_are_spread(net: Networked) -> None:
    port = free_ports(1)
    with other_machine(4) as outside:
        mapping = shared(port, ("0.0.0.0", "::"))
        three(net, mapping, replace(mapping, protocol="udp"))
        for address in LOCALHOST:
            for protocol in ("tcp", "udp"):
                found = counted(60, lambda address=address, protocol=protocol: ask(address, port, protocol))  # type: ignore[misc]
                assert set(found) == {"one", "two", "three"} and min(found.values()) >= 5, (address, protocol, found)
        lines = outside.python(FORTY, outside.here, str(port)).splitlines()
        assert {line.split()[0] for line in lines} == {"one", "two", "three"}
        assert {line.split()[1] for line in lines} == {outside.address}, "the client's own address"
        assert net("port", "two").splitlines() == net("port", "three").splitlines() != [], "each says what leads to it"


def test_one_client_stays_with_its_replica(net: Networked) -> None:
    port = free_ports(1)
    made = three(net, shared(port, ("0.0.0.0", "::1"), balance="sticky"))

    def homes() -> dict[str, str]:
        """The replica of each client."""
        sources = [f"127.0.0.{number}" for number in range(1, 41)]
        found = {}
        for source in sources:
            ((found[source], times),) = counted(3, lambda source=source: ask("127.0.0.1", port, source=source)).items()  # type: ignore[misc]
            assert times == 3, "always the same"
        return found

    before = homes()
    assert set(before.values()) == {"one", "two", "three"}
    assert len(counted(5, lambda: ask("::1", port))) == 1
    made[1].withdraw()
    without = homes()
    assert {source for source in before if before[source] != without[source]} == {source for source in before if before[source] == "two"}
    made[1].remove(force=True)
    two = start(net, "two", shared(port, ("0.0.0.0", "::1"), balance="sticky"))
    wait_for(lambda: two.standing() == "ready", "it listens")
    assert homes() == before, "who comes in its place has its clients"


def another_keeper(net: Networked) -> None:
    """Kill it, and wait for the next."""
    before = places.keeper_pid(net.home)
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: places.keeper_pid(net.home) not in (0, before), "another keeper")


def echoing(address: str, port: int) -> socket.socket:
    """A connection to the one that echoes."""
    while True:
        made = socket.create_connection((address, port), 5)
        with suppress(OSError):
            made.sendall(b"!")
            if made.recv(100) == b"two!":
                return made
        made.close()


def test_who_is_withdrawn_finishes_what_it_has(net: Networked) -> None:
    port = free_ports(1)
    mapping = shared(port)
    start(net, "one", mapping, replace(mapping, protocol="udp"))
    two = start(net, "two", mapping, command=("/usr/bin/python3", "-c", ECHO, "two"))
    wait_for(lambda: two.standing() == "ready" and ask("127.0.0.1", port, "udp").startswith("one "), "both listen")
    for address in LOCALHOST:
        with closing(echoing(address, port)) as standing:
            two.withdraw()
            assert two.standing() == "withdrawn"
            assert counted(20, lambda: ask("127.0.0.1", port)) == counted(20, lambda: ask("::1", port)) == Counter({"one": 20})
            assert net.run("--", "nslookup", "-type=a", "web").count("Address") == 2, "the name server's, and one"
            standing.sendall(b"?")
            assert standing.recv(100) == b"two?", "the connection that stood goes on"
            another_keeper(net)
            wait_for(lambda: ask("::1", port).startswith("one "), "its relay")
            assert counted(20, lambda: ask("127.0.0.1", port)) == Counter({"one": 20}), "it knows who was withdrawn"
        two.stop(timeout_s=0)
        two.start()
        wait_for(lambda: two.standing() == "ready", "its next life is in balance")


def test_who_is_healthy_is_in_balance(net: Networked) -> None:
    port = free_ports(1)
    mapping = shared(port)
    made = [start(net, name, mapping, replace(mapping, protocol="udp"), **CHECK) for name in ("one", "two")]
    for address in LOCALHOST:
        assert ask(address, port) == "ConnectionRefusedError", "nobody is, so it is refused, and at once"
        assert ask(address, port, "udp", 2) in ("ConnectionRefusedError", "PermissionError")
    assert net.run("--", "nslookup", "-type=a", "web").count("Address") == 3, "a name leads to those that run where none is healthy"
    net("exec", "one", "touch", "/tmp/healthy")
    wait_for(lambda: made[0].standing() == "ready", "one is healthy")
    for address in LOCALHOST:
        for protocol in ("tcp", "udp"):
            assert counted(10, lambda address=address, protocol=protocol: ask(address, port, protocol)) == Counter({"one": 10})  # type: ignore[misc]
    assert net.address("one") in net.run("--", "nslookup", "-type=a", "web") and net.run("--", "nslookup", "-type=a", "web").count("Address") == 2
    net("exec", "two", "touch", "/tmp/healthy")
    wait_for(lambda: set(counted(20, lambda: ask("127.0.0.1", port))) == {"one", "two"}, "both are")
    before = places.keeper_pid(net.home)
    os.kill(before, signal.SIGKILL)
    net("exec", "one", "rm", "/tmp/healthy")
    wait_for(lambda: counted(20, lambda: ask("127.0.0.1", port)) == Counter({"two": 20}), "the unhealthy one is out, whoever is keeper")
    for name in ("one", "two"):
        net("exec", name, "rm", "-f", "/tmp/healthy")
    wait_for(lambda: ask("127.0.0.1", port) == "ConnectionRefusedError", "none is left")
    net("exec", "two", "touch", "/tmp/healthy")
    wait_for(lambda: ask("127.0.0.1", port).startswith("two "), "one is back")


def test_those_that_end_leave_at_once(net: Networked) -> None:
    port = free_ports(1)
    made = three(net, shared(port))
    os.kill(made[0].state().pid, signal.SIGKILL)
    wait_for(lambda: "one" not in counted(20, lambda: ask("127.0.0.1", port)), "a crash")
    ending = subprocess.Popen([*places.command_line(), "stop", "-t", "3", "two"], env=net.environment, stdout=subprocess.DEVNULL)
    try:  # the server is process 1, which a TERM does not end
        wait_for(lambda: counted(20, lambda: ask("127.0.0.1", port)) == Counter({"three": 20}), "what is being stopped has no new connections")
        assert made[1].state().status == "running"
    finally:
        assert ending.wait(30) == 0
    made[2].remove(force=True)
    for address in LOCALHOST:
        assert ask(address, port) == "ConnectionRefusedError"
    with closing(socket.socket()) as mine:
        mine.bind(("127.0.0.1", port))  # the port is given back with its last


def test_nobody_is_refused_for_one_that_was_just_killed(net: Networked) -> None:
    port = free_ports(1)
    made = three(net, shared(port))
    keeper = places.keeper_pid(net.home)
    os.kill(keeper, signal.SIGSTOP)
    try:
        for one in made[:2]:
            pidfd = os.pidfd_open(one.state().pid)
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [], 10)  # until then it takes connections, which end with it
            os.close(pidfd)
        with ThreadPoolExecutor(20) as pool:
            answers = [pool.submit(ask, "127.0.0.1", port, patience_s=20) for _ in range(20)]
            wait_for(lambda: sum(one.done() for one in answers) > 0, "those that are led to the third are answered")
            time.sleep(0.1)  # so that others have been led to the dead
            os.kill(keeper, signal.SIGCONT)
            assert {one.result().partition(" ")[0] for one in answers} == {"three"}
    finally:
        os.kill(keeper, signal.SIGCONT)


def test_who_may_have_a_port(net: Networked) -> None:
    port = free_ports(1)
    start(net, "one", shared(port))
    for mapping in (replace(shared(port), shared="app/other"), replace(shared(port), shared="")):
        with pytest.raises(bulle.BulleError, match="container one publishes it"):
            start(net, "other", mapping)
        net("rm", "-f", "other")
    two = start(net, "two", shared(port))
    wait_for(lambda: two.standing() == "ready", "it listens")
    net("rm", "-f", "one")
    assert counted(10, lambda: ask("127.0.0.1", port)) == Counter({"two": 10}), "the group outlives its first"
    with closing(socket.socket()) as mine, pytest.raises(OSError, match="in use"):
        mine.bind(("127.0.0.1", port))


def test_a_replica_that_does_not_listen_yet(net: Networked) -> None:
    port = free_ports(1)
    three(net, shared(port))
    late = "import os, sys, time\nwhile not os.path.exists('/tmp/now'): time.sleep(0.01)\nexec(sys.argv.pop())"
    made = start(net, "late", shared(port), command=("/usr/bin/python3", "-c", late, "late", "80", SERVER))
    assert set(counted(40, lambda: ask("127.0.0.1", port))) == {"one", "two", "three"}, "nobody is refused"
    assert made.standing() == "unready"
    net("exec", "late", "touch", "/tmp/now")
    wait_for(lambda: "late" in counted(20, lambda: ask("127.0.0.1", port)), "it is in balance by itself")


def test_rules_that_are_flushed_are_put_back(net: Networked) -> None:
    port = free_ports(1)
    three(net, shared(port))
    assert f"balance_tcp_127_0_0_1_{port}" in net("network", "rules")
    subprocess.run(["nft", "delete", "table", "inet", table_name(net.home)], check=True)
    with suppress(AssertionError):
        ask("127.0.0.1", port)
    wait_for(lambda: set(counted(20, lambda: ask("127.0.0.1", port))) == {"one", "two", "three"}, "all are led to again")
