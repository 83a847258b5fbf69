"""A registry of a few lines whose every answer a test decides, to see what a client does with lies, breaks and traps.

For hostile cases only; what a registry does is tested against Debian's docker-registry (``peers.registry``).
"""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"


def digest_of(data: bytes) -> str:
    """The sha256 digest of some bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def descriptor(data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
    """What a manifest says about some bytes."""
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data), **more}


@dataclass
class Answer:
    """One answer; ``cut_at`` breaks the connection after so many bytes of the body, whatever Content-Length says."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut_at: int | None = None


Handler = Callable[[BaseHTTPRequestHandler], Answer | None]


@dataclass
class RegistryServer:
    """What is served: fixed answers by path, or whatever ``handler`` says first. ``requests`` are (path, headers) in order of arrival, ``received``
    (method, path, body) of what came with another method than GET."""

    port: int = 0
    answers: dict[str, Answer] = field(default_factory=dict)
    handler: Handler | None = None
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    received: list[tuple[str, str, bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        """What stands before the slash of a reference."""
        return f"127.0.0.1:{self.port}"

    def add_blob(self, data: bytes) -> str:
        """Serve some bytes by their digest."""
        self.answers[f"/v2/image/blobs/{digest_of(data)}"] = Answer(data)
        return digest_of(data)

    def add_manifest(self, document: dict[str, Any] | bytes, tag: str = "latest", media_type: str = MANIFEST) -> bytes:
        """Serve a manifest by tag and digest."""
        raw = document if isinstance(document, bytes) else json.dumps(document).encode()
        for name in (tag, digest_of(raw)):
            self.answers[f"/v2/image/manifests/{name}"] = Answer(raw, headers={"Content-Type": media_type, "Docker-Content-Digest": digest_of(raw)})
        return raw

    def add_image(self, layer: bytes, tag: str = "latest", **changes: Any) -> dict[str, Any]:
        """Serve a whole image of one uncompressed layer; ``changes`` replace fields of its manifest. Returns the manifest."""
        config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest_of(layer)]}}).encode()
        self.add_blob(config)
        self.add_blob(layer)
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(config, CONFIG), "layers": [descriptor(layer, LAYER)], **changes}
        self.add_manifest(manifest, tag)
        return manifest


@contextmanager
def registry_server(host: str = "127.0.0.1", context: ssl.SSLContext | None = None) -> Iterator[RegistryServer]:
    """A server on a free port of this machine, for as long as the block lasts; with a context it speaks TLS."""
    served = RegistryServer()

    class Requests(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # headers and body in one piece: else each answer waits for a delayed acknowledgement

        def do_GET(self) -> None:
            served.requests.append((self.path, dict(self.headers.items())))
            if self.command != "GET":
                served.received.append((self.command, self.path, self.rfile.read(int(self.headers.get("Content-Length", 0)))))
            answer = served.handler(self) if served.handler else None
            if answer is None:
                answer = served.answers.get(self.path) or (Answer(b"{}") if self.path == "/v2/" else Answer(b'{"errors":[]}', 404))
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if "Content-Length" not in answer.headers:
                self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            self.wfile.write(answer.body if answer.cut_at is None else answer.body[: answer.cut_at])
            if answer.cut_at is not None:
                self.close_connection = True

        do_HEAD = do_POST = do_PUT = do_PATCH = do_GET  # noqa: N815 - http.server's names

        def log_message(self, format: str, *arguments: object) -> None:
            """Tests print nothing."""

    connections: list[socket.socket] = []

    class Server(ThreadingHTTPServer):
        daemon_threads = False  # so that the end of the block waits for them: their sockets would count as left behind

        def get_request(self) -> tuple[socket.socket, Any]:
            accepted = super().get_request()
            connections.append(accepted[0])
            return accepted

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that hangs up, or speaks TLS, is what tests are about."""

    server = Server((host, 0), Requests)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    served.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        server.server_close()
        thread.join()
