"""Published ports, from outside: every form of -p, who is reached from where and seen as whom, who has a port that is taken, and changing them."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bulle_testing import places
from bulle_testing.networking import IMAGE, Networked, OtherMachine, ask, free_ports, other_machine
from bulle_testing.running import wait_for

pytestmark = [pytest.mark.root, pytest.mark.programs("nft", "ip", "unshare", "nsenter")]
ARCHIVE = "python_archive"


@pytest.fixture
def outside() -> Iterator[OtherMachine]:
    with other_machine(3) as made:
        yield made


def gateway(net: Networked, network: str = "bridge") -> str:
    return str(net.network(network)["IPAM"]["Config"][0]["Gateway"])


def test_this_machine_alone_unless_an_address_is_named(net: Networked, outside: OtherMachine) -> None:
    port = free_ports(1)
    net.start("web", "-p", f"{port}:80")
    for address in ("127.0.0.1", "::1"):
        assert ask(address, port).startswith("web ")
    assert ask("127.0.0.1", port) == f"web {gateway(net)}"
    for address in (outside.here, outside.here6):
        assert outside.ask(address, port) == "ConnectionRefusedError", "not published there"
        assert ask(address, port) == "ConnectionRefusedError"
    assert net("port", "web").splitlines() == [f"80/tcp -> 127.0.0.1:{port}", f"80/tcp -> [::1]:{port}"]
    assert net("port", "web", "80") == net("port", "web", "80/tcp") == f"127.0.0.1:{port}\n[::1]:{port}"
    assert net("ps", "--format", "{{.Ports}}") == f"127.0.0.1:{port}->80/tcp, [::1]:{port}->80/tcp"
    assert "no public port '81' published for web" in net.refused("port", "web", "81")
    net("stop", "-t", "0", "web")
    assert ask("127.0.0.1", port) == ask("::1", port) == "ConnectionRefusedError"
    assert net("port", "web") == "" and net("ps", "-a", "--format", "{{.Ports}}") == ""


def test_everybody_and_the_client_s_own_address(net: Networked, outside: OtherMachine) -> None:
    port = free_ports(1)
    net.start("web", "-p", f"0.0.0.0:{port}:80", "-p", f"0.0.0.0:{port}:80/udp")
    for protocol in ("tcp", "udp"):
        assert outside.ask(outside.here, port, protocol) == f"web {outside.address}", "as in Docker without its proxy"
        assert ask("127.0.0.1", port, protocol).startswith("web ")
        assert ask(outside.here, port, protocol).startswith("web "), "by any of this machine's own addresses"
    assert net("port", "web").splitlines() == [f"80/tcp -> 0.0.0.0:{port}", f"80/udp -> 0.0.0.0:{port}"]


def test_the_setting_for_where_ports_are_published(net: Networked, outside: OtherMachine) -> None:
    port = free_ports(1)
    net("run", "-d", "--name", "web", "-v", "/usr:/usr:ro", "-p", f"{port}:80", IMAGE, "httpd", "-f", BULLE_PUBLISH_ADDRESS="0.0.0.0")
    assert set(net("port", "web", "80").splitlines()) == {f"0.0.0.0:{port}", f"[::]:{port}"}
    # Python's own client would do; what counts is that there is a connection at all, over both versions.
    for address in (outside.here, outside.here6):
        script = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2).close(); print('connected')"
        assert outside.python(script, address, str(port)) == "connected"
    assert "cannot be used" in net.refused("run", "-p", "80", IMAGE, "true", code=125, BULLE_PUBLISH_ADDRESS="nowhere")


def test_one_address(net: Networked, outside: OtherMachine) -> None:
    port = free_ports(1)
    net.start("web", "-p", f"{outside.here}:{port}:80")
    net.start("other", "-p", f"127.0.0.1:{port}:80")
    assert outside.ask(outside.here, port) == f"web {outside.address}"
    assert ask("127.0.0.1", port).startswith("other ")
    assert net("port", "web") == f"80/tcp -> {outside.here}:{port}"
    assert "it is no address of this machine" in net.refused("run", "--rm", "-p", "203.0.113.1:80:80", IMAGE, "true", code=125)


def test_ipv6(net: Networked, outside: OtherMachine) -> None:
    port = free_ports(3)
    net("network", "create", "--ipv6", "six")
    net.start("web", "--network", "six", "-p", f"[{outside.here6}]:{port}:80", "-p", f"[::]:{port + 1}:80", "-p", f"[::1]:{port + 2}:80")
    net.start("old", "-p", f"[{outside.here6}]:{port + 2}:80")
    assert outside.ask(outside.here6, port) == f"web {outside.address6}"
    assert outside.ask(outside.here6, port + 1) == f"web {outside.address6}"
    assert ask("::1", port + 1).startswith("web ") and ask("::1", port + 2).startswith("web ")
    assert ask("::1", port + 1, "udp", 0.3) in ("ConnectionRefusedError", "TimeoutError")
    assert outside.ask(outside.here6, port + 2).startswith("old "), "a container without IPv6 is served by a relay"
    assert f"80/tcp -> [::]:{port + 1}" in net("port", "web").splitlines()


def test_udp_and_the_other_loopback(net: Networked) -> None:
    port = free_ports(1)
    net.start("web", "-p", f"{port}:80/udp")
    for address in ("127.0.0.1", "::1"):
        assert ask(address, port, "udp").startswith("web ")
        assert ask(address, port, "tcp") == "ConnectionRefusedError"
    assert net("port", "web", "80/udp").splitlines() == [f"127.0.0.1:{port}", f"[::1]:{port}"]


def test_ranges(net: Networked) -> None:
    port = free_ports(11)
    net.start("web", "-p", f"127.0.0.1:{port}-{port + 2}:8000-8002", "-p", f"127.0.0.1:{port + 4}-{port + 5}:80/udp", ports=(80, 8000, 8001, 8002))
    for number in range(3):
        assert ask("127.0.0.1", port + number).startswith("web ")
    assert net("port", "web", "80/udp") == f"127.0.0.1:{port + 4}"
    net.start("next", "-p", f"127.0.0.1:{port + 4}-{port + 5}:80/udp")
    assert net("port", "next") == f"80/udp -> 127.0.0.1:{port + 5}", "the first that is free"
    words = net.refused("run", "--rm", "-p", f"127.0.0.1:{port + 4}-{port + 5}:80/udp", IMAGE, "true", code=125)
    assert f"no port of {port + 4}-{port + 5} is free" in words
    same = f"{port + 8}-{port + 10}"
    net.start("same", "-p", f"127.0.0.1:{same}:{same}")
    assert net("ps", "--filter", "name=same", "--format", "{{.Ports}}") == f"127.0.0.1:{same}->{same}/tcp", "as Docker writes it"


def test_any_free_port(net: Networked) -> None:
    net.start("web", "-p", "80", "-p", "127.0.0.1::80/udp")
    tcp, udp = net("port", "web", "80/tcp").splitlines(), net("port", "web", "80/udp")
    port = int(tcp[0].rpartition(":")[2])
    assert tcp == [f"127.0.0.1:{port}", f"[::1]:{port}"], "the same port of both"
    assert ask("127.0.0.1", port).startswith("web ") and ask("127.0.0.1", int(udp.rpartition(":")[2]), "udp").startswith("web ")


def test_what_is_exposed(net: Networked, tmp_path: Path) -> None:
    (tmp_path / "Containerfile").write_text(f"FROM {IMAGE}\nEXPOSE 80 53/udp\n")
    net("build", "-t", "exposing", str(tmp_path))
    net("run", "-d", "--name", "web", "-v", "/usr:/usr:ro", "-P", "--expose", "9000-9001", "-p", "127.0.0.1::9000", "exposing", "sleep", "100")
    ports = {line.partition(" ->")[0]: line for line in net("port", "web").splitlines()}
    assert sorted(ports) == ["53/udp", "80/tcp", "9000/tcp", "9001/tcp"]
    assert net("port", "web", "9000").count("\n") == 0, "one that is published already is not published twice"


@pytest.mark.parametrize(
    "text",
    [
        "", "80:", ":", "0", "65536", "80/", "80/icmp", "a:80", "1-2:80-82", "2-1:80", "1.2.3.4.5:80:80", "host:80:80", "[::1:80:80", "::1:80:80",
        "80:80:80:80", "-1", "٨٠",
    ],
)  # fmt: skip
def test_wrong_mappings(net: Networked, text: str) -> None:
    words = net.refused("run", "--rm", f"--publish={text}", IMAGE, "true", code=125)
    assert words.startswith(f"invalid publish: '{text}'")
    assert net("ps", "-aq") == ""


# Who has it


def test_a_port_that_another_container_has(net: Networked) -> None:
    port = free_ports(2)
    net.start("first", "-p", f"{port}:80")
    for mapping in (f"{port}:80", f"127.0.0.1:{port}:80", f"[::1]:{port}:80", f"0.0.0.0:{port}:80"):
        words = net.refused("run", "--rm", "-p", f"{port + 1}:81", "-p", mapping, IMAGE, "true", code=125)
        assert f":{port}/tcp is already taken: container first publishes it" in words, mapping
        assert ask("127.0.0.1", port + 1) == "ConnectionRefusedError", "what it had taken before was given back"
    assert net("ps", "-aq").split() == [net.inspect("first", ".Id")[:12]], "--rm leaves nothing"
    assert "container first publishes it" in net.refused("run", "-d", "--name", "kept", "-p", f"{port}:80", IMAGE, "sleep", "100", code=125)
    assert net("ps", "-a", "--filter", "name=kept", "--format", "{{.State}}") == "created"
    net("rm", "-f", "first")
    net("start", "kept")
    assert net("port", "kept", "80").splitlines()[0] == f"127.0.0.1:{port}"
    net("run", "-d", "--name", "other", "-p", f"{port}:80/udp", IMAGE, "sleep", "100")


def test_a_port_that_a_program_has(net: Networked) -> None:
    port = free_ports(1)
    for kind, protocol in ((socket.SOCK_STREAM, "tcp"), (socket.SOCK_DGRAM, "udp")):
        with closing(socket.socket(socket.AF_INET, kind)) as mine:
            mine.bind(("0.0.0.0", port))
            if protocol == "tcp":
                mine.listen()
            words = net.refused("run", "--rm", "-p", f"{port}:80/{protocol}", IMAGE, "true", code=125)
            name = Path("/proc/self/comm").read_text().strip()
            assert f"127.0.0.1:{port}/{protocol} is already taken: {name} (pid {os.getpid()}) has it" in words
    assert net("ps", "-aq") == ""


def test_no_program_takes_a_published_port(net: Networked) -> None:
    port = free_ports(1)
    net.start("web", "-p", f"{port}:80", "-p", f"0.0.0.0:{port}:80/udp")
    for kind, address in ((socket.SOCK_STREAM, "127.0.0.1"), (socket.SOCK_STREAM, "::1"), (socket.SOCK_DGRAM, "0.0.0.0")):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with closing(socket.socket(family, kind)) as mine, pytest.raises(OSError, match="in use"):
            mine.bind((address, port))


# From where


def test_hairpin(net: Networked, outside: OtherMachine) -> None:
    """Containers reach a port that is published to everybody by this machine's own addresses: from another network, from its own, and itself."""
    port = free_ports(2)
    net("network", "create", "shop")
    net.start("web", "-p", f"0.0.0.0:{port}:80", "-p", f"{port + 1}:80")
    net.start("near")
    net.start("far", "--network", "shop")
    for client in ("near", "far", "web"):
        for protocol in ("tcp",):
            for address in (outside.here, gateway(net)):
                assert net.ask_from(client, address, port, protocol).startswith("web "), (client, address)
    for client in ("near", "far"):
        for address in (outside.here, gateway(net)):
            assert net.ask_from(client, address, port + 1, patience_s=0.5) != f"web {net.address(client, 'shop' if client == 'far' else 'bridge')}"
            assert "web" not in net.ask_from(client, address, port + 1, patience_s=0.5), "published to this machine alone is not to containers"


def test_shared_networks_publish_by_their_owner(net: Networked) -> None:
    port = free_ports(1)
    net.start("main", "-p", f"{port}:81", ports=(80,))
    net.start("side", "--network", "container:main", ports=(81,))
    assert ask("127.0.0.1", port).startswith("side ")


def test_host_and_none_publish_nothing(net: Networked) -> None:
    for mode in ("host", "none"):
        net("run", "-d", "--name", mode, "--network", mode, "-p", "80", IMAGE, "sleep", "100")
        assert net("port", mode) == ""
        assert f"container {mode} cannot publish ports: its network is {mode}" in net.refused("port", "add", mode, "80")


def test_an_internal_network_is_reached_from_this_machine_alone(net: Networked, outside: OtherMachine) -> None:
    port = free_ports(2)
    net("network", "create", "--internal", "inside")
    net.start("web", "--network", "inside", "-p", f"{port}:80", "-p", f"0.0.0.0:{port + 1}:80")
    said = [ask("127.0.0.1", port), ask("::1", port)]
    assert all(word.startswith("web ") for word in said), said
    assert "web" not in outside.ask(outside.here, port + 1)


# Changing them


def test_adding_and_removing_while_it_runs(net: Networked) -> None:
    port = free_ports(4)
    net.start("web", "-p", f"{port}:80")
    with closing(socket.create_connection(("127.0.0.1", port))) as standing:
        assert sorted(net("port", "add", "web", f"127.0.0.1:{port + 1}:80", f"{port + 2}:80/udp").splitlines()) == [
            f"80/tcp -> 127.0.0.1:{port}", f"80/tcp -> 127.0.0.1:{port + 1}", f"80/tcp -> [::1]:{port}",
            f"80/udp -> 127.0.0.1:{port + 2}", f"80/udp -> [::1]:{port + 2}",
        ]  # fmt: skip
        assert standing.recv(100).startswith(b"web ")
    assert ask("127.0.0.1", port + 1).startswith("web ") and ask("::1", port + 2, "udp").startswith("web ")
    assert net.inspect("web", ".HostConfig.PortBindings")["80/tcp"][-1] == {"HostIp": "127.0.0.1", "HostPort": str(port + 1)}
    assert "container web publishes it" in net.refused("port", "add", "web", f"{port + 3}:80", f"{port}:80")
    assert ask("127.0.0.1", port + 3) == "ConnectionRefusedError", "all or none"
    assert "does not publish that port" in net.refused("port", "rm", "web", "9999")
    net("port", "rm", "web", f"{port}:80")
    assert ask("127.0.0.1", port) == ask("::1", port) == "ConnectionRefusedError"
    assert ask("127.0.0.1", port + 1).startswith("web ")
    with closing(socket.socket()) as mine:
        mine.bind(("127.0.0.1", port))
    # Kept over a restart by hand and by policy, and what was removed stays away.
    net("restart", "-t", "0", "web")
    net.wait_ready("web")
    assert set(net("port", "web").splitlines()) == {
        f"80/tcp -> 127.0.0.1:{port + 1}", f"80/udp -> 127.0.0.1:{port + 2}", f"80/udp -> [::1]:{port + 2}",
    }  # fmt: skip
    net("update", "--restart", "always", "web")
    os.kill(net.inspect("web", ".State.Pid"), signal.SIGKILL)
    wait_for(lambda: ask("127.0.0.1", port + 1).startswith("web "), "the port after a restart by policy")
    assert ask("127.0.0.1", port) == "ConnectionRefusedError"
    # And while it is stopped.
    net("stop", "-t", "0", "web")
    net("port", "add", "web", f"127.0.0.1:{port + 3}:80")
    net("port", "rm", "web", f"127.0.0.1:{port + 1}:80")
    net("start", "web")
    wait_for(lambda: ask("127.0.0.1", port + 3).startswith("web "), "the port that was added")
    assert ask("127.0.0.1", port + 1) == "ConnectionRefusedError"


def test_ports_follow_a_change_of_networks(net: Networked) -> None:
    """What is published leads to the container also when the network that it was reached by is taken away."""
    port = free_ports(1)
    net("network", "create", "shop")
    net.start("web", "-p", f"{port}:80")
    net("network", "connect", "shop", "web")
    net("network", "disconnect", "bridge", "web")
    for address in ("127.0.0.1", "::1"):
        assert ask(address, port, patience_s=1).startswith("web "), address
    assert f"default via {gateway(net, 'shop')}" in net("exec", "web", "ip", "route")
    net("network", "disconnect", "shop", "web")
    assert net("port", "web").count("80/tcp") == 2, "they wait for it"
    net("network", "connect", "bridge", "web")
    for address in ("127.0.0.1", "::1"):
        assert ask(address, port, patience_s=1).startswith("web "), address


def test_ports_lead_to_the_next_life_of_a_container(net: Networked) -> None:
    """Nothing of an old connection's way leads a new one astray: one that is stopped and started, and another one in its place."""
    port = free_ports(1)
    for name in ("one", "two", "three"):
        net.start(name, "-p", f"{port}:80", "-p", f"{port}:80/udp")
        for protocol in ("tcp", "udp"):
            assert ask("127.0.0.1", port, protocol).startswith(f"{name} ")
        net("rm", "-f", name)
    assert ask("127.0.0.1", port) == "ConnectionRefusedError"
    # The same source port, too: a client that goes on sending reaches whoever has the port now.
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as client:
        client.settimeout(0.3)
        client.connect(("127.0.0.1", port))
        for name in ("four", "five"):
            net.start(name, "-p", f"{port}:80/udp")

            def answer(name: str = name) -> bool:
                try:
                    client.send(b"who?")
                    return client.recv(100).startswith(f"{name} ".encode())
                except OSError:
                    return False

            wait_for(answer, f"an answer of {name}")
            net("rm", "-f", name)


def test_the_keeper_holds_no_more_than_it_needs(net: Networked) -> None:
    """After containers with ports came and went, the keeper has as many descriptors as before."""
    net("run", "-d", "--name", "stays", "-p", "80", IMAGE, "sleep", "100")
    keeper = places.keeper_pid(net.home)
    before = len(os.listdir(f"/proc/{keeper}/fd"))
    for _ in range(3):
        net.run("-p", "80", "-p", "81/udp", "--", "true")
    net("port", "add", "stays", "99")
    net("port", "rm", "stays", "99")
    wait_for(lambda: len(os.listdir(f"/proc/{keeper}/fd")) <= before, "the keeper closed what it had opened")
    assert places.keeper_pid(net.home) == keeper
    assert re.fullmatch(r"127.0.0.1:\d+\n\[::1\]:\d+", net("port", "stays", "80"))
