"""Images through the socket: from and to registries with the login of the request alone, as archives, and built; with progress, errors and breaks."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import tarfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from bulle_testing.peers import Registry
from bulle_testing.registry_server import Answer as RegistryAnswer
from bulle_testing.registry_server import RegistryServer, registry_server
from bulle_testing.running import Machine, wait_for
from bulle_testing.socket_clients import Served, serving

pytestmark = [pytest.mark.root]


@pytest.fixture(scope="module")
def server(module_machine: Machine) -> Iterator[Served]:
    """The module's home, served."""
    with serving(module_machine.home) as served:
        yield served


@pytest.fixture
def api(server: Served, box: Machine) -> Iterator[Served]:
    """The server, in a test that leaves no image but busybox."""
    yield server
    for image in server.request("GET", "/images/json").document:
        for name in image["RepoTags"] or [image["Id"]]:
            if name != "busybox:latest":
                assert server.request("DELETE", f"/images/{name}?force=1").status == 200


def said(body: bytes) -> list[dict[str, Any]]:
    """The documents of a stream."""
    return [json.loads(line) for line in body.splitlines() if line.strip()]


def auth(**login: str) -> dict[str, str]:
    return {"X-Registry-Auth": base64.urlsafe_b64encode(json.dumps(login).encode()).decode()}


def small_tar(**files: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return out.getvalue()


@pytest.mark.programs("docker-registry")
def test_push_look_and_pull(api: Served, registry: Registry) -> None:
    name = f"{registry.address}/by/socket"
    assert api.request("POST", f"/images/busybox/tag?repo={name}&tag=1").status == 201
    pushed = said(api.request("POST", f"/images/{name}/push?tag=1", headers=auth()).body)
    digest = next(one["aux"]["Digest"] for one in pushed if "aux" in one)
    found = api.request("GET", f"/distribution/{name}:1/json", headers=auth()).document
    assert (found["Descriptor"]["digest"], found["Platforms"][0]["os"]) == (digest, "linux")
    assert api.request("DELETE", f"/images/{name}:1").document == [{"Untagged": f"{name}:1"}]
    pulled = said(api.request("POST", f"/images/create?fromImage={name}&tag=1").body)
    assert {"status": f"Digest: {digest}"} in pulled
    assert pulled[-1]["status"].endswith(f" for {name}:1")
    by_digest = said(api.request("POST", f"/images/create?fromImage={name}&tag={digest}").body)
    assert {"status": f"Digest: {digest}"} in by_digest
    missing = said(api.request("POST", f"/images/create?fromImage={name}&tag=2").body)
    assert "error" in missing[-1]
    assert missing[-1]["error"] == missing[-1]["errorDetail"]["message"]
    assert api.request("GET", f"/distribution/{name}:2/json").status == 404


def wants(server: RegistryServer, login: bytes) -> None:
    """Have a registry ask for this login."""

    def guard(request: BaseHTTPRequestHandler) -> RegistryAnswer | None:
        if request.headers.get("Authorization") == f"Basic {base64.b64encode(login).decode()}":
            return None
        return RegistryAnswer(status=401, headers={"WWW-Authenticate": 'Basic realm="tests"'})

    server.handler = guard


def test_the_login_of_a_request_is_for_that_request(api: Served) -> None:
    with registry_server() as registry:
        registry.add_image(small_tar(file="content"))
        wants(registry, b"me:word")
        name = f"{registry.address}/image"

        def pull(**login: str) -> dict[str, Any]:
            return said(api.request("POST", f"/images/create?fromImage={name}&tag=latest", headers=auth(**login)).body)[-1]

        assert "error" in pull()
        assert "error" in pull(username="me", password="wrong")
        assert "error" not in pull(username="me", password="word")
        assert "error" in pull()
        assert api.request("POST", "/auth", {"username": "me", "password": "no", "serveraddress": registry.address}).status == 401
        taken = api.request("POST", "/auth", {"username": "me", "password": "word", "serveraddress": registry.address})
        assert (taken.status, taken.document["Status"]) == (200, "Login Succeeded")
        assert "error" in pull()  # it was kept nowhere
        context = small_tar(Dockerfile=f"FROM {name}:other\nLABEL a=b\n")
        registry.add_image(small_tar(file="other"), "other")
        header = base64.urlsafe_b64encode(json.dumps({registry.address: {"username": "me", "password": "word"}}).encode()).decode()
        assert "error" in said(api.request("POST", "/build", context).body)[-1]
        assert "Successfully built" in said(api.request("POST", "/build", context, {"X-Registry-Config": header}).body)[-1]["stream"]
        assert api.request("POST", "/images/create?fromImage=a&tag=b", headers=auth(identitytoken="x")).status == 501
        assert api.request("POST", "/images/create?fromImage=a&tag=b", headers={"X-Registry-Auth": "bm9uc2Vuc2U="}).status == 400


def test_save_and_load(api: Served) -> None:
    archive = api.request("GET", "/images/get?names=busybox:latest").body
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        assert "manifest.json" in opened.getnames()
    assert said(api.request("POST", "/images/load", archive).body)[-1] == {"stream": "Loaded image: busybox:latest\n"}
    broken = api.request("POST", "/images/load", archive[: len(archive) // 2])
    assert (broken.status, "truncated" in broken.message) == (400, True)
    assert api.request("GET", "/images/nope/get").status == 404


def test_import_and_history(api: Served) -> None:
    done = said(api.request("POST", "/images/create?fromSrc=-&repo=made&tag=1&changes=CMD+x&message=words", small_tar(file="content")).body)
    assert done[-1]["status"].startswith("sha256:")
    shown = api.request("GET", "/images/made:1/json").document
    assert (shown["Id"], shown["Config"]["Cmd"], shown["Comment"]) == (done[-1]["status"], ["/bin/sh", "-c", "x"], "words")
    assert api.request("GET", "/images/made:1/history").document[0]["Comment"] == "words"
    assert [one["RepoTags"] for one in api.request("GET", '/images/json?filters={"reference":["ma*"]}').document] == [["made:1"]]


def test_build_with_everything(api: Served) -> None:
    file = "FROM busybox\nARG WORD\nCOPY file /file\nRUN --network=none echo $WORD >/word\n"
    context = small_tar(Other=file, file="content")
    query = 't=built:1&t=built:2&dockerfile=Other&buildargs={"WORD":"said"}&labels={"a":"b"}&nocache=1'
    lines = said(api.request("POST", f"/build?{query}", context, {"Content-Type": "application/x-tar"}).body)
    text = "".join(line.get("stream", "") for line in lines)
    assert "Successfully tagged built:1\nSuccessfully tagged built:2\n" in text
    identity = next(line["aux"]["ID"] for line in lines if "aux" in line)
    shown = api.request("GET", "/images/built:2/json").document
    assert (shown["Id"], shown["Config"]["Labels"]["a"]) == (identity, "b")
    failed = said(api.request("POST", "/build", small_tar(Dockerfile="FROM busybox\nRUN exit 3\n")).body)
    assert "exit" in failed[-1]["error"] or "3" in failed[-1]["error"]
    wrong = api.request("POST", "/build", small_tar(Dockerfile="NONSENSE\n"))
    assert (wrong.status, "NONSENSE" in wrong.message) == (400, True)


def test_a_build_ends_with_its_client(api: Served, box: Machine) -> None:
    context = small_tar(Dockerfile="FROM busybox\nRUN sleep 1000\n")
    with api.send(f"POST /build?networkmode=none HTTP/1.1\nHost: x\nContent-Length: {len(context)}\n\n") as connection:
        connection.sendall(context)
        wait_for(lambda: box.engine.containers.list(), "the step runs")
    wait_for(lambda: not box.engine.containers.list(all=True), "the step is ended and removed")


def test_a_build_ends_with_a_killed_server(box: Machine, tmp_path: Path) -> None:
    context = small_tar(Dockerfile="FROM busybox\nRUN sleep 1000\n")
    with pytest.raises(AssertionError), serving(box.home, path=tmp_path / "killed.sock") as served:
        connection = served.send(f"POST /build?networkmode=none HTTP/1.1\nHost: x\nContent-Length: {len(context)}\n\n")
        connection.sendall(context)
        wait_for(lambda: box.engine.containers.list(), "the step runs")
        os.kill(served.pid, signal.SIGKILL)
    connection.close()
    wait_for(lambda: not box.engine.containers.list(all=True), "the step is ended and removed")


def test_images_in_use_and_prunes(api: Served) -> None:
    made = api.request("POST", "/containers/create", {"Image": "busybox", "HostConfig": {"NetworkMode": "none"}}).document["Id"]
    refused = api.request("DELETE", "/images/busybox:latest")
    assert (refused.status, "busybox" in refused.message) == (409, True)
    said(api.request("POST", "/images/create?fromSrc=-", small_tar(file="content")).body)
    pruned = api.request("POST", "/images/prune").document
    assert {key for one in pruned["ImagesDeleted"] for key in one} == {"Deleted"}
    assert api.request("POST", "/containers/prune").document["ContainersDeleted"] == [made]
    usage = api.request("GET", "/system/df").document
    assert (len(usage["Images"]), usage["Containers"], usage["Volumes"]) == (1, [], [])
    assert set(api.request("GET", "/system/df?type=volume").document) == {"Volumes"}
    assert api.request("POST", "/build/prune?all=1").status == 200
