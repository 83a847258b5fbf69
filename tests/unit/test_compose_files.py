"""Files of an app become a project; what is wrong is one sentence with file and line, and hostile files are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from bulle.compose.hashing import service_hash
from bulle.compose.loading import LoadRequest, load
from bulle.compose.model import Place, Project
from bulle.errors import BulleError


def loaded(place: Path, text: str | bytes, *more: str, **request: object) -> Project:
    """The project of a file with this text, and of override files."""
    names = ["compose.yaml", "compose.override.yaml"]
    for name, content in zip(names, (text, *more), strict=False):
        (place / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return load(LoadRequest(project_directory=str(place), environment={"HOME": "/root"}, **request))  # type: ignore[arg-type]


def refused(place: Path, text: str | bytes, *more: str) -> str:
    """The sentence that says what is wrong; it is one, without a traceback's words."""
    with pytest.raises(BulleError) as caught:
        loaded(place, text, *more)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_places_are_where_a_key_was_said_last(tmp_path: Path) -> None:
    project = loaded(
        tmp_path,
        "x-a: &a\n  user: u\nservices:\n  web:\n    <<: *a\n    image: x\n    ports: ['80']\n  worker:\n    extends: web\n    command: c\n",
        "services:\n  web:\n    image: y\n",
    )
    first, second = str(tmp_path / "compose.yaml"), str(tmp_path / "compose.override.yaml")
    assert project.place("services", "web", "image") == Place(second, 3)
    assert project.place("services", "web", "ports", 0, "target") == Place(first, 7)
    assert project.place("services", "web", "user") == Place(first, 2)
    assert project.place("services", "worker", "ports") == Place(first, 7)
    assert project.place("services", "worker", "command") == Place(first, 10)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("services:\n  a:\n    image: x\n    prots: []\n", 4),
        ("services:\n  a:\n    image: x\n    ports: ['x']\n", 4),
        ("services:\n  a:\n    image: x\n    deploy:\n      replicas: x\n", 5),
        ("services:\n  a:\n    image: x\n    networks: [n]\n", 4),
        ("services:\n  a:\n    image: ${X:?why}\n", 3),
        ("services:\n  a:\n    image: x\n  a:\n    image: y\n", 4),
        ("services:\n  a:\n    image: x\n    x-bulle-autoscale: {max: 3}\n", 4),
        ("services:\n  a:\n    image: x\n    x-bulle-other: 1\n", 4),
        ("services:\n  a:\n    image: x\n    healthcheck: {interval: 5x}\n", 4),
        ("services:\n  a:\n    image: x\n\t- b\n", 4),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    assert refused(tmp_path, text).startswith(f"{tmp_path}/compose.yaml:{line}: ")


def test_our_extensions_are_fields(tmp_path: Path) -> None:
    text = "services: {a: {image: x, x-bulle-autoscale: {min: 2, max: 5, cpu: 60%}, x-bulle-balance: sticky, x-bulle-drain: 10s, x-own: 1}}"
    service = loaded(tmp_path, text).services["a"]
    assert service.autoscale is not None
    assert (service.autoscale.min, service.autoscale.max, service.autoscale.cpu) == (2, 5, 60)
    assert (service.balance, service.drain, service.extensions) == ("sticky", 10_000_000_000, {"x-own": 1})


def test_keys_newer_than_the_peer(tmp_path: Path) -> None:
    (tmp_path / "raw.env").write_text("A='$x' # y\n")
    text = """services:
  a:
    image: x
    env_file: [{path: raw.env, format: raw}]
    networks: {default: {gw_priority: 3, interface_name: eth7}}
    develop: {watch: [{path: ., action: sync, target: /a, initial_sync: true, include: "*.py"}]}
    volumes: [{type: image, source: y, target: /i, image: {subpath: s}}]
    pull_policy: every_12h
    mem_limit: 1.5
"""
    service = loaded(tmp_path, text).services["a"]
    assert service.environment == {"A": "'$x' # y"}
    assert (service.networks["default"].gw_priority, service.networks["default"].interface_name) == (3, "eth7")
    assert service.volumes[0].image is not None and service.volumes[0].image.subpath == "s"
    assert service.mem_limit == 1


def test_named_services_are_enabled_with_what_they_need(tmp_path: Path) -> None:
    text = "services: {a: {image: x, profiles: [p], depends_on: [b]}, b: {image: y, profiles: [q]}, c: {image: z, profiles: [r]}}"
    assert set(loaded(tmp_path, text, services=("a",)).services) == {"a", "b"}


def test_hash_is_of_what_makes_a_container(tmp_path: Path) -> None:
    def hashed(body: str) -> str:
        return service_hash(loaded(tmp_path, f"services: {{a: {{image: x{body}}}, b: {{image: y}}}}").services["a"])

    same = hashed("")
    for body in (", scale: 3", ", depends_on: [b]", ", profiles: []", ", build: .", ", deploy: {replicas: 2}", ", pull_policy: always", ", x-a: 1"):
        assert hashed(body) == same or body == ", deploy: {replicas: 2}"
    assert hashed(", deploy: {replicas: 2}") == hashed(", deploy: {replicas: 3}")
    for body in (", command: c", ", environment: {A: 1}", ", ports: ['80']", ", mem_limit: 1m", ", stop_grace_period: 3s"):
        assert hashed(body) != same


_BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))


@pytest.mark.parametrize(
    "content",
    [
        _BOMB.encode(),
        b"a: " + b"[" * 5000,
        b"a: " + b"{a: " * 900,
        b"a: &a [*a]",
        b"a: &a\n  <<: *a\n",
        b"services: {a: {image: 'x\0y'}}",
        b"\xff\xfe\xfa",
        "services: {a: {image: é}}".encode("latin-1"),
        b"services: " + b"x" * (17 << 20),
        b"%YAML 9.9\n---\na: b",
        b"services: {a: {image: .inf}}",
        b"- " * 1000,
        b"\x89PNG\r\n\x1a\n\0\0\0",
    ],
    ids=lambda content: content[:12].decode("latin-1"),
)
def test_hostile_files_are_refused(tmp_path: Path, content: bytes) -> None:
    assert str(tmp_path) in refused(tmp_path, content)


def test_circles_of_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("include: [compose.yaml]\n")
    assert "includes itself" in refused(tmp_path, "include: [b.yaml]\n")
    (tmp_path / "c.yaml").write_text("services: {c: {extends: {file: compose.yaml, service: a}}}\n")
    assert "extends itself" in refused(tmp_path, "services: {a: {extends: {file: c.yaml, service: c}}}\n")
    assert "another machine" in refused(tmp_path, "include: ['https://example.com/compose.yaml']\n")


def test_a_long_chain_of_services_is_no_problem(tmp_path: Path) -> None:
    services = "".join(f"  s{n}: {{image: x, depends_on: [s{n + 1}]}}\n" for n in range(3000))
    project = loaded(tmp_path, f"services:\n{services}  s3000: {{image: x}}\n")
    assert len(project.services) == 3001


def test_what_is_cut_from_a_command_is_told(tmp_path: Path) -> None:
    project = loaded(tmp_path, "services:\n  a:\n    image: x\n    command: sleep 1 && echo two\n")
    assert project.services["a"].command == ("sleep", "1")
    (note,) = project.notes
    assert note.place == Place(str(tmp_path / "compose.yaml"), 4) and "'&& echo two' is left out" in note.text
