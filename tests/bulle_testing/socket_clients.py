"""``bulle serve`` in tests, and clients of it: docker's own command, docker-py, and requests by hand."""

from __future__ import annotations

import http.client
import json
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bulle_testing import places, tiers
from bulle_testing.running import wait_for

PATIENCE_S = 120.0


class UnixConnection(http.client.HTTPConnection):
    """HTTP to a unix socket."""

    def __init__(self, path: Path, timeout_s: float = PATIENCE_S) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect."""
        self.sock = connected(self._path, self.timeout)


def connected(path: Path, timeout_s: float | None = PATIENCE_S) -> socket.socket:
    """A connection to a unix socket whose path may be long."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(timeout_s)
    try:
        connection.connect(f"/proc/self/fd/{directory}/{path.name}")
    except BaseException:
        connection.close()
        raise
    finally:
        os.close(directory)
    return connection


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def message(self) -> str:
        """The sentence of an error."""
        return str(self.document["message"])


@dataclass
class Served:
    """A server on a unix socket."""

    path: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """As ``DOCKER_HOST`` has it."""
        return f"unix://{self.path}"

    def request(self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> Answer:
        """One request on a connection of its own; a body that is no bytes is sent as JSON."""
        connection = UnixConnection(self.path)
        sent = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        try:
            connection.request(method, path, sent, {"Content-Type": "application/json", **(headers or {})})
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()

    def send(self, text: str) -> socket.socket:
        """A connection on which these bytes were sent, lines ended as HTTP wants them."""
        connection = connected(self.path)
        try:
            connection.sendall(text.replace("\n", "\r\n").encode())
        except BaseException:  # the server may just have been killed
            connection.close()
            raise
        return connection

    def docker(self, *arguments: str, input: str | None = None, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """Docker's own command."""
        tiers.need("docker")
        stdin: dict[str, Any] = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        chosen = {"DOCKER_HOST": self.address, "DOCKER_BUILDKIT": "0", "DOCKER_CLI_HINTS": "false", **environment}
        command = [str(tiers.program("docker")), *arguments]
        done = subprocess.run(command, env=os.environ | chosen, capture_output=True, text=True, timeout=120, **stdin)
        assert not check or done.returncode == 0, f"{command} ended with {done.returncode}: {done.stdout} {done.stderr}"
        return done

    @property
    def pid(self) -> int:
        """Of the process that listens, told by the kernel."""
        with connected(self.path) as connection:
            pid: int = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
            return pid

    def descriptors(self) -> int:
        """How many the server has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def settles(self, count: int, what: str = "the server lets go of its descriptors") -> None:
        """Wait until the server has no more descriptors than that."""
        wait_for(lambda: self.descriptors() <= count, what)


@contextmanager
def serving(home: Path, *flags: str, path: Path | None = None, **environment: str) -> Iterator[Served]:
    """A server of a home, for as long as the block lasts."""
    path = path or home / "docker.sock"
    command = [*places.command_line(), "serve", "--host", f"unix://{path}", *flags]
    chosen = places.environment(home) | environment
    process = subprocess.Popen(command, env=chosen, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    served = Served(path, process)
    try:
        wait_until_served(served)
        yield served
    finally:
        process.terminate()
        try:
            process.wait(20)
        finally:
            process.kill()
            process.communicate()
    assert process.returncode == 0, process.returncode


def wait_until_served(served: Served) -> None:
    """Return when somebody answers."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with suppress(OSError):
            if served.request("GET", "/_ping").status == 200:
                return
        process = served.process
        if process is not None and process.poll() is not None:
            raise AssertionError(f"the server ended with {process.returncode}: {process.communicate()}")
        assert time.monotonic() < deadline, "nobody answers"
        time.sleep(0.02)


def received(connection: socket.socket, wanted: bytes = b"") -> bytes:
    """What comes until that was among it, or until the end."""
    found = b""
    while not wanted or wanted not in found:
        data = connection.recv(65536)
        if not data:
            break
        found += data
    return found


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """The frames of a multiplexed stream."""
    found = []
    while data:
        kind, length = struct.unpack(">B3xI", data[:8])
        found.append((kind, data[8 : 8 + length]))
        data = data[8 + length :]
    return found
