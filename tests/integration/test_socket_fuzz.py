"""Requests that nobody would send: whatever stands in queries and bodies, the answer is a sentence, never a fault of the server, and it goes on."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from bulle.api.description import openapi
from bulle_testing.running import Machine
from bulle_testing.socket_clients import Served, serving

pytestmark = [pytest.mark.root, pytest.mark.slow]

SEEDS = range(6)
# They wait for something that does not come, or take the connection over; or need what is not there (a registry, a wide look at the disk).
LEFT_OUT = {
    ("GET", "/events"), ("POST", "/containers/{name}/attach"), ("GET", "/containers/{name}/attach/ws"),
    ("POST", "/exec/{identifier}/start"), ("POST", "/images/create"), ("POST", "/auth"),
    ("GET", "/distribution/{name...}/json"),
}  # fmt: skip
TEXTS = (
    "", "x", "/", "..", "../../etc/passwd", "\0", "\u00e4\u4e2d\U0001f40b", "a" * 3000, "-1", "1", "9" * 30, "true", "null", "[]", "{}",
    '{"label":["a"]}',
    '{"label":{"a":true}}', '{"name":[1]}', "host", "bridge", "busybox", "busybox:latest", "sha256:" + "0" * 64, "0" * 64, "a b", "%00", "1e400",
)  # fmt: skip


@pytest.fixture(scope="module")
def server(module_machine: Machine) -> Iterator[Served]:
    """The module's home, served."""
    with serving(module_machine.home) as served:
        yield served


class Chance:
    """Values of a kind, most of them wrong."""

    def __init__(self, seed: int, components: dict[str, Any]) -> None:
        self.random = random.Random(seed)
        self._components = components

    def text(self) -> str:
        """Any text."""
        return self.random.choice(TEXTS)

    def value(self, schema: dict[str, Any], depth: int = 0) -> Any:
        """What the schema describes, or something else."""
        if self.random.random() < 0.1:
            return self.random.choice([None, 0, -1, 2**70, 1.5, "", "x", [], {}, [None], {"a": None}, True])
        if "$ref" in schema:
            schema = self._components[schema["$ref"].rpartition("/")[2]]
        if "anyOf" in schema:
            return self.value(self.random.choice(schema["anyOf"]), depth)
        kind = schema.get("type")
        if kind == "object" and depth < 4:
            found = {name: self.value(one, depth + 1) for name, one in schema.get("properties", {}).items() if self.random.random() < 0.25}
            more = schema.get("additionalProperties")
            if isinstance(more, dict) and self.random.random() < 0.5:
                found[self.text()] = self.value(more, depth + 1)
            return found
        if kind == "array" and depth < 4:
            return [self.value(schema.get("items", {}), depth + 1) for _ in range(self.random.randrange(3))]
        plain = {"string": self.text, "boolean": lambda: self.random.random() < 0.5, "integer": lambda: self.random.choice([0, 1, -1, 7, 2**40])}
        return plain[kind]() if kind in plain else None


@pytest.mark.parametrize("seed", SEEDS)
def test_nonsense_is_answered_with_a_sentence(server: Served, box: Machine, seed: int) -> None:
    description = openapi()
    chance = Chance(seed, description["components"]["schemas"])
    wrong = []
    for path, methods in sorted(description["paths"].items(), key=lambda _item: chance.random.random()):
        if not any(one.name == "one" for one in box.engine.containers.list(all=True)):
            server.request("POST", "/containers/create?name=one", {"Image": "busybox:latest", "Cmd": ["sleep", "1000"], "Tty": True})
            server.request("POST", "/containers/one/start")
            server.request("POST", "/images/busybox/tag?repo=kept")
        for method, operation in methods.items():
            if (method.upper(), path.replace("{name}/json", "{name...}/json") if "distribution" in path else path) in LEFT_OUT:
                continue
            filled = path
            for name in ("name", "identifier", "path"):
                known = "busybox" if "image" in path else "bridge" if "network" in path else "one"
                chosen = known if chance.random.random() < 0.6 else chance.text() or "x"
                filled = filled.replace(f"{{{name}}}", quote(chosen, safe=chance.random.choice(["", "/"])))
            query = [(one["name"], chance.text()) for one in operation["parameters"] if one["in"] == "query" and chance.random.random() < 0.5]
            body: object = None
            if "requestBody" in operation:
                body = chance.value(operation["requestBody"]["content"]["application/json"]["schema"])
            elif method in ("post", "put") and chance.random.random() < 0.3:
                body = chance.random.randbytes(100)
            if path.endswith(("/wait", "/logs", "/stats")):
                query = [(name, value) for name, value in query if name not in ("follow", "stream", "condition")]
                query += [("stream", "0"), ("one-shot", "1")] if path.endswith("/stats") else []
                if path.endswith("/wait"):
                    continue
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            answer = server.request(method.upper(), f"{filled}?{urlencode(query)}", raw)
            if answer.status >= 500 and answer.status not in (501, 503):
                wrong.append((method, filled[:80], query, raw[:300], answer.status, answer.body[:200]))
            if answer.status >= 400 and method != "head":
                assert answer.message.strip(), (method, filled, answer)
    for container in box.engine.containers.list(all=True):
        container.remove(force=True)
    for network in box.engine.networks.list():
        if network.name not in ("bridge", "host", "none"):
            box.engine.networks.remove(network.id)
    for volume in box.engine.volumes.list():
        box.engine.volumes.remove(volume.name)
    assert not wrong
    assert server.request("GET", "/_ping").body == b"OK"
    assert any("kept:latest" in one["RepoTags"] for one in server.request("GET", "/images/json").document)
    server.request("POST", "/images/kept/tag?repo=busybox&tag=latest")
