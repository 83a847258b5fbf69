"""Schemathesis makes requests from what ``bulle serve --openapi`` prints, as they are meant and otherwise: no answer is a fault of the server, every
failure is the document that is described, and the server goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import requests
import schemathesis
from docker.transport import UnixHTTPAdapter
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from bulle.api.description import openapi
from bulle_testing.running import Machine
from bulle_testing.socket_clients import Served, serving

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]

EXAMPLES = 6
"""Of each operation in each of four kinds: meant and not, with the name of something that is there and without."""
CHECKS = [response_schema_conformance, content_type_conformance, status_code_conformance]
# They wait for something that does not come, or take the connection over; or need what is not there (a registry).
LEFT_OUT = {
    "GET /events", "POST /containers/{name}/attach", "GET /containers/{name}/attach/ws", "POST /containers/{name}/wait",
    "POST /exec/{identifier}/start", "POST /images/create", "POST /images/{name}/push", "POST /auth", "GET /distribution/{name}/json",
}  # fmt: skip
ONCE = {"follow": "0", "stream": "0", "one-shot": "1", "t": "0", "remote": ""}
"""Of a query only so, since other values wait for what does not come."""
OPERATIONS = sorted(
    f"{method.upper()} {path}" for path, methods in openapi()["paths"].items() for method in methods if f"{method.upper()} {path}" not in LEFT_OUT
)


@pytest.fixture(scope="module")
def server(module_machine: Machine) -> Iterator[Served]:
    """The module's home, served."""
    with serving(module_machine.home) as served:
        yield served


@pytest.fixture(scope="module")
def schema(module_machine: Machine) -> Any:
    """What the command prints."""
    return schemathesis.openapi.from_dict(json.loads(module_machine.command("serve", "--openapi").stdout))


@pytest.fixture
def session(server: Served, box: Machine) -> Iterator[requests.Session]:
    """Requests to the server, which has a container, a network and a volume; what a test makes is removed."""
    for kind in ("containers", "networks", "volumes"):
        body = {"Name": "one", "Image": "busybox:latest", "Cmd": ["sleep", "1000"], "Tty": True, "HostConfig": {"NetworkMode": "none"}}
        assert server.request("POST", f"/{kind}/create?name=one", body).status == 201
    with requests.Session() as made:
        made.mount("http://socket/", UnixHTTPAdapter(server.address.replace("unix://", "http+unix://")))
        yield made
    for container in box.engine.containers.list(all=True):
        container.remove(force=True)
    for network in box.engine.networks.list():
        if network.name not in ("bridge", "host", "none"):
            box.engine.networks.remove(network.id)
    for volume in box.engine.volumes.list():
        box.engine.volumes.remove(volume.name)


def known(path: str) -> dict[str, str]:
    """The name of something that is there."""
    return {"name": "busybox" if "/images/" in path else "one", "identifier": "one", "path": "one"}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_answer_is_as_described(server: Served, schema: Any, session: requests.Session, operation: str) -> None:
    method, path = operation.split()
    described = schema[path][method]
    statuses = set()

    def ask(case: Any) -> None:
        known_here = {one.name for one in described.query}
        case.query = {**(case.query or {}), **{name: value for name, value in ONCE.items() if name in known_here}}
        answer = case.call(base_url="http://socket", session=session, timeout=240)
        statuses.add(answer.status_code)
        assert answer.status_code < 500 or answer.status_code in (501, 503), (answer.status_code, answer.text)
        case.validate_response(answer, checks=CHECKS)
        server.request("POST", "/images/busybox/tag?repo=kept")
        server.request("POST", "/images/kept/tag?repo=busybox")

    parameters = {name: value for name, value in known(path).items() if f"{{{name}}}" in path}
    for mode in GenerationMode:
        for chosen in ({}, {"path_parameters": parameters}) if parameters else ({},):
            with suppress(Unsatisfiable):  # nothing that is not meant can be said
                strategy = described.as_strategy(generation_mode=mode, **chosen)
                limits = settings(
                    max_examples=EXAMPLES,
                    deadline=None,
                    derandomize=True,
                    database=None,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )
                limits(given(strategy)(ask))()
    assert statuses
    assert server.request("GET", "/_ping").body == b"OK"
