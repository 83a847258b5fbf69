"""What the client does with a registry that lies, breaks or sets traps (attacks 20 and 21), and that it keeps credentials to itself."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from bulle.errors import AuthenticationFailed, BulleError, CorruptImage, NotFound, RegistryFailure
from bulle.model.image import Platform
from bulle.registry import destinations
from bulle.registry.destinations import Reach
from bulle.registry.progress import Progress
from bulle.registry.sources import open_source
from bulle.registry.transport import Credentials, RemoteImage, SourceConfiguration
from bulle_testing import tiers
from bulle_testing.registry_server import CONFIG, INDEX, LAYER, MANIFEST, Answer, RegistryServer, descriptor, digest_of, registry_server

AMD64 = Platform("linux", "amd64")
LAYER_BYTES = b"a layer " * 500_000


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    with registry_server() as served:
        yield served


@pytest.fixture
def other() -> Iterator[RegistryServer]:
    with registry_server() as served:
        yield served


def settings(**more: Any) -> SourceConfiguration:
    return SourceConfiguration(**{"retries": 2, "backoff_s": 0.01, "timeout_s": 5.0, **more})


def pull(server: RegistryServer, name: str = "image:latest", platform: Platform = AMD64, **more: Any) -> tuple[RemoteImage, list[bytes]]:
    """The image and the bytes of its layers."""
    with open_source(f"docker://{server.address}/{name}", platform=platform, configuration=settings(**more)) as source:
        image = next(source.images())
        return image, [b"".join(layer.open()) for layer in image.layers]


def refused(server: RegistryServer, kind: type[BulleError], *words: str, **more: Any) -> None:
    """The pull fails with one sentence that has these words."""
    with pytest.raises(kind) as caught:
        pull(server, **more)
    sentence = str(caught.value)
    assert "\n" not in sentence
    for word in words:
        assert word in sentence


def test_an_honest_image(server: RegistryServer) -> None:
    server.add_image(LAYER_BYTES)
    image, layers = pull(server)
    assert layers == [LAYER_BYTES]
    assert [str(reference) for reference in image.references] == [f"{server.address}/image:latest"]
    assert image.media_type == MANIFEST


def test_by_digest_and_with_the_wrong_content(server: RegistryServer) -> None:
    manifest = server.add_image(LAYER_BYTES)
    raw = json.dumps(manifest).encode()
    image, _ = pull(server, f"image@{digest_of(raw)}")
    assert image.manifest == raw
    assert image.references[0].digest == digest_of(raw)
    lie = "sha256:" + "1" * 64
    server.answers[f"/v2/image/manifests/{lie}"] = Answer(raw, headers={"Content-Type": MANIFEST})
    refused(server, CorruptImage, "digest", name=f"image@{lie}")


def test_the_announced_digest_is_held_to(server: RegistryServer) -> None:
    server.add_image(LAYER_BYTES)
    server.answers["/v2/image/manifests/latest"].headers["Docker-Content-Digest"] = "sha256:" + "2" * 64
    refused(server, CorruptImage, "digest")


def test_config_of_another_digest(server: RegistryServer) -> None:
    manifest = server.add_image(LAYER_BYTES)
    path = f"/v2/image/blobs/{manifest['config']['digest']}"
    server.answers[path] = Answer(b"x" * manifest["config"]["size"])
    refused(server, CorruptImage, "config", "digest")


@pytest.mark.parametrize(("change", "word"), [(-1, "longer"), (1, "truncated")])
def test_layer_of_another_size(server: RegistryServer, change: int, word: str) -> None:
    layer = descriptor(LAYER_BYTES, LAYER)
    layer["size"] += change
    server.add_image(LAYER_BYTES, layers=[layer])
    refused(server, CorruptImage, "layer 1", word)


def test_a_size_that_would_fill_the_memory(server: RegistryServer) -> None:
    manifest = server.add_image(LAYER_BYTES)
    server.add_manifest({**manifest, "config": {**manifest["config"], "size": 1 << 40}})
    refused(server, CorruptImage, f"claims {1 << 40} bytes")


def test_a_manifest_without_end(server: RegistryServer) -> None:
    server.answers["/v2/image/manifests/latest"] = Answer(b"[" * (9 << 20), headers={"Content-Type": MANIFEST})
    refused(server, CorruptImage, "more than")


@pytest.mark.parametrize(
    ("document", "word"),
    [
        (b"[" * 100_000, "manifest"),
        (b"\xff\xfe", "manifest"),
        (b"null", "manifest"),
        ({"schemaVersion": 1, "fsLayers": []}, "schema 1"),
        ({"schemaVersion": 2, "mediaType": MANIFEST, "manifests": []}, "fit"),
        ({"schemaVersion": 2, "manifests": [], "layers": []}, "at once"),
        ({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}, "announced"),
        ({"schemaVersion": 2, "mediaType": MANIFEST, "layers": []}, "config"),
        ({"schemaVersion": 2, "mediaType": "application/json"}, "announced"),
    ],
)
def test_manifests_that_are_none(server: RegistryServer, document: Any, word: str) -> None:
    server.add_manifest(document)
    refused(server, CorruptImage, word)


def test_unknown_layer_types_and_artifacts(server: RegistryServer) -> None:
    server.add_image(LAYER_BYTES, layers=[descriptor(LAYER_BYTES, "application/vnd.oci.image.layer.v1.tar+encrypted")])
    refused(server, CorruptImage, "encrypted")
    server.add_image(LAYER_BYTES, config=descriptor(b"{}", "application/vnd.cncf.helm.config.v1+json"))
    refused(server, CorruptImage, "artifact", "helm")


def test_layers_and_config_disagree(server: RegistryServer) -> None:
    """Attack 18: an image without layers is refused where its config has some."""
    server.add_image(LAYER_BYTES, layers=[])
    refused(server, CorruptImage, "no layers")
    server.add_image(LAYER_BYTES, layers=[descriptor(LAYER_BYTES, LAYER)] * 2)
    refused(server, CorruptImage, "2 layers")


def test_an_image_of_nothing_must_say_so(server: RegistryServer) -> None:
    for config, good in (({"os": "linux", "architecture": "amd64"}, True), ({}, False)):
        raw = json.dumps({**config, "rootfs": {"type": "layers", "diff_ids": []}}).encode()
        server.add_blob(raw)
        server.add_manifest({"schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(raw, CONFIG), "layers": []})
        if good:
            assert pull(server)[0].layers == ()
        else:
            refused(server, CorruptImage, "no layers")


def test_the_index_chooses_the_platform(server: RegistryServer) -> None:
    entries = []
    for architecture, variant in (("unknown", ""), ("arm", "v6"), ("arm", "v7"), ("arm64", "v8"), ("amd64", "")):
        raw = json.dumps(server.add_image(f"{architecture}{variant}".encode(), f"{architecture}{variant}")).encode()
        platform = {"os": "unknown" if architecture == "unknown" else "linux", "architecture": architecture, "variant": variant}
        entries.append(descriptor(raw, MANIFEST, platform=platform))
    server.add_manifest({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}, media_type=INDEX)
    wanted = {("amd64", ""): b"amd64", ("arm64", ""): b"arm64v8", ("arm", "v7"): b"armv7", ("arm", "v6"): b"armv6", ("arm", "v8"): b"armv7"}
    for (architecture, variant), layer in wanted.items():
        assert pull(server, platform=Platform("linux", architecture, variant))[1] == [layer]
    refused(server, NotFound, "linux/riscv64", "linux/arm64/v8", platform=Platform("linux", "riscv64"))


def test_an_index_that_contains_itself(server: RegistryServer) -> None:
    inner = {"schemaVersion": 2, "mediaType": INDEX, "manifests": []}
    for _ in range(10):
        raw = server.add_manifest(inner, media_type=INDEX)
        inner = {**inner, "manifests": [descriptor(raw, INDEX, platform={"os": "linux", "architecture": "amd64"})]}
    server.add_manifest(inner, media_type=INDEX)
    refused(server, CorruptImage, "nested")


def test_a_broken_connection_is_taken_up_where_it_broke(server: RegistryServer) -> None:
    server.add_image(LAYER_BYTES)
    path = f"/v2/image/blobs/{digest_of(LAYER_BYTES)}"
    cut = 1_500_000

    def handler(request: BaseHTTPRequestHandler) -> Answer | None:
        if request.path != path:
            return None
        start = request.headers.get("Range", "")
        if not start:
            return Answer(LAYER_BYTES, cut_at=cut)
        offset = int(start.removeprefix("bytes=").rstrip("-"))
        rest = LAYER_BYTES[offset:]
        return Answer(rest, 206, {"Content-Range": f"bytes {offset}-{len(LAYER_BYTES) - 1}/{len(LAYER_BYTES)}"})

    server.handler = handler
    seen: list[Progress] = []
    _, layers = pull(server, progress=seen.append)
    assert layers == [LAYER_BYTES]
    assert [item.kind for item in seen].count("retry") == 1
    ranges = [headers.get("Range") for asked, headers in server.requests if asked == path]
    assert len(ranges) == 2
    assert ranges[1] not in (None, "bytes=0-")


def test_a_server_without_ranges_and_one_that_lies_about_them(server: RegistryServer) -> None:
    server.add_image(LAYER_BYTES)
    path = f"/v2/image/blobs/{digest_of(LAYER_BYTES)}"
    asked: list[str] = []

    def forgetful(request: BaseHTTPRequestHandler) -> Answer | None:
        if request.path != path:
            return None
        asked.append(request.path)
        return Answer(LAYER_BYTES, cut_at=2_000_000 if len(asked) == 1 else None)

    server.handler = forgetful
    assert pull(server)[1] == [LAYER_BYTES]

    asked.clear()

    def liar(request: BaseHTTPRequestHandler) -> Answer | None:
        if request.path != path:
            return None
        asked.append(request.path)
        if len(asked) == 1:
            return Answer(LAYER_BYTES, cut_at=2_000_000)
        return Answer(LAYER_BYTES[5:], 206, {"Content-Range": f"bytes 5-{len(LAYER_BYTES) - 1}/{len(LAYER_BYTES)}"})

    server.handler = liar
    refused(server, CorruptImage, "another part")


def test_a_connection_that_always_breaks(server: RegistryServer) -> None:
    server.add_image(LAYER_BYTES)
    path = f"/v2/image/blobs/{digest_of(LAYER_BYTES)}"
    server.answers[path] = Answer(LAYER_BYTES, cut_at=0)
    refused(server, RegistryFailure, "broke")
    assert len([1 for asked, _ in server.requests if asked == path]) == 3


def test_temporary_failures_are_repeated_and_others_are_not(server: RegistryServer) -> None:
    server.add_image(LAYER_BYTES)
    good = server.answers["/v2/image/manifests/latest"]
    waiting = [Answer(status=503), Answer(status=429, headers={"Retry-After": "0"})]
    server.handler = lambda request: waiting.pop() if waiting and "manifests" in request.path else None
    assert pull(server)[1] == [LAYER_BYTES]
    server.handler = None
    for status, kind in ((500, RegistryFailure), (404, NotFound), (403, AuthenticationFailed), (418, RegistryFailure)):
        server.requests.clear()
        body = json.dumps({"errors": [{"code": "X", "message": "the \x1b[31m reason"}]}).encode()
        server.answers["/v2/image/manifests/latest"] = Answer(body, status)
        refused(server, kind, "the [31m reason")
        assert len([1 for path, _ in server.requests if "manifests" in path]) == (3 if status == 500 else 1)
    server.answers["/v2/image/manifests/latest"] = good


def test_nobody_listens() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with pytest.raises(RegistryFailure, match="cannot reach the registry"), open_source(f"127.0.0.1:{port}/x", configuration=settings()) as source:
        next(source.images())


def guarded(server: RegistryServer, token_service: str, header: str = "Authorization") -> None:
    """Ask for a token before anything is given."""

    def handler(request: BaseHTTPRequestHandler) -> Answer | None:
        if request.path.startswith("/token") or request.path == "/v2/" or request.headers.get(header) == "Bearer good":
            return None
        scope = "repository:image:pull"
        return Answer(status=401, headers={"WWW-Authenticate": f'Bearer realm="{token_service}",service="s",scope="{scope}"'})

    server.handler = handler


def test_an_anonymous_token(server: RegistryServer) -> None:
    server.add_image(LAYER_BYTES)
    guarded(server, f"http://{server.address}/token")
    server.answers["/token?service=s&scope=repository%3Aimage%3Apull"] = Answer(b'{"token":"good"}')
    assert pull(server)[1] == [LAYER_BYTES]
    token = [headers for path, headers in server.requests if path.startswith("/token")]
    assert len(token) == 1
    assert "Authorization" not in token[0]


def test_credentials_are_used_and_never_shown(server: RegistryServer) -> None:
    server.add_image(LAYER_BYTES)
    guarded(server, f"http://{server.address}/token")
    server.answers["/token?service=s&scope=repository%3Aimage%3Apull"] = Answer(b"", 401)
    credentials = Credentials("me", "secret-word")
    assert "secret-word" not in repr(credentials)
    with pytest.raises(AuthenticationFailed) as caught:
        pull(server, credentials=lambda host: credentials if host == server.address else None)
    assert "secret-word" not in str(caught.value)
    assert [headers["Authorization"] for path, headers in server.requests if path.startswith("/token")] == ["Basic bWU6c2VjcmV0LXdvcmQ="]


@pytest.mark.parametrize("answer", [b"{}", b"nonsense", b'{"token": "a\\r\\nX-Evil: 1"}', b'{"token": 5}'])
def test_tokens_that_are_none(server: RegistryServer, answer: bytes) -> None:
    server.add_image(LAYER_BYTES)
    guarded(server, f"http://{server.address}/token")
    server.answers["/token?service=s&scope=repository%3Aimage%3Apull"] = Answer(answer)
    refused(server, AuthenticationFailed, "token")


def test_a_redirect_carries_no_credentials(server: RegistryServer, other: RegistryServer) -> None:
    """Attack 21: the storage that a registry redirects to must not see the token."""
    server.add_image(LAYER_BYTES)
    guarded(server, f"http://{server.address}/token")
    server.answers["/token?service=s&scope=repository%3Aimage%3Apull"] = Answer(b'{"token":"good"}')
    path = f"/v2/image/blobs/{digest_of(LAYER_BYTES)}"
    server.answers[path] = Answer(status=307, headers={"Location": f"http://{other.address}/storage?signature=1"})
    other.answers["/storage?signature=1"] = Answer(LAYER_BYTES)
    assert pull(server)[1] == [LAYER_BYTES]
    assert other.requests
    assert all("Authorization" not in headers for _, headers in other.requests)
    assert any(headers.get("Authorization") == "Bearer good" for asked, headers in server.requests if asked == path)


def test_only_the_registry_may_ask_for_a_login(server: RegistryServer, other: RegistryServer) -> None:
    """Attack 21: a place that the registry redirects to gets no credentials by asking for them."""
    server.add_image(LAYER_BYTES)
    server.answers["/v2/image/blobs/" + digest_of(LAYER_BYTES)] = Answer(status=307, headers={"Location": f"http://{other.address}/storage"})
    other.answers["/storage"] = Answer(status=401, headers={"WWW-Authenticate": f'Bearer realm="http://{other.address}/token",service="s"'})
    refused(server, AuthenticationFailed, credentials=lambda _: Credentials("me", "secret-word"))
    assert [path for path, _ in other.requests] == ["/storage"]


def test_a_password_never_travels_plainly(server: RegistryServer) -> None:
    server.add_image(LAYER_BYTES)
    guarded(server, "http://token.test/")
    refused(server, AuthenticationFailed, "plain http", credentials=lambda _: Credentials("me", "secret-word"))


def test_a_redirect_that_comes_back_has_them_again(server: RegistryServer, other: RegistryServer) -> None:
    server.add_image(LAYER_BYTES)
    server.answers["/v2/image/blobs/" + digest_of(LAYER_BYTES)] = Answer(status=302, headers={"Location": "/moved"})
    server.answers["/moved"] = Answer(LAYER_BYTES)
    assert pull(server)[1] == [LAYER_BYTES]


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://[fe80::1]/",
        "http://[fd00:ec2::254]/",
        "http://[::ffff:169.254.169.254]/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://2852039166/",
        "http://0.0.0.0/",
        "http://100.100.100.200/",
        "file:///etc/passwd",
        "gopher://127.0.0.1/",
        "http://user:word@127.0.0.1/",
        "http://127.0.0.1:99999/",
        "//",
    ],
)
def test_redirects_to_forbidden_places(server: RegistryServer, location: str) -> None:
    """Attack 21: neither a redirect nor a token service may lead to metadata, wherever the registry is."""
    server.add_image(LAYER_BYTES)
    server.answers["/v2/image/blobs/" + digest_of(LAYER_BYTES)] = Answer(status=307, headers={"Location": location})
    refused(server, RegistryFailure, retries=0)
    guarded(server, location)
    refused(server, RegistryFailure, retries=0)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("169.254.169.254", Reach.FORBIDDEN),
        ("fe80::1%eth0", Reach.FORBIDDEN),
        ("fd00:ec2::254", Reach.FORBIDDEN),
        ("fd20:ce::254", Reach.FORBIDDEN),
        ("168.63.129.16", Reach.FORBIDDEN),
        ("::ffff:169.254.169.254", Reach.FORBIDDEN),
        ("64:ff9b::a9fe:a9fe", Reach.FORBIDDEN),
        ("2002:a9fe:a9fe::1", Reach.FORBIDDEN),
        ("0.0.0.0", Reach.FORBIDDEN),
        ("::", Reach.FORBIDDEN),
        ("224.0.0.1", Reach.FORBIDDEN),
        ("127.0.0.53", Reach.LOOPBACK),
        ("::1", Reach.LOOPBACK),
        ("::ffff:127.0.0.1", Reach.LOOPBACK),
        ("10.1.2.3", Reach.PRIVATE),
        ("192.168.1.1", Reach.PRIVATE),
        ("100.64.0.1", Reach.PRIVATE),
        ("fd12::1", Reach.PRIVATE),
        ("64:ff9b::a01:203", Reach.PRIVATE),
        ("8.8.8.8", Reach.PUBLIC),
        ("2606:4700::1111", Reach.PUBLIC),
        ("::ffff:8.8.8.8", Reach.PUBLIC),
    ],
)
def test_how_far_out_addresses_lie(address: str, expected: Reach) -> None:
    assert destinations.reach(address) is expected


def test_a_redirect_without_end(server: RegistryServer) -> None:
    server.add_image(LAYER_BYTES)
    path = "/v2/image/blobs/" + digest_of(LAYER_BYTES)
    server.answers[path] = Answer(status=307, headers={"Location": path})
    refused(server, RegistryFailure, "redirects more than")


@pytest.mark.parametrize(("first", "second", "good"), [(Reach.PUBLIC, Reach.PRIVATE, False), (Reach.PRIVATE, Reach.LOOPBACK, False),
                                                     (Reach.PUBLIC, Reach.LOOPBACK, False), (Reach.PRIVATE, Reach.PUBLIC, True)])  # fmt: skip
def test_answers_lead_outwards_only(monkeypatch: pytest.MonkeyPatch, server: RegistryServer, first: Reach, second: Reach, good: bool) -> None:
    """Attack 21: a registry elsewhere must not reach this machine or its network through the client. (The reaches of two addresses are feigned.)"""
    monkeypatch.setattr(destinations, "reach", lambda address: second if address == "127.0.0.2" else first)
    with registry_server("127.0.0.2") as inner:
        server.add_image(LAYER_BYTES)
        server.answers["/v2/image/blobs/" + digest_of(LAYER_BYTES)] = Answer(status=307, headers={"Location": f"http://127.0.0.2:{inner.port}/blob"})
        inner.answers["/blob"] = Answer(LAYER_BYTES)
        if good:
            assert pull(server)[1] == [LAYER_BYTES]
        else:
            refused(server, RegistryFailure, "refusing to follow")
            assert inner.requests == []


def test_a_long_way_round_leads_no_further_in(monkeypatch: pytest.MonkeyPatch, server: RegistryServer, other: RegistryServer) -> None:
    """A private registry may send to the world, but the world may not send back into the private network."""
    reaches = {"127.0.0.1": Reach.PRIVATE, "127.0.0.2": Reach.PUBLIC, "127.0.0.3": Reach.PRIVATE}
    monkeypatch.setattr(destinations, "reach", lambda address: reaches[address])
    with registry_server("127.0.0.2") as world, registry_server("127.0.0.3") as inner:
        server.add_image(LAYER_BYTES)
        server.answers["/v2/image/blobs/" + digest_of(LAYER_BYTES)] = Answer(status=307, headers={"Location": f"http://127.0.0.2:{world.port}/"})
        world.answers["/"] = Answer(status=307, headers={"Location": f"http://127.0.0.3:{inner.port}/"})
        refused(server, RegistryFailure, "refusing to follow")
        assert inner.requests == []


def test_a_name_with_one_good_and_one_bad_address(monkeypatch: pytest.MonkeyPatch, server: RegistryServer) -> None:
    real = socket.getaddrinfo

    def both(host: str, port: int, *arguments: Any, **more: Any) -> Any:
        if host != "trap.test":
            return real(host, port, *arguments, **more)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in ("127.0.0.1", "169.254.169.254")]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    server.add_image(LAYER_BYTES)
    server.answers["/v2/image/blobs/" + digest_of(LAYER_BYTES)] = Answer(status=307, headers={"Location": f"http://trap.test:{server.port}/x"})
    refused(server, RegistryFailure, "169.254.169.254")


def test_https_is_never_left_and_never_doubted() -> None:
    with pytest.raises(RegistryFailure, match="plain http"):
        destinations.follow("https://registry.example/v2/", "http://registry.example/blob")
    assert destinations.follow("https://registry.example/v2/", "/x").geturl() == "https://registry.example/x"


def test_plain_http_only_where_it_is_allowed(server: RegistryServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add_image(LAYER_BYTES)
    name = f"registry.test:{server.port}"
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: real("127.0.0.1" if host == "registry.test" else host, *rest, **more))
    with pytest.raises(RegistryFailure), open_source(f"{name}/image", platform=AMD64, configuration=settings(retries=0)) as source:
        next(source.images())
    assert server.requests == []
    with open_source(f"{name}/image", platform=AMD64, configuration=settings(insecure_registries=(name,))) as source:
        assert next(source.images()).id


def test_mirrors_come_first_and_may_fail(server: RegistryServer, other: RegistryServer) -> None:
    server.add_image(LAYER_BYTES)
    other.add_image(b"from the mirror")
    assert pull(server, mirrors={server.address: (other.address,)})[1] == [b"from the mirror"]
    other.answers.clear()
    assert pull(server, mirrors={server.address: (other.address,)})[1] == [LAYER_BYTES]


def test_sha512(server: RegistryServer) -> None:
    layer = {**descriptor(LAYER_BYTES, LAYER), "digest": "sha512:" + hashlib.sha512(LAYER_BYTES).hexdigest()}
    server.add_image(LAYER_BYTES, layers=[layer])
    server.answers[f"/v2/image/blobs/{layer['digest']}"] = Answer(LAYER_BYTES)
    assert pull(server)[1] == [LAYER_BYTES]


def test_a_certificate_that_nobody_signed(tmp_path: Path) -> None:
    """TLS is verified also on this machine; a server that speaks it is never taken for a plain one."""
    if shutil.which("openssl") is None:
        tiers.give_up("programs", "not installed: openssl")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "cert")], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    with registry_server(context=context) as server:
        server.add_image(LAYER_BYTES)
        refused(server, RegistryFailure, "securely", "certificate", retries=0)
        assert server.requests == []


def test_a_plain_answer_of_a_tls_server_is_no_registry(server: RegistryServer) -> None:
    server.answers["/v2/"] = Answer(b"Client sent an HTTP request to an HTTPS server.", 400)
    server.add_image(LAYER_BYTES)
    refused(server, RegistryFailure, retries=0)
    assert {path for path, _ in server.requests} == {"/v2/"}


def test_through_a_proxy(server: RegistryServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy finds the registry; this machine is still not reached through it, and spelled-out addresses are still judged."""
    monkeypatch.setenv("http_proxy", f"http://{server.address}")
    monkeypatch.setenv("https_proxy", f"http://{server.address}")
    monkeypatch.setenv("no_proxy", "")
    server.add_image(LAYER_BYTES)
    start = "http://registry.test"
    server.handler = lambda request: server.answers.get(request.path.removeprefix(start)) or (
        Answer(b"{}") if request.path == f"{start}/v2/" else None
    )
    configuration = settings(insecure_registries=("registry.test",), retries=0)
    with open_source("registry.test/image", platform=AMD64, configuration=configuration) as source:
        assert b"".join(next(source.images()).layers[0].open()) == LAYER_BYTES
    assert all(path.startswith(start) for path, _ in server.requests)
    server.answers["/v2/image/blobs/" + digest_of(LAYER_BYTES)] = Answer(status=307, headers={"Location": "http://169.254.169.254/"})
    with open_source("registry.test/image", platform=AMD64, configuration=configuration) as source:
        layer = next(source.images()).layers[0]
        with pytest.raises(RegistryFailure, match="refusing"):
            list(layer.open())
    server.requests.clear()
    with pytest.raises(RegistryFailure):
        pull(server, retries=0)
    assert server.requests
    assert all(path.startswith("/v2/") for path, _ in server.requests)
