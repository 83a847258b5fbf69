"""The files that say how registries are spoken to and who the user is for them: registries.toml, config.json, auth.json."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path

import pytest

from bulle.errors import AuthenticationFailed, BulleError, InvalidInput
from bulle.registry import credentials, settings
from bulle.registry.authentication import wanted_scopes
from bulle.registry.settings import Settings, parse_settings
from bulle.registry.transport import Credentials, Trust

WHOLE = b"""
[registry."docker.io"]
mirrors = ["mirror.example:5000", "[::1]:5000"]
[registry."registry.example:8443"]
insecure = true
ca = "/etc/ssl/registry.pem"
client_certificate = "/etc/ssl/me.pem"
client_key = "/etc/ssl/me.key"
"""


def test_everything_that_can_be_set() -> None:
    found = Settings(parse_settings(WHOLE, "registries.toml"))
    assert found.mirrors == {"docker.io": ("mirror.example:5000", "[::1]:5000")}
    assert found.insecure == ("registry.example:8443",)
    trust = found.trust("registry.example:8443", ())
    assert trust == Trust(False, (Path("/etc/ssl/registry.pem"),), (Path("/etc/ssl/me.pem"), Path("/etc/ssl/me.key")))
    assert found.trust("registry.example", ()) == Trust()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[registry."a.example"]\nmirror = ["b"]', ['registry."a.example"', "mirror"]),
        ('[registry."a.example"]\ninsecure = "yes"', ['registry."a.example"', "insecure", "bool"]),
        ('[registry."https://a.example"]', ["https://a.example", "not the name of a registry"]),
        ('[registry."a.example"]\nmirrors = ["https://b.example"]', ["https://b.example", "mirror"]),
        ('[registry."a.example"]\nca = "relative.pem"', ["ca", "absolute"]),
        ('[registry."a.example"]\nclient_key = "/a"', ["client_certificate"]),
        ('[registries."a.example"]', ["registries"]),
        ("[registry", ["registries.toml"]),
        ('registry = "x"', ["registry"]),
    ],
)
def test_what_is_wrong_is_named(text: str, words: list[str]) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_settings(text.encode(), "/etc/bulle/registries.toml")
    assert str(caught.value).startswith("/etc/bulle/registries.toml cannot be used")
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_which_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, own, named = tmp_path / "machine.toml", tmp_path / "config/bulle/registries.toml", tmp_path / "named.toml"
    own.parent.mkdir(parents=True)
    monkeypatch.setattr(settings, "_MACHINE", machine)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("BULLE_REGISTRIES", raising=False)
    assert settings.read_settings().entries == {}
    machine.write_text('[registry."a.example"]\ninsecure = true\n[registry."b.example"]\ninsecure = true\n')
    own.write_text('[registry."b.example"]\nmirrors = ["c.example"]\n')
    found = settings.read_settings()
    assert found.insecure == ("a.example",)
    assert found.mirrors == {"b.example": ("c.example",)}
    monkeypatch.setenv("BULLE_REGISTRIES", str(named))
    with pytest.raises(InvalidInput, match=r"named\.toml"):
        settings.read_settings()
    named.write_text("")
    assert settings.read_settings().entries == {}


def test_dockers_directory_of_certificates(tmp_path: Path) -> None:
    host = tmp_path / "registry.example:5000"
    host.mkdir()
    for name in ("ca.crt", "client.cert", "client.key"):
        (host / name).write_text("")
    found = Settings({}).trust("registry.example:5000", (tmp_path / "none", tmp_path))
    assert found == Trust(True, (host / "ca.crt",), (host / "client.cert", host / "client.key"))
    assert Settings({}).trust("registry.example", (tmp_path,)) == Trust()
    assert Settings({}).trust("../registry.example:5000", (tmp_path / "x",)) == Trust()


@pytest.fixture(autouse=True)
def own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads this user's real logins."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    (tmp_path / "docker").mkdir()


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("key", "host"),
    [
        ("registry.example", "registry.example"),
        ("https://registry.example", "registry.example"),
        ("https://registry.example/v2/", "registry.example"),
        ("registry.example:5000", "registry.example:5000"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("docker.io", "docker.io"),
    ],
)
def test_how_docker_calls_registries(tmp_path: Path, key: str, host: str) -> None:
    (tmp_path / "docker/config.json").write_text(json.dumps({"auths": {key: {"auth": encoded("me:a:word")}}}))
    assert credentials.find(host) == Credentials("me", "a:word")
    for other in ("example", "registry.example:5001", "evil-registry.example", "registry.example.evil", "localhost"):
        assert credentials.find(other) is None


def test_the_order_of_the_files(tmp_path: Path) -> None:
    podman = {"a.example": {"auth": encoded("podman:1")}, "b.example": {"auth": encoded("podman:2")}}
    (tmp_path / "auth.json").write_text(json.dumps({"auths": podman}))
    (tmp_path / "docker/config.json").write_text(json.dumps({"auths": {"a.example": {"auth": encoded("docker:3")}}}))
    assert credentials.find("a.example") == Credentials("docker", "3")
    assert credentials.find("b.example") == Credentials("podman", "2")
    assert credentials.erase("a.example")
    assert credentials.find("a.example") is None
    assert credentials.find("b.example") is not None


def test_identity_tokens_and_empty_entries(tmp_path: Path) -> None:
    entries = {"a.example": {"auth": encoded("u:"), "identitytoken": "t"}, "b.example": {}, "c.example": {"username": "u", "password": "p"}}
    (tmp_path / "docker/config.json").write_text(json.dumps({"auths": entries}))
    found = credentials.find("a.example")
    assert found == Credentials("u", "", "t")
    assert "t" not in repr(found).replace("Credentials", "").replace("username", "")
    assert credentials.find("b.example") is None
    assert credentials.find("c.example") == Credentials("u", "p")


@pytest.mark.parametrize(
    "content", ["[1]", "{", "\xff", '{"auths": {"a.example": {"auth": "bm9jb2xvbg=="}}}', '{"auths": {"a.example": {"auth": "%%%"}}}']
)
def test_files_that_are_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "docker/config.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InvalidInput, match=r"config\.json cannot be used") as caught:
        credentials.find("a.example")
    assert "nocolon" not in str(caught.value)
    if not content.startswith('{"auths"'):
        with pytest.raises(InvalidInput):
            credentials.store("a.example", Credentials("u", "p"))
    assert path.read_bytes() == content.encode("latin-1")


@pytest.mark.parametrize("name", ["../evil", "a/b", "", "x y", "gone"])
def test_helpers_that_are_none(tmp_path: Path, name: str) -> None:
    (tmp_path / "docker/config.json").write_text(json.dumps({"credHelpers": {"a.example": name}}))
    if not name:
        assert credentials.find("a.example") is None
        return
    with pytest.raises(AuthenticationFailed, match="credential helper"):
        credentials.find("a.example")
    assert credentials.find("b.example") is None


def test_a_helper_that_speaks_nonsense_says_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docker/config.json").write_text(json.dumps({"credHelpers": {"a.example": "odd", "b.example": "fails"}}))
    for name, line in (("odd", "echo my-secret-word"), ("fails", "echo my-secret-word; exit 3")):
        program = tmp_path / f"docker-credential-{name}"
        program.write_text(f"#!/bin/sh\n{line}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for host in ("a.example", "b.example"):
        with pytest.raises(BulleError) as caught:
            credentials.find(host)
        assert "my-secret-word" not in str(caught.value)


def test_a_file_is_written_in_one_step(tmp_path: Path) -> None:
    """Through a link, with everything that was there, and readable by nobody else."""
    real = tmp_path / "real.json"
    real.write_text('{"HttpHeaders": {"a": "b"}}')
    real.chmod(0o644)
    (tmp_path / "docker/config.json").symlink_to(real)
    credentials.store("a.example", Credentials("u", "p"))
    credentials.store("docker.io", Credentials("v", "q"))
    assert (tmp_path / "docker/config.json").is_symlink()
    assert json.loads(real.read_text()) == {
        "HttpHeaders": {"a": "b"},
        "auths": {"a.example": {"auth": encoded("u:p")}, credentials.DOCKER_HUB: {"auth": encoded("v:q")}},
    }
    assert stat.S_IMODE(real.stat().st_mode) == 0o600
    assert {path.name for path in tmp_path.iterdir()} == {"docker", "real.json"}
    assert credentials.find("docker.io") == Credentials("v", "q")


@pytest.mark.parametrize(
    ("text", "host"),
    [("", "docker.io"), ("https://registry.example/v2/", "registry.example"), ("index.docker.io", "docker.io"), ("127.0.0.1:5000", "127.0.0.1:5000")],
)
def test_names_of_servers(text: str, host: str) -> None:
    assert credentials.server_name(text) == host


def test_names_that_are_no_servers() -> None:
    for text in ("a b", "a\nb", "user@host"):
        with pytest.raises(InvalidInput):
            credentials.server_name(text)


@pytest.mark.parametrize(
    ("challenged", "ours", "wanted"),
    [
        ("repository:a:pull", "repository:a:pull", ["repository:a:pull"]),
        ("repository:mirrored/a:pull", "repository:a:pull", ["repository:mirrored/a:pull"]),
        ("repository:a:pull", "repository:a:pull,push", ["repository:a:pull,push"]),
        ("repository:a:push,pull", "repository:a:pull,push", ["repository:a:pull,push"]),
        ("", "repository:a:pull,push repository:b:pull", ["repository:a:pull,push", "repository:b:pull"]),
        ("", "", []),
    ],
)
def test_what_a_token_is_asked_for(challenged: str, ours: str, wanted: list[str]) -> None:
    assert wanted_scopes(challenged, ours) == wanted
