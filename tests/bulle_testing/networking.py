"""Networks seen from outside: a home whose containers have networks, a server that says who asked, clients on this machine and on another one.

The other machine is a network namespace with a cable to this one. Containers have this machine's Python (``/usr``, read-only), so that they can do on
the wire whatever a program can.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bulle_testing import peers, places
from bulle_testing.running import Machine, wait_for

IMAGE = "python"
PATIENCE_S = 20.0
# Answers every connection and every datagram on the given ports with its name and who asked, over both versions of IP.
SERVER = """
import select, socket, sys
poll, sockets = select.poll(), {}
for port in map(int, sys.argv[2:]):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            opened = socket.socket(family, kind)
            if family == socket.AF_INET6:
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind((address, port))
            if kind == socket.SOCK_STREAM:
                opened.listen(100)
            sockets[opened.fileno()] = opened
            poll.register(opened, select.POLLIN)
print("ready", flush=True)
while True:
    for number, _ in poll.poll():
        opened = sockets[number]
        if opened.type == socket.SOCK_STREAM:
            connection, peer = opened.accept()
            with connection:
                connection.sendall(f"{sys.argv[1]} {peer[0]}\\n".encode())
        else:
            data, peer = opened.recvfrom(2048)
            opened.sendto(f"{sys.argv[1]} {peer[0]}\\n".encode(), peer)
"""
# Asks such a server and prints what it says, or why it says nothing: python3 -c CLIENT tcp|udp ADDRESS PORT
CLIENT = """
import socket, sys
kind = socket.SOCK_STREAM if sys.argv[1] == "tcp" else socket.SOCK_DGRAM
try:
    found = socket.getaddrinfo(sys.argv[2], int(sys.argv[3]), type=kind)[0]
    with socket.socket(found[0], kind) as opened:
        opened.settimeout(float(sys.argv[4]))
        opened.connect(found[4])
        if kind == socket.SOCK_DGRAM:
            opened.send(b"who?")
        print(opened.recv(2048).decode().strip())
except OSError as error:
    print(type(error).__name__)
"""


@pytest.fixture(scope="session")
def python_archive(tmp_path_factory: pytest.TempPathFactory, busybox_rootfs: Path) -> Path:
    """A docker-archive of busybox with the links that this machine's programs need once its /usr is mounted."""
    directory = tmp_path_factory.mktemp("image")
    links = directory / "links"
    links.mkdir()
    for name in ("lib", "lib32", "lib64", "libx32"):
        if Path("/", name).is_symlink():
            (links / name).symlink_to(os.readlink(f"/{name}"))
    target = directory / "python.tar"
    peers.docker_archive(target, [peers.pack(busybox_rootfs), peers.pack(links)], tags=[f"{IMAGE}:latest"])
    return target


def ask(address: str, port: int, protocol: str = "tcp", patience_s: float = PATIENCE_S, source: str = "") -> str:
    """What the server behind an address of this machine says; the name of the error where it says nothing."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as opened:
        opened.settimeout(patience_s)
        try:
            if source:
                opened.bind((source, 0))
            opened.connect((address, port))
            if protocol == "udp":
                opened.send(b"who?")
            return opened.recv(2048).decode().strip()
        except OSError as error:
            return type(error).__name__


def free_ports(count: int) -> int:
    """The first of so many ports after one another that nobody has, outside of the kernel's own range."""
    for _ in range(200):
        first = 10_000 + secrets.randbelow(20_000)
        opened: list[socket.socket] = []
        try:
            for port in range(first, first + count):
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    opened.append(socket.socket(socket.AF_INET, kind))
                    opened[-1].bind(("0.0.0.0", port))
            return first
        except OSError:
            continue
        finally:
            for one in opened:
                one.close()
    raise AssertionError("no free ports on this machine")


@contextmanager
def the_machine_s_networks() -> Iterator[None]:
    """A turn with the addresses of this machine: tests of networks have subnets of the same pool, whoever runs them."""
    with open("/var/tmp/bulle-test-networks.lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def networked(machine: Machine) -> Iterator[Networked]:
    """The machine with networks, as outside of tests, for one test; one such test at a time on a machine."""
    with the_machine_s_networks():
        made = Networked(machine)
        try:
            yield made
        finally:
            made.clear()


@pytest.fixture
def net(box: Machine) -> Iterator[Networked]:
    """The module's own machine with networks."""
    with networked(box) as made:
        yield made


class Networked:
    """The command in a home whose containers are on the network that they would be on outside of tests."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.home = machine.home
        self.environment = {name: value for name, value in machine.environment.items() if name != "BULLE_NETWORK"}

    def bulle(self, *arguments: str | Path, timeout_s: float = 240, **environment: str) -> subprocess.CompletedProcess[str]:
        """The command to its end."""
        line = [*places.command_line(), *map(str, arguments)]
        wanted = self.environment | environment
        return subprocess.run(line, env=wanted, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s)

    def __call__(self, *arguments: str | Path, **environment: str) -> str:
        """The command, which must succeed; what it printed, without the last newline."""
        done = self.bulle(*arguments, **environment)
        assert done.returncode == 0, f"bulle {' '.join(map(str, arguments))} ended with {done.returncode}: {done.stderr}{done.stdout}"
        return done.stdout.rstrip("\n")

    def refused(self, *arguments: str | Path, code: int = 1, **environment: str) -> str:
        """The command, which must fail with this code and one line; that line."""
        done = self.bulle(*arguments, **environment)
        assert done.returncode == code, f"bulle {' '.join(map(str, arguments))} ended with {done.returncode}: {done.stderr}{done.stdout}"
        assert done.stderr.count("\n") == 1 and done.stderr.startswith("bulle: "), done.stderr
        return done.stderr.removeprefix("bulle: ").rstrip("\n")

    def start(self, name: str, *flags: str, ports: tuple[int, ...] = (80,)) -> str:
        """Start a server that says its name and who asked; returns its id."""
        command = ["/usr/bin/python3", "-c", SERVER, name, *map(str, ports)]
        identifier = self("run", "-d", "--name", name, "-v", "/usr:/usr:ro", *flags, IMAGE, *command)
        self.wait_ready(name)
        return identifier

    def wait_ready(self, name: str) -> None:
        """Wait until the server says that it listens."""
        wait_for(lambda: "ready" in self("logs", "--tail", "1", name), f"{name} is ready")

    def run(self, *arguments: str) -> str:
        """A command of busybox in a container of its own: flags, ``--``, command."""
        at = arguments.index("--")
        return self("run", "--rm", *arguments[:at], IMAGE, *arguments[at + 1 :])

    def python(self, name: str, script: str, *arguments: str) -> str:
        """A script in a running container."""
        return self("exec", name, "/usr/bin/python3", "-c", script, *arguments)

    def ask_from(self, name: str, address: str, port: int = 80, protocol: str = "tcp", patience_s: float = PATIENCE_S) -> str:
        """What a server says to a running container, or the name of the error."""
        return self.python(name, CLIENT, protocol, address, str(port), str(patience_s))

    def inspect(self, name: str, path: str = ".") -> Any:
        """A part of the container's document."""
        return json.loads(self("inspect", name, "--format", "{{json " + path + "}}"))

    def network(self, name: str) -> Any:
        """The network's document."""
        return json.loads(self("network", "inspect", name))[0]

    def address(self, name: str, network: str = "bridge", version: int = 4) -> str:
        """The container's address on a network."""
        found = self.inspect(name, ".NetworkSettings.Networks")[network]
        return str(found["IPAddress" if version == 4 else "GlobalIPv6Address"])

    def clear(self) -> None:
        """Remove all containers and networks; then nothing of ours may stand on this machine any longer."""
        if names := self("ps", "-aq").split():
            self("rm", "-f", *names)
        self("network", "prune", "-f")
        wait_for(lambda: places.keeper_pid(self.home) == 0, "the keeper ends")
        self.machine.settle()


@dataclass
class OtherMachine:
    """A network namespace with a cable to this machine: ``address`` is its own, ``here`` this machine's end of the cable."""

    pid: int
    address: str
    here: str
    address6: str
    here6: str

    def ask(self, address: str, port: int, protocol: str = "tcp", patience_s: float = 1.0) -> str:
        """What a server says to it, or the name of the error."""
        return self.python(CLIENT, protocol, address, str(port), str(patience_s))

    def python(self, script: str, *arguments: str) -> str:
        """A script on it."""
        line = ["nsenter", f"--net=/proc/{self.pid}/ns/net", sys.executable, "-c", script, *arguments]
        return subprocess.run(line, capture_output=True, text=True, check=True, timeout=240).stdout.strip()

    @contextmanager
    def serving(self, name: str, *ports: int) -> Iterator[None]:
        """Run the server on it meanwhile."""
        line = ["nsenter", f"--net=/proc/{self.pid}/ns/net", sys.executable, "-c", SERVER, name, *map(str, ports)]
        with subprocess.Popen(line, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == b"ready\n"
                yield
            finally:
                process.kill()


def ip(*words: str, pid: int = 0) -> None:
    """``ip`` on this machine, or in the network namespace of a process."""
    inside = ["nsenter", f"--net=/proc/{pid}/ns/net"] if pid else []
    subprocess.run([*inside, "ip", *words], check=True, capture_output=True, timeout=240)


@contextmanager
def other_machine(number: int = 1) -> Iterator[OtherMachine]:
    """Another machine on a network of its own with this one, in addresses that are meant for documents."""
    here, there = f"198.51.100.{4 * number + 1}", f"198.51.100.{4 * number + 2}"
    here6, there6 = f"2001:db8:{number}::1", f"2001:db8:{number}::2"
    device = f"cable{secrets.token_hex(3)}"
    with subprocess.Popen(["unshare", "--net", "sleep", "1000"]) as process:
        try:
            wait_for(lambda: os.readlink(f"/proc/{process.pid}/ns/net") != os.readlink("/proc/self/ns/net"), "another machine")
            ip("link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", str(process.pid))
            for address in (f"{here}/30", f"{here6}/64"):
                ip("address", "add", address, "dev", device, *(["nodad"] if ":" in address else []))
            ip("link", "set", device, "up")
            for address in (f"{there}/30", f"{there6}/64"):
                ip("address", "add", address, "dev", "eth0", *(["nodad"] if ":" in address else []), pid=process.pid)
            for name in ("lo", "eth0"):
                ip("link", "set", name, "up", pid=process.pid)
            ip("route", "add", "default", "via", here, pid=process.pid)
            ip("-6", "route", "add", "default", "via", here6, pid=process.pid)
            yield OtherMachine(process.pid, there, here, there6, here6)
        finally:
            with suppress(subprocess.CalledProcessError):
                ip("link", "delete", device)
            process.kill()
