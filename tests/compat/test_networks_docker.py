"""What the verbs and flags of networks print, and what they refuse, beside a dockerd with its own bridge in a network namespace of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bulle_testing import leaks
from bulle_testing.networking import Networked, free_ports
from bulle_testing.peers import private_docker

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.programs("dockerd", "docker", "containerd", "runc", "iptables", "unshare")]

# Asks: returns exit code, standard output and standard error.
Say = Callable[..., tuple[int, str, str]]
IMAGE = "busybox"


@pytest.fixture(scope="module")
def docker(run_directory: Path, busybox_image: Path) -> Iterator[Say]:
    """A dockerd with networks."""
    directory = run_directory / "docker-networks"
    leaks.session_places.add(str(directory))
    enter = ("unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh")
    with private_docker(directory, enter) as command:
        command("load", "-i", str(busybox_image))

        def say(*arguments: str) -> tuple[int, str, str]:
            done = command(*arguments, check=False)
            return done.returncode, done.stdout, done.stderr

        yield say


@pytest.fixture
def both(docker: Say, net: Networked) -> Iterator[tuple[Say, Say]]:
    """Docker and Bulle, which publishes where Docker does."""

    def bulle(*arguments: str) -> tuple[int, str, str]:
        done = net.bulle(*arguments, BULLE_PUBLISH_ADDRESS="0.0.0.0")
        return done.returncode, done.stdout, done.stderr

    yield docker, bulle
    names = docker("ps", "-aq")[1].split()
    if names:
        docker("rm", "-f", *names)
    docker("network", "prune", "-f")


def said_by_both(both: tuple[Say, Say], *arguments: str) -> list[str]:
    """What both wrote to standard output; both must end well."""
    found = []
    for say in both:
        code, output, errors = say(*arguments)
        assert code == 0, (arguments, output, errors)
        found.append(output)
    return found


def test_network_ls(both: tuple[Say, Say]) -> None:
    said_by_both(both, "network", "create", "--label", "a=b", "shop")
    said_by_both(both, "network", "create", "--internal", "vault")
    for arguments in (
        ("--format", "{{.Name}} {{.Driver}} {{.Scope}} {{.IPv6}} {{.Internal}} {{.Labels}}"), ("--format", "table {{.Name}}\t{{.Driver}}"),
        ("-f", "type=custom", "--format", "{{.Name}}"), ("-f", "driver=null", "--format", "{{.Name}}"), ("-f", "label=a", "--format", "{{.Name}}"),
        ("-f", "name=au", "--format", "{{.Name}}"), ("-f", "dangling=true", "--format", "{{.Name}}"),
        ("-f", "label=a=c", "--format", "{{.Name}}"),
    ):  # fmt: skip
        theirs, ours = said_by_both(both, "network", "ls", *arguments)
        assert ours == theirs, arguments
    theirs, ours = (re.sub(r"[0-9a-f]{12}", "ID", text) for text in said_by_both(both, "network", "ls"))
    assert ours == theirs


def test_network_inspect(both: tuple[Say, Say]) -> None:
    flags = ("--subnet", "10.113.1.0/24", "--gateway", "10.113.1.9", "--ip-range", "10.113.1.128/25", "--label", "a=b")
    said_by_both(both, "network", "create", *flags, "shop")
    said_by_both(both, "run", "-d", "--name", "web", "--network", "shop", "--ip", "10.113.1.7", IMAGE, "sleep", "1000")
    theirs, ours = (json.loads(text)[0] for text in said_by_both(both, "network", "inspect", "shop"))
    for key in ("Name", "Scope", "Driver", "EnableIPv6", "Internal", "Ingress", "Options", "Labels"):
        assert ours[key] == theirs[key], key
    assert ours["IPAM"]["Config"] == theirs["IPAM"]["Config"]
    for key in ("Name", "IPv4Address", "IPv6Address"):
        assert [one[key] for one in ours["Containers"].values()] == [one[key] for one in theirs["Containers"].values()]
    assert theirs.keys() - ours.keys() <= {"ConfigFrom", "ConfigOnly"}
    theirs, ours = (json.loads(text) for text in said_by_both(both, "inspect", "web", "--format", "{{json .NetworkSettings}}"))
    for key in ("IPAddress", "IPPrefixLen", "Gateway", "GlobalIPv6Address", "GlobalIPv6PrefixLen", "IPv6Gateway", "Aliases"):
        if key != "Aliases":
            assert ours["Networks"]["shop"][key] == theirs["Networks"]["shop"][key], key
    assert ours["Networks"].keys() == theirs["Networks"].keys() and ours["Ports"] == theirs["Ports"]


# Numbers are those of free ports.
PUBLISHED = (
    ("{0}:80",),
    ("0.0.0.0:{0}:80", "0.0.0.0:{1}:443"),
    ("127.0.0.1:{0}:53/udp", "127.0.0.1:{0}:53/tcp"),
    ("0.0.0.0:{0}-{3}:{0}-{3}",),
    ("127.0.0.1:{0}-{2}:8000-8002/udp",),
    ("{1}:{1}", "{2}:{2}", "{4}:{4}/udp", "{5}:{6}"),
)


@pytest.mark.parametrize("ports", PUBLISHED, ids=" ".join)
def test_published_ports(both: tuple[Say, Say], ports: tuple[str, ...]) -> None:
    first = free_ports(7)
    ports = tuple(port.format(*range(first, first + 7)) for port in ports)
    flags = [word for port in ports for word in ("-p", port)]
    said_by_both(both, "run", "-d", "--name", "web", *flags, IMAGE, "sleep", "1000")
    theirs, ours = said_by_both(both, "ps", "--format", "{{.Ports}}")
    assert _old(ours) == _old(theirs)
    theirs, ours = said_by_both(both, "port", "web")
    assert sorted(ours.splitlines()) == sorted(theirs.splitlines())
    theirs, ours = (json.loads(text) for text in said_by_both(both, "inspect", "web", "--format", "{{json .NetworkSettings.Ports}}"))
    assert _sorted(ours) == _sorted(theirs)
    private = ports[0].rpartition(":")[2].partition("-")[0].partition("/")[0] + ("/udp" if "udp" in ports[0] else "")
    theirs, ours = said_by_both(both, "port", "web", private)
    assert sorted(ours.splitlines()) == sorted(theirs.splitlines())


def _old(text: str) -> list[str]:
    """Docker writes IPv6 addresses in PORTS with brackets since 28, before as ":::80"."""
    return sorted(text.strip().replace(":::", "[::]:").split(", "))


def _sorted(ports: dict[str, Any]) -> dict[str, Any]:
    return {key: sorted(value, key=str) if value else value for key, value in ports.items()}


REFUSED = (
    ("run", "-p", "80:80:80:80", IMAGE, "true"),
    ("run", "-p", "65536:80", IMAGE, "true"),
    ("run", "-p", "1-2:80-82", IMAGE, "true"),
    ("run", "-p", "80/icmp", IMAGE, "true"),
    ("run", "--network", "nowhere", IMAGE, "true"),
    ("run", "--network", "container:nobody", IMAGE, "true"),
    ("run", "--network", "host", "--network", "bridge", IMAGE, "true"),
    ("run", "--network", "container:web", "-p", "80", IMAGE, "true"),
    ("run", "--network", "container:web", "--hostname", "a", IMAGE, "true"),
    ("run", "--network", "shop", "--ip", "10.99.0.1", IMAGE, "true"),
    ("run", "--network", "shop", "--ip", "nonsense", IMAGE, "true"),
    ("run", "--mac-address", "nonsense", IMAGE, "true"),
    ("run", "--add-host", "nonsense", IMAGE, "true"),
    ("run", "--dns", "nonsense", IMAGE, "true"),
    ("run", "--expose", "nonsense", IMAGE, "true"),
    ("network", "create"),
    ("network", "create", "shop"),
    ("network", "create", "--subnet", "nonsense", "other"),
    ("network", "create", "--subnet", "10.113.1.0/25", "other"),
    ("network", "create", "host"),
    ("network", "rm", "nowhere"),
    ("network", "rm", "bridge"),
    ("network", "rm", "shop"),
    ("network", "inspect", "nowhere"),
    ("network", "connect", "nowhere", "web"),
    ("network", "connect", "shop", "nobody"),
    ("network", "connect", "shop", "web"),
    ("network", "disconnect", "bridge", "web"),
    ("network", "ls", "--filter", "nonsense=1"),
    ("network", "nonsense"),
    ("port", "nobody"),
    ("port", "web", "81"),
    ("port", "web", "nonsense"),
)


def test_exit_codes_of_what_is_refused(both: tuple[Say, Say]) -> None:
    said_by_both(both, "network", "create", "--subnet", "10.113.1.0/24", "shop")
    said_by_both(both, "run", "-d", "--name", "web", "--network", "shop", IMAGE, "sleep", "1000")
    differ = {}
    for arguments in REFUSED:
        (their_code, _, their_words), (our_code, output, our_words) = (say(*arguments) for say in both)
        if our_code != their_code:
            differ[" ".join(arguments)] = (their_code, their_words, our_code, our_words)
        assert our_code == 0 or (our_words and "Traceback" not in our_words), (arguments, output)
    assert differ == {}
