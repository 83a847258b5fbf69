"""The crash matrix of the socket: the server and each process that it works with, killed during each kind of request. Whoever else runs notices
nothing, a server (another one, where it was the victim) says what is true, and nothing is left once the container is removed.
"""

from __future__ import annotations

import io
import os
import signal
import tarfile
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from http.client import HTTPException
from pathlib import Path

import pytest

import bulle
from bulle_testing import places
from bulle_testing.running import LEVELS, Machine, alive, wait_for
from bulle_testing.socket_clients import Answer, Served, serving

pytestmark = [pytest.mark.root, pytest.mark.slow]

LEVEL = LEVELS[0]
COUNT = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.02; done"
DELAYS_MS = (0, 8, 25)
HIJACK = "HTTP/1.1\nHost: x\nConnection: Upgrade\nUpgrade: tcp\nContent-Length: 0\n\n"


def archive(name: str, content: bytes) -> bytes:
    """A tar of one file."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as file:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        file.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def streamed(api: Served, line: str) -> None:
    """A request whose answer does not end by itself: some of it, for a while."""
    with api.send(line) as connection:
        until = time.monotonic() + 0.3
        connection.settimeout(0.3)
        with suppress(TimeoutError):
            while time.monotonic() < until and connection.recv(65536):
                pass


def execute(api: Served) -> None:
    made = api.request("POST", "/containers/subject/exec", {"Cmd": ["sleep", "0.2"], "AttachStdout": True})
    if made.status == 201:
        streamed(api, f"POST /exec/{made.document['Id']}/start {HIJACK}")


TAR, BUILD = archive("file", b"x" * 2_000_000), archive("Dockerfile", b"FROM busybox\nRUN echo built >/built\n")
CREATED = {"Image": "busybox", "Cmd": ["sh", "-c", COUNT], "HostConfig": {"NetworkMode": "none"}}
ACTS: dict[str, Callable[[Served], Answer | None]] = {
    "create": lambda api: api.request("POST", "/containers/create?name=subject", CREATED),
    "start": lambda api: api.request("POST", "/containers/subject/start"),
    "exec": execute,
    "attach": lambda api: streamed(api, f"POST /containers/subject/attach?stream=1&stdout=1 {HIJACK}"),
    "logs": lambda api: streamed(api, "GET /containers/subject/logs?stdout=1&follow=1 HTTP/1.1\nHost: x\n\n"),
    "stop": lambda api: api.request("POST", "/containers/subject/stop?t=1"),
    "rm": lambda api: api.request("DELETE", "/containers/subject?force=1"),
    "put": lambda api: api.request("PUT", "/containers/subject/archive?path=/tmp", TAR),
    "export": lambda api: api.request("GET", "/containers/subject/export"),
    "commit": lambda api: api.request("POST", "/commit?container=subject&repo=made", {}),
    "build": lambda api: api.request("POST", "/build?t=made&networkmode=none", BUILD),
}
JOBS = ("put", "export", "commit", "build")
VICTIMS = ("server", "spawner", "monitor", "init", "job")
PAIRS = [
    (victim, verb)
    for victim in VICTIMS
    for verb in ACTS
    if (victim != "job" or verb in JOBS) and (victim not in ("monitor", "init") or verb not in ("create", "build"))
]


def children(pid: int) -> set[int]:
    """Those that a process has just now."""
    with suppress(OSError):
        return {int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    return set()


def subject(box: Machine) -> bulle.Container | None:
    with suppress(bulle.BulleError):
        return box.engine.containers.get("subject")
    return None


def victims(box: Machine, api: Served, victim: str, older: set[int]) -> set[int]:
    """Who is to die; nobody where it is not there (any more, or yet)."""
    if victim == "server":
        return {api.pid}
    if victim == "spawner":
        return {places.spawner_pid(box.home)}
    if victim == "job":
        return children(places.spawner_pid(box.home)) - older
    with suppress(bulle.BulleError, OSError):
        found = subject(box)
        state = found.state() if found is not None else None
        return {state.monitor_pid if victim == "monitor" else state.pid} if state is not None else set()
    return set()


def ends(victim: str) -> AbstractContextManager[object]:
    """The end of a server: not in order where it was the victim."""
    return pytest.raises(AssertionError, match="-9") if victim == "server" else nullcontext()


def disturbed(box: Machine, api: Served, victim: str, verb: str, delay_ms: int) -> list[Answer]:
    """The request, and in the midst of it the end of the victim; what was answered."""
    if verb not in ("create", "build"):
        assert ACTS["create"](api).status == 201
        if verb != "start":
            assert ACTS["start"](api).status == 204
    answers: list[Answer] = []

    def act() -> None:
        with suppress(OSError, HTTPException, ValueError):
            if (answer := ACTS[verb](api)) is not None:
                answers.append(answer)

    older = children(places.spawner_pid(box.home))
    asking = threading.Thread(target=act)
    asking.start()
    time.sleep(delay_ms / 1000)
    for pid in victims(box, api, victim, older) - {0, -1}:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda pid=pid: not alive(pid), "the victim's end")
    asking.join(40)
    assert not asking.is_alive(), "the request never ends"
    return answers


def is_true(api: Served) -> bool:
    """What the server says of the subject is what the kernel knows."""
    answer = api.request("GET", "/containers/subject/json")
    if answer.status == 404:
        return True
    state = answer.document["State"]
    return alive(state["Pid"]) if state["Status"] == "running" else state["Status"] in ("created", "exited") and not state["Pid"]


def clear(box: Machine, api: Served, bystander: bulle.Container) -> None:
    """By the server: the subject and what was made of it go, the bystander stays, and nothing of killed work."""
    wait_for(lambda: is_true(api), "a true answer")
    assert api.request("DELETE", "/containers/subject?force=1").status in (204, 404)
    assert api.request("DELETE", "/images/made?force=1").status in (200, 404)
    for left in api.request("GET", "/containers/json?all=1").document:
        if left["Id"] != bystander.id:
            assert api.request("DELETE", f"/containers/{left['Id']}?force=1").status == 204
    directories = box.home / "containers"
    for name in set(os.listdir(directories)) - {bystander.id}:
        with suppress(FileNotFoundError):
            os.utime(directories / name, (0, 0))  # of one that was killed half way: collected as if it were no longer young
    box.engine.gc()
    assert os.listdir(directories) == [bystander.id]
    assert [one["Id"] for one in api.request("GET", "/containers/json?all=1").document] == [bystander.id]


@pytest.mark.parametrize(("victim", "verb"), PAIRS, ids=lambda word: word)
def test_killed(box: Machine, victim: str, verb: str) -> None:
    path = box.home / "docker.sock"
    with box.running(LEVEL, "sh", "-c", COUNT) as bystander:
        before = bystander.state().pid
        for delay_ms in DELAYS_MS:
            with ends(victim), serving(box.home, path=path) as api:
                answers = disturbed(box, api, victim, verb, delay_ms)
                if victim == "server":
                    assert api.process is not None
                    api.process.wait(20)
                else:
                    assert all(one.status < 400 or one.message for one in answers), answers
                    clear(box, api, bystander)
            if victim == "server":
                with serving(box.home, path=path) as api:
                    clear(box, api, bystander)
        assert (bystander.state().status, bystander.state().pid) == ("running", before)
        said = [int(entry.data.split()[1]) for entry in bystander.logs()]
        assert said == list(range(1, len(said) + 1)), "nothing of what it said is lost"
