"""Names as real resolvers ask for them: from network namespaces whose only way out is the name server's socket at 127.0.0.11."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dnslib
import pytest

from bulle.model.network import Destination, Egress
from bulle.network.dns import View
from bulle_testing.name_servers import Names
from bulle_testing.running import wait_for

pytestmark = pytest.mark.root

NETWORK = "f" * 64
INSIDE = """
import socket, sys
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("127.0.0.11", 53))
listener = socket.create_server(("127.0.0.11", 53), backlog=64)
with socket.socket(socket.AF_UNIX) as out:
    out.connect(sys.argv[1])
    socket.send_fds(out, [b"x"], [udp.fileno(), listener.fileno()])
"""
RESOLV_CONF = "nameserver 127.0.0.11\nsearch corp.example\noptions ndots:0\n"
ADDRESSES = "import socket, sys; print(*sorted({entry[4][0] for entry in socket.getaddrinfo(sys.argv[1], 80)}))"


class Inside:
    """A network namespace with loopback alone, and a resolv.conf as a container has it; its name server's sockets are held outside."""

    def __init__(self, directory: Path, names: Names, container_id: str, view: View) -> None:
        directory.mkdir()
        (directory / "resolv.conf").write_text(RESOLV_CONF)
        script = f"ip link set lo up && mount --bind {directory}/resolv.conf /etc/resolv.conf && touch {directory}/ready && exec sleep 1000"
        self.process = subprocess.Popen(["unshare", "--net", "--mount", "sh", "-c", script])
        wait_for((directory / "ready").exists, "the namespace")
        with socket.socket(socket.AF_UNIX) as waiting:
            waiting.bind(str(directory / "sockets"))
            waiting.listen(1)
            self.run(sys.executable, "-c", INSIDE, directory / "sockets")
            with waiting.accept()[0] as connection:
                _, descriptors, _, _ = socket.recv_fds(connection, 1, 2)
        udp, listener = (socket.socket(fileno=descriptor) for descriptor in descriptors)
        names.add_with(container_id, view, udp, listener)

    def run(self, *command: str | Path, check: bool = True) -> str:
        done = subprocess.run(
            ["nsenter", "-t", str(self.process.pid), "--net", "--mount", *map(str, command)], capture_output=True, text=True, timeout=240, check=False
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def addresses(self, name: str) -> str:
        """What getaddrinfo of the C library says."""
        return self.run(sys.executable, "-c", ADDRESSES, name, check=False).strip()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def names() -> Iterator[Names]:
    made = Names()
    yield made
    made.close()


@pytest.fixture
def asker(names: Names, tmp_path: Path) -> Iterator[Inside]:
    names.do("set_network", NETWORK, "front")
    names.do("set_names", "c" * 64, {NETWORK: (("db",), ("10.8.0.2", "fd00:8::2"))}, "first")
    names.do("set_names", "d" * 64, {NETWORK: (("db",), ("10.8.0.3",))}, "second")
    inside = Inside(tmp_path / "asker", names, "a" * 64, View((NETWORK,), search=("corp.example",)))
    yield inside
    names.do("remove", "a" * 64)
    inside.end()


def test_the_c_librarys_resolver_finds_containers(names: Names, asker: Inside) -> None:
    upstream = names.upstream(lambda asked: asked.reply())
    assert asker.addresses("first") == "10.8.0.2 fd00:8::2"
    assert asker.addresses("db") == "10.8.0.2 10.8.0.3 fd00:8::2"
    assert asker.addresses("second.front") == "10.8.0.3"
    assert asker.run("getent", "hosts", "10.8.0.3").split() == ["10.8.0.3", "second.front"]
    assert upstream.seen == []
    names.do("set_names", "d" * 64, {NETWORK: ((), ("10.8.0.77",))}, "second")
    assert asker.addresses("second") == "10.8.0.77"
    assert asker.addresses("db") == "10.8.0.2 fd00:8::2"


def test_search_domains_are_tried_by_who_asks(names: Names, asker: Inside) -> None:
    def reply(asked: dnslib.DNSRecord) -> str | dnslib.DNSRecord:
        if str(asked.q.qname) == "intranet.corp.example." and asked.q.qtype == dnslib.QTYPE.A:
            return "intranet.corp.example. 60 A 192.0.2.80"
        answer = asked.reply()
        answer.header.rcode = dnslib.RCODE.NXDOMAIN
        return answer

    upstream = names.upstream(reply)
    assert asker.addresses("intranet") == "192.0.2.80"
    assert set(upstream.names()) == {"intranet.", "intranet.corp.example."}
    assert asker.addresses("nowhere") == ""


def test_many_addresses_come_by_stream(names: Names, asker: Inside) -> None:
    for number in range(1, 60):
        names.do("set_names", f"{number:064x}", {NETWORK: (("many",), (f"10.8.1.{number}",))}, f"c{number}")
    assert len(asker.addresses("many").split()) == 59


@pytest.mark.programs("dig")
def test_what_the_list_does_not_name_is_no_name_at_all(names: Names, asker: Inside) -> None:
    records = "pypi.org. 60 A 8.8.8.8\npypi.org. 60 A 169.254.169.254"
    upstream = names.upstream(lambda asked: records if asked.q.qtype == dnslib.QTYPE.A else asked.reply())
    opened: list[tuple] = []
    names.server.on_allowed = lambda *arguments: opened.append(arguments)
    egress = Egress("allow", (Destination("pypi.org", (443,)),))
    names.do("change", "a" * 64, View((NETWORK,), egress=egress))
    assert asker.addresses("pypi.org") == "8.8.8.8"
    assert opened == [("a" * 64, ("8.8.8.8",), (443,), 600)]
    assert asker.addresses("example.org") == ""
    assert "status: NXDOMAIN" in asker.run("dig", "secret.example.org", "TXT")
    assert set(upstream.names()) == {"pypi.org."}
    assert asker.addresses("first") == "10.8.0.2 fd00:8::2"
