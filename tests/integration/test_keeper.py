"""The keeper of a home's networks killed, ended and asked by many at once: everything is there all the same, or gone for good."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from bulle.network.naming import table_name
from bulle_testing import places
from bulle_testing.networking import IMAGE, Networked, ask, free_ports
from bulle_testing.running import wait_for

pytestmark = [pytest.mark.alone, pytest.mark.root, pytest.mark.programs("nft", "ip", "unshare", "nsenter")]
ARCHIVE = "python_archive"


def kill_keeper(net: Networked) -> int:
    """Kill it as the kernel's out-of-memory killer would; returns its pid (0: there was none)."""
    pid = places.keeper_pid(net.home)
    if pid:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return pid


def next_keeper(net: Networked, before: int) -> None:
    """Wait until there is another one."""
    wait_for(lambda: places.keeper_pid(net.home) not in (0, before), "another keeper, without a command that needs one")


@contextmanager
def deaf_keeper(net: Networked) -> Iterator[None]:
    """A keeper that hears nothing of what is asked in the block, and is killed at its end; another one is there after it."""
    keeper = places.keeper_pid(net.home)
    os.kill(keeper, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(keeper, signal.SIGKILL)
    next_keeper(net, keeper)


def table(net: Networked) -> str:
    """Our rules as nft shows them; empty where there are none."""
    done = subprocess.run(["nft", "list", "table", "inet", table_name(net.home)], capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else ""


def devices(net: Networked) -> list[str]:
    """The bridges of this home."""
    found = []
    for name in os.listdir("/sys/class/net"):
        with suppress(OSError):
            if Path("/sys/class/net", name, "ifalias").read_text().strip().endswith(f" of {net.home}"):
                found.append(name)
    return found


def test_killed_while_containers_run(net: Networked) -> None:
    """Connections go on, nothing of the network is missing for a moment longer than it takes, and everything is as it was."""
    port = free_ports(2)
    net("network", "create", "--ipv6", "shop")
    net.start("web", "--network", "shop", "-p", f"{port}:80", "-p", "127.0.0.1::80/udp", "--egress", "none")
    net.start("peer", "--network", "shop")
    echo = "import socket; c = socket.create_server(('', 99)).accept()[0]\nwhile data := c.recv(100): c.sendall(data)"
    net("exec", "-d", "web", "/usr/bin/python3", "-c", echo)
    net("port", "add", "web", f"127.0.0.1:{port + 1}:99")
    any_port = net("port", "web", "80/udp")

    def given() -> list[str]:
        """Its addresses, but for those that an interface makes for itself a moment after it is up."""
        return [line.replace(" tentative ", "") for line in net("exec", "web", "ip", "-o", "address").splitlines() if "fe80:" not in line]

    links = given()

    def connected() -> socket.socket | None:
        with suppress(OSError):
            return socket.create_connection(("127.0.0.1", port + 1), 2)
        return None

    wait_for(lambda: _echoes(connected()), "the server that repeats")
    net("exec", "-d", "web", "/usr/bin/python3", "-c", echo)
    standing = None
    while standing is None:
        standing = connected()
    with closing(standing):
        standing.settimeout(5)
        rules = _without_counts(table(net))
        for _ in range(3):
            before = kill_keeper(net)
            assert before
            standing.sendall(b"still there?")
            assert standing.recv(100) == b"still there?"
            assert ask("127.0.0.1", port).startswith("web "), "the rules are the kernel's"
            next_keeper(net, before)
            assert ask("::1", port).startswith("web "), "the relay is back"
            assert net.ask_from("peer", "web").startswith("web "), "and the names"
        standing.sendall(b"and now?")
        assert standing.recv(100) == b"and now?"
    assert _without_counts(table(net)) == rules
    assert net("port", "web", "80/udp") == any_port, "also a port that was chosen for it"
    assert given() == links
    with closing(socket.socket()) as mine, pytest.raises(OSError, match="in use"):
        mine.bind(("127.0.0.1", port))
    assert net.run("--network", "shop", "--", "nslookup", "-type=a", "web").count(net.address("web", "shop")) == 1


def _echoes(connection: socket.socket | None) -> bool:
    if connection is None:
        return False
    with closing(connection):
        connection.settimeout(1)
        try:
            connection.sendall(b"x")
            return connection.recv(1) == b"x"
        except OSError:
            return False


def _without_counts(text: str) -> list[str]:
    return sorted(re.sub(r" expires \S+| counter packets \d+ bytes \d+", "", text).replace(",", " ").split())


def test_killed_at_any_moment_of_a_start(net: Networked) -> None:
    """A start goes on with the next keeper; where it cannot, it fails with a sentence, and the next start works."""
    net("network", "create", "shop")
    net("network", "create", "second")
    port = free_ports(1)
    ended = threading.Event()
    killed = [0]
    began = time.monotonic()
    net("run", "--rm", "--network", "shop", "--network", "second", IMAGE, "true")
    slowness = max(1.0, (time.monotonic() - began) / 0.1)  # of a machine with other work: a keeper needs so much longer to answer

    def kill_again_and_again() -> None:
        while not ended.wait((0.003 + 0.02 * (killed[0] % 5)) * slowness):
            killed[0] += bool(kill_keeper(net))

    killer = threading.Thread(target=kill_again_and_again)
    killer.start()
    failed = []
    try:
        for number in range(12):
            flags = ("--network", "shop", "--network", "second", "-p", f"{port}:80")
            done = net.bulle("run", "--rm", *flags, IMAGE, "sh", "-c", "ip address show eth0 && ip address show eth1 && ip route | grep -c default")
            if done.returncode:
                assert done.returncode == 125 and done.stderr.startswith("bulle: ") and done.stderr.count("\n") == 1, done.stderr
                failed.append(done.stderr)
            else:
                assert done.stdout.count("inet ") == 2 and done.stdout.rstrip().endswith("\n1"), (number, done.stdout)
    finally:
        ended.set()
        killer.join()
    assert killed[0] >= 5
    assert len(failed) <= 4, failed
    assert net("ps", "-aq") == ""
    net.start("web", "--network", "shop", "-p", f"{port}:80")
    said = ask("127.0.0.1", port)
    standing = (net.bulle("exec", "web", "ip", "-o", "address").stdout, net("network", "rules"), devices(net))
    assert said.startswith("web "), standing


def test_killed_amid_connect_and_disconnect(net: Networked) -> None:
    net("network", "create", "late")
    net.start("web")
    net.start("peer", "--network", "late")
    for number in range(4):  # the spawner gives up on what dies within two seconds more than five times in a row
        verb = ("connect", "disconnect")[number % 2]
        process = subprocess.Popen([*places.command_line(), "network", verb, "late", "web"], env=net.environment)
        time.sleep(0.045 + 0.012 * number)
        before = kill_keeper(net)
        assert process.wait(30) == 0
        if before:
            next_keeper(net, before)
        interfaces = re.findall(r"^\d+: (\w+)", net("exec", "web", "ip", "address"), re.MULTILINE)
        assert interfaces == (["lo", "eth0", "eth1"] if verb == "connect" else ["lo", "eth0"]), (number, verb)
        if verb == "connect":
            # The interface is there before its address is, and a question that was asked between the two waits in vain.
            for one, other in (("web", "peer"), ("peer", "web")):
                wait_for(lambda one=one, other=other: net.ask_from(one, other, patience_s=3).startswith(f"{other} "), "an answer")  # type: ignore[misc]


def test_killed_between_commit_and_deed(net: Networked) -> None:
    """A keeper that comes finds what was meant: an interface that is missing is made, one that should be gone goes."""
    net("network", "create", "late")
    net.start("web")
    with deaf_keeper(net):
        connecting = subprocess.Popen([*places.command_line(), "network", "connect", "late", "web"], env=net.environment)
        wait_for(lambda: net.network("late")["Containers"], "what was asked is written down")
        connecting.kill()
        connecting.wait()
    wait_for(lambda: "eth1" in net("exec", "web", "ip", "address"), "the interface")
    with deaf_keeper(net):
        leaving = subprocess.Popen([*places.command_line(), "network", "disconnect", "late", "web"], env=net.environment)
        wait_for(lambda: not net.network("late")["Containers"], "what was asked is written down")
        leaving.kill()
        leaving.wait()
    wait_for(lambda: "eth1" not in net("exec", "web", "ip", "address"), "the interface goes")
    assert net.ask_from("web", "web").startswith("web ")


def test_killed_while_a_port_is_added(net: Networked) -> None:
    """The next one publishes what was written down, and the command that asks again is told so: it is there once."""
    net.start("web", "-p", "80")
    first = net("port", "web")
    for number in range(2):
        meant = net.inspect("web", ".HostConfig.PortBindings")
        with deaf_keeper(net):
            adding = subprocess.Popen([*places.command_line(), "port", "add", "web", "80"], env=net.environment)
            wait_for(lambda: net.inspect("web", ".HostConfig.PortBindings") != meant, "what was asked is written down")  # noqa: B023
        assert adding.wait(30) == 0
        lines = net("port", "web").splitlines()
        assert set(first.splitlines()) < set(lines) and len(lines) == (2 + number) * len(first.splitlines()), lines
    for line in lines:
        assert ask("127.0.0.1", int(line.rpartition(":")[2])).startswith("web ")
    net("port", "rm", "web", "80")
    assert net("port", "web") == ""
    net("port", "add", "web", "80")
    assert len(net("port", "web").splitlines()) == len(first.splitlines())


def test_a_port_that_does_not_stand_is_taken_back_and_published_again(net: Networked) -> None:
    """Somebody else has it when the next keeper comes: what is meant afterwards is told to that one too."""
    net.start("web", "-p", "81")
    port = free_ports(1)
    with socket.create_server(("127.0.0.1", port)):
        with deaf_keeper(net):
            line = [*places.command_line(), "port", "add", "web", f"127.0.0.1:{port}:80"]
            adding = subprocess.Popen(line, env=net.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            wait_for(lambda: "80/tcp" in net.inspect("web", ".HostConfig.PortBindings"), "what was asked is written down")
        adding.wait(30)
        assert str(port) not in net("port", "web")
        net("port", "rm", "web", f"{port}:80")
    net("port", "add", "web", f"127.0.0.1:{port}:80")
    assert f"80/tcp -> 127.0.0.1:{port}" in net("port", "web")
    assert ask("127.0.0.1", port).startswith("web ")


def test_killed_when_the_last_container_had_ended(net: Networked) -> None:
    """What it left on the machine is cleared by the next one."""
    net("network", "create", "shop")
    net("run", "-d", "--name", "web", "--network", "shop", "-p", "80", IMAGE, "sleep", "1000")
    keeper = places.keeper_pid(net.home)
    os.kill(keeper, signal.SIGSTOP)
    net("kill", "web")
    net("rm", "web")
    assert devices(net) and table(net)
    os.kill(keeper, signal.SIGKILL)
    wait_for(lambda: not devices(net) and not table(net), "that nothing is left")


def test_killed_with_its_container(net: Networked) -> None:
    """Both die at one moment: the ports are free, the names are gone, the next of the name has everything."""
    port = free_ports(1)
    net.start("other")
    for _ in range(3):
        net.start("web", "-p", f"{port}:80")
        pids = (places.keeper_pid(net.home), net.inspect("web", ".State.Pid"))
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: net("ps", "-q", "--filter", "name=web") == "", "its end")
        wait_for(lambda: ask("127.0.0.1", port, patience_s=0.3) == "ConnectionRefusedError", "the port is given back")
        net("rm", "web")
    assert net.ask_from("other", "web", patience_s=1) == "gaierror"


def test_told_to_end_while_containers_run(net: Networked) -> None:
    """As a machine that shuts down does: what runs keeps its network, and the next command has all of it."""
    port = free_ports(1)
    net.start("web", "-p", f"{port}:80")
    os.kill(places.keeper_pid(net.home), signal.SIGTERM)
    assert ask("127.0.0.1", port).startswith("web ")
    net.start("peer")
    assert net.ask_from("peer", "web").startswith("web ")
    assert ask("::1", port).startswith("web ")


def test_it_goes_with_everything_when_nothing_runs(net: Networked) -> None:
    net("network", "create", "shop")
    net("run", "-d", "--name", "web", "--network", "shop", "-p", "80", IMAGE, "sleep", "100")
    assert devices(net) and table(net) and places.keeper_pid(net.home)
    assert f"table inet {table_name(net.home)}" in net("network", "rules")
    net("stop", "-t", "0", "web")
    wait_for(lambda: not places.keeper_pid(net.home) and not devices(net) and not table(net), "the keeper's end")
    assert net("network", "rules") == ""
    net("start", "web")
    assert devices(net) and table(net)


def test_flushed_rules_come_back(net: Networked) -> None:
    port = free_ports(1)
    net.start("web", "-p", f"127.0.0.1:{port}:80", "--egress", "none")
    rules = _without_counts(table(net))
    for command in (["flush", "table", "inet", table_name(net.home)], ["delete", "table", "inet", table_name(net.home)]):
        subprocess.run(["nft", *command], check=True)
        wait_for(lambda: _without_counts(table(net)) == rules, "the rules are put back")
        assert ask("127.0.0.1", port).startswith("web ")


# Many at once


def test_fifty_starts_at_once(net: Networked) -> None:
    """Addresses, ports, interfaces and names never clash."""
    net("network", "create", "shop")

    def start(number: int) -> str:
        return net("run", "-d", "--name", f"c{number}", "--network", "shop", "-p", "80", "-p", "127.0.0.1::53/udp", IMAGE, "sleep", "1000")

    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(start, range(50)))) == 50
    containers = net.network("shop")["Containers"].values()
    assert len({one["IPv4Address"] for one in containers}) == len({one["MacAddress"] for one in containers}) == 50
    lines = net("ps", "--format", "{{.Ports}}").splitlines()
    ports = [found for line in lines for found in re.findall(r"127\.0\.0\.1:(\d+)->(?:80/tcp|53/udp)", line)]
    assert len(lines) == 50 and len(ports) == 100
    assert len({(port, kind) for line in lines for port, kind in re.findall(r"127\.0\.0\.1:(\d+)->(80/tcp|53/udp)", line)}) == 100
    names = [f"c{number}" for number in range(50)]
    known = sorted(one["IPv4Address"].partition("/")[0] for one in containers)
    script = "for name in " + " ".join(names) + "; do nslookup -type=a $name | awk '/^Address: 10/ {print $2}'; done"
    assert sorted(net.run("--network", "shop", "--", "sh", "-c", script).split()) == known
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: net("rm", "-f", name), names))


def test_one_port_for_fifty(net: Networked) -> None:
    """Of many starts at once that want one port, one has it; the others say who."""
    port = free_ports(1)

    def start(number: int) -> subprocess.CompletedProcess[str]:
        return net.bulle("run", "-d", "--rm", "--name", f"c{number}", "-p", f"{port}:80", IMAGE, "sleep", "1000")

    with ThreadPoolExecutor(12) as pool:
        done = list(pool.map(start, range(24)))
    winners = [one for one in done if one.returncode == 0]
    assert len(winners) == 1
    name = net("ps", "--format", "{{.Names}}")
    assert all(f"already taken: container {name} publishes it" in one.stderr for one in done if one.returncode), [one.stderr for one in done]
    wait_for(lambda: net("ps", "-aq").count("\n") == 0, "those that failed are gone")


@pytest.mark.slow
def test_two_hundred_on_one_network(net: Networked) -> None:
    net("network", "create", "crowd")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: net("run", "-d", "--name", f"n{number}", "--network", "crowd", IMAGE, "sleep", "1000"), range(200)))
    addresses = {one["IPv4Address"] for one in net.network("crowd")["Containers"].values()}
    assert len(addresses) == 200
    net.start("last", "--network", "crowd")
    net.start("client", "--network", "crowd")
    assert net.ask_from("client", "last").startswith("last ")
    script = "import socket\nfor number in range(200): socket.gethostbyname(f'n{number}')\nprint('all')"
    assert net.python("client", script) == "all"
    before = kill_keeper(net)
    next_keeper(net, before)
    assert net.python("client", script) == "all"
