"""Networks of containers, from outside: addresses and how long they last, several networks, isolation between them, and the verbs of ``network``."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from bulle.isolation.driver import Feature
from bulle_testing.networking import IMAGE, Networked, ip, networked, other_machine
from bulle_testing.running import Level, Machine, usable, wait_for

pytestmark = [pytest.mark.root, pytest.mark.programs("nft", "ip", "unshare", "nsenter")]
ARCHIVE = "python_archive"


def interfaces(text: str) -> dict[str, list[str]]:
    """What ``ip address`` says: CIDRs by interface, without link-local ones."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if heading := re.match(r"\d+: ([^:@]+)", line):
            found[heading[1]] = []
        elif (words := line.split()) and words[0] in ("inet", "inet6") and not words[1].startswith("fe80"):
            found[list(found)[-1]].append(words[1])
    return found


# The levels


def test_levels_without_networks_say_so(place: Machine, level: Level) -> None:
    """A level has networks, or refuses every flag that needs one in the same words."""
    with networked(place) as net:
        if level.driver == "chroot":
            for wanted in (("--network", "bridge"), ("--network", "none"), ("-p", "80", "--network", "bridge")):
                assert "isolation level 'chroot' has no " in net.refused("run", *level.flags, *wanted, IMAGE, "true", code=125)
            assert net("run", "--rm", *level.flags, IMAGE, "ip", "address") != ""
            assert net("ps", "-aq") == ""
            return
        assert list(interfaces(net.run(*level.flags, "--", "ip", "address"))) == ["lo", "eth0"]
        assert list(interfaces(net.run(*level.flags, "--network", "none", "--", "ip", "address"))) == ["lo"]
        if Feature.HOST_NETWORK in usable(level, place.home):
            mine = os.stat("/proc/self/ns/net").st_ino
            assert net.run(*level.flags, "--network", "host", "--", "readlink", "/proc/self/ns/net") == f"net:[{mine}]"
        else:
            assert "has no way onto the host's network" in net.refused("run", *level.flags, "--network", "host", IMAGE, "true", code=125)
        net.start("server", *level.flags)
        assert net.ask_from("server", "server").startswith("server 10.")


# Addresses


def test_the_default_network(net: Networked) -> None:
    text = net.run("--", "sh", "-c", "ip address; ip route; cat /etc/hosts /etc/resolv.conf; ping -c1 -W2 $(ip route | awk '/^default/ {print $3}')")
    subnet, gateway = (net.network("bridge")["IPAM"]["Config"][0][key] for key in ("Subnet", "Gateway"))
    address = interfaces(text)["eth0"][0]
    assert ip_network(subnet).prefixlen == 20 and address.endswith("/20") and ip_address(address[:-3]) in ip_network(subnet)
    assert f"default via {gateway} dev eth0" in text
    assert "nameserver 127.0.0.11\n" in text and "ndots:0" in text
    assert re.search(rf"^{address[:-3]}\t[0-9a-f]{{12}}$", text, re.MULTILINE), "its own name in /etc/hosts"
    assert "1 packets received" in text


def test_it_reaches_the_world_as_this_machine(net: Networked) -> None:
    with other_machine() as outside, outside.serving("outside", 80):
        net.start("inside")
        assert net.ask_from("inside", outside.address) == f"outside {outside.here}"
        assert net.ask_from("inside", outside.address, protocol="udp") == f"outside {outside.here}"
        assert outside.ask(net.address("inside"), 80) in ("TimeoutError", "ConnectionRefusedError"), "nobody comes in but by a published port"


def test_addresses_last_for_the_container_s_life(net: Networked) -> None:
    net("network", "create", "shop")
    net.start("first", "--network", "shop")
    mine, mac = net.address("first", "shop"), net.inspect("first", ".NetworkSettings.Networks.shop.MacAddress")
    net("stop", "-t", "0", "first")
    net("run", "-d", "--name", "second", "--network", "shop", IMAGE, "sleep", "100")
    assert net.address("second", "shop") != mine
    net("start", "first")
    assert (net.address("first", "shop"), net.inspect("first", ".NetworkSettings.Networks.shop.MacAddress")) == (mine, mac)
    assert mine in net("exec", "first", "ip", "address") and mac in net("exec", "first", "ip", "address")
    net("restart", "-t", "0", "first")
    assert mine in net("exec", "first", "ip", "address")
    net("rm", "-f", "first")
    # Its address is free, but not the next one's at once.
    net("run", "-d", "--name", "third", "--network", "shop", IMAGE, "sleep", "100")
    assert net.address("third", "shop") not in (mine, net.address("second", "shop"))
    net("run", "-d", "--name", "fourth", "--network", "shop", "--ip", mine, IMAGE, "sleep", "100")
    assert net.address("fourth", "shop") == mine


def test_chosen_addresses(net: Networked) -> None:
    net("network", "create", "--subnet", "10.113.7.0/24", "--gateway", "10.113.7.254", "--ip-range", "10.113.7.128/25", "shop")
    flags = ("--network", "shop", "--ip", "10.113.7.9", "--mac-address", "92:D0:C6:0a:29:33")
    text = net("run", "-d", "--name", "chosen", *flags, IMAGE, "sleep", "100") and net("exec", "chosen", "sh", "-c", "ip address; ip route")
    assert interfaces(text)["eth0"] == ["10.113.7.9/24"] and "92:d0:c6:0a:29:33" in text and "default via 10.113.7.254" in text
    in_range = interfaces(net.run("--network", "shop", "--", "ip", "address"))["eth0"][0].partition("/")[0]
    assert ip_address(in_range) in ip_network("10.113.7.128/25")
    refusals = {
        "10.113.7.9": "10.113.7.9 is taken on network shop: container chosen has it",
        "10.113.7.254": "is the gateway of network shop",
        "10.99.0.1": "10.99.0.1 is not an address of network shop: its subnet is 10.113.7.0/24",
        "10.113.7.256": "invalid IPv4 address",
        "::1": "invalid IPv4 address",
        "10.113.7.0": "10.113.7.0",
        "10.113.7.255": "10.113.7.255",
    }
    for address, words in refusals.items():
        assert words in net.refused("run", "--rm", "--network", "shop", "--ip", address, IMAGE, "true", code=125)
    assert "is not a valid mac address" in net.refused("run", "--rm", "--mac-address", "01:00:5e:00:00:01", IMAGE, "true", code=125)
    assert net("ps", "-aq").count("\n") == 0, "what was refused left nothing"


def test_ipv6(net: Networked) -> None:
    net("network", "create", "--ipv6", "--subnet", "fd77:88::/64", "six")
    net.start("server", "--network", "six", "--ip6", "fd77:88::77")
    assert net.address("server", "six", 6) == "fd77:88::77"
    net.start("client", "--network", "six")
    # At once: an address of ours is nobody else's, so that nothing waits for duplicates.
    assert net.ask_from("client", "fd77:88::77") == f"server {net.address('client', 'six', 6)}"
    assert net.ask_from("client", net.address("server", "six")) == f"server {net.address('client', 'six')}"
    with other_machine(2) as outside, outside.serving("outside", 80):
        assert net.ask_from("client", outside.address6) == f"outside {outside.here6}"
        assert outside.ask("fd77:88::77", 80) != f"server {outside.address6}", "nobody comes in but by a published port"
    assert "invalid IPv6 address" in net.refused("run", "--network", "six", "--ip6", "10.0.0.1", IMAGE, "true", code=125)


# Several networks


def test_several_networks_at_once(net: Networked) -> None:
    for name, subnet in (("front", "10.113.1.0/24"), ("back", "10.113.2.0/24")):
        net("network", "create", "--subnet", subnet, name)
    net.start("web", "--network", "front", "--network", "name=back,alias=store,ip=10.113.2.7")
    assert interfaces(net("exec", "web", "ip", "address")) == {"lo": ["127.0.0.1/8", "::1/128"], "eth0": ["10.113.1.2/24"], "eth1": ["10.113.2.7/24"]}
    assert "default via 10.113.1.1 dev eth0" in net("exec", "web", "ip", "route")
    assert net.run("--network", "back", "--", "nslookup", "-type=a", "store").count("10.113.2.7") == 1
    assert "10.113.1.2" in net.run("--network", "front", "--", "nslookup", "web")
    assert "10.113.2.7" in net.run("--network", "back", "--", "nslookup", "web")
    assert net.bulle("run", "--rm", "--network", "front", IMAGE, "nslookup", "store").returncode != 0, "an alias is known on its network alone"
    assert "conflicting options" in net.refused("run", "--network", "front", "--network", "none", IMAGE, "true", code=125)
    assert "network nowhere not found" in net.refused("run", "--network", "nowhere", IMAGE, "true", code=125)


def test_connect_and_disconnect_while_it_runs(net: Networked) -> None:
    net("network", "create", "--subnet", "10.113.3.0/24", "late")
    net.start("web")
    net.start("peer", "--network", "late")
    assert net.ask_from("web", "peer", patience_s=0.5) == "gaierror"
    net("network", "connect", "--ip", "10.113.3.33", "--alias", "shop", "late", "web")
    assert interfaces(net("exec", "web", "ip", "address"))["eth1"] == ["10.113.3.33/24"]
    assert net.ask_from("web", "peer") == "peer 10.113.3.33" and net.ask_from("peer", "shop").startswith("web 10.113.3.")
    assert "10.113.3.33" in net("exec", "web", "cat", "/etc/hosts")
    assert net.network("late")["Containers"][net.inspect("web", ".Id")]["IPv4Address"] == "10.113.3.33/24"
    assert "already on network late" in net.refused("network", "connect", "late", "web")
    net("network", "disconnect", "late", "web")
    assert list(interfaces(net("exec", "web", "ip", "address"))) == ["lo", "eth0"]
    assert net.ask_from("web", "peer", patience_s=0.5) == "gaierror" and net.ask_from("peer", "shop", patience_s=0.5) == "gaierror"
    assert "10.113.3.33" not in net("exec", "web", "cat", "/etc/hosts")
    assert "is not connected to network late" in net.refused("network", "disconnect", "late", "web")
    # Without any network it is alone, and comes back.
    net("network", "disconnect", "bridge", "web")
    assert list(interfaces(net("exec", "web", "ip", "address"))) == ["lo"]
    net("network", "connect", "late", "web")
    assert net.ask_from("web", "peer").startswith("peer 10.113.3.")
    assert "default via 10.113.3.1" in net("exec", "web", "ip", "route")


def test_connect_while_it_does_not_run(net: Networked) -> None:
    net("network", "create", "--subnet", "10.113.3.0/24", "late")
    net("create", "--name", "web", IMAGE, "sleep", "100")
    net("network", "connect", "--ip", "10.113.3.33", "late", "web")
    net("start", "web")
    assert interfaces(net("exec", "web", "ip", "address"))["eth1"] == ["10.113.3.33/24"]
    assert "10.113.3.33" in net("exec", "web", "cat", "/etc/hosts")
    net("stop", "-t", "0", "web")
    net("network", "disconnect", "bridge", "web")
    net("start", "web")
    assert interfaces(net("exec", "web", "ip", "address")) == {"lo": ["127.0.0.1/8", "::1/128"], "eth1": ["10.113.3.33/24"]}
    for mode in ("none", "host"):
        net("create", "--name", f"alone-{mode}", "--network", mode, IMAGE, "true")
        assert f"cannot be connected to late: its network is {mode}" in net.refused("network", "connect", "late", f"alone-{mode}")
    assert "cannot be connected to network host" in net.refused("network", "connect", "host", "web")


def test_what_was_connected_is_kept_over_a_restart_by_policy(net: Networked) -> None:
    net("network", "create", "--subnet", "10.113.3.0/24", "late")
    net("run", "-d", "--name", "web", "--restart", "always", IMAGE, "sh", "-c", "echo began; sleep 1000")
    net("network", "connect", "--ip", "10.113.3.33", "--alias", "shop", "late", "web")
    net("network", "disconnect", "bridge", "web")
    os.kill(net.inspect("web", ".State.Pid"), signal.SIGKILL)
    wait_for(lambda: net("logs", "web").count("began") == 2, "the restart")
    wait_for(lambda: net("ps", "-q"), "that it runs")
    assert interfaces(net("exec", "web", "ip", "address"))["eth1"] == ["10.113.3.33/24"]
    assert "eth0" not in net("exec", "web", "ip", "address")
    assert "10.113.3.33" in net.run("--network", "late", "--", "nslookup", "shop")
    assert "10.113.3.33" in net("exec", "web", "cat", "/etc/hosts")


def test_the_network_of_another_container(net: Networked) -> None:
    port = 81
    net.start("main", "--network-alias", "both", ports=(80,))
    net.start("side", "--network", "container:main", ports=(port,))
    assert net("exec", "side", "ip", "address") == net("exec", "main", "ip", "address")
    assert net.ask_from("main", "127.0.0.1", port) == "side 127.0.0.1" and net.ask_from("side", "127.0.0.1") == "main 127.0.0.1"
    assert net("exec", "side", "hostname") == net("exec", "main", "hostname")
    for name in ("hosts", "resolv.conf", "hostname"):
        assert net("exec", "side", "cat", f"/etc/{name}") == net("exec", "main", "cat", f"/etc/{name}")
    assert net.ask_from("side", "main", 80).startswith("main ")
    assert net.inspect("side", ".HostConfig.NetworkMode") == f"container:{net.inspect('main', '.Id')}"
    for flags in (("-p", "80"), ("--ip", "10.208.0.9"), ("--dns", "1.1.1.1"), ("--hostname", "other"), ("--add-host", "a:1.2.3.4")):
        assert "conflicting options" in net.refused("run", "--network", "container:main", *flags, IMAGE, "true", code=125)
    net("stop", "-t", "0", "main")
    assert "cannot join the network of a container that does not run" in net.refused("run", "--network", "container:main", IMAGE, "true", code=125)
    assert "nobody" in net.refused("run", "--network", "container:nobody", IMAGE, "true", code=125)


def test_any_network_can_be_shared(net: Networked) -> None:
    """Also none, the host's, and one that is itself shared."""
    for name, mode in (("alone", "none"), ("wide", "host"), ("main", "bridge"), ("side", "container:main")):
        net("run", "-d", "--name", name, "--network", mode, IMAGE, "sleep", "100")
    script = "hostname; readlink /proc/self/ns/net; cat /etc/hosts"
    for name in ("alone", "wide", "main", "side"):
        assert net.run("--network", f"container:{name}", "--", "sh", "-c", script) == net("exec", name, "sh", "-c", script), name


# Isolation


def test_networks_do_not_reach_each_other(net: Networked) -> None:
    net("network", "create", "--subnet", "10.113.1.0/24", "--subnet", "fd77:1::/64", "--ipv6", "red")
    net("network", "create", "--subnet", "10.113.2.0/24", "--subnet", "fd77:2::/64", "--ipv6", "blue")
    net.start("one", "--network", "red")
    net.start("two", "--network", "blue")
    for target in (net.address("two", "blue"), net.address("two", "blue", 6)):
        for protocol in ("tcp", "udp"):
            assert "two" not in net.ask_from("one", target, 80, protocol, 0.4)
    assert net.ask_from("one", "two", patience_s=0.5) == "gaierror", "not even its name"
    assert "100% packet loss" in net.bulle("exec", "one", "ping", "-c1", "-W1", net.address("two", "blue")).stdout


def test_internal_networks_lead_nowhere(net: Networked) -> None:
    net("network", "create", "--internal", "--ipv6", "inside")
    net.start("one", "--network", "inside")
    net.start("two", "--network", "inside")
    assert "two" in net.ask_from("one", "two") and "two" in net.ask_from("one", net.address("two", "inside", 6))
    assert "default" not in net("exec", "one", "ip", "route")
    document = net.network("inside")
    assert document["Internal"] is True
    with other_machine() as outside, outside.serving("outside", 80):
        net("exec", "--user", "0", "one", "true")
        assert "outside" not in net.ask_from("one", outside.address, patience_s=0.4)
        assert "outside" not in net.ask_from("one", outside.address6, patience_s=0.4)
        # Nor with a route of one's own making, nor to this machine itself.
        net.start("strong", "--network", "inside", "--cap-add", "NET_ADMIN")
        gateway = document["IPAM"]["Config"][0]["Gateway"]
        net("exec", "strong", "ip", "route", "add", "default", "via", gateway)
        assert "outside" not in net.ask_from("strong", outside.address, patience_s=0.4)
        for here in (gateway, outside.here):
            assert net.ask_from("strong", here, 22, patience_s=0.4) in ("ConnectionRefusedError", "TimeoutError")
    assert net.inspect("one", ".NetworkSettings.Networks.inside.Gateway") == ""


# Files


def test_hosts_and_resolver_files(net: Networked) -> None:
    flags = ("--add-host", "printer:192.0.2.77", "--add-host", "me=host-gateway", "--add-host", "six:[2001:db8::7]", "--hostname", "box.example.net")
    names = ("--dns", "192.0.2.53", "--dns-search", "example.net", "--dns-search", "example.org", "--dns-option", "timeout:1")
    text = net.run(*flags, *names, "--", "cat", "/etc/hosts", "/etc/resolv.conf", "/etc/hostname")
    gateway = net.network("bridge")["IPAM"]["Config"][0]["Gateway"]
    hosts = ("192.0.2.77\tprinter", f"{gateway}\tme", "2001:db8::7\tsix")
    for line in (*hosts, "search example.net example.org", "nameserver 127.0.0.11", "box.example.net"):
        assert line in text.splitlines(), text
    assert "options timeout:1" in text and "box.example.net\tbox" in text
    assert net.run("--network", "none", "--", "sh", "-c", "cat /etc/resolv.conf 2>/dev/null || echo the image has none") == "the image has none"
    assert net.run("--network", "host", "--", "cat", "/etc/resolv.conf") == Path("/etc/resolv.conf").read_text().rstrip("\n")
    for wrong in ("printer", "printer:", "printer:nowhere", ":192.0.2.1"):
        assert "bad format for add-host" in net.refused("run", "--rm", "--add-host", wrong, IMAGE, "true", code=125)
    assert "is not an address for --dns" in net.refused("run", "--rm", "--dns", "dns.example", IMAGE, "true", code=125)


def test_this_machine_is_reached_by_host_gateway(net: Networked) -> None:
    net("network", "create", "--subnet", "10.113.1.0/24", "shop")
    net.start("web", "--network", "shop", "--add-host", "host.docker.internal:host-gateway")
    script = "import socket; server = socket.create_server(('10.113.1.1', 18765)); server.accept()[0].sendall(b'this machine')"
    server = subprocess.Popen(["/usr/bin/python3", "-c", script])
    try:
        wait_for(lambda: net.ask_from("web", "host.docker.internal", 18765) == "this machine", "an answer of this machine")
    finally:
        server.kill()
        server.wait()


def test_a_network_on_the_wire_of_a_device(net: Networked) -> None:
    """macvlan: containers stand on the wire of a device of the machine, with names and without rules of ours."""
    parent, other = f"bulletest{os.getpid() % 10000}a", f"bulletest{os.getpid() % 10000}b"
    subprocess.run(["ip", "link", "add", parent, "type", "veth", "peer", "name", other], check=True)
    try:
        for device in (parent, other):
            subprocess.run(["ip", "link", "set", device, "up"], check=True)
        net("network", "create", "-d", "macvlan", "--subnet", "10.113.9.0/24", "-o", f"parent={parent}", "wire")
        net.start("web", "--network", "wire")
        assert net.ask_from("web", "web").startswith("web 10.113.9.2")
        assert net.run("--network", "wire", "--", "ping", "-c1", "-W2", "web")
        assert "egress cannot hold on network wire" in net.refused("run", "--egress", "none", "--network", "wire", IMAGE, "true", code=125)
        net("rm", "-f", "web")
        net("network", "rm", "wire")
    finally:
        subprocess.run(["ip", "link", "delete", parent], check=True)
    net("network", "create", "-d", "macvlan", "--subnet", "10.113.9.0/24", "-o", "parent=nowhere0", "gone")
    assert "no interface could be made for network gone" in net.refused("run", "--rm", "--network", "gone", IMAGE, "true", code=125)
    net("network", "rm", "gone")


# The verbs


def test_making_listing_and_removing(net: Networked) -> None:
    identifier = net("network", "create", "--label", "team=red", "--label", "kind", "-o", "com.docker.network.driver.mtu=1400", "shop")
    assert re.fullmatch("[0-9a-f]{64}", identifier)
    net("network", "create", "--internal", "vault")
    assert net("network", "ls", "--format", "{{.Name}} {{.Driver}} {{.Scope}}").splitlines() == [
        "bridge bridge local", "host host local", "none null local", "shop bridge local", "vault bridge local",
    ]  # fmt: skip
    assert net("network", "ls", "-q", "--filter", "name=shop") == identifier[:12]
    assert net("network", "ls", "-q", "--no-trunc", "--filter", "id=" + identifier[:6]) == identifier

    def found(*filters: str) -> set[str]:
        return set(net("network", "ls", "--format", "{{.Name}}", *(word for text in filters for word in ("-f", text))).split())

    assert found("driver=null") == {"none"} and found("type=custom") == {"shop", "vault"} and found("label=team") == {"shop"}
    assert found("label=team=blue") == set() and found("type=builtin", "driver=bridge") == {"bridge"}
    assert found("scope=local", "name=o") == {"shop", "host", "none"}
    net("run", "-d", "--name", "web", "--network", "shop", IMAGE, "sleep", "100")
    assert found("dangling=true") == {"vault"}
    assert "mtu 1400" in net("exec", "web", "ip", "link", "show", "eth0")
    assert "invalid filter" in net.refused("network", "ls", "--filter", "colour=red")
    document = net.network(identifier[:8])
    assert (document["Labels"], document["Driver"], document["Scope"]) == ({"team": "red", "kind": ""}, "bridge", "local")
    assert document["Containers"][net.inspect("web", ".Id")]["Name"] == "web"
    # In use: neither rm nor prune takes it, and it goes on working.
    assert "network shop has active endpoints: 1 container is on it" in net.refused("network", "rm", "shop")
    assert net("network", "prune", "-f").splitlines() == ["Deleted Networks:", "vault"]
    assert "shop" in net("network", "ls")
    net("rm", "-f", "web")
    assert net("network", "rm", "shop") == "shop"
    assert "network shop not found" in net.refused("network", "rm", "shop")
    assert net("network", "rm", "-f", "shop") == ""
    assert "network shop not found" in net.refused("network", "inspect", "shop")
    for name in ("bridge", "host", "none"):
        assert "pre-defined network and cannot be removed" in net.refused("network", "rm", name)


def test_what_cannot_be_made(net: Networked) -> None:
    net("network", "create", "--subnet", "10.113.1.0/24", "shop")
    before = net("network", "ls")
    refusals = {
        ("shop",): "network with name shop already exists",
        ("--subnet", "10.113.1.128/25", "other"): "overlaps 10.113.1.0/24 of network shop",
        ("--subnet", "10.113.1.0", "other"): "10.113.1.0",
        ("--subnet", "nonsense", "other"): "nonsense",
        ("--subnet", "10.113.9.0/24", "--gateway", "10.113.8.1", "other"): "10.113.8.1",
        ("--subnet", "10.113.9.0/24", "--ip-range", "10.113.8.0/25", "other"): "10.113.8.0/25",
        ("--gateway", "10.113.8.1", "other"): "",
        ("-d", "overlay", "other"): "there is no network driver 'overlay'",
        ("-d", "macvlan", "other"): "needs a device of this host",
        ("-d", "host", "other"): "only one instance",
        ("-o", "mtu=7", "other"): "invalid MTU",
        ("--egress", "some", "other"): "some",
        ("--dns", "nowhere", "other"): "nowhere",
        ("bridge",): "predefined",
        ("-bad",): "",
        ("with space",): "invalid network name",
        ("--subnet", "127.0.0.0/24", "other"): "",
        ("--subnet", "224.0.0.0/24", "other"): "",
        ("--subnet", "0.0.0.0/0", "other"): "",
    }
    for words, message in refusals.items():
        done = net.bulle("network", "create", *words)
        assert done.returncode in (1, 125) and message in done.stderr and "Traceback" not in done.stderr, (words, done)
    assert net("network", "ls") == before


def test_a_subnet_that_somebody_else_has(net: Networked) -> None:
    """It is refused in words, before anything of this machine is mixed up with it."""
    net("network", "create", "--subnet", "10.113.1.0/24", "shop")
    with other_machine(4) as outside:
        ip("route", "add", "10.113.1.0/25", "via", outside.address)
        words = net.refused("run", "--rm", "--network", "shop", IMAGE, "true", code=125)
    assert "network shop cannot stand: something else on this machine has 10.113.1.0/25 of its subnet 10.113.1.0/24" in words
    net.run("--network", "shop", "--", "true")


def test_what_can_be_read_of_a_container(net: Networked) -> None:
    net("network", "create", "--ipv6", "--subnet", "10.113.1.0/24", "--subnet", "fd77:1::/64", "shop")
    net.start("web", "--network", "shop", "--network-alias", "www", "--ip", "10.113.1.7", "--ip6", "fd77:1::7", "--mac-address", "92:d0:c6:0a:29:33")
    settings = net.inspect("web", ".NetworkSettings")
    endpoint = settings["Networks"]["shop"]
    wanted = {
        "IPAddress": "10.113.1.7", "IPPrefixLen": 24, "Gateway": "10.113.1.1", "GlobalIPv6Address": "fd77:1::7", "GlobalIPv6PrefixLen": 64,
        "MacAddress": "92:d0:c6:0a:29:33", "NetworkID": net.network("shop")["Id"],
    }  # fmt: skip
    assert {key: endpoint[key] for key in wanted} == wanted
    assert endpoint["Aliases"] == ["www"] and set(endpoint["DNSNames"]) >= {"web", "www"}
    assert os.stat(settings["SandboxKey"]).st_ino == os.stat(f"/proc/{net.inspect('web', '.State.Pid')}/ns/net").st_ino
    assert net.inspect("web", ".HostConfig.NetworkMode") == "shop"
    assert net("ps", "--format", "{{.Networks}}") == "shop"
    assert net("ps", "-q", "--filter", "network=shop") == net.inspect("web", ".Id")[:12]
    assert net("ps", "-q", "--filter", "network=bridge") == ""
    net("stop", "-t", "0", "web")
    assert net.inspect("web", ".NetworkSettings.SandboxKey") == ""
    lines = net("events", "--since", "0", "--until", str(int(time.time()) + 1), "--filter", "type=network", "--format", "json").splitlines()
    assert {json.loads(line)["Action"] for line in lines} >= {"create", "connect", "disconnect"}


def test_nothing_is_left_of_what_is_removed(net: Networked) -> None:
    """With --rm, with a command that cannot be started, and with a container killed at once."""
    net("network", "create", "shop")
    net.run("--network", "shop", "-p", "80", "--", "true")
    assert net.bulle("run", "--rm", "--network", "shop", "-p", "80", IMAGE, "/nothing").returncode == 127
    net("run", "-d", "--rm", "--name", "short", "--network", "shop", IMAGE, "sleep", "100")
    net("kill", "short")
    wait_for(lambda: not net("ps", "-aq"), "the end of --rm")
    assert net.network("shop")["Containers"] == {}
    wait_for(lambda: not any(name.startswith("bullev") and _is_ours(net, name) for name in os.listdir("/sys/class/net")), "the end of all veths")
    net("network", "rm", "shop")


def _is_ours(net: Networked, device: str) -> bool:
    master = Path(f"/sys/class/net/{device}/master")
    return master.exists() and master.resolve().name in net("network", "inspect", *net("network", "ls", "-q").split())
