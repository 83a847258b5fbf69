"""Debian's docker-registry behind a login or TLS, the token service and the certificate that it then needs, and a wire that breaks.

``peers.registry`` is the plain one; these are for tests of push, login and settings.
"""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import struct
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from bulle_testing import leaks, peers, tiers
from bulle_testing.peers import Registry

USER, PASSWORD = "me", "secret"
HTPASSWD = "me:$2b$05$qeODQzbuEmpKFxJoRhayqu09OrlMkvY3XzWCetKI3Fd0CIRYgyYJa\n"
"""The login above, for ``auth.htpasswd``."""
IDENTITY = "an-identity-token-of-single-sign-on"


def listens(port: int) -> bool:
    """Whether somebody accepts connections on a port of this machine."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextmanager
def docker_registry(directory: Path, settings: str = "", http: str = "") -> Iterator[Registry]:
    """A docker-registry with more settings, for as long as the block lasts; ``http`` goes into that section."""
    tiers.need("docker-registry")
    directory.mkdir(exist_ok=True)
    leaks.session_places.add(str(directory))
    port = peers.free_port()
    path = directory / "config.yml"
    path.write_text(peers.REGISTRY_SETTINGS.format(directory=directory, port=port) + http + settings)
    command = [str(tiers.program("docker-registry")), "serve", str(path)]
    with peers.service(command, directory / "log", lambda: listens(port)):
        yield Registry(port, directory)


def requests_of(registry: Registry) -> list[str]:
    """What the registry was asked so far: ``PUT /v2/…``."""
    lines = (registry.directory / "log").read_text(errors="replace").splitlines()
    return [line.split('"')[1].rpartition(" ")[0] for line in lines if " HTTP/1." in line and line.split('"')[1:2] and "/v2/" in line.split('"')[1]]


def certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate for this machine that is its own authority, and its key (RSA, PEM)."""
    tiers.need("openssl")
    directory.mkdir(exist_ok=True)
    chain, key = directory / "cert.pem", directory / "key.pem"
    command = [str(tiers.program("openssl")), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", str(key), "-out", str(chain)]
    subprocess.run(command, check=True, capture_output=True)
    return chain, key


@dataclass
class TokenService:
    """What a registry with ``auth.token`` sends its clients to. ``asked`` are the scopes and how the client said who it is."""

    chain: Path
    key: Path
    port: int = 0
    asked: list[tuple[list[str], str]] = field(default_factory=list)

    def settings(self) -> str:
        """The section of the registry's settings."""
        return (
            f"auth:\n  token:\n    realm: http://127.0.0.1:{self.port}/token\n    service: tests\n    issuer: tests\n"
            f"    rootcertbundle: {self.chain}\n"
        )

    def token(self, scopes: list[str], known: bool) -> str:
        """A signed token: everything for who is known, nothing for anyone else."""
        lines = self.chain.read_text().splitlines()
        header = {"typ": "JWT", "alg": "RS256", "x5c": ["".join(lines[1:-1])]}
        access = []
        for scope in scopes if known else []:
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        now = int(time.time())
        claims = {"iss": "tests", "sub": "me", "aud": "tests", "exp": now + 60, "nbf": now - 10, "iat": now, "jti": str(now), "access": access}
        signed = ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in (header, claims))
        command = [str(tiers.program("openssl")), "dgst", "-sha256", "-sign", str(self.key)]
        signature = subprocess.run(command, input=signed.encode(), capture_output=True, check=True).stdout
        return f"{signed}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


@contextmanager
def token_service(directory: Path) -> Iterator[TokenService]:
    """A token service on a port of this machine: it knows ``USER`` with ``PASSWORD``, and ``IDENTITY``."""
    served = TokenService(*certificate(directory))
    basic = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

    class Requests(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
            given = self.headers.get("Authorization", "")
            self._answer(query.get("scope", []), given == basic, bool(given), "password" if given else "nobody")

        def do_POST(self) -> None:
            form = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            known = form.get("grant_type") == ["refresh_token"] and form.get("refresh_token") == [IDENTITY]
            self._answer(form.get("scope", [""])[0].split(), known, True, "identity")

        def _answer(self, scopes: list[str], known: bool, claims: bool, how: str) -> None:
            served.asked.append((scopes, how))
            body = json.dumps({"access_token": served.token(scopes, known)}).encode()
            self.send_response(401 if claims and not known else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Tests print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Requests)
    server.daemon_threads = False
    served.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Wire:
    """A connection to a registry that breaks: after so many bytes in one direction, as often as ``cuts`` says. Counts what went over it."""

    target: int
    cut_up: int = 0
    cut_down: int = 0
    cuts: int = 0
    port: int = 0
    up: int = 0
    down: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def address(self) -> str:
        """What stands before the slash of a reference."""
        return f"127.0.0.1:{self.port}"

    def carry(self, source: socket.socket, sink: socket.socket, limit: int, upwards: bool, both: tuple[socket.socket, socket.socket]) -> None:
        """Pass bytes on until either side ends or the limit is reached."""
        carried, cut = 0, False
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                carried += len(data)
                with self.lock:
                    if upwards:
                        self.up += len(data)
                    else:
                        self.down += len(data)
                    cut = bool(limit) and carried > limit and self.cuts > 0
                    if cut:
                        self.cuts -= 1
                if cut:
                    # Not an end but a break: whoever is still writing learns of it at once.
                    both[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    break
                sink.sendall(data)
        for one in reversed(both):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        if cut:
            both[0].close()


@contextmanager
def breaking_wire(target: int, *, cut_up: int = 0, cut_down: int = 0, cuts: int = 0) -> Iterator[Wire]:
    """A port of this machine that leads to another one over a wire that breaks."""
    wire = Wire(target, cut_up, cut_down, cuts)
    threads: list[threading.Thread] = []
    sockets: list[socket.socket] = []

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", target))
                sockets.extend((near, far))
                for source, sink, limit, upwards in ((near, far, cut_up, True), (far, near, cut_down, False)):
                    threads.append(threading.Thread(target=wire.carry, args=(source, sink, limit, upwards, (near, far)), daemon=True))
                    threads[-1].start()

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        wire.port = listener.getsockname()[1]
        acceptor = threading.Thread(target=accept, daemon=True)
        acceptor.start()
        try:
            yield wire
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            acceptor.join()
            for one in sockets:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
            for one in sockets:
                one.close()
