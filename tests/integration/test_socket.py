"""``bulle serve``: who may connect, what a request may be, streams that become the connection, clients that are slow or vanish, servers that end."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bulle_testing import places, tiers
from bulle_testing.running import Machine, alive, wait_for
from bulle_testing.socket_clients import Served, UnixConnection, frames, received, serving, wait_until_served

pytestmark = [pytest.mark.root]

HIJACK = "Connection: Upgrade\nUpgrade: tcp\nContent-Length: 0\n\n"


@pytest.fixture(scope="module")
def server(module_machine: Machine) -> Iterator[Served]:
    """The module's home, served."""
    with serving(module_machine.home) as served:
        yield served


@pytest.fixture
def api(server: Served, box: Machine) -> Served:
    """The server, in a test that leaves no container."""
    return server


def create(api: Served, *command: str, name: str = "", **document: Any) -> str:
    """A container that was not started."""
    host = {"NetworkMode": "none", **document.pop("HostConfig", {})}
    answer = api.request("POST", f"/containers/create?name={name}", {"Image": "busybox", "Cmd": list(command), "HostConfig": host, **document})
    assert answer.status == 201, answer.body
    return str(answer.document["Id"])


def start(api: Served, identifier: str) -> None:
    answer = api.request("POST", f"/containers/{identifier}/start")
    assert answer.status == 204, answer.body


def remove(api: Served, identifier: str) -> None:
    answer = api.request("DELETE", f"/containers/{identifier}?force=1")
    assert answer.status == 204, answer.body


# Who may connect


def test_socket_is_for_its_owner_and_group(api: Served) -> None:
    status = api.path.stat()
    assert stat.S_ISSOCK(status.st_mode)
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o660, os.geteuid())


def test_a_second_server_does_not_take_the_socket(api: Served, box: Machine) -> None:
    done = box.command("serve", "--host", api.address)
    assert done.returncode == 1
    assert "somebody listens" in done.stderr
    assert api.request("GET", "/_ping").body == b"OK"


def test_a_file_in_the_way_is_left_alone(box: Machine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    done = box.command("serve", "--host", f"unix://{tmp_path}/file")
    assert (done.returncode, (tmp_path / "file").read_text()) == (1, "mine")


def test_tcp_without_certificates_is_refused(box: Machine) -> None:
    done = box.command("serve", "--host", "tcp://127.0.0.1:1")
    assert done.returncode == 1
    assert "not served without TLS" in done.stderr


@pytest.mark.programs("openssl")
def test_tcp_is_for_clients_with_a_certificate(box: Machine, tmp_path: Path) -> None:
    openssl = str(tiers.program("openssl"))

    def make(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], cwd=tmp_path, check=True, capture_output=True)

    make("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem", "-days", "2")
    (tmp_path / "names").write_text("subjectAltName=IP:127.0.0.1")
    for name in ("server", "client"):
        make("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        signing = ("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
        make(*signing, "-extfile", "names", "-out", f"{name}.pem")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    flags = ("--host", f"tcp://127.0.0.1:{port}", "--tlscacert", f"{tmp_path}/ca.pem", "--tlscert", f"{tmp_path}/server.pem")
    with serving(box.home, *flags, "--tlskey", f"{tmp_path}/server.key", path=tmp_path / "unix.sock"):
        curl = [str(tiers.program("curl")), "-sS", "-m", "20", "--cacert", f"{tmp_path}/ca.pem", f"https://127.0.0.1:{port}/_ping"]
        known = subprocess.run([*curl, "--cert", f"{tmp_path}/client.pem", "--key", f"{tmp_path}/client.key"], capture_output=True, text=True)
        assert (known.returncode, known.stdout) == (0, "OK"), known.stderr
        assert subprocess.run(curl, capture_output=True).returncode != 0
        assert subprocess.run([*curl[:-1], f"http://127.0.0.1:{port}/_ping"], capture_output=True).returncode != 0


@pytest.mark.programs("systemd-socket-activate")
def test_systemd_hands_the_socket_over(box: Machine, tmp_path: Path) -> None:
    path = tmp_path / "handed.sock"
    environment = [f"--setenv={key}={value}" for key, value in box.environment.items() if key.startswith(("BULLE_", "PATH", "HOME"))]
    command = [str(tiers.program("systemd-socket-activate")), "-l", str(path), *environment, *places.command_line(), "serve"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(path.exists, "the socket is there")
        served = Served(path)
        wait_until_served(served)
        assert served.pid == process.pid
        assert served.request("GET", "/containers/json").document == []
    finally:
        process.terminate()
        process.wait(20)


# What a request may be


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/v1.23/version", 400, "client version 1.23 is too old. Minimum supported API version is 1.24"),
        ("/v9.0/version", 400, "client version 9.0 is too new. Maximum supported API version is 1."),
        ("/nowhere", 404, "page not found"),
        ("/v1.41/metrics", 404, "page not found"),
        ("/containers/nope/json", 404, "No such container: nope"),
        ("/images/nope:1/json", 404, "o such image"),
        ("/networks/nope", 404, "nope"),
        ("/volumes/nope", 404, "nope"),
        ("/exec/nope/json", 404, "No such exec instance: nope"),
        ("/containers/json?filters=x", 400, "invalid filter"),
        ('/containers/json?filters={"nope":["x"]}', 400, "invalid filter 'nope'"),
        ("/containers/json?limit=x", 400, "limit"),
        ("/swarm", 503, "This node is not a swarm manager"),
        ("/plugins/x/json", 404, 'plugin "x" not found'),
    ],
)
def test_wrong_requests_are_answered_as_docker_does(api: Served, path: str, status: int, words: str) -> None:
    answer = api.request("GET", path)
    assert (answer.status, words in answer.message) == (status, True), answer.body


def test_versions_are_in_every_answer(api: Served) -> None:
    ping = api.request("GET", "/v1.24/_ping")
    assert (ping.body, ping.headers["Ostype"], ping.headers["Builder-Version"]) == (b"OK", "linux", "1")
    version = api.request("GET", "/version").document
    assert (version["ApiVersion"], version["MinAPIVersion"]) == (ping.headers["Api-Version"], "1.24")


def test_heads_and_bodies_are_bounded(api: Served) -> None:
    with api.send("GET / HTTP/1.1\nX: ") as connection:
        connection.sendall(b"x" * (70 << 10))
        assert received(connection, b"\r\n").startswith(b"HTTP/1.1 4")
    assert api.request("POST", "/containers/create", b"[" + b" " * (9 << 20)).status == 413
    with api.send("nonsense\n\n") as connection:
        assert received(connection, b"\r\n").startswith(b"HTTP/1.1 400")
    assert api.request("POST", "/containers/create", b'{"Image": 1}').status == 400
    assert api.request("POST", "/containers/create", b"{").status == 400
    assert api.request("POST", "/containers/create", b'{"Volumes":' * 100_000).status == 400
    assert api.request("POST", "/containers/nope/stop?t=99999999999999999999").status == 400
    assert api.request("GET", "/containers/json").document == []


def test_what_bulle_has_not_is_refused(api: Served) -> None:
    wanted: dict[str, Any] = {
        "Devices": [{"PathOnHost": "/dev/null"}], "Sysctls": {"a": "b"}, "PidMode": "host", "GroupAdd": ["1"], "Runtime": "kata",
    }  # fmt: skip
    for key, value in wanted.items():
        answer = api.request("POST", "/containers/create", {"Image": "busybox", "Cmd": ["true"], "HostConfig": {key: value}})
        assert (answer.status, "leave it out" in answer.message) == (501, True), key
    assert api.request("POST", "/build?version=2", b"").status == 501


def test_null_is_what_was_not_said(api: Served) -> None:
    made = create(api, "true", Labels=None, Tty=None, Env=None, HostConfig={"Memory": None, "RestartPolicy": None, "Binds": None})
    assert api.request("GET", f"/containers/{made}/json").document["Config"]["Tty"] is False
    remove(api, made)


def test_isolation_is_in_dockers_words(api: Served) -> None:
    for made in (
        create(api, "true", HostConfig={"Isolation": "chroot", "NetworkMode": "host"}),
        create(api, "true", Labels={"bulle.isolation": "chroot"}, HostConfig={"NetworkMode": "host"}),
    ):
        assert api.request("GET", f"/containers/{made}/json").document["HostConfig"]["Isolation"] == "chroot"
        remove(api, made)
    answer = api.request("POST", "/containers/create", {"Image": "busybox", "Cmd": ["true"], "HostConfig": {"Isolation": "hyperv"}})
    assert (answer.status, "there is no isolation level" in answer.message) == (400, True)


@pytest.mark.parametrize(("flags", "address"), [((), "0.0.0.0"), (("--publish", "loopback"), "127.0.0.1")])
def test_ports_without_an_address(box: Machine, flags: tuple[str, ...], address: str, tmp_path: Path) -> None:
    with serving(box.home, *flags, path=tmp_path / "s.sock") as served:
        made = create(served, "true", HostConfig={"NetworkMode": "bridge", "PortBindings": {"80/tcp": [{"HostPort": "8080"}]}})
        bindings = served.request("GET", f"/containers/{made}/json").document["HostConfig"]["PortBindings"]
        remove(served, made)
    assert bindings["80/tcp"][0] == {"HostIp": address, "HostPort": "8080"}


def test_containers_reach_the_socket_only_where_it_is_mounted(api: Served, box: Machine) -> None:
    """Attack 24."""
    look = f"ls {api.path} 2>/dev/null; find / -xdev -type s 2>/dev/null; grep -o {api.path.name} /proc/net/unix; ls /given 2>/dev/null"
    for binds, seen in (([], []), ([f"{api.path}:/given"], ["/given", "/given"])):
        made = create(api, "sh", "-c", look, HostConfig={"Binds": binds})
        start(api, made)
        api.request("POST", f"/containers/{made}/wait")
        said = b"".join(data for _kind, data in frames(api.request("GET", f"/containers/{made}/logs?stdout=1").body))
        remove(api, made)
        assert said.decode().split() == seen


def test_the_host_s_network_is_no_way_to_the_socket(api: Served, box: Machine) -> None:
    """Attack 24: its name is seen there, but it is a name in a file system that containers have not."""
    look = (
        f"grep -c {api.path.name} /proc/net/unix; ls {api.path} 2>/dev/null; find / -xdev -type s 2>/dev/null; ls /proc/1/root{api.path} 2>/dev/null"
    )
    made = create(api, "sh", "-c", look, HostConfig={"NetworkMode": "host"})
    start(api, made)
    api.request("POST", f"/containers/{made}/wait")
    said = b"".join(data for _kind, data in frames(api.request("GET", f"/containers/{made}/logs?stdout=1").body))
    remove(api, made)
    (seen,) = said.decode().split()
    assert int(seen) > 0


# Streams


def test_attached_before_the_start_misses_nothing(api: Served) -> None:
    made = create(api, "sh", "-c", "echo out; echo err >&2; cat", OpenStdin=True, StdinOnce=True)
    with api.send(f"POST /v1.41/containers/{made}/attach?stream=1&stdin=1&stdout=1&stderr=1 HTTP/1.1\nHost: x\n{HIJACK}") as connection:
        head = received(connection, b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 UPGRADED\r\n")
        assert b"application/vnd.docker.raw-stream" in head
        start(api, made)
        connection.sendall(b"typed")
        connection.shutdown(socket.SHUT_WR)
        said = frames(received(connection))
        assert [b"".join(data for kind, data in said if kind == wanted) for wanted in (1, 2)] == [b"out\ntyped", b"err\n"]
    assert api.request("POST", f"/containers/{made}/wait").document == {"StatusCode": 0}
    remove(api, made)


def test_attached_to_what_somebody_else_starts(api: Served, box: Machine) -> None:
    made = create(api, "sh", "-c", "read line; echo got $line", OpenStdin=True)
    with api.send(f"POST /v1.41/containers/{made}/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\nHost: x\n{HIJACK}") as connection:
        received(connection, b"\r\n\r\n")
        box.command("start", made)
        connection.sendall(b"this\n")
        assert frames(received(connection)) == [(1, b"got this\n")]
    remove(api, made)


def message(kind: int, payload: bytes) -> bytes:
    """A masked frame of a WebSocket."""
    mask = b"\x01\x02\x03\x04"
    return bytes([0x80 | kind, 0x80 | len(payload)]) + mask + bytes(byte ^ mask[number % 4] for number, byte in enumerate(payload))


def test_attached_by_web_socket(api: Served) -> None:
    made = create(api, "sh", "-c", "echo err >&2; read line; echo got $line", OpenStdin=True)
    key = "dGhlIHNhbXBsZSBub25jZQ=="  # of RFC 6455, with the answer below
    head = f"Connection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Version: 13\nSec-WebSocket-Key: {key}\n\n"
    with api.send(f"GET /containers/{made}/attach/ws?stream=1&stdin=1&stdout=1&stderr=1 HTTP/1.1\nHost: x\n{head}") as connection:
        answer = received(connection, b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 101 ")
        assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in answer
        start(api, made)
        assert b"\x82\x04err\n" in received(connection, b"err\n")
        connection.sendall(message(9, b"there?"))
        assert received(connection, b"there?") == b"\x8a\x06there?"
        connection.sendall(message(1, b"this\n"))
        assert received(connection) == b"\x82\x09got this\n\x88\x02\x03\xe8"
    remove(api, made)
    assert api.request("GET", f"/containers/{made}/attach/ws").status == 404


def test_a_web_socket_that_breaks_the_rules_is_closed(api: Served) -> None:
    made = create(api, "sleep", "1000", OpenStdin=True)
    start(api, made)
    assert api.request("GET", f"/containers/{made}/attach/ws?stream=1").status == 400
    head = "Connection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Version: 13\nSec-WebSocket-Key: eA==\n\n"
    for wrong, code in ((b"\x82\x01x", 1002), (b"\xf2\x81\0\0\0\0x", 1002), (b"\x82\xff" + (1 << 40).to_bytes(8, "big"), 1009)):
        with api.send(f"GET /containers/{made}/attach/ws?stream=1&stdin=1&stdout=1 HTTP/1.1\nHost: x\n{head}") as connection:
            received(connection, b"\r\n\r\n")
            connection.sendall(wrong)
            assert received(connection, b"\x88\x02") == b"\x88\x02" + code.to_bytes(2, "big")
    remove(api, made)


def test_exec_without_an_upgrade_and_with_early_bytes(api: Served) -> None:
    made = create(api, "sleep", "1000")
    start(api, made)
    asked = {"Cmd": ["cat"], "AttachStdin": True, "AttachStdout": True}
    command = api.request("POST", f"/containers/{made}/exec", asked).document["Id"]
    body = json.dumps({"Detach": False, "Tty": False})
    text = f"POST /v1.24/exec/{command}/start HTTP/1.1\nHost: x\nContent-Type: application/json\nContent-Length: {len(body)}\n\n{body}early"
    with api.send(text) as connection:
        assert received(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 200 OK\r\n")
        connection.sendall(b" and late")
        connection.shutdown(socket.SHUT_WR)
        assert b"".join(data for _kind, data in frames(received(connection))) == b"early and late"
    wait_for(lambda: api.request("GET", f"/exec/{command}/json").document["ExitCode"] == 0, "the command ends")
    assert api.request("POST", f"/exec/{command}/start", {}).status == 409
    remove(api, made)


def test_exec_that_is_detached_has_an_exit_code(api: Served) -> None:
    made = create(api, "sleep", "1000")
    start(api, made)
    command = api.request("POST", f"/containers/{made}/exec", {"Cmd": ["sh", "-c", "exit 7"]}).document["Id"]
    before = api.request("GET", f"/exec/{command}/json").document
    assert (before["Running"], before["ExitCode"]) == (False, None)
    assert api.request("POST", f"/exec/{command}/start", {"Detach": True}).status == 200
    wait_for(lambda: api.request("GET", f"/exec/{command}/json").document["ExitCode"] == 7, "the command ends")
    wrong = api.request("POST", f"/containers/{made}/exec", {"Cmd": ["/nope"], "AttachStdout": True}).document["Id"]
    answer = api.request("POST", f"/exec/{wrong}/start", {"Detach": True})
    assert (answer.status, "executable file not found" in answer.message) == (400, True)
    assert api.request("GET", f"/exec/{wrong}/json").document["ExitCode"] == 127
    remove(api, made)


def test_terminal_is_raw_and_has_a_size(api: Served) -> None:
    made = create(api, "sh", "-c", "read line; stty size; read line", OpenStdin=True, Tty=True)
    with api.send(f"POST /containers/{made}/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\nHost: x\n{HIJACK}") as connection:
        assert b"vnd.docker.raw-stream" in received(connection, b"\r\n\r\n")
        start(api, made)
        assert api.request("POST", f"/containers/{made}/resize?h=33&w=99").status == 200
        connection.sendall(b"\n")
        assert b"33 99" in received(connection, b"33 99")
        connection.sendall(b"\n")
        received(connection)
    remove(api, made)


def test_wait_is_answered_at_once_and_ended_later(api: Served) -> None:
    made = create(api, "sh", "-c", "exit 5", HostConfig={"AutoRemove": True})
    connections = []
    for condition in ("next-exit", "removed"):
        connection = api.send(f"POST /containers/{made}/wait?condition={condition} HTTP/1.1\nHost: x\n\n")
        assert received(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 200")
        connections.append(connection)
    start(api, made)
    for connection in connections:
        assert b'{"StatusCode":5}' in received(connection, b"}")
        connection.close()
    wait_for(lambda: api.request("GET", f"/containers/{made}/json").status == 404, "the container is removed")


def test_logs_are_chosen_and_followed(api: Served) -> None:
    made = create(api, "sh", "-c", "echo one; echo two >&2; sleep 0.3; echo three")
    start(api, made)
    followed = api.request("GET", f"/containers/{made}/logs?stdout=1&stderr=1&follow=1")
    assert sorted(frames(followed.body)) == [(1, b"one\n"), (1, b"three\n"), (2, b"two\n")]
    assert frames(api.request("GET", f"/containers/{made}/logs?stderr=1").body) == [(2, b"two\n")]
    assert frames(api.request("GET", f"/containers/{made}/logs?stdout=1&tail=1").body) == [(1, b"three\n")]
    ((_kind, line),) = frames(api.request("GET", f"/containers/{made}/logs?stdout=1&tail=1&timestamps=1").body)
    assert line.split()[0].endswith(b"Z")
    assert api.request("GET", f"/containers/{made}/logs").status == 400
    remove(api, made)


def test_events_of_the_past_and_to_come(api: Served) -> None:
    began = time.time()
    first = create(api, "true", name="first")
    with api.send(f'GET /events?since={began}&filters={{"event":["create"]}} HTTP/1.1\nHost: x\n\n') as connection:
        assert b'"name":"first"' in received(connection, b'"first"')
        second = create(api, "true", name="second")
        assert b'"name":"second"' in received(connection, b'"second"')
    for made in (first, second):
        remove(api, made)
    over = api.request("GET", f'/events?since={began}&until={time.time()}&filters={{"type":["container"]}}').body.decode().splitlines()
    assert [json.loads(line)["Action"] for line in over] == ["create", "create", "destroy", "destroy"]


# Clients that are slow, many or gone


def test_vanished_clients_leave_nothing(api: Served) -> None:
    made = create(api, "sh", "-c", "yes | head -c 2000000; exec sleep 1000", OpenStdin=True)
    start(api, made)
    api.request("GET", f"/containers/{made}/logs?stdout=1&tail=1")
    before = api.descriptors()
    connections = []
    for method, path in (
        ("GET", "/events"),
        ("GET", f"/containers/{made}/logs?stdout=1&follow=1"),
        ("GET", f"/containers/{made}/stats"),
        ("POST", f"/containers/{made}/wait"),
        ("GET", f"/containers/{made}/export"),
    ):
        connections += [api.send(f"{method} {path} HTTP/1.1\nHost: x\n\n") for _ in range(4)]
    attach = f"POST /containers/{made}/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\nHost: x\n{HIJACK}"
    connections += [api.send(attach) for _ in range(4)]
    wait_for(lambda: api.descriptors() > before + len(connections), "all are served")
    assert api.request("GET", "/_ping").body == b"OK"
    for connection in connections:
        connection.close()
    # Threads keep a connection to the database each for a while: three descriptors.
    wait_for(lambda: api.descriptors() <= before + 3 * threads_of(api), "the server lets go of its descriptors")
    remove(api, made)


def threads_of(api: Served) -> int:
    return len(os.listdir(f"/proc/{api.pid}/task"))


def test_many_clients_at_once(api: Served) -> None:
    made = [create(api, "true") for _ in range(5)]
    before = api.descriptors()
    wrong: list[object] = []

    def ask() -> None:
        connection = UnixConnection(api.path)
        try:
            for number in range(20):
                connection.request("GET", "/_ping" if number % 2 else "/containers/json?all=1")
                answer = connection.getresponse()
                body = answer.read()
                if answer.status != 200 or not (number % 2 or len(json.loads(body)) == len(made)):
                    wrong.append((answer.status, body))
        finally:
            connection.close()

    threads = [threading.Thread(target=ask) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    wait_for(lambda: api.descriptors() <= before + 3 * threads_of(api), "the server lets go of its descriptors")
    for one in made:
        remove(api, one)


def test_a_client_that_breaks_off_an_archive(api: Served) -> None:
    made = create(api, "true")
    with api.send(f"PUT /containers/{made}/archive?path=/tmp HTTP/1.1\nHost: x\nContent-Length: 100000\n\nonly this much"):
        pass
    wait_for(lambda: api.request("HEAD", f"/containers/{made}/archive?path=/tmp").status == 200, "the container's files are free again")
    remove(api, made)


# Servers that end


def test_a_killed_server_harms_no_container(box: Machine, tmp_path: Path) -> None:
    path = tmp_path / "killed.sock"
    with pytest.raises(AssertionError), serving(box.home, path=path) as served:
        made = create(served, "sleep", "1000")
        start(served, made)
        process = served.request("GET", f"/containers/{made}/json").document["State"]["Pid"]
        os.kill(served.pid, signal.SIGKILL)
        assert served.process is not None
        served.process.wait(20)
    assert alive(process)
    with serving(box.home, path=path) as served:  # in the place of the dead one's socket
        assert served.request("GET", f"/containers/{made}/json").document["State"]["Running"]
        remove(served, made)


def test_a_server_that_ends_lets_its_clients_go(box: Machine, tmp_path: Path) -> None:
    path = tmp_path / "ended.sock"
    with serving(box.home, path=path) as served:
        connection = served.send("GET /events HTTP/1.1\nHost: x\n\n")
        received(connection, b"\r\n\r\n")
    with connection:
        assert received(connection) == b""
    assert not path.exists()


def test_a_server_is_at_home_on_a_machine_whose_mounts_change(box: Machine, tmp_path: Path) -> None:
    """Or the spawner, whose child it is, would not know it any more, and each start take a fresh interpreter."""

    def place() -> int:
        return os.stat(f"/proc/{places.spawner_pid(box.home)}/ns/mnt").st_ino

    box.command("ps")
    (tmp_path / "mounted").mkdir()
    with serving(box.home, path=tmp_path / "own.sock") as served:
        before = place()
        subprocess.run(["mount", "-t", "tmpfs", "none", str(tmp_path / "mounted")], check=True)
        try:
            with suppress(AssertionError):  # where mounts are shared they come by themselves, and it stays where it is
                wait_for(lambda: place() != before, "the spawner takes another mount namespace")
            made = create(served, "sleep", "1000")
            start(served, made)
            monitor = box.engine.containers.get(made).state().monitor_pid
            assert b"--spawner" in Path(f"/proc/{monitor}/cmdline").read_bytes().split(b"\0"), "it is a fork of the spawner"
            remove(served, made)
        finally:
            subprocess.run(["umount", str(tmp_path / "mounted")], check=True)


# What is beside Docker's


def test_metrics_are_prometheus_text(api: Served) -> None:
    made = create(api, "sleep", "1000", name="measured")
    start(api, made)
    answer = api.request("GET", "/metrics")
    lines = answer.body.decode().splitlines()
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert 'bulle_containers{state="running"} 1' in lines
    assert any(line.startswith(f'bulle_container_memory_bytes{{id="{made}",name="measured"}} ') for line in lines)
    families = [line.split()[2] for line in lines if line.startswith("# TYPE ")]
    assert len(families) == len(set(families))
    for line in lines:
        if not line.startswith("#"):
            float(line.rpartition(" ")[2])
            assert line.partition("{")[0].split()[0] in families
    remove(api, made)


def test_description_names_every_path(box: Machine) -> None:
    from bulle.api.routes import ROUTES

    described = json.loads(box.command("serve", "--openapi").stdout)
    found = {(method.upper(), path) for path, methods in described["paths"].items() for method in methods}
    assert found == {(route.method, route.path.replace("...}", "}")) for route in ROUTES}
    create_body = described["paths"]["/containers/create"]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    assert "HostConfig" in described["components"]["schemas"][create_body.rpartition("/")[2]]["properties"]


def test_context_is_what_a_shell_evaluates(box: Machine) -> None:
    assert box.command("context").stdout == "export DOCKER_HOST=unix:///run/bulle/docker.sock\n"
